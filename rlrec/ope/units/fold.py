"""This module has the base class of folds, which turn rows of the log into estimates, and the fold of impressions. It
also compares several targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from statistics import NormalDist
from typing import Any, ClassVar, NamedTuple

import numpy as np

from rlrec.arrays import Array, Ids, finite_or_none
from rlrec.ope.checks.diagnostics import Weights, weights
from rlrec.ope.checks.verdicts import doubts_of
from rlrec.ope.intervals import intervals
from rlrec.ope.intervals.intervals import Bounds, Relative, Studentised
from rlrec.ope.sums.base import CORE_COLUMNS, Estimator, ImpressionEstimator, LogBatch, Ratio, ValueRange
from rlrec.ope.sums.moments import ClusterSummary, Moments, align_summaries, moments
from rlrec.ope.units.estimate import (
    COMPARED_ESS,
    USUAL_OPTIONS,
    Estimate,
    EstimatorFold,
    FinishOptions,
    draw_bounds,
    ratios_differ,
)
from rlrec.records import Record, Sums

# loggers with weights of their own, each in two halves; where there are more, the last one stands for all others
MAX_LOGGERS = 16


class PositionCurve(Record):
    """A PositionCurve holds the examination of positions 1, 2, ... relative to position 1, for use in an estimate.

    name: the name of the curve with its number, or None for an assumed curve; age_days: the days since the curve was
    fitted."""

    name: str | None = None
    examination: tuple[float, ...] = ()
    age_days: float | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Return the fields of an estimate that uses this curve."""
        return {"curve": self.name, "curve_age_days": self.age_days}


FLAT_CURVE = PositionCurve()
"""The curve of positions that are all examined alike."""


class WeightSpread(Sums):
    """A WeightSpread holds sums that show how much weights vary. Each array is (g,), for g weightings of the rows.

    rows, weight: the sums over rows of 1 and of the weight; squares: the sum over clusters of the squared weight of
    a cluster; least: the same sum with all weights 1, which is the smallest expected value of squares."""

    rows: Array
    weight: Array
    squares: Array
    least: Array


class RowSums(Sums, kw_only=True):
    """RowSums holds sums over rows of the log. The sums of two batches can be added.

    moments: the sums over clusters; weights: diagnostics of the weights, by the name of their column; figures:
    further sums of a fold, by name."""

    moments: Moments
    weights: Mapping[str, Weights]
    figures: Mapping[str, Any]

    def scale(self, factors: Mapping[str, float]) -> RowSums:
        """Return the sums with each column multiplied by a factor.

        factors: the factor of each column by name, in the order of the columns."""
        mean = float(np.mean([factor for name, factor in factors.items() if name.endswith("earned")]))
        return RowSums(
            moments=self.moments.scale(np.array(list(factors.values()))),
            weights={name: weights.scale(factors[name]) for name, weights in self.weights.items()},
            figures={
                name: figure * mean if isinstance(figure, np.ndarray) else figure.scale(mean)
                for name, figure in self.figures.items()
            },
        )


