"""This module turns sums over clusters into estimates, one for each estimator, when the log has been read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from rlrec.arrays import Array, finite_or_none
from rlrec.ope.checks import verdicts
from rlrec.ope.checks.diagnostics import Weights
from rlrec.ope.checks.reasons import LEAST_REWARDS
from rlrec.ope.checks.verdicts import WEIGHT_DOUBTS, Diagnosis
from rlrec.ope.intervals import intervals
from rlrec.ope.intervals.betting import mean_bound
from rlrec.ope.intervals.intervals import UNKNOWN, Bounds, Minus, Relative, WeightSums
from rlrec.ope.sums.base import Estimator, Ratio, ValueRange
from rlrec.ope.sums.moments import BET_COLUMN, ClusterSummary
from rlrec.records import Record

MAX_APART_Z = 3  # standard errors by which two estimates that should agree may differ
NEGLIGIBLE_SHARE = 0.05  # of the effective sample size of the other loggers
COMPARED_ESS = 100  # of an estimate that is compared with one that should agree with it
ANY_REWARD: Bounds = (-np.inf, np.inf)
# A mean weight this close to 1 raises no doubt, however small its error: scores in float32, or propensities with four
# digits, cause such deviations.
NEGLIGIBLE_DEVIATION = 1e-4
MAX_WEIGHT_ROUNDING = 2e-4  # deviation of the mean weight from 1 that propensities with four digits cause
# Above this largest weight, bootstrap-t alone is too narrow: few rows determine the estimate, and rows that would
# change it are missing. An interval of estimators that `widen` then extends towards that of Cressie and Read.
HEAVY_WEIGHT = 20.0
MANY_ROWS = 1_000.0  # effective sample size above which heavy weights have occurred often enough
# The figures of an estimate that is computed from all rows or not at all.
_FIGURE_NAMES = (
    "value", "std_error", "lower", "upper", "safe_lower", "lift", "lift_lower", "lift_upper", "lift_std_error", "ess",
    "max_weight", "mean_weight", "top1_share", "k_hat",
)  # fmt: skip


class LoggerWeight(Record):
    """A LoggerWeight says how much each row of one logger counts. The mean weight of all rows is 1.

    version: the version of the logger, or None for all loggers without a weight of their own; rows: the number of
    its rows; is_target: whether the logger chose exactly as the target does."""

    version: str | None
    rows: int
    weight: float
    is_target: bool = False


class Estimate(Record):
    """An Estimate is one line of `evaluate --json`, from `estimator` on. A figure that does not exist is None, never
    NaN.

    std_error: the standard error over clusters, by the delta method; None if no interval is valid (dm)
    clusters, n: the numbers of clusters and of rows used
    ess: the effective sample size over clusters
    bias_bound: the largest bias that changed weights can cause, which lower and upper include; 0 if no weight was
        changed, None if the bias is unknown
    safe_lower: lower minus bias_bound, for gates that trust no model
    always_lower: for ips, a one-sided lower bound at this level that holds at every look of a growing log
    k_hat, cluster_share, nonzero, reward_share, mean_weight_z: figures of the verdict (`Diagnosis`)
    left_out: the number of rows without a propensity, or of visits that could not be used
    ess_by_step: the effective sample size over visits at each step
    horizon: the first step, from 0, at which ess_by_step is below 5 % of the visits, from where on the
        log does not support the target; None if it always does, and per impression
    return_steps: the number of first steps that carry 90 % of the return
    supported_gamma: the largest discount whose return the log supports (reason short-horizon)
    curve, curve_age_days: the position curve that the estimate rests on (with its number), and its age; None without a
        curve or with an assumed curve
    loggers, logger_weights: the number of loggers whose rows were weighed by the spread of their weights, and how
        much a row of each logger counts (0 if it is left out); 1 and empty if all rows count once
    log: the filter by which rows of the log were selected
    simultaneous: whether the intervals of all groups hold together with probability `level`, not one by one
    served: the mean logged reward of the same rows, with the same counts
    lift: the excess of `value` over `served`, as a share of `served`
    lift_std_error, lift_lower, lift_upper: the error and bounds of the lift, which include the errors of both means; a
        bound is as many errors away as that of `value`, and is None if the true mean of `served` may be 0
    reward_seen: the share of the logged |reward| that the estimator uses, in [0, 1]; estimators per impression do not
        use events of whole slates
    simultaneous_lower, simultaneous_upper: bounds of the lift that hold together for all targets of the request
    may_be_best: whether no other target is surely better; None for a single target, and for an insufficient estimate"""

    estimator: str
    estimand: str
    unit: str
    value: float | None
    std_error: float | None
    lower: float | None
    upper: float | None
    level: float
    interval: str
    cluster: str
    clusters: int
    n: int
    ess: float | None
    max_weight: float | None
    mean_weight: float | None
    top1_share: float | None
    unsupported: float | None
    verdict: str
    reasons: tuple[str, ...]
    bias_bound: float | None
    k_hat: float | None
    cluster_share: float | None
    nonzero: int
    reward_share: float | None
    mean_weight_z: float | None
    left_out: int
    ess_by_step: tuple[float, ...] | None = None
    horizon: int | None = None
    return_steps: int | None = None
    supported_gamma: float | None = None
    safe_lower: float | None = None
    always_lower: float | None = None
    curve: str | None = None
    curve_age_days: float | None = None
    simultaneous: bool = False
    loggers: int = 1
    logger_weights: tuple[LoggerWeight, ...] = ()
    log: str | None = None
    served: float | None = None
    lift: float | None = None
    lift_lower: float | None = None
    lift_upper: float | None = None
    lift_std_error: float | None = None
    reward_seen: float = 1.0
    simultaneous_lower: float | None = None
    simultaneous_upper: float | None = None
    may_be_best: bool | None = None

    @property
    def lift_bounds(self) -> tuple[float | None, float | None]:
        """Return the bounds of the lift from which decisions are made. If several targets were evaluated, these bounds
        hold for all targets together."""
        if self.may_be_best is None and self.simultaneous_lower is None:
            return self.lift_lower, self.lift_upper
        return self.simultaneous_lower, self.simultaneous_upper

    @cached_property
    def logger_shares(self) -> list[tuple[LoggerWeight, float]]:
        """Return each logger with its share of the rows, where each row counts by the weight of its logger."""
        total = sum(logger.rows * logger.weight for logger in self.logger_weights)
        return [(logger, logger.rows * logger.weight / total) for logger in self.logger_weights]

    @cached_property
    def target_loggers(self) -> list[str]:
        """Return the loggers that chose exactly as the target does, if they have nearly all rows with a weight above 0.
        The evaluation then compares the target with itself. Otherwise the result is empty."""
        doubts = WEIGHT_DOUBTS - {"mean-weight"}  # which here says that what counts next to nothing lacks some rows
        shares = {logger.version: share for logger, share in self.logger_shares if logger.is_target and share}
        is_nearly_all = sum(shares.values()) >= 1 - NEGLIGIBLE_SHARE and doubts.isdisjoint(self.reasons)
        return [name for name in shares if name is not None] if is_nearly_all else []

    def with_reasons(self, reasons: Iterable[str]) -> Estimate:
        """Return the estimate with further reasons to doubt it, and with its verdict lowered accordingly."""
        verdict, all_reasons = verdicts.lower_verdict(self.verdict, (*self.reasons, *reasons))
        return replace(self, verdict=verdict, reasons=all_reasons)


class FinishOptions(Record):
    """FinishOptions holds the options with which sums are turned into estimates, and words for the report.

    interval, level: the kind of interval, and its confidence in (0, 1); cluster: the name of the randomised unit,
    for the report; reward_range: (low, high) of one reward, infinite if rewards are not clipped; greedy: whether the
    target was evaluated without its exploration, for the report; extra_reasons: names of `reasons.REASONS` that only
    the caller can know (`in-sample`, `logging-states`); selected_rows: whether rows were selected by the arm that
    the logger chose, so that their mean weight need not be 1; seed, replicates: the seed and the number of
    replicates of the bootstrap; groups: the number of groups of rows whose intervals hold together."""

    interval: str = "bootstrap-t"
    level: float = 0.95
    cluster: str = "session"
    reward_range: Bounds = ANY_REWARD
    greedy: bool = False
    extra_reasons: tuple[str, ...] = ()
    selected_rows: bool = False
    seed: int = 0
    replicates: int = intervals.REPLICATES
    groups: int = 1


USUAL_OPTIONS = FinishOptions()


class EstimatorFold(Record, eq=False):
    """An EstimatorFold computes the estimate of one estimator from the sums of the whole log.

    label: the name of the estimate; summary: the sums over clusters; weights: diagnostics of the weights;
    distortion: the sum of |unchanged weight - weight used|; predictions: the range of the reward model's
    predictions, None without a model; weight_column: the column of the weights from which the effective sample size
    is computed; mean_column: the column of weights that are 1 on average; step_sums: arrays (m, h) with, for each
    cluster or block, the sums whose quotient is taken at each of h steps; ess: the effective sample size, if it is
    not that of the weights; max_ess: an upper limit of the effective sample size; has_short_horizon: whether this limit
    is too small; reward_range: the range of the reward of one row, if it differs from the options; observed_range:
    the range of the logged rewards of rows, if neither a reward nor a weight has a known bound; reasons: the reasons
    for doubt that do not follow from figures; facts: fields of the estimate that do not follow from sums; noun,
    basis: words for what is estimated."""

    label: str
    estimator: Estimator
    summary: ClusterSummary
    weights: Weights
    distortion: float = 0.0
    predictions: ValueRange | None = None
    weight_column: str = "weight"
    mean_column: str = "weight"
    step_sums: Sequence[Array] = ()
    ess: float | None = None
    max_ess: float = np.inf
    has_short_horizon: bool = False
    reward_range: Bounds | None = None
    observed_range: ValueRange | None = None
    reasons: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    noun: str = "reward"
    basis: str = "logging states"

    @cached_property
    def columns(self) -> list[int]:
        """Return the indices of the estimator's columns in the summary."""
        return [self.summary.columns[name] for name in self.estimator.columns]

    @cached_property
    def units(self) -> Array:
        """Return the estimator's columns per cluster or block, (m, d)."""
        units = self.summary.units[:, self.columns]
        return np.column_stack([units, *self.step_sums]) if self.step_sums else units

    @cached_property
    def logged_sums(self) -> Array:
        """Return two sums for each cluster or block, (m, 2): the logged rewards, and the number of rows used."""
        return self.summary.units[:, [self.summary.columns["earned"], self.summary.columns["rows"]]]

    @property
    def sample(self) -> Array:
        """Return the rows that a bootstrap draws from, (m, d), one for each cluster or block. Clusters without a usable
        row are not included. Empty blocks are included, since the number of clusters in a block is random."""
        if self.summary.is_by_block or self.step_sums:
            return self.units
        return self.units[self.logged_sums[:, 1] > 0]

    @cached_property
    def n(self) -> int:
        """Return the number of rows used."""
        return self.weights.rows if self.estimator.uses_weights else self.weights.rows + self.weights.left_out

    @property
    def has_weights(self) -> bool:
        """Tell whether the weights can be judged: the estimator uses them, and there are rows and a finite largest
        weight."""
        has_information = self.n > 0 and not (self.estimator.needs_all_rows and self.weights.left_out)
        return self.estimator.uses_weights and has_information and bool(np.isfinite(self.weights.largest))

    @property
    def is_logged(self) -> bool:
        """Tell whether the target chooses exactly as the loggers did, so that all weights are 1."""
        largest, total, count = self.weights.largest, self.weights.weight, self.weights.total_count
        return self.has_weights and largest <= 1 + MAX_WEIGHT_ROUNDING and total >= count * (1 - MAX_WEIGHT_ROUNDING)

    @cached_property
    def clusters(self) -> int:
        """Return the number of clusters with a used row."""
        rows = "rows" if self.estimator.uses_weights else self.estimator.columns[1]
        return int(self.summary.n_clusters[self.summary.columns[rows]])

    @cached_property
    def value_and_error(self) -> tuple[float, float]:
        """Return the value and standard error, or NaN if there is no value or error."""
        if not self.n:
            return np.nan, np.nan
        if self.step_sums:
            sample = intervals.studentised_bootstrap(self.estimator, self.units, seed=0, n_replicates=0)
            return sample.value, sample.error
        total, moment = self.summary.total[self.columns], self.summary.moment[np.ix_(self.columns, self.columns)]
        value, error = intervals.value_and_error(self.estimator, total, moment, self.clusters)
        return float(value), float(error)

    def _lift(self, sides: Sides, options: FinishOptions) -> dict[str, Any]:
        """Return the fields of the lift, which is the estimate's excess over the logged mean, as a share of the logged
        mean. The sides are the folds that enclose the estimate, with their bounds."""
        lift, lift_error = self.lift
        figures: dict[str, Any] = {"lift": finite_or_none(lift)}
        if not self.estimator.intervals or not np.isfinite([lift, lift_error]).all():
            return figures
        # a ratio to the logged mean has no interval unless that mean surely is not 0
        logged_mean = intervals.studentised_bootstrap(Ratio(), self.logged_sums, seed=0, n_replicates=0)
        logged_bounds = (
            intervals.normal_bounds(logged_mean.value, logged_mean.error, options.level)
            if logged_mean.error
            else (logged_mean.value,) * 2
        )
        if logged_bounds[0] <= 0 <= logged_bounds[1]:
            return figures
        low, high = _common_bounds([side.lift_bounds(bounds) for side, bounds in sides], lift)
        if self.limits(options.reward_range)[0] >= 0:
            low = max(low, -1.0)
        return figures | {
            "lift_lower": finite_or_none(low), "lift_upper": finite_or_none(high), "lift_std_error": lift_error,
        }  # fmt: skip

    @cached_property
    def lift(self) -> tuple[float, float]:
        """Return the lift and its standard error, or NaN if they do not exist. Both are 0 if the target chooses as the
        loggers did, or if its sums equal the logged sums."""
        units = np.column_stack([self.units, self.logged_sums])
        if not self.n or len(units) < 2:
            return np.nan, np.nan
        with np.errstate(all="ignore"):
            is_equal = self.is_logged or np.allclose(units[:, :2], units[:, -2:], rtol=1e-9, atol=0.0)
            sample = intervals.studentised_bootstrap(Relative(self.estimator, Ratio()), units, seed=0, n_replicates=0)
        return (0.0, 0.0) if is_equal and np.isfinite(sample.value) else (sample.value, sample.error)

    def lift_bounds(self, bounds: Bounds) -> Bounds:
        """Return the bounds of the lift. Each is as many standard errors away from the lift as the given bound of the
        value is away from the value."""
        (value, error), (lift, lift_error) = self.value_and_error, self.lift
        if not lift_error:
            return lift, lift
        low, high = (
            (lift + (bound - value) / error * lift_error if error else np.nan) if np.isfinite(bound) else bound
            for bound in bounds
        )
        return low, high

    def sides(self, reward_range: Bounds) -> list[EstimatorFold]:
        """Return the folds whose bounds enclose this estimate.

        If no weights were changed, the result is this fold alone. Otherwise the estimate may be biased, so its own
        error is not enough. The result is then the same estimator with unchanged weights, with the smallest value
        that the log allows (for the lower bound), and with the largest value (for the upper bound).

        reward_range: the reward range of the options."""
        if not self.distortion:
            return [self]
        estimators = self.estimator.enclosing_estimators(*(self.reward_range or reward_range))
        return [replace(self, estimator=kind, distortion=0.0) for kind in estimators]

    def limits(self, reward_range: Bounds) -> Bounds:
        """Return the limits at which bounds are cut. They are the limits of one row's reward for an estimate that is a
        weighted mean of rewards, else infinite.

        reward_range: the reward range of the options."""
        return (self.reward_range or reward_range) if self.estimator.is_self_normalised else ANY_REWARD

    @property
    def unbiased_fold(self) -> EstimatorFold:
        """Return the fold of the same estimator with unchanged weights."""
        return self.sides((0.0, 0.0))[0]

    def bounds(self, options: FinishOptions, bootstrap: Mapping[Estimator, Bounds]) -> Bounds:
        """Return the interval that follows from the error of this estimator. Unknown bounds are infinite.

        bootstrap: the bounds of each estimator by bootstrap-t."""
        value, error = self.value_and_error
        if not self.estimator.intervals or not np.isfinite(value) or not np.isfinite(error):
            return UNKNOWN
        if options.interval == "cressie-read":
            return self._cressie_read(options)
        if options.interval == "normal":
            return intervals.normal_bounds(value, error, options.level)
        bounds = bootstrap[self.estimator]
        return intervals.pull_bounds(bounds, self._cressie_read(options), self.heaviness) if self.heaviness else bounds

    @cached_property
    def heaviness(self) -> float:
        """Return how far the interval is extended towards the interval of Cressie and Read, from 0 to 1. The result
        grows with the largest weight, from 0 at `HEAVY_WEIGHT` to its maximum at twice that weight. The maximum falls
        below 1 if more than MANY_ROWS rows are effective."""
        largest_weight, ess = self.weights.largest, self.diagnosis.ess
        if not (self.estimator.widens_interval and largest_weight > HEAVY_WEIGHT and ess):
            return 0.0
        return min(1.0, largest_weight / HEAVY_WEIGHT - 1) * min(1.0, MANY_ROWS / ess)

    def _cressie_read(self, options: FinishOptions) -> Bounds:
        """Return the bounds of Cressie and Read, with clusters as rows. A cluster has the weight A / mbar and the
        reward B / A, where A and B are its sums of weights and of weighted rewards, and mbar is the mean number of rows
        per cluster.

        For an estimator with a reward model, B is the cluster's sum minus the estimate for each row, so that the
        reward is an error of the model. A missing cluster then adds at most the largest possible error of the model."""
        n_rows, weight, reward = (self.summary.columns[name] for name in ("rows", "weight", self.estimator.columns[0]))
        total, moment, largest_sum = self.summary.total, self.summary.moment, self.summary.largest_sums
        mbar, (least, largest), value = total[n_rows] / self.clusters, options.reward_range, 0.0
        bound = float(max(self.weights.bound * largest_sum[n_rows], largest_sum[weight]) / mbar)
        if self.observed_range is not None:
            (least, largest), bound = astuple(self.observed_range), float(largest_sum[weight] / mbar)
        if self.predictions is not None and self.estimator.needs_model:
            value = self.value_and_error[0]
            least, largest = least - self.predictions.largest, largest - self.predictions.least
        centred_moment = moment[reward, reward] - 2 * value * moment[n_rows, reward] + value**2 * moment[n_rows, n_rows]
        sums = WeightSums(
            n=self.clusters, w=float(total[weight] / mbar), wr=float((total[reward] - value * total[n_rows]) / mbar),
            w2=float(moment[weight, weight] / mbar**2),
            w2r=float((moment[weight, reward] - value * moment[weight, n_rows]) / mbar**2),
            w2r2=float(centred_moment / mbar**2),
        )  # fmt: skip
        low, high = intervals.cressie_read(sums, largest=bound, reward=(least, largest), level=options.level)
        return value + low, value + high

    def estimate(self, options: FinishOptions, bootstrap: Mapping[Estimator, Bounds]) -> Estimate:
        """Return the estimate for the report.

        bootstrap: the bounds of each estimator by bootstrap-t."""
        options = replace(options, reward_range=self.reward_range or options.reward_range)
        level = options.level
        if options.interval != "bootstrap-t":
            level = 1 - (1 - level) / options.groups
        side_folds = self.sides(options.reward_range)
        sides = [(side, side.bounds(replace(options, level=level), bootstrap)) for side in side_folds]
        if self.distortion:
            unbiased_side, (least_side, (low, _)), (largest_side, (_, high)) = sides
            sides = [unbiased_side, (least_side, (low, np.inf)), (largest_side, (-np.inf, high))]
        interval = _common_bounds([bounds for _, bounds in sides], self.value_and_error[0])
        lower, upper, bound_reasons = _cut_bounds(interval, self, options)
        lower, upper = (lower, upper) if np.isfinite(self.value_and_error[0]) else (None, None)
        bound_reasons = [] if self._is_constant else bound_reasons
        (value, error), bias = self.value_and_error, self._bias_bound(options.reward_range)
        weights, diagnosis = self.weights, self.diagnosis
        if options.selected_rows:
            diagnosis = replace(diagnosis, mean_weight_z=None, mean_weight_upper=None)
        is_doubtful = self.estimator.is_biased and (bias is None or bias > (error if np.isfinite(error) else 0.0))
        extra_reasons = (
            *options.extra_reasons, *self.reasons, *bound_reasons,
            *(["clipping-bias"] if is_doubtful else []), *(["no-variation"] if self._is_constant else []),
            *([self.estimator.lack_reason] if self.estimator.uses_weights and weights.left_out else []),
        )  # fmt: skip
        verdict, reasons = verdicts.decide_verdict(diagnosis, extra_reasons=extra_reasons)
        is_weighted = self.estimator.uses_weights and self.n > 0
        serving_text = "greedy" if options.greedy else "as served"
        estimate = Estimate(
            estimator=self.label, estimand=f"mean {self.noun} per {self.estimator.unit}, {serving_text}, {self.basis}",
            unit=self.estimator.unit, value=finite_or_none(value),
            std_error=finite_or_none(error) if self.estimator.intervals else None, lower=lower, upper=upper,
            level=options.level, interval=options.interval, cluster=options.cluster, clusters=self.clusters, n=self.n,
            ess=diagnosis.ess, max_weight=finite_or_none(weights.largest) if is_weighted else None,
            mean_weight=self._mean_weight[0] if is_weighted else None,
            top1_share=weights.top1_share if is_weighted else None, unsupported=diagnosis.unsupported, verdict=verdict,
            reasons=reasons, bias_bound=bias, k_hat=diagnosis.k_hat, cluster_share=diagnosis.cluster_share,
            nonzero=diagnosis.nonzero, reward_share=diagnosis.reward_share,
            mean_weight_z=finite_or_none(diagnosis.mean_weight_z),
            left_out=self.weights.rows + self.weights.left_out - self.n,
            safe_lower=None if lower is None or bias is None else lower - bias, simultaneous=options.groups > 1,
            served=finite_or_none(weights.logged_mean), always_lower=self._always_lower(options.level),
            **self._lift(sides, options), **self.facts,
        )  # fmt: skip
        if self.estimator.needs_all_rows and weights.left_out:  # there is no estimate
            absent_figures: dict[str, Any] = dict.fromkeys(_FIGURE_NAMES)
            return replace(estimate, **absent_figures, n=0, clusters=0, verdict="insufficient", reasons=("no-pairs",))
        return estimate

    def _always_lower(self, level: float) -> float | None:
        """Return a lower bound of the mean weighted reward per row, which holds at every look of a growing log. The
        result is None for an estimator without such a bound."""
        growth = self.summary.growth
        if self.estimator.columns != (BET_COLUMN, "rows") or not self.n or np.isnan(growth).any():
            return None
        return mean_bound(growth, float(self.summary.total[self.summary.columns["rows"]]), alpha=1 - level)

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """Return the figures from which the verdict follows."""
        weights, is_weighted = self.weights, self.estimator.uses_weights
        summary, first_column, weight_index = self.summary, self.columns[0], self.summary.columns[self.weight_column]
        with np.errstate(all="ignore"):
            # (sum W)^2 / sum W^2 over clusters, with W the cluster's sum of weights; the largest share of one cluster
            ess = finite_or_none(summary.total[weight_index] ** 2 / summary.moment[weight_index, weight_index])
            ess = None if ess is None else min(ess, self.max_ess)
            cluster_share = finite_or_none(summary.largest_sums[first_column] / summary.absolute_sums[first_column])
        return Diagnosis(
            uses_weights=is_weighted, n=self.n, clusters=self.clusters,
            ess=(ess if self.ess is None else self.ess) if is_weighted else None,
            has_short_horizon=self.has_short_horizon and ess is not None,
            nonzero=weights.weighted_rewards if is_weighted else weights.rewards,
            reward_share=weights.not_default / weights.weight if is_weighted and weights.weight else None,
            k_hat=weights.k_hat if is_weighted else None,
            unsupported=weights.unsupported_mass / weights.n_unsupported if weights.n_unsupported else None,
            cluster_share=cluster_share,
            mean_weight_z=self._mean_weight[1] if is_weighted else None,
            mean_weight_upper=self._mean_weight[2] if is_weighted else None,
        )  # fmt: skip

    @cached_property
    def _mean_weight(self) -> tuple[float | None, float | None, float | None]:
        """Return three numbers: the mean weight per row, its distance from 1 in standard errors over clusters, and the
        mean plus 3 standard errors."""
        columns = [self.summary.columns[name] for name in (self.mean_column, "rows")]
        total, moment = self.summary.total[columns], self.summary.moment[np.ix_(columns, columns)]
        n = int(self.summary.n_clusters[columns[1]])
        mean, error = (float(figure) for figure in intervals.value_and_error(Ratio(), total, moment, n))
        deviation = mean - 1 if abs(mean - 1) > MAX_WEIGHT_ROUNDING else 0.0
        z = deviation / error if error > 0 else np.copysign(np.inf, deviation) if deviation else 0.0
        return finite_or_none(mean), z if n > 1 else None, finite_or_none(mean + 3 * error) if n > 1 else None

    def _bias_bound(self, reward_range: Bounds) -> float | None:
        """Return mean |unchanged weight - weight used| x the largest error of a reward, or None if the bias has no
        bound. The largest error is the width of the reward's range, or more if predictions of a reward model leave the
        range."""
        if not self.estimator.is_biased:
            return 0.0 if self.estimator.intervals else None
        if not self.distortion:
            return 0.0
        low, high = reward_range
        largest_error = high - low
        if self.predictions is not None and self.estimator.needs_model:
            largest_error = max(largest_error, high - self.predictions.least, self.predictions.largest - low)
        return finite_or_none(self.distortion / self.weights.total_count * largest_error)

    @property
    def _is_constant(self) -> bool:
        """Tell whether there are enough rewards, but the estimate has no error since all clusters agree."""
        has_rewards = self.diagnosis.nonzero >= LEAST_REWARDS and bool(self.estimator.intervals)
        return has_rewards and self.value_and_error[1] == 0


