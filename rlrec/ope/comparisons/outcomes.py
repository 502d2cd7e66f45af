"""This module computes metrics of groups of users or sessions, and their differences. To reduce noise, it can adjust
for what each user did before.

In this module, a unit is a randomised user or session. A metric is the sum of a numerator over the sum of a
denominator; a metric per unit has a denominator of 1. The unit is the cluster. If units are in several groups (one
policy followed another), the error of a difference includes the correlation of the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product

import numpy as np

from rlrec.arrays import Array, Ids, finite_or_none, look_up
from rlrec.ope.comparisons import comparison
from rlrec.ope.comparisons.comparison import ALARM, ROUNDING_ERROR, Comparison, Metric, MetricValue, difference
from rlrec.ope.sums.moments import ClusterSummary, Moments
from rlrec.ope.sums.unit_visits import UnitSums
from rlrec.records import Record, Sums
from rlrec.sentences import rounding

YOUNG_SHARE = 0.9  # units count as young while they have had less than this share of their visits
# of each group, from which on groups without variation differ: by chance one split in 3,432 separates them so
MIN_EQUAL_UNITS = 7
_COLUMNS_WITH_PAST = (*comparison.COLUMNS, "past_numerator", "past_denominator", "counted")
Key = tuple[int, Metric]


class OutcomeSums(Sums, kw_only=True):
    """OutcomeSums holds sums over randomised units (users or sessions). The sums of two batches can be added. Keys are
    the number of a group and a metric.

    groups: the sums of each group; pairs: for units that are in a group and in the first group, the sums of products
    of numerator or denominator in the group with numerator or denominator in the first group, (2, 2)."""

    groups: Mapping[Key, Moments]
    pairs: Mapping[Key, Array]


def fold(
    units: UnitSums, metrics: Sequence[Metric], *, past: UnitSums | None = None, overlap: bool = False
) -> OutcomeSums:
    """Return the sums of a batch of randomised users or sessions. The batch must have all rows of each of them.

    past: the sums of the same users or sessions before their entry, all in group 0; overlap: whether one can be in
    several groups."""
    names = {name for metric in metrics for name in (metric.numerator, metric.denominator)}
    units = replace(units, columns={name: units.columns[name] for name in names})
    past_columns = None if past is None else _align_columns(past, units.unit)
    rows_by_group = {number: np.flatnonzero(units.group == number) for number in np.unique(units.group).tolist()}
    keys = product(rows_by_group, metrics)
    groups = {key: _sums(units, key[1], rows_by_group[key[0]], past_columns) for key in keys}
    pairs: dict[Key, Array] = {}
    if overlap and 0 in rows_by_group:
        first_group_units = units.take(rows_by_group.pop(0))
        for number, rows in rows_by_group.items():
            group_columns, first_columns = units.take(rows).columns, _align_columns(first_group_units, units.unit[rows])
            for metric in metrics:
                ratio = (metric.numerator, metric.denominator)
                sides = [np.stack([columns[name] for name in ratio]) for columns in (group_columns, first_columns)]
                pairs[number, metric] = sides[0] @ sides[1].T
    return OutcomeSums(groups=groups, pairs=pairs)


def _sums(units: UnitSums, metric: Metric, rows: Ids, past_columns: Mapping[str, Array] | None) -> Moments:
    """Return the sums of a metric over the given rows, without the rows whose denominator is 0."""
    rows = rows[units.columns[metric.denominator][rows] > 0]
    sides = [units.columns, *([] if past_columns is None else [past_columns])]
    columns = [side[name][rows] for side in sides for name in (metric.numerator, metric.denominator)]
    columns, names = (
        (columns, comparison.COLUMNS) if past_columns is None else ([*columns, np.ones(len(rows))], _COLUMNS_WITH_PAST)
    )
    return comparison.ratio_sums(*columns, unit=units.unit[rows], spans_batches=False, names=names)


def _align_columns(sums: UnitSums, unit: Ids) -> dict[str, Array]:
    """Return each column with one value for each of n users or sessions, (n,). The value is 0 for those without a row.

    sums: the sums of one group, ordered by digest; unit (n,): the digests of the users or sessions."""
    if not len(sums.unit):
        return {name: np.zeros(len(unit)) for name in sums.columns}
    index, is_present = look_up(sums.unit, unit)
    return {name: np.where(is_present, column[index], 0.0) for name, column in sums.columns.items()}


class Outcomes(Record, eq=False):
    """An Outcomes object computes metrics of groups, and their differences, from sums over the whole log.

    level: the confidence of intervals; is_adjusted: whether to adjust for the past of users."""

    sums: OutcomeSums
    level: float
    is_adjusted: bool = False

    def value(self, group: int, metric: Metric) -> MetricValue:
        """Return a metric of a group, without adjustment for the past."""
        return MetricValue.from_sums(self._summaries.get((group, metric)))

    def units(self, group: int, metric: Metric) -> int:
        """Return the number of users or sessions of a group that count for the metric."""
        return self.value(group, metric).units

    def compare(self, group: int, metric: Metric) -> Comparison:
        """Return a metric of a group minus that of the first group, or the reasons why there is no difference."""
        sides = self.value(group, metric), self.value(0, metric)
        raw_difference = difference(*sides, level=self.level, correlation=self._correlation(group, metric))
        result = self._adjust(group, metric, raw_difference) if self.is_adjusted else raw_difference
        reasons = metric.reasons(*sides, has_bounds=result.p_value is not None)
        lacks_past = self.is_adjusted and result.theta is None and not reasons
        return replace(result, base=raw_difference.base).with_reasons(*(("no-past",) if lacks_past else reasons))

    def guard_margin(self, group: int, metric: Metric, least: float) -> Comparison:
        """Return a metric of a group minus the value that a guard requires. The required value is the first group's
        value plus `least` (a share such as -0.02) times its absolute value."""
        value, first_value = self.value(group, metric), self.value(0, metric)
        required_factor = 1 + least * np.sign(first_value.value)
        required_value = replace(
            first_value, value=first_value.value * required_factor, error=first_value.error * required_factor
        )
        result = difference(value, required_value, level=self.level, correlation=self._correlation(group, metric))
        return replace(result, base=finite_or_none(first_value.value)).with_reasons(
            *metric.reasons(value, first_value, has_bounds=result.p_value is not None)
        )

    def differs_from_first(self, group: int, metric: Metric) -> bool:
        """Tell whether a metric of a group differs from the first group, with a false alarm in 1 of 1,000 cases. The
        p-value decides. If neither group varies, the result is True if the values differ and both groups have enough
        users or sessions."""
        result, sides = self.compare(group, metric), [self.value(side, metric) for side in (group, 0)]
        if result.p_value is None:
            values_differ = abs(result.value or 0.0) > rounding(*(side.value for side in sides))
            return values_differ and min(side.units for side in sides) >= MIN_EQUAL_UNITS
        return result.p_value < ALARM

    @cached_property
    def _summaries(self) -> dict[Key, ClusterSummary]:
        return {key: sums.summary() for key, sums in self.sums.groups.items()}

    def _correlation(self, group: int, metric: Metric) -> float:
        """Return the correlation of a metric between this group and the first group. It is computed from the influences
        of users or sessions that are in both groups, and is 0 if there are none."""
        products, sides = self.sums.pairs.get((group, metric)), []
        for number in (group, 0):
            summary = self._summaries.get((number, metric))
            if products is None or summary is None or not summary.total[1]:
                return 0.0
            influence = np.array([1.0, -summary.total[0] / summary.total[1]])
            sides.append((influence, float(influence @ summary.moment[:2, :2] @ influence)))
        (group_influence, group_square), (first_influence, first_square) = sides
        influence_size = np.sqrt(group_square * first_square)
        return (
            float(np.clip(group_influence @ products @ first_influence / influence_size, -1, 1))
            if influence_size > 0
            else 0.0
        )

    # -- adjustment for the past --

    def _adjust(self, group: int, metric: Metric, raw_difference: Comparison) -> Comparison:
        """Return the difference of a metric minus theta times the difference of its past (CUPED), or, without a past,
        the raw difference. Source: Deng et al. 2013, eq. 4 and 5, for ratios by their linear terms."""
        theta = self._theta(metric)
        value, baseline = (None if theta is None else self._subtract_past(side, metric, theta) for side in (group, 0))
        if value is None or baseline is None:
            return replace(raw_difference, narrowed=0.0)
        result = difference(value, baseline, level=self.level)
        width, unadjusted_width = (side.width for side in (result, raw_difference))
        narrowing = None if width is None or not unadjusted_width else finite_or_none(1 - width / unadjusted_width)
        return replace(result, theta=theta, narrowed=narrowing)

    def adjusted_value(self, group: int, metric: Metric) -> MetricValue | None:
        """Return a metric of a group minus theta times its past, where theta is a coefficient. The result is None if
        there is no past to adjust for."""
        theta = self._theta(metric) if self.is_adjusted else None
        return None if theta is None else self._subtract_past(group, metric, theta)

    def _theta(self, metric: Metric) -> float | None:
        """Return the coefficient of the past: the covariance of a metric with its past over the variance of the past.
        Both are within groups, and pooled over all groups. The result is None if the past does not vary."""
        pairs = self._past_products(metric)
        variance = sum(past for _, past in pairs)
        return sum(covariance for covariance, _ in pairs) / variance if variance > 0 else None

    def _past_products(self, metric: Metric) -> list[tuple[float, float]]:
        return [covariate.products for covariate in self._covariates.get(metric, {}).values()]

    def _subtract_past(self, group: int, metric: Metric, theta: float) -> MetricValue | None:
        covariate = self._covariates.get(metric, {}).get(group)
        return None if covariate is None else covariate.subtract_past(self.value(group, metric), theta)

    @cached_property
    def _covariates(self) -> dict[Metric, dict[int, _Covariate]]:
        summaries: dict[Metric, dict[int, ClusterSummary]] = {}
        for (group, metric), summary in self._summaries.items():
            if summary.total[1] > 0:
                summaries.setdefault(metric, {})[group] = summary
        covariates = {}
        for metric, by_group in summaries.items():
            # the ratio of the past over all groups; a unit's past counts as its deviation from this ratio
            past = np.sum([summary.total[2:4] for summary in by_group.values()], axis=0)
            ratio = 0.0 if metric.per_unit or not past[1] else float(past[0] / past[1])
            covariates[metric] = {group: _Covariate(summary, ratio) for group, summary in by_group.items()}
        return covariates


def share_of_visits(visits: Array, ages: Array) -> float:
    """Return the share of their visits that users or sessions have had so far, on average. The visits of young ones are
    still to come. Ages that fewer than a tenth of all users or sessions have reached are left out. The result is NaN if
    there are none. Source: Nelson 2003, the mean cumulative function of units that are watched for different times.

    visits (t,): the number of visits, by the age of the user or session at the time of the visit; ages (t,): the
    number of users or sessions, by their present age."""
    units_reaching_age = np.cumsum(ages[::-1])[::-1]
    if not units_reaching_age.size or not units_reaching_age[0]:
        return np.nan
    is_long_enough = units_reaching_age >= units_reaching_age[0] / 10
    visits_per_unit = float((visits[is_long_enough] / units_reaching_age[is_long_enough]).sum())
    return float(visits[is_long_enough].sum() / units_reaching_age[0]) / visits_per_unit if visits_per_unit else np.nan


def mean_age(ages: Array) -> float:
    """Return the mean age of users or sessions as a share of the oldest possible age, or NaN without any.

    ages (t,): the number of users or sessions of each age."""
    return float(ages @ (np.arange(len(ages)) + 0.5) / len(ages) / ages.sum()) if ages.sum() else np.nan


def expected_share(visits: Array, ages: Array, group_ages: Array) -> float:
    """Return the share of their visits that the users or sessions of a group have had so far, if they come as often as
    those of all groups. The result is NaN without any.

    visits (t,): the number of visits in all groups, by age at the time of the visit; ages, group_ages (t,): the
    number of users or sessions of all groups, and of this group, by their present age."""
    units_reaching_age = np.cumsum(ages[::-1])[::-1]
    is_long_enough = units_reaching_age >= max(units_reaching_age[0] / 10, 1)
    visits_by_age = np.cumsum(np.where(is_long_enough, visits / np.maximum(units_reaching_age, 1), 0.0))
    expected_visits = float(group_ages.sum() * visits_by_age[-1])
    return float(group_ages @ visits_by_age) / expected_visits if expected_visits else np.nan


def changes_with_age(older: Outcomes, younger: Outcomes, group: int, metric: Metric, alarm: float = ALARM) -> bool:
    """Tell whether the difference from the first group changes with the age of users or sessions.

    older, younger: the outcomes of the older and of the younger ones; alarm: the probability of a false alarm."""
    sides = []
    for figures in (older, younger):
        value, first_value = (figures.value(side, metric) for side in (group, 0))
        error, fewest_units = float(np.hypot(value.error, first_value.error)), min(value.units, first_value.units)
        sides.append(MetricValue(units=fewest_units, value=value.value - first_value.value, error=error))
    p_value = difference(*sides, level=older.level).p_value
    return p_value is not None and p_value < alarm


class _Covariate(Record, kw_only=False, eq=False):
    """This record has a metric of a group with its past. R = sum N / sum D is the metric. K is the mean over users or
    sessions of N0 - R0 D0, where N0 and D0 are the numerator and denominator in the past, and R0 is a reference ratio.

    summary: the sums of the columns N, D, N0, D0 and 1; ratio: R0."""

    summary: ClusterSummary
    ratio: float

    @property
    def products(self) -> tuple[float, float]:
        """Return two sums over users or sessions: the product of their deviations in the metric and in the past, and
        the squared deviation in the past."""
        influence, past = (weights * self.summary.total[4] for weights in self._weights)
        squares = past[:, None] * self.summary.moment * past
        square = float(squares.sum())
        # a rounding error of 0 counts as 0
        square = square if square > ROUNDING_ERROR * float(np.abs(squares).sum()) else 0.0
        return float(influence @ self.summary.moment @ past) if square else 0.0, square

    def subtract_past(self, mean: MetricValue, theta: float) -> MetricValue:
        """Return R - theta K with its error by the delta method, where `mean` is R with its error."""
        (influence, past), moment = self._weights, self.summary.moment
        variance, residual_variance = (max(0.0, float(w @ moment @ w)) for w in (influence, influence - theta * past))
        error = mean.error * np.sqrt(residual_variance / variance) if variance > 0 else mean.error
        return replace(mean, value=mean.value - theta * self._past_mean, error=float(error))

    @property
    def _past_mean(self) -> float:
        _, _, numerator, denominator, units = self.summary.total.tolist()
        return (numerator - self.ratio * denominator) / units

    @property
    def _weights(self) -> tuple[Array, Array]:
        """Return two arrays of coefficients. With them, the columns of a user or session sum to its influence on the
        metric R, and on the mean K of its past."""
        numerator, denominator, _, _, units = self.summary.total.tolist()
        influence = np.array([1.0, -numerator / denominator, 0.0, 0.0, 0.0]) / denominator
        return influence, np.array([0.0, 0.0, 1.0, -self.ratio, -self._past_mean]) / units


# -- units that were drawn with weights that changed --
#
# Groups are compared within strata, whose units were all drawn with the same weights, and the differences are combined.
# Over all units together, a group that had a larger share while rates were high would look better than it is. A stratum
# is weighted by the harmonic mean of its numbers of units in the groups, whatever their rewards; one in which a group
# has few units counts little.


MIN_UNITS = 2  # of every group in a stratum that counts; with one unit there is no error


class PhasedOutcomes(Outcomes, eq=False):
    """A PhasedOutcomes object compares groups within strata, and combines the differences. The users or sessions of a
    stratum were drawn with the same weights.

    sums: the sums of all users or sessions; strata: the outcomes of each stratum, by number; groups: the number of
    groups. Errors assume that strata are uncorrelated. The strata of `ramp_strata` are uncorrelated, although a user
    can be in several strata."""

    strata: Mapping[int, Outcomes]
    groups: int

    def value(self, group: int, metric: Metric) -> MetricValue:
        """Return a metric of a group, as if each stratum had the same share of the users or sessions in all groups."""
        values = {key: outcomes.value(group, metric) for key, outcomes in self.strata.items()}
        return self._combine(group, metric, values)

    def units(self, group: int, metric: Metric) -> int:
        """Return the number of users or sessions of a group that count for the metric, summed over all strata."""
        return sum(outcomes.value(group, metric).units for outcomes in self.strata.values())

    def _shares(self, metric: Metric) -> dict[int, float]:
        """Return the weight of each stratum that has enough users or sessions in every group. The weights sum to 1."""
        weights = dict[int, float]()
        for key, outcomes in self.strata.items():
            units = np.array([outcomes.value(group, metric).units for group in range(self.groups)])
            if units.min() >= MIN_UNITS:
                weights[key] = float(1 / (1 / units).sum())
        return {key: weight / sum(weights.values()) for key, weight in weights.items()}

    def _combine(self, group: int, metric: Metric, values: Mapping[int, MetricValue]) -> MetricValue:
        shares, pooled_value = self._shares(metric), super().value(group, metric)
        if not shares:
            return replace(pooled_value, units=min(pooled_value.units, 1), value=np.nan, error=np.nan)
        value = sum(share * values[key].value for key, share in shares.items())
        variance = sum((share * values[key].error) ** 2 for key, share in shares.items())
        return replace(pooled_value, value=float(value), error=float(np.sqrt(variance)))

    def _subtract_past(self, group: int, metric: Metric, theta: float) -> MetricValue | None:
        values = {key: outcomes._subtract_past(group, metric, theta) for key, outcomes in self.strata.items()}
        rows = {key: value for key, value in values.items() if value is not None}
        return self._combine(group, metric, rows) if rows.keys() >= self._shares(metric).keys() else None

    def _past_products(self, metric: Metric) -> list[tuple[float, float]]:
        return [pair for outcomes in self.strata.values() for pair in outcomes._past_products(metric)]


def ramp_strata(cells: UnitSums, phases: int, groups: int) -> tuple[UnitSums, Ids]:
    """Return the users or sessions of an experiment whose weights changed in phases, and the stratum of each row. A
    user has a row for each phase that served it. The stratum is the phase, together with the last earlier phase that
    served the user.

    After a user has moved to another group, later phases are left out, since whether a user comes again may depend
    on the move. Within a stratum all users had been served alike before they were drawn, so differences of strata
    are uncorrelated.

    cells: the sums by user or session and phase, in the groups phase * groups + group; if one is in several groups of a
    phase, the first group counts; phases, groups: the numbers of phases and of groups."""
    rows = np.lexsort((cells.entry, cells.group // groups, cells.unit))
    unit, (phase, group) = cells.unit[rows], np.divmod(cells.group[rows], groups)
    starts_unit = np.append(True, unit[1:] != unit[:-1])[: len(unit)]
    first_row = np.maximum.accumulate(np.where(starts_unit, np.arange(len(unit)), 0))
    n_moved: Ids = np.cumsum(group > 0) - (group > 0)
    last_phase = np.where(starts_unit, -1, np.roll(phase, 1))
    is_counted = (n_moved == n_moved[first_row]) & (last_phase < phase)
    units = replace(cells.take(rows[is_counted]), group=group[is_counted])
    return units, (phase * (phases + 1) + last_phase + 1)[is_counted]
