"""This module defines requests for an evaluation, and the data that all parts of an evaluation share once the names of
a request have been looked up."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rlrec.app.evaluation.rows import groups, log_rows
from rlrec.app.evaluation.rows.loggers import LoggingVersions
from rlrec.app.evaluation.targets import targets
from rlrec.app.evaluation.targets.probabilities import RequestScorer, Scorer
from rlrec.app.evaluation.targets.targets import Target
from rlrec.app.inputs import filters
from rlrec.app.log import partitions
from rlrec.errors import InputError
from rlrec.records import Record, Reward
from rlrec.store import Unit
from rlrec.store.log import imported_data, selected, sessions, settings
from rlrec.store.log.selected import LogExtent, Selection
from rlrec.store.policies import arms, experiments

if TYPE_CHECKING:
    from rlrec.app.inputs.decision_tables import DecisionTable, Source

# tables that have rows for few decisions
SIDE_TABLES = ("candidate_list", "decision_features", "slot_set", "logged_support")


class EmptyLog(InputError):
    """This error says that the log has no rows on which a target could be evaluated. wait_us: how long a decision must
    wait until it can be used, if all selected decisions are too young."""

    def __init__(self, message: str, *, hint: str, wait_us: int | None = None) -> None:
        super().__init__(f"empty log: {message}", hint=hint)
        self.wait_us = wait_us


class Request(Record):
    """This record has the arguments of `evaluate`.

    log: a filter; position: the name of a position curve, for reward models; cluster: `user`, `session` or `row`,
    where None stands for the user if a user is known, else for the session; target_samples: the number of slates to
    simulate for a target whose marginals have no closed form, or 0 to simulate none; sources: the name and the
    source of each target that is not in the store; tables: the table of each such target, by name; temperature: the
    temperature of the softmax over scores; fitted_on: a filter of the decisions that tables were fitted to, or
    `none`; fit_doubts: the reasons for doubt that follow."""

    targets: Sequence[str]
    estimators: str | None = None
    interval: str = "bootstrap-t"
    level: float = 0.95
    cluster: str | None = None
    log: str | None = None
    reward: str | None = None
    gamma: float = 1.0
    by: str | None = None
    greedy: bool = False
    reward_model: Source | DecisionTable = None
    reward_model_by: str | None = None
    reward_model_hash: int = 0
    position: str | None = None
    seed: int = 0
    target_samples: int = 1_000
    sources: Sequence[tuple[str, Source]] = ()
    tables: Mapping[str, DecisionTable] = field(default_factory=dict)
    temperature: float | None = None
    fitted_on: str | None = None
    fit_doubts: Sequence[str] = ()


class SharedRows(Record, eq=False):
    """This record has targets that are evaluated on the same rows with the same reward.

    policy_id: None, or the id of the policy of an imported log, which only its own rows can evaluate; members: for
    each target, its number in the evaluation and its scorer."""

    reward: Reward
    policy_id: int | None
    members: list[tuple[int, Scorer]] = field(default_factory=list)

    def immature_log(self, rows: str) -> EmptyLog:
        """Return the error for a log in which no row is old enough. rows: the number of selected rows, in words."""
        minutes = self.reward.window_us / 60e6
        hint = f"a decision counts when the window of reward {self.reward.name}, {minutes:g} minutes, is over"
        return EmptyLog(f"of {rows} selected, none is mature", hint=hint, wait_us=self.reward.window_us)


class Evaluation(Record, eq=False):
    """This record is a request with all its names looked up. It never changes.

    cluster: what is a cluster, a member of `log_rows.CLUSTERS`; spans_batches: whether a cluster may have rows in
    several batches; now: the time by which rows must be mature; encode: whether features of contexts are needed;
    loggers: the loggers that may get weights; side_tables: the members of SIDE_TABLES that have rows.

    is_paired: whether targets are compared with each other. All are then evaluated only on rows for which every target
    has a probability, without visits that are too long. people: how it is known that each session without a user is
    another person: `stated` by the request or by an experiment by session, `simulated` for decisions that are not
    imported, or None if this is not known."""

    request: Request
    selection: Selection
    extent: LogExtent
    targets: Sequence[Target]
    arms: log_rows.ArmTable
    cluster: str
    spans_batches: bool
    now: int
    encode: bool = False
    loggers: LoggingVersions = field(default_factory=LoggingVersions)
    is_paired: bool = False
    people: str | None = None
    side_tables: frozenset[str] = frozenset()

    @classmethod
    def resolve(
        cls, unit: Unit, request: Request, selection: Selection | None = None, *,
        sides: Sequence[Target] | None = None, candidates: Sequence[Target] = (),
    ) -> Evaluation:  # fmt: skip
        """Look up the log, the targets and the reward that a request names, and return the evaluation. Raise InputError
        for an unknown target or reward.

        selection: the selected log, or None for the log of the request; sides: targets to compare, in place of the
        targets that the request names; candidates: targets beside the named targets."""
        selection = filters.selection(unit, request.log) if selection is None else selection
        named_targets = sides or targets.resolve(
            unit, request.targets, reward=request.reward, greedy=request.greedy, selection=selection,
            tables=request.tables,
        )  # fmt: skip
        all_targets = [*candidates, *named_targets]
        extent = selected.extent(unit, selection)
        by_user = request.cluster in (None, "user")
        spans_batches = by_user and sessions.any_user(unit)
        return cls(
            request=request, selection=selection, extent=extent, targets=all_targets,
            arms=log_rows.ArmTable({arm.id: arm.key for arm in arms.all_arms(unit)}),
            cluster="user" if spans_batches else "session" if by_user else str(request.cluster),
            spans_batches=spans_batches, now=unit.now, is_paired=sides is not None,
            people=_people(unit, request, selection),
            side_tables=imported_data.used_tables(unit, SIDE_TABLES),
            loggers=LoggingVersions()
            if filters.ALL in filters.parse(request.log or "")  # so that each row counts once
            else LoggingVersions.from_log(unit, selection, extent),
        )  # fmt: skip

    def newest(self, unit: Unit, decisions: int) -> Evaluation:
        """Return an evaluation of the newest decisions, without groups and with a fitted model of rewards.

        decisions: the largest number of decisions."""
        selection, extent = self.selection, self.extent
        if extent.decisions > decisions:
            selection = replace(selection, first_id=selected.newest_id(unit, selection, decisions))
            extent = selected.extent(unit, selection)
        request = replace(
            self.request, by=None, interval="normal", position=None, reward_model=None, reward_model_by=None,
            reward_model_hash=0,
        )  # fmt: skip
        side_tables = imported_data.used_tables(unit, SIDE_TABLES)
        return replace(self, request=request, selection=selection, extent=extent, encode=True, side_tables=side_tables)

    @property
    def partitions(self) -> int:
        """Return the number of partitions in which the log is read."""
        return partitions.count_partitions(self.extent.decisions)

    @property
    def fields(self) -> frozenset[str]:
        """Return the names of the context fields that are read, except fields that only loggers depend on."""
        option_fields = (groups.field_of_context(self.request.by), self.request.reward_model_by)
        return frozenset(name for target in self.targets for name in target.fields_read) | {
            name for name in option_fields if name
        }

    @property
    def rewards(self) -> dict[int, Reward]:
        """Return the reward definitions of the targets, by the id of the reward."""
        return {shared_rows.reward.id: shared_rows.reward for shared_rows in self.shared_rows}

    @cached_property
    def shared_rows(self) -> Sequence[SharedRows]:
        """Return the targets in groups that are evaluated on the same rows with the same reward."""
        shared_rows: dict[tuple[int, int | None], SharedRows] = {}
        for number, target in enumerate(self.targets):
            policy_id = target.policy_id if target.serving is None else None
            rows = shared_rows.setdefault(
                (target.reward.id, policy_id), SharedRows(reward=target.reward, policy_id=policy_id)
            )
            options: dict[str, Any] = {"samples": self.request.target_samples, "seed": self.request.seed}
            scorer_type = RequestScorer if target.takes_scores else Scorer
            if target.learns:
                from rlrec.app.evaluation.targets import learning_targets

                scorer_type = learning_targets.scorer_type(target)
            scorer = scorer_type(target, self.arms, **options)
            if target.is_stateful or target.table:
                from rlrec.app.evaluation.targets.state_probabilities import StateScorer, TableScorer

                scorer = StateScorer(target, self.arms, **options)
                if target.table:
                    scorer = TableScorer(target, self.arms, table=target.table, **options)
            if target.draws_candidates and self.request.target_samples:
                from rlrec.app.evaluation.targets.list_probabilities import ListScorer

                scorer = ListScorer(target, self.arms, **options, list_scorer=scorer)
            rows.members.append((number, scorer))
        return list(shared_rows.values())

    @cached_property
    def judged_columns(self) -> list[str]:
        """Return the columns of the log that are needed to evaluate targets on impressions."""
        needed_for = {
            (*log_rows.SAMPLE_COLUMNS, "seed"): any(target.is_sampled or target.table for target in self.targets),
            log_rows.STATE_COLUMNS: any(target.is_stateful for target in self.targets),
            ("variant_id",): self.request.by == "variant",
        }
        further_columns = [name for names, is_needed in needed_for.items() if is_needed for name in names]
        return list(dict.fromkeys([*log_rows.JUDGE_COLUMNS, *further_columns, *self.lesson_columns]))

    @property
    def lesson_columns(self) -> list[str]:
        """Return the columns that tell which rows a target has learned from."""
        return sorted({column for target in self.targets for lesson in target.lessons for column in lesson.columns})

    def taken_log(self, left_out: Collection[str | None], max_loggers: int) -> str | None:
        """Return a filter of the log without the loggers to leave out.

        left_out: the references of these loggers, where None stands for all loggers that share the last weight;
        max_loggers: the largest number of weights."""
        names = list(self.loggers.names.values())
        unnamed_loggers = names[self.loggers.count_named(max_loggers) :] if None in left_out else []
        taken_names = [name for name in names if name not in left_out and name not in unnamed_loggers]
        return filters.with_loggers(self.request.log, taken_names) if taken_names else self.request.log

    def nothing_selected(self, rows: str) -> EmptyLog:
        hint = "widen --log" if self.request.log else "serve with `rlrec recommend`, or bring in a log: import-log"
        return EmptyLog(f"no {rows} is selected", hint=hint)


def _people(unit: Unit, request: Request, selection: Selection) -> str | None:
    """Return how it is known that each session without a user is another person: `stated` by the request or by an
    experiment by session, or `simulated`. Return None if this is not known."""
    if request.cluster in ("session", "row"):
        return "stated"
    if selection.variant_ids is not None:
        by_session = [entry for entry in experiments.all_experiments(unit) if entry.unit == "session"]
        if {*selection.variant_ids} <= {variant.id for experiment in by_session for variant in experiment.variants}:
            return "stated"
    return "simulated" if settings.any_run(unit, "simulate") else None