Sides = Sequence[tuple[EstimatorFold, Bounds]]


def _common_bounds(sides: Sequence[Bounds], value: float) -> Bounds:
    """Return the bounds that all pairs in `sides` share, widened if necessary so that they include the value. A single
    pair is returned unchanged."""
    return sides[0] if len(sides) == 1 else intervals.intersection(sides, value)


def draw_bounds(groups: Sequence[Sequence[EstimatorFold]], options: FinishOptions) -> list[dict[Estimator, Bounds]]:
    """Return the bootstrap-t bounds of each estimator, for each group of rows. All groups have the same clusters or
    blocks. Their bounds hold together: they extend to the largest t of all groups in the same draw (max-t)."""
    # each once, since the sides of several estimators may be the same
    folds_by_estimator: dict[Estimator, list[EstimatorFold]] = {}
    for folds in zip(*groups, strict=True):
        for kind in dict.fromkeys(side.estimator for fold in folds for side in fold.sides(options.reward_range)):
            folds_by_estimator.setdefault(kind, [replace(fold, estimator=kind) for fold in folds])
    rows = [folds for kind, folds in folds_by_estimator.items() if kind.intervals]
    samples = [(fold.estimator, fold.sample) for folds in rows for fold in folds]
    estimates = iter(intervals.studentised_bootstraps(samples, seed=options.seed, n_replicates=options.replicates))
    bounds: list[dict[Estimator, Bounds]] = [{} for _ in groups]
    for sides in rows:
        replicates_by_group = [next(estimates) for _ in sides]
        t = [estimate.t for estimate in replicates_by_group if len(estimate.t)]
        least_quantiles = intervals.joint_quantiles(t if len(groups) > 1 else [], options.level)
        for group_bounds, estimate in zip(bounds, replicates_by_group, strict=True):
            group_bounds[sides[0].estimator] = estimate.bounds(options.level, least_quantiles=least_quantiles)
    return bounds


