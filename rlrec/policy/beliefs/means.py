"""This module computes intervals of the mean reward of each arm, for display."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from rlrec.arrays import Array
from rlrec.policy.beliefs.base import Belief, Policy
from rlrec.policy.scores.families.beta import BetaLogit
from rlrec.policy.scores.legendre import gauss

N_PANELS, N_NODES = 8, 16  # of a tail of a Beta distribution, enough for full precision
MAX_STEPS = 60
MAX_PAIRS = 10_000  # of parameters at a time: each takes a kB


def intervals(policy: Policy, belief: Belief, *, level: float = 0.95) -> tuple[Array, Array]:
    """Return the lower and the upper bound of each arm's mean reward, as two arrays (m,). The bounds are NaN where
    nothing is known.

    If the policy has a normal posterior, the bounds are those of this posterior. For rewards in [0, 1], an arm with
    a prior has the equal-tailed interval of its Beta posterior, and any other arm has Wilson's interval. Other
    rewards have the normal interval, from two pulls on. With a position curve, the Beta interval begins at 0 if the
    arm has had no reward and its posterior density is highest at 0, since many arms of long pages are hardly looked
    at. Source: Wilson 1927 (score interval).

    level: the probability that the interval contains the mean."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    if (deviation := policy.deviation(belief)) is not None:
        mean = policy.mean(belief)
        return mean - z * deviation, mean + z * deviation
    lower, upper = _wilson(belief, z)
    alpha, beta = policy.beta_posterior(belief)
    # a Beta fits only rewards in [0, 1]
    is_unit = belief.reward_squares <= belief.reward_sum + 1e-9 * belief.pulls
    has_posterior = is_unit & (belief.alpha + belief.beta > 0) & (alpha > 0) & (beta > 0)
    tail_probability = (1 - level) / 2
    safe_alpha, safe_beta = np.where(has_posterior, alpha, 1.0), np.where(has_posterior, beta, 1.0)
    beta_lower, beta_upper = beta_bounds(safe_alpha, safe_beta, tail_probability)
    if policy.examination:
        beta_lower = np.where((belief.reward_sum <= 0) & (safe_alpha <= 1), 0.0, beta_lower)
    return np.where(has_posterior, beta_lower, lower), np.where(has_posterior, beta_upper, upper)


def beta_bounds(alpha: Array, beta: Array, tail: float) -> tuple[Array, Array]:
    """Return the `tail` quantile and the 1 - `tail` quantile of each Beta variable.

    alpha, beta: the parameters, in one common shape, which is also the shape of the results. The relative error is
    1e-12 for parameters from 0.1 on and tails up to 0.1. Newton's method is used on the logit scale, where densities
    are log-concave. Each tail is integrated from its own end, where it is small. Source: own derivation."""
    pairs, index = np.unique(np.stack([alpha.ravel(), beta.ravel()]), axis=1, return_inverse=True)
    starts = range(0, pairs.shape[1] or 1, MAX_PAIRS)
    chunks = [_distinct_bounds(pairs[:, start : start + MAX_PAIRS], tail) for start in starts]
    lower, upper = np.hstack(chunks)[:, index.ravel()].reshape(2, *alpha.shape)
    return lower, upper


def _distinct_bounds(pairs: Array, tail: float) -> Array:
    """Return the two bounds of `beta_bounds` for n pairs of parameters, (2, n).

    pairs (2, n): alpha and beta of each pair."""
    density, (nodes, weights) = BetaLogit(pairs[0], pairs[1]), gauss(N_NODES)
    nodes = (np.arange(N_PANELS)[:, None] + (1 + nodes) / 2).ravel() / N_PANELS
    weights = np.tile(weights, N_PANELS) / (2 * N_PANELS)
    bounds = list[Array]()
    for sign, tail_distance in zip((-1.0, 1.0), density.tail_distances(), strict=True):
        distance = np.zeros(pairs.shape[1])  # from the mode
        for _ in range(MAX_STEPS):
            width = tail_distance - distance
            points = sign * np.column_stack([distance, distance[:, None] + width[:, None] * nodes])
            densities = np.exp(density.log_peak[:, None] - density.log_drop(points))
            step = (width * (densities[:, 1:] @ weights) - tail) / densities[:, 0]
            distance += np.minimum(step, width / 2)
            if (np.abs(step) <= 1e-13 * (1 + np.abs(distance))).all():
                break
        with np.errstate(over="ignore"):
            bounds.append(1 / (1 + np.exp(-density.mode - sign * distance)))
    return np.array(bounds)


def _wilson(belief: Belief, z: float) -> tuple[Array, Array]:
    reward, pulls = belief.reward_sum, belief.pulls
    n = np.where(pulls > 0, pulls, np.nan)
    mean, is_unit = reward / n, (reward >= 0) & (reward <= pulls) & (belief.reward_squares <= reward)
    with np.errstate(invalid="ignore"):
        centre = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
        spread = z / (1 + z**2 / n) * np.sqrt(np.maximum(mean * (1 - mean), 0) / n + z**2 / (4 * n**2))
        error = z * np.sqrt(np.maximum(belief.reward_squares / n - mean**2, 0) / np.where(n > 1, n - 1, np.nan))
    lower, upper = np.maximum(centre - spread, 0.0), np.minimum(centre + spread, 1.0)  # rounding passes over the ends
    return np.where(is_unit, lower, mean - error), np.where(is_unit, upper, mean + error)


def widen(mean: Array, lower: Array, upper: Array, error: Array) -> tuple[Array, Array, Array]:
    """Return the means, and their lower and upper bounds, widened by the error of the position curve. Bounds in [0, 1]
    stay in [0, 1].

    mean, lower, upper: the means and their bounds without this error, in one shape; error: the error of the
    logarithm of the curve."""
    widened_lower = mean - np.hypot(mean - lower, mean * -np.expm1(-error))
    widened_upper = mean + np.hypot(upper - mean, mean * np.expm1(error))
    return (
        mean,
        np.where(lower >= 0, np.maximum(widened_lower, 0.0), widened_lower),
        np.where(upper <= 1, np.minimum(widened_upper, 1.0), widened_upper),
    )
