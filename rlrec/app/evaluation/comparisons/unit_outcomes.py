"""Outcomes of units, read from the log: visits, returns and rewards per person, by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from operator import add
from typing import NamedTuple

import numpy as np

from rlrec.app.evaluation.comparisons import declared
from rlrec.app.evaluation.comparisons.declared import Declaration
from rlrec.app.evaluation.comparisons.study import PERIODS, Study
from rlrec.app.evaluation.comparisons.study_figures import (
    NOTHING,
    DifferenceRow,
    GuardRow,
    OutcomeRow,
    StudyFigures,
    StudySums,
    metrics,
)
from rlrec.app.evaluation.comparisons.study_fold import StudyFold
from rlrec.app.evaluation.rows.groups import check_field
from rlrec.app.inputs import filters, lookup
from rlrec.errors import InputError
from rlrec.ope.comparisons.comparison import sample_ratio
from rlrec.ope.intervals.tails import chi_square_above
from rlrec.records import Reward
from rlrec.store import Unit
from rlrec.store.log import selected
from rlrec.store.policies import experiments
from rlrec.store.policies.experiments import Experiment

# Of a selection, what may follow from the variant that a unit has.
EFFECTS = ("policy_ids", "version_ids", "route_ids", "context_ids", "since")
LEAST_EXPECTED = 5  # units in each cell of a chi-square test


def collect(unit: Unit, study: Study, *, level: float, is_fixed: bool = False) -> StudyFigures:
    """The figures of a study, from one pass over the log."""
    return collect_figures(unit, [study], level=level, is_fixed=is_fixed)[0]


def collect_figures(
    unit: Unit, studies: Sequence[Study], *, level: float, is_fixed: bool = False
) -> list[StudyFigures]:  # fmt: skip
    """The figures of studies, from one pass over the log: those behind the first one are of later times alone."""
    first, *others = folds = [StudyFold(unit, study) for study in studies]
    sums = [NOTHING] * len(folds)
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
        widest = filters.select(unit, {"experiment": study.experiment.name})
        # whether the selection leaves decisions out by what came after the assignment
        wider = replace(study.selection, **{name: getattr(widest, name) for name in EFFECTS})
        is_picked = wider != study.selection and selected.extent(unit, wider) != selected.extent(unit, study.selection)
        units = sum(experiments.count_units(unit, study.experiment.id).values())
        mixed_share = 0.0 if is_ramp else experiments.count_mixed_users(unit, study.experiment.id) / max(1, units)
        is_sampled = sums.counts.get("sampled", np.zeros(1)).any()
        if study.selection != widest and not (is_ramp or is_picked or is_sampled):
            selected_split = _selected_split(fold, sums, splits)
    return StudyFigures(
        study=study, sums=sums, groups=fold.groups, level=level, any_user=fold.any_user,
        split=sample_ratio(splits), strata_per_phase=fold.strata_per_phase, declaration=declaration, is_fixed=is_fixed,
        is_picked=is_picked, selected_split=selected_split, is_first_week=fold.is_first_week,
        mixed_share=mixed_share,
    )  # fmt: skip


def _selected_split(
    fold: StudyFold, sums: StudySums, assigned: Sequence[tuple[list[float], list[list[int]]]]
) -> tuple[float, float]:  # fmt: skip
    """Chi-square and p-value of whether a selection leaves out other shares of the variants, of units drawn by the same
    weights; NaN where it leaves out few. assigned: as of `split_by_day`."""
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
    return (chi2, chi_square_above(chi2, freedom)) if freedom else (np.nan, np.nan)


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