def ratios_differ(summary: ClusterSummary, columns: tuple[str, ...], *, clusters: int, value: float | None) -> bool:
    """Tell whether two ratios differ by more than 3 standard errors of their difference, and by more than a negligible
    share of `value`.

    columns: the numerator and the denominator of the first ratio, then of the second ratio; clusters: the number of
    clusters; value: the estimate that the difference is compared with."""
    column_index = [summary.columns[name] for name in columns]
    total, moment = summary.total[column_index], summary.moment[np.ix_(column_index, column_index)]
    difference, error = intervals.value_and_error(Minus(Ratio()), total, moment, clusters)
    return bool(abs(difference) > max(MAX_APART_Z * float(error), NEGLIGIBLE_DEVIATION * abs(value or 0.0)))


def widen_estimate(estimate: Estimate, replicas: Sequence[Estimate], *, limits: Bounds) -> Estimate:
    """Return the estimate with wider bounds, which include the error of a simulation. All rows share this error, so
    differences between clusters do not show it.

    replicas: the same estimate from equal parts of the simulated slates; the variance of their mean is their
    variance over their number; limits: the limits at which bounds are cut."""
    if len(replicas) < 2 or estimate.value is None or not estimate.std_error:
        return estimate
    wider_estimate = _add_error(estimate, replicas, ("value", "std_error", "lower", "upper"), limits)
    if wider_estimate.lower is not None and wider_estimate.bias_bound is not None:
        wider_estimate = replace(wider_estimate, safe_lower=wider_estimate.lower - wider_estimate.bias_bound)
    if estimate.lift is None or not estimate.lift_std_error:
        return wider_estimate
    least = -1.0 if limits[0] >= 0 else -np.inf
    return _add_error(wider_estimate, replicas, ("lift", "lift_std_error", "lift_lower", "lift_upper"), (least, np.inf))


