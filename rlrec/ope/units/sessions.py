"""This module has the estimators of visits, and the fold that computes estimates from visits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from functools import cached_property, reduce
from operator import add
from typing import Any, ClassVar

import numpy as np

from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.ope.checks.diagnostics import weight_diagnostics
from rlrec.ope.checks.reasons import LEAST_ESS
from rlrec.ope.sums.base import ROUNDING_ERROR, Estimator, ValueRange
from rlrec.ope.sums.moments import N_BLOCKS, ClusterSummary, Steps, sum_steps
from rlrec.ope.sums.visits import Course, VisitBatch
from rlrec.ope.units.estimate import EstimatorFold
from rlrec.ope.units.fold import MAX_LOGGERS, Fold, RowSums, WeightSpread
from rlrec.records import Record, Sums

LEAST_SUPPORT = 0.05  # smallest effective share of the visits at a step for which the log supports the target there
MAX_STEP_SUM_BYTES = 256_000_000  # of the sums at every step, of all loggers
_RETURN_SHARE = 0.9  # share of the discounted absolute return; the steps that contribute it must be supported


class StepWeights(Sums):
    """A StepWeights object holds three sums over visits at each of h steps.

    weight (h,): the sum of w_t, the weight up to step t; square (h,): the sum of its square; size (h,): the sum of
    |gamma^t r_t|, the size of the discounted reward."""

    weight: Array
    square: Array
    size: Array

    def scale(self, factor: float) -> StepWeights:
        """Return the sums with each visit counted `factor` times."""
        return StepWeights(self.weight * factor, self.square * factor**2, self.size * factor)


class SessionFold(Fold):
    """A SessionFold computes the requested estimators from visits. Every cluster that spans batches takes at most 72
    bytes; for wpdis and wdr, sums at every step take 4,096 x 8 bytes per step and column. Raises InputError for a gamma
    or horizon out of range.

    gamma: the discount per step, in [0, 1]; horizon: the number of steps of the longest visit of the whole log, at
    least 1; least_support: the smallest share of effective visits that is enough, at the steps that contribute most
    of the return. The figures of its sums are steps, the sums of each cluster at every step, for estimators that
    need them; step_columns, the sums over all visits at every step; and returns, the range of the discounted returns of
    visits."""

    core_columns: ClassVar[tuple[str, ...]] = ("rows", "earned", "weight", "mean_weight")
    gamma: float
    horizon: int
    least_support: float = LEAST_SUPPORT

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise InputError(f"gamma {self.gamma:g} is not between 0 and 1", hint="0.9 is usual; 1 discounts nothing")
        if self.horizon < 1:
            raise InputError(f"horizon {self.horizon} is not 1 or more")

    @cached_property
    def step_columns(self) -> tuple[str, ...]:
        """Return the names of the columns per step that the estimators need, each name once."""
        needed_columns = [estimator.step_column for estimator in self.estimators.values()]
        return tuple(dict.fromkeys(name for name in needed_columns if name is not None))

    def row_sums(self, batch: VisitBatch, /) -> RowSums:
        """Return the sums of one batch. Raises InputError for a visit with more steps than the horizon, and if an
        estimator needs a model that the batch lacks."""
        if (longest_visit := int(batch.length.max(initial=0))) > self.horizon:
            raise InputError(f"a visit has {longest_visit} steps, more than the horizon of {self.horizon}")
        course = Course(batch, self.gamma)
        terms = batch.with_counts(np.column_stack([getattr(course, name) for name in self.columns]))
        # the count of the visit of each decision
        count = 1.0 if batch.count is None else np.repeat(batch.count, batch.length)
        columns = {name: getattr(course, name) * count for name in self.step_columns}
        # sums of w_t, w_t^2 and |gamma^t r_t| over all visits at every step
        visit_lengths: dict[str, Any] = {"length": batch.length, "horizon": self.horizon}
        all_visits = {"cluster": np.zeros(len(batch), np.int64), **visit_lengths}
        sizes = {"size": course.discount * np.abs(batch.reward) * count}
        size, weight = sum_steps(sizes, course.ratio * count, **all_visits).sums.sum(axis=0)
        (square,) = sum_steps({}, (course.ratio * count) ** 2, **all_visits).sums.sum(axis=0)
        shared_columns: dict[str, Any] = {
            "reward": course.earned, "not_default": course.has_reward, "bound": course.bound,
        }  # fmt: skip
        figures: dict[str, Any] = {
            "by_step": StepWeights(weight, square, size), "returns": ValueRange.from_values(course.earned),
        }  # fmt: skip
        if self.step_columns:
            figures["steps"] = sum_steps(columns, course.ratio * count, cluster=batch.cluster, **visit_lengths)
        weights = {
            "weight": weight_diagnostics(
                batch, course.weight, weighted_reward=course.weighted_return, **shared_columns
            ),
            "mean_weight": weight_diagnostics(
                batch,
                course.mean_weight,
                weighted_reward=course.stepwise_return,
                largest=course.max_weight,
                **shared_columns,
            ),
        }
        return self.sums(terms, batch.cluster, weights, figures)

    @cached_property
    def max_loggers(self) -> int:
        """Return the largest number of loggers whose rows can have weights of their own. The sums at every step, for
        each half of the clusters of each logger, must fit in memory."""
        half_bytes = N_BLOCKS * 8 * (len(self.step_columns) + 1) * self.horizon if self.step_columns else 1
        return min(MAX_LOGGERS, MAX_STEP_SUM_BYTES // (2 * half_bytes))

    def spreads(self, row_sums_list: Sequence[RowSums], /) -> list[WeightSpread]:
        """Return, for each of the given sums, how much the weights of visits vary at one step. Among the steps that
        contribute most of the return, this is the step at which weights vary most in all sums together."""
        pooled_support = Support.from_row_sums(reduce(add, row_sums_list))
        step = int(np.argmin(pooled_support.ess[: pooled_support.steps]))
        spreads = []
        for row_sums in row_sums_list:
            rows, at_step = np.array([float(n_visits(row_sums))]), row_sums.figures["by_step"]
            spreads.append(WeightSpread(rows, at_step.weight[[step]], at_step.square[[step]], rows))
        return spreads

    def estimator_fold(
        self, row_sums: RowSums, label: str, estimator: SessionEstimator, summary: ClusterSummary, /
    ) -> EstimatorFold:  # fmt: skip
        """Return the object that computes the estimate. The range of returns is that of the log. The effective sample
        size is limited by its smallest value over the steps that contribute most of the return."""
        support, by_step = Support.from_row_sums(row_sums, self.least_support), list[Array]()
        if estimator.step_column is not None:
            step_sums: Steps = row_sums.figures["steps"]
            column = step_sums.columns.index(estimator.step_column)
            by_step = [step_sums.sums[:, column], step_sums.sums[:, -1]]
        facts: dict[str, Any] = {
            "ess_by_step": tuple(support.ess.tolist()), "horizon": support.horizon, "return_steps": support.steps,
            "supported_gamma": support.gamma(self.gamma),
        }  # fmt: skip
        return EstimatorFold(
            label=label, estimator=estimator, summary=summary, step_sums=by_step,
            weight_column=estimator.weight_column,
            weights=row_sums.weights[estimator.weight_column], max_ess=support.smallest_ess,
            has_short_horizon=support.smallest_ess < support.least, reward_range=astuple(row_sums.figures["returns"]),
            facts=facts, noun="return", basis=f"gamma {self.gamma:.12g}",
        )  # fmt: skip


def n_visits(row_sums: RowSums) -> int:
    """Return the number of visits."""
    return row_sums.weights["weight"].rows


class Support(Record, kw_only=False, eq=False):
    """A Support object tells up to which step of visits the log supports a target. The effective sample size (ESS) of a
    visit's mean weight does not show this: it rises again when the weights of late steps have collapsed to 0.

    ess (h,): the ESS over visits at each of h steps; size (h,): the discounted absolute reward at each step; least:
    the smallest ESS that is enough."""

    ess: Array
    size: Array
    least: float
    horizon: int | None  # the first step at which the ESS is below 5 % of the visits

    @classmethod
    def from_row_sums(cls, row_sums: RowSums, least_support: float = LEAST_SUPPORT) -> Support:
        weight, square, size = vars(row_sums.figures["by_step"]).values()
        ess = np.divide(weight**2, square, out=np.zeros(len(weight)), where=square > 0)
        unsupported_steps = np.flatnonzero(ess < LEAST_SUPPORT * n_visits(row_sums))
        least = max(float(LEAST_ESS), least_support * n_visits(row_sums))
        return cls(ess, size, least, int(unsupported_steps[0]) if len(unsupported_steps) else None)

    @property
    def steps(self) -> int:
        """Return the number of first steps that contribute 90 % of the discounted absolute return."""
        return self._steps(self.size)

    @property
    def smallest_ess(self) -> float:
        """Return the smallest ESS over the steps that contribute 90 % of the discounted absolute return."""
        return float(self.ess[: self.steps].min())

    def gamma(self, gamma: float) -> float | None:
        """Return the largest discount, to two digits, with which the ESS is large enough at all steps that contribute
        90 % of the return. The result is None if the given discount is supported, or if no discount is."""
        if self.smallest_ess >= self.least or not gamma:
            return None
        t = np.arange(len(self.size))
        reward = np.divide(self.size, gamma**t, out=np.zeros(len(t)), where=self.size > 0)
        for n_hundredths in range(int(gamma * 100), -1, -1):
            rounded_gamma = n_hundredths / 100
            if self.ess[: self._steps(reward * rounded_gamma**t)].min() >= self.least:
                return rounded_gamma
        return None

    def _steps(self, size: Array) -> int:
        sums = np.cumsum(size)
        least_sum = _RETURN_SHARE * sums[-1] * (1 - ROUNDING_ERROR)
        return int(np.searchsorted(sums, least_sum)) + 1 if sums[-1] > 0 else len(size)


# -- estimators --
#
# Names as in Thomas & Brunskill 2016; w_t is the product of the ratios up to step t, G the discounted return. Source:
# scope-rl, scope_rl/ope/discrete/basic_estimators.py; weights after the end of a visit, and the doubly robust
# estimators as sums of columns: own derivation (`visits.Course`).


class SessionEstimator(Estimator):
    """SessionEstimator is the base of the estimators of visits. Such an estimator is a smooth function of sums over
    visits, and of sums over visits at each step. Bounds are not cut, since the return of a visit has no simple range.

    The columns of the estimator are attributes of `visits.Course` with the same names. If `step_column` names a
    column, `value` and `gradient` take means of the shape (..., d + 2 horizon): the d columns, then the named column
    at each step (0 after a visit's end), then w_t at each step (kept after the end)."""

    unit: ClassVar[str] = "session"
    sees_visits: ClassVar[bool] = True
    # of a visit; the effective sample size and the tail are those of this column
    weight_column: ClassVar[str] = "weight"
    step_column: ClassVar[str | None] = None


class Tis(SessionEstimator):
    """Average weight x return, with the weight of the whole session. The result is unbiased, but each further step
    makes it vary more."""

    columns: ClassVar[tuple[str, ...]] = ("weighted_return", "rows")
    widens_interval: ClassVar[bool] = True


class Wis(SessionEstimator):
    """Divide tis by the mean weight. The result is slightly biased, but it varies less."""

    columns: ClassVar[tuple[str, ...]] = ("weighted_return", "weight")
    widens_interval: ClassVar[bool] = True


class Pdis(SessionEstimator):
    """Average sum_t gamma^t w_t r_t, where w_t is the weight up to step t, so that later slates do not weigh a reward.
    The result is unbiased; it varies less than tis."""

    columns: ClassVar[tuple[str, ...]] = ("stepwise_return", "rows")
    weight_column: ClassVar[str] = "mean_weight"


class DrRl(SessionEstimator):
    """Use pdis with a model of returns, which makes it vary less. The result is unbiased if the propensities are right,
    even if the model is poor, as long as the model was not fitted on the same cluster.

    The estimate is the mean of v_0, where v_t = V_t + rho_t (r_t + gamma v_{t+1} - Q_t). Source: after Jiang & Li
    2016."""

    columns: ClassVar[tuple[str, ...]] = ("robust_return", "rows")
    weight_column: ClassVar[str] = "mean_weight"
    needs_model: ClassVar[bool] = True


class ByStep(SessionEstimator):
    """ByStep is the base of estimators that add up ratios: at every step, one sum over visits divided by another. With
    `adds_mean`, the estimate is a mean over visits plus these ratios."""

    weight_column: ClassVar[str] = "mean_weight"

    @property
    def adds_mean(self) -> bool:
        return len(self.columns) == 3

    def value(self, mean: Array) -> Array:
        numerator, denominator = self._steps(mean)
        value = (numerator / denominator).sum(axis=-1)
        return value + mean[..., 2] / mean[..., 1] if self.adds_mean else value

    def gradient(self, mean: Array) -> Array:
        numerator, denominator = self._steps(mean)
        gradient = np.zeros_like(mean)
        if self.adds_mean:
            gradient[..., 1], gradient[..., 2] = -mean[..., 2] / mean[..., 1] ** 2, 1 / mean[..., 1]
        d, steps = len(self.columns), numerator.shape[-1]
        gradient[..., d : d + steps] = 1 / denominator
        gradient[..., d + steps :] = -numerator / denominator / denominator
        return gradient

    def _steps(self, mean: Array) -> tuple[Array, Array]:
        numerator, denominator = np.split(mean[..., len(self.columns) :], 2, axis=-1)
        return numerator, denominator


class Wpdis(ByStep):
    """Use pdis with each w_t divided by its mean over sessions. The result is slightly biased, but it varies less."""

    columns: ClassVar[tuple[str, ...]] = ("stepwise_return", "rows")
    step_column: ClassVar[str | None] = "stepwise_reward"


class Wdr(ByStep):
    """Use dr-rl, but divide each weight w_t by the mean of w_t over sessions. This adds a slight bias, and the estimate
    varies much less than that of dr-rl.

    Source: own derivation after Thomas & Brunskill 2016. The mean of V_0 plus the sum over t of (sum_i correction_t)
    / (sum_i w_t) equals sum_t gamma^t sum_i [u_t (r_t - Q_t) + u_{t-1} V_t], where i runs over sessions, u_t = w_t /
    sum_i w_t and u_{-1} = 1 / n."""

    columns: ClassVar[tuple[str, ...]] = ("robust_return", "rows", "first_value")
    step_column: ClassVar[str | None] = "correction"
    needs_model: ClassVar[bool] = True
