"""The history of a visit that a decision remembers: the slots shown before it, and what they had earned by then."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from rlrec.app.serving.open_sessions import LAST_STEP, SLOT_BYTES, OpenSession, RecentSlots
from rlrec.arrays import look_up
from rlrec.policy.beliefs import reward as rewards
from rlrec.policy.gradients.history import Floats, History, Ints
from rlrec.records import Reward
from rlrec.store import Unit
from rlrec.store.database.unit import damaged
from rlrec.store.log import events
from rlrec.store.log.events import CENSOR, AgedEvent


class HistoryReader:
    """Histories of the visits of a group, with the rewards that had been received when the group began."""

    def __init__(self, unit: Unit, sessions: Sequence[OpenSession], definitions: Collection[Reward]) -> None:
        """definitions: the reward definitions of the versions that will decide."""
        self.now = unit.now
        self._events: EventRewards | None = None
        slots = RecentSlots.unpack([session.recent_slots for session in sessions])
        if len(slots.arm):
            kinds = {kind for definition in definitions for kind in definition.weights}
            rows = events.received_by(unit, slots.decision, kinds, time=unit.now)
            self._events = EventRewards(rows) if rows else None

    def histories(self, sessions: Sequence[OpenSession], definitions: Sequence[Reward]) -> History:
        """The history that the next decision of each session remembers. definitions: one a session, of the version that
        decides."""
        n = len(sessions)
        if not any(session.steps for session in sessions):
            return History.nothing(n)
        slots = RecentSlots.unpack([session.recent_slots for session in sessions])
        # which session each slot belongs to
        start = np.cumsum([0, *(len(session.recent_slots) // SLOT_BYTES for session in sessions)])
        row = np.repeat(np.arange(n), np.diff(start))
        step = np.array([session.steps for session in sessions], np.int64)
        gap_us = np.array([self.now - session.last_at for session in sessions], np.int64)
        # what slots and whole slates have earned
        earned, page_earned = np.array([definition.default for definition in definitions])[row], np.zeros(len(row))
        if self._events is not None:
            self._events.put(slots, row, definitions, earned, page_earned)
        total = np.bincount(row, weights=earned + page_earned, minlength=n).astype(np.float64, copy=False)
        shown = np.array([session.shown for session in sessions], np.int64)
        ago = step[row] - slots.step & LAST_STEP
        return History(step, gap_us / 1e6, shown, total, start, slots.arm, ago, earned)


class EventRewards:
    """Rewards of slots and of slates, by their events."""

    def __init__(self, received: Sequence[AgedEvent]) -> None:
        """received: events of these decisions, and of others."""
        decisions, positions, self._kinds, values, ages = zip(*received, strict=True)
        if None in ages:
            raise damaged(f"decision {decisions[ages.index(None)]} is gone, and its events are not")
        self._ids = np.array(sorted(set(decisions)), np.int64)
        # targets are slots (decision, position) and slates (decision, None), numbered as they come
        self._targets: dict[tuple[int, int | None], int] = {}
        names = zip(decisions, positions, strict=True)
        self._target = np.array([self._targets.setdefault(name, len(self._targets)) for name in names], np.int64)
        self._value, self._age = np.array(values, np.float64), np.array(ages, np.int64)
        # the last mark holds
        marks = {(event.decision_id, event.position): event.value == 1.0 for event in received if event.kind == CENSOR}
        self._censored = [self._targets[name] for name, censored in marks.items() if censored]
        self._rewards: dict[int, list[float]] = {}

    def rewards(self, definition: Reward) -> list[float]:
        """The reward of each target, inside its window. A censored slot has the default."""
        if definition.id not in self._rewards:
            order = {kind: number for number, kind in enumerate(definition.weights)}
            kind = np.array([order.get(name, -1) for name in self._kinds], np.int64)
            n, target, value, age = len(self._targets), self._target, self._value, self._age
            earned, _ = rewards.slot_rewards(definition, n=n, slot=target, kind=kind, value=value, age_us=age)
            earned[self._censored] = definition.default
            page_earned = rewards.page_rewards(definition, n=n, page=target, kind=kind, value=value, age_us=age)
            is_page = [position is None for _, position in self._targets]
            self._rewards[definition.id] = np.where(is_page, page_earned, earned).tolist()
        return self._rewards[definition.id]

    def put(
        self, slots: RecentSlots, row: Ints, definitions: Sequence[Reward], earned: Floats, page_earned: Floats
    ) -> None:
        """Write what slots have earned into `earned`, and what slates have into `page_earned` at their last slots."""
        with_events = np.flatnonzero(look_up(self._ids, slots.decision)[1])
        last = np.append(slots.decision[1:] != slots.decision[:-1], True)
        columns = (with_events, *(column[with_events] for column in (slots.decision, slots.position, row, last)))
        for index, decision, position, session, ends in zip(*(column.tolist() for column in columns), strict=True):
            by_target = self.rewards(definitions[session])
            if (slot := self._targets.get((decision, position))) is not None:
                earned[index] = by_target[slot]
            if ends and (page := self._targets.get((decision, None))) is not None:
                page_earned[index] = by_target[page]
