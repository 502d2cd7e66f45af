"""This module has the estimators that use a reward model, and the reward models.

A model has, for every row, a value of the arm shown (`predicted`) and a mean over the target's arms (`expected`). An
additive model is fitted to the log, and cross-fitted by cluster: the model of a row is fitted without the row's
cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from rlrec.arrays import Array, Ids, distinct, offsets, piece_rows, run_starts
from rlrec.errors import InputError
from rlrec.ope.estimators.weighting import ChangedWeights
from rlrec.ope.sums.base import ImpressionEstimator, LogBatch, hash_bits, predictions_of, require_positive
from rlrec.records import Record, Sums

_SALT = 2
_PENALTIES = (1e5, 1e4, 1e3, 100.0, 10.0, 1.0)  # strongest first, which wins a tie
_NEGLIGIBLE_SHARE = 1e-12  # of a variance, relative to the squares whose difference it is; a smaller one counts as 0
_MAX_CELLS = 500_000  # predictions in memory at once, where each arm of each row is clipped
_BLOCK_ROWS = 8_192  # rows whose columns are in memory at once; they fit in the processor's cache


class Dm(ImpressionEstimator):
    """Average what the reward model q predicts for the target. The result is as wrong as the model, and has no valid
    interval."""

    columns: ClassVar[tuple[str, ...]] = ("expected_reward", "all_rows")
    uses_weights: ClassVar[bool] = False
    needs_model: ClassVar[bool] = True
    is_self_normalised: ClassVar[bool] = True
    intervals: ClassVar[tuple[str, ...]] = ()

    def terms(self, batch: LogBatch) -> Array:
        _, expectation = predictions_of(batch, self.name)
        return np.column_stack([expectation, np.ones(len(batch))])


class RidgeSums(Sums):
    """RidgeSums holds the normal equations of a ridge regression, for each of k cross-fitting folds. The block of the
    arms is diagonal, and stored as a vector. The sums of two batches can be added.

    count, reward (k, a): the number of rows and the sum of rewards of each arm; cross (k, a, d): for each arm, the
    sums of the d other columns (intercept, positions, context features); gram (k, d, d), xty (k, d): the products
    of the other columns with each other and with the reward; square (k,): the sum of squared rewards."""

    count: Array
    reward: Array
    cross: Array
    gram: Array
    xty: Array
    square: Array

    def total(self, folds: list[int]) -> RidgeSums:
        """Return the sum over the given folds. Its arrays have no axis of folds."""
        return RidgeSums(**{name: array[folds].sum(axis=0) for name, array in vars(self).items()})

    def error(self, effects: Array, beta: Array) -> float:
        """Return the sum of squared errors of a fitted model on these rows. These sums must be of a single fold.

        effects (a,), beta (d,): the coefficients of the arms and of the other columns."""
        linear = effects @ self.reward + beta @ self.xty
        square = effects**2 @ self.count + 2 * effects @ self.cross @ beta + beta @ self.gram @ beta
        return float(self.square - 2 * linear + square)


class Ridge(Record):
    """A Ridge object fits reward = intercept + arm + position + context x slope, by ridge regression.

    arms, positions, features: the numbers of arms, of positions and of features; ridge: the penalty of the effect of
    an arm or a position, in rows. The penalty of a feature applies after the feature is scaled to variance 1, so the
    unit of the feature does not matter; the intercept has no penalty. With None the penalty is the best of 1, 10,
    ..., 100,000, by cross-validation within the rows to which a model is fitted. folds: the number of cross-fitting
    folds into which clusters are divided; a fold is predicted by the model of the other folds."""

    arms: int
    positions: int = 1
    features: int = 0
    ridge: float | None = None
    folds: int = 5

    def __post_init__(self) -> None:
        is_penalised = self.ridge is None or self.ridge > 0
        if not is_penalised or self.folds < 3 or self.arms < 1 or self.positions < 1:
            raise InputError(f"{self} is no reward model", hint="ridge above 0, 3 folds or more, 1 arm or more")

    def fold(self, cluster: Ids) -> Ids:
        """Return the cross-fitting fold of each row, (n,), a number in 0..folds - 1. It is a hash of the row's
        cluster."""
        return (hash_bits(cluster, salt=_SALT) % np.uint64(self.folds)).astype(np.int64)

    def sums(
        self, reward: Array, arm: Ids, *, position: Ids, cluster: Ids, context: Array | None = None,
        code: Ids | None = None, weight: Array | None = None,
    ) -> RidgeSums:  # fmt: skip
        """Return the normal equations of one batch. Raises InputError if an arm, a position or the shape of the context
        is out of range.

        arm (n,): the arm of each row, from 0; position (n,): the position, from 1; context (m, features): dense
        numbers; code (n,): the index of each row's context, by default the index of the row; weight (n,): the weight
        of the squared error of each row, by default 1."""
        self._check_inputs(arm, position, context, code)
        weight = np.ones(len(reward)) if weight is None else weight
        fold = self.fold(cluster)
        cell = fold * self.arms + arm
        k, d, n_cells = self.folds, 1 + self.positions + self.features, self.folds * self.arms
        # counts and rewards of every (fold, arm), and the products of arms with the other columns
        count, rewards = _totals(cell, weight, n_cells), _totals(cell, weight * reward, n_cells)
        cross = np.zeros((n_cells, d))
        cross[:, 0] = count
        np.add.at(cross.reshape(-1), cell * d + position, weight)
        code = np.arange(len(reward)) if code is None else code
        if context is not None:
            _add_features(cross.reshape(-1), cell * d + 1 + self.positions, context, code, weight)
        sums = RidgeSums(
            count.reshape(k, -1), rewards.reshape(k, -1), cross.reshape(k, -1, d), np.zeros((k, d, d)),
            np.zeros((k, d)), _totals(fold, weight * reward**2, k),
        )  # fmt: skip
        # products of the other columns; equal rows are added up first, and rows are processed in portions
        first_rows, kind = distinct(fold, position, code) if context is not None else distinct(fold, position)
        count, rewards = (_totals(kind, column, len(first_rows)) for column in (weight, weight * reward))
        for start in range(0, len(first_rows), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            columns = self._columns(position, context, code, first_rows[block])
            ends = np.searchsorted(fold[first_rows[block]], np.arange(k + 1)).tolist()
            for number, rows in enumerate(map(slice, ends, ends[1:])):
                sums.gram[number] += (columns[rows] * count[block][rows, None]).T @ columns[rows]
                sums.xty[number] += rewards[block][rows] @ columns[rows]
        return sums

    def finish(self, sums: RidgeSums, *, reward_range: tuple[float, float] = (-np.inf, np.inf)) -> Model:
        """Return the fitted model. Its predictions are clipped to `reward_range`."""
        fold_fits = [self._fit(sums, fold) for fold in range(self.folds)]
        effects, coefficients = map(np.stack, zip(*fold_fits, strict=True))
        return Model(ridge=self, effects=effects, coefficients=coefficients, reward_range=reward_range)

    def _columns(self, position: Ids, context: Array | None, code: Ids, rows: Ids) -> Array:
        """Return the columns of the given rows, (n, d): the intercept, one column per position, and the context."""
        columns = np.zeros((len(rows), 1 + self.positions + self.features))
        columns[:, 0] = 1.0
        columns[np.arange(len(rows)), position[rows]] = 1.0
        if context is not None:
            columns[:, 1 + self.positions :] = context[code[rows]]
        return columns

    def _check_inputs(self, arm: Ids | None, position: Ids, context: Array | None, code: Ids | None) -> None:
        n = len(position)
        shape = (n, 0) if context is None else context.shape
        if shape != (n if code is None else shape[0], self.features):
            raise InputError(f"context has shape {shape}, the model expects {(n, self.features)}")
        if n and (int(position.min()) < 1 or int(position.max()) > self.positions):
            raise InputError(f"a position is outside 1..{self.positions} of the reward model")
        if arm is not None and n and (int(arm.min()) < 0 or int(arm.max()) >= self.arms):
            raise InputError(f"an arm is outside the {self.arms} arms of the reward model")

    def _fit(self, sums: RidgeSums, fold: int) -> tuple[Array, Array]:
        """Return the arm effects (a,) and the other coefficients (d,) that predict the rows of one fold. They are
        fitted to all other folds."""
        training_folds = [number for number in range(self.folds) if number != fold]
        training_sums = sums.total(training_folds)
        if self.ridge is not None:
            return self._solve(training_sums, (self.ridge,))[0]
        # the cross-validated error of every penalty
        errors = np.zeros(len(_PENALTIES))
        for left_out_fold in training_folds:
            test_sums = sums.total([left_out_fold])
            fits = self._solve(sums.total([number for number in training_folds if number != left_out_fold]), _PENALTIES)
            errors += [test_sums.error(*fit) for fit in fits]
        # the strongest penalty with the best error up to rounding, so that neither rounding nor the order of the log
        # decides
        is_best = np.isclose(errors, errors.min(), rtol=1e-9, atol=1e-12 * float(training_sums.square))
        return self._solve(training_sums, (_PENALTIES[int(np.argmax(is_best))],))[0]

    def _solve(self, sums: RidgeSums, penalties: Sequence[float]) -> list[tuple[Array, Array]]:
        """Return arm effects (a,) and the other coefficients (d,) for each penalty. The arms are eliminated first
        (Schur complement). Their block is diagonal, so ten thousand arms cost little."""
        if not sums.gram[0, 0]:
            return [(np.zeros(self.arms), np.zeros(len(sums.xty)))] * len(penalties)
        # the normal equations of the other columns, with the arms eliminated
        scale, left_sides, right_sides = np.diag(self._scale(sums.gram)), [], []
        for ridge in penalties:
            scaled_cross = sums.cross / (sums.count + ridge)[:, None]
            left_sides.append(sums.gram + ridge * scale - sums.cross.T @ scaled_cross)
            right_sides.append(sums.xty - scaled_cross.T @ sums.reward)
        solutions = np.linalg.solve(np.stack(left_sides), np.stack(right_sides)[..., None])[..., 0].astype(np.float64)
        # the arms, given the other columns
        return [
            ((sums.reward - sums.cross @ coefficients) / (sums.count + ridge), coefficients)
            for ridge, coefficients in zip(penalties, solutions, strict=True)
        ]

    def _scale(self, gram: Array) -> Array:
        """Return the factor of the penalty of each column, (d,): 0 for the intercept, 1 for a position, and the
        variance of a feature. `gram` has the products of the columns."""
        mean = gram[0] / gram[0, 0]
        square = np.diag(gram) / gram[0, 0]
        spread, square = (column[1 + self.positions :] for column in (square - mean**2, square))
        is_varying = spread > _NEGLIGIBLE_SHARE * square  # the variance of a constant feature is a rounding error of 0
        return np.concatenate([np.zeros(1), np.ones(self.positions), np.where(is_varying, spread, 1.0)])


def _add_features(sums: Array, first_index: Ids, context: Array, code: Ids, weight: Array) -> None:
    """Add the nonzero features of each row to the sums in place. The features of a row begin at index `first_index`
    (n,), and its context has the index `code` (n,)."""
    index, feature = np.nonzero(context)
    values, start = context[index, feature], offsets(np.bincount(index, minlength=len(context)))
    for begin in range(0, len(code), _BLOCK_ROWS):
        block = slice(begin, begin + _BLOCK_ROWS)
        length = np.diff(start)[code[block]]
        entry = piece_rows(start[code[block]], length)
        sum_index = np.repeat(first_index[block], length) + feature[entry]
        np.add.at(sums, sum_index, np.repeat(weight[block], length) * values[entry])


def _totals(index: Ids, values: Array, size: int) -> Array:
    return np.bincount(index, weights=values, minlength=size).astype(np.float64)


class Model(Record, eq=False):
    """A Model predicts rewards by a fitted `Ridge`: q(row, arm) = clip(effects[fold, arm] + offset(row)).

    effects (k, a): the effect of each arm, for each of k folds; coefficients (k, d): the intercept, effects of
    positions, and slopes; reward_range: the range to which predictions are clipped."""

    ridge: Ridge
    effects: Array
    coefficients: Array
    reward_range: tuple[float, float]

    def offset(self, fold: Ids, position: Ids, *, context: Array | None = None, code: Ids | None = None) -> Array:
        """Return the value of each of n rows without the effect of its arm, (n,).

        fold (n,): the cross-fitting fold of each row; position (n,): the position, from 1; context (m, features):
        dense numbers; code (n,): the index of each row's context, by default the index of the row."""
        self.ridge._check_inputs(None, position, context, code)
        first_slope = 1 + self.ridge.positions
        offset = self.coefficients[fold, 0] + self.coefficients[fold, position]
        if context is not None:
            slopes = context @ self.coefficients[:, first_slope:].T
            offset += slopes[np.arange(len(fold)) if code is None else code, fold]
        return offset

    def predict(self, arm: Ids, *, fold: Ids, offset: Array) -> Array:
        """Return the predicted reward of the arm shown, (n,).

        fold (n,): the cross-fitting fold of each row; offset (n,): the result of `offset`."""
        return np.clip(self.effects[fold, arm] + offset, *self.reward_range)

    def predict_mean(self, target: Array, *, case: Ids, fold: Ids, offset: Array) -> Array:
        """Return the mean predicted reward under the target, (n,). Values are clipped arm by arm, as in `predict`,
        since dr would else be biased.

        target (m, a): the target's probabilities in m distinct cases; case (n,): the index of each row's case; fold
        (n,): the cross-fitting fold of each row; offset (n,): the result of `offset`."""
        # no value leaves the range: sum over arms of pi (effect + offset)
        range_low, range_high = self.reward_range
        lowest_effect, highest_effect = self.effects.min(), self.effects.max()
        if not len(offset) or (
            range_low <= lowest_effect + offset.min() and highest_effect + offset.max() <= range_high
        ):
            target_sum = target.sum(axis=1)
            return (target @ self.effects.T)[case, fold] + target_sum[case] * offset
        # else clip every arm's value, once for equal rows
        first_rows, kind = distinct(case, fold, offset.view(np.int64))
        return self._clipped_means(target, case[first_rows], fold[first_rows], offset[first_rows])[kind]

    def _clipped_means(self, target: Array, case: Ids, fold: Ids, offset: Array) -> Array:
        """Return the mean of the clipped values under the target, (n,). Rows must be in order of case and fold."""
        means = np.empty(len(offset))
        starts = run_starts(case, fold).tolist()
        size = max(1, _MAX_CELLS // self.effects.shape[1])
        for start, end in pairwise([*starts, len(offset)]):
            pi, effects = target[case[start]], self.effects[fold[start]]
            for low in range(start, end, size):
                value = offset[low : min(low + size, end), None] + effects
                means[low : min(low + size, end)] = np.clip(value, *self.reward_range, out=value) @ pi
        return means


class RewardTable(Record, kw_only=False, eq=False):
    """A RewardTable is a reward model that the user gives. It has a value for each arm and each of v values of a
    context field, (v, a); v is 1 without a context field."""

    values: Array

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or not np.isfinite(self.values).all():
            raise InputError("a reward model needs one finite number per arm (and value)")

    def predict(self, arm: Ids, *, value: Ids) -> Array:
        """Return the predicted reward of the arm shown, (n,).

        value (n,): the index of the row of the table that applies."""
        return self.values[value, arm]

    def predict_mean(self, target: Array, *, case: Ids, value: Ids) -> Array:
        """Return the mean predicted reward under the target, (n,).

        target (m, a): the target's probabilities in m distinct cases; case (n,): the index of each row's case; value
        (n,): the index of the row of the table that applies."""
        return (target @ self.values.T)[case, value]


class Dr(ImpressionEstimator):
    """Average E_target q + weight x (reward - q). The result is unbiased if the propensities are right, even if the
    model q is poor, as long as q was not fitted on the same cluster. The better the model, the less it varies."""

    needs_model: ClassVar[bool] = True
    widens_interval: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[str, ...]:
        return (repr(self), "rows")

    def weight_used(self, weight: Array) -> Array:
        """Return the weights that the estimator uses in place of the given weights, (n,)."""
        return weight

    def terms(self, batch: LogBatch) -> Array:
        prediction, expectation = predictions_of(batch, self.name)
        robust = expectation + self.weight_used(batch.weight) * (batch.reward - prediction)
        return np.column_stack([np.where(batch.is_usable, robust, 0.0), batch.is_usable])


@dataclass(frozen=True, kw_only=True)
class SwitchDr(ChangedWeights, Dr):
    """Use dr where weights are at most tau, and the reward model alone where they are larger. The result varies less
    than dr but is biased; its interval includes the bias.

    tau: the largest weight used, above 0. Source: SWITCH of Wang, Agarwal & Dudik 2017, in the form of Open Bandit
    Pipeline's documentation of estimators."""

    unbiased_type: ClassVar[type[ImpressionEstimator]] = Dr
    tau: float = 20.0

    def __post_init__(self) -> None:
        require_positive("tau of switch-dr", self.tau, example="switch-dr:20")

    def weight_used(self, weight: Array) -> Array:
        return np.where(weight <= self.tau, weight, 0.0)


@dataclass(frozen=True, kw_only=True)
class Dros(ChangedWeights, Dr):
    """Use dr with each weight w replaced by lambda w / (w^2 + lambda), which is at most sqrt(lambda) / 2. The result
    varies less than dr but is biased; its interval includes the bias.

    shrinkage: lambda, above 0; a weight of its square root is halved. Source: optimistic shrinkage of Su,
    Dimakopoulou, Krishnamurthy & Dudik 2020, in the form of Open Bandit Pipeline's documentation of estimators."""

    unbiased_type: ClassVar[type[ImpressionEstimator]] = Dr
    shrinkage: float = 400.0

    def __post_init__(self) -> None:
        require_positive("lambda of dros", self.shrinkage, example="dros:400")

    def weight_used(self, weight: Array) -> Array:
        with np.errstate(over="ignore"):  # a weight of 1e300 is used as 0
            return weight / (1 + weight * (weight / self.shrinkage))


class Sndr(ImpressionEstimator):
    """Use dr with its weighted errors divided by the sum of the weights. The result is slightly biased in small logs;
    it varies less than dr if a few weights are large.

    The estimate is the mean of E_target q + sum of weight x (reward - q) over the sum of weights. A bad model can
    take it out of the reward's range, so its bounds are not cut there. Source: the division by the sum of weights is
    that of Swaminathan & Joachims 2015, applied to the errors."""

    columns: ClassVar[tuple[str, ...]] = (repr(Dr()), "rows", "weighable_expected", "weighted_error", "weight")
    needs_model: ClassVar[bool] = True
    widens_interval: ClassVar[bool] = True

    def terms(self, batch: LogBatch) -> Array:
        prediction, expectation = predictions_of(batch, self.name)
        expectation, error = np.where(batch.is_usable, expectation, 0.0), batch.weight * (batch.reward - prediction)
        return np.column_stack([expectation + error, batch.is_usable, expectation, error, batch.weight])

    def value(self, mean: Array) -> Array:
        _, rows, expectation, error, weight = np.moveaxis(mean, -1, 0)
        return expectation / rows + error / weight

    def gradient(self, mean: Array) -> Array:
        _, rows, expectation, error, weight = np.moveaxis(mean, -1, 0)
        by_column = [0.0 * rows, -expectation / rows**2, 1 / rows, 1 / weight, -error / weight**2]
        return np.stack(by_column, axis=-1)
