"""Draw the slates of a group: requests that share a distribution are drawn together, in arrays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import exp, log
from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec.app.distributions import exact
from rlrec.app.serving.open_sessions import shown
from rlrec.app.serving.requests import Lane, Plan
from rlrec.arrays import Ids, Index
from rlrec.policy import slate
from rlrec.policy.history import History
from rlrec.policy.scores import Correlated
from rlrec.policy.slate import Draw
from rlrec.store.unit import Row


class Page:
    """A slate as it is stored and answered; pages of one arm are shared by all who were shown it.

    slots: rows of decisions.SLOT behind the decision's id; recent: the arms as a session state remembers them."""

    __slots__ = ("answer", "arms", "log_propensity", "propensity", "recent", "slots")

    def __init__(self, arms: list[int], keys: Mapping[int, str], columns: list[tuple[Any, ...]]) -> None:
        """columns: propensity, marginal, min_propensity, score and rounded of each position."""
        total = sum(log(column[0]) for column in columns)
        self.arms = arms
        self.log_propensity = 0.0 if total > 0 else total  # a NaN stays one, and no database takes it
        self.propensity = exp(self.log_propensity)
        self.slots: list[Row] = []
        self.answer: list[dict[str, Any]] = []
        for position, (arm, (propensity, marginal, minimum, score, rounded)) in enumerate(
            zip(arms, columns, strict=True), 1
        ):
            known = marginal if marginal > 0 else None  # None: it has no closed form
            self.slots.append((position, arm, propensity, known, minimum, score, 0, int(rounded)))
            self.answer.append(
                {"position": position, "arm": keys[arm], "propensity": propensity, "marginal": known, "score": score}
            )
        self.recent = [shown(keys[arm]) for arm in arms]


def draw(plans: Mapping[int, Plan], ids: Mapping[int, int], bits: int, keys: Mapping[int, str]) -> dict[int, Page]:
    """Pages of the plans by place. keys: of the arms."""
    lanes: dict[Lane, list[int]] = defaultdict(list)
    for place, plan in plans.items():
        lanes[plan.lane].append(place)
    drawn: dict[int, Page] = {}
    for lane, places in lanes.items():
        numbers = np.array([ids[place] for place in places], np.int64)
        drawn.update(zip(places, _pages(lane, numbers, bits, keys), strict=True))
    return drawn


def draw_seeing(
    plans: Mapping[int, Plan], ids: Mapping[int, int], bits: int, keys: Mapping[int, str], *, histories: History
) -> dict[int, Page]:
    """The same where the distribution depends on the visit so far. histories: of the plans, in order."""
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for row, plan in enumerate(plans.values()):
        alike[plan.lane.version.id, plan.lane.eligible, plan.lane.size].append(row)
    places, drawn = list(plans), dict[int, Page]()
    for rows in alike.values():
        mine = [places[row] for row in rows]
        numbers = np.array([ids[place] for place in mine], np.int64)
        pages = _seeing([plans[place] for place in mine], histories.take(np.array(rows)), numbers, bits, keys)
        drawn.update(zip(mine, pages, strict=True))
    return drawn


def _seeing(
    plans: Sequence[Plan], histories: History, decisions: Ids, bits: int, keys: Mapping[int, str]
) -> list[Page]:
    """Pages of one version, eligible set and length."""
    lane, trained = plans[0].lane, plans[0].lane.trained
    assert trained is not None
    n, arms = len(plans), lane.case.arms
    context = trained.encoded([plan.request.context for plan in plans])
    state = trained.states(context, histories, np.full(n, lane.revision))
    score = trained.scores(state, arms, lane.revision)
    made = slate.draw_each(
        score / trained.policy.temperature, size=lane.size, floor=trained.policy.exploration,
        seeds=np.full(n, bits, np.uint64), decisions=decisions,
    )  # fmt: skip
    shown = np.take_along_axis(score, made.slates, axis=1)
    return _listed(arms[made.slates], (made.propensity, made.marginal, made.minimum, shown, made.rounded), keys)


def _pages(lane: Lane, decisions: Ids, bits: int, keys: Mapping[int, str]) -> list[Page]:
    case = lane.case
    seeds = np.full(len(decisions), bits, np.uint64)
    made = case.pages(lane.size).draw(seeds=seeds, decisions=decisions)
    if lane.size > 1 or len(decisions) == 1 or isinstance(case.scores, Correlated):
        return _made(case, made, slice(None), keys)
    _, firsts, which = np.unique(made.slates[:, 0], return_index=True, return_inverse=True)
    pages = _made(case, made, firsts, keys)
    return [pages[place] for place in which.tolist()]


def _made(case: exact.EligibleDistribution, drawn: Draw, rows: slice | Index, keys: Mapping[int, str]) -> list[Page]:
    columns = (drawn.propensity, drawn.marginal, drawn.minimum, case.noiseless(drawn.slates), drawn.rounded)
    return _listed(case.arms[drawn.slates][rows], [column[rows] for column in columns], keys)


def _listed(shown: Ids, columns: Sequence[npt.NDArray[Any]], keys: Mapping[int, str]) -> list[Page]:
    """Pages of arms (n, k), with columns of the same shape."""
    listed = (column.tolist() for column in (shown, *columns))
    return [Page(arms, keys, list(zip(*values, strict=True))) for arms, *values in zip(*listed, strict=True)]


def signed(bits: int) -> int:
    """64 bits as the signed number that a BIGINT holds."""
    return bits - 2**64 if bits >= 2**63 else bits


def unsigned(stored: int) -> int:
    return stored + 2**64 if stored < 0 else stored
