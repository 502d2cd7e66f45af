"""Metrics: ratios of two sums over units, whose errors are clustered by the unit.

The unit that was randomised (user or session) is the cluster: its decisions are not independent, and how many it has
is random too. So a mean reward per decision is a ratio of two sums over units, and its error is that of a ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.ope.intervals.intervals import UNKNOWN, Bounds, value_and_error
from rlrec.ope.intervals.tails import t_quantile
from rlrec.ope.sums.base import Ratio
from rlrec.ope.sums.moments import ClusterSummary, Moments, moments
from rlrec.ope.sums.unit_visits import DAYS, SAMPLED_FLAGS

COLUMNS = ("reward", "decisions")
SHARE: Bounds = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A ratio of columns of `UnitSums`. reward: number of its reward definition; limits: its least and largest possible
    value; per_unit: whether the denominator counts units."""

    name: str
    numerator: str
    denominator: str
    reward: int | None = None
    limits: Bounds = (0.0, np.inf)
    per_unit: bool = False

    @property
    def counts_recognised(self) -> bool:
        """Whether only persons count who would be recognised under another session key."""
        return self.denominator.startswith(("recognised", "at_risk"))

    @property
    def lacking(self) -> str | None:
        """The column that says whether rows which the log dropped may be lacking; None where they never are."""
        return None if self.denominator.startswith("mature_decisions") else SAMPLED_FLAGS["visits" in self.denominator]

    def bounds(self, value: MetricValue, level: float) -> Bounds:
        """The interval of a value within the limits; infinite where it is unknown."""
        low, high = value.bounds(level)
        return (max(low, self.limits[0]), min(high, self.limits[1])) if value.varied else UNKNOWN

    def reasons(self, *values: MetricValue, bounded: bool) -> tuple[str, ...]:
        """Why there is no value, or no bound, of these groups."""
        if not all(value.units for value in values):
            return ("none-at-risk" if self.denominator.startswith("at_risk") else "no-units",)
        few = min(value.units for value in values) < 2
        return () if bounded else ("few-units" if few else "no-variation",)


def metrics(rewards: int, *, per_session: bool = False) -> list[Metric]:
    """The metrics of an answer in their order, under so many reward definitions. per_session: whether the unit is the
    session, which comes again under its own key, whoever it is."""
    units, numbers = "units" if per_session else "recognised", range(rewards)
    return [
        Metric(name="visits", numerator="visits", denominator="units", per_unit=True),
        Metric(name="active_days", numerator="active_days", denominator="units", per_unit=True),
        Metric(name="retention", numerator="came_again", denominator=units, limits=SHARE, per_unit=True),
        *(
            Metric(name=f"returned_{n}d", numerator=f"returned_{n}d", denominator=f"at_risk_{n}d", limits=SHARE)
            for n in DAYS
        ),
        Metric(name="decisions_per_visit", numerator="decisions", denominator="visits_over"),
        Metric(name="minutes_per_visit", numerator="minutes", denominator="visits_over"),
        *(_reward_metric(n, "reward_per_visit", "visits") for n in numbers),
        *(_reward_metric(n, "reward_per_unit", "units") for n in numbers),
    ]


def per_decision(number: int) -> list[Metric]:
    """Mature decisions per unit and reward per decision, under a reward definition."""
    decisions, units = f"mature_decisions_{number}", f"mature_units_{number}"
    return [
        Metric(name="decisions_per_unit", numerator=decisions, denominator=units, reward=number, per_unit=True),
        _reward_metric(number, "reward_per_decision", "decisions"),
    ]


def _reward_metric(number: int, name: str, denominator: str) -> Metric:
    return Metric(
        name=name, numerator=f"reward_{number}", denominator=f"mature_{denominator}_{number}", reward=number,
        limits=UNKNOWN, per_unit=denominator == "units",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """A metric of a group. units: that count; numerator, denominator: the sums over them; value, error: their ratio and
    its standard error (NaN for fewer than two units)."""

    units: int = 0
    numerator: float = 0.0
    denominator: float = 0.0
    value: float = np.nan
    error: float = np.nan

    @classmethod
    def from_sums(cls, sums: Moments | ClusterSummary | None) -> MetricValue:
        """The ratio of the first two columns; None: of nothing. Its error is the jackknife's while every unit has sums
        of its own, which keeps the false alarms of 20 users with very different numbers of decisions at 5 %; else that
        of the delta method."""
        if sums is None:
            return cls()
        summary = sums.summary() if isinstance(sums, Moments) else sums
        units, total = int(summary.present[1]), summary.total[:2]
        value, error = (float(figure) for figure in value_and_error(Ratio(), total, summary.moment[:2, :2], units))
        if not summary.blocks and error > 0:
            error = _jackknife(summary.units[:, :2], value)
        return cls(units=units, numerator=float(total[0]), denominator=float(total[1]), value=value, error=error)

    @property
    def per_unit(self) -> float:
        """Mean numerator of a unit, NaN without one."""
        return self.numerator / self.units if self.units else np.nan

    @property
    def varied(self) -> bool:
        """Whether there is an error."""
        return self.error > 0 and self.units > 1

    def bounds(self, level: float) -> Bounds:
        """Interval of the ratio by Student's t; infinite without variation, which is no certainty."""
        reach = t_quantile((1 + level) / 2, self.units - 1) * self.error if self.varied else np.inf
        return (self.value - reach, self.value + reach) if self.varied else UNKNOWN


def fold(numerator: Array, unit: Ids, *, spans_batches: bool) -> Moments:
    """The sums of one batch of decisions: `fold(a) + fold(b)` are those of both.
    numerator (n,): of every decision; unit (n,): digest of the user or session that was randomised, any 64 bits;
    spans_batches: a unit may come back in another batch."""
    return sums(numerator, np.ones(len(numerator)), unit=unit, spans_batches=spans_batches)


def sums(*columns: Array, unit: Ids, spans_batches: bool, names: Sequence[str] = COLUMNS) -> Moments:
    """The sums of columns of one batch, (n,) each, the numerator and the denominator of a ratio first."""
    return moments(np.column_stack(columns), unit.astype(np.int64), columns=tuple(names), spans_batches=spans_batches)


def _jackknife(sums: Array, value: float) -> float:
    """Jackknife error of the ratio `value` over units (m, 2).
    Source: own derivation: without unit i the ratio is value - (reward_i - value decisions_i) / (all - decisions_i)."""
    reward, decisions = sums.T
    moved = (reward - value * decisions) / (decisions.sum() - decisions)
    return float(np.sqrt((len(sums) - 1) / len(sums) * (moved**2).sum()))
