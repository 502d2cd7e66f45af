"""Visits of whole persons: the time to the person's next visit, and the reward that followed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rlrec.app.log import partitions, reward_log
from rlrec.arrays import Array, Flags, Ids, run_starts
from rlrec.records import Reward
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log.reader import ABSENT, Batch
from rlrec.store.policies import people
from rlrec.store.policies.experiments import Experiment

COLUMNS = (
    "at", "imported", "censored", "visit", "keep_probability", "arm_id", "position", "user_id", "user_digest",
    "session_digest",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class PersonVisits:
    """The visits of some persons in the order of their rows, (v,) each.

    cluster: digest of the person, or of the session if it has no user; has_user: which of the two; number: of the visit
    among the person's; last_at: time of its last page; gap: from then to the person's next visit, in microseconds,
    infinite if there is none; followed: reward of all later visits of the person; returns_after: how often the person
    came back within the window of the reward; pages: of the visit."""

    cluster: Ids
    has_user: Flags
    number: Ids
    last_at: Ids
    gap: Array
    followed: Array
    returns_after: Ids
    pages: Ids

    def __len__(self) -> int:
        return len(self.cluster)

    @classmethod
    def from_batches(cls, batches: Iterable[Batch], definition: Reward) -> PersonVisits:
        """The visits in batches that hold everything that these persons did, with the columns COLUMNS."""
        parts: list[tuple[Ids, ...]] = []
        for batch in batches:
            rows = reward_log.with_page_rewards(batch, reward_log.with_rewards(batch, definition), definition)
            slots = rows.slots
            starts = run_starts(slots["session_id"], slots["visit"])
            ends = np.r_[starts[1:], len(rows)][: len(starts)]
            has_user = slots["user_id"] != ABSENT
            cluster = np.where(has_user, slots["user_digest"], slots["session_digest"])
            earned = np.r_[0.0, np.cumsum(rows.reward)]
            parts.append((
                cluster[starts], has_user[starts], slots["at"][starts], slots["at"][ends - 1], ends - starts,
                earned[ends] - earned[starts],
            ))  # fmt: skip
        if not parts:
            nobody, nothing = np.zeros(0, np.int64), np.zeros(0)
            return cls(nobody, nobody > 0, nobody, nobody, nothing, nothing, nobody, nobody)
        cluster, has_user, first_at, last_at, pages, reward = map(np.concatenate, zip(*parts, strict=True))
        order = np.lexsort((last_at, first_at, has_user, cluster))
        begins = np.ones(len(order), np.bool_)
        begins[1:] = (cluster[order][1:] != cluster[order][:-1]) | ~has_user[order][1:] | ~has_user[order][:-1]
        starts = np.flatnonzero(begins)
        lengths = np.diff(np.r_[starts, len(order)])
        gap, number, followed = np.full(len(order), np.inf), np.empty(len(order), np.int64), np.empty(len(order))
        earlier = np.flatnonzero(~begins) - 1
        gap[order[earlier]] = np.maximum(first_at[order[earlier + 1]] - last_at[order[earlier]], 0)
        number[order] = np.arange(len(order)) - np.repeat(starts, lengths) + 1
        earned = np.cumsum(reward[order])
        followed[order] = np.repeat(earned[starts + lengths - 1], lengths) - earned
        returns_after, came_back = np.empty(len(order), np.int64), np.cumsum(gap[order] <= definition.window_us)
        returns_after[order] = np.repeat(came_back[starts + lengths - 1], lengths) - came_back
        return cls(cluster, has_user, number, last_at, gap, followed, returns_after, pages)


# -- portions of persons: their visits are read once, in the order of sessions --
#
# Most pages on disk have rows of several portions: index lookups would read a page once for each of them.

SPREAD = 4 * partitions.BATCH  # decisions, or sessions, that are read before they are distributed to portions


@dataclass(frozen=True, eq=False)
class PersonPortions:
    """Portions of whole persons. session (s,): ids, ascending; number (s,): the portion of each; portions: their
    number; files: the number of files in which rows wait, each for one or several portions."""

    session: Ids
    number: Ids
    portions: int

    @classmethod
    def read(cls, unit: Unit, sessions: Ids | None = None) -> PersonPortions:
        """The portions of all persons, or of the persons of some sessions."""
        portions = people.portions(unit, sessions)
        sessions = np.concatenate([np.empty(0, np.int64), *portions])
        order, number = np.argsort(sessions), np.repeat(np.arange(len(portions)), list(map(len, portions)))
        return cls(sessions[order], number[order], len(portions))

    @property
    def files(self) -> int:
        return min(self.portions, partitions.BUCKETS)

    def portion(self, rows: Columns) -> Ids:
        """The portion of each row, by its session."""
        return self.number[np.searchsorted(self.session, rows["session_id"])]

    def file(self, rows: Columns) -> Ids:
        """The file of each row, by its session."""
        return self.portion(rows) * self.files // max(1, self.portions)

    def visits(self, unit: Unit, experiment: Experiment | None = None) -> Iterator[dict[int, Columns]]:
        """For each file, the visits of its portions by portion number. experiment: as in `people.ask_visits`."""
        tables = (
            people.ask_visits(unit, self.session[start : start + SPREAD], experiment).columns()
            for start in range(0, len(self.session), SPREAD)
        )
        for pieces in partitions.spool(
            tables, self.files, lambda table: partitions.split_rows(table, self.file(table))
        ):
            columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]} if pieces else {}
            yield dict(partitions.split_rows(columns, self.portion(columns))) if columns else {}
