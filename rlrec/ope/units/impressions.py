"""From rows of the log to estimates: the fold of the estimators per impression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rlrec.arrays import Array
from rlrec.ope.checks.diagnostics import Weights, weights
from rlrec.ope.intervals import intervals
from rlrec.ope.intervals.intervals import JointReplicates, Replicates
from rlrec.ope.sums.base import ImpressionEstimator, LogBatch, ValueRange
from rlrec.ope.sums.moments import Moments, Steps, align_summaries, moments
from rlrec.ope.units.estimate import (
    COMPARED_ESS,
    CORE,
    USUAL,
    Estimate,
    EstimatorFold,
    FinishOptions,
    Sides,
    differ,
    earned_by_unit,
)
from rlrec.ope.units.fold import Fold, PositionCurve, WeightSpread, spread_of
from rlrec.records import Sums


@dataclass(frozen=True, eq=False)
class ImpressionPartial(Sums):
    """Sums over rows of the log: `partial(batch_1) + partial(batch_2)`.

    earned: what was earned as served, per cluster or block
    distorted: sum of |weight - weight used| per estimator
    predictions: of the reward model, None without one"""

    moments: Moments
    weights: Weights
    earned: Steps
    distorted: Array
    predictions: ValueRange | None


@dataclass(frozen=True, kw_only=True)
class ImpressionFold(Fold[ImpressionEstimator, LogBatch, ImpressionPartial]):
    """The chosen estimators per impression. curve: that the reward model rests on; None where it has effects of
    positions."""

    curve: PositionCurve | None = None

    @cached_property
    def summed(self) -> tuple[ImpressionEstimator, ...]:
        """The estimators, and those whose bounds hold the biased ones."""
        return tuple(summed for kind in self.estimators.values() for summed in (kind, *kind.bracket()))

    def partial(self, batch: LogBatch) -> ImpressionPartial:
        """The sums of one batch. Raises InputError if an estimator needs a reward model and the batch has none."""
        weighted = batch.weight * batch.reward
        used = batch.usable.astype(np.float64)
        terms = dict(zip(CORE, (used, batch.weight, weighted), strict=True))
        for estimator in self.summed:
            if not terms.keys() >= set(estimator.columns):
                terms.update(zip(estimator.columns, estimator.terms(batch).T, strict=True))
        matrix = batch.counted(np.column_stack([terms[name] for name in self.columns]))
        kinds = self.estimators.values()
        distorted = [batch.counted(kind.distortion(batch)).sum() if kind.biased else 0.0 for kind in kinds]
        return ImpressionPartial(
            moments(matrix, batch.cluster, columns=self.columns, spans_batches=self.spans_batches),
            weights(batch),
            earned_by_unit(batch, batch.reward, used),
            np.array(distorted),
            None if batch.predicted is None else ValueRange.from_values(batch.predicted),
        )

    def spreads(self, partials: Sequence[ImpressionPartial]) -> list[WeightSpread]:
        return [spread_of(partial.moments, ("",)) for partial in partials]

    def scaled(self, partial: ImpressionPartial, factor: Array) -> ImpressionPartial:
        """The sums of rows that count `factor` times, (1,), for all estimators that weigh."""
        unweighted = {name for kind in self.estimators.values() if not kind.weighted for name in kind.columns}
        by_column = np.where([name in unweighted for name in self.columns], 1.0, factor)
        (times,) = factor.tolist()
        return ImpressionPartial(
            partial.moments.scaled(by_column), partial.weights.scaled(times), partial.earned.scaled(times),
            partial.distorted * times, partial.predictions,
        )  # fmt: skip

    def weighing_index(self, label: str) -> int | None:
        return 0 if self.estimators[label].weighted else None

    def finish(self, partial: ImpressionPartial, options: FinishOptions = USUAL) -> list[Estimate]:
        intervals.check(options.interval, options.level, estimators=self.estimators)
        at_end, bootstrap = self.at_ends(partial), None
        if options.interval == "bootstrap-t" and any(estimator.intervals for estimator in self.estimators.values()):
            bootstrap = intervals.replicates(at_end[0].summary, seed=options.seed, number=options.replicates)
        estimates = [self._estimate(fold, options, bootstrap) for fold in at_end]
        return [estimate.lowered(["models-differ"]) for estimate in estimates] if _models_differ(at_end) else estimates

    def finish_together(self, groups: Sequence[tuple[ImpressionPartial, FinishOptions]]) -> list[list[Estimate]]:
        """The estimates of several groups of one log, each as of `finish`, with intervals that hold together: max-t
        over the same bootstrap replicates; other kinds at the level that Bonferroni asks of each group.
        Raises InputError as `finish` does."""
        if len(groups) < 2:
            return [self.finish(partial, options) for partial, options in groups]
        common = groups[0][1]
        intervals.check(common.interval, common.level, estimators=self.estimators)
        at_end, joint = [self.at_ends(partial) for partial, _ in groups], None
        bootstraps: list[Replicates | None] = [None] * len(groups)
        if common.interval == "bootstrap-t":
            units = align_summaries([partial.moments for partial, _ in groups])
            draws = [intervals.replicates(summary, seed=common.seed, number=common.replicates) for summary in units]
            bootstraps, joint = [*draws], JointReplicates(draws)
        options = [options for _, options in groups]
        each_level = common.level if joint else 1 - (1 - common.level) / len(groups)
        by_estimator = []
        for folds in zip(*at_end, strict=True):  # one estimator in every group
            sides = [
                fold.sides(replace(group_options, level=each_level), bootstrap, joint)
                for fold, group_options, bootstrap in zip(folds, options, bootstraps, strict=True)
            ]
            by_estimator.append([
                self._estimate(fold, group_options, None, joint=fold_sides)
                for fold, fold_sides, group_options in zip(folds, sides, options, strict=True)
            ])  # fmt: skip
        return [list(estimates) for estimates in zip(*by_estimator, strict=True)]

    def _estimate(
        self, at_end: EstimatorFold, options: FinishOptions, bootstrap: Replicates | None, joint: Sides | None = None
    ) -> Estimate:
        """The estimate of one estimator, and the curve that its reward model rests on."""
        if self.curve is None or not at_end.estimator.needs_model:
            return at_end.estimate(options, bootstrap, joint)
        options = replace(options, extra_reasons=(*options.extra_reasons, "position-model"))
        estimate = at_end.estimate(options, bootstrap, joint)
        return replace(estimate, curve=self.curve.name, curve_age_days=self.curve.age_days)

    def at_ends(self, partial: ImpressionPartial) -> Sequence[EstimatorFold]:
        """Each estimator at the end of a fold."""
        summary = partial.moments.summary()
        return [
            EstimatorFold(
                label=label, estimator=estimator, summary=summary, weights=partial.weights,
                earned=partial.earned.sums[:, :, 0], distorted=distorted, predictions=partial.predictions,
            )
            for (label, estimator), distorted in zip(self.estimators.items(), partial.distorted.tolist(), strict=True)
        ]  # fmt: skip


def _models_differ(at_end: Sequence[EstimatorFold]) -> bool:
    """Whether dr and snips, each of which is right where propensities are, say different things."""
    corrected = next((fold for fold in at_end if fold.estimator.name in ("dr", "sndr")), None)
    if corrected is None or (corrected.diagnosis.ess or 0.0) < COMPARED_ESS:
        return False
    columns = (*corrected.estimator.columns[:2], "weighted_reward", "weight")
    return differ(corrected.summary, columns, clusters=corrected.clusters, value=corrected.value_and_error[0])
