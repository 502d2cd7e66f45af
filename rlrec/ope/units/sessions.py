"""From visits to estimates: the fold of the estimators per session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property, reduce
from operator import add
from typing import Any, ClassVar

import numpy as np

from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.ope.checks.diagnostics import Weights, weight_diagnostics
from rlrec.ope.checks.reasons import LEAST_ESS
from rlrec.ope.checks.verdicts import Diagnosis
from rlrec.ope.estimators.sequential import SessionEstimator
from rlrec.ope.intervals import intervals
from rlrec.ope.intervals.intervals import UNKNOWN, Bounds, JointReplicates, Replicates, studentised_bootstrap
from rlrec.ope.sums.base import ROUNDING, ValueRange
from rlrec.ope.sums.moments import BLOCKS, ClusterSummary, Moments, Steps, moments, steps
from rlrec.ope.sums.visits import Course, VisitBatch
from rlrec.ope.units.estimate import USUAL, Estimate, EstimatorFold, FinishOptions, earned_by_unit
from rlrec.ope.units.fold import MAX_LOGGERS, Fold, WeightSpread
from rlrec.records import Sums

SUPPORTED = 0.05  # least share of the visits that is effective at a step, for the log to support the target there
_STEP_BYTES = 256_000_000  # of sums at every step of all loggers
_CARRIED = 0.9  # share of the discounted absolute return: the steps that carry it must be supported


@dataclass(frozen=True, eq=False)
class SessionPartial(Sums):
    """Sums over visits: `partial(batch_1) + partial(batch_2)`.

    moments: sums over clusters of the columns per visit; steps: the same at every step, None if no estimator needs them
    by_step (3, horizon): sums over visits of w_t, of its square, and of |gamma^t r_t|
    end, mean_weights: diagnostics of the weights at the end of visits, and of the mean weights of visits
    returns: the discounted ones of visits"""

    moments: Moments
    steps: Steps | None
    earned: Steps
    by_step: Array
    end: Weights
    mean_weights: Weights
    returns: ValueRange


@dataclass(frozen=True, kw_only=True)
class SessionFold(Fold[SessionEstimator, VisitBatch, SessionPartial]):
    """The chosen estimators per session.

    gamma: discount per step, in [0, 1]
    horizon: steps of the longest visit of the whole log, at least 1
    supported: the least share of the visits that is effective at the steps that carry the return

    Every cluster that spans batches takes 64 bytes at most; sums at every step, where an estimator needs them
    (wpdis, wdr), 4,096 x 8 bytes a step and column.
    Raises InputError for a gamma or horizon out of range."""

    core: ClassVar[tuple[str, ...]] = ("rows", "weight", "mean_weight")
    gamma: float
    horizon: int
    supported: float = SUPPORTED

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise InputError(f"gamma {self.gamma:g} is not between 0 and 1", hint="0.9 is usual; 1 discounts nothing")
        if self.horizon < 1:
            raise InputError(f"horizon {self.horizon} is not 1 or more")

    @cached_property
    def by_step(self) -> tuple[str, ...]:
        """Every column per step that some estimator needs, once."""
        needed = [estimator.step_column for estimator in self.estimators.values()]
        return tuple(dict.fromkeys(name for name in needed if name is not None))

    def partial(self, batch: VisitBatch) -> SessionPartial:
        """The sums of one batch. Raises InputError for a visit of more steps than the horizon, and if an estimator
        needs a model and the batch has none."""
        if (longest := int(batch.length.max(initial=0))) > self.horizon:
            raise InputError(f"a visit has {longest} steps, more than the horizon of {self.horizon}")
        course = Course(batch, self.gamma)
        terms = batch.counted(np.column_stack([getattr(course, name) for name in self.columns]))
        count = 1.0 if batch.count is None else np.repeat(batch.count, batch.length)  # of the visit of each decision
        columns = {name: getattr(course, name) * count for name in self.by_step}
        # sums of w_t, w_t^2 and |gamma^t r_t| over all visits at every step
        spans: dict[str, Any] = {"length": batch.length, "horizon": self.horizon}
        all_visits = {"cluster": np.zeros(len(batch), np.int64), **spans}
        sizes = {"size": course.discount * np.abs(batch.reward) * count}
        size, weight = steps(sizes, course.ratio * count, **all_visits).sums.sum(axis=0)
        (square,) = steps({}, (course.ratio * count) ** 2, **all_visits).sums.sum(axis=0)
        shared: dict[str, Any] = {
            "reward": course.logged_return, "not_default": course.rewarded, "bound": course.bound,
        }  # fmt: skip
        return SessionPartial(
            moments(terms, batch.cluster, columns=self.columns, spans_batches=self.spans_batches),
            None if not self.by_step else steps(columns, course.ratio * count, cluster=batch.cluster, **spans),
            earned_by_unit(batch, course.logged_return, np.ones(len(batch))),
            np.array([weight, square, size]),
            weight_diagnostics(batch, course.weight, weighted_reward=course.weighted_return, **shared),
            weight_diagnostics(
                batch, course.mean_weight, weighted_reward=course.stepwise_return, largest=course.max_weight, **shared
            ),
            ValueRange.from_values(course.logged_return),
        )

    @cached_property
    def most_loggers(self) -> int:
        """How many loggers can be weighed: sums at every step of each half of their clusters must fit the memory."""
        half_bytes = BLOCKS * 8 * (len(self.by_step) + 1) * self.horizon if self.by_step else 1
        return min(MAX_LOGGERS, _STEP_BYTES // (2 * half_bytes))

    def spreads(self, partials: Sequence[SessionPartial]) -> list[WeightSpread]:
        """How far the weights of each spread at the step whose weights spread most, of those that carry the return."""
        pooled = Support.from_partial(reduce(add, partials))
        step = int(np.argmin(pooled.ess[: pooled.steps]))
        sums = [(np.array([float(partial.end.rows)]), *partial.by_step[:2, [step]]) for partial in partials]
        return [WeightSpread(rows, weight, square, rows) for rows, weight, square in sums]

    def scaled(self, partial: SessionPartial, factor: Array) -> SessionPartial:
        """The sums of visits that count `factor` times, (1,)."""
        (times,) = factor.tolist()
        return SessionPartial(
            partial.moments.scaled(np.full(len(self.columns), times)),
            None if partial.steps is None else partial.steps.scaled(times),
            partial.earned.scaled(times),
            partial.by_step * np.array([[times], [times**2], [times]]),
            partial.end.scaled(times),
            partial.mean_weights.scaled(times),
            partial.returns,
        )

    def finish(self, partial: SessionPartial, options: FinishOptions = USUAL) -> list[Estimate]:
        """One estimate for each estimator, in their order; returns range as far as those of the log.
        Raises InputError for an interval that one of the estimators does not have, and a level outside (0, 1)."""
        intervals.check(options.interval, options.level, estimators=self.estimators)
        options = replace(options, reward_range=astuple(partial.returns))
        summary, bootstrap = partial.moments.summary(), None
        if options.interval == "bootstrap-t" and any(kind.step_column is None for kind in self.estimators.values()):
            bootstrap = intervals.replicates(summary, seed=options.seed, number=options.replicates)
        manner = "greedy" if options.greedy else "as served"
        estimand = f"mean return per session, {manner}, gamma {self.gamma:.12g}"
        support = Support.from_partial(partial, self.supported)
        support_fields: dict[str, Any] = {
            "ess_by_step": tuple(support.ess.tolist()), "horizon": support.horizon, "return_steps": support.steps,
            "supported_gamma": support.gamma(self.gamma),
        }  # fmt: skip
        estimates = (fold.estimate(options, bootstrap) for fold in self.at_ends(partial, summary))
        return [replace(estimate, estimand=estimand, **support_fields) for estimate in estimates]

    def at_ends(self, partial: SessionPartial, summary: ClusterSummary | None = None) -> Sequence[EstimatorFold]:
        """Each estimator at the end of a fold. summary: of the partial's moments"""
        summary = summary or partial.moments.summary()
        support = Support.from_partial(partial, self.supported)
        return [
            at_end(partial, estimator, label=label, summary=summary, support=support)
            for label, estimator in self.estimators.items()
        ]