class Fold(ABC, Record):
    """A Fold computes the requested estimators for one target. The sums of a batch depend only on the rows of the
    batch. The order of batches, and how rows were split into batches, do not matter, up to rounding.

    estimators: the estimators by label, as `ope.parse` returns them; estimators with the same prefix have the same
    weights, and share the columns whose names begin with this prefix; spans_batches: whether a cluster may have rows
    in a later batch (users). If not, each cluster lies in one batch (sessions, rows), and memory is bounded for any
    number of clusters."""

    core_columns: ClassVar[tuple[str, ...]] = CORE_COLUMNS  # columns that diagnostics need for all estimators
    estimators: Mapping[str, Any]
    spans_batches: bool

    @property
    def summed_estimators(self) -> tuple[Estimator, ...]:
        """Return the estimators whose columns are summed."""
        return tuple(self.estimators.values())

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the names of all columns that the estimators need, each name once."""
        needed_columns = [name for estimator in self.summed_estimators for name in estimator.columns]
        return tuple(dict.fromkeys([*self.core_columns, *needed_columns]))

    @cached_property
    def weighings(self) -> dict[str, Any]:
        """Return one estimator for each weighting of rows, by prefix. Estimators with the same prefix have the same
        weights."""
        return {estimator.prefix: estimator for estimator in self.estimators.values()}

    @property
    def max_loggers(self) -> int:
        """Return the largest number of loggers whose rows can have weights of their own."""
        return MAX_LOGGERS

    @abstractmethod
    def row_sums(self, batch: Any, /) -> RowSums:
        """Return the sums of one batch. The sums of an empty batch are 0, so that adding them changes nothing."""

    def sums(
        self, matrix: Array, cluster: Ids, weights: Mapping[str, Weights], figures: Mapping[str, Any], /
    ) -> RowSums:  # fmt: skip
        """Return the sums of n rows.

        matrix (n, c): the columns of the rows; cluster (n,): the digest of each row's cluster; weights, figures: the
        diagnostics of the weights, and further sums of the rows."""
        total = moments(matrix, cluster, columns=self.columns, spans_batches=self.spans_batches)
        return RowSums(moments=total, weights=weights, figures=figures)

    @abstractmethod
    def estimator_fold(
        self, row_sums: RowSums, label: str, estimator: Any, summary: ClusterSummary, /
    ) -> EstimatorFold:
        """Return the object that computes the estimate of one estimator from the sums of the whole log.

        label: the name of the estimate; summary: the summary of the columns with the estimator's prefix."""

    def estimator_folds(self, row_sums: RowSums, summary: ClusterSummary | None = None, /) -> list[EstimatorFold]:
        """Return, for each estimator, the object that computes its estimate from the sums of the whole log.

        summary: the summary of the sums, if it has another order of clusters than `row_sums`."""
        summary = summary or row_sums.moments.summary()
        summaries = {prefix: summary.with_prefix(prefix) if prefix else summary for prefix in self.weighings}
        return [
            self.estimator_fold(row_sums, label, kind, summaries[kind.prefix])
            for label, kind in self.estimators.items()
        ]

    # -- several loggers --

    def spreads(self, row_sums_list: Sequence[RowSums], /) -> list[WeightSpread]:
        """Return, for each of the given sums, how much the weights of clusters vary."""
        spreads = []
        for summary in (row_sums.moments.summary() for row_sums in row_sums_list):
            rows, weight = (
                [summary.columns[prefix + name] for prefix in self.weighings] for name in ("rows", "weight")
            )
            square = np.diagonal(summary.moment)
            spreads.append(WeightSpread(summary.total[rows], summary.total[weight], square[weight], square[rows]))
        return spreads

    def factors(self, factor: Array, /) -> dict[str, float]:
        """Return the factor of each column by name, when rows are multiplied by a factor.

        factor (g,): the factor of a row in each weighting."""
        (factor_of_rows,) = factor.tolist()
        return dict.fromkeys(self.columns, factor_of_rows)

    # -- estimates --

    def finish(self, row_sums: RowSums, options: FinishOptions = USUAL_OPTIONS, /) -> list[Estimate]:
        """Return one estimate for each estimator, in order. Raises InputError for an interval that an estimator does
        not have, and for a level outside (0, 1)."""
        return self.finish_together([(row_sums, options)])[0]

    def finish_together(self, groups: Sequence[tuple[RowSums, FinishOptions]]) -> list[list[Estimate]]:
        """Return the estimates of several groups of rows of one log, with intervals that hold together. Intervals of
        the bootstrap use the max-t of the same replicates; all other intervals have the Bonferroni level. If there is
        only one group, its estimates are compared with each other. Raises InputError as `finish` does."""
        sums, common_options = [row_sums for row_sums, _ in groups], groups[0][1]
        intervals.check_interval(common_options.interval, common_options.level, estimators=self.estimators)
        folds = same_units = list(map(self.estimator_folds, sums))
        bootstraps: list[dict[Estimator, Bounds]] = [{} for _ in groups]
        if common_options.interval == "bootstrap-t":
            if len(groups) > 1:
                same_units = list(
                    map(self.estimator_folds, sums, align_summaries([row_sums.moments for row_sums in sums]))
                )
            bootstraps = draw_bounds(same_units, common_options)
        estimates = [
            [
                estimator_fold.estimate(replace(options, groups=len(groups)), bounds)
                for estimator_fold in estimator_folds
            ]
            for estimator_folds, (_, options), bounds in zip(folds, groups, bootstraps, strict=True)
        ]
        return [self.compare_estimates(estimates[0], folds[0], sums[0])] if len(groups) == 1 else estimates

    def compare_estimates(
        self, estimates: list[Estimate], estimator_folds: Sequence[EstimatorFold], row_sums: RowSums
    ) -> list[Estimate]:
        """Return the estimates, with a further reason for doubt if two estimates that should agree differ."""
        return estimates


