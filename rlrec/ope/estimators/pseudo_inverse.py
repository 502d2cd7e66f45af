"""This module computes the weights of a slate's reward, if the mean reward is a sum over slots. The weight w(slate) =
q' G^+ 1_slate is then a sum over slots as well.

1_slate has a 1 for every pair of a position and its arm; q is the mean of 1_slate under the target, and G = E_log 1
1' has the logger's probabilities of two such pairs. Source: Swaminathan et al. 2017; the closed form for uniform
logs: own derivation."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from rlrec.arrays import Array, Ids, Index

MAX_LISTED_SLATES = 5_000  # most ordered slates that are listed for one logger
MIN_EIGENVALUE_SHARE = 1e-10  # of G, relative to the largest one; smaller ones count as 0


def uniform_weights(at_position: Array, in_slate: Array, *, size: Ids, arms: Ids) -> Array:
    """Return the part of each slot in the weight of its slate, (n,). The logger must have drawn uniformly among all
    ordered slates without repeats.

    at_position, in_slate (n,): the target's probability of the slot's arm at its position, and at any position of
    the slate; size: the number of slots of the slate; arms: the number of eligible arms."""
    remaining_arms = np.maximum(arms - size, 1)
    constant = 1 / size - (arms - 1) / remaining_arms
    weight = constant + (arms - 1) * at_position + (arms - 1) / remaining_arms * in_slate
    return np.where(arms == size, (2 - arms) / size + (arms - 1) * at_position, weight)


def slates(size: int, arms: int) -> Index:
    """Return all s ordered slates of `size` different arms, (s, size). `arms` is the number of arms."""
    return np.array(list(permutations(range(arms), size)), np.intp)


def can_list(size: int, arms: int) -> bool:
    """Tell whether there are few enough ordered slates of this size to list all of them."""
    n_slates = np.prod(arms - np.arange(size, dtype=np.float64))
    return bool(n_slates <= MAX_LISTED_SLATES and size * arms <= MAX_LISTED_SLATES // 10)


def coefficients(support: Index, probability: Array, shares: Array) -> Array:
    """Return G^+ q, a number for every position and arm, (size, arms). The weight of a slate is the sum of these
    numbers over its slots.

    support (s, size): the slates that the logger may show; probability (s,): the probability of each slate; shares
    (size, arms): the target's probabilities of arms at positions."""
    size, arms = shares.shape
    cell = support + np.arange(size) * arms
    is_shown = np.zeros((len(support), size * arms))
    is_shown[np.arange(len(support))[:, None], cell] = 1.0
    pairs = (is_shown * probability[:, None]).T @ is_shown
    inverse = np.linalg.pinv(pairs, rcond=MIN_EIGENVALUE_SHARE, hermitian=True)
    return np.asarray(inverse @ shares.ravel()).reshape(size, arms)
