"""This module computes sums for each person or session that was randomised: how often it came, whether it came again,
and what rewards it brought.

A person is a user, or a session without a user. In this module, a unit is what was randomised, a person or one of
the person's sessions. Times are microseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np

from rlrec.arrays import Array, Flags, Ids, distinct, take
from rlrec.records import Record, Sums

HORIZON_DAYS = (1, 7, 28)  # horizons for the return of a person
DAY_US, MINUTE_US = 86_400_000_000, 60_000_000
FAR_FUTURE = 2**62
SAMPLED_FLAGS = ("several_of_unit", "several_of_visit")  # columns that show where the log may lack decisions


class Visits(Record, eq=False):
    """Visits holds all visits of a set of persons. Each array is (v,), with a value for each visit.

    person, unit: the digests of the person, and of what was randomised; started_at, ended_at: the times of the
    visit; is_over: whether the visit has ended; is_recognised: whether the person would be recognised under another
    session key (None: all persons would); horizon: the time up to which another visit would be in the log (None: all
    times)."""

    person: Ids
    unit: Ids
    started_at: Ids
    ended_at: Ids
    is_over: Flags
    is_recognised: Flags | None = None
    horizon: Ids | None = None

    @cached_property
    def next_start(self) -> Ids:
        """Return, for each visit, the start of the same person's first visit after its end, or FAR_FUTURE without a
        later visit."""
        next_index = np.searchsorted(self._starts, self._key(self._code, self.ended_at), side="right")
        started_at = np.append(self.started_at[self._order], FAR_FUTURE)[next_index]
        same_person = np.append(self._code[self._order], -1)[next_index] == self._code
        return np.where(same_person, started_at, FAR_FUTURE)

    def count_begun(self, visit: Ids, at: Ids) -> Ids:
        """Return, for each of m visits, the number of visits that the same person had begun before a time, (m,).

        visit, at (m,): the index of the visit, and the time."""
        code = self._code[visit]
        visits_begun = np.searchsorted(self._starts, self._key(code, at - 1), side="right")
        return visits_begun - np.searchsorted(self._starts, code * len(self._times))

    @cached_property
    def unit_code(self) -> Ids:
        """Return the number of each visit's unit, (v,). Units are numbered in order of digest."""
        return self._code if self.unit is self.person else np.unique(self.unit, return_inverse=True)[1].reshape(-1)

    # Pairs of person and time, encoded in one number that sorts like the pairs.

    @cached_property
    def _code(self) -> Ids:
        return np.unique(self.person, return_inverse=True)[1].reshape(-1)

    @cached_property
    def _times(self) -> Ids:
        return np.unique(np.concatenate([[-FAR_FUTURE], self.started_at, self.ended_at]))

    def _key(self, code: Ids, at: Ids) -> Ids:
        return code * len(self._times) + np.searchsorted(self._times, at, side="right") - 1

    @cached_property
    def _order(self) -> Ids:
        return np.lexsort((self.started_at, self._code))

    @cached_property
    def _starts(self) -> Ids:
        return self._key(self._code, self.started_at)[self._order]


class ServedDecisions(Record, eq=False):
    """ServedDecisions holds d decisions of visits. Each array is (d,), but the arrays of rewards are (r, d).

    visit: the index of the visit; group: the number of the group of decisions that is counted apart, from 0; at: the
    time of the decision; rewards, is_mature (r, d): for each of r reward definitions, the reward, and whether it
    counts (its window is over, and it is not censored); keep_probability: the probability that the log kept the
    decision (None: 1); day: the number of the day (None: days in UTC)."""

    visit: Ids
    group: Ids
    at: Ids
    rewards: Array
    is_mature: Flags
    keep_probability: Array | None = None
    day: Ids | None = None

    @classmethod
    def empty(cls, rewards: int) -> ServedDecisions:
        """Return an object without decisions. `rewards` is the number of reward definitions."""
        ids, no_rewards = np.empty(0, np.int64), np.empty((rewards, 0))
        return cls(visit=ids, group=ids, at=ids, rewards=no_rewards, is_mature=no_rewards > 0)

    def take(self, rows: Flags) -> ServedDecisions:
        columns = {name: column for name, column in vars(self).items() if column is not None}
        return ServedDecisions(**{name: column[..., rows] for name, column in columns.items()})


