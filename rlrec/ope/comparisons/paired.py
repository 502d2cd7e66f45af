"""One target minus another on the same visits, for promotion gates.

Both are sums over the same clusters. The error of the difference is computed from each cluster's influence on the first
minus its influence on the second, so their common noise cancels."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from statistics import NormalDist

import numpy as np

from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.ope.checks import verdicts
from rlrec.ope.checks.reasons import in_order, worst_verdict
from rlrec.ope.comparisons.comparison import Comparison
from rlrec.ope.intervals import intervals
from rlrec.ope.intervals.intervals import UNKNOWN, Bounds, Minus, Studentised, studentised_bootstrap
from rlrec.ope.intervals.sequences import MIN_CLUSTERS, bound_distance
from rlrec.ope.intervals.tails import t_quantile
from rlrec.ope.sums.base import Ratio
from rlrec.ope.units.estimate import EstimatorFold

ALPHA = 0.05  # probability that any candidate of a year passes a gate although it is no better
NIGHTS = 365  # of a year
BEST_NIGHTS = 60  # number of looks at which a sequence is tightest
FIRST_SHARE = 0.25  # of a pair's alpha, spent on its first look
FAR = 8.0  # distance of a bound in standard errors where nothing can be said yet

# Replicates beyond a quantile of the bootstrap: with fewer the quantile is mostly noise.
_MIN_TAIL_REPLICATES = 20


def gate_alpha(pair: int) -> float:
    """The error probability of all looks at one pair of versions. Pairs of a year are numbered from 1; over all of them
    it sums to ALPHA."""
    return ALPHA * 6 / (pi**2 * pair**2)


def nightly_alpha(candidate: int) -> float:
    """The error probability of the one look at a candidate, where every night brings another candidate: half of ALPHA
    is spent as for pairs, half evenly over the nights of a year."""
    return gate_alpha(candidate) / 2 + (ALPHA / 2 / NIGHTS if candidate <= NIGHTS else 0.0)


def look_alpha(alpha: float, clusters: int, *, best_n: float, is_first: bool) -> float:
    """The level of a test at one look, such that all looks at a growing log together have error probability alpha.

    It is the level at which a normal bound is as far from the estimate as the one-sided sequence that is tightest at
    best_n clusters. The sequence holds from the first cluster on without end; looks every night for a year use up three
    quarters of alpha (`python -m tests.benchmarks -k gates`). The last quarter is for the first look."""
    reach = float(bound_distance(clusters, clusters, best_n=best_n, alpha=alpha)) if clusters >= MIN_CLUSTERS else FAR
    return max(NormalDist().cdf(-min(reach, FAR)), FIRST_SHARE * alpha if is_first else 0.0)


def compare(
    ours: EstimatorFold, theirs: EstimatorFold | None, *, measure: type[Minus] = Minus, alpha: float = 0.025,
    replicates: int = intervals.REPLICATES,
    simulated: Sequence[tuple[EstimatorFold, EstimatorFold | None]] = (), rare: float = 0.0,
) -> Comparison:  # fmt: skip
    """The difference between two targets, by one estimator of any unit at the end of a fold over the same rows.
    theirs: None for the log, whose rewards need no weights. measure: Minus or Relative; alpha: error probability of
    each bound, in (0, 0.5); simulated: both sides for each of several equal parts of the pages simulated for a target,
    whose error does not show between clusters; rare: the largest reward, of which a log may have too few. Both bounds
    are 0 where the sums of every cluster are equal. Raises InputError for an alpha out of range, ValueError for folds
    over different rows."""
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha {alpha:g} is not between 0 and 0.5", hint="0.025 is usual")
    folds = [ours, *([] if theirs is None else [theirs])]
    rows = ours.summary.columns["rows"]
    if any(not np.array_equal(ours.summary.units[:, rows], fold.summary.units[:, rows]) for fold in folds):
        raise ValueError("the two targets were not estimated on the same rows")
    units, contrast = _sides(ours, theirs, measure)
    sample, ess = _bootstrap(units, contrast, replicates), min(fold.diagnosis.ess or 0.0 for fold in folds)
    low, high, is_doubtful = 0.0, 0.0, False
    equal = theirs is not None and all(
        np.array_equal(*sides) for sides in ((ours.summary.units, theirs.summary.units), (ours.units, theirs.units))
    )
    if not (ours.n and equal):
        freedom = max(ess - 1, 1.0)
        low, high = _bounds(sample, alpha, freedom=freedom)
        if np.isfinite([low, high]).any():
            # the difference, and m times the influence of each cluster on it: terms with the difference as their mean
            total = units.sum(axis=0)
            terms: Array = contrast.value(total) + len(units) * (units @ contrast.gradient(total))
            loss = rare / ours.summary.total[rows] / contrast.unit(total)
            tails: dict[str, float] = {"loss": len(terms) * float(loss), "reach": -t_quantile(alpha, freedom)}
            least = lower_bound(terms, **tails)
            is_doubtful = least <= 0 < low
            low, high = min(low, least), max(high, -lower_bound(-terms, **tails))
    values = [_bootstrap(*_sides(*pair, measure), 0).value for pair in simulated]
    error, (low, high) = intervals.stretched(sample.value, sample.error, (low, high), values)
    bounded = np.isfinite([low, high]).all()
    is_broad = not bounded or high - low > abs(sample.value)
    extra = (
        *(["no-propensity"] if any(fold.weights.left_out for fold in folds) else []),
        *(["wide-interval"] if is_broad else []),
        *(["rare-rewards"] if is_doubtful else []),
        *([] if bounded else ["few-rewards"]),
    )
    judged = [verdicts.verdict(fold.diagnosis, extra=extra) for fold in folds]
    return Comparison.from_figures(
        value=sample.value, base=contrast.base(units.sum(axis=0)), std_error=error, lower=low, upper=high, ess=ess,
        clusters=ours.clusters, verdict=worst_verdict(verdict for verdict, _ in judged),
        reasons=in_order(reason for _, reasons in judged for reason in reasons),
    )  # fmt: skip


def _sides(ours: EstimatorFold, theirs: EstimatorFold | None, measure: type[Minus]) -> tuple[Array, Minus]:
    """The columns of both sides, and their difference as a function of these."""
    if theirs is None:
        return np.column_stack([ours.units, ours.earned]), measure(ours.estimator, Ratio())
    return np.column_stack([ours.units, theirs.units]), measure(ours.estimator)


def _bootstrap(units: Array, contrast: Minus, number: int) -> Studentised:
    with np.errstate(divide="ignore", invalid="ignore"):
        return studentised_bootstrap(contrast, units, seed=0, number=number)


def _bounds(sample: Studentised, alpha: float, *, freedom: float) -> Bounds:
    """Bounds by bootstrap-t; where there are too few replicates for alpha, those at the smallest level with enough
    replicates, or Student's t where it is farther away."""
    if not sample.error > 0 or not len(sample.t):
        return UNKNOWN
    bootstrap_alpha = max(alpha, _MIN_TAIL_REPLICATES / (len(sample.t) + 1))
    if bootstrap_alpha >= 0.5:
        return UNKNOWN
    low, high = sample.bounds(1 - 2 * bootstrap_alpha)
    reach = 0.0 if bootstrap_alpha == alpha else -t_quantile(alpha, freedom) * sample.error
    return min(low, sample.value - reach), max(high, sample.value + reach)


