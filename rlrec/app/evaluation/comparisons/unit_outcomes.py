"""Outcomes of units, read from the log: visits, returns and rewards per person, by group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import product
from operator import add
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

import numpy as np

from rlrec.app.evaluation.comparisons import declared, holdout
from rlrec.app.evaluation.comparisons.declared import Declaration
from rlrec.app.evaluation.comparisons.study import NAMED, PERIODS, USERS, Groups, Study
from rlrec.app.evaluation.rows import log_rows
from rlrec.app.evaluation.rows.contexts import ContextCache
from rlrec.app.evaluation.rows.groups import MAX_GROUPS, check_field, too_many
from rlrec.app.inputs import canonical, filters, lookup
from rlrec.app.log import reward_log
from rlrec.app.log.ended_visits import visit_indices
from rlrec.arrays import Array, Flags, Ids, distinct, finite_or_none, look_up, run_starts, take
from rlrec.errors import InputError
from rlrec.ope.comparisons import comparison, outcomes
from rlrec.ope.comparisons.comparison import ALARM, Comparison, LookSequence, Metric, is_unlikely, sample_ratio
from rlrec.ope.comparisons.outcomes import Outcomes, OutcomeSums
from rlrec.ope.comparisons.phased import PhasedOutcomes, ramp_strata
from rlrec.ope.intervals import sequences
from rlrec.ope.sums.unit_visits import FAR_FUTURE, SAMPLED_FLAGS, ServedDecisions, UnitSums, Visits, unit_sums
from rlrec.records import Reward, Sums
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.database.unit import parse
from rlrec.store.log import reader, selected, sessions, settings
from rlrec.store.log.reader import ABSENT, Batch
from rlrec.store.log.selected import Selection
from rlrec.store.policies import experiments, people
from rlrec.store.policies.experiments import Experiment, Phase
from rlrec.times import DAY_US

ANONYMOUS_UNITS = "anonymous-units"
_READ = (
    "decision_id", "session_id", "visit", "at", "version_id", "variant_id", "imported", "position", "censored",
    "keep_probability",
)  # fmt: skip
SPLIT_DOUBTS = {"sample-ratio", "picked-decisions"}  # whatever an interval says
LIVES = ("policy", "version")  # groups whose units began at different times
# Of a selection, what may follow from the variant that a unit has.
EFFECTS = ("policy_ids", "version_ids", "route_ids", "context_ids", "since")
FIRST_WEEK_US, EQUAL_AGE = (
    7 * DAY_US,
    0.9,
)  # in which visits do not tell how long people stay away, unless all came at once
LEAST_EXPECTED = 5  # units in each cell of a chi-square test
AGES = 200  # parts of the time since the first assignment


# A metric of a group. value is None where nobody counts, the bounds where there is too little; reasons: why.
OutcomeRow = TypedDict("OutcomeRow", {
    "by": str | None, "group": str | None, "metric": str, "reward": str | None, "value": float | None,
    "lower": float | None, "upper": float | None, "units": int, "reasons": list[str],
})  # fmt: skip
# A metric of a group less that of another one; relative: to the latter's value; answer, needed: as in `answers.Answer`;
# theta, narrowed: with adjustment. p_value: of the metrics that decide an experiment, after Holm, at every look.
DifferenceRow = TypedDict("DifferenceRow", {
    "group": str | None, "against": str | None, "metric": str, "reward": str | None, "value": float | None,
    "relative": float | None, "lower": float | None, "upper": float | None, "p_value": float | None,
    "reasons": list[str], "answer": str, "needed": int | None, "theta": NotRequired[float | None],
    "narrowed": NotRequired[float | None],
})  # fmt: skip
# The interval of a comparison that decides: at every look, and for a look that was planned beforehand.
SequenceRow = TypedDict("SequenceRow", {
    "group": str | None, "metric": str, "reward": str | None, "lower": float | None, "upper": float | None,
    "fixed_lower": float | None, "fixed_upper": float | None,
})  # fmt: skip
# A guard of an experiment. least: the share by which the metric may change; relative: by which it has changed so far,
# with the bounds of one-sided sequences; answer: holds, lost or unknown.
GuardRow = TypedDict("GuardRow", {
    "group": str | None, "against": str | None, "metric": str, "reward": str | None, "least": float,
    "relative": float | None, "lower": float | None, "upper": float | None, "answer": str, "reasons": list[str],
})  # fmt: skip


# The difference of a metric that decides, within a segment. p_value, lower, upper, answer: corrected for all segments.
SegmentRow = TypedDict("SegmentRow", {
    "by": str, "segment": str, "group": str | None, "against": str | None, "metric": str, "reward": str | None,
    "units": int, "value": float | None, "relative": float | None, "lower": float | None, "upper": float | None,
    "p_value": float | None, "reasons": list[str], "answer": str, "needed": int | None,
})  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class StudySums(Sums):
    """Sums over units.

    strata: where weights changed, of the units that were drawn by the same ones, as in `PhasedOutcomes`
    segments: of units by what their first context says
    halves: 0, of units assigned in the first half of the time, and 1, in the second, for metrics of `_ageing`
    counts: of each group, by name: sessions with a mature decision; decisions of a sampled log; anonymous units; those
        with each column of SAMPLED_FLAGS; begun and ages, (v, AGES), visits by the age of their unit then, and units by
        theirs at the end; strata, (s, v), units by what they were drawn in
    censored: mature decisions that were left out
    new, returning: how many units had no visit before the one they entered in, and how many had
    anonymous: how many are sessions without a user, where some user is known"""

    outcomes: OutcomeSums
    strata: Mapping[int, OutcomeSums]
    halves: Mapping[int, OutcomeSums]
    segments: Mapping[str, OutcomeSums]
    counts: Mapping[str, Array]
    censored: int
    new: int
    returning: int
    anonymous: int


NO_UNIT = OutcomeSums(groups={}, pairs={})
NOTHING = StudySums(
    outcomes=NO_UNIT, strata={}, halves={}, segments={}, counts={}, censored=0, new=0, returning=0, anonymous=0
)


def metrics(study: Study) -> list[Metric]:
    """The metrics of an answer in their order."""
    return comparison.metrics(len(study.rewards), per_session=study.by_session)


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyFigures:
    """The figures of a study, its sums, and its groups. any_user: whether the store knows some user; split: chi-square
    and p-value of how units were split between variants, NaN without variants; selected_split: of whether exclusions
    and filters leave out other shares of the variants, NaN where they leave out few, and of a ramp, whose `split` is of
    the units that count; declaration: of their experiment;
    is_fixed: whether intervals hold for a look that was planned, and not at every look; is_picked: whether the
    selection leaves out decisions of its units by what came after their assignment; is_first_week: whether
    units that may come again had less than a week for it."""

    study: Study
    sums: StudySums
    groups: Groups
    level: float
    any_user: bool
    split: tuple[float, float]
    strata_per_phase: int = 1
    declaration: Declaration | None = None
    is_fixed: bool = False
    is_picked: bool = False
    is_first_week: bool = False
    selected_split: tuple[float, float] = (np.nan, np.nan)

    @cached_property
    def outcomes(self) -> Outcomes:
        return self._combine(self.sums.strata)

    def in_phase(self, number: int) -> Outcomes:
        """The figures of the units that a phase drew; number: among those that draw."""
        numbers = {key: key // self.strata_per_phase for key in self.sums.strata}
        return self._combine({key: self.sums.strata[key] for key in numbers if numbers[key] == number})

    def _combine(self, strata: Mapping[int, OutcomeSums]) -> Outcomes:
        adjusted = self.study.adjust
        if not self.sums.strata:
            return self._figures(self.sums.outcomes, adjusted=adjusted)
        return PhasedOutcomes(
            sums=self.sums.outcomes, level=self.level, adjusted=adjusted,
            strata={key: self._figures(sums, adjusted=adjusted) for key, sums in strata.items()},
            groups=len(self.groups.labels),
        )  # fmt: skip

    def row(self, group: int, metric: Metric) -> OutcomeRow:
        """A metric of a group."""
        value = self.outcomes.value(group, metric)
        lower, upper = metric.bounds(value, self.level)
        return {
            "by": self.study.by, "group": self.groups.labels[group], "metric": metric.name,
            "reward": self._reward(metric), "value": finite_or_none(value.value), "lower": finite_or_none(lower),
            "upper": finite_or_none(upper), "units": value.units,
            "reasons": [
                *metric.reasons(value, bounded=value.varied), *self._reasons(metric, group),
                *(["young-units"] if self.study.by in LIVES and self.lack_time(metric, group) else []),
            ],
        }  # fmt: skip

    def difference(self, group: int, metric: Metric) -> DifferenceRow:
        """A metric of a group less that of the first one."""
        compared, labels = self.compare(group, metric), self.groups.labels
        past = {"theta": compared.theta, "narrowed": compared.narrowed} if self.study.adjust else {}
        names = {"group": labels[group], "against": labels[0], "metric": metric.name, "reward": self._reward(metric)}
        return cast(DifferenceRow, {**names, **compared.to_json(), **past})

    def compare(self, group: int, metric: Metric) -> Comparison:
        """A metric of a group less that of the first one, with all reasons for doubt; it has a p-value where units were
        assigned at random, and their experiment is decided by the metric."""
        compared = self._compared(group, metric)
        if self.declaration is None:
            compared = replace(compared, p_value=None).because("not-randomised")
            if group not in self.groups.apart:
                return compared
            return replace(compared, lower=None, upper=None).because("unequal-time")
        if (group, metric) in self._tests:
            p_value, alpha = self._tests[group, metric]
            return replace(self._bounded(compared, group, alpha), p_value=p_value)
        result = replace(self._bounded(compared, group, 1 - self.level), p_value=None)
        rows = len(metrics(self.study)) * (len(self.groups.labels) - 1)
        is_far = self._bounded(compared, group, ALARM / rows, tuned=ALARM / rows).is_off_zero
        is_by_chance = result.is_off_zero and result.is_reliable and not is_far
        return result.because(*(["other-metric"] if is_by_chance else []))

    def segments(self) -> list[SegmentRow]:
        """The comparisons that decide, within each segment; their levels hold for all of them together."""
        labels, rows = self.groups.labels, list[SegmentRow]()
        number = max(1, len(self.sums.segments) * len(self.deciding))
        alpha, phases = (1 - self.level) / number, ["unequal-time"] if self.sums.strata else []
        for (name, sums), (group, metric) in product(sorted(self.sums.segments.items()), self.deciding):
            plain = self._figures(sums).compare(group, metric).because(*self._doubts(group, metric), *phases)
            compared = self._bounded(plain, group, alpha, tuned=alpha)
            p_value = None if compared.p_value is None else min(1.0, number * compared.p_value)
            names: dict[str, Any] = {"by": self.study.segment, "segment": name, "group": labels[group]}
            names |= {
                "against": labels[0],
                "metric": metric.name,
                "reward": self._reward(metric),
                "units": compared.clusters,
            }
            rows.append(cast(SegmentRow, {**names, **replace(compared, p_value=p_value).to_json()}))
        return rows

    def guards(self) -> list[GuardRow]:
        """Whether each variant but a holdout keeps to each guard, so far: one-sided, each at the full level."""
        guards = [] if self.declaration is None else self.declaration.guards
        groups = [number for number, label in enumerate(self.groups.labels) if number and label != holdout.LABEL]
        return [self._guard(group, metric, least) for metric, least in guards for group in groups]

    def _guard(self, group: int, metric: Metric, least: float) -> GuardRow:
        reserve = self.outcomes.reserve(group, metric, least).because(*self._doubts(group, metric, least))
        alpha = 1 - self.level
        bounded = self._bounded(reserve, group, alpha, tuned=2 * alpha, sides=1)
        base, labels = abs(bounded.base or 0.0), self.groups.labels
        figures = [getattr(bounded, name) for name in ("value", "lower", "upper")]
        relative, lower, upper = (None if not base or figure is None else least + figure / base for figure in figures)
        answer = "unknown"
        if bounded.upper is not None and bounded.upper < 0 and not SPLIT_DOUBTS & {*bounded.reasons}:
            answer = "lost"  # whatever may come later
        elif bounded.lower is not None and bounded.lower >= 0 and bounded.is_reliable:
            answer = "holds"
        return {
            "group": labels[group], "against": labels[0], "metric": metric.name, "reward": self._reward(metric),
            "least": least, "relative": relative, "lower": lower, "upper": upper, "answer": answer,
            "reasons": [*bounded.reasons],
        }  # fmt: skip

    @cached_property
    def _tests(self) -> dict[tuple[int, Metric], tuple[float | None, float]]:
        """The p-value of each comparison that decides the experiment, after Holm, and the level of its interval."""
        keys = self.deciding
        compared = [self._bounded(self._compared(*key), key[0], 1 - self.level) for key in keys]
        p_values = [row.p_value for row in compared]
        adjusted, levels = comparison.holm([1.0 if p is None else p for p in p_values], 1 - self.level)
        rows = zip(p_values, adjusted, levels, strict=True)
        return {
            key: (None if p is None else corrected, alpha)
            for key, (p, corrected, alpha) in zip(keys, rows, strict=True)
        }

    def _bounded(
        self, compared: Comparison, group: int, alpha: float, *, tuned: float | None = None, sides: int = 2
    ) -> Comparison:  # fmt: skip
        """The comparison with bounds that are wrong in a share alpha of logs; arguments as of `_sequence`."""
        if self.is_fixed:
            bounded = compared.at_this_look(alpha * 2 / sides)
        else:
            bounded = compared.at_every_look(self._sequence(group, alpha, tuned=tuned)._replace(sides=sides))
        return replace(bounded, p_value=None) if self.is_picked else bounded

    def _sequence(self, group: int, alpha: float, *, tuned: float | None = None) -> LookSequence:
        """The sequence of a group less the first one, which share the units as was defined. tuned: the alpha at which
        it is tightest, by default that of the first step of Holm."""
        assert self.declaration is not None
        best_n = self.declaration.best_n * self.declaration.share(0, group)
        return LookSequence(sequences.tightness(best_n, tuned or (1 - self.level) / len(self.deciding)), alpha)

    @property
    def deciding(self) -> list[tuple[int, Metric]]:
        """The groups and metrics of the comparisons that decide the experiment."""
        success = [] if self.declaration is None else self.declaration.success
        return [*product(range(1, len(self.groups.labels)), success)]

    def metric_names(self) -> list[dict[str, str | None]]:
        """The metrics that decide the experiment."""
        success = [] if self.declaration is None else self.declaration.success
        return [{"metric": metric.name, "reward": self._reward(metric)} for metric in success]

    def deciding_intervals(self) -> list[SequenceRow]:
        """The intervals of the comparisons that decide, at every look, and for one that was planned."""
        rows = list[SequenceRow]()
        for (group, metric), (_, alpha) in self._tests.items():
            compared = self._compared(group, metric)
            every, fixed = compared.at_every_look(self._sequence(group, alpha)), compared.at_this_look(alpha)
            rows.append({
                "group": self.groups.labels[group], "metric": metric.name, "reward": self._reward(metric),
                "lower": every.lower, "upper": every.upper, "fixed_lower": fixed.lower, "fixed_upper": fixed.upper,
            })  # fmt: skip
        return rows

    def _compared(self, group: int, metric: Metric) -> Comparison:
        return self.outcomes.compare(group, metric).because(*self._doubts(group, metric))

    def _doubts(self, group: int, metric: Metric, least: float = 0.0) -> list[str]:
        """The reasons for doubt in a difference from the first group, less what a guard allows."""
        reasons = self._reasons(metric, group, 0)
        if self.declaration is None:
            return reasons
        return [
            *reasons,
            *(["sample-ratio"] if is_unlikely(self.split) or is_unlikely(self.selected_split) else []),
            *(["picked-decisions"] if self.is_picked else []),
            *(["decisions-differ"] if self.are_other_visits(group, metric) else []),
            *(["young-units"] if self.is_young(group, metric, least) else []),
        ]  # fmt: skip

    def are_other_visits(self, group: int, metric: Metric) -> bool:
        """Whether a mean per decision, or per visit, is one of others, since units have other numbers of them than
        those of the first group."""
        counted = comparison.per_decision(0)[0] if "decisions" in metric.denominator else metrics(self.study)[0]
        return not metric.per_unit and self.outcomes.differ(group, counted)

    def _reward(self, metric: Metric) -> str | None:
        return None if metric.reward is None else self.study.rewards[metric.reward].name

    def _reasons(self, metric: Metric, *groups: int) -> list[str]:
        """The reasons that lie in what the log lacks of these groups."""
        lacks_rows = metric.lacking is not None and self.count(metric.lacking, *groups)
        has_anonymous = metric.counts_recognised and self.count("anonymous", *groups)
        return [
            *([ANONYMOUS_UNITS] if has_anonymous else []), *(["sampled-rows"] if lacks_rows else []),
            *([f"partial-{self.study.by}"] if self.groups.cut.intersection(groups) else []),
        ]  # fmt: skip

    def is_young(self, group: int, metric: Metric, least: float = 0.0) -> bool:
        """Whether the difference from the first group may turn since many units had no time to come again, or has
        turned with how long ago units were assigned; less what a guard allows."""
        if self.lack_time(metric, 0, group) or not metric.per_unit or not self.sums.halves:
            return self.lack_time(metric, 0, group)
        if metric not in _ageing(self.study):
            return False
        older, younger = (self._figures(self.sums.halves[number]) for number in (0, 1))
        signs = [np.sign(half.reserve(group, metric, least).value or 0.0) for half in (older, younger)]
        return signs[0] != signs[1] and outcomes.changes_with_age(older, younger, group, metric)

    def lack_time(self, metric: Metric, *groups: int) -> bool:
        """Whether many units of some of these groups had no time yet to come again, so that a mean of units is low."""
        begun, ages = (self.sums.counts.get(name) for name in ("begun", "ages"))
        if begun is None or ages is None or not metric.per_unit:
            return False
        if self.study.by in LIVES:  # a group that has not served for long does not tell how long people come back
            shares = [outcomes.expected_share(begun.sum(axis=0), ages.sum(axis=0), ages[group]) for group in groups]
        else:
            shares = [outcomes.share_of_visits(begun[group], ages[group]) for group in groups]
            if self.is_first_week and min(outcomes.mean_age(ages[group]) for group in groups) < EQUAL_AGE:
                return True
        return min(shares) < outcomes.YOUNG_SHARE

    def count(self, name: str, *groups: int) -> int:
        """How many there are of one of the `counts` in these groups."""
        return int(self.sums.counts[name][[*groups]].sum()) if name in self.sums.counts else 0

    def _figures(self, sums: OutcomeSums, *, adjusted: bool = False) -> Outcomes:
        return Outcomes(sums=sums, level=self.level, adjusted=adjusted)


def _ageing(study: Study) -> list[Metric]:
    """The metrics whose differences may change with the age of units."""
    return [metric for metric in metrics(study) if metric.name in ("visits", "reward_per_unit")]


def collect(unit: Unit, study: Study, *, level: float, is_fixed: bool = False) -> StudyFigures:
    """The figures of a study, from one pass over the log."""
    fold = StudyFold(unit, study)
    sums = reduce(add, fold.partials(), NOTHING)
    check_field(study.segment, fold.fields, groups=())
    splits, declaration, is_picked = list[tuple[list[float], list[list[int]]]](), None, False
    selected_split = np.nan, np.nan
    if study.by == "variant" and study.experiment is not None:
        is_ramp = fold.strata_per_phase > 1
        splits = fold.splits(sums) if is_ramp else experiments.split_by_day(unit, study.experiment)
        shares = experiments.phases(unit, study.experiment)[0].weights
        first = learned_rewards(unit, study.experiment)[0].name
        declaration = Declaration.from_definition(study.experiment, metrics(study), study.rewards, first, shares)
        widest = filters.select(unit, {"experiment": study.experiment.name})
        is_picked = _is_picked(unit, study.selection, widest)
        is_sampled = sums.counts.get("sampled", np.zeros(1)).any()
        if study.selection != widest and not (is_ramp or is_picked or is_sampled):
            selected_split = _selected_split(fold, sums, splits)
    return StudyFigures(
        study=study, sums=sums, groups=fold.groups, level=level, any_user=fold.any_user,
        split=sample_ratio(splits), strata_per_phase=fold.strata_per_phase, declaration=declaration, is_fixed=is_fixed,
        is_picked=is_picked, selected_split=selected_split, is_first_week=fold.is_first_week,
    )  # fmt: skip


def _selected_split(
    fold: StudyFold, sums: StudySums, assigned: Sequence[tuple[list[float], list[list[int]]]]
) -> tuple[float, float]:  # fmt: skip
    """Chi-square and p-value of whether a selection leaves out other shares of the variants, of units drawn by the same
    weights; NaN where it leaves out few. assigned: as of `split_by_day`."""
    from scipy.special import chdtrc

    left_out = {tuple(weights): np.zeros(len(weights)) for weights, _ in assigned}
    counted = {weights: np.zeros(len(weights)) for weights in left_out}
    for weights, looks in assigned:
        left_out[tuple(weights)] += np.array(looks[-1:] or [[0] * len(weights)])[0]
    for weights, looks in fold.splits(sums):
        counted[tuple(weights)] += looks[0]
    chi2, freedom = 0.0, 0
    for shares, units in counted.items():
        table = np.stack([units, np.maximum(left_out[shares] - units, 0)])
        expected = table.sum(axis=0) * table.sum(axis=1, keepdims=True) / max(table.sum(), 1)
        if expected.min() >= LEAST_EXPECTED:
            chi2, freedom = chi2 + float(((table - expected) ** 2 / expected).sum()), freedom + len(shares) - 1
    return (chi2, float(chdtrc(freedom, chi2))) if freedom else (np.nan, np.nan)


def _is_picked(unit: Unit, selection: Selection, widest: Selection) -> bool:
    """Whether a selection of the decisions of an experiment leaves some out by what came after the assignment."""
    wider = replace(selection, **{name: getattr(widest, name) for name in EFFECTS})
    return wider != selection and selected.extent(unit, wider) != selected.extent(unit, selection)


class Look(NamedTuple):
    """The differences that decide an experiment, as of now, and its guards."""

    differences: list[DifferenceRow]
    guards: list[GuardRow]


def look(unit: Unit, experiment: Experiment, *, level: float = 0.95) -> Look:
    """The metric and the guards of an experiment as of now; a look costs nothing."""
    figures = collect(unit, experiment_study(unit, experiment, rewards_of(unit, (), experiment)), level=level)
    return Look([figures.difference(*key) for key in figures.deciding], figures.guards())


def experiment_study(unit: Unit, experiment: Experiment, rewards: Sequence[Reward]) -> Study:
    """All decisions of an experiment, by variant."""
    selection = filters.selection(unit, f"experiment={experiment.name}")
    return Study(selection=selection, rewards=rewards, experiment=experiment, by="variant")


def rewards_of(unit: Unit, names: Sequence[str], experiment: Experiment | None) -> list[Reward]:
    """The rewards of these names, and of what the experiment declares; without names those that its variants learn, in
    their order behind that which decides, or `default`. Raises InputError for one that is unknown, or given twice."""
    if repeated_name := next((name for name in names if list(names).count(name) > 1), None):
        raise InputError(f"reward {repeated_name!r} is named twice")
    if experiment is None:
        return [lookup.reward(unit, name) for name in names or ["default"]]
    learned = [reward.name for reward in learned_rewards(unit, experiment)]
    needed = declared.reward_names(experiment, learned[0])
    return [lookup.reward(unit, name) for name in dict.fromkeys([*names, *needed, *([] if names else learned)])]


def learned_rewards(unit: Unit, experiment: Experiment) -> list[Reward]:
    """The rewards that the variants of an experiment learn, in their order; of a holdout that of its route."""
    if (route := lookup.route_of_holdout(unit, experiment)) is not None:
        return [lookup.version(unit, route.reference)[0].reward]
    rewards = [lookup.version(unit, variant.policy)[0].reward for variant in experiment.variants]
    return [*{reward.id: reward for reward in rewards}.values()]


def to_json(figures: StudyFigures) -> tuple[list[OutcomeRow], list[DifferenceRow]]:
    """The rows of every group, and of every difference from the first one, with a p-value where units were assigned at
    random; periods without a unit are left out."""
    study, answer_metrics, values = figures.study, metrics(figures.study), figures.outcomes.value
    numbers = [
        number for number in range(len(figures.groups.labels))
        if study.by not in PERIODS or values(number, answer_metrics[0]).units
    ]  # fmt: skip
    return (
        [figures.row(number, metric) for number, metric in product(numbers, answer_metrics)],
        [figures.difference(number, metric) for number, metric in product(numbers, answer_metrics) if number],
    )


class StudyFold:
    """The log of a study as sums, a portion of persons at a time."""

    def __init__(self, unit: Unit, study: Study) -> None:
        self.unit, self.study = unit, study
        self.groups = Groups.from_study(unit, study)
        self.fields, self.labels = set[str](), set[str]()  # of contexts so far
        self.metrics = [*metrics(study), *comparison.per_decision(0)]
        self._is_holdout = study.by == "variant" and bool(
            study.experiment and lookup.route_of_holdout(unit, study.experiment)
        )
        # the phases that draw units, and how many strata of a ramp lie in each
        self.phases, self.strata_per_phase = list[Phase](), 1
        if study.by == "variant" and study.experiment is not None:
            phases = experiments.phases(unit, study.experiment)
            self.phases = [phase for phase in phases if phase.mode != experiments.FROZEN]
            if any(phase.mode == experiments.MOVES for phase in phases):
                self.strata_per_phase = len(self.phases) + 1
        self._contexts = None if study.segment is None else ContextCache(unit, fields=[study.segment])
        self.any_user = sessions.any_user(unit)
        self._timeout_us = settings.get(unit).session_timeout_us
        # the time in which units were assigned, and that in which they were served; none where ages do not matter
        ageing = study.experiment if study.by == "variant" and study.age_us is None else None
        self._assigned = (0, 0) if ageing is None else experiments.assignment_times(unit, ageing.id)
        if study.by in LIVES and study.age_us is None:
            self._assigned = selected.times(unit, study.selection)
        needs_age = ageing is not None or study.age_us is not None or study.by in LIVES
        self._last_at = selected.times(unit, study.selection)[1] if needs_age else 0
        self._spent_us = self._last_at - self._assigned[0] if self._assigned[1] else 0

    @property
    def is_first_week(self) -> bool:
        """Whether users had less than a week to come again. A ramp waits at each step as long as its owner says."""
        experiment = self.study.experiment
        if experiment is None or self.study.by_session or not self.any_user:
            return False
        is_ramp = "route" in parse(experiment.definition, f"definition of experiment {experiment.name}")
        return 0 < self._spent_us < FIRST_WEEK_US and not is_ramp

    def splits(self, sums: StudySums) -> list[tuple[list[float], list[list[int]]]]:
        """The weights of the variants in each stratum, and the units there that count; of a ramp, those that were
        served before were all of the first variant, whose share is that of what it had then."""
        units = sums.counts.get("strata", np.zeros((0, 2))).astype(np.int64).tolist()
        if self.strata_per_phase == 1:
            weights = [[phase.weights[str(name)] for name in self.groups.labels] for phase in self.phases]
            return [(pair, [row]) for pair, row in zip(weights, units, strict=False) if sum(row)]
        label = str(self.groups.labels[0])
        remaining = [1.0, *(phase.weights[label] / sum(phase.weights.values()) for phase in self.phases)]
        shares = [[after / before, 1 - after / before] for after in remaining[1:] for before in remaining]
        return [(pair, [row]) for pair, row in zip(shares, units, strict=False) if sum(row) and pair[1] > 0]

    def partials(self) -> Iterator[StudySums]:
        """The sums of each portion."""
        for portion in people.portions(self.unit):
            query = people.ask_visits(self.unit, portion, self.study.experiment)
            batch = self._batch(portion, self.study.selection)
            if len(batch):
                yield self._sums(query.columns(), batch)

    def _batch(self, portion: Ids, selection: Selection) -> Batch:
        names = _READ if self._contexts is None else (*_READ, "context_id")
        slots, events = people.ask_decisions(self.unit, portion, names, selection)
        return Batch(slots=reader.read_slots(slots), events=events.columns())

    def _sums(self, columns: Columns, batch: Batch) -> StudySums:
        """The sums of a portion. columns: of its visits; batch: its selected decisions."""
        visits = log_rows.person_visits(
            columns, timeout_us=self._timeout_us, now=self.unit.now, by_session=self.study.by_session,
            any_user=self.any_user,
        )  # fmt: skip
        decisions, slots, censored = self._decisions(columns, batch)
        if self.study.age_us is not None:
            has_age = self._has_age(columns, visits, decisions)
            decisions, slots = decisions.take(has_age), take(slots, has_age)
        units = unit_sums(visits, decisions, now=self.unit.now)
        # whether a unit had a visit before the one that it was assigned in, or first served in
        assigned_at = columns["entry_at"][units.visit]
        is_earlier = (assigned_at != ABSENT) & (assigned_at < units.entry)
        entered_at = np.where(is_earlier, assigned_at, visits.started_at[units.visit])
        returning = visits.begun_before(units.visit, entered_at) > 0
        if self.study.users is not None:
            is_recognised = units.columns["recognised"] > 0
            selected_units = is_recognised if self.study.users == NAMED else returning == (self.study.users == USERS[1])
            units, returning = units.take(selected_units), returning[selected_units]
        # a unit of several groups is as new as it was in the first of them
        order = np.lexsort((units.entry, units.unit))
        first = order[run_starts(units.unit[order])]
        if self.study.by == "users":
            units = units.regrouped(returning.astype(np.int64))
        strata = dict[int, OutcomeSums]()
        if self.study.adjust and self.study.experiment is None:  # as if a unit was assigned when it came
            order, entry_at = np.argsort(units.unit), np.full(len(visits.unit), ABSENT)
            index, has_entry = look_up(units.unit[order], visits.unit)
            entry_at[has_entry] = units.entry[order[index[has_entry]]]
            columns = {**columns, "entry_at": entry_at}
        past_sums = self._past(columns, visits) if self.study.adjust else None
        drawn_units, stratum = self._strata(columns, visits, decisions, units)
        if len(self.phases) > 1:
            strata = {
                number: outcomes.fold(drawn_units.take(stratum == number), self.metrics, past=past_sums)
                for number in np.unique(stratum).tolist()
            }
        anonymous = units.columns["recognised"] == 0
        mature = decisions.mature[0]
        rows, _ = distinct(decisions.group[mature], slots["session_id"][mature])
        session_group = decisions.group[mature][rows]
        flags = {"anonymous": anonymous, **{name: units.columns[name] > 0 for name in SAMPLED_FLAGS}}
        groups = {
            "sessions": session_group,
            "sampled": decisions.group[slots["keep_probability"] < 1],
            **{name: units.group[rows] for name, rows in flags.items()},
        }
        counts = {name: np.bincount(group, minlength=len(self.groups.labels)) for name, group in groups.items()}
        if self.phases:
            n_groups, n_strata = len(self.groups.labels), self.strata_per_phase * len(self.phases)
            cells = np.bincount(stratum * n_groups + drawn_units.group, minlength=n_strata * n_groups)
            counts["strata"] = cells.reshape(n_strata, n_groups)
        halves = dict[int, OutcomeSums]()
        if self._assigned[1]:
            counts |= self._ages(visits, decisions, units)
        if self._assigned[1] and len(self.phases) == 1:  # of one phase: older and younger units had the same weights
            is_younger = units.entry >= sum(self._assigned) // 2
            halves = {
                number: outcomes.fold(units.take(half), _ageing(self.study))
                for number, half in enumerate((~is_younger, is_younger))
            }
        return StudySums(
            outcomes=outcomes.fold(units, self.metrics, past=past_sums, shared=self.groups.shared), halves=halves,
            segments={} if self._contexts is None else self._segments(self._contexts, visits, decisions, slots, units),
            strata=strata,
            counts={name: count.astype(np.float64) for name, count in counts.items()}, censored=censored,
            new=int((~returning[first]).sum()), returning=int(returning[first].sum()),
            anonymous=int(anonymous[first].sum()),
        )  # fmt: skip

    def _segments(
        self, contexts: ContextCache, visits: Visits, decisions: ServedDecisions, slots: Columns, units: UnitSums
    ) -> dict[str, OutcomeSums]:  # fmt: skip
        """The sums of units by what the context of their first decision says: later ones may be effects."""
        unit, field = visits.unit[decisions.visit], str(self.study.segment)
        order = np.lexsort((slots["decision_id"], decisions.at, unit))
        first = order[run_starts(unit[order])]
        table, context = contexts.table(slots["context_id"][first], None)
        self.fields |= table.names
        codes, values = table.value_codes(field, canonical.text)
        segment = codes[context][np.searchsorted(unit[first], units.unit)]
        texts = [value if isinstance(value, str) else canonical.text(value) for value in values]
        self.labels |= {*texts}
        if len(self.labels) > MAX_GROUPS:
            raise too_many(field)
        numbers = np.unique(segment).tolist()
        return {texts[number]: outcomes.fold(units.take(segment == number), self.metrics) for number in numbers}

    def _decisions(
        self, columns: Columns, batch: Batch, *, grouped: bool = True
    ) -> tuple[ServedDecisions, Columns, int]:
        """The decisions of a batch without a censored slot, what `_READ` says of them, and how many mature ones have
        such a slot."""
        pages = [
            reward_log.with_page_rewards(batch, reward_log.with_rewards(batch, reward), reward)
            for reward in self.study.rewards
        ]
        slots = pages[0].slots
        mature = [reward_log.mature(slots, reward, now=self.unit.now) for reward in self.study.rewards]
        visit, is_counted = visit_indices(columns, slots["session_id"], slots["visit"]), ~slots["censored"]
        is_left_out = mature[0] & slots["censored"]
        if grouped and self._is_holdout:  # a decision names the variant that served, which is none outside of it
            slots = {**slots, "variant_id": columns["assigned_id"][visit]}
            is_counted, is_left_out = (flags & (slots["variant_id"] != ABSENT) for flags in (is_counted, is_left_out))
        elif grouped and self.study.by == "variant":  # a person with several keys has the variant that came first
            assigned_id = columns["assigned_id"][visit]
            is_theirs = (columns["is_merged"][visit] > 0) & (assigned_id != ABSENT)
            slots = {**slots, "variant_id": np.where(is_theirs, assigned_id, slots["variant_id"])}
        decisions = ServedDecisions(
            visit=visit,
            group=self.groups.number(slots) if grouped else np.zeros(len(slots["at"]), np.int64),
            at=slots["at"], rewards=[page.reward for page in pages], mature=mature, keep=slots["keep_probability"],
        )  # fmt: skip
        return decisions.take(is_counted), take(slots, is_counted), int(is_left_out.sum())

    def _strata(
        self, columns: Columns, visits: Visits, decisions: ServedDecisions, units: UnitSums
    ) -> tuple[UnitSums, Ids]:
        """The units by what they were drawn in, and the number of the stratum of each: of most experiments the phase in
        which a unit was assigned; in a ramp, which draws all units anew, each phase that served it."""
        starts = [phase.at for phase in self.phases[1:]]
        if self.strata_per_phase == 1:
            return units, np.searchsorted(starts, columns["entry_at"][units.visit], side="right")
        n_groups, phase = len(self.groups.labels), np.searchsorted(starts, decisions.at, side="right")
        in_phases = replace(decisions, group=phase * n_groups + decisions.group)
        cells = unit_sums(visits, in_phases, now=self.unit.now)
        return ramp_strata(cells.take(np.isin(cells.unit, units.unit)), len(self.phases), n_groups)

    def _ages(self, visits: Visits, decisions: ServedDecisions, units: UnitSums) -> dict[str, Ids]:
        """Visits by the age that their unit had, and units by their age at the end, of each variant, (v, AGES)."""
        n, spent = len(self.groups.labels), self._spent_us + 1
        # the visits of these units, whose rows are found by digest
        first, _ = distinct(decisions.group, decisions.visit)
        first = first[np.isin(visits.unit[decisions.visit[first]], units.unit)]
        group, visit = decisions.group[first], decisions.visit[first]
        digests = np.unique(units.unit)  # each of which may be in several groups
        keys, wanted = (
            np.searchsorted(digests, unit) * n + side
            for unit, side in ((units.unit, units.group), (visits.unit[visit], group))
        )
        order = np.argsort(keys)
        row = order[np.searchsorted(keys, wanted, sorter=order)]
        age = visits.started_at[visit] - units.entry[row]

        def count(group: Ids, age: Ids) -> Ids:
            cell = group * AGES + np.clip(age * AGES // spent, 0, AGES - 1)
            return np.bincount(cell, minlength=n * AGES).reshape(n, AGES)

        return {"begun": count(group, age), "ages": count(units.group, self._last_at - units.entry)}

    def _has_age(self, columns: Columns, visits: Visits, decisions: ServedDecisions) -> Flags:
        """Whether each decision is early enough in the time of its unit, which came early enough in the log."""
        age, window = self.study.age_us or 0, max(reward.window_us for reward in self.study.rewards)
        _, unit = np.unique(visits.unit[decisions.visit], return_inverse=True)
        first = np.full(int(unit.max(initial=-1)) + 1, FAR_FUTURE)
        np.minimum.at(first, unit, decisions.at)
        assigned_at = columns["entry_at"][decisions.visit]
        end = np.where(assigned_at == ABSENT, first[unit], assigned_at) + age
        return (decisions.at < end) & (end <= self._last_at) & (end + window < self.unit.now)

    def _past(self, columns: Columns, visits: Visits) -> UnitSums:
        """The sums of assigned units as they stood at their assignment, in group 0."""
        entry_at = columns["entry_at"]
        assigned = entry_at != ABSENT
        keys = np.unique(columns["session_id"][assigned])
        past = Selection(until=int(entry_at.max(initial=0)), without=self.study.selection.without)
        batch = self._batch(keys, past) if len(keys) else None
        if not batch:
            return unit_sums(visits, ServedDecisions.empty(len(self.study.rewards)), now=entry_at)
        decisions, _, _ = self._decisions(columns, batch, grouped=False)
        return unit_sums(visits, decisions.take(decisions.at < entry_at[decisions.visit]), now=entry_at)