@dataclass(frozen=True, eq=False)
class Support:
    """How far along its visits the log supports a target, step by step.

    ess (h,): effective sample size over visits; size (h,): discounted absolute return; least: ESS that is enough.
    The ESS of a visit's mean weight cannot tell: it rises again when the weights of late steps have collapsed to 0."""

    ess: Array
    size: Array
    least: float
    horizon: int | None  # the first step at which the ESS is below 5 % of the visits

    @classmethod
    def from_partial(cls, partial: SessionPartial, supported: float = SUPPORTED) -> Support:
        weight, square, size = partial.by_step
        ess = np.divide(weight**2, square, out=np.zeros(len(weight)), where=square > 0)
        unsupported = np.flatnonzero(ess < SUPPORTED * partial.end.rows)
        least = max(float(LEAST_ESS), supported * partial.end.rows)
        return cls(ess, size, least, int(unsupported[0]) if len(unsupported) else None)

    @property
    def steps(self) -> int:
        """Number of the first steps that carry 90 % of the discounted absolute return."""
        return self._steps(self.size)

    @property
    def smallest(self) -> float:
        """The smallest ESS over these steps: what an estimate of the return can rest on."""
        return float(self.ess[: self.steps].min())

    def gamma(self, gamma: float) -> float | None:
        """The largest discount, to two digits, under which all steps that carry 90 % of the return are supported; None
        where `gamma` is small enough, or none is."""
        if self.smallest >= self.least or not gamma:
            return None
        t = np.arange(len(self.size))
        reward = np.divide(self.size, gamma**t, out=np.zeros(len(t)), where=self.size > 0)
        for hundredths in range(int(gamma * 100), -1, -1):
            rounded_gamma = hundredths / 100
            if self.ess[: self._steps(reward * rounded_gamma**t)].min() >= self.least:
                return rounded_gamma
        return None

    def _steps(self, size: Array) -> int:
        sums = np.cumsum(size)
        return int(np.searchsorted(sums, _CARRIED * sums[-1] * (1 - ROUNDING))) + 1 if sums[-1] > 0 else len(size)


