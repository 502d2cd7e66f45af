"""One fold over the log for estimates of every unit: `fold` of each batch, `+`, then `estimates`.

A unit (impressions, sessions) says which rows of a batch it uses and what a target makes of them; all else is the same
for every unit. A fold reads nothing and changes nothing: partials of batches in any order, split anywhere between
sessions, add up to the same figures, and in the order of partitions to the same bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np

from rlrec.app.evaluation.checks import Failures
from rlrec.app.evaluation.checks.base import Check
from rlrec.app.evaluation.passes.log_reader import LogReader, Reading
from rlrec.app.evaluation.passes.request import EmptyLog, Evaluation, SharedRows
from rlrec.app.evaluation.rows import groups
from rlrec.app.evaluation.rows.candidates import Inclusion
from rlrec.app.evaluation.rows.log_rows import LoggedBatch, RowGroup
from rlrec.app.evaluation.targets.probabilities import Scorer
from rlrec.app.log.reward_log import UnusedVisits
from rlrec.arrays import Flags, Ids
from rlrec.ope.checks.within_cells import alarms
from rlrec.ope.units import rivals
from rlrec.ope.units.estimate import ANY_REWARD, Estimate, FinishOptions, widened
from rlrec.ope.units.fold import Fold
from rlrec.ope.units.impressions import ImpressionFold
from rlrec.ope.units.strata import Stratum, Weighting, left_out, unlike
from rlrec.policy.beliefs.reward import bounds
from rlrec.records import Reward, Sums, add_each
from rlrec.store.database.bulk import Columns
from rlrec.store.log.reader import ABSENT

if TYPE_CHECKING:
    from rlrec.ope.checks.visit_carry_over import VisitCarryOverSums

LEAST_SHARE = 0.9  # share of the logged |reward| that an estimator must see


class Rows(Protocol):
    """Rows of one unit. slots: columns of all their slots."""

    @property
    def slots(self) -> Columns: ...
    @property
    def begins(self) -> Ids:
        """The first slot of each row, (n,)."""

    def __len__(self) -> int: ...
    def take(self, rows: Flags, /) -> Self: ...


R = TypeVar("R", bound=Rows)
M = TypeVar("M")


@dataclass(frozen=True)
class RowCounts(UnusedVisits):
    """How many rows of a log there are: impressions, or visits.

    used: those that estimates were made from. other_policy: usable ones of other policies, by which a
    logged policy cannot be judged. selected: all impressions. waiting: too young ones. size, unseen: sums of |reward|,
    and of what lies on events of pages that rows do not have."""

    used: int = 0
    other_policy: int = 0
    selected: int = 0
    size: float = 0.0
    unseen: float = 0.0

    @property
    def reward_seen(self) -> float:
        """The share of the logged |reward| that rows have, in [0, 1]."""
        return 1 - self.unseen / self.size if self.unseen else 1.0


@dataclass(frozen=True, kw_only=True)
class GroupPartial(Sums):
    """Sums of one target over the rows of one group.

    sums: of the estimators. learned: whether the target learned from one of these rows. no_state: rows that
    the target could not be asked about. has_candidates: whether one of them was ranked from a list of candidates;
    estimated: whether one has propensities that were not logged; sampled: whether one of a log that dropped rows was
    left out. replicas: sums by parts of the simulated pages of the target, by their number."""

    sums: Any
    replicas: Mapping[int, Any]
    learned: bool
    no_state: int
    has_candidates: bool
    estimated: bool
    sampled: bool = False

    def __add__(self, other: Self) -> Self:
        """Both sums; rows without a simulated page are the same in every part of them."""
        numbers = self.replicas.keys() | other.replicas.keys()
        replicas = {number: self.by_replica(number) + other.by_replica(number) for number in sorted(numbers)}
        return replace(super().__add__(replace(other, replicas={})), replicas=replicas)

    def by_replica(self, number: int) -> Any:
        """The sums by one part of the simulated pages."""
        return self.replicas.get(number, self.sums)


@dataclass(frozen=True, kw_only=True)
class LogPartial(Sums):
    """Sums over a part of the log: they add up.

    groups: by number of the target, group and stratum. counts: by number of `Evaluation.shared`. names: fields that
    contexts have. users: whether some row that was used has a user. inclusion: of the arms that were shown from
    candidates. checks: sums of each check, by number of `Evaluation.shared` and its reason. visits: of rewards that may
    depend on the person's earlier visits, by id of the reward."""

    groups: Mapping[tuple[int, RowGroup, Stratum], GroupPartial] = field(default_factory=dict)
    counts: Mapping[int, RowCounts] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    users: bool = False
    inclusion: Inclusion = field(default_factory=Inclusion)
    checks: Mapping[tuple[int, str], Any] = field(default_factory=dict)
    visits: Mapping[int, VisitCarryOverSums] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class RowUnit(ABC, Generic[R, M]):
    """A unit of rows (impressions, slates, sessions) with its estimators. R: rows of a batch; M: the model that
    estimators use. It holds nothing of the store.

    fold: the estimators about one target; model: the one that was given with the request. checks: those that are made
    on its rows. logging_states: whether
    targets are judged on the states that the logger brought about; simulates: whether weights may be of marginals,
    which are simulated for some targets."""

    evaluation: Evaluation
    fold: Fold
    model: M | None = None
    checks: Sequence[Check] = ()
    logging_states: ClassVar[bool] = True
    simulates: ClassVar[bool] = True

    @property
    def needs_model(self) -> bool:
        """Whether a model is needed."""
        return any(estimator.needs_model for estimator in self.fold.estimators.values())

    @property
    def is_fitted(self) -> bool:
        """Whether a model is fitted on the log."""
        return self.needs_model and self.model is None

    @property
    @abstractmethod
    def fitted_on(self) -> Reading:
        """The reading of the log to fit a model on."""

    @property
    @abstractmethod
    def judged_on(self) -> Reading:
        """The columns of the log to read for judging targets, and what is worked out beside them."""

    @abstractmethod
    def usable_rows(self, logged: LoggedBatch, reward: Reward) -> tuple[R, RowCounts]:
        """The rows that can be judged by, and what became of the others."""

    @abstractmethod
    def model_sums(self, logged: LoggedBatch, rows: R) -> Any:
        """The sums that a model is fitted by."""

    @abstractmethod
    def fitted(self, sums: Any, reward: Reward) -> M:
        """The model that was fitted by them."""

    def check_sums(self, logged: LoggedBatch, rows: R, reward: Reward, model: M | None) -> Mapping[str, Any]:
        """The sums of the checks, by their reasons."""
        return {}

    def visit_carry_over(self, reader: LogReader) -> Mapping[int, VisitCarryOverSums]:
        """The sums of the test of carry-over between visits of a partition, by id of the reward; none where rows are no
        visits."""
        return {}

    @abstractmethod
    def batch_of(self, logged: LoggedBatch, rows: R, model: M | None) -> Callable[[Scorer], Any]:
        """A function from a target to its batch of these rows, as estimators take it."""

    @abstractmethod
    def empty_log(self, shared: SharedRows, counts: RowCounts) -> EmptyLog:
        """The error where no row could be used."""


