"""One target minus another on the same visits, for promotion gates.

Both are sums over the same clusters: the error of the difference is made from a cluster's influence on the first minus
its influence on the second, and their common noise cancels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi
from typing import Any

import numpy as np

from rlrec.arrays import Array, finite_or_none
from rlrec.errors import InputError
from rlrec.ope import diagnostics, intervals
from rlrec.ope.base import Smooth
from rlrec.ope.estimate import EstimatorFold
from rlrec.ope.intervals import UNKNOWN, Bounds, Studentised, studentised_bootstrap
from rlrec.ope.likelihood import lower_bound
from rlrec.ope.sequential import SessionEstimator
from rlrec.ope.sessions import SessionPartial, at_end
from rlrec.ope.tails import t_quantile

ALPHA = 0.05  # probability that any candidate of a year passes a gate though it is no better

# The fewest replicates beyond a quantile of the bootstrap: with fewer it is mostly noise.
_BEYOND = 20


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Value of one target minus that of another; a figure that does not exist is None, never NaN.

    lower, upper: each is on the wrong side of the truth in a share `alpha` of logs; both are 0 where the two targets
        have equal sums in every cluster, and None where a log of different targets shows no variation
    ess: the smaller of the two; clusters: number of those compared
    verdict, reasons: as in an estimate, the worse of the two; `weak` also where half the interval is wider than half
        the value"""

    value: float | None
    std_error: float | None
    lower: float | None
    upper: float | None
    alpha: float
    ess: float | None
    clusters: int
    verdict: str
    reasons: tuple[str, ...]

    @property
    def is_gain(self) -> bool:
        """Whether the first target is better, as far as the log can tell."""
        return self.lower is not None and self.lower > 0 and self.verdict != "insufficient"


def gate_alpha(candidate: int) -> float:
    """The probability of error at one look, candidates of a year numbered from 1: over all of them it sums to ALPHA."""
    return ALPHA * 6 / (pi**2 * candidate**2)


@dataclass(frozen=True)
class Minus:
    """An estimate of one target minus that of another; their columns lie side by side."""

    estimator: Smooth

    def value(self, mean: Array) -> Array:
        ours, theirs = np.split(mean, 2, axis=-1)
        return self.estimator.value(ours) - self.estimator.value(theirs)

    def gradient(self, mean: Array) -> Array:
        ours, theirs = np.split(mean, 2, axis=-1)
        return np.concatenate([self.estimator.gradient(ours), -self.estimator.gradient(theirs)], axis=-1)


@dataclass(frozen=True)
class Relative(Minus):
    """The same, as a share of the size of the other target's estimate."""

    def value(self, mean: Array) -> Array:
        ours, theirs = map(self.estimator.value, np.split(mean, 2, axis=-1))
        return (ours - theirs) / np.abs(theirs)

    def gradient(self, mean: Array) -> Array:
        (ours, theirs), size = np.split(mean, 2, axis=-1), np.abs(self.estimator.value(np.split(mean, 2, axis=-1)[1]))
        ratio = self.estimator.value(ours) / self.estimator.value(theirs)
        by_ours, by_theirs = self.estimator.gradient(ours), self.estimator.gradient(theirs)
        return np.concatenate([by_ours, -ratio[..., None] * by_theirs], axis=-1) / size[..., None]


def difference(
    partial: SessionPartial, against: SessionPartial, *, estimator: SessionEstimator, **options: Any
) -> PairedDifference:
    """`partial` minus `against`: one `SessionFold` over the same visits for two targets. options: of `compare`"""
    ours, theirs = (
        at_end(side, estimator, label=estimator.name, summary=side.moments.summary()) for side in (partial, against)
    )
    return compare(ours, theirs, **options)


