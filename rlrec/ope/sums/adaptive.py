"""Functions here estimate the mean reward of each arm in a log whose policy learned while the log was written.

The sample mean of an arm is biased downwards in such a log: an arm with a bad start is given up, and its mean is
never corrected. Weights h / p remove this bias, where p is the propensity with which the arm was shown, and h =
sqrt(p) is known before the draw. This h keeps the weights of rarely shown arms bounded. What remains is the bias of
dividing by the sum of the weights (self-normalisation). Source: own derivation."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from rlrec.arrays import Array

N_TERMS = 5
MIN_PROPENSITY = 1e-200  # smaller propensities get the weight of this one, so that sums of squared weights stay finite
ROUNDING_ERROR = 1e-7  # a relative error as small as this counts as 0


def terms(reward: Array, p: Array, pulls: Array | float = 1.0) -> Array:
    """Return the terms that each row adds to the sums of its arm, (N_TERMS, n).

    reward (n,): the reward of each row; p (n,): the propensity of the arm shown; pulls: the number of pulls of the
    arm in each row, if means are per pull."""
    weight = 1 / np.sqrt(np.maximum(p, MIN_PROPENSITY))
    weighted_pulls, weighted_reward = weight * pulls, weight * reward
    return np.array(
        [
            weighted_pulls,
            weighted_reward,
            weighted_pulls * weighted_pulls,
            weighted_pulls * weighted_reward,
            weighted_reward * weighted_reward,
        ]
    )


def means(sums: Array, *, level: float = 0.95) -> tuple[Array, Array, Array]:
    """Return the weighted mean of each arm and its two normal bounds, three arrays (m,) in the unit of the reward. The
    squared error is sum w^2 (r - mean)^2 / (sum w)^2, by the delta method. The mean of an arm without rows is NaN; the
    bounds of an arm are NaN if all its rewards are equal.

    sums (N_TERMS, m): the sums of `terms` over the rows of each arm; level: the confidence of the bounds."""
    weight, reward, squares, cross, rewards = sums
    total_weight = np.where(weight > 0, weight, np.nan)
    mean = reward / total_weight
    error = np.sqrt(np.maximum(rewards - 2 * mean * cross + mean**2 * squares, 0.0)) / total_weight
    half_width = NormalDist().inv_cdf((1 + level) / 2) * np.where(error > ROUNDING_ERROR * np.abs(mean), error, np.nan)
    return mean, mean - half_width, mean + half_width
