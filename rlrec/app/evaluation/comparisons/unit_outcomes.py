"""This module sums the outcomes of users or sessions, here called units, from the log. The outcomes are visits, returns
and rewards, by group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from operator import add
from typing import NamedTuple

import numpy as np

from rlrec.app.evaluation.comparisons import declared, study_figures
from rlrec.app.evaluation.comparisons.declared import Declaration
from rlrec.app.evaluation.comparisons.study_figures import N_AGES, Groups, Study, StudyFigures, StudySums, metrics
from rlrec.app.evaluation.rows import log_rows
from rlrec.app.evaluation.rows.contexts import ContextCache
from rlrec.app.evaluation.rows.groups import MAX_GROUPS, check_field, day_numbers, too_many_groups
from rlrec.app.inputs import canonical, filters, lookup
from rlrec.app.log import partitions, reward_log
from rlrec.app.log.ended_visits import SPREAD, PersonPortions, visit_indices
from rlrec.app.log.reward_log import RewardedSlots
from rlrec.arrays import Flags, Ids, distinct, look_up, run_starts, take
from rlrec.errors import InputError
from rlrec.ope.comparisons import comparison, outcomes
from rlrec.ope.comparisons.comparison import sample_ratio
from rlrec.ope.comparisons.outcomes import OutcomeSums, ramp_strata
from rlrec.ope.intervals.tails import chi_square_above
from rlrec.ope.sums.unit_visits import FAR_FUTURE, SAMPLED_FLAGS, ServedDecisions, UnitSums, Visits, unit_sums
from rlrec.records import Reward
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import decisions, reader, selected, sessions, settings
from rlrec.store.log.events import RETURN
from rlrec.store.log.reader import ABSENT, Batch
from rlrec.store.log.selected import Selection
from rlrec.store.policies import experiments, people, policies
from rlrec.store.policies.experiments import Experiment, Phase
from rlrec.store.upkeep import removals
from rlrec.times import DAY_US

_SLOT_COLUMNS = (
    "decision_id", "session_id", "visit", "at", "version_id", "variant_id", "imported", "position", "censored",
    "keep_probability",
)  # fmt: skip
FIRST_WEEK_US = 7 * DAY_US  # in a first week, visits do not show how long people stay away
# The fields of a selection that may follow from the variant of a unit.
ASSIGNED_FILTERS = ("policy_ids", "version_ids", "route_ids", "context_ids", "since")
MIN_EXPECTED = 5  # units in each cell of a chi-square test


class StudyFold:
    """A StudyFold sums up the log of a study, a portion of the persons at a time."""

    def __init__(self, unit: Unit, study: Study) -> None:
        self.unit, self.study = unit, study
        self.groups = Groups.from_study(unit, study)
        self.fields, self.labels = set[str](), set[str]()  # seen in contexts so far
        self.metrics = [*metrics(study), *(comparison.per_decision(0) if study.experiment else [])]
        self._is_holdout = study.by == "variant" and bool(
            study.experiment and lookup.route_of_holdout(unit, study.experiment)
        )
        # the phases that draw units, and the number of strata of a ramp in each phase
        self.phases, self.strata_per_phase = list[Phase](), 1
        if study.by == "variant" and study.experiment is not None:
            phases = experiments.phases(unit, study.experiment)
            self.phases = [phase for phase in phases if phase.mode != experiments.FROZEN]
            if any(phase.mode == experiments.MOVES for phase in phases):
                self.strata_per_phase = len(self.phases) + 1
        self._contexts = None if study.segment is None else ContextCache(unit, fields=[study.segment])
        self.any_user = sessions.any_user(unit)
        self._timeout_us = settings.get(unit).session_timeout_us
        self._import_end = decisions.newest_time(unit, is_imported=True) if selected.may_be_imported(unit) else None
        # the times in which units were assigned, and in which they were served; None where ages do not matter
        aged_experiment = study.experiment if study.by == "variant" and study.age_us is None else None
        needs_age = (
            aged_experiment is not None or study.age_us is not None or study.by in study_figures.STAGGERED_GROUPINGS
        )
        served_times = selected.times(unit, study.selection) if needs_age else (0, 0)
        self._assignment_span, self._last_at = (0, 0), served_times[1]
        if needs_age and study.age_us is None:
            first, last = (
                served_times if aged_experiment is None else experiments.assignment_times(unit, aged_experiment.id)
            )
            self._assignment_span = max(first, study.entered_us or 0) if first else 0, last
        self._spent_us = self._last_at - self._assignment_span[0] if self._assignment_span[1] else 0
        # when phases begin; with one phase, in which all units were drawn alike, quarters of the time of assignments
        self.starts = [phase.at for phase in self.phases]
        if study.experiment is not None and len(self.phases) == 1:
            first, last = experiments.assignment_times(unit, study.experiment.id)
            last = last if study.age_us is None else min(last, self._last_at - study.age_us)
            first = max(first, study.entered_us or 0)
            quarters = range(study_figures.N_QUARTERS)
            self.starts = [first + number * max(last + 1 - first, 1) // len(quarters) for number in quarters]

    @property
    def is_first_week(self) -> bool:
        """Tell whether users had less than a week to come again. In a ramp this does not count, since its owner decides
        how long each step takes, and the result is False."""
        experiment = self.study.experiment
        if experiment is None or self.study.by_session or not self.any_user:
            return False
        is_ramp = "route" in experiment.declaration
        return 0 < self._spent_us < FIRST_WEEK_US and not is_ramp

    def splits(self, sums: StudySums) -> list[tuple[list[float], list[list[int]]]]:
        """Return, for each stratum, the weights of the variants and the counts of users or sessions, for the test of
        the split. In a ramp, all of a stratum were in the first variant before. The weight of the first variant is then
        the share of them that it keeps."""
        units = sums.counts.get("strata", np.zeros((0, 2))).astype(np.int64).tolist()
        if self.strata_per_phase == 1:
            weights = [[phase.weights[str(name)] for name in self.groups.labels] for phase in self.phases]
            return [(pair, [row]) for pair, row in zip(weights, units, strict=False) if sum(row)]
        label = str(self.groups.labels[0])
        remaining = [1.0, *(phase.weights[label] / sum(phase.weights.values()) for phase in self.phases)]
        shares = [
            [share_after / share_before, 1 - share_after / share_before]
            for share_after in remaining[1:]
            for share_before in remaining
        ]
        return [(pair, [row]) for pair, row in zip(shares, units, strict=False) if sum(row) and pair[1] > 0]

    def partials(self, others: Sequence[StudyFold] = ()) -> Iterator[list[StudySums]]:
        """Yield a list of sums for each portion of the persons: the sums for this study, then for each other study.

        others: other studies, whose logs are the later part of this study's log."""
        for columns, batch in self._portions():
            visits = log_rows.person_visits(
                columns, timeout_us=self._timeout_us, now=self.unit.now, import_end=self._import_end or 0,
                by_session=self.study.by_session, any_user=self.any_user,
            )  # fmt: skip
            pages, sums = self._pages(batch), list[StudySums]()
            for fold in (self, *others):
                is_later = pages[0].slots["at"] >= (fold.study.selection.since or 0)
                rows = [page.take(is_later) for page in pages]
                sums.append(fold._sums(columns, visits, rows) if is_later.any() else study_figures.NOTHING)
            yield sums

    def _portions(self) -> Iterator[tuple[Columns, Batch]]:
        """Yield the visits and the selected decisions of each portion of the persons. Each portion is read once."""
        selection, sessions, few_test = self.study.selection, None, None
        # only the persons of these variants are read, where one batch holds all decisions of their policies
        if selection.variant_ids:
            few_test = selected.few_test(self.unit, selection, limit=reader.BATCH)
        log: Iterable[Batch] = reader.batches(
            self.unit, selection, columns=_SLOT_COLUMNS, size=SPREAD, few_test=few_test, by_id=True
        )
        if few_test is not None:
            log = [*log]
            sessions = np.unique(np.concatenate([np.empty(0, np.int64), *(batch.slots["session_id"] for batch in log)]))
        persons = PersonPortions.read(self.unit, sessions)
        decisions = partitions.spool(log, persons.files, lambda batch: batch.split(persons.file(batch.slots)))
        for batches, visits in zip(decisions, persons.visits(self.unit, self.study.experiment), strict=True):
            if batches:
                rows = Batch.concatenate(batches)
                for key, batch in rows.split(persons.portion(rows.slots)):
                    yield visits[key], batch

    def _pages(self, batch: Batch) -> list[RewardedSlots]:
        """Return the decisions of a batch once for each reward of the study, each with the values of this reward."""
        if partitions.has_returns_elsewhere(self.unit, self.study.selection):
            batch = partitions.move_returns(self.unit, batch)
        return [
            reward_log.with_page_rewards(batch, reward_log.with_rewards(batch, reward), reward)
            for reward in self.study.rewards
        ]

    def _sums(self, columns: Columns, visits: Visits, pages: Sequence[RewardedSlots]) -> StudySums:
        """Return the sums of a portion of the persons.

        columns: the stored columns of these persons' visits; visits: the visits; pages: the selected decisions of
        these persons, once for each reward."""
        decisions, slots, n_censored = self._decisions(columns, pages)
        if self.study.age_us is not None:
            has_age = self._has_age(columns, visits, decisions)
            decisions, slots = decisions.take(has_age), take(slots, has_age)
        counts_days = any(metric.numerator == "active_days" for metric in self.metrics)
        units = unit_sums(visits, decisions, now=self.unit.now, counts_days=counts_days)
        # whether a unit had a visit before the one in which it was assigned or first served
        assigned_at = columns["entry_at"][units.visit]
        is_earlier = (assigned_at != ABSENT) & (assigned_at < units.entry)
        entered_at = np.where(is_earlier, assigned_at, visits.started_at[units.visit])
        is_returning = visits.count_begun(units.visit, entered_at) > 0
        is_selected = np.ones(len(units.unit), bool)
        if self.study.users == study_figures.NAMED_USERS:
            is_selected = units.columns["recognised"] > 0
        elif self.study.users is not None:
            is_selected = is_returning == (self.study.users == study_figures.USER_GROUPS[1])
        if (entered_us := self.study.entered_us) is not None and self.study.experiment is not None:
            is_selected &= entered_at >= entered_us
        elif entered_us is not None:
            is_selected &= visits.count_begun(units.visit, np.full(len(units.unit), entered_us)) == 0
        units, is_returning = units.take(is_selected), is_returning[is_selected]
        # a unit of several groups is as new as it was in the first of them
        order = np.lexsort((units.entry, units.unit))
        first_rows = order[run_starts(units.unit[order])]
        if self.study.by == "users":
            units = units.regroup(is_returning.astype(np.int64))
        strata = dict[int, OutcomeSums]()
        if self.study.adjust and self.study.experiment is None:  # as if a unit were assigned when it came
            order, entry_at = np.argsort(units.unit), np.full(len(visits.unit), ABSENT)
            index, has_entry = look_up(units.unit[order], visits.unit)
            entry_at[has_entry] = units.entry[order[index[has_entry]]]
            columns = {**columns, "entry_at": entry_at}
        past_sums = self._past(columns, visits) if self.study.adjust else None
        drawn_units, stratum, is_split, n_mixed = self._strata(columns, visits, decisions, units)
        if len(self.phases) > 1:
            strata = {
                number: outcomes.fold(drawn_units.take(stratum == number), self.metrics, past=past_sums)
                for number in np.unique(stratum).tolist()
            }
        is_anonymous = units.columns["recognised"] == 0
        mature = decisions.is_mature[0]
        rows, _ = distinct(decisions.group[mature], slots["session_id"][mature])
        session_group = decisions.group[mature][rows]
        flags = {"anonymous": is_anonymous, **{name: units.columns[name] > 0 for name in SAMPLED_FLAGS}}
        groups = {
            "sessions": session_group,
            "sampled": decisions.group[slots["keep_probability"] < 1],
            **{name: units.group[rows] for name, rows in flags.items()},
        }
        counts = {name: np.bincount(group, minlength=len(self.groups.labels)) for name, group in groups.items()}
        if self.phases:
            n_groups, n_strata = len(self.groups.labels), self.strata_per_phase * len(self.phases)
            cells = np.bincount((stratum * n_groups + drawn_units.group)[is_split], minlength=n_strata * n_groups)
            counts |= {"strata": cells.reshape(n_strata, n_groups), "mixed": np.array([n_mixed])}
        if self._assignment_span[1]:
            counts |= self._ages(visits, decisions, units)
        quarters = dict[int, OutcomeSums]()
        if len(self.phases) == 1:
            quarter = np.searchsorted(self.starts, units.entry, side="right") - 1
            quarters = {
                number: outcomes.fold(units.take(quarter == number), study_figures.ageing_metrics(self.study))
                for number in range(study_figures.N_QUARTERS)
            }
        return StudySums(
            outcomes=outcomes.fold(units, self.metrics, past=past_sums, overlap=self.groups.may_overlap),
            segments={} if self._contexts is None else self._segments(self._contexts, columns, visits, units),
            quarters=quarters, strata=strata,
            counts={name: count.astype(np.float64) for name, count in counts.items()}, n_censored=n_censored,
            n_new=int((~is_returning[first_rows]).sum()), n_returning=int(is_returning[first_rows].sum()),
            n_anonymous=int(is_anonymous[first_rows].sum()),
        )  # fmt: skip

    def _segments(
        self, contexts: ContextCache, columns: Columns, visits: Visits, units: UnitSums
    ) -> dict[str, OutcomeSums]:  # fmt: skip
        """Return the sums of users or sessions by the value of the study's segment field. The value is that of the
        first decision in the experiment, even if it is not selected, since later contexts may be effects of the
        variant.

        contexts: the cache of contexts; columns: the stored columns of the visits; units: the sums of each user or
        session."""
        field, tests = str(self.study.segment), [people.session_test("d.session_id", np.unique(columns["session_id"]))]
        if self.study.experiment is not None:
            log = filters.select(self.unit, {"experiment": self.study.experiment.name})
            tests += [f"+{test}" for test in log.conditions()]
        rows = reader.ask_decisions(self.unit, ("session_id", "visit", "at", "context_id"), tests).columns()
        unit = visits.unit[visit_indices(columns, rows["session_id"], rows["visit"])]
        order = np.lexsort((rows["decision_id"], rows["at"], unit))
        first_decisions = order[run_starts(unit[order])]
        table, context = contexts.table(rows["context_id"][first_decisions], None)
        self.fields |= table.names
        codes, values = table.value_codes(field, canonical.text)
        segment = codes[context][np.searchsorted(unit[first_decisions], units.unit)]
        texts = [value if isinstance(value, str) else canonical.text(value) for value in values]
        self.labels |= {*texts}
        if len(self.labels) > MAX_GROUPS:
            raise too_many_groups(field)
        numbers = np.unique(segment).tolist()
        return {texts[number]: outcomes.fold(units.take(segment == number), self.metrics) for number in numbers}

    def _decisions(
        self, columns: Columns, pages: Sequence[RewardedSlots], *, by_group: bool = True
    ) -> tuple[ServedDecisions, Columns, int]:
        """Return the decisions of a portion, their `_SLOT_COLUMNS`, and the number of mature decisions with a censored
        slot. The reward of a censored slot is left out. If all slots of a slate are censored, its visit counts, but its
        reward does not.

        columns: the stored columns of the visits; pages: the decisions, once for each reward; by_group: whether to
        find the group of each decision. If not, all decisions are in group 0."""
        slots = pages[0].slots
        is_mature = np.array([reward_log.is_mature(slots, reward, now=self.unit.now) for reward in self.study.rewards])
        visit = visit_indices(columns, slots["session_id"], slots["visit"])
        is_counted = np.ones(len(visit), np.bool_)
        is_left_out = is_mature[0] & slots["censored"]
        is_mature &= ~slots["all_censored"]
        # a decision names the variant that served it, and outside of the holdout there is none
        if by_group and self._is_holdout:
            slots = {**slots, "variant_id": columns["assigned_id"][visit]}
            is_counted, is_left_out = (flags & (slots["variant_id"] != ABSENT) for flags in (is_counted, is_left_out))
        # a person with several keys has the variant that came first; in a ramp, which moves units, the one that served
        elif by_group and self.study.by == "variant" and self.strata_per_phase == 1:
            assigned_id = columns["assigned_id"][visit]
            is_merged = (columns["merged_at"][visit] != ABSENT) & (assigned_id != ABSENT)
            slots = {**slots, "variant_id": np.where(is_merged, assigned_id, slots["variant_id"])}
        decisions = ServedDecisions(
            visit=visit,
            group=self.groups.number(slots) if by_group else np.zeros(len(slots["at"]), np.int64),
            at=slots["at"], rewards=np.array([page.reward for page in pages]), is_mature=is_mature,
            keep_probability=slots["keep_probability"], day=day_numbers(slots["at"]),
        )  # fmt: skip
        return decisions.take(is_counted), take(slots, is_counted), int(is_left_out.sum())

    def _strata(
        self, columns: Columns, visits: Visits, decisions: ServedDecisions, units: UnitSums
    ) -> tuple[UnitSums, Ids, Flags, int]:
        """Split the users or sessions (units) by the stratum that drew them. Return the sums of each unit in a stratum,
        the number of the stratum, whether the unit enters the test of the split, and the number of units with two
        variants in one phase of a ramp.

        In most experiments the stratum of a unit is the phase in which it was assigned. A ramp draws all units anew
        in each phase, so that each phase that served a unit is a stratum of it. A person with several keys was drawn
        by the first key, and later by another key, with other probabilities than the rest of the stratum. Such a
        person enters the test of the split when first drawn, but not in phases that served the person after the keys
        were merged."""
        starts = [phase.at for phase in self.phases[1:]]
        if self.strata_per_phase == 1:
            stratum = np.searchsorted(starts, columns["entry_at"][units.visit], side="right")
            return units, stratum, np.ones(len(stratum), np.bool_), 0
        n_groups, phase = len(self.groups.labels), np.searchsorted(starts, decisions.at, side="right")
        in_phases = replace(decisions, group=phase * n_groups + decisions.group)
        cells = unit_sums(visits, in_phases, now=self.unit.now)
        drawn_units, stratum = ramp_strata(cells.take(np.isin(cells.unit, units.unit)), len(self.phases), n_groups)
        n_mixed = len(np.unique(np.delete(cells.unit, distinct(cells.unit, cells.group // n_groups)[0])))
        merged_at = columns["merged_at"][drawn_units.visit]
        is_drawn_again = (merged_at != ABSENT) & (stratum % self.strata_per_phase > 0)
        rows = ~(is_drawn_again & (merged_at <= drawn_units.entry))
        return drawn_units.take(rows), stratum[rows], ~is_drawn_again[rows], n_mixed

    def _ages(self, visits: Visits, decisions: ServedDecisions, units: UnitSums) -> dict[str, Ids]:
        """Return three counts, (v, AGES) for v variants. "begun" counts visits by the age of their user or session at
        the visit, "ages" counts users or sessions by their age at the end, and "served" counts visits by the time when
        they began."""
        n, time_span = len(self.groups.labels), self._spent_us + 1
        # the visits of these units; their rows are found by digest
        first_decisions, _ = distinct(decisions.group, decisions.visit)
        first_decisions = first_decisions[np.isin(visits.unit[decisions.visit[first_decisions]], units.unit)]
        group, visit = decisions.group[first_decisions], decisions.visit[first_decisions]
        digests = np.unique(units.unit)  # a unit may be in several groups
        keys, wanted_keys = (
            np.searchsorted(digests, unit) * n + side
            for unit, side in ((units.unit, units.group), (visits.unit[visit], group))
        )
        order = np.argsort(keys)
        row = order[np.searchsorted(keys, wanted_keys, sorter=order)]
        age = visits.started_at[visit] - units.entry[row]

        def count(group: Ids, age: Ids) -> Ids:
            cell = group * N_AGES + np.clip(age * N_AGES // time_span, 0, N_AGES - 1)
            return np.bincount(cell, minlength=n * N_AGES).reshape(n, N_AGES)

        return {
            "begun": count(group, age), "ages": count(units.group, self._last_at - units.entry),
            "served": count(group, visits.started_at[visit] - self._assignment_span[0]),
        }  # fmt: skip

    def _has_age(self, columns: Columns, visits: Visits, decisions: ServedDecisions) -> Flags:
        """Tell for each of d decisions, (d,), whether it comes within the study's time `age_us` after its user or
        session was assigned, and whether this time and the windows of rewards are over."""
        age, window = self.study.age_us or 0, max(reward.window_us for reward in self.study.rewards)
        _, unit = np.unique(visits.unit[decisions.visit], return_inverse=True)
        first_times = np.full(int(unit.max(initial=-1)) + 1, FAR_FUTURE)
        np.minimum.at(first_times, unit, decisions.at)
        assigned_at = columns["entry_at"][decisions.visit]
        end = np.where(assigned_at == ABSENT, first_times[unit], assigned_at) + age
        return (decisions.at < end) & (end <= self._last_at) & (end + window < self.unit.now)

    def _past(self, columns: Columns, visits: Visits) -> UnitSums:
        """Return the sums of the assigned users or sessions over the time before their assignment, all in group 0."""
        entry_at = columns["entry_at"]
        is_assigned = entry_at != ABSENT
        keys = np.unique(columns["session_id"][is_assigned])
        past_selection = Selection(until=int(entry_at.max(initial=0)), without=self.study.selection.without)
        if not len(keys):
            return unit_sums(visits, ServedDecisions.empty(len(self.study.rewards)), now=entry_at)
        tests = [people.session_test("d.session_id", keys), *(f"+{test}" for test in past_selection.conditions())]
        pages = self._pages(reader.read_decisions(self.unit, tests, slots=_SLOT_COLUMNS))
        decisions, _, _ = self._decisions(columns, pages, by_group=False)
        return unit_sums(visits, decisions.take(decisions.at < entry_at[decisions.visit]), now=entry_at)


# -- studies, from sums to figures --


def collect(unit: Unit, study: Study, *, level: float, is_fixed: bool = False) -> StudyFigures:
    """Return the figures of a study, from one pass over the log. level: the level of the intervals; is_fixed: whether
    they hold for one planned look instead of every look."""
    return collect_figures(unit, [study], level=level, is_fixed=is_fixed)[0]


def collect_figures(
    unit: Unit, studies: Sequence[Study], *, level: float, is_fixed: bool = False
) -> list[StudyFigures]:  # fmt: skip
    """Return the figures of several studies, from one pass over the log. The log of each further study is the later
    part of the first study's log.

    level: the level of the intervals; is_fixed: whether they hold for one planned look instead of every look."""
    first, *others = folds = [StudyFold(unit, study) for study in studies]
    sums = [study_figures.NOTHING] * len(folds)
    for portion_sums in first.partials(others):
        sums = list(map(add, sums, portion_sums))
    return [_figures(unit, *pair, level=level, is_fixed=is_fixed) for pair in zip(folds, sums, strict=True)]


def _figures(unit: Unit, fold: StudyFold, sums: StudySums, *, level: float, is_fixed: bool) -> StudyFigures:
    study = fold.study
    check_field(study.segment, fold.fields, groups=())
    splits, declaration, is_picked = list[tuple[list[float], list[list[int]]]](), None, False
    selected_split, mixed_share = (np.nan, np.nan), 0.0
    if study.by == "variant" and study.experiment is not None:
        is_ramp = fold.strata_per_phase > 1
        splits = fold.splits(sums) if is_ramp else experiments.split_by_day(unit, study.experiment)
        shares = experiments.phases(unit, study.experiment)[0].weights
        first = learned_rewards(unit, study.experiment)[0].name
        declaration = Declaration.from_definition(study.experiment, metrics(study), study.rewards, first, shares)
        experiment_selection = filters.select(unit, {"experiment": study.experiment.name})
        # whether the selection leaves out decisions by what happened after the assignment
        wider_selection = replace(
            study.selection, **{name: getattr(experiment_selection, name) for name in ASSIGNED_FILTERS}
        )
        is_picked = wider_selection != study.selection and selected.extent(unit, wider_selection) != selected.extent(
            unit, study.selection
        )
        # of units that came before, only those that came again have visits left
        first_at, pruned_until = experiments.assignment_times(unit, study.experiment.id)[0], removals.pruned_until(unit)
        is_picked |= 0 < max(first_at, study.entered_us or 0) < pruned_until
        n_units = sum(experiments.count_units(unit, study.experiment.id).values())
        n_mixed = 0 if is_ramp else experiments.count_mixed_users(unit, study.experiment.id)
        mixed_share = (n_mixed + float(sums.counts.get("mixed", np.zeros(1)).sum())) / max(1, n_units)
        is_sampled = sums.counts.get("sampled", np.zeros(1)).any()
        if study.selection != experiment_selection and not (is_ramp or is_picked or is_sampled):
            selected_split = _selected_split(fold, sums, splits)
    return StudyFigures(
        study=study, sums=sums, groups=fold.groups, level=level, any_user=fold.any_user,
        split=sample_ratio(splits), strata_per_phase=fold.strata_per_phase, declaration=declaration, is_fixed=is_fixed,
        starts=fold.starts, is_picked=is_picked, selected_split=selected_split, is_first_week=fold.is_first_week,
        mixed_share=mixed_share,
    )  # fmt: skip


def _selected_split(
    fold: StudyFold, sums: StudySums, splits: Sequence[tuple[list[float], list[list[int]]]]
) -> tuple[float, float]:  # fmt: skip
    """Test whether a selection leaves out different shares of the variants, among users or sessions that were drawn
    with the same weights. Return chi-square and p-value, which are NaN if the selection leaves out few.

    splits: the weights of the variants and the counts of those assigned, as `split_by_day` returns them."""
    n_assigned = {tuple(weights): np.zeros(len(weights)) for weights, _ in splits}
    n_counted = {weights: np.zeros(len(weights)) for weights in n_assigned}
    for weights, looks in splits:
        n_assigned[tuple(weights)] += np.array(looks[-1:] or [[0] * len(weights)])[0]
    for weights, looks in fold.splits(sums):
        n_counted[tuple(weights)] += looks[0]
    chi2, freedom = 0.0, 0
    for shares, units in n_counted.items():
        table = np.stack([units, np.maximum(n_assigned[shares] - units, 0)])
        means = table.sum(axis=0) * table.sum(axis=1, keepdims=True) / max(table.sum(), 1)
        if means.min() >= MIN_EXPECTED:
            chi2, freedom = chi2 + float(((table - means) ** 2 / means).sum()), freedom + len(shares) - 1
    return (chi2, chi_square_above(chi2, freedom)) if freedom else (np.nan, np.nan)


class Look(NamedTuple):
    """This record has the state of an experiment at one look. differences: the differences between variants in the
    metrics that decide the experiment; guards: each guard, and whether it holds."""

    differences: list[study_figures.DifferenceRow]
    guards: list[study_figures.GuardRow]


def look_at_experiment(unit: Unit, experiment: Experiment, *, level: float = 0.95) -> Look:
    """Return the present deciding differences of an experiment, and its guards. The intervals hold at every look, so
    that repeated looks cause no further errors."""
    figures = collect(unit, experiment_study(unit, experiment, rewards_of(unit, (), experiment)), level=level)
    return Look([figures.difference(*key) for key in figures.deciding_keys], figures.guards())


def experiment_study(unit: Unit, experiment: Experiment, rewards: Sequence[Reward]) -> Study:
    """Return the study of all decisions of an experiment, by variant."""
    selection = filters.selection(unit, f"experiment={experiment.name}")
    return Study(selection=selection, rewards=rewards, experiment=experiment, by="variant")


def rewards_of(unit: Unit, names: Sequence[str], experiment: Experiment | None) -> list[Reward]:
    """Return the rewards with these names, and the rewards that the experiment declares. Raise InputError for an
    unknown or repeated name.

    Without names, the other rewards that the variants learn follow the declared rewards. Without names and
    experiment, the result has the one reward that all policies learn, or `default`."""
    if repeated_name := next((name for name in names if list(names).count(name) > 1), None):
        raise InputError(f"reward {repeated_name!r} is named twice")
    if experiment is None:
        return [lookup.reward(unit, name) for name in names] or [lookup.reward(unit, None)]
    learned_names = [reward.name for reward in learned_rewards(unit, experiment)]
    declared_names = declared.reward_names(experiment, learned_names[0])
    return [
        lookup.reward(unit, name)
        for name in dict.fromkeys([*names, *declared_names, *([] if names else learned_names)])
    ]


def learned_rewards(unit: Unit, experiment: Experiment) -> list[Reward]:
    """Return the rewards that the variants of an experiment learn, in order and without repetition. For the holdout of
    a route, return the reward of the route's policy and every reward that weighs returns of users: a holdout tells of
    the long run, whichever reward the policy learns."""
    if (route := lookup.route_of_holdout(unit, experiment)) is not None:
        rewards = [lookup.version(unit, route.reference)[0].reward]
        rewards += [reward for reward in policies.rewards(unit) if RETURN in reward.weights]
        return [*{reward.id: reward for reward in rewards}.values()]
    rewards = [lookup.version(unit, variant.policy)[0].reward for variant in experiment.variants]
    return [*{reward.id: reward for reward in rewards}.values()]


def rows_of_figures(figures: StudyFigures) -> tuple[list[study_figures.OutcomeRow], list[study_figures.DifferenceRow]]:
    """Return the rows of the answer: the rows with the metrics of each group, and the rows with the differences of each
    group from the first. Periods without users or sessions are left out."""
    study, answer_metrics, values = figures.study, metrics(figures.study), figures.outcomes.value
    numbers = [
        number for number in range(len(figures.groups.labels))
        if study.by not in study_figures.PERIOD_US or values(number, answer_metrics[0]).units
    ]  # fmt: skip
    return (
        [figures.row(number, metric) for number, metric in product(numbers, answer_metrics)],
        [figures.difference(number, metric) for number, metric in product(numbers, answer_metrics) if number],
    )
