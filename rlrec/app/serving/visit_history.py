"""What a decision remembers of its visit: the slots shown before it, and what they had earned by then."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from rlrec.app.serving.open_sessions import Guest
from rlrec.app.serving.recent_slots import LAST_STEP, WIDE, Slots
from rlrec.policy import reward as rewards
from rlrec.policy.history import Floats, History, Ints
from rlrec.records import Reward
from rlrec.store import Unit, events
from rlrec.store.events import CENSOR
from rlrec.store.unit import Row


class Memory:
    """What the guests of a group can know: their slots, and what had been received of these before the group."""

    def __init__(self, unit: Unit, guests: Sequence[Guest], definitions: Collection[Reward]) -> None:
        """definitions: the reward definitions by which histories will be asked for."""
        self.now = unit.now
        self._told: _Told | None = None
        slots = Slots.of([guest.memory for guest in guests])
        if len(slots.arm):
            kinds = {kind for one in definitions for kind in one.weights}
            found = events.received_by(unit, slots.decision, kinds, time=unit.now)
            self._told = _Told(found) if found else None

    def histories(self, guests: Sequence[Guest], definitions: Sequence[Reward]) -> History:
        """What the next decision of each guest remembers; definitions: of each, that of the version that decides."""
        if not any(guest.steps for guest in guests):
            return History.nothing(len(guests))
        slots = Slots.of([guest.memory for guest in guests])
        start = np.cumsum([0, *(len(guest.memory) // WIDE for guest in guests)])
        owner = np.repeat(np.arange(len(guests)), np.diff(start))
        step = np.array([guest.steps for guest in guests], np.int64)
        gap_us = np.array([self.now - guest.last_at for guest in guests], np.int64)
        earned, pages = np.array([one.default for one in definitions])[owner], np.zeros(len(owner))
        if self._told is not None:
            self._told.enter(slots, owner, definitions, earned, pages)
        return History(
            step, gap_us / 1e6, np.array([guest.shown for guest in guests], np.int64),
            np.bincount(owner, weights=earned + pages, minlength=len(guests)).astype(np.float64, copy=False), start,
            slots.arm, step[owner] - slots.step & LAST_STEP, earned,
        )  # fmt: skip


class _Told:
    """Events of slots and pages."""

    def __init__(self, found: Sequence[Row]) -> None:
        """found: rows of `events.received_by`, of others too."""
        decisions, positions, self._kinds, values, ages = zip(*found, strict=True)
        self._ids = np.unique(decisions)
        self._places: dict[tuple[int, int | None], int] = {}  # of a slot, or of a page
        named = zip(decisions, positions, strict=True)
        self._place = np.array([self._places.setdefault(name, len(self._places)) for name in named], np.int64)
        self._value, self._age = np.array(values, np.float64), np.array(ages, np.int64)
        said = [(row[0:2], row[3] == 1.0) for row in found if row[2] == CENSOR]
        self._censored = [self._places[name] for name, censored in dict(said).items() if censored]  # the last word
        self._worth: dict[int, list[float]] = {}

    def worth(self, definition: Reward) -> list[float]:
        """Of each slot and page, inside its window. A censored slot has the default, as has one of which is not
        known."""
        if definition.id not in self._worth:
            order = {kind: number for number, kind in enumerate(definition.weights)}
            kind = np.array([order.get(name, -1) for name in self._kinds], np.int64)
            n, place, value, age = len(self._places), self._place, self._value, self._age
            worth, _ = rewards.of_slots(definition, n=n, slot=place, kind=kind, value=value, age_us=age)
            worth[self._censored] = definition.default
            pages = rewards.of_pages(definition, n=n, page=place, kind=kind, value=value, age_us=age)
            of_page = [position is None for _, position in self._places]
            self._worth[definition.id] = np.where(of_page, pages, worth).tolist()
        return self._worth[definition.id]

    def enter(self, slots: Slots, owner: Ints, definitions: Sequence[Reward], earned: Floats, pages: Floats) -> None:
        """Put what slots have earned in their places, and what pages have in those of their last slots."""
        decisions = slots.decision
        hit = np.flatnonzero(np.isin(decisions, self._ids))
        last = np.append(decisions[1:] != decisions[:-1], True)[hit]
        columns = (hit, decisions[hit], slots.position[hit], owner[hit], last)
        told = zip(*(column.tolist() for column in columns), strict=True)
        for place, decision, position, guest, ends in told:
            worth = self.worth(definitions[guest])
            if (slot := self._places.get((decision, position))) is not None:
                earned[place] = worth[slot]
            if ends and (page := self._places.get((decision, None))) is not None:
                pages[place] = worth[page]
