"""This module fits linear models of sparse contexts, in which each weight is fitted separately from three sums of its
arm and column.

Pairs of columns are not used, so the sums grow with the number of columns that occur, not with its square. Where a
log is given to start from, all weights are fitted to it together, once; the sums are then over the residuals of that
fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np

from rlrec.arrays import Array, Ids, Index, look_up
from rlrec.policy.contexts.features import Sparse
from rlrec.records import Record


def column_sums(value: Array, *, pulls: Array, reward: Array) -> Array:
    """Return the sums that entries x_j of contexts add to their column, (e, 3): of x_j squared, reward x_j, and x_j,
    weighted by pulls.

    pulls and reward (e,) are those of each entry's slot."""
    return np.column_stack([pulls * value**2, reward * value, pulls * value])


def weights(sums: Array, mean: Array, *, ridge: float, anchor: Array | float = 0.0) -> Array:
    """Return the weights of columns, each fitted separately, (c, m), from their sums (c, m, 3) and the mean of each
    arm, (m,).

    Sums and means are of rewards minus the prediction of the anchor (c, m).

    Source: own derivation (the ridge regression of reward minus mean on one column; as in naive Bayes, columns count as
    independent; around an anchor at which all columns are fitted together, it stays there)."""
    squares, response, total = np.moveaxis(sums, -1, 0)
    return (response - mean * total + anchor * squares) / (squares + ridge)


_ARM_BITS = 40  # of a key; the bits above them hold its column
STEPS, RESIDUAL_TOLERANCE = 200, 1e-10  # of conjugate gradients: the largest number; the residual at which they stop


class Anchor(Record, kw_only=False, eq=False):
    """An Anchor holds weights that were fitted to a log together.

    key (e,), ascending: column and arm; value (e,)."""

    key: Ids
    value: Array

    @classmethod
    def from_packed(cls, packed: Iterable[tuple[int, bytes]]) -> Self:
        """Return the anchor from packed weights (id and bytes of each arm), as `fit` returns them."""
        keys, values = [np.empty(0, np.int64)], [np.empty(0)]
        for arm, packed_row in packed:
            n_columns = len(packed_row) // 12
            keys.append(np.frombuffer(packed_row, "<i4", n_columns).astype(np.int64) << _ARM_BITS | arm)
            values.append(np.frombuffer(packed_row, "<f8", n_columns, 4 * n_columns))
        key, value = np.concatenate(keys), np.concatenate(values)
        order = np.argsort(key)
        return cls(key[order], value[order])

    def weights_at(self, column: Index, arm: Ids) -> Array:
        """Return the weights of k pairs of a column and an arm, (k,)."""
        index, has_weight = look_up(self.key, column.astype(np.int64) << _ARM_BITS | arm)
        weight = np.zeros(len(column))
        weight[has_weight] = self.value[index[has_weight]]
        return weight

    def predicted(self, x: Sparse, context_index: Index, arm: Ids) -> Array:
        """Return the predicted rewards of slots minus the means of their arms, (n,).

        context_index (n,): the row in x of each slot."""
        if not len(self.key):
            return np.zeros(len(arm))
        entries, row = x.entries(context_index)
        products = x.value[entries] * self.weights_at(x.column[entries], arm[row])
        return np.bincount(row, products, len(arm)).astype(np.float64)


def fit(x: Sparse, *, pulls: Array, reward: Array, ridge: float, intercept: bool) -> bytes:
    """Return the weights of one arm on all columns together, packed, by ridge regression with conjugate gradients.

    x: the contexts of the arm's slots; pulls (n,): how often each slot counts; reward (n,): its reward times that
    count. Source: Hestenes & Stiefel 1952."""
    columns = np.unique(x.column).astype(np.int64)
    x, total = x.select_columns(columns), float(pulls.sum())

    def product(vector: Array) -> Array:
        predicted = x.times(vector[:, None])[:, 0]
        centre = pulls @ predicted / total if intercept and total else 0.0
        return x.transposed_product((pulls * (predicted - centre))[:, None], len(columns))[:, 0] + ridge * vector

    centre = reward.sum() / total if intercept and total else 0.0
    residual = x.transposed_product((reward - pulls * centre)[:, None], len(columns))[:, 0]
    weights, direction, square = np.zeros(len(columns)), residual, float(residual @ residual)
    smallest_square = RESIDUAL_TOLERANCE**2 * square
    for _ in range(STEPS):
        if square <= smallest_square:
            break
        direction_image = product(direction)
        step = square / float(direction @ direction_image)
        weights, residual = weights + step * direction, residual - step * direction_image
        square, last_square = float(residual @ residual), square
        direction = residual + square / last_square * direction
    return columns.astype("<i4").tobytes() + weights.astype("<f8").tobytes()
