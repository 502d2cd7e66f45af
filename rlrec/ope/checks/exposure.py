"""This module computes how evenly slots are spread over the arms of a catalogue, and the reward rate of each arm."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.ope.intervals.tails import t_quantile
from rlrec.ope.sums.base import hash_bits
from rlrec.records import Sums

MAX_GROUPS = 256  # groups of clusters, for the errors of rates
MAX_CELLS = 4_000_000  # most numbers in these sums
_SALT = 2


def spread(exposure: Array) -> dict[str, float | None]:
    """Return figures that say how evenly exposure is spread over all arms of a catalogue. The figures are None if no
    arm was exposed.

    coverage: the share of the arms with any exposure; gini: 0 if all arms have the same exposure, 1 - 1/m if one arm
    has all of it; entropy: the entropy in nats; effective_arms: exp(entropy), the number of equally exposed arms
    with the same entropy. Source: Gini's index of the sorted exposures, 2 sum(i x_i) / (m sum(x)) - (m + 1) / m;
    Shannon's entropy.

    exposure (m,): the exposure of each arm, 0 or more, with 0 for arms that were not exposed."""
    total, m = float(exposure.sum()), len(exposure)
    if not total > 0:
        return dict.fromkeys(("coverage", "gini", "entropy", "effective_arms"))
    share = np.sort(exposure) / total
    positive_shares = share[share > 0]
    gini = float(2 * (np.arange(1, m + 1) * share).sum() / m - (m + 1) / m)
    entropy = max(0.0, float(-(positive_shares * np.log(positive_shares)).sum()))
    effective_arms = float(np.exp(entropy))
    return {
        "coverage": len(positive_shares) / m,
        "gini": max(0.0, gini),
        "entropy": entropy,
        "effective_arms": effective_arms,
    }


class RateSums(Sums):
    """RateSums holds sums of the slots of each arm, by group of clusters. The sums of two batches can be added.

    looks (groups, a): the sum of the examinations of the arm's slots; reward (groups, a): the sum of the rewards;
    doubt (groups, a): the sum of examinations x half the width of their confidence intervals, on the log scale."""

    looks: Array
    reward: Array
    doubt: Array

    @property
    def error(self) -> Array:
        """Return half the width of the confidence interval of the examination of each arm's slots, on the log scale,
        (a,)."""
        pulls = self.looks.sum(axis=0)
        return np.divide(self.doubt.sum(axis=0), pulls, out=np.zeros(len(pulls)), where=pulls > 0)

    @classmethod
    def from_slots(
        cls, *, arm: Ids, cluster: Ids, examination: Array, reward: Array, arms: int, doubt: float | Array = 0.0
    ) -> RateSums:
        """Return the sums over n slots. Each array has one value for each slot, (n,).

        arm: a number in 0..arms - 1; cluster: the digest of the cluster; examination: the probability that the
        slot's position is examined; doubt: half the width of the confidence interval of this probability, on the log
        scale."""
        n_groups = max(2, min(MAX_GROUPS, MAX_CELLS // max(1, arms)))
        cell = (hash_bits(cluster, salt=_SALT) % np.uint64(n_groups)).astype(np.int64) * arms + arm
        slot_columns = examination, reward, examination * doubt
        columns = np.stack([np.bincount(cell, weights=column, minlength=n_groups * arms) for column in slot_columns])
        return cls(*columns.astype(np.float64).reshape(3, n_groups, arms))


def rates(sums: RateSums, *, is_bounded: bool, level: float = 0.95) -> tuple[Array, Array, Array]:
    """Return three arrays (a,): the reward of each arm per examined slot, and the two bounds of its interval. They are
    NaN for an arm without slots.

    With `is_bounded` the interval is Wilson's, with the number of slots divided by the design effect, which is the
    clustered variance over the variance of independent slots (at least 1). Otherwise the interval is from Student's
    t over groups of clusters. Source: Korn and Graubard 1998 (effective sample size of a proportion), with Wilson's
    interval for the exact interval.

    is_bounded: whether rewards are in [0, 1]."""
    pulls, reward_sum = sums.looks.sum(axis=0), sums.reward.sum(axis=0)
    n_groups = (sums.looks > 0).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = reward_sum / pulls
        # variance of the ratio, from the groups with pulls of the arm
        variance = np.square(sums.reward - rate * sums.looks).sum(axis=0) / pulls**2 * n_groups / (n_groups - 1)
        if not is_bounded:
            df, row = np.unique(np.maximum(n_groups - 1, 1), return_inverse=True)
            t = np.array([t_quantile((1 + level) / 2, number) for number in df.tolist()])
            t_half_width = t[row] * np.sqrt(variance)
            is_unknown = (n_groups < 2) | (variance == 0)
            return (
                rate,
                np.where(is_unknown, np.nan, rate - t_half_width),
                np.where(is_unknown, np.nan, rate + t_half_width),
            )
        # a rate per examined pull may exceed 1
        p = np.clip(rate, 0.0, 1.0)
        independent_variance = p * (1 - p) / pulls
        design_effect = np.where(independent_variance > 0, np.maximum(variance / independent_variance, 1.0), 1.0)
        n, z = pulls / np.where(np.isfinite(design_effect), design_effect, 1.0), NormalDist().inv_cdf((1 + level) / 2)
        centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        wilson_half_width = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    lower = np.where(p == 0, 0.0, np.maximum(centre - wilson_half_width, 0.0))
    return rate, lower, np.minimum(centre + wilson_half_width, np.maximum(rate, 1.0))