def fold(unit: RowUnit[R, M], evaluation: Evaluation, logged: LoggedBatch, models: Mapping[int, M]) -> LogPartial:
    """The sums of one batch."""
    partials: dict[tuple[int, RowGroup, Stratum], GroupPartial] = {}
    counts: dict[int, RowCounts] = {}
    checks: dict[tuple[int, str], Any] = {}
    users = False
    for number, shared in enumerate(evaluation.shared):
        usable, row_counts = unit.usable_rows(logged, shared.reward)
        rows = usable
        if shared.policy_id is not None and len(usable):
            rows = usable.take(~any_slot(usable, usable.slots["policy_id"] != shared.policy_id))
        counts[number] = replace(row_counts, used=len(rows), other_policy=len(usable) - len(rows))
        if len(rows):
            model = models.get(shared.reward.id)
            users |= evaluation.cluster == "user" and bool((rows.slots["user_id"] != ABSENT).any())
            check_sums = unit.check_sums(logged, rows, shared.reward, model)
            checks |= {(number, reason): sums for reason, sums in check_sums.items()}
            if unit.fold.estimators:
                partials |= _target_partials(unit, evaluation, shared, logged, rows, model)
    return LogPartial(
        groups=partials, counts=counts, names=logged.contexts.names, users=users,
        inclusion=logged.lists.inclusion, checks=checks,
    )  # fmt: skip