class ImpressionFold(Fold):
    """An ImpressionFold computes the requested estimators from impressions.

    curve: the position curve of the reward model, or None if the model has effects of positions instead. The figures
    of its sums are distortion, the sum of |unchanged weight - weight used| for each estimator, and predictions, the
    range of the reward model's predictions."""

    curve: PositionCurve | None = None

    @cached_property
    def summed_estimators(self) -> tuple[ImpressionEstimator, ...]:
        """Return the requested estimators and, for each biased one, the estimators whose bounds enclose it."""
        return tuple(side for kind in self.estimators.values() for side in (kind, *kind.enclosing_estimators()))

    def row_sums(self, batch: LogBatch, /) -> RowSums:
        """Return the sums of one batch. Raises InputError if an estimator needs a reward model that the batch lacks."""
        terms = dict(batch.core_columns)
        for estimator in self.summed_estimators:
            if not terms.keys() >= set(estimator.columns):
                terms.update(zip(estimator.columns, estimator.terms(batch).T, strict=True))
        matrix = batch.with_counts(np.column_stack([terms[name] for name in self.columns]))
        kinds = self.estimators.values()
        distortions = [batch.with_counts(kind.distortion(batch)).sum() if kind.is_biased else 0.0 for kind in kinds]
        predictions = {} if batch.predicted is None else {"predictions": ValueRange.from_values(batch.predicted)}
        figures = {"distortion": np.array(distortions), **predictions}
        return self.sums(matrix, batch.cluster, {"weight": weights(batch)}, figures)

    def factors(self, factor: Array, /) -> dict[str, float]:
        plain_columns = {name for kind in self.estimators.values() if not kind.uses_weights for name in kind.columns}
        return super().factors(factor) | dict.fromkeys(plain_columns, 1.0)

    def estimator_fold(
        self, row_sums: RowSums, label: str, estimator: ImpressionEstimator, summary: ClusterSummary, /
    ) -> EstimatorFold:  # fmt: skip
        curve, number = self.curve if estimator.needs_model else None, list(self.estimators).index(label)
        return EstimatorFold(
            label=label, estimator=estimator, summary=summary, weights=row_sums.weights["weight"],
            distortion=float(row_sums.figures["distortion"][number]),
            predictions=row_sums.figures.get("predictions"), facts={} if curve is None else curve.facts,
            weight_column=estimator.weight_column, mean_column=estimator.weight_column,
            reasons=() if curve is None else ("position-model",),
        )  # fmt: skip

    def models_differ(self, estimator_folds: Sequence[EstimatorFold]) -> bool:
        """Tell whether dr (or sndr) and snips differ by more than chance. They agree if propensities are right."""
        corrected_fold = next((fold for fold in estimator_folds if fold.estimator.name in ("dr", "sndr")), None)
        if corrected_fold is None or (corrected_fold.diagnosis.ess or 0.0) < COMPARED_ESS:
            return False
        columns, value = (
            (*corrected_fold.estimator.columns[:2], "weighted_reward", "weight"),
            corrected_fold.value_and_error[0],
        )
        return ratios_differ(corrected_fold.summary, columns, clusters=corrected_fold.clusters, value=value)

    def compare_estimates(
        self, estimates: list[Estimate], estimator_folds: Sequence[EstimatorFold], row_sums: RowSums
    ) -> list[Estimate]:
        """Return the estimates. Each gets the reason `models-differ` if dr and snips differ."""
        if not self.models_differ(estimator_folds):
            return estimates
        return [estimate.with_reasons(["models-differ"]) for estimate in estimates]


