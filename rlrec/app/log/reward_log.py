"""The log with its rewards, and what it adds up to: arrays throughout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rlrec.arrays import Array, Flags
from rlrec.policy import reward as rewards
from rlrec.records import Reward
from rlrec.store import Unit, reader
from rlrec.store.beliefs import Sums
from rlrec.store.bulk import Columns
from rlrec.store.reader import Batch, Selection

MARKED = ("at", "imported", "censored")  # what tells whether a slot counts


@dataclass(frozen=True, kw_only=True)
class Impressions:
    """Rows of a batch with their reward, (n,) each; `default`: no weighed event came."""

    slots: Columns
    reward: Array
    default: Flags

    def __len__(self) -> int:
        return len(self.reward)

    def take(self, rows: Flags) -> Impressions:
        return Impressions(
            slots={name: column[rows] for name, column in self.slots.items()},
            reward=self.reward[rows],
            default=self.default[rows],
        )

    def beside(self, columns: Columns) -> Impressions:
        """With further columns of their slots."""
        return replace(self, slots={**self.slots, **columns})


def rewarded(batch: Batch, definition: Reward, *, settled_only: bool = True) -> Impressions:
    """A batch with the rewards of a definition; settled_only: count events inside the window alone."""
    slot, known = _slot_of_event(batch)
    reward, default = rewards.of_slots(
        definition,
        n=len(batch),
        slot=slot[known],
        kind=kinds(batch, definition)[known],
        value=batch.events["value"][known],
        age_us=batch.events["age_us"][known],
        settled_only=settled_only,
    )
    return Impressions(slots=batch.slots, reward=reward, default=default)


def kinds(batch: Batch, definition: Reward) -> npt.NDArray[np.int64]:
    """The place of each event's kind among those that the definition weighs; -1 where it does not."""
    found = batch.events["kind"].tolist()
    places = defaultdict(lambda: -1, zip(definition.weights, range(len(definition.weights)), strict=True))
    return np.fromiter(map(places.__getitem__, found), np.int64, len(found))


def _slot_of_event(batch: Batch) -> tuple[npt.NDArray[np.int64], Flags]:
    """The row of each event's slot, and whether it has one (an event of the page has none)."""
    positions = int(max(batch.slots["position"].max(initial=0), batch.events["position"].max(initial=0))) + 1
    rows = batch.slots["decision_id"] * positions + batch.slots["position"]
    wanted = batch.events["decision_id"] * positions + batch.events["position"]
    events, which = np.unique(wanted, return_inverse=True)  # they are fewer than slots
    slot = np.full(len(events), -1, np.int64)
    if len(events):
        place = np.minimum(np.searchsorted(events, rows), len(events) - 1)
        found = np.flatnonzero(events[place] == rows)
        slot[place[found]] = found
    return slot[which], slot[which] >= 0


def impressions(unit: Unit, selection: Selection, definition: Reward) -> Iterator[Impressions]:
    """The mature, uncensored impressions of the selected log, whole sessions a batch, as estimates see them: their
    arms and rewards."""
    for batch in reader.batches(unit, selection, columns=(*MARKED, "arm_id")):
        found = rewarded(batch, definition)
        yield found.take(mature(found.slots, definition, now=unit.now) & ~found.slots["censored"])


@dataclass(frozen=True, kw_only=True)
class Pages:
    """Decisions of a batch with the reward of their page, (n,) each; `censored`: some slot of it is.

    decisions: who they were for, and in which variant."""

    decisions: Columns
    reward: Array
    censored: Flags

    def __len__(self) -> int:
        return len(self.reward)


def pages(unit: Unit, selection: Selection, definition: Reward) -> Iterator[Pages]:
    """The mature decisions of the selected log, whole sessions a batch: slots' rewards and page events together."""
    for batch in reader.batches(unit, selection, columns=(*MARKED, "user_id", "variant_id")):
        old = mature(batch.slots, definition, now=unit.now)
        found = rewarded(batch, definition).take(old)
        ids = found.slots["decision_id"]
        first = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]]) if len(ids) else np.empty(0, np.int64)
        if len(first):
            slots = np.add.reduceat(found.reward, first)
            yield Pages(
                decisions={name: column[first] for name, column in found.slots.items()},
                reward=slots + page_events(batch, definition, ids[first]),
                censored=np.logical_or.reduceat(found.slots["censored"], first),
            )


def page_events(batch: Batch, definition: Reward, ids: npt.NDArray[np.int64]) -> Array:
    """What the events of each page itself are worth, (n,): those inside the window, without default and clip."""
    events = batch.events
    order = np.argsort(ids)
    place = np.minimum(np.searchsorted(ids, events["decision_id"], sorter=order), len(ids) - 1)
    page = order[place]
    mine = (events["position"] == 0) & (ids[page] == events["decision_id"])
    return rewards.of_pages(
        definition,
        n=len(ids),
        page=page[mine],
        kind=kinds(batch, definition)[mine],
        value=events["value"][mine],
        age_us=events["age_us"][mine],
    )


def mature(slots: Columns, definition: Reward, *, now: int) -> Flags:
    """Decisions older than their reward window, by age alone; imported ones always are."""
    old: Flags = slots["imported"] | (now - slots["at"] > definition.window_us)
    return old


def sums(found: Impressions, *, rows: Flags | None = None) -> dict[int, Sums]:
    """Pulls, reward and squared reward per arm."""
    if rows is not None:
        found = found.take(rows)
    arms, place = np.unique(found.slots["arm_id"], return_inverse=True)
    columns = (None, found.reward, found.reward**2)
    totals = np.column_stack([np.bincount(place, weights=column, minlength=len(arms)) for column in columns])
    return {int(arm): (row[0], row[1], row[2]) for arm, row in zip(arms, totals.tolist(), strict=True)}


def added(total: dict[int, Sums], more: dict[int, Sums]) -> dict[int, Sums]:
    """Both added, arm by arm."""
    result = dict(total)
    for arm, (pulls, reward, squares) in more.items():
        before = result.get(arm, (0.0, 0.0, 0.0))
        result[arm] = (before[0] + pulls, before[1] + reward, before[2] + squares)
    return result
