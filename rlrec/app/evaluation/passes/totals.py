"""The sums of a log for every unit of rows: a pass in which models are fitted, and one in which targets are judged.

Each partition is read once in a pass, whatever number of units there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from rlrec.app.evaluation.passes import passes
from rlrec.app.evaluation.passes.fold import LogPartial, RowCounts, RowUnit, fold
from rlrec.app.evaluation.passes.log_reader import LogReader, Reading
from rlrec.app.evaluation.passes.request import Evaluation, PartialPages
from rlrec.app.evaluation.rows import groups
from rlrec.compute import Engine
from rlrec.records import add_each

AnyUnit = RowUnit[Any, Any]


@dataclass(frozen=True, kw_only=True)
class FitPass:
    """The pass in which the models of a unit are fitted: sums by the id of a reward."""

    unit: AnyUnit
    evaluation: Evaluation

    @property
    def reading(self) -> Reading:
        return self.unit.fitted_on

    def __call__(self, reader: LogReader, /) -> Mapping[int, Any]:
        rewards = {shared.reward.id: shared.reward for shared in self.evaluation.shared}
        total: Mapping[int, Any] = {}
        for logged in reader.to_fit(self.reading):
            rows_of = {key: self.unit.usable(logged, reward)[0] for key, reward in rewards.items()}
            sums = {key: self.unit.model_sums(logged, rows) for key, rows in rows_of.items() if len(rows)}
            total = add_each(total, sums)
        return total

    def add(self, left: Mapping[int, Any], right: Mapping[int, Any], /) -> Mapping[int, Any]:
        return add_each(left, right)


@dataclass(frozen=True, kw_only=True)
class JudgePass:
    """The pass in which targets are judged, with fitted models by the id of a reward."""

    unit: AnyUnit
    evaluation: Evaluation
    models: Mapping[int, Any]

    @property
    def reading(self) -> Reading:
        return self.unit.judged_on

    def __call__(self, reader: LogReader, /) -> LogPartial:
        batches = reader.to_judge(self.reading)
        partials = (fold(self.unit, self.evaluation, logged, self.models) for logged in batches)
        partition_sums = reduce(self.add, partials, LogPartial()).closed()
        return partition_sums + LogPartial(visits=self.unit.visit_carry_over(reader))

    def add(self, left: LogPartial, right: LogPartial, /) -> LogPartial:
        """Both sums. Raises InputError beyond 1,000 groups."""
        total = left + right
        if len({group for _, group, _ in total.groups}) > groups.MAX_GROUPS:
            raise groups.too_many(self.evaluation.request.by)
        return total


@dataclass(frozen=True, kw_only=True)
class JointPass:
    """The passes of several units over a partition, one after another. A unit that cannot use the pages of the log has
    the error as its result."""

    evaluation: Evaluation
    works: Sequence[FitPass | JudgePass]

    @property
    def reading(self) -> Reading:
        """All that they read."""
        readings = [work.reading for work in self.works]
        columns = frozenset[str]().union(*(reading.columns for reading in readings))
        return Reading(columns=columns, visits=any(reading.visits for reading in readings))

    def __call__(self, reader: LogReader, /) -> list[Any]:
        results = list[Any]()
        for number, work in enumerate(self.works):
            try:
                results.append(work(reader.clone() if number else reader))
            except PartialPages as error:
                results.append(error)
        return results


def sum_log(
    units: Sequence[AnyUnit], evaluation: Evaluation, reader: LogReader, engine: Engine | None = None, *,
    require_pages: bool = True,
) -> dict[AnyUnit, LogPartial]:  # fmt: skip
    """The sums of the log for each unit. Raises EmptyLog where a target has nothing to be judged by.

    engine: works on the partitions of the log; None for this process. require_pages: a unit that cannot use the pages
    of the log is an error; else it is left out."""
    models = fit_models(units, evaluation, reader, engine)
    refused = {unit: outcome for unit, outcome in models.items() if isinstance(outcome, PartialPages)}
    usable = [unit for unit in units if unit not in refused]
    judges = {unit: JudgePass(unit=unit, evaluation=evaluation, models=models[unit]) for unit in usable}
    results = refused | _sums(judges, LogPartial(), reader, engine)
    partials: dict[AnyUnit, LogPartial] = {}
    for unit in units:
        partial = results[unit]
        if not isinstance(partial, PartialPages):
            for number, shared in enumerate(evaluation.shared):
                if not (counts := partial.counts.get(number, RowCounts())).used:
                    raise unit.empty(shared, counts)
            partials[unit] = partial
        elif require_pages:
            raise partial
    return partials


def fit_models(
    units: Sequence[AnyUnit], evaluation: Evaluation, reader: LogReader, engine: Engine | None = None
) -> dict[AnyUnit, Any]:
    """The models of each unit by the id of a reward: those given, or fitted in a pass over the log; or PartialPages."""
    rewards = {shared.reward.id: shared.reward for shared in evaluation.shared}
    models: dict[AnyUnit, Any] = {
        unit: dict.fromkeys(rewards, unit.model) if unit.modelled and unit.model is not None else {} for unit in units
    }
    fits = {unit: FitPass(unit=unit, evaluation=evaluation) for unit in units if unit.modelled and unit.model is None}
    for unit, sums in _sums(fits, {}, reader, engine).items():
        models[unit] = sums
        if not isinstance(sums, PartialPages):
            models[unit] = {key: unit.fitted(reward_sums, rewards[key]) for key, reward_sums in sums.items()}
    return models


def _sums(
    works: Mapping[AnyUnit, FitPass | JudgePass], start: Any, reader: LogReader, engine: Engine | None
) -> dict[AnyUnit, Any]:
    """The sums of each pass over the log, or the error that one of its partitions has as its result."""
    sums = dict.fromkeys(works, start)
    if works:
        joint = JointPass(evaluation=reader.evaluation, works=list(works.values()))
        for results in passes.results(reader, joint, engine):
            for (unit, work), result in zip(works.items(), results, strict=True):
                errors = [outcome for outcome in (sums[unit], result) if isinstance(outcome, PartialPages)]
                sums[unit] = errors[0] if errors else work.add(sums[unit], result)
    return sums
