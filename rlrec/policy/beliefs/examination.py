"""This module computes the posteriors of arms where users examine a slot only with a probability that depends on the
position."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array

_MAX_STEPS = 100  # at most, of Newton's method; usually about 6
_TOLERANCE = 1e-13


def posterior(alpha: Array, beta: Array, missed_rewards: Array, examination: Array) -> tuple[Array, Array]:
    """Return alpha and beta of a Beta distribution that approximates the posterior of each arm's attraction, as two
    arrays (..., m). The attraction is the probability of a click on an examined slot.

    alpha (..., m): the rewards plus the prior's alpha; beta (..., m), above 0: the prior's beta; missed_rewards
    (..., m, k): the sum of 1 - reward over the slots at each position; examination (k,): the probability t_k that a
    slot is examined.

    An arm with attraction q is clicked at position k with probability t_k q, so the posterior density over logit q is
    q^alpha (1 - q)^beta prod_k (1 - t_k q)^n_k, with the missed rewards n_k. The Beta distribution has the same mode
    and the same curvature at the mode: a miss counts as t ((1 - q) / (1 - t q))^2. If every position is examined, the
    two distributions are the same. Source: own derivation (Laplace's method on the logit)."""
    n, shape = len(examination), np.broadcast_shapes(alpha.shape, missed_rewards.shape[:-1])
    alpha, beta = (np.broadcast_to(parameter, shape).ravel() for parameter in (alpha, beta))
    # position before arm, so that sums over positions are sums of rows
    curve = examination[:, None]
    weight = curve * np.maximum(missed_rewards.reshape(-1, n).T, 0.0)
    mode_odds, misses = alpha / (beta + weight.sum(axis=0)), beta + weight.sum(axis=0)
    arms = np.flatnonzero((weight * (1 - curve)).any(axis=0))
    if len(arms):
        mode_odds[arms], misses[arms] = _posterior_mode_odds(alpha[arms], beta[arms], weight[:, arms], 1 - curve)
    return (misses * mode_odds).reshape(shape), misses.reshape(shape)


def _posterior_mode_odds(alpha: Array, beta: Array, weight: Array, unexamined_share: Array) -> tuple[Array, Array]:
    """Return two arrays (m,): the odds o at the mode of each arm's posterior, and the weight of the misses at the mode.

    alpha, beta (m,): the parameters of `posterior`; weight (k, m): the misses at each position, times the
    probability of an examination; unexamined_share (k, 1): the probability u that a slot is not examined.

    The odds solve alpha = beta o + sum_k weight_k o / (1 + u_k o). The right side is concave in o, so Newton's method,
    started at 0, increases and never overshoots. The method stops for each arm separately, independent of the other
    arms."""
    odds, is_moving = np.zeros(len(alpha)), np.ones(len(alpha), np.bool_)
    for _ in range(_MAX_STEPS):
        examined_share = 1 / (1 + unexamined_share * odds)
        counted_misses = weight * examined_share
        slope = beta + (counted_misses * examined_share).sum(axis=0)
        step = (alpha - (beta + counted_misses.sum(axis=0)) * odds) / slope
        is_moving &= step > _TOLERANCE * odds
        if not is_moving.any():
            break
        odds = np.where(is_moving, odds + step, odds)
    return odds, slope
