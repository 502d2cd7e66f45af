"""The fold of the estimators of one unit: from rows of the log to estimates, whatever a row is; and of impressions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from rlrec.arrays import Array
from rlrec.ope.checks.diagnostics import Weights, weights
from rlrec.ope.intervals import intervals
from rlrec.ope.intervals.intervals import Bounds
from rlrec.ope.sums.base import Estimator, ImpressionEstimator, LogBatch, ValueRange
from rlrec.ope.sums.moments import ClusterSummary, Moments, align_summaries, moments
from rlrec.ope.units.estimate import (
    COMPARED_ESS,
    CORE,
    USUAL,
    Estimate,
    EstimatorFold,
    FinishOptions,
    differ,
    draw_bounds,
)
from rlrec.records import Sums

MAX_LOGGERS = 16  # loggers that are weighed, each in two halves; where there are more, the last one is all others


@dataclass(frozen=True, kw_only=True)
class PositionCurve:
    """A position curve as an estimate uses it: the examination of positions 1, 2, ... over that of position 1.

    name: with its number; None for a curve that is assumed. age_days: since it was fitted."""

    name: str | None = None
    examination: tuple[float, ...] = ()
    age_days: float | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """The fields of an estimate that rests on it."""
        return {"curve": self.name, "curve_age_days": self.age_days}


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


@dataclass(frozen=True, kw_only=True, eq=False)
class RowSums(Sums):
    """Sums over rows of the log: `partial(batch_1) + partial(batch_2)`.

    moments: over clusters. weights: diagnostics by the name of the column of the weights. figures: further sums, which
    a fold names."""

    moments: Moments
    weights: Mapping[str, Weights]
    figures: Mapping[str, Any]

    def scaled(self, factors: Mapping[str, float]) -> RowSums:
        """The sums of rows that count so many times. factors: in each column, in their order."""
        mean = float(np.mean([factor for name, factor in factors.items() if name.endswith("earned")]))
        return RowSums(
            moments=self.moments.scaled(np.array(list(factors.values()))),
            weights={name: weights.scaled(factors[name]) for name, weights in self.weights.items()},
            figures={
                name: figure * mean if isinstance(figure, np.ndarray) else figure.scaled(mean)
                for name, figure in self.figures.items()
            },
        )


@dataclass(frozen=True, kw_only=True)
class Fold(ABC):
    """The chosen estimators of one unit, about one target. A partial depends on the rows of its batches alone: not on
    their order, nor on how they were split, up to rounding.

    estimators: label -> estimator, as `ope.parse` gives them; those of one prefix weigh alike, and share the columns
        whose names begin with it
    spans_batches: a cluster may come back in a later batch (users). Without it a cluster must lie in one batch
        (sessions, rows), and memory is bounded however many there are."""

    core: ClassVar[tuple[str, ...]] = CORE  # columns that diagnostics need, whichever estimators are chosen
    estimators: Mapping[str, Any]
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

    @cached_property
    def weighings(self) -> dict[str, Any]:
        """An estimator for each way to weigh, by its prefix."""
        return {estimator.prefix: estimator for estimator in self.estimators.values()}

    @property
    def most_loggers(self) -> int:
        """How many loggers can be weighed."""
        return MAX_LOGGERS

    @abstractmethod
    def partial(self, batch: Any, /) -> RowSums:
        """The sums of one batch; those of an empty batch are the zero of the sum."""

    @abstractmethod
    def at_end(self, partial: RowSums, label: str, estimator: Any, summary: ClusterSummary, /) -> EstimatorFold:
        """An estimator at the end of a fold. summary: of the columns of its prefix."""

    def at_ends(self, partial: RowSums, summary: ClusterSummary | None = None, /) -> list[EstimatorFold]:
        """Each estimator at the end of a fold. summary: of its moments, with units in another order."""
        summary = summary or partial.moments.summary()
        summaries = {prefix: summary.with_prefix(prefix) if prefix else summary for prefix in self.weighings}
        return [self.at_end(partial, label, kind, summaries[kind.prefix]) for label, kind in self.estimators.items()]

    # -- several loggers --

    def weighing_index(self, label: str, /) -> int | None:
        """The number of an estimator's way to weigh; None where it does not weigh."""
        estimator = self.estimators[label]
        return list(self.weighings).index(estimator.prefix) if estimator.weighted else None

    def spreads(self, partials: Sequence[RowSums], /) -> list[WeightSpread]:
        """How far the weights of each spread, over clusters."""
        spreads = []
        for summary in (partial.moments.summary() for partial in partials):
            rows, weight = (
                summary.index(tuple(prefix + name for prefix in self.weighings)) for name in ("rows", "weight")
            )
            square = np.diagonal(summary.moment)
            spreads.append(WeightSpread(summary.total[rows], summary.total[weight], square[weight], square[rows]))
        return spreads

    def factors(self, factor: Array, /) -> dict[str, float]:
        """How often a row counts in each column. factor (g,): in each way to weigh."""
        (times,) = factor.tolist()
        return dict.fromkeys(self.columns, times)

    # -- estimates --

    def finish(self, partial: RowSums, options: FinishOptions = USUAL, /) -> list[Estimate]:
        """One estimate for each estimator, in their order.
        Raises InputError for an interval that one of the estimators does not have, and a level outside (0, 1)."""
        ((at_ends, estimates),) = self._finished([(partial, options)])
        return self.compared(estimates, at_ends, partial)

    def finish_together(self, groups: Sequence[tuple[RowSums, FinishOptions]]) -> list[list[Estimate]]:
        """The estimates of several groups of one log, each as of `finish`, with intervals that hold together: max-t
        over the same bootstrap replicates; other kinds at the level that Bonferroni asks of each group.
        Raises InputError as `finish` does."""
        if len(groups) < 2:
            return [self.finish(partial, options) for partial, options in groups]
        return [estimates for _, estimates in self._finished(groups)]

    def _finished(
        self, groups: Sequence[tuple[RowSums, FinishOptions]]
    ) -> list[tuple[list[EstimatorFold], list[Estimate]]]:  # fmt: skip
        common = groups[0][1]
        intervals.check(common.interval, common.level, estimators=self.estimators)
        folds = [self.at_ends(partial) for partial, _ in groups]
        bootstraps: list[dict[Estimator, Bounds]] = [{} for _ in groups]
        if common.interval == "bootstrap-t":
            sums, same_units = [partial for partial, _ in groups], folds
            if len(groups) > 1:
                same_units = list(map(self.at_ends, sums, align_summaries([partial.moments for partial in sums])))
            bootstraps = draw_bounds(same_units, common)
        return [
            (at_ends, [at_end.estimate(replace(options, groups=len(groups)), bounds) for at_end in at_ends])
            for at_ends, (_, options), bounds in zip(folds, groups, bootstraps, strict=True)
        ]

    def compared(self, estimates: list[Estimate], at_ends: Sequence[EstimatorFold], partial: RowSums) -> list[Estimate]:
        """The estimates, with a reason where some differ that should agree."""
        return estimates


