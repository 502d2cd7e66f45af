"""Linear models of sparse contexts: each weight is fitted by itself, from three sums of its arm and column.

No pair of columns is looked at, so that the sums grow with the columns that came, not with their square."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.policy.features import Sparse


def column_sums(value: Array, *, pulls: Array, reward: Array) -> Array:
    """Sums that entries x_j of contexts add on their column, (e, 3): of x_j squared, reward x_j, and x_j; pulls and
    reward (e,) are those of the slot of each."""
    return np.column_stack([pulls * value**2, reward * value, pulls * value])


def weights(sums: Array, mean: Array, *, ridge: float) -> Array:
    """Weights of columns by themselves, (c, m), from their sums (c, m, 3) and the mean reward of each arm, (m,).

    Source: own derivation (the ridge regression of reward less mean on one column; as in naive Bayes, columns count as
    independent)."""
    squares, response, total = np.moveaxis(sums, -1, 0)
    return (response - mean * total) / (squares + ridge)


def scores(x: Sparse, columns: Index, weights: Array, mean: Array) -> Array:
    """Mean reward of m arms in n contexts, (n, m), by the weights (c, m) of their columns, ascending, and the arms'
    means without any."""
    return mean + x.among(columns).times(weights)
