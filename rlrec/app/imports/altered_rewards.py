"""Rewards of a log that its policy's definition does not count as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlrec.app.imports.columns import NULL, LogColumns, distinct, mapped, values
from rlrec.arrays import Flags, Ids, look_up
from rlrec.errors import quantity
from rlrec.policy.beliefs import reward as rewards
from rlrec.records import Reward
from rlrec.store.log.events import CENSOR

TOLERANCE = 1e-6  # relative, of stated rewards


@dataclass(frozen=True)
class AlteredRewards:
    """How many decisions of a log have a reward outside their definition's range, how many one that it ignores, and the
    kinds of events that it does not weigh."""

    clipped: int = 0
    ignored: int = 0
    kinds: frozenset[str] = frozenset()
    definition: Reward | None = None

    def __add__(self, other: AlteredRewards) -> AlteredRewards:
        counts = self.clipped + other.clipped, self.ignored + other.ignored
        return AlteredRewards(*counts, self.kinds | other.kinds, self.definition or other.definition)

    def notices(self) -> list[str]:
        """Lines for a person."""
        lines: list[str] = []
        if self.definition is None:
            return lines
        name, low, high = self.definition.name, self.definition.clip_low, self.definition.clip_high
        if self.clipped:
            span = f"{-np.inf if low is None else low:g} to {np.inf if high is None else high:g}"
            subject = f"rewards of {quantity(self.clipped, 'decision')}"
            lines.append(f"{subject}: {name!r} clips them to {span}; {_way_out(['reward'])}")
        if self.ignored:
            kinds = sorted(self.kinds)[:5]
            weighed = f" (it does not weigh {', '.join(kinds)})" if kinds else ""
            subject = f"events or rewards of {quantity(self.ignored, 'decision')}"
            lines.append(f"{subject}: {name!r} ignores them{weighed}; {_way_out(kinds)}")
        return lines


def _way_out(kinds: Sequence[str]) -> str:
    terms = ",".join(f"{kind}=1" for kind in kinds) or "..."
    return f"`rlrec reward define NAME {terms}` counts them, and `evaluate --reward NAME` judges by that"


def find(definition: Reward, rows: LogColumns, served_at: Sequence[int]) -> AlteredRewards:
    """The rewards that a definition alters, of decisions that were served at these times."""
    n, slot_row, row = len(rows), np.array(rows.slots.row, np.int64), np.array(rows.events.row, np.int64)
    if not len(row) and rows.reward == NULL:
        return AlteredRewards()
    # events in arrays: the slot (-1: the page), the index of the weight (-1: none), the age
    logged, kinds = rows.events, distinct(rows.events.kind)
    position = np.array(values(logged.position, len(row)), np.float64)  # NaN: the page
    shown = _slot_keys(slot_row, np.array(values(rows.slots.position, len(slot_row)), np.int64))
    order = np.argsort(shown, kind="stable")
    index, is_shown = look_up(shown[order], _slot_keys(row, np.nan_to_num(position).astype(np.int64)))
    slot = np.where(is_shown, order[index], -1)
    weights = list(definition.weights)
    weight_of = {kind: weights.index(kind) if kind in weights else -1 for kind in kinds}
    kind = np.array(values(mapped(logged.kind, weight_of), len(row)), np.int64)
    amounts, age_us = np.array(values(logged.value, len(row)), np.float64), np.zeros(len(row), np.int64)
    if logged.at != NULL:
        at = np.array(served_at, np.int64)[row].tolist()
        times = zip(values(logged.at, len(row)), at, strict=True)
        age_us = np.array([0 if time is None else time - served for time, served in times], np.int64)

    def arrays(rows_wanted: Flags) -> dict[str, Any]:
        return {"kind": kind[rows_wanted], "value": amounts[rows_wanted], "age_us": age_us[rows_wanted]}

    # slots whose sum is cut
    clipped, ignored = np.zeros((2, n), np.bool_)
    slot_events = {"n": len(slot_row), "slot": slot[slot >= 0], **arrays(slot >= 0)}
    reward, _ = rewards.slot_rewards(definition, **slot_events)
    unclipped, _ = rewards.slot_rewards(definition._replace(clip_low=None, clip_high=None), **slot_events)
    clipped[slot_row[reward != unclipped]] = True
    # events that count for nothing, and stated rewards that are not what the events are worth
    is_mark = np.array(values(mapped(logged.kind, {kind: kind == CENSOR for kind in kinds}), len(row)), np.bool_)
    ignored[row[~is_mark & ((kind < 0) | (age_us > definition.window_us))]] = True
    if rows.reward != NULL:
        page_worth = rewards.page_rewards(definition, n=n, page=row[slot < 0], **arrays(slot < 0))
        worth = np.bincount(slot_row, reward, n) + page_worth
        stated_reward = np.array(values(rows.reward, n), np.float64)  # NaN: none
        ignored |= np.abs(stated_reward - worth) > TOLERANCE * np.maximum(1.0, np.abs(worth))
    unweighed = frozenset(kinds) - definition.weights.keys() - {CENSOR}
    return AlteredRewards(int(clipped.sum()), int((ignored & ~clipped).sum()), unweighed, definition)


def _slot_keys(row: Ids, position: Ids) -> Ids:
    """A number for each slot; 0 is no position."""
    return (row << 32) + position
