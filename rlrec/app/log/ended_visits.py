"""This module reads those visits of the log that have ended, are complete and are old enough, with the reward of
every slate. It also reads all visits of persons, with the time until the person's next visit and the rewards of
later visits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from rlrec.app.log import partitions, reward_log
from rlrec.app.log.reward_log import UnusedVisits
from rlrec.arrays import Array, Flags, Ids, look_up, numbers_in_runs, offsets, run_starts, take
from rlrec.policy.gradients import history, returns
from rlrec.records import Record, Reward
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import reader, sessions, settings
from rlrec.store.log.reader import ABSENT, Batch
from rlrec.store.policies import people
from rlrec.store.policies.experiments import Experiment
from rlrec.times import DAY_US

# The columns that are read of every impression.
VISIT_COLUMNS = (
    "at", "imported", "censored", "policy_id", "version_id", "belief_seq", "belief_ordinal", "seed", "context_id",
    "eligible_id", "catalogue_revision", "variant_id", "size", "user_id", "user_digest", "session_digest", "split",
    "visit", "step", "arm_id", "propensity", "marginal", "min_propensity", "log_propensity", "history", "recorded",
    "created_at", "estimated", "keep_probability", "subsampled",
)  # fmt: skip
MAX_VISIT_DECISIONS = 1_000  # decisions of a visit, at most


class EndedVisits(Record, eq=False):
    """This record holds s visits with n decisions and i slots, in order of session, visit number, step and position.

    slots: the columns that were read from the log and the column `reward`, as arrays (i,); first (n + 1,): the index
    of the first slot of each decision; start (s + 1,): the index of the first decision of each visit; reward (n,):
    the reward of each slate; default (n,): whether the slate has no event that the reward weighs; mature_from (s,):
    the time from which each visit can be used."""

    slots: Columns
    first: Ids
    start: Ids
    reward: Array
    default: Flags
    mature_from: Ids

    def __len__(self) -> int:
        return len(self.start) - 1

    def per_decision(self, name: str) -> Any:
        """Return the value that a column of `slots` has at the first slot of each of the n decisions, (n,). name: the
        column."""
        return self.slots[name][self.first[:-1]]

    def per_visit(self, name: str) -> Any:
        """Return the value that a column of `slots` has at the first slot of each of the s visits, (s,). name: the
        column."""
        return self.slots[name][self.begins]

    @property
    def begins(self) -> Ids:
        """Return the index of the first slot of each of the s visits, (s,)."""
        return self.first[self.start[:-1]]

    @property
    def lowest(self) -> Array:
        """Return, for each of the n decisions, the logarithm of a lower bound on the probability of any slate, (n,).
        The bound is the product, over positions, of the smallest propensity of any arm at the position. The result is
        NaN if one of these propensities is unknown."""
        smallest = np.where(self.slots["min_propensity"] > 0, self.slots["min_propensity"], np.nan)
        return np.add.reduceat(np.log(smallest), self.first[:-1])

    def histories(self) -> history.History:
        """Return the history that each decision saw: the earlier slots of its visit."""
        return history.unpack(self.per_decision("history").tolist(), returns.steps(self.start))

    def take(self, visits: Flags) -> EndedVisits:
        """Return some of the visits. visits (s,): whether to keep each visit."""
        if visits.all():
            return self
        decisions = np.repeat(visits, np.diff(self.start))
        rows = np.repeat(decisions, np.diff(self.first))
        return EndedVisits(
            slots=take(self.slots, rows),
            first=offsets(np.diff(self.first)[decisions]), start=offsets(np.diff(self.start)[visits]),
            reward=self.reward[decisions], default=self.default[decisions], mature_from=self.mature_from[visits],
        )  # fmt: skip


class Cutoff(Record):
    """This record says which visits are old enough to be used. A visit must have begun before `started_before`, and the
    visit and the windows of its rewards must be over before `now`. A visit thus waits for all visits that began before
    it; otherwise short visits would become usable first.

    started_before: the start of the oldest visit that is not over, or `now`; timeout_us: the time without a decision
    after which a visit ends; window_us: the window of the reward."""

    now: int
    started_before: int
    timeout_us: int
    window_us: int

    @classmethod
    def compute(cls, unit: Unit, definition: Reward) -> Cutoff:
        """Return the cutoff as of now: a visit counts only if it started before the oldest visit that still runs. A
        visit that has lasted more than a day is not waited for. definition: the reward."""
        timeout = settings.get(unit).session_timeout_us
        since = unit.now - DAY_US - timeout
        oldest = sessions.oldest_running(
            unit, timeout_us=timeout, window_us=definition.window_us, since=since, now=unit.now
        )
        started_before = unit.now if oldest is None else oldest
        return cls(now=unit.now, started_before=started_before, timeout_us=timeout, window_us=definition.window_us)

    def mature_from(self, visits: Columns) -> Ids:
        """Return the time at which each of s visits and the windows of its rewards are over, (s,). visits: the columns
        of the visits as stored."""
        last_at, ended_at = visits["last_at"], visits["ended_at"]
        over_at = np.where(ended_at != reader.ABSENT, ended_at, last_at + self.timeout_us)
        return np.maximum(over_at, last_at + self.window_us)

    def is_over(self, visits: Columns) -> Flags:
        """Tell whether each of s visits is old enough, (s,). visits: the columns of the visits as stored."""
        return (self.mature_from(visits) < self.now) & (visits["started_at"] < self.started_before)


def usable_visits(batch: reader.Batch, definition: Reward, cutoff: Cutoff) -> tuple[EndedVisits, UnusedVisits]:
    """Return the visits of a batch that can be used, and counts of the others. A visit can be used if it is old enough
    and complete, each of its slates has a propensity, and no slot is censored. cutoff: the rule that says which visits
    are old enough."""
    rows = reward_log.with_rewards(batch, definition)
    # in order of session, visit, step and position
    order = np.lexsort([rows.slots[name] for name in ("position", "step", "visit", "session_id")])
    if (order[1:] < order[:-1]).any():
        rows = rows.at(order)
    slates = reward_log.with_page_rewards(batch, rows, definition)
    # the beginnings of decisions and visits
    first, visit_start = (
        run_starts(rows.slots["decision_id"]),
        run_starts(slates.slots["session_id"], slates.slots["visit"]),
    )
    visits = EndedVisits(
        slots=rows.slots | {"reward": rows.reward}, first=np.r_[first, len(rows)], start=np.r_[visit_start, len(first)],
        reward=slates.reward, default=slates.default, mature_from=np.zeros(len(visit_start), np.int64),
    )  # fmt: skip
    stored_visits = batch.visits
    assert stored_visits is not None
    index = visit_indices(stored_visits, visits.per_visit("session_id"), visits.per_visit("visit"))
    # is_over: old enough; entire: no decision is missing
    is_imported: Flags = visits.per_visit("imported").astype(np.bool_)
    is_over = cutoff.is_over(stored_visits)[index] | is_imported
    steps = np.diff(visits.start)
    is_entire = (steps == stored_visits["steps"][index]) & (
        visits.per_decision("step")[visits.start[1:] - 1] == steps - 1
    )
    # if the log dropped lines, a visit with several decisions may not be entire
    is_sampled = (steps > 1) & np.logical_or.reduceat(visits.per_decision("keep_probability") < 1, visits.start[:-1])
    is_entire &= ~is_sampled
    # logged: every slate has a propensity and all its slots; counted: no slot is censored
    is_logged = ~np.isnan(visits.per_decision("log_propensity")) & (
        np.diff(visits.first) == visits.per_decision("size")
    )
    is_counted = ~np.logical_or.reduceat(visits.slots["censored"], visits.first[:-1])
    is_logged_throughout: Flags = np.logical_and.reduceat(is_logged, visits.start[:-1])
    is_sound = is_entire & is_logged_throughout & np.logical_and.reduceat(is_counted, visits.start[:-1])
    mature_from = np.where(is_imported, visits.per_visit("created_at"), cutoff.mature_from(stored_visits)[index])
    n_waiting, n_left_out, n_silent, n_sampled = (
        int(flags.sum())
        for flags in (~is_over, is_over & ~is_sound, is_over & ~is_logged_throughout, is_over & is_sampled)
    )
    first = mature_from[~is_over & (stored_visits["started_at"][index] <= cutoff.started_before)]  # later ones wait
    unused_counts = UnusedVisits(
        n_waiting, n_left_out, n_silent, n_sampled, frozenset(first[first.argsort()[:1]].tolist())
    )
    return replace(visits, mature_from=mature_from).take(is_over & is_sound), unused_counts


def visit_indices(stored_visits: Columns, session: Ids, visit: Ids) -> Ids:
    """Return the index of each of n visits in the table `stored_visits`, (n,), which must include all of them. session
    (n,): the id of the session of each visit; visit (n,): the number of the visit in the session."""
    n_numbers = int(max(stored_visits["number"].max(initial=0), visit.max(initial=0))) + 1
    return look_up(stored_visits["session_id"] * n_numbers + stored_visits["number"], session * n_numbers + visit)[0]


PERSON_VISIT_COLUMNS = (
    "at", "imported", "censored", "visit", "keep_probability", "arm_id", "position", "user_id", "user_digest",
    "session_digest",
)  # fmt: skip


class PersonVisits(Record, kw_only=False, eq=False):
    """This record holds the v visits of some persons, as arrays (v,).

    cluster: the digest of the person, or of the session if it has no user; has_user: whether the session has a user;
    number: the number of the visit among the person's visits; last_at: the time of the visit's last decision; gap:
    the time from `last_at` to the person's next visit, in microseconds, infinite if there is none; later_reward: the
    reward of all later visits of the person; returns_after: how many later visits were followed by another visit
    within the window of the reward; pages: the number of decisions of the visit."""

    cluster: Ids
    has_user: Flags
    number: Ids
    last_at: Ids
    gap: Array
    later_reward: Array
    returns_after: Ids
    pages: Ids

    def __len__(self) -> int:
        return len(self.cluster)

    @classmethod
    def from_batches(cls, batches: Iterable[Batch], definition: Reward) -> PersonVisits:
        """Compute the visits of persons from batches of the log, which must hold all visits of their persons and the
        columns PERSON_VISIT_COLUMNS. definition: how rewards are computed."""
        batch_columns: list[tuple[Ids, ...]] = []
        for batch in batches:
            rows = reward_log.with_page_rewards(batch, reward_log.with_rewards(batch, definition), definition)
            slots = rows.slots
            starts = run_starts(slots["session_id"], slots["visit"])
            ends = np.r_[starts[1:], len(rows)][: len(starts)]
            has_user = slots["user_id"] != ABSENT
            cluster = np.where(has_user, slots["user_digest"], slots["session_digest"])
            cumulative_reward = np.r_[0.0, np.cumsum(rows.reward)]
            batch_columns.append((
                cluster[starts], has_user[starts], slots["at"][starts], slots["at"][ends - 1], ends - starts,
                cumulative_reward[ends] - cumulative_reward[starts],
            ))  # fmt: skip
        if not batch_columns:
            no_ids, no_values = np.zeros(0, np.int64), np.zeros(0)
            return cls(no_ids, no_ids > 0, no_ids, no_ids, no_values, no_values, no_ids, no_ids)
        cluster, has_user, first_at, last_at, pages, reward = map(np.concatenate, zip(*batch_columns, strict=True))
        order = np.lexsort((last_at, first_at, has_user, cluster))
        is_first = np.ones(len(order), np.bool_)
        is_first[1:] = (cluster[order][1:] != cluster[order][:-1]) | ~has_user[order][1:] | ~has_user[order][:-1]
        starts = np.flatnonzero(is_first)
        lengths = np.diff(np.r_[starts, len(order)])
        gap, number, later_reward = np.full(len(order), np.inf), np.empty(len(order), np.int64), np.empty(len(order))
        earlier_rows = np.flatnonzero(~is_first) - 1
        gap[order[earlier_rows]] = np.maximum(first_at[order[earlier_rows + 1]] - last_at[order[earlier_rows]], 0)
        number[order] = numbers_in_runs(starts, len(order)) + 1
        cumulative_reward = np.cumsum(reward[order])
        later_reward[order] = np.repeat(cumulative_reward[starts + lengths - 1], lengths) - cumulative_reward
        returns_after, came_back = np.empty(len(order), np.int64), np.cumsum(gap[order] <= definition.window_us)
        returns_after[order] = np.repeat(came_back[starts + lengths - 1], lengths) - came_back
        return cls(cluster, has_user, number, last_at, gap, later_reward, returns_after, pages)


# -- portions of persons: their visits are read once, in the order of sessions --
#
# Most pages on disk have rows of several portions: index lookups would read a page once for each of them.

SPREAD = 4 * partitions.BATCH  # decisions, or sessions, that are read before they are distributed to portions


class PersonPortions(Record, kw_only=False, eq=False):
    """This record divides persons into portions, which are processed one after another. All sessions of a person are in
    one portion. session (s,): the ids of all sessions, ascending; number (s,): the portion of each session; portions:
    the number of portions; files: the number of temporary files for the rows, each with one or several portions."""

    session: Ids
    number: Ids
    portions: int

    @classmethod
    def read(cls, unit: Unit, sessions: Ids | None = None) -> PersonPortions:
        """Divide all persons into portions. sessions: ids of sessions; if given, only the persons of these sessions are
        divided."""
        portions = people.portions(unit, sessions)
        sessions = np.concatenate([np.empty(0, np.int64), *portions])
        order, number = np.argsort(sessions), np.repeat(np.arange(len(portions)), list(map(len, portions)))
        return cls(sessions[order], number[order], len(portions))

    @property
    def files(self) -> int:
        return min(self.portions, partitions.BUCKETS)

    def portion(self, rows: Columns) -> Ids:
        """Return the number of the portion to which each of n rows belongs, (n,). rows: columns with `session_id`."""
        return self.number[np.searchsorted(self.session, rows["session_id"])]

    def file(self, rows: Columns) -> Ids:
        """Return the number of the file to which each of n rows belongs, (n,). rows: columns with `session_id`."""
        return self.portion(rows) * self.files // max(1, self.portions)

    def visits(self, unit: Unit, experiment: Experiment | None = None) -> Iterator[dict[int, Columns]]:
        """Yield the visits of the persons, one temporary file after another. Each item maps the number of a portion to
        the columns of its visits. experiment: if given, the columns say when and to which variant each user or session
        was assigned, as in `people.ask_visits`."""
        tables = (
            people.ask_visits(unit, self.session[start : start + SPREAD], experiment).columns()
            for start in range(0, len(self.session), SPREAD)
        )
        for pieces in partitions.spool(
            tables, self.files, lambda table: partitions.split_rows(table, self.file(table))
        ):
            columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]} if pieces else {}
            yield dict(partitions.split_rows(columns, self.portion(columns))) if columns else {}
