"""The propensity that weighs a slot: the marginal at its position, else the probability of the slate down to it.

Plain Python, for a few decisions; `reward_log` has it for columns of the log."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rlrec.store import Unit, decisions

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
