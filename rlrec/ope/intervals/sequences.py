"""Confidence sequences: intervals that hold at every look, however often somebody looks.

n clusters have been counted so far. The sequence is asymptotic: it needs `MIN_CLUSTERS` clusters and `MIN_EVENTS` of
them with a reward, below which nothing can be said. It is tightest at a number of clusters that is fixed beforehand.
Source: Waudby-Smith et al. 2024, Time-uniform central limit theory and asymptotic confidence sequences."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array

MIN_CLUSTERS, MIN_EVENTS = 100, 20


def tightness(best_n: float, alpha: float) -> float:
    """The rho for which a two-sided sequence that misses in a share alpha of logs is tightest at best_n clusters."""
    return float(np.sqrt((-2 * np.log(alpha) + np.log(1 - 2 * np.log(alpha))) / best_n))


def half_width(variance: float | Array, n: float | Array, *, best_n: float, alpha: float) -> Array:
    """Half the width of the two-sided sequence after n clusters; infinite without one.
    variance: of one cluster, so that variance / n is the squared error."""
    return half_width_at(variance, n, rho=tightness(best_n, alpha), alpha=alpha)


def half_width_at(variance: float | Array, n: float | Array, *, rho: float, alpha: float) -> Array:
    """Half the width of a sequence of any rho, which comparisons share whose levels follow from each other."""
    return _reach(variance, n, rho, np.log(_spread(n, rho) / alpha))


def growth(ratio: float, n: float, *, rho: float, alpha: float) -> float:
    """How many times as many clusters as n make the two-sided sequence narrower by this ratio."""
    times = np.geomspace(1, 1e9, 2_000)
    widths = half_width_at(1.0, n * times, rho=rho, alpha=alpha)
    is_narrow = ratio * widths <= widths[0]
    return float(times[is_narrow.argmax()]) if is_narrow.any() else np.inf


def bound_distance(variance: float | Array, n: float | Array, *, best_n: float, alpha: float) -> Array:
    """The distance from the estimate to the bound of a one-sided sequence after n clusters; alpha is below 1/2."""
    return bound_distance_at(variance, n, rho=tightness(best_n, 2 * alpha), alpha=alpha)


def bound_distance_at(variance: float | Array, n: float | Array, *, rho: float, alpha: float) -> Array:
    """The distance to the bound of a one-sided sequence of any rho."""
    return _reach(variance, n, rho, np.log1p(_spread(n, rho) / (2 * alpha)))


def p_value(difference: float | Array, variance: float | Array, n: float | Array, *, rho: float) -> Array:
    """The smallest level at which the two-sided sequence of this rho excludes 0 after n clusters; it is valid at every
    look."""
    squared_z = np.square(difference) * n / variance
    return np.minimum(1.0, _spread(n, rho) * np.exp(-squared_z / 2 * _settled_share(n, rho)))


def _reach(variance: float | Array, n: float | Array, rho: float, log_odds: Array) -> Array:
    """The square root of 2 variance (n rho^2 + 1) / (n rho)^2 times these odds."""
    with np.errstate(divide="ignore", invalid="ignore"):
        width = np.sqrt(2 * np.asarray(variance) / n / _settled_share(n, rho) * log_odds)
    return np.where(np.asarray(n) > 0, width, np.inf)


def _spread(n: float | Array, rho: float) -> Array:
    return np.sqrt(np.asarray(n) * rho**2 + 1)


def _settled_share(n: float | Array, rho: float) -> Array:
    """n rho^2 / (n rho^2 + 1), the share of the mixture that the clusters have narrowed."""
    information = np.asarray(n) * rho**2
    return information / (information + 1)
