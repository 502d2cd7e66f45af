"""The reward of a decision, or of one of its slots, from the events that were stored of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlrec.policy import reward as rewards
from rlrec.records import Decision, Event, Reward


def reward_of(definition: Reward, decision: Decision, events: Sequence[Event], *, position: int | None) -> float:
    """A slot's reward, or without a position the page's: its slots' rewards and what page events are worth."""
    shown = [slot.position for slot in decision.slots]
    return reward_from(definition, events, served_at=decision.at, position=position, shown=shown)


def reward_from(
    definition: Reward, events: Iterable[Event], *, served_at: int, position: int | None, shown: Iterable[int]
) -> float:
    """`reward_of`, for a decision that was served at `served_at` and showed the positions `shown`."""
    by_slot = by_position(events)
    if position is not None:
        return rewards.of_slot(definition, by_slot.get(position, ()), served_at=served_at)
    slots = [rewards.of_slot(definition, by_slot.get(slot, ()), served_at=served_at) for slot in shown]
    return sum(slots) + rewards.of_page(definition, by_slot.get(None, ()), served_at=served_at)


def by_position(events: Iterable[Event]) -> dict[int | None, list[Event]]:
    """The events of one decision by slot; without a position, those of its page."""
    by_slot: dict[int | None, list[Event]] = {}
    for event in events:
        by_slot.setdefault(event.position, []).append(event)
    return by_slot
