"""From rows of the log to estimates: the fold of the estimators per impression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rlrec.arrays import Array
from rlrec.ope.checks.diagnostics import weights
from rlrec.ope.sums.base import ImpressionEstimator, LogBatch, ValueRange
from rlrec.ope.sums.moments import ClusterSummary, moments
from rlrec.ope.units.estimate import COMPARED_ESS, CORE, Estimate, EstimatorFold, differ, earned_by_unit
from rlrec.ope.units.fold import Fold, PositionCurve, RowSums


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
        terms = dict(zip(CORE, (used, batch.weight, weighted), strict=True))
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
            earned={"rows": earned_by_unit(batch, batch.reward, used)},
            figures={"distorted": np.array(distorted), **predictions},
        )

    def factors(self, factor: Array) -> dict[str, float]:
        unweighted = {name for kind in self.estimators.values() if not kind.weighted for name in kind.columns}
        return super().factors(factor) | dict.fromkeys(unweighted, 1.0)

    def at_end(
        self, partial: RowSums, label: str, estimator: ImpressionEstimator, summary: ClusterSummary, /
    ) -> EstimatorFold:  # fmt: skip
        curve, number = self.curve if estimator.needs_model else None, list(self.estimators).index(label)
        return EstimatorFold(
            label=label, estimator=estimator, summary=summary, weights=partial.weights["weight"],
            earned=partial.earned["rows"].sums[:, :, 0], distorted=float(partial.figures["distorted"][number]),
            predictions=partial.figures.get("predictions"), facts={} if curve is None else curve.facts,
            reasons=() if curve is None else ("position-model",),
        )  # fmt: skip

    def compared(
        self, estimates: list[Estimate], at_ends: Sequence[EstimatorFold], partial: RowSums
    ) -> list[Estimate]:  # fmt: skip
        """All estimates have a reason where dr and snips, each of which is right where propensities are, differ."""
        corrected = next((fold for fold in at_ends if fold.estimator.name in ("dr", "sndr")), None)
        if corrected is None or (corrected.diagnosis.ess or 0.0) < COMPARED_ESS:
            return estimates
        columns, value = (*corrected.estimator.columns[:2], "weighted_reward", "weight"), corrected.value_and_error[0]
        is_apart = differ(corrected.summary, columns, clusters=corrected.clusters, value=value)
        return [estimate.lowered(["models-differ"]) for estimate in estimates] if is_apart else estimates