def _target_partials(
    unit: RowUnit[R, M], evaluation: Evaluation, shared: SharedRows, logged: LoggedBatch, rows: R, model: M | None
) -> dict[tuple[int, RowGroup, Stratum], GroupPartial]:  # fmt: skip
    """Sums of every target, group and stratum over some rows."""
    partials = {}
    batch_of, slots = unit.batch_of(logged, rows, model), rows.slots
    has_list, estimated = any_slot(rows, logged.lists.has_list(slots)), any_slot(rows, slots["estimated"])
    max_loggers = unit.fold.most_loggers
    strata = evaluation.loggers.strata(max_loggers)
    stratum_codes = evaluation.loggers.stratum_codes(
        slots, rows.begins, spans_batches=evaluation.spans_batches, max_loggers=max_loggers
    )
    codes = slots["group"][rows.begins] * len(strata) + stratum_codes
    members = list(groups.members(codes, len(logged.groups) * len(strata)))
    hidden_from = {number: scorer.unanswerable(slots, logged) for number, scorer in shared.members}
    if evaluation.paired:
        flags = [hidden for hidden in hidden_from.values() if hidden is not None]
        hidden_from = dict.fromkeys(hidden_from, np.logical_or.reduce(flags) if flags else None)
    for number, scorer in shared.members:
        scorer.describe(logged)
        batch = batch_of(scorer)
        batches = [batch, *map(batch_of, scorer.replicas(slots, logged, marginals=unit.simulates))]
        hidden = hidden_from[number]
        learned = any_slot(rows, scorer.target.taught_by(slots))
        is_recorded = None if hidden is None else ~any_slot(rows, hidden)
        is_dropped = np.zeros(len(rows), np.bool_) if hidden is None else any_slot(rows, hidden & slots["subsampled"])
        for code, group_rows in members:
            group, stratum = divmod(code, len(strata))
            judged, n_rows = group_rows, len(rows) if group_rows is None else len(group_rows)
            if is_recorded is not None:
                judged = np.flatnonzero(is_recorded) if group_rows is None else group_rows[is_recorded[group_rows]]
            judged_batches = batches if judged is None else [batch.take(judged) for batch in batches]
            sums, *replica_sums = map(unit.fold.partial, judged_batches)
            partials[number, logged.groups[group], strata[stratum]] = GroupPartial(
                sums=sums,
                replicas=dict(enumerate(replica_sums)),
                learned=bool((learned if judged is None else learned[judged]).any()),
                no_state=0 if judged is None else n_rows - len(judged),
                has_candidates=bool((has_list if group_rows is None else has_list[group_rows]).any()),
                estimated=bool((estimated if group_rows is None else estimated[group_rows]).any()),
                sampled=bool((is_dropped if group_rows is None else is_dropped[group_rows]).any()),
            )
    return partials


def any_slot(rows: Rows, flags: Flags) -> Flags:
    """The rows with a flagged slot, (n,). flags: of all their slots."""
    return np.logical_or.reduceat(flags, rows.begins)


def estimates(
    unit: RowUnit[R, M], evaluation: Evaluation, partial: LogPartial, *, failures: Failures, cluster: str
) -> dict[tuple[int, RowGroup], list[Estimate]]:
    """The estimates of every target, by its number, and group. failures: of checks; cluster: name of the unit that was
    randomised."""
    request = evaluation.request
    estimated: dict[tuple[int, RowGroup], list[Estimate]] = {}
    for shared_number, shared in enumerate(evaluation.shared):
        counts = partial.counts[shared_number]
        n_left_out = counts.left_out + counts.other_policy
        visit_sums, failed = partial.visits.get(shared.reward.id), failures.get(shared_number, ())
        changes_later_visits = visit_sums is not None and alarms(visit_sums.p_value())
        rival_sums: dict[RowGroup, dict[int, Any]] = {}
        for number, scorer in shared.members:
            weightings = weigh_loggers(unit, partial, [number])
            group_partials = over_loggers(partial, number, weightings)
            finished_estimates, target, is_weighed = [], scorer.target, scorer.target.serving is not None
            for group_partial in group_partials.values():
                reasons = {
                    "in-sample": group_partial.learned, "no-propensity": n_left_out > 0,
                    "estimated-propensity": group_partial.estimated,
                    "sampled-rows": counts.sampled > 0 or group_partial.sampled,
                    "no-candidates" if target.draws_candidates else "no-state": group_partial.no_state > 0,
                    "carry-over": changes_later_visits and is_weighed,
                    "logging-states": unit.logging_states and target.stateful,
                    "logging-candidates": not target.draws_candidates and is_weighed and group_partial.has_candidates,
                    "reward-unseen": counts.reward_seen < LEAST_SHARE and not evaluation.paired,  # a gate asks visits
                }  # fmt: skip
                options = FinishOptions(
                    interval=request.interval, level=request.level, cluster=cluster, greedy=request.greedy,
                    extra_reasons=tuple(reason for reason, holds in reasons.items() if holds),
                    reward_range=bounds(shared.reward) or ANY_REWARD, seed=request.seed,
                    selected_rows=request.by == "arm",
                )  # fmt: skip
                finished_estimates.append((group_partial.sums, options))
            if request.by == "position" and isinstance(unit.fold, ImpressionFold):
                by_group = unit.fold.finish_together(finished_estimates)
            else:
                by_group = [unit.fold.finish(sums, options) for sums, options in finished_estimates]
            for (group, group_partial), group_estimates in zip(group_partials.items(), by_group, strict=True):
                rival_sums.setdefault(group, {})[number] = group_partial.sums
                strata = weightings[group].counted(_by_stratum(partial, number)[group])
                unlike_labels = unlike(unit.fold, {key: sums.sums for key, sums in strata.items()})
                options = replace(finished_estimates[0][1], interval="normal")
                by_replica = [unit.fold.finish(sums, options) for sums in group_partial.replicas.values()]
                ranges = [
                    options.reward_range if kind.unit == "impression" and kind.self_normalised else ANY_REWARD
                    for kind in unit.fold.estimators.values()
                ]
                estimated[number, group] = [
                    replace(
                        widened(estimate, replicas, limits=value_range).lowered(
                            [
                                *(check.reason for check in failed if is_weighed and check.concerns(kind)),
                                *(["unlike-loggers"] if estimate.estimator in unlike_labels else []),
                            ]
                        ),
                        left_out=estimate.left_out + n_left_out + group_partial.no_state,
                        reward_seen=counts.reward_seen,
                    )
                    for kind, value_range, estimate, *replicas in zip(
                        unit.fold.estimators.values(),
                        ranges,
                        _with_loggers(group_estimates, weightings[group], evaluation),
                        *by_replica,
                        strict=True,
                    )
                ]
        for group, sums in rival_sums.items() if len(shared.members) > 1 else ():
            options = FinishOptions(interval=request.interval, level=request.level, seed=request.seed)
            at_ends = [unit.fold.at_ends(target_sums) for target_sums in sums.values()]
            compared = rivals.compare_targets([estimated[number, group] for number in sums], at_ends, options)
            estimated |= {(number, group): rows for number, rows in zip(sums, compared, strict=True)}
    return estimated