# -- several targets on the same rows: bounds of their lifts that hold together, and which may be the best --
#
# Each bound is wrong in 2.5 % of logs, so among 60 equal targets, one looks better in most logs. Bounds therefore
# extend to the largest t of all targets in the same bootstrap draw (max-t). A target may be the best unless another one
# exceeds it by more than all others together would by chance if it were the best. So the best one is excluded with the
# error probability of the interval, for any number of targets. Source: subset selection after Gupta 1965; own
# derivation.


_NEGLIGIBLE_SHARE = 1e-9  # of the spread of two lifts, below which they count as equal


class Standing(NamedTuple):
    """A Standing says how one target compares with others.

    stretch: factors for the distances of the lift from its low and its high bound, so that the bounds of all targets
    hold together; t: quantiles of t that replace the target's own, if its bounds follow from quantiles alone;
    may_be_best: whether the target may be the best, or None if that is not known."""

    stretch: Bounds
    t: Bounds | None
    may_be_best: bool | None

    def bounds(self, estimate: Estimate) -> tuple[float | None, float | None]:
        """Return bounds of the lift that hold together for all targets. They are never narrower than the estimate's own
        bounds."""
        lift, error = estimate.lift or 0.0, estimate.lift_std_error or 0.0
        low, high = (
            np.inf if bound is None else times * abs(bound - lift)
            for bound, times in zip((estimate.lift_lower, estimate.lift_upper), self.stretch, strict=True)
        )
        if self.t is not None:
            low, high = max(low, self.t[1] * error), max(high, -self.t[0] * error)
        return finite_or_none(lift - low), finite_or_none(lift + high)


def compare_targets(
    targets: Sequence[Sequence[Estimate]], folds: Sequence[Sequence[EstimatorFold]], options: FinishOptions
) -> list[list[Estimate]]:
    """Return the estimates of several targets, with bounds that hold together and with whether each target may be the
    best. Only targets with a sufficient estimate that is not in doubt are compared.

    targets: the estimates of each target; folds: for each target, the objects that computed its estimates."""
    rows = [list(estimates) for estimates in targets]
    for number in range(len(rows[0])):
        judged_targets = [
            target for target, estimates in enumerate(rows)
            if estimates[number].verdict != "insufficient" and estimates[number].lift_lower is not None
            and not doubts_of(estimates[number].reasons)
        ]  # fmt: skip
        if len(judged_targets) > 1:
            is_question = [not rows[target][number].target_loggers for target in judged_targets]
            target_standings = standings(
                [folds[target][number] for target in judged_targets], options, is_question_by_target=is_question
            )
            for target, standing in zip(judged_targets, target_standings, strict=True):
                estimate = rows[target][number]
                is_joint = sum(is_question) > 1  # else one question alone is asked
                low, high = standing.bounds(estimate) if is_joint else (estimate.lift_lower, estimate.lift_upper)
                rows[target][number] = replace(
                    estimate, simultaneous_lower=low, simultaneous_upper=high,
                    may_be_best=standing.may_be_best,
                )  # fmt: skip
    return rows


