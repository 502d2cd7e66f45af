"""Rewards of a log that its policy's definition does not count as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from rlrec.app.imports.columns import NULL, LogColumns, values
from rlrec.arrays import Array, Flags, Ids
from rlrec.policy import reward as rewards
from rlrec.records import Reward
from rlrec.store.events import CENSOR

TOLERANCE = 1e-6  # relative, of stated rewards


@dataclass
class AlteredRewards:
    """How many decisions of a log have a reward outside their definition's range, how many one that it ignores, and the
    kinds of events that it does not weigh."""

    clipped: int = 0
    ignored: int = 0
    kinds: set[str] = field(default_factory=set)
    definition: Reward | None = None

    def __add__(self, other: AlteredRewards) -> AlteredRewards:
        altered = self if self.clipped or self.ignored else other
        return AlteredRewards(
            self.clipped + other.clipped, self.ignored + other.ignored, self.kinds | other.kinds, altered.definition
        )

    def notices(self) -> list[str]:
        """Lines for a person."""
        if self.definition is None:
            return []
        name, low, high = self.definition.name, self.definition.clip_low, self.definition.clip_high
        way_out = "`rlrec reward define` another one, and estimate with --reward"
        lines = []
        if self.clipped:
            span = f"{-np.inf if low is None else low:g} to {np.inf if high is None else high:g}"
            lines.append(f"{self.clipped} decisions have rewards that {name!r} clips to {span}; {way_out}")
        if self.ignored:
            kinds = f" (it does not weigh {', '.join(sorted(self.kinds)[:5])})" if self.kinds else ""
            lines.append(f"{self.ignored} decisions have rewards or events that {name!r} ignores{kinds}; {way_out}")
        return lines


def find(definition: Reward, rows: LogColumns, served_at: Sequence[int]) -> AlteredRewards:
    """The rewards that a definition alters, of decisions that were served at these times."""
    n, slot_row = len(rows), np.array(rows.slots.row, np.int64)
    if not rows.events.row and rows.reward == NULL:
        return AlteredRewards()
    events = _events(definition, rows, served_at)
    # slots whose sum is cut
    clipped = np.zeros(n, np.bool_)
    reward = events.slot_rewards(definition, len(slot_row))
    unbounded = events.slot_rewards(replace(definition, clip_low=None, clip_high=None), len(slot_row))
    clipped[slot_row[reward != unbounded]] = True
    # events that count for nothing
    kinds = values(rows.events.kind, len(events.row))
    no_mark = np.array([name != CENSOR for name in kinds], np.bool_)
    ignored = np.zeros(n, np.bool_)
    ignored[events.row[no_mark & ((events.kind < 0) | (events.age_us > definition.window_us))]] = True
    # stated rewards that are not what the events are worth
    if rows.reward != NULL:
        stated = np.array(values(rows.reward, n), np.float64)  # NaN: none
        worth = np.bincount(slot_row, reward, n) + events.page_rewards(definition, n)
        ignored |= np.abs(stated - worth) > TOLERANCE * np.maximum(1.0, np.abs(worth))
    unweighed = set(kinds) - definition.weights.keys() - {CENSOR}
    return AlteredRewards(int(clipped.sum()), int((ignored & ~clipped).sum()), unweighed, definition)


class _Events(NamedTuple):
    """Events in arrays. row: of the decision; slot: -1 for the page; kind: the index of its weight, -1 for none."""

    row: Ids
    slot: Ids
    kind: Ids
    value: Array
    age_us: Ids

    def select(self, chosen: Flags) -> _Events:
        return _Events(*(column[chosen] for column in self))  # type: ignore[arg-type]  # of each field's own type

    def slot_rewards(self, definition: Reward, n: int) -> Array:
        _, slot, kind, value, age_us = self.select(self.slot >= 0)
        return rewards.of_slots(definition, n=n, slot=slot, kind=kind, value=value, age_us=age_us)[0]

    def page_rewards(self, definition: Reward, n: int) -> Array:
        page, _, kind, value, age_us = self.select(self.slot < 0)
        return rewards.of_pages(definition, n=n, page=page, kind=kind, value=value, age_us=age_us)


def _events(definition: Reward, rows: LogColumns, served_at: Sequence[int]) -> _Events:
    events, count = rows.events, len(rows.events.row)
    kinds, row = values(events.kind, count), np.array(events.row, np.int64)
    index = {kind: number for number, kind in enumerate(definition.weights)}
    code = {kind: index.get(kind, -1) for kind in set(kinds)}
    at = [served_at[number] for number in events.row]
    age_us = [0 if time is None else time - served for time, served in zip(values(events.at, count), at, strict=True)]
    return _Events(
        row=row,
        slot=_slot_of_event(rows),
        kind=np.array(list(map(code.__getitem__, kinds)), np.int64),
        value=np.array(values(events.value, count), np.float64),
        age_us=np.array(age_us, np.int64),
    )


def _slot_of_event(rows: LogColumns) -> Ids:
    """The index of the slot that each event belongs to, -1 where it belongs to the page."""
    slots, events = rows.slots, rows.events
    positions = values(events.position, len(events.row))
    if len(slots.row) == len(rows):  # one slot each
        return np.array([-1 if at is None else row for row, at in zip(events.row, positions, strict=True)], np.int64)
    keys = zip(slots.row, values(slots.position, len(slots.row)), strict=True)
    index = dict(zip(keys, range(len(slots.row)), strict=True))
    return np.array([index.get(key, -1) for key in zip(events.row, positions, strict=True)], np.int64)
