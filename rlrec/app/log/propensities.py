"""The propensity that weighs a slot: the marginal at its position, else the probability of the slate down to it.

Plain Python for a few decisions; numpy is loaded where arrays come."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from rlrec.store import Unit, decisions

if TYPE_CHECKING:
    from rlrec.app.log.reward_log import RewardedSlots
    from rlrec.arrays import Array, Flags
    from rlrec.store.bulk import Columns

COLUMNS = ("position", "propensity", "marginal")  # of the log, that it takes
SHOWN = "shown_propensity"  # the column that `weighable` adds
LEAST = 1e-300  # what a propensity is rounded to


def of_slate(slots: Iterable[tuple[int, float | None, float | None]]) -> dict[int, float]:
    """The propensity at each position, from the position, propensity and marginal of each slot of a slate, in order;
    slots without one are left out."""
    by_position: dict[int, float] = {}
    prefix: float | None = 1.0
    for index, (position, propensity, marginal) in enumerate(slots, 1):
        if prefix is not None:
            prefix = None if propensity is None or position != index else max(prefix * propensity, LEAST)
        if (value := prefix if marginal is None else marginal) is not None:
            by_position[position] = value
    return by_position


def of_decisions(unit: Unit, decision_ids: Collection[int]) -> dict[tuple[int, int], float]:
    """The propensity by decision and position, of all slots of some decisions that have one."""
    slates: dict[int, list[tuple[int, float | None, float | None]]] = {}
    for decision_id, position, propensity, marginal in decisions.propensities(unit, decision_ids):
        slates.setdefault(decision_id, []).append((position, propensity, marginal))
    return {
        (decision_id, position): propensity
        for decision_id, slots in slates.items()
        for position, propensity in of_slate(slots).items()
    }


def of_slots(slots: Columns) -> Array:
    """The propensity of each slot, (n,), NaN where there is none. slots: of whole slates, by decision and position."""
    import numpy as np

    from rlrec.arrays import run_starts

    marginal = slots["marginal"]
    missing = np.isnan(marginal)
    if not missing.any():
        return marginal
    starts = run_starts(slots["decision_id"])
    depth = np.arange(len(marginal)) - np.repeat(starts, np.diff(np.r_[starts, len(marginal)]))
    prefix = np.where(slots["position"] == depth + 1, slots["propensity"], np.nan)
    for level in range(1, int(depth.max()) + 1):
        rows = np.flatnonzero(depth == level)
        prefix[rows] = np.maximum(prefix[rows] * prefix[rows - 1], LEAST)
    return np.where(missing, prefix, marginal)


def weighable(impressions: RewardedSlots, rows: Flags | None = None) -> RewardedSlots:
    """The impressions (or those of some rows) that have a propensity, which is their column SHOWN."""
    import numpy as np

    if SHOWN not in impressions.slots:
        impressions = impressions.beside({SHOWN: of_slots(impressions.slots)})
    possible = ~np.isnan(impressions.slots[SHOWN])
    return impressions.take(possible if rows is None else possible & rows)
