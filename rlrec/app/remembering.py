"""What a decision remembers of its visit: the slots shown before it, and what they had earned by then.

A visit keeps its memory as bytes: rows of four 8-byte integers, the last slots it has shown (decision, position, arm,
step). Rewards are not kept: they are read from the events that had been received when the group began.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlrec.policy import reward as rewards
from rlrec.policy.history import REMEMBERED, Floats, History, Ints
from rlrec.records import Reward
from rlrec.store import Unit, events
from rlrec.store.events import CENSOR
from rlrec.store.unit import Row

if TYPE_CHECKING:
    from rlrec.app.visiting import Guest

WORDS = 4
SLOT = struct.Struct("<4q")
LIMIT = REMEMBERED * SLOT.size


def moved(memory: bytes, decision: int, arms: Sequence[int], step: int) -> bytes:
    """A visit's memory after one decision more."""
    for position, arm in enumerate(arms[-REMEMBERED:], max(1, len(arms) - REMEMBERED + 1)):
        memory += SLOT.pack(decision, position, arm, step)
    return memory[-LIMIT:]


class Memory:
    """What the guests of a group can know: their slots, and what had been received of these before the group."""

    def __init__(self, unit: Unit, guests: Sequence[Guest], definitions: Collection[Reward]) -> None:
        """definitions: the reward definitions by which histories will be asked for."""
        self.now = unit.now
        self._told: _Told | None = None
        shown = np.unique(_rows(guests)[:, 0])
        if len(shown):
            kinds = {kind for one in definitions for kind in one.weights}
            found = events.known(unit, shown.tolist(), kinds, received=unit.now)
            self._told = _Told(found) if found else None

    def histories(self, guests: Sequence[Guest], definitions: Sequence[Reward]) -> History:
        """What the next decision of each guest remembers; definitions: of each, that of the version that decides."""
        if not any(guest.steps for guest in guests):
            return History.nothing(len(guests))
        rows = _rows(guests)
        start = np.cumsum([0, *(len(guest.memory) // SLOT.size for guest in guests)])
        owner = np.repeat(np.arange(len(guests)), np.diff(start))
        step = np.array([guest.steps for guest in guests], np.int64)
        gap_us = np.array([self.now - guest.last_at for guest in guests], np.int64)
        earned, pages = np.array([one.default for one in definitions])[owner], np.zeros(len(rows))
        if self._told is not None:
            self._told.enter(rows, owner, definitions, earned, pages)
        return History(
            step, gap_us / 1e6, np.array([guest.shown for guest in guests], np.int64),
            np.bincount(owner, weights=earned + pages, minlength=len(guests)).astype(np.float64, copy=False), start,
            rows[:, 2], step[owner] - rows[:, 3], earned,
        )  # fmt: skip


class _Told:
    """Events of slots and pages, rows of `events.known`."""

    def __init__(self, found: Sequence[Row]) -> None:
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

    def enter(self, rows: Ints, owner: Ints, definitions: Sequence[Reward], earned: Floats, pages: Floats) -> None:
        """Put what slots have earned in their places, and what pages have in those of their last slots."""
        hit = np.flatnonzero(np.isin(rows[:, 0], self._ids))
        last = np.append(rows[1:, 0] != rows[:-1, 0], True)[hit]
        told = zip(hit.tolist(), *rows[hit, :2].T.tolist(), owner[hit].tolist(), last.tolist(), strict=True)
        for place, decision, position, guest, ends in told:
            worth = self.worth(definitions[guest])
            if (slot := self._places.get((decision, position))) is not None:
                earned[place] = worth[slot]
            if ends and (page := self._places.get((decision, None))) is not None:
                pages[place] = worth[page]


def _rows(guests: Sequence[Guest]) -> Ints:
    """The memories of guests, end to end, (slots, WORDS)."""
    return np.frombuffer(b"".join([guest.memory for guest in guests]), "<i8").reshape(-1, WORDS)
