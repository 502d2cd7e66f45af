"""Mean rewards of an experiment's variants, their differences, and whether units were split as defined.

The unit that was randomised (user or session) is the cluster: its decisions are not independent, and how many it has
is random too. So a mean reward per decision is a ratio of two sums over units, and its error is that of such a ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.ope.intervals.intervals import Bounds, value_and_error
from rlrec.ope.intervals.tails import chi_square_above, t_below, t_quantile
from rlrec.ope.sums.base import Ratio
from rlrec.ope.sums.moments import ClusterSummary, Moments, moments

COLUMNS = ("reward", "decisions")
_NOTHING = 1e-12  # a variance this small beside the terms it is a difference of is none


@dataclass(frozen=True, kw_only=True)
class VariantMean:
    """Mean reward per decision of one variant, with its sums.

    units: those with a decision; decisions; reward: the sum of rewards. value, error: the mean and its standard error
    (NaN for fewer than two units)"""

    units: int
    decisions: int
    reward: float
    value: float
    error: float

    @property
    def per_unit(self) -> float:
        """Mean reward of a unit, NaN without one."""
        return self.reward / self.units if self.units else np.nan

    def bounds(self, level: float) -> Bounds:
        """Interval of the mean by Student's t; infinite without variation, which is no certainty."""
        return _t_interval(self.value, self.error, self.units - 1, level)


@dataclass(frozen=True, kw_only=True)
class MeanDifference:
    """The mean of one variant minus that of another: value, interval, and two-sided p-value of no difference."""

    value: float
    lower: float
    upper: float
    p_value: float


def fold(reward: Array, unit: Ids, *, spans_batches: bool) -> Moments:
    """The sums of one batch: `fold(a) + fold(b)` are those of both.
    reward (n,): of every decision; unit (n,): digest of the user or session that was randomised, any 64 bits;
    spans_batches: a unit may come back in another batch."""
    return sums(reward, np.ones(len(reward)), unit=unit, spans_batches=spans_batches)


def sums(*columns: Array, unit: Ids, spans_batches: bool, names: tuple[str, ...] = COLUMNS) -> Moments:
    """The sums of columns of one batch, (n,) each, the numerator and the denominator of a ratio first."""
    return moments(np.column_stack(columns), unit.astype(np.int64), columns=names, spans_batches=spans_batches)


def empty(*, spans_batches: bool) -> Moments:
    """The sums of no decision."""
    return fold(np.empty(0), np.empty(0, np.int64), spans_batches=spans_batches)


def finish(sums: Moments | ClusterSummary) -> VariantMean:
    """The mean of one variant. Its error is the jackknife's while every unit has sums of its own, which keeps the false
    alarms of 20 users with very different numbers of decisions at 5 %; else that of the delta method."""
    summary = sums.summary() if isinstance(sums, Moments) else sums
    units, (reward, decisions) = int(summary.present[1]), summary.total.tolist()
    value, error = (float(figure) for figure in value_and_error(Ratio(), summary.total, summary.moment, units))
    if not summary.blocks and error > 0:
        error = _jackknife(summary.units, value)
    return VariantMean(units=units, decisions=round(decisions), reward=reward, value=value, error=error)


def _jackknife(sums: Array, value: float) -> float:
    """Jackknife error of the ratio `value` over units (m, 2).
    Source: own derivation: without unit i the ratio is value - (reward_i - value decisions_i) / (all - decisions_i)."""
    reward, decisions = sums.T
    moved = (reward - value * decisions) / (decisions.sum() - decisions)
    return float(np.sqrt((len(sums) - 1) / len(sums) * (moved**2).sum()))


def from_zero(mean: VariantMean, *, level: float) -> dict[str, float]:
    """Value, interval and two-sided p-value of a mean that is 0 where there is no difference, by Student's t."""
    lower, upper = mean.bounds(level)
    varied = mean.error > 0 and mean.units > 1
    p_value = 2 * t_below(-abs(mean.value) / mean.error, mean.units - 1) if varied else np.nan
    return {"value": mean.value, "lower": lower, "upper": upper, "p_value": p_value}


def difference(mean: VariantMean, baseline: VariantMean, *, level: float, correlation: float = 0.0) -> MeanDifference:
    """`mean` minus `baseline` by Welch's t over units; a side without variation so far borrows the other's.
    Bounds are infinite and the p-value NaN where neither side has any.
    correlation: of the two means, where units are in both; degrees of freedom are then those of the smaller side."""
    value = mean.value - baseline.value
    variances = np.array([_variance(mean, baseline), _variance(baseline, mean)])
    variance, freedom = variances.sum(), np.array([mean.units, baseline.units]) - 1
    if correlation:
        reduced_variance = variance - 2 * correlation * np.sqrt(variances.prod())
        variance = reduced_variance if reduced_variance > _NOTHING * variance else 0.0
    error = float(np.sqrt(variance))
    if not (error > 0 and (freedom > 0).all()):
        return MeanDifference(value=value, lower=-np.inf, upper=np.inf, p_value=np.nan)
    # Welch-Satterthwaite degrees of freedom
    share = variances / variances.sum()
    welch = float(freedom.min() if correlation else 1 / (share**2 / freedom).sum())
    low, high = _t_interval(value, error, welch, level)
    return MeanDifference(value=value, lower=low, upper=high, p_value=2 * t_below(-abs(value) / error, welch))


def _variance(mean: VariantMean, baseline: VariantMean) -> float:
    if mean.error > 0 or not mean.units:
        return mean.error**2
    return baseline.error**2 * baseline.units / mean.units


def _t_interval(value: float, error: float, freedom: float, level: float) -> Bounds:
    if not (error > 0 and freedom > 0):
        return -np.inf, np.inf
    reach = t_quantile((1 + level) / 2, freedom) * error
    return value - reach, value + reach


def sample_ratio(units: Sequence[int], weights: Sequence[float]) -> tuple[float, float]:
    """Chi-square of the units assigned against the weights, and its p-value; NaN without a unit.
    units, weights: one a variant, at least two variants; weights need not add up to 1."""
    observed, share = np.asarray(units, np.float64), np.asarray(weights, np.float64) / np.sum(weights)
    if not observed.sum():
        return np.nan, np.nan
    expected = observed.sum() * share
    chi2 = float(((observed - expected) ** 2 / expected).sum())
    return chi2, chi_square_above(chi2, len(observed) - 1)
