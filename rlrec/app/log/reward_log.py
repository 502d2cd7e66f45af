"""The log with its rewards, and what it adds up to: arrays throughout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from rlrec.arrays import Array, Flags, Ids, run_starts
from rlrec.policy import reward as rewards
from rlrec.records import Reward
from rlrec.store import Unit, reader
from rlrec.store.bulk import Columns
from rlrec.store.reader import Batch, Selection

MATURITY = ("at", "imported", "censored")  # what tells whether a slot counts


@dataclass(frozen=True, kw_only=True)
class RewardedSlots:
    """Rows of a batch with their reward, (n,) each; `default`: no weighed event came."""

    slots: Columns
    reward: Array
    default: Flags

    def __len__(self) -> int:
        return len(self.reward)

    def take(self, rows: Flags) -> Self:
        if rows.all():
            return self
        slots = {name: column[rows] for name, column in self.slots.items()}
        return replace(self, slots=slots, reward=self.reward[rows], default=self.default[rows])

    def beside(self, columns: Columns) -> RewardedSlots:
        """The same rows with further columns of their slots."""
        return replace(self, slots={**self.slots, **columns})


def with_rewards(batch: Batch, definition: Reward, *, settled_only: bool = True) -> RewardedSlots:
    """A batch with the rewards of a definition; settled_only: count events inside the window alone."""
    slot, of_slot = _slot_of_event(batch)
    reward, default = rewards.of_slots(
        definition,
        n=len(batch),
        slot=slot[of_slot],
        kind=kind_numbers(batch, definition)[of_slot],
        value=batch.events["value"][of_slot],
        age_us=batch.events["age_us"][of_slot],
        settled_only=settled_only,
    )
    return RewardedSlots(slots=batch.slots, reward=reward, default=default)


def kind_numbers(batch: Batch, definition: Reward) -> Ids:
    """The number of each event's kind among those that the definition weighs; -1 where it does not."""
    kinds = batch.events["kind"].tolist()
    numbers = defaultdict(lambda: -1, zip(definition.weights, range(len(definition.weights)), strict=True))
    return np.fromiter(map(numbers.__getitem__, kinds), np.int64, len(kinds))


def _slot_of_event(batch: Batch) -> tuple[Ids, Flags]:
    """The row of each event's slot, and whether it has one (an event of the page has none)."""
    # one number for a decision and a position
    positions = int(max(batch.slots["position"].max(initial=0), batch.events["position"].max(initial=0))) + 1
    slots = batch.slots["decision_id"] * positions + batch.slots["position"]
    events, which = np.unique(batch.events["decision_id"] * positions + batch.events["position"], return_inverse=True)
    # slots are looked up among events, which are fewer
    slot = np.full(len(events), -1, np.int64)
    if len(events):
        index = np.minimum(np.searchsorted(events, slots), len(events) - 1)
        rows = np.flatnonzero(events[index] == slots)
        slot[index[rows]] = rows
    return slot[which], slot[which] >= 0


def impressions(unit: Unit, selection: Selection, definition: Reward) -> Iterator[RewardedSlots]:
    """The mature, uncensored impressions of the selected log, in batches of whole sessions: their arms and rewards."""
    for batch in reader.batches(unit, selection, columns=(*MATURITY, "arm_id")):
        rows = with_rewards(batch, definition)
        yield rows.take(mature(rows.slots, definition, now=unit.now) & ~rows.slots["censored"])


@dataclass(frozen=True, kw_only=True)
class PageRewards:
    """Decisions of a batch with their page reward, (n,) each; `censored`: some slot is.

    decisions: their users and variants."""

    decisions: Columns
    reward: Array
    censored: Flags

    def __len__(self) -> int:
        return len(self.reward)


def page_rewards(unit: Unit, selection: Selection, definition: Reward) -> Iterator[PageRewards]:
    """Mature decisions of the selected log, in batches of whole sessions: rewards of slots and page events together."""
    for batch in reader.batches(unit, selection, columns=(*MATURITY, "user_id", "variant_id")):
        rows = with_rewards(batch, definition).take(mature(batch.slots, definition, now=unit.now))
        decision_id = rows.slots["decision_id"]
        first = run_starts(decision_id)
        if len(first):
            yield PageRewards(
                decisions={name: column[first] for name, column in rows.slots.items()},
                reward=np.add.reduceat(rows.reward, first) + page_events(batch, definition, decision_id[first]),
                censored=np.logical_or.reduceat(rows.slots["censored"], first),
            )


def page_events(batch: Batch, definition: Reward, decision_ids: Ids) -> Array:
    """The reward of the page events of each decision, (n,): those inside the window, without default and clip."""
    events, order = batch.events, np.argsort(decision_ids)
    index = np.minimum(np.searchsorted(decision_ids, events["decision_id"], sorter=order), len(decision_ids) - 1)
    page = order[index]
    of_page = (events["position"] == 0) & (decision_ids[page] == events["decision_id"])
    return rewards.of_pages(
        definition,
        n=len(decision_ids),
        page=page[of_page],
        kind=kind_numbers(batch, definition)[of_page],
        value=events["value"][of_page],
        age_us=events["age_us"][of_page],
    )


def mature(slots: Columns, definition: Reward, *, now: int) -> Flags:
    """Decisions older than their reward window, by age alone; imported ones always are."""
    return slots["imported"] | (now - slots["at"] > definition.window_us)