class UnitSums(Record, eq=False):
    """UnitSums holds sums for each randomised unit in each group of decisions that served it. The m rows are sorted by
    group and digest.

    If the log dropped decisions, each decision counts 1 / keep_probability times. A visit or a unit counts 1 / the
    probability that at least one of its decisions in the log was kept. This is exact if the visit or unit has a single
    decision, or a decision that was certain to be kept.

    unit: the digest of the unit; group: the number of the group; entry: the time of the group's first decision for the
    unit; visit: the index of the visit of that decision; columns: numerators, denominators and the two SAMPLED_FLAGS,
    by name. A flag is 1 if the log may have dropped decisions of the unit, and the unit has several decisions (first
    flag) or several in one visit (second flag)."""

    unit: Ids
    group: Ids
    entry: Ids
    visit: Ids
    columns: Mapping[str, Array]

    def take(self, rows: Flags | Ids) -> UnitSums:
        ids = {name: column[rows] for name, column in vars(self).items() if name != "columns"}
        return UnitSums(**ids, columns=take(self.columns, rows))

    def regroup(self, group: Ids) -> UnitSums:
        """Return the same sums under other numbers of groups, sorted by group and digest.

        group (m,): the new group of each row."""
        return replace(self, group=group).take(np.lexsort((self.unit, group)))


def unit_sums(visits: Visits, decisions: ServedDecisions, *, now: int | Ids, counts_days: bool = True) -> UnitSums:
    """Return the sums of every randomised unit in every group of decisions.

    now: the present time, one for all visits or one for each visit, by which a visit must be over to be watched for
    returns; counts_days: whether to add a column of active days."""
    # stays: a visit in a group, restricted to the decisions of that group
    first_rows, stay = distinct(decisions.group, decisions.visit)
    group, visit, n = decisions.group[first_rows], decisions.visit[first_rows], len(first_rows)
    stay_start, stay_end = np.full(n, FAR_FUTURE), np.full(n, -FAR_FUTURE)
    np.minimum.at(stay_start, stay, decisions.at)
    np.maximum.at(stay_end, stay, decisions.at)
    # rows: a unit in a group
    unit = visits.unit[visit]
    first_rows, row = distinct(group, visits.unit_code[visit])
    entry = np.full(len(first_rows), FAR_FUTURE)
    np.minimum.at(entry, row, stay_start)
    entry_rows = np.flatnonzero(stay_start == entry[row])
    entry_visit = np.zeros(len(first_rows), np.int64)
    entry_visit[row[entry_rows]] = visit[entry_rows]

    def sum_stays(values: Array | Flags) -> Array:
        return _sums(row, values, len(first_rows))

    # how many decisions, stays and units of the complete log each one stands for
    keep_probability = np.ones(len(stay)) if decisions.keep_probability is None else decisions.keep_probability
    count, stay_weights = 1 / keep_probability, 1 / _inclusion_probability(stay, keep_probability, n)
    unit_weights = 1 / _inclusion_probability(row[stay], keep_probability, len(first_rows))
    drops_decisions = _sums(row[stay], keep_probability < 1, len(first_rows)) > 0
    has_several = (
        _sums(row[stay], np.ones(len(stay)), len(first_rows)) > 1,
        sum_stays(_sums(stay, np.ones(len(stay)), n) > 1) > 0,
    )
    now_at = np.broadcast_to(now, visits.person.shape)[visit]
    is_over = visits.is_over[visit] & (visits.ended_at[visit] <= now_at)
    is_recognised = np.ones(n, np.bool_) if visits.is_recognised is None else visits.is_recognised[visit]
    columns = {
        "units": unit_weights,
        "recognised": np.where(sum_stays(is_recognised) > 0, unit_weights, 0.0),
        "visits": sum_stays(stay_weights),
        "came_again": np.where(sum_stays(np.ones(n)) > 1, unit_weights, 0.0),
        **({"active_days": _count_days(row[stay], decisions, len(first_rows)) * unit_weights} if counts_days else {}),
        "visits_over": sum_stays(is_over * stay_weights),
        "decisions": sum_stays(is_over * _sums(stay, count, n)),
        "minutes": sum_stays(is_over * stay_weights * (stay_end - stay_start) / MINUTE_US),
        **{
            name: (drops_decisions & has_several_flag).astype(np.float64)
            for name, has_several_flag in zip(SAMPLED_FLAGS, has_several, strict=True)
        },
    }
    # returns, for visits whose window is over
    time_away = visits.next_start[visit] - visits.ended_at[visit]
    horizon = now_at if visits.horizon is None else np.minimum(now_at, visits.horizon[visit])
    for days in HORIZON_DAYS:
        is_at_risk = is_over & is_recognised & (visits.ended_at[visit] + days * DAY_US < horizon)
        has_returned = is_at_risk & (time_away <= days * DAY_US)
        columns |= {
            f"at_risk_{days}d": sum_stays(is_at_risk * stay_weights),
            f"returned_{days}d": sum_stays(has_returned * stay_weights),
        }
    # rewards of mature decisions
    for number, (reward, is_mature) in enumerate(zip(decisions.rewards, decisions.is_mature, strict=True)):
        mature_count = _sums(stay, is_mature * count, n)
        columns |= {
            f"reward_{number}": sum_stays(_sums(stay, np.where(is_mature, reward * count, 0.0), n)),
            f"mature_decisions_{number}": sum_stays(mature_count),
            f"mature_visits_{number}": sum_stays((mature_count > 0) * stay_weights),
        }
        columns[f"mature_units_{number}"] = np.where(columns[f"mature_decisions_{number}"] > 0, unit_weights, 0.0)
    return UnitSums(unit=unit[first_rows], group=group[first_rows], entry=entry, visit=entry_visit, columns=columns)


