"""This module computes probabilities of slates from rows of scores. Each position draws by the softmax of the arms
left, with a floor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rlrec.arrays import Array, Flags, Index
from rlrec.policy.scores.floors import Floor, at_positions


def softmax(score: Array, *, temperature: float = 1.0) -> Array:
    """Return probabilities in proportion to exp(score / temperature), rows of (n, m); 0 for arms at -inf.

    With temperature 0 the best score of a row has all the probability, and equal bests share."""
    distance = score - score.max(axis=1, keepdims=True)
    if temperature == 0:
        weight = (distance == 0).astype(distance.dtype)
    else:
        weight = np.exp(distance if temperature == 1 else distance / temperature, out=distance)
    weight /= weight.sum(axis=1, keepdims=True)
    return weight


def remaining(score: Array, slates: Index, *, temperature: float = 1.0) -> Iterator[Array]:
    """Yield, at each position of n slates, each with separate scores, the softmax of the arms left there, (n, m).

    score (n, m) finite; slates (n, k) arms 0..m - 1. Source: as for `gumbel.PlackettLuceOrder`."""
    left_scores, rows = np.array(score, np.float64), np.arange(len(slates))
    for position in range(slates.shape[1]):
        if position:
            left_scores[rows, slates[:, position - 1]] = -np.inf
        yield softmax(left_scores, temperature=temperature)


def log_conditionals(
    score: Array, shown: Index, eligible: Flags | None = None, *, temperature: float, floor: Floor
) -> Array:
    """Return the log of the probability of each slot given those above, (n, k), from scores (n, m) of arms.

    shown (n, k) indices; eligible (n, m): the arms that each row may show, None: all.

    With temperature 0 the best score is shown, where equal bests share. Source: own derivation (Plackett-Luce with a
    floor: at every position the softmax of the arms left)."""
    rows, log_probability, n_eligible = np.arange(len(shown)), np.zeros(shown.shape), _n_eligible(score, eligible)
    floors = at_positions(floor, shown.shape[1])
    for position, probability in enumerate(remaining(_allowed(score, eligible), shown, temperature=temperature)):
        n_left, p_uniform = n_eligible - position, floors[position]
        p_shown = probability[rows, shown[:, position]]
        with np.errstate(divide="ignore"):  # the only arm left is certain
            log_probability[:, position] = np.where(
                n_left > 1, np.log(p_uniform / n_left + (1 - p_uniform) * p_shown), 0.0
            )
        if (n_left == 1).all():
            break
    return log_probability


def chi_squares(
    score: Array, reference: Array, shown: Index, eligible: Flags | None = None, *, temperature: float, floor: Floor
) -> Array:
    """Return the chi-squared divergence of each slot, given those above, from its distribution under reference scores,
    (n, k).

    That is the variance of the slot's weight over all arms that the position could show.

    score, reference (n, m): scores of the arms under both; shown, eligible: see `log_conditionals`."""
    sides = _slots(score, reference, shown, eligible, temperature=temperature, floor=floor)
    return np.stack([((p_new - p_old) ** 2 / np.maximum(p_old, 1e-300)).sum(axis=1) for p_new, p_old in sides], axis=1)


def divergences(
    score: Array, reference: Array, shown: Index, eligible: Flags | None = None, *, temperature: float, floor: Floor
) -> Array:
    """Return KL(reference || score) of each slot, given those above, (n, k) in nats. Arguments are as in `chi_squares`.

    The mean of its sum over slates drawn under the reference scores is the divergence of whole slates."""
    sides = _slots(score, reference, shown, eligible, temperature=temperature, floor=floor)
    logs = ((p_old, np.log(np.maximum(p_old, 1e-30)) - np.log(np.maximum(p_new, 1e-30))) for p_new, p_old in sides)
    return np.stack([np.einsum("nm,nm->n", p_old, log_ratio) for p_old, log_ratio in logs], axis=1)


def _slots(
    score: Array, reference: Array, shown: Index, eligible: Flags | None, *, temperature: float, floor: Floor
) -> Iterator[tuple[Array, Array]]:
    """Yield the distributions of each slot, given those above, under both scores, (n, m) each.

    Arms that are not left have the same probability on both sides, so that they contribute nothing to a divergence."""
    n_eligible, floors = _n_eligible(score, eligible), at_positions(floor, shown.shape[1])
    logits = (_allowed(score, eligible), _allowed(reference, eligible))
    sides = (remaining(allowed, shown, temperature=temperature) for allowed in logits)
    for position, (p_new, p_old) in enumerate(zip(*sides, strict=True)):
        p_uniform = floors[position] / np.maximum(n_eligible - position, 1)[:, None]
        yield p_uniform + (1 - floors[position]) * p_new, p_uniform + (1 - floors[position]) * p_old


def probabilities(
    score: Array, eligible: Flags | None = None, *, temperature: float, floor: Floor, position: int = 1
) -> Array:
    """Return the probability of each arm at a position, (n, m), from scores (n, m); rows sum to 1.

    eligible (n, m): the arms that each row may show there, None: all."""
    mixed = softmax(_allowed(score, eligible), temperature=temperature)
    if explored := float(at_positions(floor, position)[-1]):
        mixed *= 1 - explored
        p_uniform = (explored / _n_eligible(score, eligible)).astype(mixed.dtype)[:, None]
        mixed += p_uniform if eligible is None else p_uniform * eligible
    return mixed


def _n_eligible(score: Array, eligible: Flags | None) -> Index:
    """Return the number of arms that each row may show, (n,)."""
    return np.full(len(score), score.shape[1]) if eligible is None else eligible.sum(axis=1)


def _allowed(score: Array, eligible: Flags | None) -> Array:
    """Return the scores (n, m), with -inf for arms that are not eligible."""
    return score if eligible is None else np.where(eligible, score, -np.inf)
