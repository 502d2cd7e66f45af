"""One target minus another on the same visits: what a promotion gate asks.

Both are sums over the same clusters, so the error of the difference is that of the influence of a cluster on the one
minus its influence on the other; what the two share cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.ope import diagnostics, intervals
from rlrec.ope.base import Smooth
from rlrec.ope.intervals import UNKNOWN, Bounds, Studentised, studentised
from rlrec.ope.sequential import SessionEstimator
from rlrec.ope.sessions import SessionEstimatorFold, SessionPartial, at_end

# A quantile of the bootstrap is one beyond which at least so many replicates lie: with fewer it is mostly noise.
_BEYOND = 20


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Value of one target minus that of another; a figure that cannot be had is None, never NaN.

    lower, upper: each is on the wrong side of the truth in a share `alpha` of logs; both are 0 where the two targets
        weigh every cluster alike, and None where the log has shown no variation otherwise
    ess: the smaller one of the two; clusters: they were compared in
    verdict, reasons: as of an estimate, the worse of the two; `weak` also where half the interval is wider than half
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


@dataclass(frozen=True)
class _Minus:
    """An estimate minus the same one of another target: their columns lie side by side."""

    kind: Smooth

    def value(self, mean: Array) -> Array:
        ours, theirs = np.split(mean, 2, axis=-1)
        return np.asarray(self.kind.value(ours) - self.kind.value(theirs))

    def gradient(self, mean: Array) -> Array:
        ours, theirs = np.split(mean, 2, axis=-1)
        return np.concatenate([self.kind.gradient(ours), -self.kind.gradient(theirs)], axis=-1)


def difference(
    partial: SessionPartial,
    against: SessionPartial,
    *,
    estimator: SessionEstimator,
    alpha: float = 0.025,
    extra_reasons: tuple[str, ...] = (),
    seed: int = 0,
    replicates: int = intervals.REPLICATES,
) -> PairedDifference:
    """`partial` minus `against`, two targets that one and the same `SessionFold` saw on the same visits.

    alpha: chance of each bound to be on the wrong side, in (0, 0.5); extra_reasons: as in `FinishOptions`
    Raises InputError for an alpha out of range, ValueError for statistics of other visits."""
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha {alpha:g} is not between 0 and 0.5", hint="0.025 is usual")
    ours, theirs = (
        at_end(side, estimator, label=estimator.name, summary=side.moments.summary()) for side in (partial, against)
    )
    _check(ours, theirs)
    found = _resampled(ours, theirs, seed=seed, number=replicates)
    ess = min(one.diagnosis.ess or 0.0 for one in (ours, theirs))
    low, high = (0.0, 0.0) if _alike(ours, theirs) else _bounds(found, alpha, freedom=ess - 1)
    known = np.isfinite([low, high]).all()
    wide = not known or high - low > abs(found.value)
    reasons = [
        *extra_reasons,
        *(["no-propensity"] if ours.weights.left_out or theirs.weights.left_out else []),
        *(["wide-interval"] if wide else []),
        *([] if known else ["few-rewards"]),
    ]
    judged, why = _verdict(ours, theirs, tuple(reasons))
    return PairedDifference(
        value=_figure(found.value),
        std_error=_figure(found.error),
        lower=_figure(low),
        upper=_figure(high),
        alpha=alpha,
        ess=ess,
        clusters=ours.clusters,
        verdict=judged,
        reasons=why,
    )


def _check(ours: SessionEstimatorFold, theirs: SessionEstimatorFold) -> None:
    (rows,) = ours.summary.index(("rows",))
    if not np.array_equal(ours.summary.units[:, rows], theirs.summary.units[:, rows]):
        raise ValueError("the two targets were not judged on the same visits")


def _alike(ours: SessionEstimatorFold, theirs: SessionEstimatorFold) -> bool:
    alike = np.array_equal(ours.summary.units, theirs.summary.units) and np.array_equal(ours.units, theirs.units)
    return ours.n > 0 and alike


def _resampled(ours: SessionEstimatorFold, theirs: SessionEstimatorFold, *, seed: int, number: int) -> Studentised:
    if not ours.n:
        return Studentised(value=np.nan, error=np.nan, t=np.empty(0))
    return studentised(_Minus(ours.estimator), np.column_stack([ours.units, theirs.units]), seed=seed, number=number)


def _bounds(found: Studentised, alpha: float, *, freedom: float) -> Bounds:
    """Bootstrap-t; where the replicates are too few for alpha, Student's t, shifted outwards by the skewness that their
    quantiles show at the level they are enough for.

    freedom: degrees of freedom of Student's t, the effective sample size less one: weights leave no more of them.
    Source: own derivation: the first term of the Edgeworth expansion of a studentised mean moves its quantile at z by
    a multiple of 2 z^2 + 1."""
    from scipy.special import stdtrit

    if not found.error > 0 or not len(found.t):
        return UNKNOWN
    enough = max(alpha, _BEYOND / (len(found.t) + 1))
    if enough == alpha or enough >= 0.5:
        return found.bounds(1 - 2 * alpha)
    near, far = (-float(stdtrit(max(freedom, 1.0), level)) for level in (enough, alpha))
    low, high = found.bounds(1 - 2 * enough)
    skewed = [max(0.0, reach / found.error - near) for reach in (found.value - low, high - found.value)]
    below, above = (found.error * (far + (2 * far**2 + 1) / (2 * near**2 + 1) * shift) for shift in skewed)
    return found.value - below, found.value + above


def _verdict(
    ours: SessionEstimatorFold, theirs: SessionEstimatorFold, extra: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    """The worse verdict, and the reasons of both."""
    found = [diagnostics.verdict(one.diagnosis, extra=extra) for one in (ours, theirs)]
    worst = min((word for word, _ in found), key=("insufficient", "weak", "ok").index)
    return worst, tuple(word for word in diagnostics.REASONS if any(word in why for _, why in found))


def _figure(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