@dataclass(frozen=True, eq=False, kw_only=True)
class SessionEstimatorFold(EstimatorFold):
    """One session estimator at the end of a fold."""

    estimator: SessionEstimator
    steps: Steps | None
    support: Support

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """The figures of the verdict. The ESS is the smallest one over the steps that carry the return."""
        diagnosis, smallest = super().diagnosis, self.support.smallest
        if diagnosis.ess is None:
            return diagnosis
        return replace(diagnosis, ess=min(diagnosis.ess, smallest), short_horizon=smallest < self.support.least)

    @cached_property
    def units(self) -> Array:
        """The estimator's columns per cluster or block, (m, d): its error and bootstrap are made from them."""
        narrow = super().units
        if self.estimator.step_column is None or self.steps is None:
            return narrow
        sums = self.steps.sums
        column = self.steps.columns.index(self.estimator.step_column)
        return np.column_stack([narrow, sums[:, column], sums[:, -1]])

    def _from_sums(self) -> tuple[float, float]:
        if self.estimator.step_column is None:
            return super()._from_sums()
        sample = studentised_bootstrap(self.estimator, self.units, seed=0, number=0)
        return sample.value, sample.error

    def bounds(
        self, options: FinishOptions, bootstrap: Replicates | None, joint: JointReplicates | None = None
    ) -> Bounds:  # fmt: skip
        if self.estimator.step_column is None:
            return super().bounds(options, bootstrap, joint)
        value, error = self.value_and_error
        if not np.isfinite(value) or not np.isfinite(error):
            return UNKNOWN
        if options.interval == "normal":
            return intervals.normal(value, error, options.level)
        sample = studentised_bootstrap(self.estimator, self.units, seed=options.seed, number=options.replicates)
        return sample.bounds(options.level)


def at_end(
    partial: SessionPartial, estimator: SessionEstimator, *, label: str, summary: ClusterSummary,
    support: Support | None = None,
) -> SessionEstimatorFold:  # fmt: skip
    """The estimator at the end of a fold. summary: of the partial's moments; support: None for the usual one."""
    return SessionEstimatorFold(
        label=label, estimator=estimator, summary=summary, steps=partial.steps, earned=partial.earned.sums[:, :, 0],
        support=support or Support.from_partial(partial), weight_column=estimator.weight_column,
        weights=partial.end if estimator.weight_column == "weight" else partial.mean_weights,
    )  # fmt: skip
