"""This module has the reward models of an evaluation. They are fitted to the log itself, cross-fitted by cluster, or
given as a table.

It also has a model of the future value of a visit, which is the discounted return from a decision on, by its state
and the arm on top.

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
from rlrec.policy.gradients.gradient import MEMORY
from rlrec.records import Record, Reward, Sums
from rlrec.store import Unit
from rlrec.times import DAY_US

# of a weight, in squared values of its column: words that occur together each count in full
SPARSE_PENALTY = 100.0
SPARSE_CELLS = 1 << 21  # values of arms in memory at a time


class ContextMoments(Record, kw_only=False, eq=False):
    """This record has sums for pairs of a column and an arm, by cross-fitting fold, for pairs that occur. Two of these
    can be added.

    `key` (e,) is column * arms + arm, ascending. `sums` (e, folds, 3) has those of `marginal.column_sums`."""

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
        """Return the sums of rows. `arm`, `fold`, `pulls` and `reward` (n,) have for each row the index of its arm
        among `arms`, its fold, its weight and its weighted reward."""
        x = contexts.sparse
        entries, row = x.entries(rows.slots["context"])
        sums_by_pair = marginal.column_sums(x.value[entries], pulls=pulls[row], reward=reward[row])
        key, pair = np.unique(x.column[entries].astype(np.int64) * arms + arm[row], return_inverse=True)
        cell, sums = pair.reshape(-1) * folds + fold[row], np.empty((len(key) * folds, 3))
        for column, values in enumerate(sums_by_pair.T):
            sums[:, column] = np.bincount(cell, values, len(sums))
        return cls(key, sums.reshape(len(key), folds, 3))


class SparseModel(Record, kw_only=False, eq=False):
    """This fitted model has q(row, arm) = clip(effects[fold, arm] + offset(row) + weights[fold, arm] x). Arms have the
    numbers that they have in the moments."""

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
        """Return the weight of each pair of column and arm in each fold, from sums of the other folds, (folds, e)."""
        training_sums = self.moments.sums.sum(axis=1, keepdims=True) - self.moments.sums
        mean = self.mean[:, self.moments.key % self.mean.shape[1]]
        return np.stack([
            marginal.weights(training_sums[:, fold, None], mean[fold, :, None], ridge=SPARSE_PENALTY)[:, 0]
            for fold in range(len(mean))
        ])  # fmt: skip

    def column_weights(self, columns: Ids, fold: int) -> Array:
        """Return the weights of some columns, ascending, (c, a)."""
        arms = self.mean.shape[1]
        begin, end = np.searchsorted(self.moments.key, [columns * arms, (columns + 1) * arms])
        count, entry = end - begin, piece_rows(begin, end - begin)
        weights = np.zeros((len(columns), arms))
        column = np.repeat(np.arange(len(columns)), count)
        weights[column, self.moments.key[entry] % arms] = self.weights[fold, entry]
        return weights


class ModelValues(ABC):
    """This object has a model's values for the n rows of a batch.

    `predicted` (n,) is the value of the arm shown. `examination` (n,) is that of each row's position, where the
    model predicts the value of an examined arm."""

    def __init__(self, predicted: Array, examination: Array | None) -> None:
        self.predicted: Array = predicted if examination is None else examination * predicted
        self._examination = examination

    def expected(self, shares: Array, *, case: Ids, rows: Ids) -> Array:
        """Return the mean value of some rows of the batch under shares (m, arms). `case` is the index of each row's
        shares."""
        mean = self.mean(shares, case=case, rows=rows)
        return mean if self._examination is None else self._examination[rows] * mean

    @abstractmethod
    def mean(self, shares: Array, *, case: Ids, rows: Ids) -> Array:
        """Return what `expected` does, for arms that are examined."""


class SparseValues(ModelValues):
    """This object has the values of a `SparseModel` for the rows of a batch."""

    def __init__(
        self, fitted: SparseModel, contexts: ContextTable, rows: ImpressionRows, *, arm: Ids, rank: Ids, fold: Ids,
        offset: Array, examination: Array | None,
    ) -> None:  # fmt: skip
        """Predict the value of each row's arm. `arm` (n,) is this arm, as the moments number arms. `rank` (a,) is this
        number for each arm of the evaluation."""
        self._fitted, self._x, self._code = fitted, contexts.sparse, rows.slots["context"]
        self._rank, self._fold, self._offset = rank, fold, offset
        predicted = np.empty(len(rows))
        for portion, values in self._values(np.arange(len(rows))):
            predicted[portion] = values[np.arange(len(portion)), arm[portion]]
        super().__init__(predicted, examination)

    def mean(self, shares: Array, *, case: Ids, rows: Ids) -> Array:
        mean = np.empty(len(rows))
        for portion, values in self._values(rows):
            mean[portion] = np.einsum("na,na->n", values[:, self._rank], shares[case[portion]])
        return mean

    def _values(self, rows: Ids) -> Iterator[tuple[Ids, Array]]:
        """Yield portions of rows, and the clipped values of all arms in each portion, (p, a)."""
        model = self._fitted.model
        for fold in np.unique(self._fold[rows]).tolist():
            fold_rows = np.flatnonzero(self._fold[rows] == fold)
            context_features = self._x[self._code[rows[fold_rows]]]
            columns = np.unique(context_features.column).astype(np.int64)
            context_features, weights = (
                context_features.select_columns(columns),
                self._fitted.column_weights(columns, fold),
            )
            step = max(1, SPARSE_CELLS // weights.shape[1])
            for start in range(0, len(fold_rows), step):
                portion = fold_rows[start : start + step]
                values = context_features[start : start + step].times(weights) + model.effects[fold]
                yield portion, np.clip(values + self._offset[rows[portion], None], *model.reward_range)


WILDCARD = "*"  # in a table: stands for all arms, or all values, without a row of their own
POSITIONS = 32  # positions with an effect of their own; all lower positions share the last one's


class DenseValues(ModelValues):
    """This object has the values of a model that uses dense contexts, or none, for the rows of a batch."""

    def __init__(
        self, model: Model | RewardTable | DecisionRewards, arm: Ids, *, examination: Array | None, **columns: Any
    ) -> None:
        """Predict the value of each row's arm, whose index is `arm` (n,). `columns` are further columns that the model
        needs, (n,) each."""
        super().__init__(model.predicted(arm, **columns), examination)
        self._model, self._columns = model, columns

    def mean(self, shares: Array, *, case: Ids, rows: Ids) -> Array:
        return self._model.expected(shares, case=case, **take(self._columns, rows))


def row_examination(rows: ImpressionRows, examination: Sequence[float]) -> Array | None:
    """Return the examination of each row's position, (n,), or None without a curve. Positions below the end of the
    curve have its last value."""
    if not examination:
        return None
    return np.array(examination)[np.minimum(rows.slots["position"], len(examination)) - 1]


class RewardModelFit(Record, eq=False):
    """This fit makes the first pass over the log. It sums the normal equations, batch by batch, in order of the arms'
    keys.

    `positions` is the length of the longest slate. `examination` is that of a curve, which multiplies an arm's value
    in place of an effect of the position. `columns` is the number of columns into which contexts are hashed where
    each arm has weights for them, and otherwise 0."""

    arms: ArmTable
    positions: int
    examination: tuple[float, ...] = ()
    columns: int = 0

    @cached_property
    def ridge(self) -> Ridge:
        """Return the ridge regression on arm, position and hashed context. The context is left out where arms have
        weights for its columns."""
        positions = 1 if self.examination else max(1, min(self.positions, POSITIONS))
        width = 0 if self.columns else features.WIDTH
        return Ridge(arms=max(1, len(self.arms)), positions=positions, features=width)

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
        """Return the dense features of the ridge regression."""
        return {} if self.columns else {"context": contexts.encoded, "code": rows.slots["context"]}

    def position(self, rows: ImpressionRows) -> Ids:
        return np.minimum(rows.slots["position"], self.ridge.positions)

    def finish(self, sums: RewardModelSums, definition: Reward | None) -> FittedRewardModel:
        """Return the fitted model, with its values clipped to the range of the reward. With the definition None they
        are not clipped."""
        reward_range = (bounds(definition) if definition else None) or (-np.inf, np.inf)
        model = self.ridge.finish(sums.ridge, reward_range=reward_range)
        sparse = None if sums.moments is None else SparseModel.from_sums(model, sums.ridge, sums.moments)
        return FittedRewardModel(self, replace(model, effects=model.effects[:, self.arms.rank]), sparse)


class RewardModelSums(Sums):
    """This record has the sums that a model is fitted to. `moments` are those of sparse contexts, where arms have
    weights for their columns."""

    ridge: RidgeSums
    moments: ContextMoments | None = None


class FittedRewardModel(Record, kw_only=False, eq=False):
    """This model is a ridge regression fitted to the log. The coefficients that value a row were fitted without the
    row's cluster."""

    fit: RewardModelFit
    model: Model
    sparse: SparseModel | None = None

    def rows(self, rows: ImpressionRows, contexts: ContextTable) -> ModelValues:
        fold = self.fit.ridge.fold(rows.slots["cluster"])
        position = self.fit.position(rows)
        offset = self.model.offset(fold, position, **self.fit.context(rows, contexts))
        arm, examined = self.fit.arms.index(rows.slots["arm_id"]), row_examination(rows, self.fit.examination)
        if self.sparse is not None:
            rank = self.fit.arms.rank
            return SparseValues(
                self.sparse, contexts, rows, arm=rank[arm], rank=rank, fold=fold, offset=offset, examination=examined
            )
        return DenseValues(self.model, arm, examination=examined, fold=fold, offset=offset)

    def attraction(self, rows: ImpressionRows) -> Array:
        """Return the effect of each row's arm, (n,), without position and context."""
        arm, fold = self.fit.arms.index(rows.slots["arm_id"]), self.fit.ridge.fold(rows.slots["cluster"])
        return self.model.effects[fold, arm]