@dataclass(frozen=True, kw_only=True)
class ImpressionFold(Fold):
    """The chosen estimators per impression. curve: that the reward model rests on; None where it has effects of
    positions. Figures: distorted, the sum of |weight - weight used| per label; predictions, those of the reward model.
    """

    curve: PositionCurve | None = None

    @cached_property
    def summed(self) -> tuple[ImpressionEstimator, ...]:
        """The estimators, and those whose bounds hold the biased ones."""
        return tuple(summed for kind in self.estimators.values() for summed in (kind, *kind.bracket()))

    def partial(self, batch: LogBatch, /) -> RowSums:
        """The sums of one batch. Raises InputError if an estimator needs a reward model and the batch has none."""
        weighted = batch.weight * batch.reward
        used = batch.usable.astype(np.float64)
        terms = dict(zip(CORE, (used, used * batch.reward, batch.weight, weighted), strict=True))
        for estimator in self.summed:
            if not terms.keys() >= set(estimator.columns):
                terms.update(zip(estimator.columns, estimator.terms(batch).T, strict=True))
        matrix = batch.counted(np.column_stack([terms[name] for name in self.columns]))
        kinds = self.estimators.values()
        distorted = [batch.counted(kind.distortion(batch)).sum() if kind.biased else 0.0 for kind in kinds]
        predictions = {} if batch.predicted is None else {"predictions": ValueRange.from_values(batch.predicted)}
        return RowSums(
            moments=moments(matrix, batch.cluster, columns=self.columns, spans_batches=self.spans_batches),
            weights={"weight": weights(batch)},
            figures={"distorted": np.array(distorted), **predictions},
        )

    def factors(self, factor: Array, /) -> dict[str, float]:
        unweighted = {name for kind in self.estimators.values() if not kind.weighted for name in kind.columns}
        return super().factors(factor) | dict.fromkeys(unweighted, 1.0)

    def at_end(
        self, partial: RowSums, label: str, estimator: ImpressionEstimator, summary: ClusterSummary, /
    ) -> EstimatorFold:  # fmt: skip
        curve, number = self.curve if estimator.needs_model else None, list(self.estimators).index(label)
        return EstimatorFold(
            label=label, estimator=estimator, summary=summary, weights=partial.weights["weight"],
            distorted=float(partial.figures["distorted"][number]),
            predictions=partial.figures.get("predictions"), facts={} if curve is None else curve.facts,
            weight_column=estimator.weight_column, mean_column=estimator.weight_column,
            reasons=() if curve is None else ("position-model",),
        )  # fmt: skip

    def models_differ(self, at_ends: Sequence[EstimatorFold]) -> bool:
        """Whether dr and snips, each of which is right where propensities are, differ."""
        corrected = next((fold for fold in at_ends if fold.estimator.name in ("dr", "sndr")), None)
        if corrected is None or (corrected.diagnosis.ess or 0.0) < COMPARED_ESS:
            return False
        columns, value = (*corrected.estimator.columns[:2], "weighted_reward", "weight"), corrected.value_and_error[0]
        return differ(corrected.summary, columns, clusters=corrected.clusters, value=value)

    def compared(self, estimates: list[Estimate], at_ends: Sequence[EstimatorFold], partial: RowSums) -> list[Estimate]:
        """All estimates have a reason where dr and snips differ."""
        if not self.models_differ(at_ends):
            return estimates
        return [estimate.lowered(["models-differ"]) for estimate in estimates]
