"""This module compares groups of users or sessions, here called units. It has the groups of a study, and the figures
that follow from the sums of a study: metrics, differences, guards and segments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import Any, NotRequired, TypedDict, cast

import numpy as np

from rlrec import times
from rlrec.app.evaluation.comparisons import holdout
from rlrec.app.evaluation.comparisons.declared import Declaration
from rlrec.app.evaluation.rows.groups import MAX_GROUPS, day_numbers, too_many_groups
from rlrec.arrays import Array, Ids, finite_or_none
from rlrec.ope.comparisons import comparison, outcomes
from rlrec.ope.comparisons.comparison import ALARM, Comparison, Metric, is_unlikely
from rlrec.ope.comparisons.outcomes import Outcomes, OutcomeSums, PhasedOutcomes
from rlrec.ope.intervals.sequences import LookSequence, tightness
from rlrec.records import Record, Reward, Sums
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import selected
from rlrec.store.log.selected import Selection
from rlrec.store.policies import policies, routes
from rlrec.store.policies.experiments import Experiment
from rlrec.times import DAY_US

ANONYMOUS_UNITS = "anonymous-units"
MIXED_SHARE = 0.05  # a larger share of units in two variants hides more of a difference than intervals allow for
SPLIT_DOUBTS = {"sample-ratio", "picked-decisions"}  # reasons that invalidate any interval
SIGN_REASONS = {True: "young-units", False: "turned"}  # reasons why a difference turned, by whether units' ages differ
STAGGERED_GROUPINGS = ("policy", "version")  # groupings whose groups began at different times
EQUAL_AGE_SHARE = (
    0.9  # mean age of units over the age of the oldest; from this value on, all came at about the same time
)
N_AGES = 200  # intervals into which the time since the first assignment is divided
MIN_RETURN_SHARE = 0.01  # share of visits after the first; below it, ages of units make no difference
N_QUARTERS = 4  # of the time in which units were assigned: differences must not turn from one to the next
PERIOD_US = {"hour": DAY_US // 24, "day": DAY_US, "week": 7 * DAY_US}
GROUPINGS = ("variant", "policy", "version", *PERIOD_US, "users")
USER_GROUPS = ("new", "returning")
MIN_DAY_OVERLAP = 0.9  # of the days of two groups that overlap
NAMED_USERS = "named"  # users only, no sessions without a user
THURSDAY = 3  # weekday of 1970-01-01, where weeks begin on Monday


class Study(Record):
    """A Study is a comparison of groups of units, which are users or sessions.

    experiment: the experiment that assigned the units and says what a unit is, or None; unit: "user" or "session", if
    there is no experiment; by: what divides units into groups, one of GROUPINGS; adjust: whether to adjust by the past
    of units before their assignment; users: which units count, new or returning ones (USER_GROUPS) or units with a user
    (NAMED_USERS), or None for all; age_us: the time after its assignment in which the decisions of a unit count, in
    microseconds. With age_us, only units count for which this time and the windows of rewards are over. entered_us: the
    time since which units must have been assigned or first served; segment: the name of a context field, if variants
    are also compared within each of its values, by the unit's first decision; metrics: the names of the requested
    metrics, or None for all."""

    selection: Selection
    rewards: Sequence[Reward]
    experiment: Experiment | None = None
    by: str | None = None
    adjust: bool = False
    users: str | None = None
    age_us: int | None = None
    entered_us: int | None = None
    unit: str = "user"
    segment: str | None = None
    metrics: Collection[str] | None = None

    @property
    def by_session(self) -> bool:
        """Tell whether the study counts sessions, even if a session has a user."""
        return (self.unit if self.experiment is None else self.experiment.unit) == "session"


class Groups(Record):
    """This record has the groups of a study, in order.

    labels: the label of each group; column: the column of decisions that tells the group of a decision, or a member
    of PERIOD_US, or None if it is not needed; values: the values of the column, ascending; codes: the index of each
    value's group; cut_periods: the indices of periods that the log covers only in part; apart_groups: the indices of
    groups that were not served on the same days as the first group."""

    labels: Sequence[str | None]
    column: str | None = None
    values: Ids | None = None
    codes: Ids | None = None
    cut_periods: frozenset[int] = frozenset()
    apart_groups: frozenset[int] = frozenset()

    @property
    def may_overlap(self) -> bool:
        """Tell whether a user or session can be in several groups."""
        return self.column == "version_id" or self.column in PERIOD_US

    @classmethod
    def from_study(cls, unit: Unit, study: Study) -> Groups:
        """Return the groups of a study. Values with the same label form one group. Raise InputError if there are too
        many groups."""
        by, cut = study.by, frozenset[int]()
        if by == "variant" and study.experiment is not None:
            column, names = "variant_id", {variant.id: variant.label for variant in study.experiment.variants}
        elif by in ("policy", "version"):
            column, names = "version_id", _version_labels(unit, study)
        elif by in PERIOD_US:
            column, (names, cut) = by, _periods(by, *selected.times(unit, study.selection))
        else:
            return cls(labels=[*USER_GROUPS] if by == "users" else [None])
        codes = {label: number for number, label in enumerate(dict.fromkeys(names.values()))}
        if len(codes) > MAX_GROUPS:
            raise too_many_groups(by)
        values = np.array(sorted(names), np.int64)
        code = np.array([codes[names[value]] for value in values.tolist()], np.int64)
        study_groups = cls(labels=[*codes], column=column, values=values, codes=code, cut_periods=cut)
        return (
            replace(study_groups, apart_groups=study_groups._served_apart(unit, study))
            if by in ("policy", "version")
            else study_groups
        )

    def _served_apart(self, unit: Unit, study: Study) -> frozenset[int]:
        """Return the indices of the groups that were served on other days than the first group. Their distribution of
        decisions over days overlaps with that of the first group by less than MIN_DAY_OVERLAP."""
        counts = selected.day_counts(unit, study.selection)
        days, day = np.unique([row.day for row in counts], return_inverse=True)
        decisions = np.zeros((len(self.labels), len(days)))
        group = self.number({"at": day, "version_id": np.array([row.version_id for row in counts], np.int64)})
        np.add.at(decisions, (group, day), [row.decisions for row in counts])
        shares = decisions / decisions.sum(axis=1, keepdims=True)
        overlap = np.minimum(shares, shares[:1]).sum(axis=1)
        return frozenset(np.flatnonzero(overlap < MIN_DAY_OVERLAP).tolist())

    def number(self, slots: Columns) -> Ids:
        """Return the index of the group of each of d decisions, (d,). slots: a row for each decision."""
        if self.column is None or self.values is None or self.codes is None:
            return np.zeros(len(slots["at"]), np.int64)
        column = _period(slots["at"], self.column) if self.column in PERIOD_US else slots[self.column]
        return self.codes[np.searchsorted(self.values, column)]


def _period(at: Ids, by: str) -> Ids:
    """Return the number of the period that contains each time, (n,). Days and weeks begin at midnight in the configured
    time zone.

    at (n,): times in microseconds; by: "hour", "day" or "week"."""
    if by == "hour":
        return at // PERIOD_US["hour"]
    return day_numbers(at) if by == "day" else (day_numbers(at) + THURSDAY) // 7


def _start(number: int, by: str) -> int:
    if by == "hour":
        return number * PERIOD_US["hour"]
    return times.midnight(number if by == "day" else number * 7 - THURSDAY)


def _period_name(start: int, by: str) -> str:
    """Return the name of a period: the date on which it begins and, for an hour, the time of day."""
    text = times.local(start).isoformat(timespec="minutes").replace("+00:00", "Z")
    return text if by == "hour" else text[:10]


def _periods(by: str, first_at: int, last_at: int) -> tuple[dict[int, str], frozenset[int]]:
    """Return the name of each period of a log, by the number of the period, and the indices of the periods that are
    cut. The first and the last period are cut if the log lacks more than a seventh of the period.

    by: "hour", "day" or "week"; first_at, last_at: the first and the last time of the log."""
    first, last = _period(np.array([first_at, last_at]), by).tolist()
    end = min(last, first + MAX_GROUPS) + 1
    starts = {number: _start(number, by) for number in range(first, end + 1)}
    length = starts[first + 1] - starts[first]
    is_cut = first_at > starts[first] + length // 7, last_at < starts[end] - (starts[end] - starts[end - 1]) // 7
    names = {number: _period_name(start, by) for number, start in starts.items() if number < end}
    return names, frozenset(number for number, cut in zip((0, len(names) - 1), is_cut, strict=True) if cut)


def _version_labels(unit: Unit, study: Study) -> dict[int, str]:
    """Return the label of each version that served selected decisions, by id. The label is the name of the policy, or
    the reference of the version. The label with most decisions comes first, among the policies to which a route leads
    or, if there are none, among all policies. The other labels are in alphabetical order."""
    counts = selected.version_counts(unit, study.selection)
    all_versions = policies.versions(unit, {policy.id for policy in policies.all_policies(unit)})
    serving = [version for version in all_versions if version.id in counts]
    routed_policies = {change.policy_id for change in routes.newest_changes(unit)}
    routed_versions = {
        row.id for row in serving if routed_policies & {row.policy.id, row.policy.base_id}
    } or counts.keys()
    names = {row.id: row.policy.name if study.by == "policy" else row.reference for row in serving}
    totals = Counter(dict.fromkeys(sorted(names.values()), 0))
    for version_id in routed_versions:
        totals[names[version_id]] += counts[version_id]
    (baseline, _), *_ = totals.most_common(1) or [("", 0)]
    serving.sort(key=lambda row: (names[row.id] != baseline, row.policy.name, row.number))
    return {row.id: names[row.id] for row in serving}


# -- figures --


# A metric of a group. value: None without units; bounds: None where there are too few; reasons: why.
OutcomeRow = TypedDict("OutcomeRow", {
    "by": str | None, "group": str | None, "metric": str, "reward": str | None, "value": float | None,
    "lower": float | None, "upper": float | None, "units": int, "reasons": list[str],
})  # fmt: skip
# The difference of a metric between a group and another one; relative: to the other one's value; answer, needed: as in
# `Answer`; shortage: further units before which nothing is said; share: of new units, in these two variants; theta,
# narrowed: with adjustment; turned_at: when it changed its sign. p_value: for metrics that decide an experiment, after
# Holm, valid at every look.
DifferenceRow = TypedDict("DifferenceRow", {
    "group": str | None, "against": str | None, "metric": str, "reward": str | None, "value": float | None,
    "relative": float | None, "lower": float | None, "upper": float | None, "p_value": float | None,
    "reasons": list[str], "answer": str, "needed": int | None, "shortage": int | None,
    "needed_days": NotRequired[float | None],
    "turned_at": NotRequired[str],
    "share": NotRequired[float], "theta": NotRequired[float | None], "narrowed": NotRequired[float | None],
})  # fmt: skip
# The interval of a deciding comparison: valid at every look, and (fixed) for one planned look.
SequenceRow = TypedDict("SequenceRow", {
    "group": str | None, "metric": str, "reward": str | None, "lower": float | None, "upper": float | None,
    "fixed_lower": float | None, "fixed_upper": float | None,
})  # fmt: skip
# A guard of an experiment. least: the relative change that is allowed; relative: the change so far, with the bounds of
# one-sided sequences; answer: holds, lost or unknown.
GuardRow = TypedDict("GuardRow", {
    "group": str | None, "against": str | None, "metric": str, "reward": str | None, "least": float,
    "relative": float | None, "lower": float | None, "upper": float | None, "answer": str, "reasons": list[str],
})  # fmt: skip


# The difference in a deciding metric within a segment. p_value, lower, upper, answer: corrected for all segments.
SegmentRow = TypedDict("SegmentRow", {
    "by": str, "segment": str, "group": str | None, "against": str | None, "metric": str, "reward": str | None,
    "units": int, "value": float | None, "relative": float | None, "lower": float | None, "upper": float | None,
    "p_value": float | None, "reasons": list[str], "answer": str, "needed": int | None,
})  # fmt: skip


class StudySums(Sums, kw_only=True):
    """This record has sums over units, which are users or sessions.

    outcomes: the sums of all units; strata: if weights changed, the sums of the units of each stratum, which were
    drawn with the same weights; segments: the sums of the units by the value of a field in their first context;
    quarters: the sums of the units by the quarter of the experiment in which they were assigned, for the metrics of
    `ageing_metrics`; n_censored: the number of mature decisions with a censored slot; n_new, n_returning: the
    numbers of units without and with a visit before they entered the study; n_anonymous: the number of units without
    a user, if any user is known.

    counts: counts by group, by name. "sessions" counts the sessions with a mature decision, "sampled" the decisions of
    a sampled log, "anonymous" the units without a user, and each name of SAMPLED_FLAGS the units with this flag. Three
    counts have the shape (v, N_AGES) for v groups: "begun" counts visits by the age of their unit at the visit, "ages"
    units by their age at the end, and "served" visits by their time. "strata" (s, v) counts units by stratum, and
    "mixed" the units with two variants in one phase of a ramp."""

    outcomes: OutcomeSums
    strata: Mapping[int, OutcomeSums]
    quarters: Mapping[int, OutcomeSums]
    segments: Mapping[str, OutcomeSums]
    counts: Mapping[str, Array]
    n_censored: int = 0
    n_new: int = 0
    n_returning: int = 0
    n_anonymous: int = 0


NO_UNIT = OutcomeSums(groups={}, pairs={})
NOTHING = StudySums(outcomes=NO_UNIT, strata={}, quarters={}, segments={}, counts={})


def metrics(study: Study) -> list[Metric]:
    """Return the metrics in the answer of a study, in order."""
    all_metrics = comparison.metrics(len(study.rewards), per_session=study.by_session)
    return [metric for metric in all_metrics if study.metrics is None or metric.name in study.metrics]


class StudyFigures(Record, eq=False):
    """This record has the sums and the groups of a study, and computes its figures. A unit is a user or a session.

    any_user: whether the store has any user; split: chi-square and p-value of a test whether variants have the
    planned shares of the units (in a ramp, of the units that a phase drew), or NaN without variants; selected_split:
    chi-square and p-value of a test whether exclusions and filters leave out different shares of the variants, or
    NaN if they leave out few units; starts: the start of each phase or, if there is one phase, of each quarter of
    the experiment; declaration: what the experiment declared.

    is_fixed: whether intervals hold for one planned look instead of every look; is_picked: whether the selection leaves
    out decisions because of what happened after the assignment; is_first_week: whether units that may come again had
    less than a week to do so; mixed_share: the share of the units that two variants served."""

    study: Study
    sums: StudySums
    groups: Groups
    level: float
    any_user: bool
    split: tuple[float, float]
    strata_per_phase: int = 1
    starts: Sequence[int] = ()
    declaration: Declaration | None = None
    is_fixed: bool = False
    is_picked: bool = False
    is_first_week: bool = False
    selected_split: tuple[float, float] = (np.nan, np.nan)
    mixed_share: float = 0.0

    @cached_property
    def outcomes(self) -> Outcomes:
        return self._combine(self.sums.strata)

    def in_phase(self, number: int) -> Outcomes:
        """Return the figures of the users or sessions that one phase drew. Phases are numbered from 0, without phases
        that draw nobody."""
        strata = self.sums.strata.items()
        return self._combine({key: sums for key, sums in strata if key // self.strata_per_phase == number})

    def _combine(self, strata: Mapping[int, OutcomeSums]) -> Outcomes:
        is_adjusted = self.study.adjust
        if not self.sums.strata:
            return self._figures(self.sums.outcomes, is_adjusted=is_adjusted)
        return PhasedOutcomes(
            sums=self.sums.outcomes, level=self.level, is_adjusted=is_adjusted,
            strata={key: self._figures(sums, is_adjusted=is_adjusted) for key, sums in strata.items()},
            groups=len(self.groups.labels),
        )  # fmt: skip

    def row(self, group: int, metric: Metric) -> OutcomeRow:
        """Return the row of the answer with the value of a metric in a group."""
        value = self.outcomes.value(group, metric)
        lower, upper = metric.bounds(value, self.level)
        return {
            "by": self.study.by, "group": self.groups.labels[group], "metric": metric.name,
            "reward": self._reward(metric), "value": finite_or_none(value.value), "lower": finite_or_none(lower),
            "upper": finite_or_none(upper), "units": value.units,
            "reasons": [
                *metric.reasons(value, has_bounds=value.has_error), *self._reasons(metric, group),
                *(["young-units"] if self.study.by in STAGGERED_GROUPINGS and self.lack_time(metric, group) else []),
            ],
        }  # fmt: skip

    def difference(self, group: int, metric: Metric) -> DifferenceRow:
        """Return the row of the answer with the difference in a metric between a group and the first group."""
        difference, labels = self.compare(group, metric), self.groups.labels
        further_fields: dict[str, Any] = (
            {"theta": difference.theta, "narrowed": difference.narrowed} if self.study.adjust else {}
        )
        if "turned" in difference.reasons and (at := self.turning_point(group, metric)) is not None:
            further_fields["turned_at"] = times.format_time(at)
        names = {"group": labels[group], "against": labels[0], "metric": metric.name, "reward": self._reward(metric)}
        variants = () if self.study.experiment is None else self.study.experiment.variants
        weights: dict[str | None, float] = {variant.label: variant.weight for variant in variants}
        if {labels[0], labels[group]} <= weights.keys():
            further_fields["share"] = (weights[labels[0]] + weights[labels[group]]) / sum(weights.values())
        return cast(DifferenceRow, {**names, **difference.to_json(), **further_fields})

    def compare(self, group: int, metric: Metric) -> Comparison:
        """Compare a metric between a group and the first group, with all reasons for doubt. The comparison has a
        p-value only if users or sessions were assigned at random and the metric decides the experiment."""
        difference = self._compare_outcomes(group, metric)
        if self.declaration is None:
            difference = replace(difference, p_value=None).with_reasons("not-randomised")
            if group not in self.groups.apart_groups:
                return difference
            return replace(difference, lower=None, upper=None).with_reasons("unequal-time")
        if (group, metric) in self._tests:
            p_value, alpha = self._tests[group, metric]
            return replace(self._add_bounds(difference, group, alpha), p_value=p_value)
        for key in self._tests:
            other_gap = self._compare_outcomes(*key)
            if key[0] == group and (other_gap.value, other_gap.std_error) == (difference.value, difference.std_error):
                return replace(self.compare(*key), p_value=None)  # as of a mean per visit where everybody came once
        result = replace(self._add_bounds(difference, group, 1 - self.level), p_value=None)
        n_rows = len(metrics(self.study)) * (len(self.groups.labels) - 1)
        is_surely_off = self._add_bounds(difference, group, ALARM / n_rows, best_alpha=ALARM / n_rows).is_off_zero
        is_by_chance = result.is_off_zero and result.is_reliable and not is_surely_off
        return result.with_reasons(*(["other-metric"] if is_by_chance else []))

    def segments(self) -> list[SegmentRow]:
        """Return the deciding comparisons within each segment. The level of the intervals holds for all of them
        together."""
        labels, rows = self.groups.labels, list[SegmentRow]()
        n_tests = max(1, len(self.sums.segments) * len(self.deciding_keys))
        alpha, phase_doubts = (1 - self.level) / n_tests, ["unequal-time"] if self.sums.strata else []
        for (name, sums), (group, metric) in product(sorted(self.sums.segments.items()), self.deciding_keys):
            raw_difference = (
                self._figures(sums).compare(group, metric).with_reasons(*self._doubts(group, metric), *phase_doubts)
            )
            difference = self._add_bounds(raw_difference, group, alpha, best_alpha=alpha)
            p_value = None if difference.p_value is None else min(1.0, n_tests * difference.p_value)
            names = {
                "by": self.study.segment, "segment": name, "group": labels[group], "against": labels[0],
                "metric": metric.name, "reward": self._reward(metric), "units": difference.clusters,
            }  # fmt: skip
            rows.append(cast(SegmentRow, {**names, **replace(difference, p_value=p_value).to_json()}))
        return rows

    def guards(self) -> list[GuardRow]:
        """Return a row for each guard and each variant, except the first variant and a holdout. The row tells whether
        the variant keeps to the guard so far. Tests are one-sided, and each uses the full level."""
        guards = [] if self.declaration is None else self.declaration.guards
        groups = [number for number, label in enumerate(self.groups.labels) if number and label != holdout.LABEL]
        return [self._guard(group, metric, least) for metric, least in guards for group in groups]

    def _guard(self, group: int, metric: Metric, least: float) -> GuardRow:
        margin = self.outcomes.guard_margin(group, metric, least).with_reasons(*self._doubts(group, metric, least))
        alpha = 1 - self.level
        difference = self._add_bounds(margin, group, alpha, best_alpha=2 * alpha, sides=1)
        base, labels = abs(difference.base or 0.0), self.groups.labels
        figures = [getattr(difference, name) for name in ("value", "lower", "upper")]
        relative, lower, upper = (None if not base or figure is None else least + figure / base for figure in figures)
        answer = "unknown"
        if difference.upper is not None and difference.upper < 0 and not SPLIT_DOUBTS & {*difference.reasons}:
            answer = "lost"  # whatever comes later
        elif difference.lower is not None and difference.lower >= 0 and difference.is_reliable:
            answer = "holds"
        return {
            "group": labels[group], "against": labels[0], "metric": metric.name, "reward": self._reward(metric),
            "least": least, "relative": relative, "lower": lower, "upper": upper, "answer": answer,
            "reasons": [*difference.reasons],
        }  # fmt: skip

    @cached_property
    def _tests(self) -> dict[tuple[int, Metric], tuple[float | None, float]]:
        """Return, for each deciding comparison, its p-value corrected by Holm's method, and the probability of error of
        its interval. The key of a comparison is its group and metric."""
        keys = self.deciding_keys
        differences = [self._add_bounds(self._compare_outcomes(*key), key[0], 1 - self.level) for key in keys]
        p_values = [row.p_value for row in differences]
        holm_p_values, levels = comparison.holm([1.0 if p is None else p for p in p_values], 1 - self.level)
        rows = zip(p_values, holm_p_values, levels, strict=True)
        return {key: (None if p is None else holm_p, alpha) for key, (p, holm_p, alpha) in zip(keys, rows, strict=True)}

    def _add_bounds(
        self, difference: Comparison, group: int, alpha: float, *, best_alpha: float | None = None, sides: int = 2
    ) -> Comparison:  # fmt: skip
        """Return the comparison with bounds that are wrong with probability alpha.

        group: the group that is compared with the first; best_alpha: the alpha for which intervals over many looks
        are tightest, or None for a default; sides: 2 for bounds on both sides, 1 for one side."""
        if self.is_fixed:
            difference = difference.at_this_look(alpha * 2 / sides)
        else:
            difference = difference.at_every_look(self._sequence(group, alpha, best_alpha)._replace(n_sides=sides))
        return replace(difference, p_value=None) if self.is_picked else difference

    def _sequence(self, group: int, alpha: float, best_alpha: float | None = None) -> LookSequence:
        """Return the sequence of intervals over many looks, for a group against the first group. The sequence is
        tightest at the number of users or sessions planned for the two groups.

        alpha: the probability that an interval is wrong; best_alpha: the alpha for which the sequence is tightest,
        or None for the alpha of the first step of Holm's method."""
        assert self.declaration is not None
        best_n = self.declaration.best_n * self.declaration.share(0, group)
        return LookSequence(tightness(best_n, best_alpha or (1 - self.level) / len(self.deciding_keys)), alpha)

    @property
    def deciding_keys(self) -> list[tuple[int, Metric]]:
        """Return the group and the metric of each deciding comparison."""
        success = [] if self.declaration is None else self.declaration.success
        return [*product(range(1, len(self.groups.labels)), success)]

    def metric_names(self) -> list[dict[str, str | None]]:
        """Return the name of each deciding metric, with the name of its reward."""
        success = [] if self.declaration is None else self.declaration.success
        return [{"metric": metric.name, "reward": self._reward(metric)} for metric in success]

    def deciding_intervals(self) -> list[SequenceRow]:
        """Return two intervals for each deciding comparison: one that is valid at every look, and one for a single
        planned look."""
        rows = list[SequenceRow]()
        for (group, metric), (_, alpha) in self._tests.items():
            difference = self._compare_outcomes(group, metric)
            always_valid, single_look = (
                difference.at_every_look(self._sequence(group, alpha)),
                difference.at_this_look(alpha),
            )
            rows.append({
                "group": self.groups.labels[group], "metric": metric.name, "reward": self._reward(metric),
                "lower": always_valid.lower, "upper": always_valid.upper,
                "fixed_lower": single_look.lower, "fixed_upper": single_look.upper,
            })  # fmt: skip
        return rows

    def _compare_outcomes(self, group: int, metric: Metric) -> Comparison:
        return self.outcomes.compare(group, metric).with_reasons(*self._doubts(group, metric))

    def _doubts(self, group: int, metric: Metric, least: float = 0.0) -> list[str]:
        """Return the reasons to doubt the difference in a metric between a group and the first group.

        least: minus the fraction of the first group's value by which a guard allows the metric to fall, or 0 without
        a guard."""
        reasons = self._reasons(metric, group, 0)
        if self.declaration is None:
            return reasons
        return [
            *reasons,
            *(["sample-ratio"] if is_unlikely(self.split) or is_unlikely(self.selected_split) else []),
            *(["picked-decisions"] if self.is_picked else []),
            *(["mixed-units"] if self.mixed_share > MIXED_SHARE else []),
            *(["decisions-differ"] if self.are_other_visits(group, metric) else []),
            *(["young-units"] if self.lack_time(metric, 0, group) else []),
            *([SIGN_REASONS[self._have_ages]] if self.turning_point(group, metric, least) is not None else []),
        ]  # fmt: skip

    def are_other_visits(self, group: int, metric: Metric) -> bool:
        """Tell whether a mean per decision or per visit compares different kinds of decisions or visits. It does if the
        users or sessions of this group have more or fewer of them than those of the first group."""
        count_metric = comparison.per_decision(0)[0] if "decisions" in metric.denominator else metrics(self.study)[0]
        return not metric.per_unit and self.outcomes.differs_from_first(group, count_metric)

    def _reward(self, metric: Metric) -> str | None:
        return None if metric.reward is None else self.study.rewards[metric.reward].name

    def _reasons(self, metric: Metric, *groups: int) -> list[str]:
        """Return the reasons to doubt a metric because the log of these groups lacks something.

        groups: the index of each group."""
        lacks_rows = metric.sampled_flag is not None and self.count(metric.sampled_flag, *groups)
        # persons who would be recognised under another session key
        has_anonymous = metric.denominator.startswith(("recognised", "at_risk")) and self.count("anonymous", *groups)
        return [
            *([ANONYMOUS_UNITS] if has_anonymous else []), *(["sampled-rows"] if lacks_rows else []),
            *([f"partial-{self.study.by}"] if self.groups.cut_periods.intersection(groups) else []),
        ]  # fmt: skip

    def turning_point(self, group: int, metric: Metric, least: float = 0.0) -> int | None:
        """Return the time at which the difference from the first group changes its sign, or None if it does not. Users
        or sessions assigned before this time are compared with those assigned since. There is a false alarm in 1 of
        1,000 cases.

        least: minus the fraction of the first group's value by which a guard allows the metric to fall. The allowed
        fall is added to the difference."""
        if metric not in ageing_metrics(self.study) or self.lack_time(metric, 0, group):
            return None
        for at, before_figures, since_figures in self._time_sides:
            values = [side.guard_margin(group, metric, least).value or 0.0 for side in (before_figures, since_figures)]
            changes = outcomes.changes_with_age(
                before_figures, since_figures, group, metric, ALARM / len(self._time_sides)
            )
            if changes and np.sign(values[0]) != np.sign(values[1]):
                return at
        return None

    @cached_property
    def _time_sides(self) -> list[tuple[int, Outcomes, Outcomes]]:
        """Return several times, each with the figures of the users or sessions assigned before the time, and the
        figures of those assigned since. The times are the starts of phases, or of quarters of the time of
        assignments."""
        strata, sums = self.sums.strata, self.sums.strata or self.sums.quarters

        def figures(keys: Iterable[int]) -> Outcomes:
            subset = {key: sums[key] for key in keys}
            return self._combine(subset) if strata else self._figures(sum(subset.values(), NO_UNIT))

        number_by_key = {key: key // self.strata_per_phase if strata else key for key in sums}
        return [
            (
                self.starts[start],
                figures(key for key, number in number_by_key.items() if number < start),
                figures(key for key, number in number_by_key.items() if number >= start),
            )
            for start in sorted({*number_by_key.values()})[1:]
        ]

    @cached_property
    def _have_ages(self) -> bool:
        """Tell whether users or sessions come again, so that they are compared at different ages. An age is the time
        since the assignment."""
        visits = self.sums.counts.get("begun")
        return visits is not None and visits[:, 1:].sum() > MIN_RETURN_SHARE * visits.sum()

    def lack_time(self, metric: Metric, *groups: int) -> bool:
        """Tell whether, in any of these groups, many users or sessions have not yet had time to come again. A mean over
        them is then too low. groups: the index of each group."""
        visits, ages = (self.sums.counts.get(name) for name in ("begun", "ages"))
        if visits is None or ages is None or not metric.per_unit:
            return False
        if (
            self.study.by in STAGGERED_GROUPINGS
        ):  # a group that has not served for long does not tell how long people come back
            ages = np.array([self._ages_then(group) for group in range(len(ages))])
            shares = [outcomes.expected_share(visits.sum(axis=0), ages.sum(axis=0), ages[group]) for group in groups]
        else:
            shares = [outcomes.share_of_visits(visits[group], ages[group]) for group in groups]
            if self.is_first_week and min(outcomes.mean_age(ages[group]) for group in groups) < EQUAL_AGE_SHARE:
                return True
        return min(shares) < outcomes.YOUNG_SHARE

    def _ages_then(self, group: int) -> Array:
        """Return the number of users or sessions of a group by their age when the group last served, (N_AGES,)."""
        ages = self.sums.counts["ages"][group]
        n_idle_steps = N_AGES - 1 - int(np.flatnonzero(self.sums.counts["served"][group]).max(initial=0))
        return np.r_[ages[: n_idle_steps + 1].sum(), ages[n_idle_steps + 1 :], np.zeros(n_idle_steps)]

    def count(self, name: str, *groups: int) -> int:
        """Return the total over these groups of a count in `StudySums.counts`, or 0 if there is no such count. name:
        the name of the count."""
        return int(self.sums.counts[name][[*groups]].sum()) if name in self.sums.counts else 0

    def _figures(self, sums: OutcomeSums, *, is_adjusted: bool = False) -> Outcomes:
        return Outcomes(sums=sums, level=self.level, is_adjusted=is_adjusted)


def ageing_metrics(study: Study) -> list[Metric]:
    """Return the metrics whose differences may change with the time since users or sessions were assigned."""
    return [metric for metric in metrics(study) if metric.name in ("visits", "reward_per_unit")]