# -- bounds of a mean by empirical likelihood, for terms skewed by rare, large losses --

_STEPS = 60  # of the bisection, which halves the logarithm of the tilt
_WIDEST = 40.0  # logarithm of the largest tilt, relative to the spread of the terms


def lower_bound(terms: Array, *, loss: float, reach: float) -> float:
    """The smallest mean of the terms, (m,), and of one more that lies `loss` below their mean, under reweighings w
    whose -2 sum log((m + 1) w) is at most reach^2.

    A normal or studentised bound is too high where losses are rare, since a log that happens to have few of them has a
    high mean and a small error. The additional loss corresponds to the one that the exact bound of a Poisson count
    adds.
    Source: Owen 1988 (empirical likelihood); Chen, Variyath & Abraham 2008 (one additional term)."""
    excess = np.append(terms, terms.mean() - loss)
    least = excess.min()
    excess -= least
    if not excess.any():
        return float(least)
    # weights 1 / (s + term - least); a smaller s gives a lower mean
    low, high, scale = -_WIDEST, _WIDEST, excess.mean()
    for _ in range(_STEPS):
        middle = (low + high) / 2
        density = np.log(np.exp(middle) * scale + excess)
        distance = 2 * (len(excess) * np.log(np.exp(-density).mean()) + density.sum())
        low, high = (middle, high) if distance > reach**2 else (low, middle)
    weight = 1 / (np.exp(high) * scale + excess)
    return float(least + weight @ excess / weight.sum())
