"""From batches to estimates: the fold over the log, and what is reported when it is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rlrec.arrays import Array
from rlrec.ope import diagnostics, intervals
from rlrec.ope.base import Estimator, Kind, LogBatch, Ratio
from rlrec.ope.diagnostics import Diagnosis, Weights
from rlrec.ope.intervals import UNKNOWN, Bounds, Replicates, WeightSums
from rlrec.ope.moments import Moments, Summary, moments

ANY_REWARD: Bounds = (-np.inf, np.inf)
# What diagnostics and Cressie-Read need, whichever estimators are asked for.
_CORE = ("rows", "weight", "weighted_reward")
# A mean weight so near to 1 is no news, however sure: scores in float32, or propensities to four digits, are that far.
NEGLIGIBLE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One line of `evaluate --json`, from `estimator` on; a figure that cannot be had is None, never NaN.

    std_error: clustered, by the delta method; None where no interval is valid (dm)
    clusters, n: clusters and rows used; ess is over clusters
    bias_bound: largest bias that changed weights can cause; 0 where they are not changed, None where it is unknown
    safe_lower: lower minus bias_bound, which no interval shows: what a gate should ask for
    k_hat, cluster_share, nonzero, reward_share, mean_weight_z: what the verdict was made from (`Diagnosis`)
    left_out: rows without a propensity, or visits that could not be used
    ess_by_step: effective sample size over visits at each step; horizon: the first step, from 0, at which it is below
        5 % of the visits: from there on the log does not support the target. None if it always does, and per
        impression"""

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
    safe_lower: float | None = None


@dataclass(frozen=True, eq=False)
class Stat:
    """What a fold keeps of the log: `stat(batch_1) + stat(batch_2)`.

    distorted: sum of |weight - weight used| per estimator
    predictions: least and largest value of the reward model; (inf, -inf) without one"""

    moments: Moments
    weights: Weights
    distorted: Array
    predictions: Bounds

    def __add__(self, other: Stat) -> Stat:
        (low, high), (other_low, other_high) = self.predictions, other.predictions
        return Stat(
            self.moments + other.moments,
            self.weights + other.weights,
            self.distorted + other.distorted,
            (min(low, other_low), max(high, other_high)),
        )


@dataclass(frozen=True, kw_only=True)
class Fold:
    """The estimators asked for, about one target.

    estimators: label -> estimator, as `ope.parse` gives them
    spanning: a cluster may come back in a later batch (users). Without it a cluster must lie whole in one batch
        (sessions, rows), and memory is bounded however many there are."""

    estimators: Mapping[str, Estimator]
    spanning: bool

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Every column that some estimator needs, once."""
        asked = [name for kind in self.estimators.values() for name in kind.columns]
        return tuple(dict.fromkeys([*_CORE, *asked]))

    def stat(self, batch: LogBatch) -> Stat:
        """The statistic of one batch; an empty batch is the zero of the sum.

        Raises InputError if an estimator needs a reward model and the batch has none."""
        weighted = batch.weight * batch.reward
        known = dict(zip(_CORE, (batch.usable.astype(np.float64), batch.weight, weighted), strict=True))
        for kind in self.estimators.values():
            if not known.keys() >= set(kind.columns):
                known.update(zip(kind.columns, kind.terms(batch).T, strict=True))
        terms = np.column_stack([known[name] for name in self.columns])
        predicted = np.empty(0) if batch.predicted is None else batch.predicted
        return Stat(
            moments(terms, batch.cluster, columns=self.columns, spanning=self.spanning),
            diagnostics.weights(batch),
            np.array([kind.distortion(batch).sum() for kind in self.estimators.values()]),
            (float(predicted.min(initial=np.inf)), float(predicted.max(initial=-np.inf))),
        )

    def finish(
        self,
        stat: Stat,
        *,
        interval: str = "bootstrap-t",
        level: float = 0.95,
        cluster: str = "session",
        reward_range: Bounds = ANY_REWARD,
        greedy: bool = False,
        extra_reasons: tuple[str, ...] = (),
        chosen: bool = False,
        seed: int = 0,
        replicates: int = intervals.REPLICATES,
    ) -> list[Estimate]:
        """One estimate for each estimator, in the order asked.

        cluster: name of the unit, for the report
        reward_range: (low, high) of one reward, infinite where there is no clip
        extra_reasons: words of `diagnostics.REASONS` that only the caller can know (`in-sample`, `logging-states`)
        chosen: the rows were picked by what the logger chose, so that their mean weight need not be 1
        seed, replicates: of the bootstrap
        Raises InputError for an interval that one of the estimators does not have, and a level outside (0, 1)."""
        intervals.check(interval, level, estimators=self.estimators)
        summary = stat.moments.summary()
        drawn = None
        if interval == "bootstrap-t" and any(kind.intervals for kind in self.estimators.values()):
            drawn = intervals.replicates(summary, seed=seed, number=replicates)
        views = [
            View(summary, stat.weights, kind, label, float(distorted), stat.predictions)
            for (label, kind), distorted in zip(self.estimators.items(), stat.distorted, strict=True)
        ]
        terms = Terms(
            interval=interval,
            level=level,
            cluster=cluster,
            reward_range=reward_range,
            greedy=greedy,
            extra_reasons=extra_reasons,
            chosen=chosen,
            seed=seed,
            replicates=replicates,
        )
        return [view.estimate(terms, drawn) for view in views]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How an estimate was asked for."""

    interval: str
    level: float
    cluster: str
    reward_range: Bounds = ANY_REWARD
    greedy: bool
    extra_reasons: tuple[str, ...]
    chosen: bool = False
    seed: int
    replicates: int


