"""A model of the future value of a visit: the discounted return from a decision on, by its state and the arm on top.

It reduces the noise of estimates. A wrong model causes no bias."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from rlrec.arrays import Array, Ids, piece_rows
from rlrec.ope.estimators.direct import Model, Ridge, RidgeSums
from rlrec.policy.gradients import returns
from rlrec.policy.gradients.gradient import MEMORY

STEPS = 32  # steps with a value of their own; all later steps share the last one's


@dataclass(frozen=True, kw_only=True, eq=False)
class Decisions:
    """n decisions of visits, one visit after another, as the model sees them; arms are numbers from 0.

    start (s + 1,): where each visit begins; cluster (s,) of each visit. top (n,): the arm on top of the slate; x (n,
    d): features of the state. row (e,) ascending, arm (e,), memory (e, 4): what a decision remembers of an arm
    (`gradient.MEMORY`)."""

    start: Ids
    cluster: Ids
    top: Ids
    x: Array
    row: Ids
    arm: Ids
    memory: Array

    @property
    def steps(self) -> Ids:
        """Step of every decision, from 1, (n,)."""
        return np.minimum(returns.steps(self.start) + 1, STEPS)

    @property
    def clusters(self) -> Ids:
        """Cluster of every decision, (n,)."""
        return np.repeat(self.cluster, np.diff(self.start))

    def memory_of_top(self) -> Array:
        """The memory that each decision has of the arm on top of its slate, (n, 4)."""
        memory, is_top = np.zeros((len(self.top), len(MEMORY))), self.arm == self.top[self.row]
        memory[self.row[is_top]] = self.memory[is_top]
        return memory


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetSlates:
    """A target's distributions for some decisions.

    rows (p,): the decisions; log_slate (p,): the log of its probability of the slate shown. share (c, m): its
    probabilities of m arms at position 1, in c cases; case (p,): of each row; arms (m,)."""

    rows: Ids
    log_slate: Array
    arms: Ids
    share: Array
    case: Ids


@dataclass(frozen=True, eq=False)
class ReturnSums:
    """The sums to which a model of returns is fitted; those of two batches can be added."""

    ridge: Ridge
    sums: RidgeSums

    @classmethod
    def from_decisions(cls, decisions: Decisions, reward: Array, *, gamma: float, arms: int) -> Self:
        """The sums of a batch. reward (n,): of each slate; arms: their number."""
        ridge = Ridge(arms=max(1, arms), positions=STEPS, features=decisions.x.shape[1] + len(MEMORY))
        return_ = returns.discounted(reward, decisions.start, gamma=gamma)
        context = np.hstack([decisions.x, decisions.memory_of_top()])
        sums = ridge.sums(return_, decisions.top, position=decisions.steps, cluster=decisions.clusters, context=context)
        return cls(ridge, sums)

    def __add__(self, other: Self) -> Self:
        return type(self)(self.ridge, self.sums + other.sums)

    def finish(self) -> ReturnModel:
        return ReturnModel(self.ridge.finish(self.sums))


@dataclass(frozen=True, eq=False)
class ReturnModel:
    """The fitted model; the coefficients that value a decision were fitted without its cluster."""

    model: Model

    def predicted(self, decisions: Decisions) -> Array:
        """Value of the slates shown, (n,)."""
        offset, fold = self._offset(decisions, decisions.memory_of_top())
        return self.model.predicted(decisions.top, fold=fold, offset=offset)

    def _offset(self, decisions: Decisions, memory: Array) -> tuple[Array, Ids]:
        fold = self.model.ridge.fold(decisions.clusters)
        return self.model.offset(fold, decisions.steps, context=np.hstack([decisions.x, memory])), fold

    def expected(self, decisions: Decisions, slates: Iterable[TargetSlates]) -> Array:
        """The mean value under a target, (n,), by its probabilities at position 1."""
        n = len(decisions.top)
        probability, effect = np.zeros(len(decisions.row)), np.zeros(n)
        ridge = self.model.ridge
        fold, index = ridge.fold(decisions.clusters), np.empty(ridge.arms, np.int64)
        remembered = np.bincount(decisions.row, minlength=n)
        first = np.cumsum(remembered) - remembered
        for portion in slates:
            # mean effect of the arms
            effects = self.model.effects[:, portion.arms].astype(portion.share.dtype)
            effect[portion.rows] = (portion.share @ effects.T)[portion.case, fold[portion.rows]]
            # probability of every remembered arm
            counts = remembered[portion.rows]
            entries = piece_rows(first[portion.rows], counts)
            index.fill(-1)
            index[portion.arms] = np.arange(len(portion.arms))
            at = index[decisions.arm[entries]]
            cells = np.repeat(portion.case, counts) * portion.share.shape[1] + at
            probability[entries] = np.where(at >= 0, portion.share.reshape(-1)[cells], 0.0)
        # mean memory of the arm on top
        memory = [
            np.bincount(decisions.row, weights=probability * column, minlength=n) for column in decisions.memory.T
        ]
        return effect + self._offset(decisions, np.column_stack(memory))[0]