def _sums(row: Ids, values: Array | Flags, n: int) -> Array:
    return np.bincount(row, weights=values, minlength=n).astype(np.float64)


def _inclusion_probability(row: Ids, keep_probability: Array, n: int) -> Array:
    """Return, for each of n rows, the probability that at least one of its decisions was kept, (n,). Each decision has
    its row, and its probability `keep_probability`."""
    p_dropped = np.ones(n)
    np.multiply.at(p_dropped, row, 1 - keep_probability)
    return 1 - p_dropped


def _count_days(row: Ids, decisions: ServedDecisions, n: int) -> Array:
    """Return the number of days on which each of n rows has a decision, (n,). `row` is the row of each decision."""
    first_rows, _ = distinct(row, decisions.at // DAY_US if decisions.day is None else decisions.day)
    return _sums(row[first_rows], np.ones(len(first_rows)), n)


# -- how long people stay away: the share, among those who come back in time, who have come by an age --


N_AGES = 64  # classes of ages, of equal width, up to the horizon


class ReturnTimes(Sums):
    """A ReturnTimes object counts returns by how long the visit was watched and how long the return took, (65, 64).
    Both times are in classes of a 64th of the horizon; the last class of the watched time is a whole horizon."""

    counts: Array

    @classmethod
    def from_visits(cls, *, watched_time: Array, gap: Array) -> ReturnTimes:
        """Count the returns of n visits.

        watched_time, gap (n,): the time that each visit was watched, and the time until the person returned, both in
        horizons; the gap is infinite if the person did not return."""
        has_returned = gap <= np.minimum(watched_time, 1.0)
        row = np.minimum(watched_time[has_returned] * N_AGES, N_AGES).astype(np.int64)
        column = np.minimum(gap[has_returned] * N_AGES, N_AGES - 1).astype(np.int64)
        cells = np.bincount(row * N_AGES + column, minlength=(N_AGES + 1) * N_AGES)
        return cls(cells.reshape(N_AGES + 1, N_AGES).astype(np.float64))

    @property
    def shares(self) -> Array:
        """Return, for each age from 0 to the horizon, the share of returns that have come by this age, (65,).

        The shares are a chain ladder: the share at an age is the share at the next age times the fraction of returns
        by the next age that had come by this age. The fraction is from visits that were watched until the next age."""
        shares = np.ones(N_AGES + 1)
        for age in range(N_AGES - 1, 0, -1):
            returns = self.counts[age + 1 :].sum(axis=0)
            earlier_returns, later_returns = returns[:age].sum(), returns[: age + 1].sum()
            shares[age] = shares[age + 1] * (earlier_returns / later_returns if later_returns > 0 else 1.0)
        shares[0] = 0.0
        return shares
