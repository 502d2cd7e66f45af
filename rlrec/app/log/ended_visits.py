"""The visits of the log that have ended, are complete and are old enough, with the reward of every slate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlrec.app.log import reward_log
from rlrec.app.log.reward_log import UnusedVisits
from rlrec.arrays import Array, Flags, Ids, offsets, run_starts, take
from rlrec.policy.gradients import history, returns
from rlrec.records import Reward
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import reader, sessions, settings
from rlrec.times import DAY_US

# The columns that are read of every impression.
READ = (
    "at", "imported", "censored", "policy_id", "version_id", "belief_seq", "belief_ordinal", "seed", "context_id",
    "eligible_id", "catalogue_revision", "variant_id", "size", "user_id", "user_digest", "session_digest", "split",
    "visit", "step", "arm_id", "propensity", "marginal", "min_propensity", "log_propensity", "history", "recorded",
    "created_at", "estimated", "keep_probability", "subsampled",
)  # fmt: skip
LONGEST = 1_000  # decisions of a visit, at most


@dataclass(frozen=True, kw_only=True, eq=False)
class EndedVisits:
    """s visits of n decisions with i slots, in order of session and visit number, then step, then position.

    slots: columns of the reader, (i,) each, and `reward` of each slot. first (n + 1,): the first slot of each decision.
    start (s + 1,): the first decision of each visit. reward (n,): of the slate; default (n,): whether no weighed event
    came. mature_from (s,): when each visit could first be used."""

    slots: Columns
    first: Ids
    start: Ids
    reward: Array
    default: Flags
    mature_from: Ids

    def __len__(self) -> int:
        return len(self.start) - 1

    def per_decision(self, name: str) -> Any:
        """A column of the decisions, (n,)."""
        return self.slots[name][self.first[:-1]]

    def per_visit(self, name: str) -> Any:
        """A column of the visits, (s,)."""
        return self.slots[name][self.begins]

    @property
    def begins(self) -> Ids:
        """The first slot of every visit, (s,)."""
        return self.first[self.start[:-1]]

    @property
    def lowest(self) -> Array:
        """For each decision, the log of a lower bound on the probability of any slate, (n,): the product of the
        smallest propensities at its positions. NaN if unknown."""
        smallest = np.where(self.slots["min_propensity"] > 0, self.slots["min_propensity"], np.nan)
        return np.add.reduceat(np.log(smallest), self.first[:-1])

    def histories(self) -> history.History:
        """The history of the visit at every decision, (n,)."""
        return history.unpack(self.per_decision("history").tolist(), returns.steps(self.start))

    def take(self, visits: Flags) -> EndedVisits:
        """Those visits for which `visits` is true."""
        if visits.all():
            return self
        decisions = np.repeat(visits, np.diff(self.start))
        rows = np.repeat(decisions, np.diff(self.first))
        return EndedVisits(
            slots=take(self.slots, rows),
            first=offsets(np.diff(self.first)[decisions]), start=offsets(np.diff(self.start)[visits]),
            reward=self.reward[decisions], default=self.default[decisions], mature_from=self.mature_from[visits],
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cutoff:
    """Criteria for visits that are old enough: they began before `started`, and they and their windows were over before
    `now`.

    Visits that began together become usable together, when all of them have ended; otherwise short ones would come
    first."""

    now: int
    started: int
    timeout_us: int
    window_us: int

    @classmethod
    def compute(cls, unit: Unit, definition: Reward) -> Cutoff:
        """The cutoff at this moment. A visit that has lasted more than a day does not delay it."""
        timeout = settings.get(unit).session_timeout_us
        since = unit.now - DAY_US - timeout
        oldest = sessions.oldest_running(
            unit, timeout_us=timeout, window_us=definition.window_us, since=since, now=unit.now
        )
        started = unit.now if oldest is None else oldest
        return cls(now=unit.now, started=started, timeout_us=timeout, window_us=definition.window_us)

    def mature_from(self, visits: Columns) -> Ids:
        """The time at which each visit and its windows are over, (s,). visits: columns of the store."""
        last, ended = visits["last_at"], visits["ended_at"]
        over_at = np.where(ended != reader.ABSENT, ended, last + self.timeout_us)
        return np.maximum(over_at, last + self.window_us)

    def is_over(self, visits: Columns) -> Flags:
        """Whether each visit is old enough, (s,)."""
        return (self.mature_from(visits) < self.now) & (visits["started_at"] < self.started)


def usable_visits(batch: reader.Batch, definition: Reward, cutoff: Cutoff) -> tuple[EndedVisits, UnusedVisits]:
    """The usable visits of a batch, and counts of the others."""
    rows = reward_log.with_rewards(batch, definition)
    # in order of session, visit, step and position
    order = np.lexsort([rows.slots[name] for name in ("position", "step", "visit", "session_id")])
    if (order[1:] < order[:-1]).any():
        rows = rows.at(order)
    slates = reward_log.with_page_rewards(batch, rows, definition)
    # the beginnings of decisions and visits
    first, begun = run_starts(rows.slots["decision_id"]), run_starts(slates.slots["session_id"], slates.slots["visit"])
    visits = EndedVisits(
        slots=rows.slots | {"reward": rows.reward}, first=np.r_[first, len(rows)], start=np.r_[begun, len(first)],
        reward=slates.reward, default=slates.default, mature_from=np.zeros(len(begun), np.int64),
    )  # fmt: skip
    stored = batch.visits
    assert stored is not None
    index = visit_indices(stored, visits.per_visit("session_id"), visits.per_visit("visit"))
    # is_over: old enough; entire: no decision is missing
    imported: Flags = visits.per_visit("imported").astype(np.bool_)
    is_over = cutoff.is_over(stored)[index] | imported
    steps = np.diff(visits.start)
    entire = (steps == stored["steps"][index]) & (visits.per_decision("step")[visits.start[1:] - 1] == steps - 1)
    # if the log dropped lines, a visit with several decisions may not be entire
    sampled = (steps > 1) & np.logical_or.reduceat(visits.per_decision("keep_probability") < 1, visits.start[:-1])
    entire &= ~sampled
    # logged: every slate has a propensity and all its slots; counted: no slot is censored
    logged = ~np.isnan(visits.per_decision("log_propensity")) & (np.diff(visits.first) == visits.per_decision("size"))
    counted = ~np.logical_or.reduceat(visits.slots["censored"], visits.first[:-1])
    is_logged_throughout: Flags = np.logical_and.reduceat(logged, visits.start[:-1])
    sound = entire & is_logged_throughout & np.logical_and.reduceat(counted, visits.start[:-1])
    mature_from = np.where(imported, visits.per_visit("created_at"), cutoff.mature_from(stored)[index])
    waiting, left_out, silent, dropped = (
        int(flags.sum()) for flags in (~is_over, is_over & ~sound, is_over & ~is_logged_throughout, is_over & sampled)
    )
    first = mature_from[~is_over & (stored["started_at"][index] <= cutoff.started)]  # later ones wait for these
    unused = UnusedVisits(waiting, left_out, silent, dropped, frozenset(first[first.argsort()[:1]].tolist()))
    return replace(visits, mature_from=mature_from).take(is_over & sound), unused


def visit_indices(stored: Columns, session: Ids, visit: Ids) -> Ids:
    """The index of each visit in the visits that were read, which include all of them."""
    width = int(max(stored["number"].max(initial=0), visit.max(initial=0))) + 1
    return np.searchsorted(stored["session_id"] * width + stored["number"], session * width + visit)
