"""The reward and the propensity of slots, in plain Python, for a few decisions; `reward_log` has them for columns.

The propensity that weighs a slot is the marginal at its position, else the probability of the slate down to it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rlrec.policy.beliefs import reward as rewards
from rlrec.records import Event, Reward
from rlrec.store import Unit
from rlrec.store.log import decisions

LEAST = 1e-300  # what a propensity is rounded to


def reward_of(
    definition: Reward, events: Iterable[Event], *, served_at: int, position: int | None, shown: Iterable[int]
) -> float:
    """A slot's reward, or without a position the page's: its slots' rewards and what page events are worth."""
    if position is not None:
        return rewards.slot_reward(definition, by_position(events).get(position, ()), served_at=served_at)
    return sum(rewards_of(definition, events, served_at=served_at, shown=shown).values())


def rewards_of(
    definition: Reward, events: Iterable[Event], *, served_at: int, shown: Iterable[int]
) -> dict[int | None, float]:
    """The reward of each slot by its position, and last, under None, what page events are worth."""
    by_slot = by_position(events)
    earned: dict[int | None, float] = {
        slot: rewards.slot_reward(definition, by_slot.get(slot, ()), served_at=served_at) for slot in shown
    }
    return earned | {None: rewards.page_reward(definition, by_slot.get(None, ()), served_at=served_at)}


def by_position(events: Iterable[Event]) -> dict[int | None, list[Event]]:
    """The events of one decision by slot; without a position, those of its page."""
    by_slot: dict[int | None, list[Event]] = {}
    for event in events:
        by_slot.setdefault(event.position, []).append(event)
    return by_slot


def slate_propensities(slots: Iterable[tuple[int, float | None, float | None]]) -> dict[int, float]:
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


def decision_propensities(unit: Unit, decision_ids: Collection[int]) -> dict[tuple[int, int], float]:
    """The propensity by decision and position, of all slots of some decisions that have one."""
    slates: dict[int, list[tuple[int, float | None, float | None]]] = {}
    for decision_id, position, propensity, marginal in decisions.propensities(unit, decision_ids):
        slates.setdefault(decision_id, []).append((position, propensity, marginal))
    return {
        (decision_id, position): propensity
        for decision_id, slots in slates.items()
        for position, propensity in slate_propensities(slots).items()
    }
