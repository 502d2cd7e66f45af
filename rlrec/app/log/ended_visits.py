"""The log as visits: whole ones, that have ended and are old enough, with the reward of every page."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from rlrec.app.log import reward_log
from rlrec.arrays import Array, Flags, Ids
from rlrec.policy import history, returns
from rlrec.policy.history import History
from rlrec.records import Reward
from rlrec.store import Unit, reader, sessions, settings
from rlrec.store.bulk import Columns
from rlrec.store.reader import ABSENT, Batch, Selection

# What is read of every impression.
READ = (
    "at", "imported", "censored", "policy_id", "version_id", "belief_seq", "belief_ordinal", "seed", "context_id",
    "eligible_id", "catalogue_revision", "variant_id", "size", "user_id", "user_digest", "session_digest", "split",
    "visit", "step", "arm_id", "propensity", "marginal", "min_propensity", "log_propensity", "history", "recorded",
    "created_at",
)  # fmt: skip
LONGEST = 1_000  # decisions of a visit
DAY_US = 86_400_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Visits:
    """s visits of n decisions with i slots, end to end: by session and number, then step, then position.

    slots: columns of reader, (i,) each, and `reward` of each slot. first (n + 1,): where each decision's slots begin.
    start (s + 1,): where each visit's decisions begin. reward (n,) of the page; default (n,): nothing that counts
    happened there. ripe (s,): when each could first be used."""

    slots: Columns
    first: Ids
    start: Ids
    reward: Array
    default: Flags
    ripe: Ids

    def __len__(self) -> int:
        return len(self.start) - 1

    def once(self, name: str) -> Any:
        """A column of the decisions, (n,)."""
        return self.slots[name][self.first[:-1]]

    def each(self, name: str) -> Any:
        """A column of the visits, (s,)."""
        return self.slots[name][self.first[self.start[:-1]]]

    @property
    def steps(self) -> Ids:
        """Of each decision, from 0, (n,)."""
        return returns.steps(self.start)

    @property
    def lowest(self) -> Array:
        """Log of the smallest probability that any page of each decision could have had, (n,): no arm's was smaller at
        any position. NaN where it is not known."""
        smallest = np.where(self.slots["min_propensity"] > 0, self.slots["min_propensity"], np.nan)
        found: Array = np.add.reduceat(np.log(smallest), self.first[:-1])
        return found

    def histories(self) -> History:
        """What each decision knew of its visit, (n,)."""
        return history.unpack(self.once("history").tolist(), self.steps)

    def take(self, visits: Flags) -> Visits:
        """Some of the visits."""
        if visits.all():
            return self
        decisions = np.repeat(visits, np.diff(self.start))
        rows = np.repeat(decisions, np.diff(self.first))
        return Visits(
            slots={name: column[rows] for name, column in self.slots.items()},
            first=_ends(np.diff(self.first)[decisions]),
            start=_ends(np.diff(self.start)[visits]),
            reward=self.reward[decisions],
            default=self.default[decisions],
            ripe=self.ripe[visits],
        )


def _ends(lengths: Ids) -> Ids:
    found: Ids = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return found


@dataclass(frozen=True, kw_only=True)
class Told:
    """What became of the other visits of a log: those that go on or are too young, and those that say nothing: cut (a
    filter or an import took some of their decisions away), with a censored slot, or without a propensity (silent)."""

    waiting: int = 0
    left_out: int = 0
    silent: int = 0

    def __add__(self, other: Told) -> Told:
        return Told(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Cutoff:
    """Which visits are old enough: those that began before `started` and were over, with their windows, before `now`.

    Who began at a time is used once all who began then have ended, so that short visits do not come first."""

    now: int
    started: int
    timeout_us: int
    window_us: int

    @classmethod
    def of(cls, unit: Unit, definition: Reward) -> Cutoff:
        """As of now. A visit that has gone on for more than a day holds nothing up."""
        timeout = settings.get(unit).session_timeout_us
        oldest = sessions.oldest_running(
            unit, timeout_us=timeout, window_us=definition.window_us, since=unit.now - DAY_US - timeout
        )
        started = unit.now if oldest is None else oldest
        return cls(now=unit.now, started=started, timeout_us=timeout, window_us=definition.window_us)

    def ripe(self, visits: Columns) -> Ids:
        """When visits were over, with their windows, (s,), by their columns in the store."""
        last, ended = visits["last_at"], visits["ended_at"]
        over = np.where(ended != ABSENT, ended, last + self.timeout_us)
        found: Ids = np.maximum(over, last + self.window_us)
        return found

    def over(self, visits: Columns) -> Flags:
        """Which visits are old enough."""
        found: Flags = (self.ripe(visits) < self.now) & (visits["started_at"] < self.started)
        return found


def batches(
    unit: Unit,
    selection: Selection,
    definition: Reward,
    cutoff: Cutoff,
    *,
    columns: Collection[str] = READ,
    keys: bool = False,
) -> Iterator[tuple[Batch, Visits, Told]]:
    """The selected log as visits, batch by batch, with the batch each comes from and what became of the others."""
    for batch in reader.batches(unit, selection, columns=columns, visits=True, keys=keys):
        yield (batch, *whole(batch, definition, cutoff))


def whole(batch: Batch, definition: Reward, cutoff: Cutoff) -> tuple[Visits, Told]:
    """The visits of a batch that can be used, and how many others there are."""
    found = reward_log.rewarded(batch, definition)
    slots = found.slots | {"reward": found.reward, "defaulted": found.default}
    order = np.lexsort([slots[name] for name in ("position", "step", "visit", "session_id")])
    if (order[1:] < order[:-1]).any():
        slots = {name: column[order] for name, column in slots.items()}
    decision, session, visit = (slots[name] for name in ("decision_id", "session_id", "visit"))
    first = _begins(decision)
    begun = _begins(session[first], visit[first])
    start = np.r_[begun, len(first)]
    earned = reward_log.page_events(batch, definition, decision[first])
    every = Visits(
        slots=slots, first=np.r_[first, len(decision)], start=start,
        reward=np.add.reduceat(slots["reward"], first) + earned,
        default=np.logical_and.reduceat(slots["defaulted"], first) & (earned == 0), ripe=np.zeros(len(begun), np.int64),
    )  # fmt: skip
    return _usable(batch, every, cutoff)


def _begins(*columns: Ids) -> Ids:
    changes = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return np.flatnonzero(np.r_[True, changes])


def _usable(batch: Batch, every: Visits, cutoff: Cutoff) -> tuple[Visits, Told]:
    known = batch.visits
    assert known is not None
    place = _places(known, every.each("session_id"), every.each("visit"))
    imported: Flags = every.each("imported").astype(np.bool_)
    over: Flags = cutoff.over(known)[place] | imported
    steps = np.diff(every.start)
    entire = (steps == known["steps"][place]) & (every.once("step")[every.start[1:] - 1] == steps - 1)
    spoken = ~np.isnan(every.once("log_propensity")) & (np.diff(every.first) == every.once("size"))
    whole_ones = ~np.logical_or.reduceat(every.slots["censored"], every.first[:-1])
    told: Flags = np.logical_and.reduceat(spoken, every.start[:-1])
    sound = entire & told & np.logical_and.reduceat(whole_ones, every.start[:-1])
    ripe = np.where(imported, every.each("created_at"), cutoff.ripe(known)[place])
    kept = replace(every, ripe=ripe).take(over & sound)
    return kept, Told(waiting=int((~over).sum()), left_out=int((over & ~sound).sum()), silent=int((over & ~told).sum()))


def _places(known: Columns, session: Ids, visit: Ids) -> Ids:
    """Where visits stand among those that were read, all of which are there."""
    width = int(max(known["number"].max(initial=0), visit.max(initial=0))) + 1
    found: Ids = np.searchsorted(known["session_id"] * width + known["number"], session * width + visit)
    return found