class DecisionRewards(Record, eq=False):
    """This table has rewards by decision and arm. Its interface is that of `RewardTable`, where a value is the number
    of a decision. InputError is raised where the reward of an arm with a share is missing."""

    table: DecisionTable
    arms: ArmTable

    def predicted(self, arm: Ids, *, value: Ids) -> Array:
        return self._means(lambda rows: arm[rows, None] == np.arange(len(self.arms)), value)

    def expected(self, target: Array, *, case: Ids, value: Ids) -> Array:
        return self._means(lambda rows: target[case[rows]], value)

    def _means(self, shares_of: Callable[[Index], Any], decision: Ids) -> Array:
        means = np.empty(len(decision))
        for rows in np.array_split(np.arange(len(decision)), 1 + len(decision) * len(self.arms) // SPARSE_CELLS):
            shares = shares_of(rows)
            values = self.table.values(decision[rows], self.arms.ids, keys=self.arms.keys, shares=shares[:, None])[:, 0]
            means[rows] = np.einsum("na,na->n", values, shares)
        return means


class TabledRewardModel(Record, eq=False):
    """This model is a table of rewards by arm, by the value of a context field and arm, or by decision and arm."""

    table: RewardTable | DecisionRewards
    arms: ArmTable
    values: Mapping[str, int]
    reads: str | None
    path: str
    examination: tuple[float, ...] = ()

    def rows(self, rows: ImpressionRows, contexts: ContextTable) -> ModelValues:
        arm, examined = self.arms.index(rows.slots["arm_id"]), row_examination(rows, self.examination)
        return DenseValues(self.table, arm, examination=examined, value=self._value(rows, contexts))

    def attraction(self, rows: ImpressionRows) -> Array:
        """Return the mean value of each row's arm over the table, (n,), or its value in the decision."""
        if isinstance(self.table, DecisionRewards):
            return self.table.predicted(self.arms.index(rows.slots["arm_id"]), value=rows.slots["decision_id"])
        return self.table.values.mean(axis=0)[self.arms.index(rows.slots["arm_id"])]

    def _value(self, rows: ImpressionRows, contexts: ContextTable) -> Ids:
        """Return the row of the table that values each row of the log, (n,)."""
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
    """Return the model in a CSV file, or in a table by decision. With a curve, its rewards are those at position 1.
    Raise InputError where the table names an arm that the catalogue lacks, or lacks an arm of the catalogue."""
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
    """Return a stored curve as estimates use it. Raise InputError for an unknown curve."""
    stored_curve = lookup.curve(unit, reference)
    age = (unit.now - stored_curve.created_at) / DAY_US
    return PositionCurve(name=stored_curve.reference, examination=stored_curve.examination, age_days=age)


RewardModel = FittedRewardModel | TabledRewardModel
"""Either has `rows`: its values of rows of the log."""


STEPS = 32  # steps with a value of their own; all later steps share the last one's


class Decisions(Record, eq=False):
    """This record has n decisions of visits, one visit after another, as the model of returns sees them. Arms are
    numbers from 0.

    `start` (s + 1,) says where each visit begins, and `cluster` (s,) is that of each visit. `top` (n,) is the arm on
    top of the slate, and `x` (n, d) has features of the state. `row` (e,) ascending, `arm` (e,) and `memory` (e, 4)
    say what a decision remembers of an arm (`gradient.MEMORY`)."""

    start: Ids
    cluster: Ids
    top: Ids
    x: Array
    row: Ids
    arm: Ids
    memory: Array

    @property
    def steps(self) -> Ids:
        """Return the step of every decision in its visit, from 1 to at most STEPS, (n,)."""
        return np.minimum(returns.steps(self.start) + 1, STEPS)

    @property
    def clusters(self) -> Ids:
        """Return the cluster of every decision, (n,)."""
        return np.repeat(self.cluster, np.diff(self.start))

    def memory_of_top(self) -> Array:
        """Return the memory that each decision has of the arm on top of its slate, (n, 4)."""
        memory, is_top = np.zeros((len(self.top), len(MEMORY))), self.arm == self.top[self.row]
        memory[self.row[is_top]] = self.memory[is_top]
        return memory


class TargetSlates(Record, eq=False):
    """This record has a target's distributions for some decisions.

    `rows` (p,) are the decisions, and `log_slate` (p,) is the log of the target's probability of the slate shown.
    `share` (c, m) has its probabilities of m arms at position 1, in c cases. `case` (p,) is the case of each row,
    and `arms` (m,) are the arms."""

    rows: Ids
    log_slate: Array
    arms: Ids
    share: Array
    case: Ids


class ReturnSums(Record, kw_only=False, eq=False):
    """This record has the sums to which a model of returns is fitted. Those of two batches can be added."""

    ridge: Ridge
    sums: RidgeSums

    @classmethod
    def from_decisions(cls, decisions: Decisions, reward: Array, *, gamma: float, arms: int) -> Self:
        """Return the sums of a batch. `reward` (n,) is that of each slate, and `arms` is the number of arms."""
        ridge = Ridge(arms=max(1, arms), positions=STEPS, features=decisions.x.shape[1] + len(MEMORY))
        discounted = returns.discounted(reward, decisions.start, gamma=gamma)
        context = np.hstack([decisions.x, decisions.memory_of_top()])
        sums = ridge.sums(
            discounted, decisions.top, position=decisions.steps, cluster=decisions.clusters, context=context
        )
        return cls(ridge, sums)

    def __add__(self, other: Self) -> Self:
        return type(self)(self.ridge, self.sums + other.sums)

    def finish(self) -> ReturnModel:
        return ReturnModel(self.ridge.finish(self.sums))


class ReturnModel(Record, kw_only=False, eq=False):
    """This fitted model predicts returns. The coefficients that value a decision were fitted without its cluster."""

    model: Model

    def predicted(self, decisions: Decisions) -> Array:
        """Return the value of the slates shown, (n,)."""
        offset, fold = self._offset(decisions, decisions.memory_of_top())
        return self.model.predicted(decisions.top, fold=fold, offset=offset)

    def _offset(self, decisions: Decisions, memory: Array) -> tuple[Array, Ids]:
        fold = self.model.ridge.fold(decisions.clusters)
        return self.model.offset(fold, decisions.steps, context=np.hstack([decisions.x, memory])), fold

    def expected(self, decisions: Decisions, slates: Iterable[TargetSlates]) -> Array:
        """Return the mean value under a target, (n,), by the target's probabilities at position 1."""
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
