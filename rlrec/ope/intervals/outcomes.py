"""Outcomes of units by group: ratios of sums over units, their differences, and what units' pasts take off the noise.

A metric is the sum of a numerator over the sum of a denominator; a metric per unit has a denominator of 1. The unit is
the cluster. Where units are in several groups (a policy followed another), the error of a difference takes the
correlation of the two into account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np

from rlrec.arrays import Array, Ids, finite_or_none
from rlrec.directions import rounding
from rlrec.ope.intervals import comparison
from rlrec.ope.intervals.comparison import MeanDifference, VariantMean
from rlrec.ope.sums.moments import ClusterSummary, Moments
from rlrec.ope.sums.unit_visits import DAYS, SAMPLED_FLAGS, UnitSums
from rlrec.records import Sums

YOUNG_SHARE = 0.9  # units are young while they have had less than this share of their visits
ALARM = 1e-3  # p-value below which groups differ
MIN_EQUAL_UNITS = 7  # of each group, for groups without variation to differ: one split in 3,432 parts them so
REASONS = {
    "no-units": "nobody was served yet, nothing is mature, or nobody for as long as --age says",
    "none-at-risk": "no visit ended long enough ago to say whether another one followed in time",
    "few-units": "one unit alone has no error",
    "no-variation": "all units are the same so far, which is no certainty",
    "young-units": "many units had no time yet to come again, or the difference changes with the time they had: it may"
    " grow or turn; `rlrec outcomes --age 7d` compares units at equal age",
    "no-users": "no user is known: who came again is seen only where the session key is the same",
    "anonymous-units": "sessions without a user count as units of their own; retention and returned_* are of users"
    " alone, since nobody sees whether the others come again; `rlrec outcomes --users named` leaves them out",
    **{f"partial-{name}": f"the log covers this {name}, or the first one, in part" for name in ("hour", "day", "week")},
    "sampled-rows": "the log dropped rows (keep_probability) of units with several decisions: how many visits, days and"
    " returns it lacks is unknown, and so is what units (or visits of several decisions) had of anything",
    "not-randomised": "no p-values: nobody assigned units to these groups at random, so they may differ in who came"
    " and when; `rlrec experiment` compares policies",
    "no-past": "no unit had visits before its assignment: there is nothing to adjust by",
}
ROUNDING = 1e-12  # a variance this small beside the terms it is a difference of is none
PAST = ("past_numerator", "past_denominator", "counted")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A ratio of columns of `UnitSums`. reward: number of its reward definition; limits: its least and largest possible
    value; per_unit: whether the denominator counts units."""

    name: str
    numerator: str
    denominator: str
    reward: int | None = None
    limits: tuple[float, float] = (0.0, np.inf)
    per_unit: bool = False

    @property
    def counts_recognised(self) -> bool:
        """Whether only persons count who would be recognised under another session key."""
        return self.denominator.startswith(("recognised", "at_risk"))

    @property
    def lacking(self) -> str | None:
        """The column that says whether rows which the log dropped may be lacking; None where they never are."""
        return None if self.denominator.startswith("mature_decisions") else SAMPLED_FLAGS["visits" in self.denominator]


