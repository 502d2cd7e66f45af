"""Weights of a page reward that is a sum over slots: w(slate) = q' G^+ 1_slate.

1_slate has a 1 for every pair of a position and the arm there; q is its mean under the target, G = E_log 1 1' the
logger's probabilities of pairs. Source: Swaminathan et al. 2017; closed form of uniform logs: own derivation."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from rlrec.arrays import Array, Ids, Index

LISTED = 5_000  # ordered slates that are listed for one logger
SMALLEST_EIGENVALUE = 1e-10  # of G, relative to the largest: those below are 0


def of_uniform(here: Array, anywhere: Array, *, start: Ids, arms: Ids) -> Array:
    """Weights of slates (s,) that a logger drew uniformly among all ordered slates without repeats.

    here, anywhere (n,): the target's probability of a slot's arm at its position, and at any position of the slate.
    start (s + 1,): where each slate begins; arms (s,): how many were eligible."""
    if len(start) < 2:
        return np.empty(0)
    size = np.diff(start)
    same, common = (np.add.reduceat(column, start[:-1]) for column in (here, anywhere))
    left = np.maximum(arms - size, 1)
    weight = 1 - (arms - 1) * size / left + (arms - 1) * same + (arms - 1) / left * common
    return np.where(arms == size, 2 - arms + (arms - 1) * same, weight)


def slates(size: int, arms: int) -> Index:
    """All ordered slates without repeats, (s, size)."""
    return np.array(list(permutations(range(arms), size)), np.intp)


def few(size: int, arms: int) -> bool:
    """Whether so many arms make few enough slates to be listed."""
    listed = np.prod(arms - np.arange(size, dtype=np.float64))
    return bool(listed <= LISTED and size * arms <= LISTED // 10)


def coefficients(drawn: Index, probability: Array, shares: Array) -> Array:
    """G^+ q as a number for every position and arm, (size, arms): a slate's weight is the sum over its slots.

    drawn (s, size): slates the logger may show, with its probability (s,) of each; shares (size, arms): the target's
    probabilities of arms at positions."""
    size, arms = shares.shape
    cell = drawn + np.arange(size) * arms
    shown = np.zeros((len(drawn), size * arms))
    shown[np.arange(len(drawn))[:, None], cell] = 1.0
    pairs = (shown * probability[:, None]).T @ shown
    inverse = np.linalg.pinv(pairs, rcond=SMALLEST_EIGENVALUE, hermitian=True)
    return np.asarray(inverse @ shares.ravel()).reshape(size, arms)
