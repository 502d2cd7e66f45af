"""This module tests whether a log has repeated rows or clipped propensities, and sorts contexts into cells for tests of
draws.

A log can state the right propensities of an arm on average, and wrong ones in each kind of context. `context_cells`
are such kinds.

Rows may be in a log more than once under other keys, for example if the same log was imported twice. Two decisions at
the same time in the same context were drawn independently. Whether the second decision shows the arm of the first is a
bet whose fair price follows from the logged propensity, however coarse the times are; copies always win it. Only the
first two decisions of each time and context are used, for a sample of these by their hashes. If times are so coarse
that copies are among many other rows, whole sessions are counted: a kind of identical sessions has an odd number about
as often as an even one, or more often, since many kinds have one session. If all sessions came twice, no number is odd.

If propensities were clipped from below, arms with small propensities are shown less often than these say. If every
eligible arm has a positive probability, the mean of 1 / p of the arm shown is the number of arms; clipped propensities
make it smaller. There are two tests. If the smallest propensity of each decision is logged, and positive, the test is
bets on "less" (exact, as in `intervals.betting`). Otherwise three signs together show that the log looks clipped: many
rows have exactly its smallest propensity; the mean of 1 / p is more than 4 standard errors below the number of arms;
and no floor that leaves out some arms explains it, since there are other propensities close to the smallest one, or the
mean is not an integral number of arms. Source: own derivations (bets as in `intervals.betting`, parities of Poisson
counts)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec.arrays import Array, Ids, Words, distinct, numbers_in_runs, run_starts
from rlrec.ope.intervals.betting import LESS_SHARES, log_wealth
from rlrec.ope.sums.base import hash_bits
from rlrec.records import Record, Sums

_STEPS_PER_UNIT = 4  # intervals into which 1 of a feature is cut; numbers count as asinh(number)
_LARGEST_STEP = 32  # intervals that are distinguished
_SALT = 11

GROUPS = 1_024  # times and contexts, and kinds of sessions, in the samples
REPEAT_ALPHA = 5e-4  # probability of a false alarm of each test of repeats
LEAST_KINDS = 50  # kinds of sessions that a test of their numbers needs
_ALARM_Z = 3.29  # standard errors, for REPEAT_ALPHA
_BET_SHARES = np.r_[2.0 ** -np.arange(6, 0, -1), 0.9]

CUT_ALPHA = 1e-3  # probability of a false alarm of the bets on "less"
LEAST_ROWS, LEAST_ROW_SHARE = 20, 0.01  # that must have the smallest propensity
LEAST_LOST_SHARE = 0.01  # missing from the number of arms, as a share of it
N_SMALLEST_VALUES = 64  # the smallest propensities that are counted
LEAST_CLOSE_VALUES = 5  # distinct propensities up to twice the smallest one, for a logger without a floor
_INTEGER_ALARM_Z = 4.0
_TOLERANCE = 1e-9


def context_cells(row: Ids, column: Ids, value: Array, *, contexts: int, cells: int) -> tuple[Ids, Ids]:
    """Return c pairs of a context and a cell that the context lies in, as two arrays (c,), ordered by context and cell.

    The first half of the cells are values of fields (for numbers: values close together), the other half are whole
    contexts. Hashes determine the cell, so that nothing about the log need be known beforehand. If two values share
    a cell, the cell is coarser, but no test of the cell is wrong.

    row, column, value (e,): the context, the field and the value of each feature; contexts: the number of contexts;
    cells: the number of cells."""
    n_half_cells = cells // 2
    value_step = np.clip(np.rint(value * _STEPS_PER_UNIT), -_LARGEST_STEP, _LARGEST_STEP).astype(np.int64)
    value_cell = hash_bits(column.astype(np.int64) * 256 + value_step, salt=_SALT) % np.uint64(n_half_cells)
    digest = context_digests(row, column, value, contexts=contexts)
    context = np.r_[row, np.arange(contexts)].astype(np.int64)
    cell = np.r_[value_cell, np.uint64(n_half_cells) + hash_bits(digest, salt=_SALT) % np.uint64(n_half_cells)].astype(
        np.int64
    )
    first_rows, _ = distinct(context, cell)
    return context[first_rows], cell[first_rows]


def context_digests(row: Ids, column: Ids, value: Array, *, contexts: int) -> Ids:
    """Return the digest of each context, (contexts,), independent of the order of its features. Each feature is a
    context (`row`), a field (`column`) and a value."""
    bits = hash_bits(np.asarray(value, np.float64).view(np.int64) + column.astype(np.int64), salt=_SALT + 1)
    digest_sum = np.zeros(contexts, np.uint64)
    np.add.at(digest_sum, row, bits)
    return digest_sum.view(np.int64)


class FirstCounts(Record, kw_only=False, eq=False):
    """FirstCounts counts rows by value, for the smallest values only. The counts of two batches can be added.

    value: the smallest values, ascending; count: the number of rows with each value; limit: the largest number of
    values."""

    value: npt.NDArray[Any]
    count: Array
    limit: int

    @classmethod
    def count_rows(cls, value: npt.NDArray[Any], limit: int, count: Array | None = None) -> FirstCounts:
        """Count the rows with each of the `limit` smallest values.

        count (n,): how often each row counts, or None if each row counts once."""
        values, index = np.unique(value, return_inverse=True)
        counts = np.bincount(index.ravel(), weights=count, minlength=len(values)).astype(np.float64)
        return cls(values[:limit], counts[:limit], limit)

    def __add__(self, other: FirstCounts) -> FirstCounts:
        values, counts = np.concatenate([self.value, other.value]), np.concatenate([self.count, other.count])
        return FirstCounts.count_rows(values, self.limit, counts)


class Draws(Record, kw_only=False, eq=False):
    """Draws is a sample of pairs of draws: the first two draws at the same time in the same context. The sample has the
    times and contexts with the GROUPS smallest hashes. The samples of two batches can be added.

    group, order (n,): the hash of each draw's time and context, and the hash of its decision; arm, p (n,): the arm
    shown, and the propensity of this arm."""

    group: Words
    order: Words
    arm: Ids
    p: Array

    @classmethod
    def sample(cls, group: Words, order: Words, arm: Ids, p: Array) -> Draws:
        rows = np.lexsort((order, group))
        starts = run_starts(group[rows])
        group_number = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(rows)))
        rows = rows[(numbers_in_runs(starts, len(rows)) < 2) & (group_number < GROUPS)]
        return cls(group[rows], order[rows], arm[rows], p[rows])

    def __add__(self, other: Draws) -> Draws:
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("group", "order", "arm", "p"))
        return Draws.sample(*map(np.concatenate, pairs))

    @property
    def are_repeated(self) -> bool:
        """Tell whether two draws at the same time in the same context show the same arm more often than the
        propensities allow."""
        second_draws = 1 + np.flatnonzero(self.group[1:] == self.group[:-1])
        gain = (self.arm[second_draws] == self.arm[second_draws - 1]) / self.p[second_draws] - 1
        log_wealth_by_bet = np.log1p(_BET_SHARES[:, None] * gain).sum(axis=1)
        return float(log_wealth(log_wealth_by_bet[:, None])[0]) > -np.log(REPEAT_ALPHA)


class RepeatSums(Sums):
    """RepeatSums holds two samples by hash, for the test of repeated rows: draws at the same time in the same context,
    and how often each kind of identical sessions occurs."""

    draws: Draws
    kinds: FirstCounts

    @property
    def raises_alarm(self) -> bool:
        """Tell whether the log has repeated rows. Either draws are repeated, or fewer kinds of sessions occur an odd
        number of times than chance allows."""
        n_kinds, n_odd = len(self.kinds.count), int((self.kinds.count % 2).sum())
        has_too_few_odd = n_kinds >= LEAST_KINDS and n_kinds / 2 - n_odd > _ALARM_Z * np.sqrt(n_kinds / 4)
        return bool(has_too_few_odd) or self.draws.are_repeated


class ClippingSums(Sums):
    """ClippingSums holds sums over decisions, for the test of clipped propensities.

    log (shares,): the logarithm of the wealth of bets that arms are shown less often than their propensities say.
    The other sums are over decisions in which every arm may have had a positive probability. moments (4,): the sums
    of 1, of 1 / p, of its square, and of the number of eligible arms; sizes: the numbers of eligible arms that
    occur; smallest_values: the counts of the smallest propensities."""

    log: Array
    moments: Array
    sizes: frozenset[int]
    smallest_values: FirstCounts

    @classmethod
    def from_rows(cls, p: Array, arms: Ids, *, least: Array) -> ClippingSums:
        """Return the sums of one batch of n decisions.

        p, arms (n,): the propensity of the arm that each decision shows, and the number of eligible arms; least
        (n,): the smallest propensity of any eligible arm, or NaN if this propensity is not logged."""
        has_bet = (least > 0) & (least * arms < 1 - _TOLERANCE)
        largest_ratio = 1 / (least[has_bet] * arms[has_bet])
        gain = np.minimum((1 / (p[has_bet] * arms[has_bet]) - 1) / (largest_ratio - 1), 1.0)
        log_wealth_by_bet = np.log1p(-LESS_SHARES[:, None] * gain).sum(axis=1)
        is_open = ~(least == 0)
        inverse, number = 1 / p[is_open], arms[is_open].astype(np.float64)
        moments = np.array([is_open.sum(), inverse.sum(), (inverse**2).sum(), number.sum()], np.float64)
        smallest_values = FirstCounts.count_rows(p[is_open], N_SMALLEST_VALUES)
        return cls(log_wealth_by_bet, moments, frozenset(np.unique(arms[is_open]).tolist()), smallest_values)

    @property
    def raises_alarm(self) -> bool:
        """Tell whether arms with small propensities were shown less often than these propensities say."""
        if float(log_wealth(np.append(self.log, 0.0)[:, None])[0]) > -np.log(CUT_ALPHA):
            return True
        n, inverse_total, squares, arms_total = self.moments.tolist()
        if n < 2 or self.smallest_values.count[0] < max(LEAST_ROWS, LEAST_ROW_SHARE * n):
            return False
        mean, least = inverse_total / n, self.smallest_values.value[0]
        error = np.sqrt(max(squares / n - mean**2, 0.0) / n)
        if arms_total / n - mean < max(_INTEGER_ALARM_Z * error, LEAST_LOST_SHARE * arms_total / n):
            return False
        is_close = (self.smallest_values.value > least * (1 + _TOLERANCE)) & (self.smallest_values.value <= 2 * least)
        is_integer = len(self.sizes) > 1 or abs(mean - round(mean)) <= _INTEGER_ALARM_Z * error
        return bool(is_close.sum() >= LEAST_CLOSE_VALUES or not is_integer)
