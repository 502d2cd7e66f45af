"""This module computes probabilities of slates where each slate has separate scores. Each position draws by the softmax
of the arms left, with a floor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rlrec.arrays import Array, Flags, Index
from rlrec.policy.scores.floors import Floor, at_positions


def softmax(score: Array, *, temperature: float = 1.0) -> Array:
    """Return probabilities in proportion to exp(score / temperature), (n, m). Rows sum to 1, and arms at -inf have 0.

    score (n, m): the score of each arm in each row. With temperature 0, the arms with the best score of a row have
    all the probability, in equal parts."""
    distance = score - score.max(axis=1, keepdims=True)
    if temperature == 0:
        weight = (distance == 0).astype(distance.dtype)
    else:
        weight = np.exp(distance if temperature == 1 else distance / temperature, out=distance)
    weight /= weight.sum(axis=1, keepdims=True)
    return weight


def remaining(score: Array, slates: Index, *, temperature: float = 1.0) -> Iterator[Array]:
    """Yield, at each position of n slates, the softmax of the scores of the arms left at this position, (n, m).

    score (n, m): the finite scores of each slate; slates (n, k): the arms shown, 0..m - 1. Source: own derivation
    (Plackett-Luce)."""
    left_scores, rows = np.array(score, np.float64), np.arange(len(slates))
    for position in range(slates.shape[1]):
        if position:
            left_scores[rows, slates[:, position - 1]] = -np.inf
        yield softmax(left_scores, temperature=temperature)


def log_conditionals(
    score: Array, slates: Index, eligible: Flags | None = None, *, temperature: float, floor: Floor
) -> Array:
    """Return the logarithm of the probability of each slot given the slots above, (n, k).

    score (n, m): the scores of each slate; slates (n, k): the arms shown, as indices; eligible (n, m): the arms
    that each slate may show (None: all arms). With temperature 0 the best score is shown, and arms with equal best
    scores are equally likely. Source: own derivation (Plackett-Luce with a floor: at every position the softmax of
    the arms left)."""
    rows, log_probability, n_eligible = np.arange(len(slates)), np.zeros(slates.shape), _n_eligible(score, eligible)
    floors = at_positions(floor, slates.shape[1])
    for position, probability in enumerate(remaining(_mask_scores(score, eligible), slates, temperature=temperature)):
        n_left, p_uniform = n_eligible - position, floors[position]
        p_shown = probability[rows, slates[:, position]]
        with np.errstate(divide="ignore"):  # the only arm left is certain
            log_probability[:, position] = np.where(
                n_left > 1, np.log(p_uniform / n_left + (1 - p_uniform) * p_shown), 0.0
            )
        if (n_left == 1).all():
            break
    return log_probability


def chi_squares(
    score: Array, reference: Array, slates: Index, eligible: Flags | None = None, *, temperature: float, floor: Floor
) -> Array:
    """Return, for each slot, the chi-squared divergence of its distribution under `score` from its distribution under
    `reference`, given the slots above, (n, k).

    The divergence is the variance, under `reference`, of the slot's weight over all arms that the position could
    show. score, reference (n, m): the two scores of each arm; slates (n, k): the arms shown, as indices; eligible
    (n, m): the arms that each slate may show (None: all arms)."""
    sides = _slots(score, reference, slates, eligible, temperature=temperature, floor=floor)
    return np.stack([((p_new - p_old) ** 2 / np.maximum(p_old, 1e-300)).sum(axis=1) for p_new, p_old in sides], axis=1)


def divergences(
    score: Array, reference: Array, slates: Index, eligible: Flags | None = None, *, temperature: float, floor: Floor
) -> Array:
    """Return the divergence KL(reference || score) of each slot, given the slots above, (n, k), in nats.

    The sum over the slots of a slate, averaged over slates drawn under the reference scores, is the divergence of
    whole slates. score, reference (n, m): the two scores of each arm; slates (n, k): the arms shown, as indices;
    eligible (n, m): the arms that each slate may show (None: all arms)."""
    sides = _slots(score, reference, slates, eligible, temperature=temperature, floor=floor)
    logs = ((p_old, np.log(np.maximum(p_old, 1e-30)) - np.log(np.maximum(p_new, 1e-30))) for p_new, p_old in sides)
    return np.stack([np.einsum("nm,nm->n", p_old, log_ratio) for p_old, log_ratio in logs], axis=1)


def _slots(
    score: Array, reference: Array, slates: Index, eligible: Flags | None, *, temperature: float, floor: Floor
) -> Iterator[tuple[Array, Array]]:
    """Yield two distributions of each slot, given the slots above, as arrays (n, m): under `score` and under
    `reference`.

    Arms that are not left have the same probability in both distributions, so that they contribute nothing to a
    divergence."""
    n_eligible, floors = _n_eligible(score, eligible), at_positions(floor, slates.shape[1])
    logits = (_mask_scores(score, eligible), _mask_scores(reference, eligible))
    sides = (remaining(scores, slates, temperature=temperature) for scores in logits)
    for position, (p_new, p_old) in enumerate(zip(*sides, strict=True)):
        p_uniform = floors[position] / np.maximum(n_eligible - position, 1)[:, None]
        yield p_uniform + (1 - floors[position]) * p_new, p_uniform + (1 - floors[position]) * p_old


def probabilities(
    score: Array, eligible: Flags | None = None, *, temperature: float, floor: Floor, position: int = 1
) -> Array:
    """Return the probability of each arm at a position, (n, m). Rows sum to 1.

    score (n, m): the scores of each row; eligible (n, m): the arms that each row may show at this position (None:
    all arms); position: the position, from 1, whose floor is used."""
    probability = softmax(_mask_scores(score, eligible), temperature=temperature)
    if p_floor := float(at_positions(floor, position)[-1]):
        probability *= 1 - p_floor
        p_uniform = (p_floor / _n_eligible(score, eligible)).astype(probability.dtype)[:, None]
        probability += p_uniform if eligible is None else p_uniform * eligible
    return probability


def _n_eligible(score: Array, eligible: Flags | None) -> Index:
    """Return the number of arms that each row may show, (n,).

    eligible (n, m): the arms that each row may show (None: all arms)."""
    return np.full(len(score), score.shape[1]) if eligible is None else eligible.sum(axis=1)


def _mask_scores(score: Array, eligible: Flags | None) -> Array:
    """Return the scores, (n, m), where arms that are not eligible have -inf."""
    return score if eligible is None else np.where(eligible, score, -np.inf)