def standings(
    folds: Sequence[EstimatorFold], options: FinishOptions, *, is_question_by_target: Sequence[bool]
) -> list[Standing]:
    """Return how each target compares with the others, for one estimator.

    folds: for each target, the object that computed its estimate, all from the same rows; is_question_by_target: for
    each target, False if the target served the log itself. Such a target would widen the bounds of the others for
    nothing."""
    is_plain = [not fold.distortion and not fold.heaviness for fold in folds]
    folds = [fold.unbiased_fold for fold in folds]
    is_present = [fold.logged_sums[:, 1] > 0 for fold in folds]
    can_draw = options.interval == "bootstrap-t" and all(
        np.array_equal(is_present[0], flags) for flags in is_present[1:]
    )
    if not can_draw or len(is_present[0]) < 2:
        n_tests = 1, max(1, sum(is_question_by_target))
        usual_quantile, joint_quantile = (NormalDist().inv_cdf((1 - options.level) / 2 / number) for number in n_tests)
        return [Standing((joint_quantile / usual_quantile, joint_quantile / usual_quantile), None, None) for _ in folds]
    samples = [(Relative(fold.estimator, Ratio()), _columns(fold)) for fold in folds]
    lifts = intervals.studentised_bootstraps(samples, seed=options.seed, n_replicates=options.replicates)
    samples_t = [
        lift.t for lift, is_question in zip(lifts, is_question_by_target, strict=True) if len(lift.t) and is_question
    ]
    quantiles = intervals.joint_quantiles(samples_t or [lift.t for lift in lifts if len(lift.t)], options.level)
    may_be_best = _may_be_best(folds, lifts, options.level)
    return [
        Standing((1.0, 1.0), quantiles if len(lift.t) else None, may_target_win) if is_unwidened
        else Standing(_stretch(lift, quantiles, options.level), None, may_target_win)
        for lift, may_target_win, is_unwidened in zip(lifts, may_be_best, is_plain, strict=True)
    ]  # fmt: skip


def _columns(fold: EstimatorFold) -> Array:
    """Return the columns of the estimator and the logged sums, side by side, for each cluster or block."""
    return np.column_stack([fold.units, fold.logged_sums])


def _stretch(lift: Studentised, joint_quantiles: Bounds, level: float) -> Bounds:
    """Return two factors, at least 1, for the low and the high bound: the joint quantiles of t over the lift's own
    quantiles."""
    if not len(lift.t):
        return 1.0, 1.0
    (low, high), (joint_low, joint_high) = lift.quantiles(level), joint_quantiles
    return (max(1.0, joint_high / high) if high > 0 else 1.0), (max(1.0, joint_low / low) if low < 0 else 1.0)


def _may_be_best(folds: Sequence[EstimatorFold], lifts: Sequence[Studentised], level: float) -> list[bool | None]:
    """Tell for each target whether it may be the best, or None if that is not known. A lift without an error is the
    same in every replicate."""
    value = np.array([lift.value if len(lift.t) else fold.lift[0] for fold, lift in zip(folds, lifts, strict=True)])
    is_finite, n_replicates = np.isfinite(value), max(len(lift.t) for lift in lifts)
    rank = int((n_replicates + 1) * (1 - level) + _NEGLIGIBLE_SHARE)
    if not rank:
        return [None] * len(folds)
    with np.errstate(all="ignore"):
        distance = np.stack([lift.values - lift.value if len(lift.t) else np.zeros(n_replicates) for lift in lifts])
        influence = np.stack([
            _columns(fold) @ Relative(fold.estimator, Ratio()).gradient(_columns(fold).sum(axis=0))
            if len(lift.t) else np.zeros(len(fold.logged_sums)) for fold, lift in zip(folds, lifts, strict=True)
        ])  # fmt: skip
    products = influence @ influence.T
    square = np.diag(products)
    spread = square[:, None] + square - 2 * products
    error = np.sqrt(np.where(spread > _NEGLIGIBLE_SHARE * (square[:, None] + square), spread, np.inf))
    may_be_best: list[bool | None] = []
    for target in range(len(folds)):
        if not is_finite[target]:
            may_be_best.append(None)
            continue
        # by how many errors the others exceed it, and would by chance
        largest_excess = ((value - value[target]) / error[target])[is_finite].max()
        chance_excess = ((distance - distance[target]) / error[target][:, None])[is_finite].max(axis=0)
        may_be_best.append(bool(largest_excess <= np.sort(chance_excess)[-rank]))
    return may_be_best
