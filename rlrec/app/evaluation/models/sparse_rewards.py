"""A reward model on sparse contexts: an arm's weight of each hashed column, beside the effects of arm and position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rlrec.app.evaluation.rows.contexts import ContextTable
from rlrec.app.evaluation.rows.log_rows import ImpressionRows
from rlrec.arrays import Array, Ids, piece_rows, run_starts
from rlrec.ope.estimators.direct import Model, RidgeSums
from rlrec.policy.contexts import marginal

PENALTY = 100.0  # of a weight, in squares of its column: words that come together each count in full
CELLS = 1 << 21  # values of arms that are held at a time


@dataclass(frozen=True, eq=False)
class ContextMoments:
    """Sums on pairs of a column and an arm, by cross-fitting fold: they add up, and none is held for pairs that did not
    come.

    key (e,), ascending: column x arms + arm; sums (e, folds, 3): of `marginal.column_sums`."""

    key: Ids
    sums: Array

    def __add__(self, other: ContextMoments) -> ContextMoments:
        key, sums = np.concatenate([self.key, other.key]), np.concatenate([self.sums, other.sums])
        order = np.argsort(key, kind="stable")
        first = run_starts(key[order])
        added = np.add.reduceat(sums[order], first, axis=0) if len(first) else sums
        return ContextMoments(key[order][first], added)

    @classmethod
    def from_rows(
        cls, contexts: ContextTable, rows: ImpressionRows, *, arm: Ids, arms: int, fold: Ids, folds: int, pulls: Array,
        reward: Array,
    ) -> ContextMoments:  # fmt: skip
        """The sums of rows, with columns (n,): the index of each one's arm among `arms`, its fold, its weight and its
        weighed reward."""
        x = contexts.sparse
        entries, row = x.entries(rows.slots["context"])
        added = marginal.column_sums(x.value[entries], pulls=pulls[row], reward=reward[row])
        key, pair = np.unique(x.column[entries].astype(np.int64) * arms + arm[row], return_inverse=True)
        cell, sums = pair.reshape(-1) * folds + fold[row], np.empty((len(key) * folds, 3))
        for column, values in enumerate(added.T):
            sums[:, column] = np.bincount(cell, values, len(sums))
        return cls(key, sums.reshape(len(key), folds, 3))


@dataclass(frozen=True, eq=False)
class SparseModel:
    """A fitted model: q(row, arm) = clip(effects[fold, arm] + offset(row) + weights[fold, arm] x), by arms as the
    moments number them."""

    model: Model
    moments: ContextMoments
    mean: Array  # (folds, a): rewards of arms in the other folds

    @classmethod
    def from_sums(cls, model: Model, sums: RidgeSums, moments: ContextMoments) -> SparseModel:
        count, reward = (column.sum(axis=0) - column for column in (sums.count, sums.reward))
        mean = np.divide(reward, count, out=np.zeros_like(reward), where=count > 0)
        return cls(model, moments, mean)

    @cached_property
    def weights(self) -> Array:
        """Weight of each pair of column and arm in each fold, from the sums of the others, (folds, e)."""
        training_sums = self.moments.sums.sum(axis=1, keepdims=True) - self.moments.sums
        mean = self.mean[:, self.moments.key % self.mean.shape[1]]
        return np.stack([
            marginal.weights(training_sums[:, fold, None], mean[fold, :, None], ridge=PENALTY)[:, 0]
            for fold in range(len(mean))
        ])  # fmt: skip

    def column_weights(self, columns: Ids, fold: int) -> Array:
        """Weights of some columns, ascending, (c, a)."""
        arms = self.mean.shape[1]
        low, high = np.searchsorted(self.moments.key, [columns * arms, (columns + 1) * arms])
        count, entry = high - low, piece_rows(low, high - low)
        weights = np.zeros((len(columns), arms))
        column = np.repeat(np.arange(len(columns)), count)
        weights[column, self.moments.key[entry] % arms] = self.weights[fold, entry]
        return weights


class SparseValues:
    """Values of a batch by a `SparseModel`, as `ModelValues`. predicted (n,): of the arm shown."""

    def __init__(
        self, fitted: SparseModel, contexts: ContextTable, rows: ImpressionRows, *, arm: Ids, rank: Ids, fold: Ids,
        offset: Array, looks: Array | None,
    ) -> None:  # fmt: skip
        """arm (n,): of each row, as the moments number it; rank (a,): that number of each arm of the evaluation;
        fold, offset, looks (n,): as in `ModelValues`."""
        self._fitted, self._x, self._code = fitted, contexts.sparse, rows.slots["context"]
        self._rank, self._fold, self._offset, self._looks = rank, fold, offset, looks
        self.predicted = np.empty(len(rows))
        for portion, values in self._values(np.arange(len(rows))):
            self.predicted[portion] = values[np.arange(len(portion)), arm[portion]]
        if looks is not None:
            self.predicted *= looks

    def expected(self, shares: Array, *, case: Ids, rows: Ids) -> Array:
        """Mean of some rows of the batch under the shares (m, arms) of the case each has."""
        mean = np.empty(len(rows))
        for portion, values in self._values(rows):
            mean[portion] = np.einsum("na,na->n", values[:, self._rank], shares[case[portion]])
        return mean if self._looks is None else self._looks[rows] * mean

    def _values(self, rows: Ids) -> Iterator[tuple[Ids, Array]]:
        """The clipped values of all arms in some rows, (p, a), some at a time, and which of the rows these are."""
        model = self._fitted.model
        for fold in np.unique(self._fold[rows]).tolist():
            fold_rows = np.flatnonzero(self._fold[rows] == fold)
            x = self._x[self._code[rows[fold_rows]]]
            columns = np.unique(x.column).astype(np.int64)
            x, weights = x.select_columns(columns), self._fitted.column_weights(columns, fold)
            step = max(1, CELLS // weights.shape[1])
            for start in range(0, len(fold_rows), step):
                portion = fold_rows[start : start + step]
                values = x[start : start + step].times(weights) + model.effects[fold]
                yield portion, np.clip(values + self._offset[rows[portion], None], *model.reward_range)
