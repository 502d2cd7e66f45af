"""This module estimates the rewards that policies would have earned. The estimates are rows of the command's answer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, field, replace
from functools import cached_property, reduce
from math import log
from operator import or_
from statistics import NormalDist
from typing import Any

from rlrec import ope
from rlrec.app.evaluation.checks import CHECKS, Check, LogDrift, find_failures
from rlrec.app.evaluation.passes import fold, passes
from rlrec.app.evaluation.passes.log_reader import LogReader
from rlrec.app.evaluation.passes.passes import MIXED
from rlrec.app.evaluation.passes.request import EmptyLog, Evaluation, Request
from rlrec.app.evaluation.rows import groups
from rlrec.app.evaluation.rows.log_rows import CLUSTERS, Inclusion, RowGroup
from rlrec.app.evaluation.rows.loggers import LoggingVersions
from rlrec.app.evaluation.targets.targets import Target
from rlrec.app.inputs import lookup
from rlrec.app.inputs.arm_rules import allowed_arms
from rlrec.arrays import Flags
from rlrec.compute import Engine
from rlrec.errors import InputError, quantity
from rlrec.ope.checks import verdicts
from rlrec.ope.checks.reasons import LITTLE_DATA, REASONS, in_groups
from rlrec.ope.checks.verdicts import Answer
from rlrec.ope.intervals import intervals
from rlrec.ope.sums.base import Estimator, ImpressionEstimator
from rlrec.ope.units.estimate import COMPARED_ESS, Estimate
from rlrec.policy.contexts.features import check_hash
from rlrec.records import Record, Version, add_up
from rlrec.sentences import (
    DEFAULT_REWARD,
    LOG_PRECISION,
    LOGGED,
    NOUNS,
    Claim,
    approximate,
    percent,
    rounding,
    time_text,
)
from rlrec.store import Unit
from rlrec.store.log import events, selected
from rlrec.store.log.selected import LogExtent, Selection
from rlrec.times import DAY_US

SLOT_FIELDS, SLATE_FIELDS = ("position", "arm"), ("step",)  # of the fields that rows are grouped by
USUAL_FLOOR = 0.05  # the usual one
PAIR_ESTIMATORS = {"pi", "sn-pi"}  # named explicitly, these raise an error where they cannot weigh a page
POWER = 0.8  # of plans: the probability that the lift shows
MIN_NAMED_SHARE = 0.005  # of the weight of the rows, below which a sentence does not name a logger
MAX_NAMES = 3  # loggers that a sentence names at most
MIN_MOVED_SHARE = (
    0.1  # of the weight of the rows, which moves from some loggers to others, above which a sentence says so
)
LIFT_KEYS = "lift", "lift_lower", "lift_upper", "lift_std_error"
UNIT_NOUNS = {"impression": "impression", "session": "visit", "slate": "page"}  # the names that people use
ARM_ESTIMATOR = "snips"  # the default by arm: since the logger chose the arm, the estimator must be self-normalised


class EstimateRow(Record):
    """This record has one estimate of one target in one group.

    version: the number of the version, or None for a built-in target; by: the field of the groups, or None; extent:
    the extent of the log; days: the days from the first decision to the last with a complete reward, or 0 if the log
    only has the time of an import; arms: the number of arms; has_returns: whether the reward counts users who come
    back; spares_gate, sweep_version: as in `Target`; has_later_drift: whether drift shows only together with the
    decisions after the log; origin: where the target's probabilities come from, if not from the store.

    inclusion: how likely the arms of the log became candidates; is_answer: whether this row is the answer about the
    target on slates, if no estimator was requested; new_arms: the keys of the arms that the target may show today but
    no decision of the log could show, about which the estimate says nothing; options: the options of the command, which
    follow-up commands repeat; untaught: a sentence on a target that has learned nothing; changed_at: the time since
    which arms have earned other rewards than before."""

    target: str
    version: int | None
    estimate: Estimate
    reward: str
    by: str | None
    group: RowGroup
    extent: LogExtent
    days: float
    arms: int
    has_returns: bool = False
    spares_gate: bool = False
    sweep_version: Version | None = None
    has_later_drift: bool = False
    origin: str | None = None
    inclusion: Inclusion = field(default_factory=Inclusion)
    is_answer: bool = False
    new_arms: Sequence[str] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    untaught: str | None = None
    changed_at: str | None = None

    @property
    def name(self) -> str:
        """Return the reference of the target: POLICY@VERSION, or the name of a target without a version."""
        return self.target if self.version is None else f"{self.target}@{self.version}"

    @cached_property
    def answer(self) -> Answer:
        """Judge whether the target is better than the log. The answer is "same" if the target would be compared with
        itself."""
        if self.target_loggers:
            return Answer("same", None)
        return self._judge(self.estimate.lift, *self.estimate.lift_bounds, scale=1.0)

    @property
    def judgement(self) -> dict[str, Any]:
        """Return the answer, the verdict and the reasons for doubt, as cells of a table. The verdict and the reasons
        are empty if there is nothing to judge."""
        if self.is_moot:
            return {"answer": "own log" if self.target_loggers else None, "verdict": None, "reasons": []}
        return {"answer": self.answer.answer, "verdict": self.estimate.verdict, "reasons": [*self.estimate.reasons]}

    @property
    def is_moot(self) -> bool:
        """Tell whether there is nothing to judge, because the target is compared only with its own log, or because it
        has learned nothing yet and will change."""
        return bool(self.target_loggers) or self.untaught is not None

    @cached_property
    def is_as_served(self) -> tuple[bool, bool]:
        """Return two flags: whether the bounds of the lift over the log are 0, and whether the estimated value is also
        equal to the mean reward of the log."""
        value, log_mean = self.estimate.value, self.estimate.served
        is_logged = all(bound is not None and abs(bound) <= LOG_PRECISION for bound in self.estimate.lift_bounds)
        has_value = value is not None and log_mean is not None and abs(value - log_mean) <= rounding(log_mean)
        return is_logged, is_logged and has_value

    def plan(self, lift: float) -> dict[str, Any]:
        """Return how much longer the log must be so that a true lift of this size would show with probability POWER. In
        the result, `needed` is the number of further clusters, and `needed_days` the days that they take with the
        present traffic. Both are None if no longer log of this kind can show the lift."""
        value, bounds = self.estimate.lift, self.estimate.lift_bounds
        reach_factor = 1 + NormalDist().inv_cdf(POWER) / NormalDist().inv_cdf((1 + self.estimate.level) / 2)
        new_bounds = [
            None if value is None or bound is None else lift + reach_factor * (bound - value) for bound in bounds
        ]
        answer, n_needed = self._judge(None if value is None else lift, *new_bounds, scale=0.0)
        n_needed = n_needed if answer == "unknown" else 0
        return {"lift": lift, "power": POWER, "needed": n_needed, "needed_days": self._days(n_needed)}

    def plan_sentence(self, lift: float) -> str:
        """Return a sentence that says how much longer the log must be to show a lift."""
        n_needed, days = (self.plan(lift)[name] for name in ("needed", "needed_days"))
        goal = f"a lift of {percent(lift)} % of {self.name}, if it is there, with a chance of {100 * POWER:g} %"
        if not n_needed:
            return f"this log {'cannot tell' if n_needed is None else 'is long enough to tell'} {goal}"
        more = quantity(approximate(n_needed), f"more {NOUNS[self.estimate.cluster]}")
        return f"{more}{'' if days is None else f' ({time_text(days)} of this traffic)'} tell {goal}"

    def _judge(self, lift: float | None, lower: float | None, upper: float | None, *, scale: float) -> Answer:
        estimate = self.estimate
        weights = (estimate.max_weight, estimate.mean_weight)
        is_logger = all(weight is not None and abs(weight - 1) <= LOG_PRECISION for weight in weights)
        reasons = [name for name in estimate.reasons if not (is_logger and name == "no-variation")]
        return verdicts.judge_difference(
            lift, lower, upper, scale=scale, precision=LOG_PRECISION,
            clusters=estimate.clusters, verdict=estimate.verdict, ess=estimate.ess,
            rewards=(estimate.ess or 0.0) * (estimate.reward_share or 0.0), reasons=reasons,
        )  # fmt: skip

    @cached_property
    def claim(self) -> Claim:
        """Return the answer as a `Claim`, which writes it as a sentence. The figures of an insufficient estimate are
        left out."""
        estimate, (answer, n_needed) = self.estimate, self.answer
        claim_fields: dict[str, Any] = {}
        if (estimate.verdict != "insufficient" or answer == "same") and not self.target_loggers:
            claim_fields = {"value": estimate.lift, **dict(zip(("lower", "upper"), estimate.lift_bounds, strict=True))}
        logger = (estimate.log or "").removeprefix("loggers=")  # one or several names
        is_alone = answer == "same" and bool(estimate.logger_weights) and logger != estimate.log and "+" not in logger
        if self.target_loggers:
            others = [name for name in self.target_loggers if name != self.name]
            logger, is_alone = " and ".join(others or self.target_loggers), True
        names = (str(row.version).partition("@")[2].partition("/") for row in estimate.logger_weights if row.is_target)
        if tests := {test for test, slash, _ in names if slash}:
            command = f"rlrec experiment show {max(tests)}"
            claim_fields |= {"way": f"`{command}` compares it"} if self.target_loggers else {"decided_by": command}
        weak_reasons = [
            name for name in estimate.reasons if estimate.verdict == "weak" and REASONS[name].group == "sample"
        ]
        caveats = ["later visits not counted"] * self.has_returns
        caveats += [
            f"{'on little data' if LITTLE_DATA & {*weak_reasons} else 'weak'} ({', '.join(weak_reasons)})"
        ] * bool(weak_reasons)
        return Claim(
            name=self.name, rival=logger if is_alone else self._rival, answer=answer, **claim_fields, needed=n_needed,
            days=self._days(n_needed), cluster=estimate.cluster,
            groups=in_groups(verdicts.doubts_of(estimate.reasons) or estimate.reasons),
            basis=f"per {UNIT_NOUNS[estimate.unit]}", reward="" if self.reward == DEFAULT_REWARD else self.reward,
            is_logger=logger == self.name, has_other_loggers=is_alone,
            caveat=", ".join(caveats),
        )  # fmt: skip

    @property
    def target_loggers(self) -> list[str]:
        """Return the loggers that showed what the target shows, if they drew nearly all rows with a weight above 0. The
        target is then compared with itself. Otherwise return an empty list."""
        return self.estimate.target_loggers

    @property
    def has_served(self) -> bool:
        """Tell whether the target itself served a part of the log."""
        estimate = self.estimate
        versions = {logger.version for logger in estimate.logger_weights}
        return self.name in versions or (estimate.log or "").endswith(f"loggers={self.name}")

    @property
    def _rival(self) -> str:
        """Return words for what the target is compared with. If the rows of some loggers are left out, the words name
        the other loggers. If the loggers' shares of the weight differ much from their shares of the rows, the words
        state the shares."""
        n_rows = sum(logger.rows for logger, _ in self.estimate.logger_shares)
        share_by_logger = {
            logger.version: share for logger, share in self.estimate.logger_shares if share >= MIN_NAMED_SHARE
        }
        has_names = 0 < len(share_by_logger) <= MAX_NAMES and None not in share_by_logger
        if has_names and len(share_by_logger) < len(self.estimate.logger_shares):
            return f"what {' and '.join(map(str, share_by_logger))} logged"
        moved_share = sum(abs(share - logger.rows / n_rows) for logger, share in self.estimate.logger_shares) / 2
        if not moved_share > MIN_MOVED_SHARE:
            return LOGGED
        shares = sorted(share_by_logger.items(), key=lambda item: -item[1])
        mix_text = " and ".join(f"{100 * share:.0f} % {name}" for name, share in shares)
        return f"{LOGGED} (weighed as {mix_text if has_names else 'below'})"

    @property
    def is_explored(self) -> bool:
        """Tell whether the largest weight could also occur under a logger with the usual floor of exploration."""
        steps = {"impression": 1, "slate": self.extent.positions}
        n_slots = steps.get(self.estimate.unit, self.extent.positions * self.extent.steps)
        return log(max(self.estimate.max_weight or 1.0, 1.0)) <= n_slots * log(max(self.arms, 1) / USUAL_FLOOR)

    def _days(self, n_clusters: int | None) -> float | None:
        """Return the number of days in which the traffic of the log brings this many clusters, or None if it is
        unknown."""
        clusters = self.estimate.clusters
        return n_clusters * self.days / clusters if n_clusters is not None and self.days and clusters else None

    @cached_property
    def record(self) -> dict[str, Any]:
        """Return the row as the object that `evaluate --json` prints."""
        row = {"target": self.target, "version": self.version, **asdict(self.estimate), "reward": self.reward}
        row["reasons"] = list(self.estimate.reasons)
        row |= {name: row.pop(name) for name in LIFT_KEYS}  # moved to the end
        answer, n_needed = self.answer
        row |= {"answer": answer, "needed": n_needed, "needed_days": self._days(n_needed)}
        row["reason_groups"] = in_groups(self.estimate.reasons)
        smallest = self.inclusion.smallest if self.inclusion.decisions else None
        further_fields = {"smallest_inclusion": smallest, "origin": self.origin, "new_arms": len(self.new_arms) or None}
        row |= {name: fact for name, fact in further_fields.items() if fact is not None}
        return row if self.by is None else {**row, "by": self.by, "group": self.group.label}


def estimators(request: Request) -> ope.EstimatorChoice:
    """Return the estimators of a request. Raise InputError if they do not fit the other arguments of the request."""
    default_estimators = ARM_ESTIMATOR if request.by == "arm" else ope.DEFAULT
    choice = ope.parse(request.estimators or default_estimators)
    intervals.check_interval(request.interval, request.level, estimators=choice.estimators)
    if not 0 <= request.gamma <= 1:
        raise InputError(f"gamma is {request.gamma:g}", hint="it lies between 0 and 1; 1 discounts nothing")
    if request.cluster is not None and request.cluster not in CLUSTERS:
        raise lookup.unknown("cluster", request.cluster, CLUSTERS, hint=f"one of {', '.join(CLUSTERS)}")
    if request.by == "arm" and not choice.sessions and not choice.slates:
        # rows selected by the chosen arm have a mean weight other than 1, so only self-normalised estimates are valid
        unfit_name = next((name for name, kind in choice.impressions.items() if not kind.is_self_normalised), None)
        if unfit_name is not None:
            raise InputError(
                f"{unfit_name} does not work by arm: the logger chose it", hint=f"use --estimator {ARM_ESTIMATOR}"
            )
        if request.interval == "cressie-read":  # which assumes a mean weight of 1
            raise InputError("interval cressie-read does not exist by arm", hint="use --interval bootstrap-t")
    if ope.CRAM in choice.labels and (len(choice.labels) > 1 or request.by is not None):
        raise InputError("cram works alone, and on a whole log", hint="leave out --by and the other estimators")
    if request.reward_model is not None and not _needs_model(choice.impressions):
        needs_model = [name for name in ope.GROUPS["impression"] if ope.estimator(name).needs_model]
        hint = f"add one of {', '.join(needs_model)} to --estimator"
        raise InputError("--reward-model is given, and no estimator uses one", hint=hint)
    fitting_names = [name for name, kind in (choice.sessions | choice.slates).items() if kind.needs_model]
    if request.reward_model is not None and (conflicts := choice.named_labels.intersection(fitting_names)):
        hint = f"leave out {min(conflicts)}, or ask for it alone"
        raise InputError(f"--reward-model is given, and {min(conflicts)} fits a model of its own", hint=hint)
    if request.position is not None and not _needs_model(choice.impressions):
        hint = "add dm or dr to --estimator; pbm:CURVE names its own"
        raise InputError("--position is given, and no estimator has a reward model that uses it", hint=hint)
    if request.reward_model_hash:
        check_hash("the reward model", request.reward_model_hash)
        if request.reward_model is not None or not _needs_model(choice.impressions):
            hint = "leave out --reward-model, and add dm or dr to --estimator"
            raise InputError("--reward-model-hash is given, and no reward model is fitted to the log", hint=hint)
    if request.reward_model_by is not None and request.reward_model is None:
        raise InputError("--reward-model-by names a field for --reward-model", hint="give --reward-model FILE too")
    for rows, kinds, finer_fields in (
        ("sessions", choice.sessions, (*SLOT_FIELDS, *SLATE_FIELDS)), ("slates", choice.slates, SLOT_FIELDS),
    ):  # fmt: skip
        if kinds and request.by in finer_fields:
            hint = "by policy, version, variant, day or a field of the context, as they are where it begins"
            raise InputError(f"{next(iter(kinds))} judges {rows}, which have no one {request.by}", hint=hint)
    if choice.sessions and request.cluster == "row":
        name = next(iter(choice.sessions))
        raise InputError(f"{name} judges sessions, so --cluster row does not work", hint="use session or user")
    has_pages = request.by not in SLOT_FIELDS and request.interval != "cressie-read"
    return choice.with_answering if has_pages and request.estimators is None else choice


def _needs_model(estimators: Mapping[str, Estimator]) -> bool:
    return any(estimator.needs_model for estimator in estimators.values())


def answer(
    unit: Unit, request: Request, estimators: ope.EstimatorChoice, selection: Selection, engine: Engine | None = None,
    *, candidates: Sequence[Target] = (),
) -> list[EstimateRow]:  # fmt: skip
    """Return an estimate for every target, group and estimator, from one snapshot of the selected decisions. Raise
    EmptyLog if no decision can be used.

    engine: the engine that reads the log in parallel, or None to work in this process; candidates: targets beside
    the targets of the request."""
    evaluation, units, log = prepare(unit, request, estimators.with_companions, selection, candidates=candidates)
    partial_by_unit = passes.sum_log(units, log, engine, require_pages=estimators.names_slates)
    partials = partial_by_unit.values()
    groups.check_field(request.by, frozenset[str]().union(*(partial.names for partial in partials)))
    without_users = evaluation.cluster == "user" and not any(partial.has_users for partial in partials)
    cluster = "session" if without_users else evaluation.cluster
    checks = reduce(or_, (partial.checks for partial in partials), dict[tuple[int, str], Any]())
    present_checks = with_later_checks(unit, evaluation, checks)
    failures = find_failures(present_checks)
    has_later_drift = _has_drift(present_checks) and not _has_drift(checks)
    by_unit = [
        fold.estimates(rows, sums, failures=failures, cluster=cluster)
        for rows, sums in partial_by_unit.items()
        if rows.fold.estimators
    ]
    inclusion = add_up(partial.inclusion for partial in partials)
    is_offered = add_up(partial.is_offered for partial in partials)
    new_arms = [_new_arms(unit, evaluation, target, is_offered) for target in evaluation.targets]
    differing_targets = differing_models(unit, evaluation, estimators, by_unit)
    rows = _rows(
        evaluation, estimators, by_unit, differing_targets, new_arms, inclusion=inclusion, extent=evaluation.extent,
        days=_covered_days(unit, evaluation), has_later_drift=has_later_drift,
    )  # fmt: skip
    if engine is not None and engine.is_mixed:
        return [replace(row, estimate=replace(row.estimate, reasons=(*row.estimate.reasons, MIXED))) for row in rows]
    return rows


def prepare(
    unit: Unit, request: Request, estimators: ope.EstimatorChoice, selection: Selection, *,
    sides: Sequence[Target] | None = None, candidates: Sequence[Target] = (),
) -> tuple[Evaluation, list[fold.RowUnit[Any, Any]], LogReader]:  # fmt: skip
    """Return the resolved request, the kinds of rows that the estimators and checks use, and the reader of the selected
    log. Checks always use impressions, even if the estimators that they affect use other rows.

    sides: targets to compare with each other, in place of the targets that the request names; candidates: targets
    beside the named targets."""
    evaluation = Evaluation.resolve(unit, request, selection, sides=sides, candidates=candidates)
    if ope.CRAM in estimators.impressions:
        from rlrec.app.evaluation.targets import learning_targets

        crammed_targets = [
            learning_targets.cram_target(unit, target, selection, greedy=request.greedy)
            for target in evaluation.targets
        ]
        evaluation = replace(evaluation, targets=crammed_targets, loggers=LoggingVersions())  # all rows count once
    has_pages, kinds = evaluation.extent.positions > 1, estimators.estimators.values()
    checks = [check for check in CHECKS if check.is_possible(evaluation.extent) and any(map(check.concerns, kinds))]
    needs_model = any(check.needs_model for check in checks) or _needs_model(estimators.impressions)
    fits_reward_model = needs_model and request.reward_model is None
    fits_reward_model |= _needs_model({**estimators.sessions, **estimators.slates}) or any(
        check.encodes for check in checks
    )
    evaluation = replace(evaluation, encode=fits_reward_model)
    impressions = fold.ImpressionUnit.prepare(unit, evaluation, estimators.impressions, checks)
    units: list[fold.RowUnit[Any, Any]] = [impressions] if estimators.impressions else []
    if estimators.sessions:
        from rlrec.app.evaluation.passes.sessions import SessionUnit

        units.append(SessionUnit.prepare(unit, evaluation, estimators.sessions))
    if estimators.slates and (estimators.names_slates or has_pages):
        units += _page_units(unit, evaluation, estimators)
    if checks and not estimators.impressions:
        units.append(impressions)
    return evaluation, units, LogReader(unit, evaluation)


def _page_units(
    unit: Unit, evaluation: Evaluation, estimators: ope.EstimatorChoice
) -> Iterator[fold.RowUnit[Any, Any]]:  # fmt: skip
    """Yield the kinds of rows in which a row is a slate: one for the estimators with weights, and one for the
    regression of effects. Raise InputError if the user named the regression of effects and effects cannot be
    estimated."""
    from rlrec.app.evaluation.passes.pages import EffectUnit, SlateUnit
    from rlrec.ope.units.effects import MAX_ARMS, Effects

    effects = {label: kind for label, kind in estimators.slates.items() if isinstance(kind, Effects)}
    weighted_kinds = {label: kind for label, kind in estimators.slates.items() if label not in effects}
    if weighted_kinds:
        require_pairs = bool(PAIR_ESTIMATORS & estimators.named_labels)
        yield SlateUnit.prepare(unit, evaluation, weighted_kinds, require_pairs=require_pairs)
    request, n_arms = evaluation.request, len(evaluation.arms)
    refusals = {
        f"{n_arms:,} arms are more than the {MAX_ARMS} whose effects can be told": n_arms > MAX_ARMS,
        "effects are those of the whole log": request.by is not None,
        "effects reach through a visit: --cluster row is no unit of theirs": request.cluster == "row",
    }
    refusal = next((message for message, is_refused in refusals.items() if is_refused), None)
    if estimators.adds_answering and effects and unit.folder is None:  # if slots have the reward, others answer
        kinds = {kind for target in evaluation.targets for kind in target.reward.weights}
        effects = effects if events.any_of_pages(unit, kinds) else {}
    if effects and refusal is None:
        yield EffectUnit.prepare(evaluation, effects)
    elif effects and estimators.named_labels & effects.keys():
        raise InputError(refusal or "", hint="leave out --by and --cluster row, or use sips, rips or iips")


def _rows(
    evaluation: Evaluation, estimators: ope.EstimatorChoice,
    by_unit: Sequence[Mapping[tuple[int, RowGroup], list[Estimate]]], differing_targets: Collection[int],
    new_arms: Sequence[Sequence[str]], days: Sequence[float], **log_facts: Any,
) -> list[EstimateRow]:  # fmt: skip
    """Return all estimates as rows of the answer, by target and group in the order of the request.

    by_unit: for each kind of rows, its estimates by target and group; differing_targets: the numbers of the targets
    on which models disagree; new_arms, days: the values of these fields of `EstimateRow` for each target; log_facts:
    fields of `EstimateRow` that are the same in all rows."""
    rows = []
    for number, target in enumerate(evaluation.targets):
        target_fields: dict[str, Any] = {
            "target": target.name, "version": target.number, "by": evaluation.request.by,
            "reward": target.reward.name, "has_returns": events.RETURN in target.reward.weights,
            "arms": len(evaluation.arms), "origin": target.table and target.table.origin_text,
            "new_arms": new_arms[number], "spares_gate": target.spares_gate, "sweep_version": target.sweep_version,
            "days": days[number], **log_facts,
        }  # fmt: skip
        for group in groups.sort_groups({group for estimates in by_unit for _, group in estimates}):
            group_estimates = [estimate for estimates in by_unit for estimate in estimates.get((number, group), [])]
            by_label = {
                estimate.estimator: estimate.with_reasons(["models-differ"])
                if number in differing_targets and estimate.max_weight is not None
                else estimate
                for estimate in group_estimates
            }
            answer_labels = _choose_answer(by_label) if estimators.adds_answering else ()
            labels = dict.fromkeys([*answer_labels, *(label for label in estimators.labels if label in by_label)])
            rows += [
                EstimateRow(estimate=by_label[label], group=group, is_answer=label in answer_labels, **target_fields)
                for label in labels
            ]
    return rows


def _covered_days(unit: Unit, evaluation: Evaluation) -> list[float]:
    """Return for each target the number of days that the mature part of the log covers, or 0 if the log only has the
    time of an import. If decisions may be imported, all are mature at once."""
    selection, last_at = evaluation.selection, evaluation.extent.last_at
    if selected.lacks_times(unit, selection):
        return [0.0] * len(evaluation.targets)
    is_imported, days = selected.may_be_imported(unit), dict[int, float]()
    ends = [
        last_at if is_imported else min(last_at, evaluation.now - target.reward.window_us)
        for target in evaluation.targets
    ]
    for end in {*ends}:
        mature_selection = selection if end == last_at else replace(selection, until=end + 1)
        days[end] = max(selected.covered_us(unit, mature_selection), end - evaluation.extent.first_at) / DAY_US
    return [days[end] for end in ends]


def _new_arms(unit: Unit, evaluation: Evaluation, target: Target, is_offered: Flags | None) -> list[str]:
    """Return the keys of the arms that a target may show today but that no decision of the log could show.

    is_offered: for each arm, whether any decision of the log could show it, or None if this is not known."""
    if target.serving is None or is_offered is None:
        return []
    offered_ids = {*evaluation.arms.ids[is_offered].tolist()}
    allowed_ids = allowed_arms(unit, target.serving.version.policy.params)
    return [evaluation.arms.keys[arm] for arm in allowed_ids if arm not in offered_ids]


def _choose_answer(estimates: Mapping[str, Estimate]) -> list[str]:
    """Choose the estimator that answers about a target on slates. Return a list with its label, which is empty if no
    estimator has an estimate. The choice is the first estimator with a sufficient estimate, else the last estimator
    with rows, else the last estimator.

    estimates: the estimate of each estimator, by label."""
    are_slots_enough = all(estimate.reward_seen >= fold.MIN_REWARD_SHARE for estimate in estimates.values())
    labels = [label for label in ope.ANSWERING[are_slots_enough] if label in estimates]
    sufficient_labels = [label for label in labels if estimates[label].verdict != "insufficient"]
    return sufficient_labels[:1] or [label for label in labels if estimates[label].n][-1:] or labels[-1:]


# -- passes over a bounded part of the log that estimates are compared with --

MAX_MODEL_DECISIONS, MAX_NEW_DECISIONS = 20_000, 50_000  # that are read at most
CheckSums = Mapping[tuple[int, str], Any]


def differing_models(
    unit: Unit, evaluation: Evaluation, estimators: ope.EstimatorChoice,
    by_unit: Sequence[Mapping[tuple[int, RowGroup], list[Estimate]]],
) -> set[int]:  # fmt: skip
    """Return the numbers of the targets on which the estimators dr and snips disagree on the newest decisions. The set
    is empty if dr or sndr was requested, since these estimators report the disagreement themselves.

    by_unit: for each kind of rows, its estimates by target and group."""
    has_model = not {"dr", "sndr"}.isdisjoint(kind.name for kind in estimators.impressions.values())
    if has_model or (evaluation.extent.positions > 1 and not estimators.impressions):
        return set()
    if evaluation.request.by is None and evaluation.extent.decisions <= MAX_MODEL_DECISIONS:
        # the newest decisions are all decisions, with the weights of these estimates; with too few effective ones the
        # models are not compared
        ess_by_target = {
            number: row.ess for estimates in by_unit for (number, _), rows in estimates.items() for row in rows
            if row.unit == "impression" and row.ess is not None and row.estimator != ope.CRAM
        }  # fmt: skip
        if len(ess_by_target) == len(evaluation.targets) and max(ess_by_target.values()) < COMPARED_ESS:
            return set()
    newest_evaluation = evaluation.newest(unit, MAX_MODEL_DECISIONS)
    impressions, sums = _sum_impressions(unit, newest_evaluation, ope.parse("dr").impressions)
    differing_targets = set[int]()
    for number in sums.groups:
        (total,) = fold.over_loggers(sums, number, fold.weigh_loggers(impressions, sums, [number])).values()
        if impressions.fold.models_differ(impressions.fold.estimator_folds(total.sums)):
            differing_targets.add(number)
    return differing_targets


def _has_drift(sums: CheckSums) -> bool:
    return any(total.raises_alarm for (_, reason), total in sums.items() if reason == LogDrift.reason)


def with_later_checks(unit: Unit, evaluation: Evaluation, sums: CheckSums) -> CheckSums:
    """Return the sums of the checks, where the check for drift also covers the newest decisions of the store after the
    log. sums: the sums of each check over the log."""
    numbers = {rows.reward.id: number for number, rows in enumerate(evaluation.shared_rows) if rows.policy_id is None}
    targets = [target for target in evaluation.targets if target.is_weighed]
    if not targets or (unit.folder is None and evaluation.selection == Selection()):
        return sums
    with unit.reading(None):  # for decisions stored after the export of a log
        present_sums = _sum_later_checks(unit, replace(evaluation, targets=targets))
    all_sums = dict(sums)
    for (reward_id, reason), newest_sums in present_sums.items():
        key = numbers[reward_id], reason
        if key in all_sums:
            all_sums[key] = all_sums[key].followed_by(newest_sums)
    return all_sums


def _sum_later_checks(unit: Unit, evaluation: Evaluation) -> CheckSums:
    """Return the sums of the check for drift over the newest decisions after the log, by the id of the reward and the
    reason of the check."""
    later_selection = Selection(since=evaluation.extent.last_at + 1, without=evaluation.selection.without)
    if not any(selected.times(unit, later_selection)):
        return {}
    extent = selected.extent(unit, later_selection)
    evaluation = replace(evaluation, selection=later_selection, extent=extent).newest(unit, MAX_NEW_DECISIONS)
    present_sums = _sum_impressions(unit, evaluation, {}, [LogDrift()])[1].checks
    return {(evaluation.shared_rows[index].reward.id, reason): sums for (index, reason), sums in present_sums.items()}


def _sum_impressions(
    unit: Unit, evaluation: Evaluation, estimators: Mapping[str, ImpressionEstimator], checks: Sequence[Check] = ()
) -> tuple[fold.ImpressionUnit, fold.LogPartial]:
    """Return the impressions as a kind of rows with these estimators and checks, and their sums over the log. The sums
    are empty for an empty log."""
    rows = fold.ImpressionUnit.prepare(unit, evaluation, estimators, checks)
    try:
        return rows, passes.sum_log([rows], LogReader(unit, evaluation))[rows]
    except EmptyLog:
        return rows, fold.LogPartial()
