"""The share of visits that a return follows, as a reward of visits: for guards where no definition weighs returns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rlrec.app.evaluation.passes.fold import RowCounts
from rlrec.app.evaluation.passes.sessions import SessionUnit
from rlrec.app.evaluation.rows import log_rows
from rlrec.app.evaluation.rows.log_rows import LoggedBatch
from rlrec.app.log.ended_visits import EndedVisits
from rlrec.arrays import Flags, Ids
from rlrec.ope.sums.unit_visits import Visits
from rlrec.records import Reward
from rlrec.store import Unit
from rlrec.store.log import settings
from rlrec.store.log.reader import ABSENT
from rlrec.store.policies import people
from rlrec.times import DAY_US

NAME, DAYS = "return", 7
WINDOW_US = DAYS * DAY_US
# Stored nowhere: a visit earns 1 at its last decision if the same user begins another one within the window.
REWARD = Reward(
    id=0, name=NAME, weights={NAME: 1.0}, window_us=WINDOW_US, default=0.0, clip_low=0.0, clip_high=1.0, learn="served",
    late="count",
)  # fmt: skip
_NUMBER_BITS = 24  # of the number of a visit in its code


def followed(unit: Unit) -> Ids:
    """Codes of the visits that the same user followed by another one within the window, ascending; 8 bytes each."""
    timeout_us, codes = settings.get(unit).session_timeout_us, [np.empty(0, np.int64)]
    for sessions in people.portions(unit):
        columns = people.ask_visits(unit, sessions).columns()
        ended, lapsed_at = columns["ended_at"] != ABSENT, columns["last_at"] + timeout_us
        person = log_rows.clusters(columns, "user")
        visits = Visits(
            person=person, unit=person, started_at=columns["started_at"],
            ended_at=np.where(ended, columns["ended_at"], lapsed_at), is_over=ended | (unit.now > lapsed_at),
        )  # fmt: skip
        soon = (visits.next_start - visits.ended_at <= WINDOW_US) & (columns["user_id"] != ABSENT)
        codes.append(_code(columns["session_id"], columns["number"])[soon])
    return np.sort(np.concatenate(codes))


def _code(session: Ids, number: Ids) -> Ids:
    return (session << _NUMBER_BITS) + number


@dataclass(frozen=True, kw_only=True, eq=False)
class ReturnUnit(SessionUnit):
    """Visits as rows, whose reward is their return. followed: codes of the visits that have one."""

    followed: Ids

    def usable(self, logged: LoggedBatch, reward: Reward) -> tuple[EndedVisits, RowCounts]:
        visits, counts = super().usable(logged, reward)
        code = _code(visits.per_visit("session_id"), visits.per_visit("visit"))
        returned: Flags = np.isin(code, self.followed)
        earned = np.zeros(len(visits.reward))
        earned[visits.start[1:] - 1] = returned
        return replace(visits, reward=earned, default=earned == 0), counts