def metrics(rewards: int, *, per_session: bool = False) -> list[Metric]:
    """The metrics of an answer in their order, under so many reward definitions. per_session: whether the unit is the
    session, which comes again under its own key, whoever it is."""
    denominator, numbers = "units" if per_session else "recognised", range(rewards)
    return [
        Metric(name="visits", numerator="visits", denominator="units", per_unit=True),
        Metric(name="active_days", numerator="active_days", denominator="units", per_unit=True),
        Metric(name="retention", numerator="came_again", denominator=denominator, limits=(0.0, 1.0), per_unit=True),
        *(
            Metric(name=f"returned_{n}d", numerator=f"returned_{n}d", denominator=f"at_risk_{n}d", limits=(0.0, 1.0))
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
        limits=(-np.inf, np.inf), per_unit=denominator == "units",
    )  # fmt: skip


Key = tuple[int, Metric]


@dataclass(frozen=True, kw_only=True, eq=False)
class OutcomeSums(Sums):
    """Sums over units that add up; keys are the number of a group and the name and reward of a metric.

    groups: of each group. pairs: of each group with the first one, (2, 2): over units in both, the products of
    numerator and denominator here with numerator and denominator there."""

    groups: Mapping[Key, Moments]
    pairs: Mapping[Key, Array]


def fold(
    units: UnitSums, metrics: Sequence[Metric], *, past: UnitSums | None = None, shared: bool = False
) -> OutcomeSums:
    """The sums of a batch in which every unit is complete.
    past: the same units before their entry, all in group 0; shared: a unit can be in several groups."""
    past_columns = None if past is None else _aligned(past, units.unit)
    rows_by_group = {number: np.flatnonzero(units.group == number) for number in np.unique(units.group).tolist()}
    keys = product(rows_by_group, metrics)
    groups = {key: _sums(units, key[1], rows_by_group[key[0]], past_columns) for key in keys}
    pairs: dict[Key, Array] = {}
    if shared and 0 in rows_by_group:
        first = units.take(rows_by_group.pop(0))
        for number, rows in rows_by_group.items():
            group_columns, first_columns = units.take(rows).columns, _aligned(first, units.unit[rows])
            for metric in metrics:
                names = (metric.numerator, metric.denominator)
                sides = [np.stack([columns[name] for name in names]) for columns in (group_columns, first_columns)]
                pairs[number, metric] = sides[0] @ sides[1].T
    return OutcomeSums(groups=groups, pairs=pairs)


def _sums(units: UnitSums, metric: Metric, rows: Ids, past_columns: Mapping[str, Array] | None) -> Moments:
    """The sums of a metric over the rows that count for it."""
    rows = rows[units.columns[metric.denominator][rows] > 0]
    columns = [units.columns[metric.numerator][rows], units.columns[metric.denominator][rows]]
    names: tuple[str, ...] = comparison.COLUMNS
    if past_columns is not None:
        columns += [past_columns[metric.numerator][rows], past_columns[metric.denominator][rows], np.ones(len(rows))]
        names = (*names, *PAST)
    return comparison.sums(*columns, unit=units.unit[rows], spans_batches=False, names=names)


def _aligned(sums: UnitSums, unit: Ids) -> dict[str, Array]:
    """The columns of these units, (n,), 0 where there are none. sums: of one group, by digest."""
    if not len(sums.unit):
        return {name: np.zeros(len(unit)) for name in sums.columns}
    index = np.minimum(np.searchsorted(sums.unit, unit), len(sums.unit) - 1)
    present = sums.unit[index] == unit
    return {name: np.where(present, column[index], 0.0) for name, column in sums.columns.items()}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A metric of a group; None where there is too little. units: that count; reasons: words of REASONS."""

    group: int
    metric: Metric
    value: float | None
    lower: float | None
    upper: float | None
    units: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OutcomeDifference:
    """A metric of a group less that of the first. relative: of the first one's value.

    theta, narrowed: with adjustment, the weight of the past, and by how much the interval is narrower than without"""

    group: int
    metric: Metric
    value: float | None
    relative: float | None
    lower: float | None
    upper: float | None
    p_value: float | None
    reasons: tuple[str, ...]
    theta: float | None = None
    narrowed: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """The figures of sums over the whole log. groups: how many there are; adjusted: by the pasts of units."""

    sums: OutcomeSums
    groups: int
    level: float
    adjusted: bool = False

    def mean(self, group: int, metric: Metric) -> VariantMean:
        """A metric of a group, as it was observed."""
        summary = self._summary(group, metric)
        return comparison.finish(summary if summary is not None else comparison.empty(spans_batches=False))

    def rows(self, metrics: Sequence[Metric]) -> list[Outcome]:
        """Every metric of every group."""
        rows = []
        for group, metric in product(range(self.groups), metrics):
            mean = self.mean(group, metric)
            has_bounds = mean.error > 0 and mean.units > 1
            bounds = np.clip(mean.bounds(self.level), *metric.limits) if has_bounds else (None, None)
            rows.append(Outcome(
                group=group, metric=metric, value=finite_or_none(mean.value), lower=finite_or_none(bounds[0]),
                upper=finite_or_none(bounds[1]), units=mean.units,
                reasons=tuple(_reasons(metric, mean, bounded=bounds[0] is not None)),
            ))  # fmt: skip
        return rows

    def differences(self, metrics: Sequence[Metric]) -> list[OutcomeDifference]:
        """Every metric of every group but the first, less that of the first."""
        return [self.difference(group, metric) for group in range(1, self.groups) for metric in metrics]

    def difference(self, group: int, metric: Metric) -> OutcomeDifference:
        """A metric of a group less that of the first."""
        means = [self.mean(side, metric) for side in (group, 0)]
        correlation = self._correlation(group, metric)
        difference = comparison.difference(*means, level=self.level, correlation=correlation)
        adjustment = self._adjust(group, metric, means, difference) if self.adjusted else None
        difference = adjustment.difference if adjustment else difference
        value, base = difference.value, means[1].value
        relative = value / base if np.isfinite(base) and base else None
        reasons = _reasons(metric, *means, bounded=bool(np.isfinite(difference.p_value)))
        if adjustment and adjustment.theta is None and not reasons:
            reasons = ["no-past"]
        return OutcomeDifference(
            group=group, metric=metric, value=finite_or_none(value), relative=finite_or_none(relative),
            lower=finite_or_none(difference.lower), upper=finite_or_none(difference.upper),
            p_value=finite_or_none(difference.p_value), reasons=tuple(reasons),
            theta=adjustment and adjustment.theta, narrowed=adjustment and finite_or_none(adjustment.narrowed),
        )  # fmt: skip

    def differ(self, group: int, metric: Metric) -> bool:
        """Whether a group differs from the first one, with a false alarm in 1,000: by the p-value; where the units of
        each are all the same, if there are enough of them."""
        difference, means = self.difference(group, metric), [self.mean(side, metric) for side in (group, 0)]
        if difference.p_value is None:
            parted = abs(difference.value or 0.0) > rounding(*(mean.value for mean in means))
            return parted and min(mean.units for mean in means) >= MIN_EQUAL_UNITS
        return difference.p_value < ALARM

    def _summary(self, group: int, metric: Metric) -> ClusterSummary | None:
        sums = self.sums.groups.get((group, metric))
        return None if sums is None else _columns(sums.summary(), comparison.COLUMNS)

    def _correlation(self, group: int, metric: Metric) -> float:
        """Correlation of a metric of two groups, this one and the first, by the influences of units in both."""
        products, sides = self.sums.pairs.get((group, metric)), []
        for number in (group, 0):
            summary = self._summary(number, metric)
            if products is None or summary is None or not summary.total[1]:
                return 0.0
            influence = np.array([1.0, -summary.total[0] / summary.total[1]])
            sides.append((influence, float(influence @ summary.moment @ influence)))
        (group_influence, group_square), (first_influence, first_square) = sides
        size = np.sqrt(group_square * first_square)
        return float(np.clip(group_influence @ products @ first_influence / size, -1, 1)) if size > 0 else 0.0

    # -- adjustment by the past --

    def _adjust(self, group: int, metric: Metric, means: Sequence[VariantMean], plain: MeanDifference) -> _Adjustment:
        """The difference less theta times that of the pasts (CUPED).
        Source: Deng et al. 2013, eq. 4 and 5, for ratios by their linear terms."""
        covariates, theta = self._covariates.get(metric, {}), self._theta(metric)
        if theta is None or not all(side in covariates for side in (group, 0)):
            return _Adjustment(plain, None, 0.0)
        adjusted = [covariates[side].adjusted(mean, theta) for side, mean in zip((group, 0), means, strict=True)]
        difference = comparison.difference(*adjusted, level=self.level)
        narrowed = 1 - (difference.upper - difference.lower) / (plain.upper - plain.lower)
        return _Adjustment(difference, theta, narrowed)

    def _theta(self, metric: Metric) -> float | None:
        """Covariance of the metric with its past over the variance of the past, within groups, from all units."""
        pairs = [covariate.products for covariate in self._covariates.get(metric, {}).values()]
        variance = sum(past for _, past in pairs)
        return sum(covariance for covariance, _ in pairs) / variance if variance > 0 else None

    @cached_property
    def _covariates(self) -> dict[Metric, dict[int, _Covariate]]:
        summaries: dict[Metric, dict[int, ClusterSummary]] = {}
        for (group, metric), sums in self.sums.groups.items():
            if (summary := sums.summary()).total[1] > 0:
                summaries.setdefault(metric, {})[group] = summary
        covariates = {}
        for metric, by_group in summaries.items():
            # the ratio of the past, of all groups together: a unit's past counts by what it is above that
            past = np.sum([summary.total[2:4] for summary in by_group.values()], axis=0)
            ratio = 0.0 if metric.per_unit or not past[1] else float(past[0] / past[1])
            covariates[metric] = {group: _Covariate(summary, ratio) for group, summary in by_group.items()}
        return covariates


def share_of_visits(begun: Array, ages: Array) -> float:
    """Share of the visits of some time that units have had on average: the rest is to come, where units are young.

    begun (t,): visits by the age that their unit had then; ages (t,): units by the age that they have now. The time
    ends where fewer than a tenth of the units have been that long; NaN without a unit.
    Source: Nelson 2003, the mean cumulative function of units that are watched for different times."""
    at_risk = np.cumsum(ages[::-1])[::-1]
    if not at_risk.size or not at_risk[0]:
        return np.nan
    long_enough = at_risk >= at_risk[0] / 10
    mean = float((begun[long_enough] / at_risk[long_enough]).sum())
    return float(begun[long_enough].sum() / at_risk[0]) / mean if mean else np.nan


def changes_with_age(older: Outcomes, younger: Outcomes, group: int, metric: Metric) -> bool:
    """Whether the difference from the first group is another one for older units than for younger ones, with a false
    alarm in 1,000."""
    sides = []
    for figures in (older, younger):
        mean, first_mean = (figures.mean(side, metric) for side in (group, 0))
        error, fewest = float(np.hypot(mean.error, first_mean.error)), min(mean.units, first_mean.units)
        value = mean.value - first_mean.value
        sides.append(VariantMean(units=fewest, decisions=0, reward=np.nan, value=value, error=error))
    return comparison.difference(*sides, level=older.level).p_value < ALARM


class _Adjustment(NamedTuple):
    """An adjusted difference; theta: the weight of the past, None where there is none; narrowed: by which share its
    interval is narrower."""

    difference: MeanDifference
    theta: float | None
    narrowed: float


@dataclass(frozen=True, eq=False)
class _Covariate:
    """A metric of a group beside its past: R = sum N / sum D, and K, the mean over units of N0 - R0 D0.

    summary: of the columns N, D, N0, D0 and 1; ratio: R0"""

    summary: ClusterSummary
    ratio: float

    @property
    def products(self) -> tuple[float, float]:
        """Sum over units of the product of their deviations in the metric and in the past, and of squares of the
        latter."""
        influence, past = (weights * self.summary.total[4] for weights in self._weights)
        squares = past[:, None] * self.summary.moment * past
        square = float(squares.sum())
        # a rounding of 0 is 0
        square = square if square > ROUNDING * float(np.abs(squares).sum()) else 0.0
        return float(influence @ self.summary.moment @ past) if square else 0.0, square

    def adjusted(self, mean: VariantMean, theta: float) -> VariantMean:
        """R - theta K. Its error: that of R, by as much less as the delta method says."""
        (influence, past), moment = self._weights, self.summary.moment
        plain, residual = (max(0.0, float(w @ moment @ w)) for w in (influence, influence - theta * past))
        error = mean.error * np.sqrt(residual / plain) if plain > 0 else mean.error
        return replace(mean, value=mean.value - theta * self._past_mean, error=float(error))

    @property
    def _past_mean(self) -> float:
        _, _, numerator, denominator, units = self.summary.total.tolist()
        return (numerator - self.ratio * denominator) / units

    @property
    def _weights(self) -> tuple[Array, Array]:
        """The influence of a unit on R and on K as weights of its columns."""
        numerator, denominator, _, _, units = self.summary.total.tolist()
        influence = np.array([1.0, -numerator / denominator, 0.0, 0.0, 0.0]) / denominator
        return influence, np.array([0.0, 0.0, 1.0, -self.ratio, -self._past_mean]) / units


def _columns(summary: ClusterSummary, names: tuple[str, ...]) -> ClusterSummary:
    """The summary of these columns alone, which are its first ones."""
    first = slice(len(names))
    columns = {name: getattr(summary, name)[first] for name in ("present", "total", "largest", "absolute")}
    moment, units = summary.moment[first, first], summary.units[:, first]
    return replace(summary, **columns, columns=names, moment=moment, units=units)


def _reasons(metric: Metric, *means: VariantMean, bounded: bool) -> list[str]:
    if not all(mean.units for mean in means):
        return ["none-at-risk" if metric.denominator.startswith("at_risk") else "no-units"]
    if bounded:
        return []
    return ["few-units" if min(mean.units for mean in means) < 2 else "no-variation"]