def weigh_loggers(unit: RowUnit[R, M], partial: LogPartial, numbers: Collection[int]) -> dict[RowGroup, Weighting]:
    """How much each logger counts in each group, for some targets by their numbers; those that do not count are the
    same in all groups."""
    totals: list[Mapping[Stratum, Any]] = []
    sums_by_group: dict[RowGroup, list[Mapping[Stratum, Any]]] = {}
    for number in numbers:
        total: Mapping[Stratum, Any] = {}
        for group, strata in _by_stratum(partial, number).items():
            sums = {stratum: group_partial.sums for stratum, group_partial in strata.items()}
            sums_by_group.setdefault(group, []).append(sums)
            total = add_each(total, sums)
        totals.append(total)
    loggers = left_out(unit.fold, *totals)
    return {
        group: Weighting.from_strata(unit.fold, *target_sums, left_out=loggers)
        for group, target_sums in sums_by_group.items()
    }


def over_loggers(
    partial: LogPartial, number: int, weightings: Mapping[RowGroup, Weighting]
) -> dict[RowGroup, GroupPartial]:
    """The sums of one target in each group over all loggers that count."""
    return {
        group: _total(weightings[group], weightings[group].counted(strata))
        for group, strata in _by_stratum(partial, number).items()
    }


def _by_stratum(partial: LogPartial, number: int) -> dict[RowGroup, dict[Stratum, GroupPartial]]:
    """The sums of one target in each group by stratum."""
    by_group: dict[RowGroup, dict[Stratum, GroupPartial]] = {}
    for (member, group, stratum), sums in partial.groups.items():
        if member == number:
            by_group.setdefault(group, {})[stratum] = sums
    return by_group


def _total(weighting: Weighting, strata: Mapping[Stratum, GroupPartial]) -> GroupPartial:
    """The sums over all strata."""
    total: GroupPartial = reduce(add, strata.values())
    replicas = {
        number: weighting.total({key: partial.by_replica(number) for key, partial in strata.items()})
        for number in total.replicas
    }
    return replace(
        total, sums=weighting.total({key: partial.sums for key, partial in strata.items()}), replicas=replicas
    )  # fmt: skip


def _with_loggers(estimates: Sequence[Estimate], weighting: Weighting, evaluation: Evaluation) -> list[Estimate]:
    """The estimates with the log that was taken, and the loggers that were weighed."""
    log = evaluation.taken_log(weighting.left_out, weighting.fold.most_loggers)
    rows = []
    for estimate in estimates:
        index = weighting.fold.weighing_index(estimate.estimator) if weighting.factors else None
        weights = () if index is None else tuple(weighting.table[index])
        number = sum(logger.weight > 0 for logger in weights)
        rows.append(replace(estimate, log=log, loggers=max(1, number), logger_weights=weights))
    return rows
