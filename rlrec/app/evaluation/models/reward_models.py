"""This module has the reward models of an evaluation. A reward model is a table, or is fitted to the log itself. The
coefficients that predict a row are then fitted without the rows of the same cluster.

The module also has a model of returns. A return is the discounted sum of the rewards of a visit from a decision on.
The model predicts the return from the state and from the arm on top of the slate.

A model reduces the noise of estimates. A wrong model causes no bias."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from rlrec.app.evaluation.rows.contexts import ContextTable
from rlrec.app.evaluation.rows.log_rows import ArmTable, ImpressionRows
from rlrec.app.inputs import lookup
from rlrec.app.inputs.decision_tables import DecisionTable
from rlrec.app.log import reward_log
from rlrec.arrays import Array, Ids, Index, piece_rows, run_starts, take
from rlrec.errors import InputError, suggest
from rlrec.ope.estimators.direct import Model, RewardTable, Ridge, RidgeSums
from rlrec.ope.units.fold import PositionCurve
from rlrec.policy.beliefs.reward import bounds
from rlrec.policy.contexts import features, marginal
from rlrec.policy.gradients import returns
from rlrec.policy.gradients.gradient import MEMORY_FEATURES
from rlrec.records import Record, Reward, Sums
from rlrec.store import Unit
from rlrec.times import DAY_US

# of a weight, in squared values of its column: words that occur together each count in full
SPARSE_PENALTY = 100.0
MAX_SPARSE_CELLS = 1 << 21  # values of arms in memory at a time


class ContextMoments(Record, kw_only=False, eq=False):
    """This record has sums for each pair of a context column and an arm that occur together, by the fold of
    cross-fitting. Two such records can be added.

    key (e,): a number for each of e pairs, which is column * number of arms + arm, ascending; sums (e, folds, 3):
    the sums of each pair in each fold, as `marginal.column_sums` returns them."""

    key: Ids
    sums: Array

    def __add__(self, other: ContextMoments) -> ContextMoments:
        key, sums = np.concatenate([self.key, other.key]), np.concatenate([self.sums, other.sums])
        order = np.argsort(key, kind="stable")
        first_entries = run_starts(key[order])
        sums_by_pair = np.add.reduceat(sums[order], first_entries, axis=0) if len(first_entries) else sums
        return ContextMoments(key[order][first_entries], sums_by_pair)

    @classmethod
    def from_rows(
        cls, contexts: ContextTable, rows: ImpressionRows, *, arm: Ids, arms: int, fold: Ids, folds: int, pulls: Array,
        reward: Array,
    ) -> ContextMoments:  # fmt: skip
        """Sum n rows by column of their contexts, arm and fold.

        arm (n,): the index of each row's arm; arms: the number of arms; fold (n,): the fold of each row; folds: the
        number of folds; pulls (n,): the weight of each row; reward (n,): the weighted reward of each row."""
        x = contexts.sparse_features
        entries, row = x.entries(rows.slots["context"])
        sums_by_pair = marginal.column_sums(x.value[entries], pulls=pulls[row], reward=reward[row])
        key, pair = np.unique(x.column[entries].astype(np.int64) * arms + arm[row], return_inverse=True)
        cell, sums = pair.reshape(-1) * folds + fold[row], np.empty((len(key) * folds, 3))
        for column, values in enumerate(sums_by_pair.T):
            sums[:, column] = np.bincount(cell, values, len(sums))
        return cls(key, sums.reshape(len(key), folds, 3))


class SparseModel(Record, kw_only=False, eq=False):
    """This fitted model predicts rewards from sparse contexts x, with a weight for each arm and column: the reward of
    an arm in a row is clip(effects[fold, arm] + offset(row) + weights[fold, arm] x). Arms have the same numbers as in
    `moments`."""

    model: Model
    moments: ContextMoments
    mean: Array  # (folds, a): mean rewards of arms in the other folds

    @classmethod
    def from_sums(cls, model: Model, sums: RidgeSums, moments: ContextMoments) -> SparseModel:
        count, reward = (column.sum(axis=0) - column for column in (sums.count, sums.reward))
        mean = np.divide(reward, count, out=np.zeros_like(reward), where=count > 0)
        return cls(model, moments, mean)

    @cached_property
    def weights(self) -> Array:
        """Return the weight of each pair of a column and an arm in each fold, (folds, e). The weights of a fold are
        computed from the sums of the other folds."""
        training_sums = self.moments.sums.sum(axis=1, keepdims=True) - self.moments.sums
        mean = self.mean[:, self.moments.key % self.mean.shape[1]]
        return np.stack([
            marginal.weights(training_sums[:, fold, None], mean[fold, :, None], ridge=SPARSE_PENALTY)[:, 0]
            for fold in range(len(mean))
        ])  # fmt: skip

    def column_weights(self, columns: Ids, fold: int) -> Array:
        """Return the weight of every arm in each of c given columns, (c, arms).

        columns (c,): the numbers of the columns, ascending; fold: the fold of cross-fitting."""
        arms = self.mean.shape[1]
        begin, end = np.searchsorted(self.moments.key, [columns * arms, (columns + 1) * arms])
        count, entry = end - begin, piece_rows(begin, end - begin)
        weights = np.zeros((len(columns), arms))
        column = np.repeat(np.arange(len(columns)), count)
        weights[column, self.moments.key[entry] % arms] = self.weights[fold, entry]
        return weights


class ModelValues(ABC):
    """A ModelValues object has the rewards (values) that a model predicts for the n rows of a batch.

    predictions (n,): the value of the arm shown in each row; examination (n,): the examination of the position of
    each row, or None. Examination is the probability that a slot is looked at, relative to position 1. With
    `examination`, the model itself predicts the value of an arm that is looked at, which is multiplied by the
    examination."""

    def __init__(self, predictions: Array, examination: Array | None) -> None:
        self.predictions: Array = predictions if examination is None else examination * predictions
        self._examination = examination

    def means(self, shares: Array, *, case: Ids, rows: Ids) -> Array:
        """Return the mean value of each given row if its arm is drawn with the given probabilities.

        shares (cases, arms): the probability of each arm in each case; case: the case of each row; rows: the indices
        of the rows in the batch."""
        mean = self.look_means(shares, case=case, rows=rows)
        return mean if self._examination is None else self._examination[rows] * mean

    @abstractmethod
    def look_means(self, shares: Array, *, case: Ids, rows: Ids) -> Array:
        """Return the mean value of each given row as `means` does, but for a slot that is looked at with certainty.

        shares (cases, arms): the probability of each arm in each case; case: the case of each row; rows: the indices
        of the rows in the batch."""


class SparseValues(ModelValues):
    """A SparseValues object has the rewards that a `SparseModel` predicts for the rows of a batch."""

    def __init__(
        self, model: SparseModel, contexts: ContextTable, rows: ImpressionRows, *, arm: Ids, rank: Ids, fold: Ids,
        offset: Array, examination: Array | None,
    ) -> None:  # fmt: skip
        """Predict the value of the arm shown in each of n rows.

        arm (n,): the number of each row's arm in `moments`; rank (arms,): the number in `moments` of each arm of the
        evaluation; fold (n,): the fold of each row; offset (n,): the part of each row's value that is the same for
        all arms; examination (n,): the examination of each row's position, or None."""
        self._model, self._x, self._code = model, contexts.sparse_features, rows.slots["context"]
        self._rank, self._fold, self._offset = rank, fold, offset
        predictions = np.empty(len(rows))
        for portion, values in self._values(np.arange(len(rows))):
            predictions[portion] = values[np.arange(len(portion)), arm[portion]]
        super().__init__(predictions, examination)

    def look_means(self, shares: Array, *, case: Ids, rows: Ids) -> Array:
        mean = np.empty(len(rows))
        for portion, values in self._values(rows):
            mean[portion] = np.einsum("na,na->n", values[:, self._rank], shares[case[portion]])
        return mean

    def _values(self, rows: Ids) -> Iterator[tuple[Ids, Array]]:
        """Yield the values of all arms in the given rows, in portions. A portion has the indices of p rows within
        `rows`, and the clipped value of every arm in each of these rows, (p, arms)."""
        model = self._model.model
        for fold in np.unique(self._fold[rows]).tolist():
            fold_rows = np.flatnonzero(self._fold[rows] == fold)
            context_features = self._x[self._code[rows[fold_rows]]]
            columns = np.unique(context_features.column).astype(np.int64)
            context_features, weights = (
                context_features.select_columns(columns),
                self._model.column_weights(columns, fold),
            )
            step = max(1, MAX_SPARSE_CELLS // weights.shape[1])
            for start in range(0, len(fold_rows), step):
                portion = fold_rows[start : start + step]
                values = context_features[start : start + step].times(weights) + model.effects[fold]
                yield portion, np.clip(values + self._offset[rows[portion], None], *model.reward_range)


WILDCARD = "*"  # in a table: stands for all arms, or all values, without a row of their own
MAX_POSITIONS = 32  # positions with an effect of their own; all lower positions share the last one's


class DenseValues(ModelValues):
    """A DenseValues object has the rewards that a model without sparse contexts predicts for the rows of a batch."""

    def __init__(
        self, model: Model | RewardTable | DecisionRewards, arm: Ids, *, examination: Array | None, **columns: Any
    ) -> None:
        """Predict the value of the arm shown in each of n rows.

        arm (n,): the index of each row's arm; examination (n,): the examination of each row's position, or None;
        columns: further arrays (n,) that the model needs, by name."""
        super().__init__(model.predict(arm, **columns), examination)
        self._model, self._columns = model, columns

    def look_means(self, shares: Array, *, case: Ids, rows: Ids) -> Array:
        return self._model.predict_mean(shares, case=case, **take(self._columns, rows))


def row_examination(rows: ImpressionRows, examination: Sequence[float]) -> Array | None:
    """Return the examination of the position of each row, (n,), or None if `examination` is empty.

    examination: the position curve, which is the examination of each position from 1 on. Positions below the end of
    the curve have its last value."""
    if not examination:
        return None
    return np.array(examination)[np.minimum(rows.slots["position"], len(examination)) - 1]


class RewardModelFit(Record, eq=False):
    """A RewardModelFit sums the normal equations of a reward model over the log, batch by batch. The sums are in order
    of the arms' keys.

    positions: the length of the longest slate; examination: a position curve, or empty. With a curve, the value of
    an arm is multiplied by the examination of the position, and positions have no effects of their own. columns: the
    number of columns into which contexts are hashed if each arm has a weight for each column, else 0."""

    arms: ArmTable
    positions: int
    examination: tuple[float, ...] = ()
    columns: int = 0

    @cached_property
    def ridge(self) -> Ridge:
        """Return the ridge regression on arm, position and hashed context. The context is left out if each arm has
        weights for the columns of the context."""
        n_positions = 1 if self.examination else max(1, min(self.positions, MAX_POSITIONS))
        width = 0 if self.columns else features.N_COLUMNS
        return Ridge(arms=max(1, len(self.arms)), positions=n_positions, features=width)

    def sums(self, rows: ImpressionRows, contexts: ContextTable) -> RewardModelSums:
        look_weight = row_examination(rows, self.examination)  # (r - look q)^2 = look^2 (r / look - q)^2
        weight = None if look_weight is None else look_weight**2
        if (count := reward_log.sampling_counts(rows.slots)) is not None:
            weight = count if weight is None else weight * count
        reward = rows.reward if look_weight is None else rows.reward / look_weight
        arm, cluster = self.arms.ranks(rows.slots["arm_id"]), rows.slots["cluster"]
        sums = self.ridge.sums(
            reward, arm, position=self.position(rows), cluster=cluster, weight=weight, **self.context(rows, contexts)
        )
        if not self.columns:
            return RewardModelSums(sums)
        pulls = np.ones(len(reward)) if weight is None else weight
        return RewardModelSums(sums, ContextMoments.from_rows(
            contexts, rows, arm=arm, arms=self.ridge.arms, fold=self.ridge.fold(cluster), folds=self.ridge.folds,
            pulls=pulls, reward=pulls * reward,
        ))  # fmt: skip

    def context(self, rows: ImpressionRows, contexts: ContextTable) -> dict[str, Any]:
        """Return the dense context features of the ridge regression, as keyword arguments. The result is empty if the
        regression leaves out the context."""
        return {} if self.columns else {"context": contexts.hashed_features, "code": rows.slots["context"]}

    def position(self, rows: ImpressionRows) -> Ids:
        return np.minimum(rows.slots["position"], self.ridge.positions)

    def finish(self, sums: RewardModelSums, definition: Reward | None) -> FittedRewardModel:
        """Return the model fitted to these sums. The values of the model are clipped to the range of the reward.

        definition: the definition of the reward, or None for a model whose values are not clipped."""
        reward_range = (bounds(definition) if definition else None) or (-np.inf, np.inf)
        model = self.ridge.finish(sums.ridge, reward_range=reward_range)
        sparse = None if sums.moments is None else SparseModel.from_sums(model, sums.ridge, sums.moments)
        return FittedRewardModel(self, replace(model, effects=model.effects[:, self.arms.rank]), sparse)


class RewardModelSums(Sums):
    """This record has the sums from which a reward model is fitted. ridge: the sums of the ridge regression; moments:
    the sums of sparse contexts if each arm has weights for the columns of the context, else None."""

    ridge: RidgeSums
    moments: ContextMoments | None = None


class FittedRewardModel(Record, kw_only=False, eq=False):
    """This model is a ridge regression fitted to the log. The coefficients that predict a row were fitted without the
    rows of the same cluster. sparse: the weights of sparse contexts, if the model has them."""

    fit: RewardModelFit
    model: Model
    sparse: SparseModel | None = None

    def rows(self, rows: ImpressionRows, contexts: ContextTable) -> ModelValues:
        fold = self.fit.ridge.fold(rows.slots["cluster"])
        position = self.fit.position(rows)
        offset = self.model.offset(fold, position, **self.fit.context(rows, contexts))
        arm, examination = self.fit.arms.index(rows.slots["arm_id"]), row_examination(rows, self.fit.examination)
        if self.sparse is not None:
            rank = self.fit.arms.rank
            return SparseValues(
                self.sparse, contexts, rows, arm=rank[arm], rank=rank, fold=fold, offset=offset, examination=examination
            )
        return DenseValues(self.model, arm, examination=examination, fold=fold, offset=offset)

    def attraction(self, rows: ImpressionRows) -> Array:
        """Return the effect of each row's arm alone, without the effects of position and context, (n,)."""
        arm, fold = self.fit.arms.index(rows.slots["arm_id"]), self.fit.ridge.fold(rows.slots["cluster"])
        return self.model.effects[fold, arm]


class DecisionRewards(Record, eq=False):
    """This table has a reward for each pair of a decision and an arm. Its methods are the methods of `RewardTable`,
    where the argument `value` is the id of each row's decision. InputError is raised if an arm with a positive
    probability has no reward."""

    table: DecisionTable
    arms: ArmTable

    def predict(self, arm: Ids, *, value: Ids) -> Array:
        return self._means(lambda rows: arm[rows, None] == np.arange(len(self.arms)), value)

    def predict_mean(self, target: Array, *, case: Ids, value: Ids) -> Array:
        return self._means(lambda rows: target[case[rows]], value)

    def _means(self, shares_of: Callable[[Index], Any], decision: Ids) -> Array:
        means = np.empty(len(decision))
        for rows in np.array_split(np.arange(len(decision)), 1 + len(decision) * len(self.arms) // MAX_SPARSE_CELLS):
            shares = shares_of(rows)
            values = self.table.values(decision[rows], self.arms.ids, keys=self.arms.keys, shares=shares[:, None])[:, 0]
            means[rows] = np.einsum("na,na->n", values, shares)
        return means


class TabledRewardModel(Record, eq=False):
    """This model is a table of rewards by arm, by value of a context field and arm, or by decision and arm.

    values: the row of the table for each value of the context field; reads: the context field, or None; examination:
    the position curve, or empty."""

    table: RewardTable | DecisionRewards
    arms: ArmTable
    values: Mapping[str, int]
    reads: str | None
    path: str
    examination: tuple[float, ...] = ()

    def rows(self, rows: ImpressionRows, contexts: ContextTable) -> ModelValues:
        arm, examination = self.arms.index(rows.slots["arm_id"]), row_examination(rows, self.examination)
        return DenseValues(self.table, arm, examination=examination, value=self._value(rows, contexts))

    def attraction(self, rows: ImpressionRows) -> Array:
        """Return a value of each row's arm without its context, (n,), which is the mean over the rows of the table. In
        a table by decision, return the value in the decision."""
        if isinstance(self.table, DecisionRewards):
            return self.table.predict(self.arms.index(rows.slots["arm_id"]), value=rows.slots["decision_id"])
        return self.table.values.mean(axis=0)[self.arms.index(rows.slots["arm_id"])]

    def _value(self, rows: ImpressionRows, contexts: ContextTable) -> Ids:
        """Return, for each row of the log, the index of the table's row to use, (n,). In a table by decision, the index
        is the id of the decision."""
        if isinstance(self.table, DecisionRewards):
            return rows.slots["decision_id"]
        if self.reads is None:
            return np.zeros(len(rows), np.int64)
        codes, values = contexts.value_codes(self.reads, features.text_of)
        codes, row_of = codes[rows.slots["context"]], np.zeros(len(values), np.int64)
        for code in np.unique(codes).tolist():
            row_of[code] = self._row(features.text_of(values[code]))
        return row_of[codes]

    def _row(self, value: str) -> int:
        row = self.values.get(value, self.values.get(WILDCARD))
        if row is None:
            hint = f"add one, or one for {WILDCARD!r}"
            raise InputError(f"{self.path} has no row for {self.reads}={value!r}", hint=hint)
        return row


def read_table(
    path: str | DecisionTable, *, by: str | None, arms: ArmTable, examination: tuple[float, ...] = ()
) -> TabledRewardModel:
    """Read a reward model from a CSV file or from a table by decision. Raise InputError if the table names an unknown
    arm, or lacks an arm of the catalogue.

    path: the path of the file, or the table by decision; by: the name of the context field whose values the table
    has, if any; examination: a position curve, or empty. With a curve, the rewards of the table are rewards at
    position 1."""
    if isinstance(path, DecisionTable):
        table, source = DecisionRewards(table=path, arms=arms), path.source
        if by is not None:
            raise InputError(f"{source} has rewards by decision, and --reward-model-by names a field")
        return TabledRewardModel(table=table, arms=arms, values={}, reads=None, path=source, examination=examination)
    from rlrec.app.inputs import parameters

    rewards = parameters.read_tables(Path(path), "reward", by=by is not None)
    if not rewards:
        raise InputError(f"{path} holds no reward", hint="one row an arm: arm,reward")
    keys = set(arms.keys.values())
    unknown_arm = next((arm for row in rewards.values() for arm in row if arm != WILDCARD and arm not in keys), None)
    if unknown_arm is not None:
        hint = suggest(unknown_arm, list(keys))
        raise InputError(f"{path} names arm {unknown_arm!r}, which the catalogue lacks", hint=hint)
    values = [[_reward(path, row, arms.keys[arm]) for arm in arms.ids.tolist()] for row in rewards.values()]
    numbers = {value: number for number, value in enumerate(rewards)}
    return TabledRewardModel(
        table=RewardTable(np.array(values, np.float64)), arms=arms, values=numbers, reads=by, path=path,
        examination=examination,
    )  # fmt: skip


def _reward(path: str, row: Mapping[str, float], arm: str) -> float:
    reward = row.get(arm, row.get(WILDCARD))
    if reward is None:
        raise InputError(f"{path} has no reward for arm {arm!r}", hint=f"add a row for it, or one for {WILDCARD!r}")
    return reward


def position_curve(unit: Unit, reference: str) -> PositionCurve:
    """Return a stored position curve in the form that estimates use. Raise InputError for an unknown curve. reference:
    NAME or NAME@NUMBER."""
    stored_curve = lookup.curve(unit, reference)
    age = (unit.now - stored_curve.created_at) / DAY_US
    return PositionCurve(name=stored_curve.reference, examination=stored_curve.examination, age_days=age)


RewardModel = FittedRewardModel | TabledRewardModel
"""Either has `rows`: its values of rows of the log."""


MAX_STEPS = 32  # steps with a value of their own; all later steps share the last one's


class Decisions(Record, eq=False):
    """This record has n decisions of s visits, one visit after another, in the form that the model of returns uses.
    Arms are numbers from 0.

    start (s + 1,): the index of the first decision of each visit, and n; cluster (s,): the cluster of each visit;
    top (n,): the arm on top of each slate; x (n, d): the features of each state.

    row, arm (e,): the pairs of a decision (ascending) and an arm that earlier decisions of the visit have shown; memory
    (e, 4): the features `gradient.MEMORY_FEATURES` of each pair, which say how the visit has shown the arm and what it
    earned.
    """

    start: Ids
    cluster: Ids
    top: Ids
    x: Array
    row: Ids
    arm: Ids
    memory: Array

    @property
    def steps(self) -> Ids:
        """Return the step of each decision in its visit, (n,). Steps count from 1 to MAX_STEPS, which stands for all
        later steps, too."""
        return np.minimum(returns.steps(self.start) + 1, MAX_STEPS)

    @property
    def clusters(self) -> Ids:
        """Return the cluster of every decision, (n,)."""
        return np.repeat(self.cluster, np.diff(self.start))

    def memory_of_top(self) -> Array:
        """Return what the visit has shown before of the arm on top of each slate, as the features
        `gradient.MEMORY_FEATURES`, (n, 4). They are 0 if the visit has not shown the arm before."""
        memory, is_top = np.zeros((len(self.top), len(MEMORY_FEATURES))), self.arm == self.top[self.row]
        memory[self.row[is_top]] = self.memory[is_top]
        return memory


class TargetSlates(Record, eq=False):
    """This record has a target's probabilities for p decisions of a batch. A case is a set of decisions with the same
    distribution.

    rows (p,): the index of each decision; log_slate (p,): the logarithm of the target's probability of the slate
    shown; arms (m,): the number of each arm; share (c, m): the target's probability of each arm at position 1, in
    each of c cases; case (p,): the case of each decision."""

    rows: Ids
    log_slate: Array
    arms: Ids
    share: Array
    case: Ids


class ReturnSums(Record, kw_only=False, eq=False):
    """This record has the sums from which a model of returns is fitted. The sums of two batches can be added."""

    ridge: Ridge
    sums: RidgeSums

    @classmethod
    def from_decisions(cls, decisions: Decisions, reward: Array, *, gamma: float, arms: int) -> Self:
        """Return the sums of a batch of n decisions, from which a model of returns is fitted.

        reward (n,): the reward of each slate; gamma: the discount of each further decision of a visit; arms: the
        number of arms."""
        ridge = Ridge(arms=max(1, arms), positions=MAX_STEPS, features=decisions.x.shape[1] + len(MEMORY_FEATURES))
        visit_returns = returns.discount_rewards(reward, decisions.start, gamma=gamma)
        context = np.hstack([decisions.x, decisions.memory_of_top()])
        sums = ridge.sums(
            visit_returns, decisions.top, position=decisions.steps, cluster=decisions.clusters, context=context
        )
        return cls(ridge, sums)

    def __add__(self, other: Self) -> Self:
        return type(self)(self.ridge, self.sums + other.sums)

    def finish(self) -> ReturnModel:
        return ReturnModel(self.ridge.finish(self.sums))


class ReturnModel(Record, kw_only=False, eq=False):
    """This fitted model predicts returns, the discounted sums of rewards from a decision to the end of the visit. The
    coefficients that predict the return of a decision were fitted without its cluster."""

    model: Model

    def predict(self, decisions: Decisions) -> Array:
        """Return the predicted return of each decision, given the slate shown, (n,)."""
        offset, fold = self._offset(decisions, decisions.memory_of_top())
        return self.model.predict(decisions.top, fold=fold, offset=offset)

    def _offset(self, decisions: Decisions, memory: Array) -> tuple[Array, Ids]:
        fold = self.model.ridge.fold(decisions.clusters)
        return self.model.offset(fold, decisions.steps, context=np.hstack([decisions.x, memory])), fold

    def predict_mean(self, decisions: Decisions, slates: Iterable[TargetSlates]) -> Array:
        """Return the predicted return of each decision, (n,), as a mean over the arms that a target may show at
        position 1. slates: the target's probabilities, in portions of the decisions."""
        n = len(decisions.top)
        probability, effect = np.zeros(len(decisions.row)), np.zeros(n)
        ridge = self.model.ridge
        fold, index = ridge.fold(decisions.clusters), np.empty(ridge.arms, np.int64)
        n_remembered = np.bincount(decisions.row, minlength=n)
        first_entries = np.cumsum(n_remembered) - n_remembered
        for portion in slates:
            # mean effect of the arms
            effects = self.model.effects[:, portion.arms].astype(portion.share.dtype)
            effect[portion.rows] = (portion.share @ effects.T)[portion.case, fold[portion.rows]]
            # probability of every remembered arm
            counts = n_remembered[portion.rows]
            entries = piece_rows(first_entries[portion.rows], counts)
            index.fill(-1)
            index[portion.arms] = np.arange(len(portion.arms))
            arm_index = index[decisions.arm[entries]]
            cells = np.repeat(portion.case, counts) * portion.share.shape[1] + arm_index
            probability[entries] = np.where(arm_index >= 0, portion.share.reshape(-1)[cells], 0.0)
        # mean memory of the arm on top
        memory = [
            np.bincount(decisions.row, weights=probability * column, minlength=n) for column in decisions.memory.T
        ]
        return effect + self._offset(decisions, np.column_stack(memory))[0]
