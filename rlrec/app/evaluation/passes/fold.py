"""This module sums up the log and makes estimates from the sums, for every kind of rows. `fold_batch` sums each batch,
`+` adds the sums of batches, and `estimates` turns the sums into estimates.

A RowUnit (impressions, slates or sessions) defines which rows of a batch are used and how a target weighs them.
Everything else is the same for all. The functions here read no store and have no side effects. The sums of batches
can be added in any order, and the log may be split between any two sessions. The results are then equal up to
rounding, and identical if the sums are added in the order of the partitions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np

from rlrec.app.evaluation.checks import Check, CheckedRows, Failures
from rlrec.app.evaluation.passes.log_reader import LogReader, Reading
from rlrec.app.evaluation.passes.request import EmptyLog, Evaluation, SharedRows
from rlrec.app.evaluation.rows import groups, log_rows
from rlrec.app.evaluation.rows.log_rows import ImpressionRows, Inclusion, LoggedBatch, RowGroup
from rlrec.app.evaluation.targets.probabilities import Scorer
from rlrec.app.log import reward_log
from rlrec.app.log.reward_log import UnusedVisits
from rlrec.arrays import Flags, Ids, run_starts
from rlrec.errors import InputError, quantity
from rlrec.ope.checks.dependence import VisitCarryOverSums, is_rejected
from rlrec.ope.sums.base import ImpressionEstimator, LogBatch
from rlrec.ope.units.estimate import ANY_REWARD, Estimate, FinishOptions, LoggerWeight, widen_estimate
from rlrec.ope.units.fold import Fold, ImpressionFold, RowSums, compare_targets
from rlrec.ope.units.strata import Stratum, Weighting, by_logger, disagreeing_estimators, strata_left_out
from rlrec.policy.beliefs.reward import bounds
from rlrec.records import Record, Reward, Sums, add_each
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log.reader import ABSENT

if TYPE_CHECKING:
    from rlrec.app.evaluation.models.reward_models import RewardModel, RewardModelFit, RewardModelSums

MAX_RULED_SHARE = 0.05  # of the visits, which may be left out for rules of a page, or of the pages, for a censored slot
MIN_REWARD_SHARE = 0.9  # of the logged |reward|, which the rows of an estimator must have


class Rows(Protocol):
    """This protocol describes the rows of a batch, which are impressions, slates or visits. slots: the columns of all
    slots of the rows."""

    @property
    def slots(self) -> Columns: ...
    @property
    def begins(self) -> Ids:
        """Return the index of the first slot of each row, (n,)."""

    def __len__(self) -> int: ...
    def take(self, rows: Flags, /) -> Self: ...


R = TypeVar("R", bound=Rows)
M = TypeVar("M")


class RowCounts(UnusedVisits, eq=True):
    """This record counts the rows of a log. The rows are impressions, slates or visits.

    n_used: the rows that enter estimates; other_policy: the usable rows of other policies, which say nothing about
    the policy of an imported log; n_selected: all rows; waiting: the rows whose reward window is still open; size:
    the sum of |reward|; unseen_size: the part of `size` from events of whole slates, which the rows lack."""

    n_used: int = 0
    other_policy: int = 0
    n_selected: int = 0
    size: float = 0.0
    unseen_size: float = 0.0

    @property
    def reward_seen(self) -> float:
        """Return the fraction of the logged |reward| that the rows contain, in [0, 1]."""
        return 1 - self.unseen_size / self.size if self.unseen_size else 1.0


class GroupPartial(Sums, kw_only=True, eq=True):
    """This record has the sums of one target over the rows of one group.

    sums: the sums of the estimators; replicas: the same sums with each part of the target's simulated slates, by the
    number of the part; reasons: every reason for doubt that applies to any of the rows; n_gaps: the number of rows
    for which the target has no probability."""

    sums: Any
    replicas: Mapping[int, Any]
    reasons: frozenset[str]
    n_gaps: int

    def __add__(self, other: Self) -> Self:
        """Return the total of both records. If only one of them has simulated slates, the other is added to the sums of
        every part of these slates."""
        numbers = self.replicas.keys() | other.replicas.keys()
        replicas = {number: self.by_replica(number) + other.by_replica(number) for number in sorted(numbers)}
        return replace(super().__add__(replace(other, replicas={})), replicas=replicas)

    def by_replica(self, number: int) -> Any:
        """Return the sums of the estimators with one part of the simulated slates. number: the number of the part."""
        return self.replicas.get(number, self.sums)

    def scale(self, factors: Mapping[str, float]) -> GroupPartial:
        """Return the sums as if each row were multiplied by a factor.

        factors: the factor of each column of the sums, by name."""
        replicas = {number: sums.scale(factors) for number, sums in self.replicas.items()}
        return replace(self, sums=self.sums.scale(factors), replicas=replicas)


class LogPartial(Sums, kw_only=True, eq=True):
    """This record has the sums of a part of the log. Two such records can be added.

    groups: the sums of each target, by the number of the target, by group and by stratum (loggers that share a
    weight); counts: the counts of rows, by number in `Evaluation.shared_rows`; refusals: a message for each batch
    whose slates cannot be used; names: the fields of the contexts; has_users: whether any used row has a user;
    inclusion: how likely the arms that were shown became candidates; is_offered (a,): whether any decision could
    show each arm, by `ArmTable.index`; checks: the sums of each check, by number in `Evaluation.shared_rows` and by
    reason; visits: the sums of the test whether rewards depend on earlier visits of the person, by the id of the
    reward."""

    groups: Mapping[int, Mapping[RowGroup, Mapping[Stratum, GroupPartial]]] = field(default_factory=dict)
    counts: Mapping[int, RowCounts] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    has_users: bool = False
    inclusion: Inclusion = field(default_factory=Inclusion)
    is_offered: Flags | None = None
    checks: Mapping[tuple[int, str], Any] = field(default_factory=dict)
    visits: Mapping[int, VisitCarryOverSums] = field(default_factory=dict)


class RowUnit(ABC, Generic[R, M], Record, eq=False):
    """A RowUnit is a kind of rows (impressions, slates or sessions) with the estimators that use these rows. A RowUnit
    has no access to the store. R is the type of the rows of a batch, and M is the type of the model that the estimators
    use.

    fold: the estimators for one target; models: the model of each reward, by the id of the reward, which is given
    with the request or fitted; checks: the checks that run on the rows; logging_states: whether targets are
    evaluated in the states that the logger caused; simulates: whether weights may be ratios of marginals, which are
    simulated for targets without a closed form; noun: the name of a row; censored_text: words that say why censored
    rows cannot be used."""

    evaluation: Evaluation
    fold: Fold
    models: Mapping[int, M] = field(default_factory=dict)
    checks: Sequence[Check] = ()
    logging_states: ClassVar[bool] = True
    simulates: ClassVar[bool] = True
    noun: ClassVar[str] = "impression"
    censored_text: ClassVar[str] = "is censored"

    @property
    def needs_model(self) -> bool:
        """Tell whether any estimator needs a model."""
        return any(estimator.needs_model for estimator in self.fold.estimators.values())

    @property
    def needs_fit(self) -> bool:
        """Tell whether models must be fitted to the log."""
        return self.needs_model and not self.models

    @property
    @abstractmethod
    def fit_reading(self) -> Reading:
        """Return which part of the log is read when models are fitted."""

    @property
    @abstractmethod
    def judge_reading(self) -> Reading:
        """Return which part of the log is read when targets are evaluated."""

    @abstractmethod
    def usable_rows(self, batch: LoggedBatch, reward: Reward) -> tuple[R, RowCounts]:
        """Return the rows of a batch that can be used for a reward, and the counts of usable and other rows."""

    @abstractmethod
    def model_sums(self, batch: LoggedBatch, rows: R) -> Any:
        """Return the sums of these rows to which a model can be fitted."""

    @abstractmethod
    def fit_model(self, sums: Any, reward: Reward) -> M:
        """Return the model that is fitted to these sums."""

    def refusal(self, batch: LoggedBatch) -> str | None:
        """Return a message that says why the slates of a batch cannot be used, or None if they can be used."""
        return None

    def check_sums(self, batch: LoggedBatch, rows: R, reward: Reward, model: M | None) -> Mapping[str, Any]:
        """Return the sums of each check over these rows, by the reason of the check."""
        return {}

    def visit_carry_over(self, reader: LogReader) -> Mapping[int, VisitCarryOverSums]:
        """Return sums over one partition for the test whether rewards carry over from one visit of a person to the
        next, by the id of the reward. The mapping is empty if rows are not visits."""
        return {}

    @abstractmethod
    def batch_of(self, batch: LoggedBatch, rows: R, model: M | None) -> Callable[[Scorer], Any]:
        """Return a function that takes the scorer of a target. It returns these rows with the target's weights, as a
        batch for the estimators."""

    def empty_log(self, shared_rows: SharedRows, counts: RowCounts) -> EmptyLog:
        """Return the error for a log without usable rows, which says why no row can be used."""
        if counts.waiting:
            return shared_rows.immature_log(quantity(counts.waiting, self.noun))
        if counts.other_policy:
            name = shared_rows.members[0][1].target.name
            return EmptyLog(f"no {self.noun} of policy {name!r} is selected", hint="widen --log")
        if counts.n_selected:
            message = f"of {quantity(counts.n_selected, self.noun)} selected, each {self.censored_text}"
            return EmptyLog(message, hint="widen --log, or --uncensor")
        return self.evaluation.nothing_selected(self.noun)


def fold_batch(unit: RowUnit[R, M], batch: LoggedBatch) -> LogPartial:
    """Return the sums of one batch of the log. unit: the kind of rows, with its estimators."""
    if (refusal := unit.refusal(batch)) is not None:
        return LogPartial(refusals=(refusal,))
    partials: dict[int, Mapping[RowGroup, Mapping[Stratum, GroupPartial]]] = {}
    counts: dict[int, RowCounts] = {}
    checks: dict[tuple[int, str], Any] = {}
    evaluation, has_users = unit.evaluation, False
    for number, shared_rows in enumerate(evaluation.shared_rows):
        usable_slots, row_counts = unit.usable_rows(batch, shared_rows.reward)
        rows = usable_slots
        if shared_rows.policy_id is not None and len(usable_slots):
            rows = usable_slots.take(~any_slot(usable_slots, usable_slots.slots["policy_id"] != shared_rows.policy_id))
        counts[number] = replace(row_counts, n_used=len(rows), other_policy=len(usable_slots) - len(rows))
        if len(rows):
            model = unit.models.get(shared_rows.reward.id)
            has_users |= evaluation.cluster == "user" and bool((rows.slots["user_id"] != ABSENT).any())
            check_sums = unit.check_sums(batch, rows, shared_rows.reward, model)
            checks |= {(number, reason): sums for reason, sums in check_sums.items()}
            if unit.fold.estimators:
                partials |= _target_partials(unit, shared_rows, batch, rows, model)
    is_offered = np.isin(evaluation.arms.ids, np.concatenate([np.empty(0, np.int64), *batch.eligible.values()]))
    return LogPartial(
        groups=partials, counts=counts, names=batch.contexts.names, has_users=has_users,
        inclusion=batch.lists.inclusion, is_offered=is_offered, checks=checks,
    )  # fmt: skip


def _target_partials(
    unit: RowUnit[R, M], shared_rows: SharedRows, batch: LoggedBatch, rows: R, model: M | None
) -> dict[int, dict[RowGroup, dict[Stratum, GroupPartial]]]:  # fmt: skip
    """Return the sums of these rows for each target, by the number of the target, by group and by stratum (loggers that
    share a weight)."""
    partials: dict[int, dict[RowGroup, dict[Stratum, GroupPartial]]] = {}
    evaluation = unit.evaluation
    batch_of, slots = unit.batch_of(batch, rows, model), rows.slots
    max_loggers = unit.fold.max_loggers
    strata = evaluation.loggers.strata(max_loggers)
    stratum_codes = evaluation.loggers.stratum_codes(
        slots, rows.begins, spans_batches=evaluation.spans_batches, max_loggers=max_loggers
    )
    codes = slots["group"][rows.begins] * len(strata) + stratum_codes
    members = list(groups.group_members(codes, len(batch.groups) * len(strata)))
    has_list, is_estimated = any_slot(rows, batch.lists.has_list(slots)), any_slot(rows, slots["estimated"])
    gaps: dict[int, dict[str, Flags]] = {}  # slots for which a target has no probability, by reason
    for number, scorer in shared_rows.members:
        gap_by_reason = {
            scorer.target.gap_reason: scorer.has_gap(slots, batch), "page-rules": scorer.refuses_page(slots, batch),
        }  # fmt: skip
        gaps[number] = {reason: flags for reason, flags in gap_by_reason.items() if flags.any()}
    if evaluation.is_paired:
        common_gap: dict[str, Flags] = {}
        for reason, flags in chain.from_iterable(target_gap.items() for target_gap in gaps.values()):
            common_gap[reason] = common_gap[reason] | flags if reason in common_gap else flags
        gaps = dict.fromkeys(gaps, common_gap)
    for number, scorer in shared_rows.members:
        scorer.describe(batch)
        target = scorer.target
        is_hidden = np.logical_or.reduce(list(gaps[number].values())) if gaps[number] else None
        batches = [batch_of(scorer), *map(batch_of, scorer.replicas(slots, batch, marginals=unit.simulates))]
        is_taught, is_unknown = any_slot(rows, target.taught_by(slots)), np.zeros(len(rows), np.bool_)
        reasons = {"estimated-propensity": is_estimated}
        if is_hidden is not None:
            is_unknown = any_slot(rows, is_hidden)
            reasons["sampled-rows"] = any_slot(rows, is_hidden & slots["subsampled"])
            reasons |= {reason: any_slot(rows, flags) for reason, flags in gaps[number].items()}
        if target.is_weighed and not target.draws_candidates:
            reasons["logging-candidates"] = has_list
        reasons["in-sample"] = is_taught & ~is_unknown
        if target.narrows:
            reasons["unnarrowed"] = any_slot(rows, slots["policy_id"] != target.policy_id)
        for code, group_rows in members:
            group, stratum = divmod(code, len(strata))
            index = slice(None) if group_rows is None else group_rows
            judged_rows = group_rows if is_hidden is None else np.arange(len(rows))[index][~is_unknown[index]]
            sums, *replica_sums = (
                unit.fold.row_sums(replica if judged_rows is None else replica.take(judged_rows)) for replica in batches
            )
            by_stratum = partials.setdefault(number, {}).setdefault(batch.groups[group], {})
            by_stratum[strata[stratum]] = GroupPartial(
                sums=sums, replicas=dict(enumerate(replica_sums)), n_gaps=int(is_unknown[index].sum()),
                reasons=frozenset(reason for reason, flags in reasons.items() if flags[index].any()),
            )  # fmt: skip
    return partials


def any_slot(rows: Rows, flags: Flags) -> Flags:
    """Tell for each row whether any of its slots has a flag, (n,). flags: a flag for each slot of the rows."""
    return np.logical_or.reduceat(flags, rows.begins)


def estimates(
    unit: RowUnit[R, M], partial: LogPartial, *, failures: Failures, cluster: str
) -> dict[tuple[int, RowGroup], list[Estimate]]:
    """Return the estimates of every target and group, by the number of the target and the group.

    unit: the kind of rows; partial: their sums over the log; failures: the failed checks, by number in
    `Evaluation.shared_rows`; cluster: the name of what is a cluster, such as `user`."""
    evaluation, results = unit.evaluation, dict[tuple[int, RowGroup], list[Estimate]]()
    request = evaluation.request
    for shared_number, shared_rows in enumerate(evaluation.shared_rows):
        options = FinishOptions(
            interval=request.interval, level=request.level, cluster=cluster, greedy=request.greedy,
            reward_range=bounds(shared_rows.reward) or ANY_REWARD, seed=request.seed, selected_rows=request.by == "arm",
        )  # fmt: skip
        rival_sums: dict[RowGroup, dict[int, RowSums]] = {}
        for number, scorer in shared_rows.members:
            target_sums, rows = _target_estimates(
                unit, partial, number, scorer, options,
                counts=partial.counts[shared_number], visit_sums=partial.visits.get(shared_rows.reward.id),
                failed_checks=failures.get(shared_number, ()),
            )  # fmt: skip
            for group, sums in target_sums.items():
                rival_sums.setdefault(group, {})[number] = sums
                results[number, group] = rows[group]
        for group, sums_by_target in rival_sums.items():
            if len(sums_by_target) < 2:
                continue
            estimator_folds = [unit.fold.estimator_folds(sums) for sums in sums_by_target.values()]
            compared_rows = compare_targets(
                [results[number, group] for number in sums_by_target], estimator_folds, options
            )
            results |= {(number, group): rows for number, rows in zip(sums_by_target, compared_rows, strict=True)}
    return results


def _target_estimates(
    unit: RowUnit[R, M], partial: LogPartial, number: int, scorer: Scorer, options: FinishOptions, *,
    counts: RowCounts, visit_sums: VisitCarryOverSums | None, failed_checks: Collection[Check],
) -> tuple[dict[RowGroup, RowSums], dict[RowGroup, list[Estimate]]]:  # fmt: skip
    """Return the sums of one target over all loggers, by group, and the estimates of the target, by group.

    number: the number of the target; counts: the counts of its rows; visit_sums: the sums of the test whether
    rewards depend on earlier visits, or None; failed_checks: the checks that the log fails."""
    evaluation, fold, request = unit.evaluation, unit.fold, unit.evaluation.request
    has_table = not isinstance(request.reward_model, str | None)  # whose file is by arm
    target, is_weighed = scorer.target, scorer.target.is_weighed
    weightings = weigh_loggers(unit, partial, [number])
    totals = over_loggers(partial, number, weightings)
    group_partials = [group for strata in partial.groups[number].values() for group in strata.values()]
    n_unknown = sum(group.n_gaps for group in group_partials if "page-rules" not in group.reasons)
    if target.takes_scores and n_unknown == counts.n_used and not evaluation.is_paired:
        field = target.fields_read[0].removeprefix("@arms.")
        message = f"in every row of the log some arm has no {field}, by which {target.name} ranks"
        raise InputError(message, hint=f"{target.name} is judged on requests that bring it for each arm")
    n_left_out = counts.left_out + counts.other_policy
    are_censored = unit.noun == "page" and counts.left_out > MAX_RULED_SHARE * (counts.left_out + counts.n_used)
    log_reasons = {
        "no-propensity": n_left_out > 0 and not are_censored,
        "censored-pages": are_censored,
        "sampled-rows": counts.sampled > 0,
        "carry-over": is_weighed and visit_sums is not None and is_rejected(visit_sums.p_value()),
        "logging-states": unit.logging_states and target.is_stateful,
        "reward-unseen": counts.reward_seen < MIN_REWARD_SHARE
        and not evaluation.is_paired,  # for a gate, visits cover this
    }
    reasons = tuple(reason for reason, holds in log_reasons.items() if holds)
    reasons += tuple(request.fit_doubts) if target.table else ()
    arguments = [
        (total.sums, replace(options, extra_reasons=(*reasons, *sorted(total.reasons)))) for total in totals.values()
    ]
    if request.by == "position":
        by_group = fold.finish_together(arguments)
    else:
        by_group = [fold.finish(sums, group_options) for sums, group_options in arguments]
    estimates: dict[RowGroup, list[Estimate]] = {}
    for (group, total), group_estimates in zip(totals.items(), by_group, strict=True):
        weighting = weightings[group]
        missing_loggers = weighting.absent_loggers
        unlike_labels = disagreeing_estimators(
            ends for logger, ends in weighting.loggers.items() if logger not in missing_loggers
        )
        estimates[group] = []
        wider_estimates = _with_replicas(fold, total, group_estimates, options)
        for kind, estimate in zip(fold.estimators.values(), wider_estimates, strict=True):
            doubts = [check.reason for check in failed_checks if is_weighed and check.concerns(kind)]
            doubts += ["unlike-loggers"] if estimate.estimator in unlike_labels else []
            is_cut = kind.unit == "session" and "page-rules" in total.reasons
            doubts += (
                ["ruled-visits"] if is_cut and total.n_gaps > MAX_RULED_SHARE * (total.n_gaps + estimate.n) else []
            )
            doubts += request.fit_doubts if kind.needs_model and kind.unit == "impression" and has_table else ()
            logger_weights: tuple[LoggerWeight, ...] = ()
            if weighting.factors and kind.uses_weights:
                index = list(fold.estimators).index(estimate.estimator)
                logger_weights = tuple(
                    replace(logger_weight, is_target=weighting.loggers[logger_weight.version][index].is_logged)
                    for logger_weight in weighting.table[list(fold.weighings).index(kind.prefix)]
                )
            estimates[group].append(
                replace(
                    estimate.with_reasons(doubts),
                    left_out=estimate.left_out + n_left_out + total.n_gaps, reward_seen=counts.reward_seen,
                    log=evaluation.taken_log(missing_loggers, fold.max_loggers), logger_weights=logger_weights,
                    loggers=max(1, sum(logger.weight > 0 for logger in logger_weights)),
                )
            )  # fmt: skip
    return {group: total.sums for group, total in totals.items()}, estimates


def _with_replicas(
    fold: Fold, total: GroupPartial, estimates: Sequence[Estimate], options: FinishOptions
) -> Sequence[Estimate]:  # fmt: skip
    """Return the estimates of a group with wider intervals, which include the error of simulated slates. total: the
    sums of the group."""
    if not total.replicas:
        return estimates
    replicas = [fold.finish(sums, replace(options, interval="normal")) for sums in total.replicas.values()]
    return [
        widen_estimate(estimate, replica_estimates, limits=estimator_fold.limits(options.reward_range))
        for estimate, estimator_fold, *replica_estimates in zip(
            estimates, fold.estimator_folds(total.sums), *replicas, strict=True
        )
    ]


def weigh_loggers(unit: RowUnit[R, M], partial: LogPartial, numbers: Collection[int]) -> dict[RowGroup, Weighting]:
    """Return the weights of the loggers in each group, for the targets with these numbers together. The same strata
    (loggers and halves of their rows) are left out in all groups. In a result, `loggers` has the estimators of each
    logger alone, for the first target."""
    totals: list[Mapping[Stratum, Any]] = []
    sums_by_group: dict[RowGroup, list[Mapping[Stratum, Any]]] = {}
    for number in numbers:
        total: Mapping[Stratum, Any] = {}
        for group, strata in partial.groups[number].items():
            sums = {stratum: group_partial.sums for stratum, group_partial in strata.items()}
            sums_by_group.setdefault(group, []).append(sums)
            total = add_each(total, sums)
        totals.append(total)
    no_support, weightings = strata_left_out(unit.fold, *totals), {}
    for group, target_sums in sums_by_group.items():
        weighting = Weighting.from_strata(unit.fold, *target_sums, left_out=no_support)
        weightings[group] = replace(weighting, loggers=by_logger(unit.fold, target_sums[0]))
    return weightings


def over_loggers(
    partial: LogPartial, number: int, weightings: Mapping[RowGroup, Weighting]
) -> dict[RowGroup, GroupPartial]:
    """Return the sums of one target in each group, over all loggers with a positive weight.

    number: the number of the target; weightings: the weights of the loggers in each group."""
    return {group: weightings[group].total(strata) for group, strata in partial.groups[number].items()}


# -- impressions: every shown slot is a row with a weight of its own; checks use these rows, too --


class ImpressionUnit(RowUnit[ImpressionRows, "RewardModel"], eq=False):
    """An ImpressionUnit is a kind of rows in which a row is an impression (one slot)."""

    fold: ImpressionFold

    @classmethod
    def prepare(
        cls, unit: Unit, evaluation: Evaluation, estimators: Mapping[str, ImpressionEstimator], checks: Sequence[Check]
    ) -> Self:
        """Return the impressions with these estimators and checks, and with the position curve and the table of
        rewards that the request names. Raise InputError for an unknown curve, and for a table that does not fit the
        catalogue."""
        request, curve, table = evaluation.request, None, None
        if request.position is not None:
            from rlrec.app.evaluation.models.reward_models import position_curve

            curve = position_curve(unit, request.position)
        if (source := request.reward_model) is not None:
            from rlrec.app.evaluation.models.reward_models import read_table

            examination = () if curve is None else curve.examination
            table = read_table(source, by=request.reward_model_by, arms=evaluation.arms, examination=examination)
        fold = ImpressionFold(estimators=estimators, spans_batches=evaluation.spans_batches, curve=curve)
        models = {} if table is None else dict.fromkeys(evaluation.rewards, table)
        return cls(evaluation=evaluation, fold=fold, models=models, checks=checks)

    @cached_property
    def fit(self) -> RewardModelFit:
        """Return the object that fits reward models to the log."""
        from rlrec.app.evaluation.models.reward_models import RewardModelFit

        evaluation, curve = self.evaluation, self.fold.curve
        return RewardModelFit(
            arms=evaluation.arms, positions=evaluation.extent.positions,
            examination=() if curve is None else curve.examination, columns=evaluation.request.reward_model_hash,
        )  # fmt: skip

    @property
    def fit_reading(self) -> Reading:
        return Reading(columns=log_rows.FIT_COLUMNS, targets=False)

    @property
    def judge_reading(self) -> Reading:
        return Reading(columns=self.evaluation.judged_columns)

    def usable_rows(self, batch: LoggedBatch, reward: Reward) -> tuple[ImpressionRows, RowCounts]:
        rows, n_immature = log_rows.usable_rows(batch.log, reward, now=self.evaluation.now)
        counts = RowCounts(n_selected=len(batch.log), waiting=n_immature)
        events = batch.log.events
        if not len(rows) or reward.weights.keys().isdisjoint(events["kind"][events["position"] == 0].tolist()):
            return rows, counts
        first_slots = run_starts(rows.slots["decision_id"])
        page_reward = reward_log.page_events(batch.log, reward, rows.slots["decision_id"][first_slots])
        keep = rows.slots["keep_probability"]
        unseen_size = float(np.abs(page_reward / keep[first_slots]).sum())
        return rows, replace(
            counts, size=float(np.abs(rows.reward / keep).sum()) + unseen_size, unseen_size=unseen_size
        )

    def model_sums(self, batch: LoggedBatch, rows: ImpressionRows) -> RewardModelSums:
        return self.fit.sums(rows, batch.contexts)

    def fit_model(self, sums: RewardModelSums, reward: Reward) -> RewardModel:
        return self.fit.finish(sums, reward)

    @property
    def needs_model(self) -> bool:
        """Tell whether any estimator or any check needs a model."""
        return any(check.needs_model for check in self.checks) or super().needs_model

    def check_sums(
        self, batch: LoggedBatch, rows: ImpressionRows, reward: Reward, model: RewardModel | None
    ) -> Mapping[str, Any]:
        evaluation = self.evaluation
        data = CheckedRows(
            batch=batch, arms=evaluation.arms, extent=evaluation.extent, cluster=evaluation.cluster,
            rows=rows, reward=reward, model=model, people=evaluation.people,
        )  # fmt: skip
        sums = ((check.reason, check.sums(data)) for check in self.checks)
        return {reason: check_sums for reason, check_sums in sums if check_sums is not None}

    def batch_of(
        self, batch: LoggedBatch, rows: ImpressionRows, model: RewardModel | None
    ) -> Callable[[Scorer], LogBatch]:
        values = model.rows(rows, batch.contexts) if model is not None and super().needs_model else None
        return lambda scorer: scorer.log_batch(rows=rows, batch=batch, values=values)