def compare(
    ours: EstimatorFold, theirs: EstimatorFold, *, measure: type[Minus] = Minus, alpha: float = 0.025,
    extra_reasons: tuple[str, ...] = (), seed: int = 0, replicates: int = intervals.REPLICATES,
    simulated: Sequence[tuple[EstimatorFold, EstimatorFold]] = (), rare: float = 0.0,
) -> PairedDifference:  # fmt: skip
    """One target less another, by one estimator of any unit at the end of a fold over the same rows.
    measure: Minus or Relative; alpha: chance of each bound to be on the wrong side, in (0, 0.5); extra_reasons: as in
    `FinishOptions`; simulated: both sides by equal parts of the pages that were simulated for a target, whose error
    clusters do not show; rare: the largest reward, which a log may hold too few of. Raises InputError for an alpha out
    of range, ValueError for folds over different rows."""
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha {alpha:g} is not between 0 and 0.5", hint="0.025 is usual")
    (rows,) = ours.summary.index(("rows",))
    if not np.array_equal(ours.summary.units[:, rows], theirs.summary.units[:, rows]):
        raise ValueError("the two targets were not estimated on the same rows")
    sample = _bootstrap(ours, theirs, measure, seed=seed, number=replicates)
    ess = min(side.diagnosis.ess or 0.0 for side in (ours, theirs))
    equal = np.array_equal(ours.summary.units, theirs.summary.units) and np.array_equal(ours.units, theirs.units)
    low, high = 0.0, 0.0
    doubtful = False
    if not (ours.n and equal):
        freedom = max(ess - 1, 1.0)
        low, high = studentised = _bounds(sample, alpha, freedom=freedom)
        if np.isfinite(studentised).any():
            terms, one_reward = _terms(ours, theirs, measure), rare / ours.summary.total[rows]
            if measure is Relative:
                one_reward /= abs(theirs.value_and_error[0])
            tails: dict[str, float] = {"loss": len(terms) * one_reward, "reach": -t_quantile(alpha, freedom)}
            low, high = min(low, lower_bound(terms, **tails)), max(high, -lower_bound(-terms, **tails))
            doubtful = low <= 0 < studentised[0]
    values = [_bootstrap(*sides, measure, number=0).value for sides in simulated]
    error, (low, high) = intervals.stretched(sample.value, sample.error, (low, high), values)
    bounded = np.isfinite([low, high]).all()
    broad = not bounded or high - low > abs(sample.value)
    extra = [
        *extra_reasons,
        *(["no-propensity"] if ours.weights.left_out or theirs.weights.left_out else []),
        *(["wide-interval"] if broad else []),
        *(["rare-rewards"] if doubtful else []),
        *([] if bounded else ["few-rewards"]),
    ]
    verdict, reasons = _verdict(ours, theirs, tuple(extra))
    return PairedDifference(
        value=finite_or_none(sample.value), std_error=finite_or_none(error), lower=finite_or_none(low),
        upper=finite_or_none(high), alpha=alpha, ess=ess, clusters=ours.clusters, verdict=verdict, reasons=reasons,
    )  # fmt: skip


def _bootstrap(
    ours: EstimatorFold, theirs: EstimatorFold, measure: type[Minus], *, number: int, seed: int = 0
) -> Studentised:
    units = np.column_stack([ours.units, theirs.units])
    with np.errstate(divide="ignore", invalid="ignore"):
        return studentised_bootstrap(measure(ours.estimator), units, seed=seed, number=number)


def _terms(ours: EstimatorFold, theirs: EstimatorFold, measure: type[Minus]) -> Array:
    """Terms of the clusters, (m,), whose mean is the difference: that and m times their influence on it."""
    units, estimator = np.column_stack([ours.units, theirs.units]), measure(ours.estimator)
    total = units.sum(axis=0)
    terms: Array = estimator.value(total) + len(units) * (units @ estimator.gradient(total))
    return terms


def _bounds(sample: Studentised, alpha: float, *, freedom: float) -> Bounds:
    """Bootstrap-t; where the replicates are too few for alpha, those at the smallest level they are enough for, and
    Student's t where it is farther."""
    if not sample.error > 0 or not len(sample.t):
        return UNKNOWN
    enough = max(alpha, _BEYOND / (len(sample.t) + 1))
    if enough >= 0.5:
        return UNKNOWN
    low, high = sample.bounds(1 - 2 * enough)
    reach = 0.0 if enough == alpha else -t_quantile(alpha, freedom) * sample.error
    return min(low, sample.value - reach), max(high, sample.value + reach)


def _verdict(ours: EstimatorFold, theirs: EstimatorFold, extra: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    verdicts = [diagnostics.verdict(side.diagnosis, extra=extra) for side in (ours, theirs)]
    worst = min((verdict for verdict, _ in verdicts), key=("insufficient", "weak", "ok").index)
    return worst, tuple(reason for reason in diagnostics.REASONS if any(reason in why for _, why in verdicts))
