"""What an experiment found: mean rewards of its variants, their differences, and whether the split is as asked for.

The unit that was randomised (user or session) is the cluster: its decisions are not independent, and how many it has
is random too. So a mean reward per decision is a ratio of two sums over units, and that is what its error speaks of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.errors import InputError
from rlrec.ope.base import Ratio
from rlrec.ope.intervals import Bounds, estimated
from rlrec.ope.moments import Moments, moments

COLUMNS = ("reward", "decisions")


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Mean reward per decision of one variant, and what it is made of.

    units: with at least one decision; decisions; reward: the sum. value, error: the mean and its standard error (NaN
    where fewer than two units tell nothing of it)."""

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
        """Interval of the mean by Student's t; infinite where no variation was seen, for that is no certainty."""
        return _around(self.value, self.error, self.units - 1, level)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One mean minus another: value, interval, and the two-sided p-value of no difference."""

    value: float
    lower: float
    upper: float
    p_value: float


def fold(reward: Array, unit: Ids, *, spanning: bool) -> Moments:
    """The statistic of one batch: `fold(a) + fold(b)` is that of both.

    reward (n,): of every decision; unit (n,): who was randomised; spanning: a unit may come back in another batch."""
    return moments(np.column_stack([reward, np.ones(len(reward))]), unit, columns=COLUMNS, spanning=spanning)


def nothing(*, spanning: bool) -> Moments:
    """The statistic of no decision at all."""
    return fold(np.empty(0), np.empty(0, np.int64), spanning=spanning)


def finish(folded: Moments) -> Mean:
    """The mean of one variant. Its error is the delta method's of a ratio (`intervals.estimated`), and while units are
    few enough to be remembered one by one, the jackknife's: 20 units that come back unevenly often alarm in 5 %."""
    summary = folded.summary()
    units, (reward, decisions) = int(summary.present[1]), summary.total.tolist()
    value, error = (float(part) for part in estimated(Ratio(), summary.total, summary.moment, units))
    if not summary.blocks and error > 0:
        error = _jackknife(summary.units, value)
    return Mean(units=units, decisions=round(decisions), reward=reward, value=value, error=error)


def _jackknife(sums: Array, value: float) -> float:
    """Error of the ratio `value` over units (m, 2): how far it moves when each of them is left out.

    Source: own derivation: without unit i the ratio is value - (reward_i - value decisions_i) / (all - decisions_i)."""
    reward, decisions = sums.T
    moved = (reward - value * decisions) / (decisions.sum() - decisions)
    return float(np.sqrt((len(sums) - 1) / len(sums) * (moved**2).sum()))


def difference(mean: Mean, against: Mean, *, level: float) -> Difference:
    """`mean` minus `against` by Welch's t over units; a side that has shown no variation yet is lent the other's.

    Bounds are infinite and the p-value NaN where neither side has shown any."""
    from scipy.special import stdtr

    value = mean.value - against.value
    parts = np.array([_variance(mean, against), _variance(against, mean)])
    error, freedom = float(np.sqrt(parts.sum())), np.array([mean.units, against.units]) - 1
    if not (error > 0 and (freedom > 0).all()):
        return Difference(value=value, lower=-np.inf, upper=np.inf, p_value=np.nan)
    share = parts / parts.sum()
    shared = float(1 / (share**2 / freedom).sum())
    low, high = _around(value, error, shared, level)
    return Difference(value=value, lower=low, upper=high, p_value=float(2 * stdtr(shared, -abs(value) / error)))


def _variance(mean: Mean, other: Mean) -> float:
    if mean.error > 0 or not mean.units:
        return mean.error**2
    return other.error**2 * other.units / mean.units


def _around(value: float, error: float, freedom: float, level: float) -> Bounds:
    from scipy.special import stdtrit

    if not (error > 0 and freedom > 0):
        return -np.inf, np.inf
    reach = float(stdtrit(freedom, (1 + level) / 2)) * error
    return value - reach, value + reach


def sample_ratio(units: Sequence[int], weights: Sequence[float]) -> tuple[float, float]:
    """Chi-square of the units assigned against the weights, and its p-value; NaN without a unit.

    units and weights, one a variant, at least two; weights need not add up to 1."""
    from scipy.special import chdtrc

    seen, share = np.asarray(units, np.float64), np.asarray(weights, np.float64) / np.sum(weights)
    if not seen.sum():
        return np.nan, np.nan
    expected = seen.sum() * share
    chi2 = float(((seen - expected) ** 2 / expected).sum())
    return chi2, float(chdtrc(len(seen) - 1, chi2))


def check(level: float) -> None:
    """Raises InputError unless a level is between 0 and 1."""
    if not 0 < level < 1:
        raise InputError(f"level {level:g} is not between 0 and 1", hint="0.95 is usual")
