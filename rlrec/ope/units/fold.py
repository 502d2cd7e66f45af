"""The fold of the estimators of one unit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from rlrec.arrays import Array
from rlrec.ope.sums.base import Estimator
from rlrec.ope.sums.moments import Moments
from rlrec.ope.units.estimate import CORE, USUAL, Estimate, EstimatorFold, FinishOptions
from rlrec.records import Sums

MAX_LOGGERS = 16  # loggers that are weighed, each in two halves; where there are more, the last one is all others

E = TypeVar("E", bound=Estimator)
Batch = TypeVar("Batch")
P = TypeVar("P", bound=Any)  # sums over some batches of the log: they add up


@dataclass(frozen=True, kw_only=True)
class PositionCurve:
    """A position curve as an estimate uses it: the examination of positions 1, 2, ... over that of position 1.

    name: with its number; None for a curve that is assumed. age_days: since it was fitted."""

    name: str | None = None
    examination: tuple[float, ...] = ()
    age_days: float | None = None


FLAT = PositionCurve()
"""The curve of positions that are all examined alike."""


@dataclass(frozen=True, eq=False)
class WeightSpread(Sums):
    """How far weights spread, (g,) for g ways to weigh.

    rows, weight: sums of rows and weights. squares, least: sums of squares of the weights, and the smallest they can be
    expected to be: those of the rows."""

    rows: Array
    weight: Array
    squares: Array
    least: Array


def spread_of(sums: Moments, prefixes: Sequence[str]) -> WeightSpread:
    """How far weights spread over clusters: of the columns `rows` and `weight` with each prefix."""
    summary = sums.summary()
    rows, weight = (summary.index(tuple(prefix + name for prefix in prefixes)) for name in ("rows", "weight"))
    square = np.diagonal(summary.moment)
    return WeightSpread(summary.total[rows], summary.total[weight], square[weight], square[rows])


@dataclass(frozen=True, kw_only=True)
class Fold(ABC, Generic[E, Batch, P]):
    """The chosen estimators of one unit, about one target. A partial depends on the rows of its batches alone: not on
    their order, nor on how they were split, up to rounding.

    estimators: label -> estimator, as `ope.parse` gives them
    spans_batches: a cluster may come back in a later batch (users). Without it a cluster must lie in one batch
        (sessions, rows), and memory is bounded however many there are."""

    core: ClassVar[tuple[str, ...]] = CORE  # columns that diagnostics need, whichever estimators are chosen
    estimators: Mapping[str, E]
    spans_batches: bool

    @property
    def summed(self) -> tuple[Estimator, ...]:
        """The estimators whose columns are summed."""
        return tuple(self.estimators.values())

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Every column that some estimator needs, once."""
        needed = [name for estimator in self.summed for name in estimator.columns]
        return tuple(dict.fromkeys([*self.core, *needed]))

    @property
    def most_loggers(self) -> int:
        """How many loggers can be weighed."""
        return MAX_LOGGERS

    @abstractmethod
    def partial(self, batch: Batch, /) -> P:
        """The sums of one batch; those of an empty batch are the zero of the sum."""

    @abstractmethod
    def spreads(self, partials: Sequence[P], /) -> list[WeightSpread]:
        """How far the weights of each spread, over clusters."""

    @abstractmethod
    def scaled(self, partial: P, factor: Array, /) -> P:
        """The sums of rows that count `factor` times, (g,) for g ways to weigh."""

    def weighing_index(self, label: str, /) -> int | None:
        """The number of an estimator's way to weigh; None where it does not weigh."""
        return 0

    @abstractmethod
    def at_ends(self, partial: P, /) -> Sequence[EstimatorFold]:
        """Each estimator at the end of a fold."""

    @abstractmethod
    def finish(self, partial: P, options: FinishOptions = USUAL, /) -> list[Estimate]:
        """One estimate for each estimator, in their order.
        Raises InputError for an interval that one of the estimators does not have, and a level outside (0, 1)."""
