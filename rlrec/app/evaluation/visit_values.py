"""A model of what a visit still earns: the discounted return from a decision on, by its state and the arm on top.

It need not be right: it takes noise out of estimates, and no wrong model brings bias in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.ope.direct import Model, Ridge, RidgeSums
from rlrec.policy import returns
from rlrec.policy.gradient import MEMORY

STEPS = 32  # steps with a value of their own; later ones share the last one's


@dataclass(frozen=True, kw_only=True, eq=False)
class Decisions:
    """n decisions of visits that lie end to end, as the model sees them; arms are places among all that it knows.

    start (s + 1,): where each visit begins; cluster (s,) of each visit. top (n,): the arm on top of the page; x (n, d):
    features of the state. row (e,) ascending, arm (e,), own (e, 4): of each arm that a decision remembers what it
    knows (`gradient.MEMORY`)."""

    start: Ids
    cluster: Ids
    top: Ids
    x: Array
    row: Ids
    arm: Ids
    own: Array

    @property
    def steps(self) -> Ids:
        """Of each decision, from 1, (n,)."""
        return np.minimum(returns.steps(self.start) + 1, STEPS)

    @property
    def clusters(self) -> Ids:
        """Of each decision, (n,)."""
        return np.repeat(self.cluster, np.diff(self.start))

    def own_of_top(self) -> Array:
        """What each knew of the arm on top of its page, (n, 4)."""
        found, mine = np.zeros((len(self.top), len(MEMORY))), self.arm == self.top[self.row]
        found[self.row[mine]] = self.own[mine]
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetSlates:
    """What a target makes of some decisions: of rows (p,) the log of its probability of the page shown, (p,).

    share (c, m): its probabilities of arms at position 1, in c cases; case (p,): which one each row has; places (m,):
    where those arms stand among all."""

    rows: Ids
    log_slate: Array
    places: Ids
    share: Array
    case: Ids


@dataclass(frozen=True, eq=False)
class ReturnSums:
    """The sums that the model is fitted by: they add up."""

    ridge: Ridge
    sums: RidgeSums

    @classmethod
    def of(cls, decisions: Decisions, reward: Array, *, gamma: float, arms: int) -> Self:
        """Of a batch. reward (n,): of each page; arms: how many there are."""
        ridge = Ridge(arms=max(1, arms), positions=STEPS, features=decisions.x.shape[1] + len(MEMORY))
        gained = returns.discounted(reward, decisions.start, gamma=gamma)
        context = np.hstack([decisions.x, decisions.own_of_top()])
        sums = ridge.sums(
            gained, decisions.top, position=decisions.steps, cluster=decisions.clusters, context=context
        )  # fmt: skip
        return cls(ridge, sums)

    def __add__(self, other: Self) -> Self:
        return type(self)(self.ridge, self.sums + other.sums)

    def finish(self) -> ReturnModel:
        return ReturnModel(self.ridge, self.ridge.finish(self.sums))


@dataclass(frozen=True, eq=False)
class ReturnModel:
    """The fitted model; no decision is valued by a part of it that saw its cluster."""

    ridge: Ridge
    model: Model

    def predicted(self, decisions: Decisions) -> Array:
        """Value of the pages shown, (n,)."""
        offset, fold = self._offset(decisions, decisions.own_of_top())
        return self.model.predicted(decisions.top, fold=fold, offset=offset)

    def _offset(self, decisions: Decisions, own: Array) -> tuple[Array, Ids]:
        fold = self.ridge.fold(decisions.clusters)
        return self.model.offset(fold, decisions.steps, context=np.hstack([decisions.x, own])), fold

    def expected(self, decisions: Decisions, shown: Iterable[TargetSlates]) -> Array:
        """Mean value under a target, (n,), by its probabilities at position 1."""
        n = len(decisions.top)
        chance, effect, fold = np.zeros(len(decisions.row)), np.zeros(n), self.ridge.fold(decisions.clusters)
        remembered, place = np.bincount(decisions.row, minlength=n), np.empty(self.ridge.arms, np.int64)
        begins = np.cumsum(remembered) - remembered
        for one in shown:
            effects = self.model.effects[:, one.places].astype(one.share.dtype)
            effect[one.rows] = (one.share @ effects.T)[one.case, fold[one.rows]]
            counts = remembered[one.rows]
            entries = np.repeat(begins[one.rows] - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()))
            place.fill(-1)
            place[one.places] = np.arange(len(one.places))
            at = place[decisions.arm[entries]]
            cells = np.repeat(one.case, counts) * one.share.shape[1] + at
            chance[entries] = np.where(at >= 0, one.share.reshape(-1)[cells], 0.0)
        own = [np.bincount(decisions.row, weights=chance * column, minlength=n) for column in decisions.own.T]
        return effect + self._offset(decisions, np.column_stack(own))[0]
