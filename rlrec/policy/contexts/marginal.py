"""This module fits linear models of sparse contexts. Each weight is fitted separately, from three sums of its arm and
column.

Pairs of columns are not used, so the number of sums grows with the number of columns that occur, not with its
square. If a version starts from a log, all weights are first fitted to this log together, once. The sums are then
over the residuals of this fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np

from rlrec.arrays import Array, Ids, Index, look_up
from rlrec.policy.contexts.features import Sparse
from rlrec.records import Record


def column_sums(value: Array, *, pulls: Array, reward: Array) -> Array:
    """Return the sums that each entry x_j of a context adds to its column, (e, 3): the square of x_j, reward times x_j,
    and x_j, each weighted by pulls.

    value (e,): the entries x_j; pulls (e,), reward (e,): the pulls and the weighted reward of each entry's slot."""
    return np.column_stack([pulls * value**2, reward * value, pulls * value])


def weights(sums: Array, mean: Array, *, ridge: float, anchor: Array | float = 0.0) -> Array:
    """Return the weight of each column for each arm, (c, m), where each weight is fitted separately.

    sums (c, m, 3): the sums of `column_sums`; mean (m,): the mean of each arm; anchor (c, m): the weights of the
    anchor (a model that was fitted to a log). Sums and means are of rewards minus the prediction of the anchor.

    Source: own derivation (the ridge regression of reward minus mean on one column; as in naive Bayes, columns count as
    independent. If the anchor is the joint fit of all columns, the weights stay at the anchor)."""
    squares, response, total = np.moveaxis(sums, -1, 0)
    return (response - mean * total + anchor * squares) / (squares + ridge)


_ARM_BITS = 40  # of a key; the bits above them hold its column
MAX_STEPS, RESIDUAL_TOLERANCE = 200, 1e-10  # of conjugate gradients; they stop at this residual


class Anchor(Record, kw_only=False, eq=False):
    """An Anchor holds weights that were fitted together to a log.

    key (e,): the column and the arm of each weight in one number, ascending; value (e,): the weights."""

    key: Ids
    value: Array

    @classmethod
    def from_packed(cls, packed_rows: Iterable[tuple[int, bytes]]) -> Self:
        """Return the anchor from the packed weights of arms.

        packed_rows: the id of each arm, and the bytes that `fit` returned for it."""
        keys, values = [np.empty(0, np.int64)], [np.empty(0)]
        for arm, packed_row in packed_rows:
            n_columns = len(packed_row) // 12
            keys.append(np.frombuffer(packed_row, "<i4", n_columns).astype(np.int64) << _ARM_BITS | arm)
            values.append(np.frombuffer(packed_row, "<f8", n_columns, 4 * n_columns))
        key, value = np.concatenate(keys), np.concatenate(values)
        order = np.argsort(key)
        return cls(key[order], value[order])

    def weights_at(self, column: Index, arm: Ids) -> Array:
        """Return the weights of k pairs of a column and an arm, (k,). Pairs without a weight have 0."""
        index, has_weight = look_up(self.key, column.astype(np.int64) << _ARM_BITS | arm)
        weight = np.zeros(len(column))
        weight[has_weight] = self.value[index[has_weight]]
        return weight

    def predict_rewards(self, x: Sparse, context_index: Index, arm: Ids) -> Array:
        """Return how much more reward than the mean of its arm each slot is predicted to have, (n,).

        x: the contexts; context_index (n,): the row of each slot's context in x; arm (n,): the id of each slot's
        arm."""
        if not len(self.key):
            return np.zeros(len(arm))
        entries, row = x.entries(context_index)
        products = x.value[entries] * self.weights_at(x.column[entries], arm[row])
        return np.bincount(row, products, len(arm)).astype(np.float64)


def fit(x: Sparse, *, pulls: Array, reward: Array, ridge: float, intercept: bool) -> bytes:
    """Return the weights of one arm on all columns, packed into bytes. The weights are fitted together by ridge
    regression with conjugate gradients.

    x: the contexts of the arm's slots; pulls (n,): the number of pulls that each slot counts as; reward (n,): the
    reward of each slot times this number; ridge: the prior precision of each weight; intercept: whether the model
    also has an intercept, which is not returned. Source: Hestenes & Stiefel 1952."""
    columns = np.unique(x.column).astype(np.int64)
    x, total = x.select_columns(columns), float(pulls.sum())

    def product(vector: Array) -> Array:
        prediction = x.times(vector[:, None])[:, 0]
        centre = pulls @ prediction / total if intercept and total else 0.0
        return x.transposed_product((pulls * (prediction - centre))[:, None], len(columns))[:, 0] + ridge * vector

    centre = reward.sum() / total if intercept and total else 0.0
    residual = x.transposed_product((reward - pulls * centre)[:, None], len(columns))[:, 0]
    weights, direction, square = np.zeros(len(columns)), residual, float(residual @ residual)
    smallest_square = RESIDUAL_TOLERANCE**2 * square
    for _ in range(MAX_STEPS):
        if square <= smallest_square:
            break
        direction_image = product(direction)
        step = square / float(direction @ direction_image)
        weights, residual = weights + step * direction, residual - step * direction_image
        square, last_square = float(residual @ residual), square
        direction = residual + square / last_square * direction
    return columns.astype("<i4").tobytes() + weights.astype("<f8").tobytes()
