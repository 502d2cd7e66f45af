"""This module computes confidence sequences, which are intervals that hold at every look, however often somebody looks.
It also computes how many users or sessions an experiment needs to detect a difference.

n is the number of clusters so far. The sequence is asymptotic: it needs `MIN_CLUSTERS` clusters and `MIN_EVENTS` of
them with a reward; below that it gives no statement. It is tightest at a number of clusters that is fixed
beforehand. Source: Waudby-Smith et al. 2024, Time-uniform central limit theory and asymptotic confidence sequences."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from rlrec.arrays import Array

MIN_CLUSTERS, MIN_EVENTS = 100, 20


def tightness(best_n: float, alpha: float) -> float:
    """Return the rho with which a two-sided sequence of error probability alpha is tightest at best_n clusters."""
    return float(np.sqrt((-2 * np.log(alpha) + np.log(1 - 2 * np.log(alpha))) / best_n))


class LookSequence(NamedTuple):
    """A LookSequence is a confidence sequence, whose bounds hold at every look.

    rho: the parameter that determines at how many clusters the sequence is tightest; comparisons whose levels depend
    on each other have the same rho; alpha: the probability that the sequence is wrong at some look, below 1/2 for
    one bound; n_sides: the number of bounds that are used, 1 or 2. In the methods, variance is the variance of one
    cluster, so that variance / n is the squared error."""

    rho: float
    alpha: float
    n_sides: int = 2

    @classmethod
    def tightest(cls, best_n: float, alpha: float, *, n_sides: int = 2) -> LookSequence:
        """Return the sequence that is tightest at best_n clusters."""
        return cls(tightness(best_n, alpha * 2 / n_sides), alpha, n_sides)

    def half_width(self, variance: float | Array, n: float | Array) -> Array:
        """Return the distance from the estimate to its bounds after n clusters, infinite with n = 0. Let s^2 = n rho^2
        + 1. The squared distance is 2 variance s^2 / (n rho)^2 x ln(s / alpha); for a single bound the logarithm is
        ln(1 + s / (2 alpha))."""
        spread = _spread(n, self.rho)
        log_odds = np.log(spread / self.alpha) if self.n_sides == 2 else np.log1p(spread / (2 * self.alpha))
        with np.errstate(divide="ignore", invalid="ignore"):
            width = np.sqrt(2 * np.asarray(variance) / n / _settled_share(n, self.rho) * log_odds)
        return np.where(np.asarray(n) > 0, width, np.inf)

    def growth_factor(self, ratio: float, n: float) -> float:
        """Return the factor by which n must grow until the two-sided sequence is `ratio` times as narrow."""
        growth_factors = np.geomspace(1, 1e9, 2_000)
        widths = self._replace(n_sides=2).half_width(1.0, n * growth_factors)
        is_narrow = ratio * widths <= widths[0]
        return float(growth_factors[is_narrow.argmax()]) if is_narrow.any() else np.inf

    def p_value(self, difference: float | Array, variance: float | Array, n: float | Array) -> Array:
        """Return the smallest alpha with which the two-sided sequence excludes 0 after n clusters. This p-value is
        valid at every look."""
        squared_z = np.square(difference) * n / variance
        return np.minimum(1.0, _spread(n, self.rho) * np.exp(-squared_z / 2 * _settled_share(n, self.rho)))


def _spread(n: float | Array, rho: float) -> Array:
    return np.sqrt(np.asarray(n) * rho**2 + 1)


def _settled_share(n: float | Array, rho: float) -> Array:
    """Return n rho^2 / (n rho^2 + 1), which rises from 0 to 1 with the number n of clusters. rho is the scale of the
    mixture of a confidence sequence."""
    information = np.asarray(n) * rho**2
    return information / (information + 1)


# -- how many units it takes to detect a difference of a given size: at one planned look, and at repeated looks --
#
# variance: of one unit, such that variance / n is the squared error of the difference after n units of all groups.

# simulated to find when a sequence excludes 0; the number of units is accurate to about 1 %
N_PATHS, N_LOOKS = 4_000, 200
# search range around the units at which a sequence is tightest, and its bisections: accurate to 0.05 %
SEARCH_RATIO, BISECTIONS = 1e-6, 16


def variance_of_difference(variance: float, other_variance: float, shares: Sequence[float]) -> float:
    """Return the variance of the difference between the first group and the smallest other group, times the number of
    units (users or sessions) of all groups.

    variance, other_variance: the variance of a unit of the first group, and of a unit of the other groups; shares:
    the share of each group in all units."""
    return variance / shares[0] + other_variance / min(shares[1:])


def fixed_sample_size(variance: float, difference: float, *, alpha: float, power: float) -> float:
    """Return how many users or sessions all groups together need, so that the interval of a single look excludes 0 with
    probability `power`. `variance` is the variance of the difference times this number."""
    z_sum = NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
    return variance * (z_sum / difference) ** 2


def sequential_units(
    variance: float, difference: float, *, alpha: float, power: float, best_n: float | None = None
) -> float:  # fmt: skip
    """Return how many users or sessions all groups together need, so that a confidence sequence has excluded 0 with
    probability `power`, if somebody looks all along. The number is simulated: a path leaves the sequence where noise
    and drift together exceed its width.

    variance: the variance of the difference times this number; difference: the true difference; best_n: the number
    at which the sequence is tightest; None stands for the result itself."""
    look_share = np.arange(1, N_LOOKS + 1) / N_LOOKS
    noise = np.random.default_rng(0).normal(0.0, N_LOOKS**-0.5, (N_PATHS, N_LOOKS)).cumsum(axis=1) / look_share

    def count_units(ratio: float) -> float:
        """Return the number of units needed, if the sequence is tightest at `ratio` times this number."""
        width = LookSequence.tightest(ratio, alpha).half_width(1.0, look_share)
        drift = float(np.quantile((width - noise).min(axis=1), power))  # in standard errors at the end
        return variance * (drift / difference) ** 2

    if best_n is None:
        return count_units(1.0)
    # the ratio and the number of units depend on each other: more units mean a smaller ratio
    low, high = best_n * SEARCH_RATIO, best_n / SEARCH_RATIO
    for _ in range(BISECTIONS):
        units = (low * high) ** 0.5
        low, high = (units, high) if count_units(best_n / units) > units else (low, units)
    return units
