"""Propensities that were cut from below at a value: the arms there are shown less often than they say.

Where every eligible arm has a chance, 1 / p of the arm shown is their number on average; cut propensities make it
smaller. Two tests: where the smallest propensity of each decision is logged, and above 0, bets on "less" (exact, as in
`intervals.betting`). And the log may look cut: many rows have exactly its smallest propensity, the mean of 1 / p is
more than 4 standard errors below the number of arms, and it was no logger with a floor that leaves some arms out: there
are other propensities close to the smallest one, or the mean is no whole number of arms.
Source: own derivation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.ope.intervals.betting import LESS_SHARES, log_wealth
from rlrec.records import Sums

ALPHA = 1e-3  # false alarms of the bets
LEAST_ROWS, LEAST_SHARE = 20, 0.01  # with the smallest propensity
LEAST_LOSS = 0.01  # of the number of arms
VALUES = 64  # the smallest propensities that are counted
CLOSE = 5  # different propensities up to twice the smallest one, of a logger that gives any
_ERRORS = 4.0
_ROUNDED = 1e-9


@dataclass(frozen=True, eq=False)
class SmallestValues:
    """The smallest values and how many rows have each; those of two batches add up."""

    value: Array
    count: Array

    def __add__(self, other: SmallestValues) -> SmallestValues:
        return SmallestValues.count_rows(np.r_[self.value, other.value], np.r_[self.count, other.count])

    @classmethod
    def count_rows(cls, value: Array, count: Array) -> SmallestValues:
        values, index = np.unique(value, return_inverse=True)
        counts: Array = np.bincount(index.ravel(), weights=count, minlength=len(values)).astype(np.float64)
        return cls(values[:VALUES], counts[:VALUES])


@dataclass(frozen=True, eq=False)
class ClippingSums(Sums):
    """Sums over decisions. log (shares,): log wealth of bets on "less"; moments (4,): of 1, 1 / p, its square and the
    eligible arms; sizes: their numbers; smallest: propensities. The last three are of decisions in which every
    arm had a chance, or may have had one."""

    log: Array
    moments: Array
    sizes: frozenset[int]
    smallest: SmallestValues


def clipping_sums(p: Array, arms: Ids, *, least: Array) -> ClippingSums:
    """Sums of one batch. p, arms (n,): the propensity of the arm that each decision shows, and how many are eligible;
    least (n,): the smallest propensity of any of them, NaN where it is not logged."""
    bets = (least > 0) & (least * arms < 1 - _ROUNDED)
    largest = 1 / (least[bets] * arms[bets])
    gain = np.minimum((1 / (p[bets] * arms[bets]) - 1) / (largest - 1), 1.0)
    log = np.log1p(-LESS_SHARES[:, None] * gain).sum(axis=1)
    rows = ~(least == 0)
    inverse, number = 1 / p[rows], arms[rows].astype(np.float64)
    moments = np.array([rows.sum(), inverse.sum(), (inverse**2).sum(), number.sum()], np.float64)
    smallest = SmallestValues.count_rows(p[rows], np.ones(len(inverse)))
    return ClippingSums(log, moments, frozenset(np.unique(arms[rows]).tolist()), smallest)


def propensities_are_clipped(sums: ClippingSums) -> bool:
    """Whether arms with small propensities were shown less often than these say."""
    if float(log_wealth(np.append(sums.log, 0.0)[:, None])[0]) > -np.log(ALPHA):
        return True
    n, total, squares, arms = sums.moments.tolist()
    if n < 2 or sums.smallest.count[0] < max(LEAST_ROWS, LEAST_SHARE * n):
        return False
    mean, least = total / n, sums.smallest.value[0]
    error = np.sqrt(max(squares / n - mean**2, 0.0) / n)
    if arms / n - mean < max(_ERRORS * error, LEAST_LOSS * arms / n):
        return False
    is_close = (sums.smallest.value > least * (1 + _ROUNDED)) & (sums.smallest.value <= 2 * least)
    is_integer = len(sums.sizes) > 1 or abs(mean - round(mean)) <= _ERRORS * error
    return bool(is_close.sum() >= CLOSE or not is_integer)
