"""Softmax of many rows of scores, and of the arms left at each position of their slates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rlrec.arrays import Array, Index


def softmax(score: Array, *, temperature: float = 1.0) -> Array:
    """Probabilities in proportion to exp(score / temperature), rows of (n, m); arms at -inf have none.

    temperature 0: the best score of a row, equal bests share."""
    away = score - score.max(axis=1, keepdims=True)
    if temperature == 0:
        weight = (away == 0).astype(away.dtype)
    else:
        weight = np.exp(away if temperature == 1 else away / temperature, out=away)
    weight /= weight.sum(axis=1, keepdims=True)
    return weight


def remaining(score: Array, slates: Index, *, temperature: float = 1.0) -> Iterator[Array]:
    """At each position of n slates, each with scores of its own, the softmax of the arms left there, (n, m).

    score (n, m) finite; slates (n, k) arms 0..m - 1. Source: as for `gumbel.PlackettLuceOrder`."""
    left, rows = np.array(score, np.float64), np.arange(len(slates))
    for position in range(slates.shape[1]):
        if position:
            left[rows, slates[:, position - 1]] = -np.inf
        yield softmax(left, temperature=temperature)
