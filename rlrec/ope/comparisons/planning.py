"""How many units tell a difference of a size: at one look that is fixed beforehand, and however often somebody looks.

variance: of one unit, such that variance / n is the squared error of the difference after n units of all groups."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from rlrec.ope.intervals import sequences

PATHS, LOOKS = 4_000, 200  # simulated to find when a sequence tells: the number of units is right within about 1 %
FARTHEST, HALVINGS = 1e-6, 16  # from the units for which a sequence is tightest: as near as 0.05 %


def variance_of_difference(variance: float, lifted: float, shares: Sequence[float]) -> float:
    """The variance of one unit of a difference of the smallest other group from the first one.
    variance, lifted: of a unit of the first group, and of the others; shares: of all units, one a group."""
    return variance / shares[0] + lifted / min(shares[1:])


def fixed_units(variance: float, difference: float, *, alpha: float, power: float) -> float:
    """Units of all groups after which the interval of a single look excludes 0 with this power."""
    reach = NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
    return variance * (reach / difference) ** 2


def sequential_units(
    variance: float, difference: float, *, alpha: float, power: float, best_n: float | None = None
) -> float:  # fmt: skip
    """Units of all groups by which a confidence sequence has excluded 0 with this power, somebody looking all along: a
    path leaves the sequence where chance and drift together are beyond its width. best_n: units for which it is
    tightest; None for those that this answers."""
    share = np.arange(1, LOOKS + 1) / LOOKS
    noise = np.random.default_rng(0).normal(0.0, LOOKS**-0.5, (PATHS, LOOKS)).cumsum(axis=1) / share

    def needed(ratio: float) -> float:
        """The units where the sequence is tightest at this many times them."""
        width = sequences.half_width(1.0, share, best_n=ratio, alpha=alpha)
        drift = float(np.quantile((width - noise).min(axis=1), power))  # in standard errors of the end
        return variance * (drift / difference) ** 2

    if best_n is None:
        return needed(1.0)
    # the ratio and the units follow from each other: more units, a smaller ratio
    low, high = best_n * FARTHEST, best_n / FARTHEST
    for _ in range(HALVINGS):
        units = (low * high) ** 0.5
        low, high = (units, high) if needed(best_n / units) > units else (low, units)
    return units