def _add_error(estimate: Estimate, replicas: Sequence[Estimate], names: Sequence[str], limits: Bounds) -> Estimate:
    """Return the estimate with a wider error and wider bounds of one figure.

    replicas: the same estimate from equal parts of the simulated slates; names: the names of the figure, its error
    and its bounds; limits: the limits at which bounds are cut."""
    value, error, *bounds = (getattr(estimate, name) for name in names)
    low, high = (np.nan if bound is None else bound for bound in bounds)
    values = [value for replica in replicas if (value := getattr(replica, names[0])) is not None]
    error, wider_bounds = intervals.stretch_bounds(value, error, (low, high), values)
    cut_bounds = (finite_or_none(min(max(bound, limits[0]), limits[1])) for bound in wider_bounds)
    changed_fields: dict[str, Any] = dict(zip(names[1:], (error, *cut_bounds), strict=True))
    return replace(estimate, **changed_fields)


def _cut_bounds(
    bounds: Bounds, fold: EstimatorFold, options: FinishOptions
) -> tuple[float | None, float | None, list[str]]:
    """Return the two bounds for the report, and the reasons why a bound is missing. A bound is cut at its limit, and
    None if it is infinite."""
    if not fold.estimator.intervals:
        return None, None, ["no-interval"]
    least, largest = fold.limits(options.reward_range)
    low, high = max(bounds[0], least), min(bounds[1], largest)
    reason = "few-rewards"
    if options.interval == "cressie-read" and not np.isfinite(options.reward_range).all():
        reason = "no-reward-range"
    if options.interval == "bootstrap-t" and not intervals.bounding_rank(options.level, options.replicates):
        reason = "few-replicates"
    return finite_or_none(low), finite_or_none(high), [] if np.isfinite([low, high]).all() else [reason]
