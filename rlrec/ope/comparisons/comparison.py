"""One figure less another: a difference with its interval, its verdict, and the answer to whether it is better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlrec.arrays import finite_or_none
from rlrec.ope.checks.answers import Answer, doubts_of, judge
from rlrec.ope.checks.reasons import REASONS, worst_verdict
from rlrec.ope.comparisons.metric import MetricValue
from rlrec.ope.intervals.tails import chi_square_above, t_below, t_quantile
from rlrec.sentences import rounding

ALARM = 1e-3  # p-value below which groups differ, or a split is not as defined
ROUNDING = 1e-12  # a variance this small beside the terms it is a difference of is none


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A metric or a target less another one; a figure that does not exist is None, never NaN.

    base: what it is compared with; p_value: two-sided, of no difference; clusters: of both sides; ess: effective ones,
        the smaller of the two sides, None where nothing is weighed
    verdict, reasons: as in an estimate, the worse of the two
    theta, narrowed: with adjustment, the weight of the past, and by how much the interval is narrower than without"""

    value: float | None = None
    base: float | None = None
    std_error: float | None = None
    lower: float | None = None
    upper: float | None = None
    p_value: float | None = None
    clusters: int = 0
    ess: float | None = None
    verdict: str = "ok"
    reasons: tuple[str, ...] = ()
    theta: float | None = None
    narrowed: float | None = None

    @classmethod
    def from_figures(cls, reasons: Iterable[str] = (), **figures: Any) -> Comparison:
        """The comparison of these figures; what is not finite becomes None."""
        finite: dict[str, Any] = {
            name: finite_or_none(value) if isinstance(value, float) else value for name, value in figures.items()
        }
        return cls(**finite).because(*reasons)

    def because(self, *reasons: str) -> Comparison:
        """The comparison with these reasons in addition, and no better verdict than they allow."""
        verdict = worst_verdict((self.verdict, *(REASONS[reason].best for reason in reasons)))
        return replace(self, reasons=(*self.reasons, *reasons), verdict=verdict)

    def without(self, group: str) -> Comparison:
        """The comparison without the reasons of a group, where another one answers for them."""
        return replace(self, reasons=tuple(name for name in self.reasons if REASONS[name].group != group))

    @property
    def is_reliable(self) -> bool:
        """Whether its bounds hold, as far as the log can tell."""
        return self.verdict != "insufficient" and not doubts_of(self.reasons)

    @property
    def relative(self) -> float | None:
        """The difference as a share of what it is compared with."""
        return None if self.value is None or not self.base else finite_or_none(self.value / self.base)

    @property
    def width(self) -> float | None:
        """The width of the interval."""
        return None if self.lower is None or self.upper is None else self.upper - self.lower

    @property
    def answer(self) -> Answer:
        """Whether the first one is better, worse, or as good, and how many clusters more would tell."""
        base, value = self.base or 0.0, self.value or 0.0
        return judge(
            self.value, self.lower, self.upper, scale=abs(base), precision=rounding(base, base + value),
            clusters=self.clusters, ess=self.ess, verdict=self.verdict, reasons=self.reasons,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The figures of a row of differences."""
        figures = {name: getattr(self, name) for name in ("value", "relative", "lower", "upper", "p_value")}
        return figures | {"reasons": [*self.reasons], **self.answer._asdict()}


def difference(
    value: MetricValue, baseline: MetricValue, *, level: float, correlation: float = 0.0
) -> Comparison:  # fmt: skip
    """`value` minus `baseline` by Welch's t over units; a side without variation so far borrows the other's.
    No bounds and no p-value where neither side has any.
    correlation: of the two, where units are in both; degrees of freedom are then those of the smaller side."""
    sides = value, baseline
    variances, freedom = np.array([_variance(*sides), _variance(*sides[::-1])]), np.array([s.units - 1 for s in sides])
    variance = variances.sum()
    if correlation:
        reduced_variance = variance - 2 * correlation * np.sqrt(variances.prod())
        variance = reduced_variance if reduced_variance > ROUNDING * variance else 0.0
    error, welch = float(np.sqrt(variance)), 0.0
    if error > 0 and (freedom > 0).all():
        # Welch-Satterthwaite degrees of freedom
        share = variances / variances.sum()
        welch = float(freedom.min() if correlation else 1 / (share**2 / freedom).sum())
    units = sum(side.units for side in sides)
    return _by_t(value.value - baseline.value, error, welch, level, base=baseline.value, clusters=units)


def from_zero(mean: MetricValue, *, level: float, base: float) -> Comparison:
    """A mean of differences that is 0 where there is none, by Student's t."""
    freedom = mean.units - 1 if mean.varied else 0
    return _by_t(mean.value, mean.error, freedom, level, base=base, clusters=mean.units)


def _by_t(value: float, error: float, freedom: float, level: float, **figures: Any) -> Comparison:
    """The difference with its interval and p-value by Student's t, which 0 degrees of freedom do not give."""
    reach = t_quantile((1 + level) / 2, freedom) * error if freedom else np.inf
    p_value = 2 * t_below(-abs(value) / error, freedom) if freedom else np.nan
    return Comparison.from_figures(
        value=value, std_error=error, lower=value - reach, upper=value + reach, p_value=p_value, **figures
    )


def _variance(side: MetricValue, other: MetricValue) -> float:
    if side.error > 0 or not side.units:
        return side.error**2
    return other.error**2 * other.units / side.units


def sample_ratio(units: Sequence[int], weights: Sequence[float]) -> tuple[float, float]:
    """Chi-square of the units assigned against the weights, and its p-value; NaN without a unit.
    units, weights: one a variant, at least two variants; weights need not add up to 1."""
    observed, share = np.asarray(units, np.float64), np.asarray(weights, np.float64) / np.sum(weights)
    if not observed.sum():
        return np.nan, np.nan
    expected = observed.sum() * share
    chi2 = float(((observed - expected) ** 2 / expected).sum())
    return chi2, chi_square_above(chi2, len(observed) - 1)


def is_unlikely(split: tuple[float, float]) -> bool:
    """Whether a split is not as defined, with a false alarm in 1,000."""
    return split[1] < ALARM
