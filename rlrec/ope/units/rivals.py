"""Several targets on the same rows: bounds of their lifts that hold together, and which of them may be the best.

Each bound of 60 equal targets is wrong in 2.5 % of logs, so that in most logs one of them looks better. So bounds
reach as far as the largest t of all targets in the same bootstrap draw (max-t). A target may be the best unless another
one is above it by more than all others together would be by chance if it were: so the best one is left out with the
probability of error of the interval, however many there are. Source: subset selection after Gupta 1965; own derivation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from rlrec.arrays import Array, finite_or_none
from rlrec.ope.checks.answers import doubts_of
from rlrec.ope.intervals import intervals
from rlrec.ope.intervals.intervals import Bounds, Relative, Studentised
from rlrec.ope.sums.base import Ratio
from rlrec.ope.units.estimate import Estimate, EstimatorFold, FinishOptions

_NOTHING = 1e-9  # of the spread of two lifts: the difference of equal ones


class Standing(NamedTuple):
    """Where a target stands among others. stretch: how many times as far from the lift its bounds lie, low and high,
    where those of all targets hold together; t: quantiles of t, in place of those of the target alone, where these are
    all that its bounds rest on; may_be_best: None where it is not known."""

    stretch: Bounds
    t: Bounds | None
    may_be_best: bool | None

    def bounds(self, estimate: Estimate) -> tuple[float | None, float | None]:
        """The bounds of the lift that hold together with those of the others, never inside its own ones."""
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
    """The estimates of several targets, each with its standing among all that can be judged: what an estimate in doubt
    says leaves out no other. folds: of the same estimators."""
    rows = [list(estimates) for estimates in targets]
    for number in range(len(rows[0])):
        judged = [
            target for target, estimates in enumerate(rows)
            if estimates[number].verdict != "insufficient" and estimates[number].lift_lower is not None
            and not doubts_of(estimates[number].reasons)
        ]  # fmt: skip
        if len(judged) > 1:
            compared = standings([folds[target][number] for target in judged], options)
            for target, standing in zip(judged, compared, strict=True):
                low, high = standing.bounds(rows[target][number])
                rows[target][number] = replace(
                    rows[target][number], simultaneous_lower=low, simultaneous_upper=high,
                    may_be_best=standing.may_be_best,
                )  # fmt: skip
    return rows


def standings(folds: Sequence[EstimatorFold], options: FinishOptions) -> list[Standing]:
    """The standing of each target by one estimator, at the end of a fold over the same rows."""
    is_plain = [not fold.distorted and not fold.heaviness for fold in folds]
    folds = [fold.unbiased for fold in folds]
    present = [fold.earned[:, 1] > 0 for fold in folds]
    can_draw = options.interval == "bootstrap-t" and all(np.array_equal(present[0], flags) for flags in present[1:])
    if not can_draw or len(present[0]) < 2:
        usual, joint = (NormalDist().inv_cdf((1 - options.level) / 2 / number) for number in (1, len(folds)))
        return [Standing((joint / usual, joint / usual), None, None) for _ in folds]
    samples = [(Relative(fold.estimator, Ratio()), _columns(fold)) for fold in folds]
    lifts = intervals.studentised_bootstraps(samples, seed=options.seed, number=options.replicates)
    quantiles = intervals.joint_quantiles([lift.t for lift in lifts if len(lift.t)], options.level)
    may_be_best = _may_be_best(folds, lifts, options.level)
    return [
        Standing((1.0, 1.0), quantiles if len(lift.t) else None, best) if plain
        else Standing(_stretch(lift, quantiles, options.level), None, best)
        for lift, best, plain in zip(lifts, may_be_best, is_plain, strict=True)
    ]  # fmt: skip


def _columns(fold: EstimatorFold) -> Array:
    """Those of the estimator, then of what served."""
    return np.column_stack([fold.units, fold.earned])


def _stretch(lift: Studentised, joint: Bounds, level: float) -> Bounds:
    """How many times as far the joint quantiles of t lie as those of one target: of the low and of the high bound."""
    if not len(lift.t):
        return 1.0, 1.0
    (low, high), (joint_low, joint_high) = lift.quantiles(level), joint
    return (max(1.0, joint_high / high) if high > 0 else 1.0), (max(1.0, joint_low / low) if low < 0 else 1.0)


def _may_be_best(folds: Sequence[EstimatorFold], lifts: Sequence[Studentised], level: float) -> list[bool | None]:
    """Whether each target may be the best one. A lift without error is what it is in every replicate."""
    value = np.array([lift.value if len(lift.t) else fold.relative[0] for fold, lift in zip(folds, lifts, strict=True)])
    is_finite, number = np.isfinite(value), max(len(lift.t) for lift in lifts)
    rank = int((number + 1) * (1 - level) + _NOTHING)
    if not rank:
        return [None] * len(folds)
    with np.errstate(all="ignore"):
        distance = np.stack([lift.values - lift.value if len(lift.t) else np.zeros(number) for lift in lifts])
        influence = np.stack([
            _columns(fold) @ Relative(fold.estimator, Ratio()).gradient(_columns(fold).sum(axis=0))
            if len(lift.t) else np.zeros(len(fold.earned)) for fold, lift in zip(folds, lifts, strict=True)
        ])  # fmt: skip
    products = influence @ influence.T
    square = np.diag(products)
    spread = square[:, None] + square - 2 * products
    error = np.sqrt(np.where(spread > _NOTHING * (square[:, None] + square), spread, np.inf))
    result: list[bool | None] = []
    for target in range(len(folds)):
        if not is_finite[target]:
            result.append(None)
            continue
        # by how many errors the others are above it, and would be by chance
        above = ((value - value[target]) / error[target])[is_finite].max()
        chance = ((distance - distance[target]) / error[target][:, None])[is_finite].max(axis=0)
        result.append(bool(above <= np.sort(chance)[-rank]))
    return result