@dataclass(frozen=True, eq=False)
class View:
    """One estimator's side of the sums."""

    summary: Summary
    weights: Weights
    kind: Kind
    label: str
    distorted: float = 0.0
    predictions: Bounds = (np.inf, -np.inf)

    @property
    def weighing(self) -> str:
        """The column of the weights that the effective sample size is about."""
        return "weight"

    @cached_property
    def at(self) -> list[int]:
        return self.summary.index(self.kind.columns)

    @cached_property
    def n(self) -> int:
        weights = self.weights
        return weights.rows if self.kind.weighted else weights.rows + weights.left_out

    @cached_property
    def clusters(self) -> int:
        rows = "rows" if self.kind.weighted else self.kind.columns[1]
        return int(self.summary.present[self.summary.index((rows,))[0]])

    @cached_property
    def value(self) -> tuple[float, float]:
        """Value and standard error; NaN where there is none."""
        return self.estimated() if self.n else (np.nan, np.nan)

    def estimated(self) -> tuple[float, float]:
        """The same where there are rows."""
        total, moment = self.summary.total[self.at], self.summary.moment[np.ix_(self.at, self.at)]
        with np.errstate(all="ignore"):
            value, error = intervals.estimated(self.kind, total, moment, self.clusters)
        return float(value), float(error)

    def bounds(self, asked: Terms, drawn: Replicates | None) -> Bounds:
        value, error = self.value
        if not self.kind.intervals or not np.isfinite(value) or not np.isfinite(error):
            return UNKNOWN
        if asked.interval == "cressie-read":
            return self._cressie_read(asked)
        if drawn is None:
            return intervals.normal(value, error, asked.level)
        return intervals.bootstrap_t(self.kind, drawn, columns=self.at, level=asked.level)

    def _cressie_read(self, asked: Terms) -> Bounds:
        """Per cluster w = A / mbar and r = B / A: A, B sums of weights and weighted rewards, mbar mean rows."""
        rows, weight, reward = self.summary.index(_CORE)
        total, moment, most = self.summary.total, self.summary.moment, self.summary.most
        mbar = total[rows] / self.clusters
        sums = WeightSums(
            n=self.clusters,
            w=float(total[weight] / mbar),
            w2=float(moment[weight, weight] / mbar**2),
            wr=float(total[reward] / mbar),
            w2r=float(moment[weight, reward] / mbar**2),
            w2r2=float(moment[reward, reward] / mbar**2),
        )
        largest = max(self.weights.bound * most[rows], most[weight]) / mbar
        return intervals.cressie_read(sums, largest=float(largest), reward=asked.reward_range, level=asked.level)

    def estimate(self, asked: Terms, drawn: Replicates | None) -> Estimate:
        bounds = self.bounds(asked, drawn)
        lower, upper, reasons = _settled(bounds, self.kind, asked)
        value, error = self.value
        weights, found = self.weights, self.diagnosis
        if asked.chosen:
            found = replace(found, mean_weight_z=None)
        bias = self._bias_bound(asked.reward_range)
        judged, why = diagnostics.verdict(found, extra=(*asked.extra_reasons, *reasons, *self._notes(bias)))
        weighted = self.kind.weighted and self.n > 0
        return Estimate(
            estimator=self.label,
            estimand=estimand(self.kind.unit, greedy=asked.greedy),
            unit=self.kind.unit,
            value=_figure(value),
            std_error=_figure(error) if self.kind.intervals else None,
            lower=lower,
            upper=upper,
            level=asked.level,
            interval=asked.interval,
            cluster=asked.cluster,
            clusters=self.clusters,
            n=self.n,
            ess=found.ess,
            max_weight=_figure(weights.largest) if weighted else None,
            mean_weight=self._mean_weight[0] if weighted else None,
            top1_share=weights.top1_share if weighted else None,
            unsupported=found.unsupported,
            verdict=judged,
            reasons=why,
            bias_bound=bias,
            k_hat=found.k_hat,
            cluster_share=found.cluster_share,
            nonzero=found.nonzero,
            reward_share=found.reward_share,
            mean_weight_z=_figure(found.mean_weight_z),
            left_out=weights.left_out,
            safe_lower=None if lower is None or bias is None else lower - bias,
        )

    @cached_property
    def diagnosis(self) -> Diagnosis:
        weights, weighted = self.weights, self.kind.weighted
        return Diagnosis(
            weighted=weighted,
            n=self.n,
            clusters=self.clusters,
            ess=self._ess if weighted else None,
            nonzero=weights.weighted_rewards if weighted else weights.rewards,
            reward_share=weights.not_default_share if weighted else None,
            k_hat=weights.k_hat if weighted else None,
            unsupported=weights.unsupported_share,
            cluster_share=self._share,
            mean_weight_z=self._mean_weight[1] if weighted else None,
        )

    @cached_property
    def _ess(self) -> float | None:
        """(sum W)^2 / sum W^2 over clusters, W a cluster's sum of weights."""
        (weight,) = self.summary.index((self.weighing,))
        with np.errstate(all="ignore"):
            return _figure(self.summary.total[weight] ** 2 / self.summary.moment[weight, weight])

    @cached_property
    def _mean_weight(self) -> tuple[float | None, float | None]:
        """Mean weight per row, and how many clustered standard errors it is from 1."""
        at = self.summary.index(("weight", "rows"))
        total, moment = self.summary.total[at], self.summary.moment[np.ix_(at, at)]
        n = int(self.summary.present[at[1]])
        mean, error = (float(figure) for figure in intervals.estimated(Ratio(), total, moment, n))
        off = mean - 1 if abs(mean - 1) > NEGLIGIBLE else 0.0
        z = off / error if error > 0 else np.copysign(np.inf, off) if off else 0.0
        return _figure(mean), z if n > 1 else None

    @cached_property
    def _share(self) -> float | None:
        first = self.at[0]
        with np.errstate(all="ignore"):
            return _figure(self.summary.most[first] / self.summary.absolute[first])

    def _bias_bound(self, reward_range: Bounds) -> float | None:
        if not self.kind.biased:
            return 0.0 if self.kind.intervals else None
        if not self.distorted:
            return 0.0
        (low, high), (least, most) = reward_range, self.predictions
        largest_error = max(high - low, high - least, most - low) if self.kind.modelled else high - low
        return _figure(self.distorted / self.n * largest_error)

    def _notes(self, bias: float | None) -> list[str]:
        error = self.value[1]
        shrunk = self.kind.biased and (bias is None or bias > (error if np.isfinite(error) else 0.0))
        return [
            *(["clipping-bias"] if shrunk else []),
            *(["no-propensity"] if self.kind.weighted and self.weights.left_out else []),
        ]


def estimand(unit: str, *, greedy: bool = False) -> str:
    """What is estimated, in words: `as served` is the policy with its exploration, `greedy` without."""
    return f"mean reward per {unit}, {'greedy' if greedy else 'as served'}, logging states"


def _settled(bounds: Bounds, kind: Kind, asked: Terms) -> tuple[float | None, float | None, list[str]]:
    """Bounds as reported, and reasons: cut at the reward's range if self-normalised, else null if infinite."""
    if not kind.intervals:
        return None, None, ["no-interval"]
    low, high = bounds
    if kind.self_normalised:
        low, high = max(low, asked.reward_range[0]), min(high, asked.reward_range[1])
    known = np.isfinite([low, high]).all()
    return _figure(low), _figure(high), [] if known else [_unbounded(asked)]


def _unbounded(asked: Terms) -> str:
    """Why a bound is null."""
    if asked.interval == "cressie-read" and not np.isfinite(asked.reward_range).all():
        return "no-reward-range"
    too_high = asked.interval == "bootstrap-t" and not intervals.resolved(asked.level, asked.replicates)
    return "few-replicates" if too_high else "few-rewards"


def _figure(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None
