"""Kinds and parameters played over one log: each candidate learns from it block by block, and is judged on later ones.

Blocks are stretches of time, of about as many decisions each: what a candidate has learned is known before a block
begins, and what was shown there was drawn with known probabilities. So weights are exact whatever logged, a policy that
learns too, and no row judges what it taught. Source: Blum, Kalai & Langford 1999 (progressive validation), on weighed
rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from math import prod
from typing import Any, NamedTuple, TypedDict

import numpy as np

from rlrec import policy as kinds
from rlrec.app.distributions import designs
from rlrec.app.distributions.exact import VersionDistribution
from rlrec.app.evaluation.passes import estimates
from rlrec.app.evaluation.passes.estimates import EstimateRow
from rlrec.app.evaluation.passes.passes import IN_PROCESS, Workers
from rlrec.app.evaluation.passes.request import EmptyLog
from rlrec.app.evaluation.passes.request import Request as EvaluationRequest
from rlrec.app.evaluation.targets.learning_targets import LearningTarget
from rlrec.app.evaluation.targets.targets import Target
from rlrec.app.imports.log_stores import PREFIX
from rlrec.app.inputs import filters, lookup, parameters
from rlrec.app.learning import slot_statistics
from rlrec.app.learning.slot_statistics import BeliefFold, Totals
from rlrec.app.learning.warm_start import expand, fit_design, shares_weights
from rlrec.app.log import reward_log
from rlrec.arrays import Array, Ids
from rlrec.errors import CheckFailed, InputError, quantity
from rlrec.ope.checks.reasons import VERDICTS
from rlrec.policy.contexts.contextual import Design
from rlrec.records import Reward, Version
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.log import selected
from rlrec.store.log.events import RETURN
from rlrec.store.log.selected import Selection
from rlrec.store.policies import policies
from rlrec.times import format_time

BLOCKS, TAUGHT = 10, 3  # of the log, and those of them that only teach
MOST = 40  # candidates
COLUMNS = ("context_id", "position", "propensity", "marginal")
BESIDE = "uniform"  # is judged beside the candidates
TIMELESS = ("discount", "window")  # parameters that a log does not teach


@dataclass(frozen=True, kw_only=True)
class Request:
    """Arguments of `sweep`. kinds: names joined by commas; params: KIND:NAME=V1,V2; features: as JSON has them; log: a
    filter; cluster: as of `evaluate`."""

    kinds: str
    params: Sequence[str] = ()
    features: Mapping[str, Any] | None = None
    reward: str | None = None
    log: str | None = None
    level: float = 0.95
    cluster: str | None = None


# A candidate, or `uniform` (kind None). lift: against what was logged on the same rows; its bounds hold for all rows
# together. may_be_best, answer, needed: as of `evaluate`.
SweptRow = TypedDict("SweptRow", {
    "rank": int, "candidate": str, "kind": str | None, "params": dict[str, Any], "value": float | None,
    "lift": float | None, "lift_lower": float | None, "lift_upper": float | None, "may_be_best": bool | None,
    "answer": str, "needed": int | None, "verdict": str, "ess": float | None, "reasons": list[str],
})  # fmt: skip
# candidates: best first; served: what was logged on the judged rows; begins: times at which blocks begin that are
# judged; command: that creates the best one, None where it is `uniform`.
Result = TypedDict("Result", {
    "reward": str, "log": str | None, "estimator": str, "decisions": int, "blocks": int, "begins": list[str],
    "served": float | None, "best": str | None, "command": str | None, "returns": bool, "candidates": list[SweptRow],
})  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A kind with its parameters. texts: as they were typed."""

    kind: str
    texts: Mapping[str, str]
    version: Version

    @property
    def name(self) -> str:
        """The kind with what was typed."""
        return " ".join([self.kind, *(f"{name}={text}" for name, text in self.texts.items())])


@dataclass(eq=False)
class Lesson:
    """Sums of candidates that count the same of every slot. version: one of them as it stands; names: of all; moments:
    the version, arms and their sums at the beginning of each block that is judged."""

    version: Version
    names: list[str] = field(default_factory=list)
    sums: Totals = field(default_factory=dict)
    moments: list[tuple[Version, Ids, Array]] = field(default_factory=list)

    def remember(self) -> None:
        """Keep what is known now."""
        arms = np.array(sorted(arm for _, arm in self.sums), np.int64)
        table = np.array([self.sums[0, arm] for arm in arms.tolist()])
        self.moments.append((self.version, arms, table))


class SweptCandidates(NamedTuple):
    """The result, the estimates of its rows, and those by all estimators."""

    result: Result
    judged: list[EstimateRow]
    rows: list[EstimateRow]


def sweep(store: Store, request: Request, workers: Workers = IN_PROCESS) -> SweptCandidates:
    """Estimates of what each candidate would have earned, best first.

    Raises InputError for what is unknown or cannot be, CheckFailed for a log that cannot teach and judge."""
    if (request.log or "").startswith(PREFIX):
        hint = "`rlrec import-log` brings it into a store, from which the best candidate can learn"
        raise InputError("a sweep learns from the log of a store", hint=hint)
    combinations = _combinations(request)
    with store.read() as unit, bulk.alongside(unit), workers.opened(store, unit.now) as engine:
        reward = lookup.reward(unit, request.reward or "default")
        selection = filters.selection(unit, request.log)
        candidates = _candidates(unit, combinations, request, reward, selection)
        blocks = _blocks(unit, selection)
        lessons = _learn(unit, candidates, blocks, reward)
        begins = np.array([block.since for block in blocks[TAUGHT:]])
        targets = [_target(unit, candidate, lessons, begins, reward) for candidate in candidates]
        evaluation_request = EvaluationRequest(
            targets=[BESIDE], reward=reward.name, log=filters.with_loggers(request.log, [filters.ALL]),
            level=request.level, cluster=request.cluster,
        )  # fmt: skip
        rows = estimates.answer(
            unit, evaluation_request, estimates.estimators(evaluation_request),
            replace(selection, since=int(begins[0])), engine, candidates=targets,
        )  # fmt: skip
        judged = _judged(rows)
        if all("no-rows" in row.estimate.reasons for row in judged):
            hint = "import the log with them, or into a new store with --propensity uniform or fitted"
            raise CheckFailed("no selected decision has the probability of its draw", hint=hint)
        best = next((row.target for row in judged if row.estimate.lift is not None), None)
        command = _command(unit, best, candidates, request) if best else None
    by_name = {candidate.name: candidate for candidate in candidates}
    answer: Result = {
        "reward": reward.name, "log": request.log, "estimator": judged[0].estimate.estimator,
        "decisions": judged[0].extent.decisions, "blocks": len(blocks), "begins": [*map(format_time, begins.tolist())],
        "served": judged[0].estimate.served, "best": best, "command": command, "returns": RETURN in reward.weights,
        "candidates": [_row(number, row, by_name.get(row.target)) for number, row in enumerate(judged, 1)],
    }  # fmt: skip
    return SweptCandidates(answer, judged, rows)


# -- candidates --


def _combinations(request: Request) -> list[tuple[str, dict[str, str]]]:
    """Every kind with each combination of its parameters, as typed."""
    names = [name.strip() for name in request.kinds.split(",")]
    values: dict[str, dict[str, list[str]]] = {}
    for name in names:
        if name in values:
            raise InputError(f"kind {name!r} is named twice", hint="give its parameters by --param KIND:NAME=V1,V2")
        loaded = kinds.load(name)
        if not loaded.online or loaded.stages or name in (kinds.TWO_STAGE, BESIDE, "fixed", *kinds.INTERNAL):
            hint = f"{BESIDE} is judged in any case; `rlrec evaluate` judges policies of other kinds"
            raise InputError(f"kind {name} learns nothing slot by slot from a log", hint=hint)
        values[name] = {}
    for text in request.params:
        kind, colon, definition = text.partition(":")
        parameter, sign, listed = definition.partition("=")
        if not colon or not sign or not parameter or not all(listed.split(",")):
            raise InputError(f"--param is {text!r}", hint="write KIND:NAME=V1,V2, such as linucb:alpha=0.5,1")
        if kind not in values:
            raise InputError(f"--param {text!r} names a kind that is not swept", hint=f"--kinds has {', '.join(names)}")
        if parameter in values[kind]:
            raise InputError(f"parameter {parameter!r} of kind {kind} is given twice", hint="join its values by commas")
        if parameter in TIMELESS:
            hint = f"`rlrec simulate drift --kind {kind} --param {definition}` shows what it does"
            raise InputError(f"parameter {parameter!r} tells nothing here: a log teaches without forgetting", hint=hint)
        values[kind][parameter] = listed.split(",")
    for kind, by_parameter in values.items():
        for parameter, texts in by_parameter.items():
            if len({*texts}) < len(texts):
                raise InputError(f"--param {kind}:{parameter} has a value twice")
    number = sum(prod(map(len, by_parameter.values())) for by_parameter in values.values())
    if number > MOST:
        raise InputError(f"{number:,} candidates are more than {MOST}", hint="name fewer kinds or values")
    return [
        (kind, dict(zip(by_parameter, combination, strict=True)))
        for kind, by_parameter in values.items() for combination in product(*by_parameter.values())
    ]  # fmt: skip


def _candidates(
    unit: Unit, combinations: Sequence[tuple[str, Mapping[str, str]]], request: Request, reward: Reward,
    selection: Selection,
) -> list[Candidate]:  # fmt: skip
    """The candidates, with features as `policy create --from-log` fits them to the contexts of the log."""
    declared = {} if request.features is None else parameters.features(request.features)
    candidates, fitted = list[Candidate](), dict[bool, Design]()
    for kind, texts in combinations:
        policy = kinds.make(kind, parameters.with_curve(unit, parameters.typed(kind, texts)))
        policy.check(reward)
        params = kinds.values(policy)
        parameters.check_curve(params, reward)
        version = designs.unstored(kind, params, reward)
        if policy.contextual:
            shared = shares_weights(params)
            if shared not in fitted:
                fitted[shared] = fit_design(unit, selection, version, declared=declared, shared=shared)
            version = replace(version, parameters=fitted[shared].to_json())
            if fitted[shared].context.is_sparse:
                hint = "hash into fewer columns, or judge a policy that has learned by `rlrec evaluate`"
                raise InputError("features of contexts have too many columns for a sweep", hint=hint)
            designs.policy_of(version)  # refuses more features than its model holds
        candidates.append(Candidate(kind=kind, texts=texts, version=version))
    return candidates


# -- what they learn --


def _blocks(unit: Unit, selection: Selection) -> list[Selection]:
    """The selected decisions by time, in blocks of about as many each. Raises EmptyLog where there is none, CheckFailed
    where too few times are different."""
    decisions = selected.extent(unit, selection).decisions
    if not decisions:
        hint = "serve with `rlrec recommend`, or bring in a log: import-log"
        raise EmptyLog("no decision is selected", hint="widen --log" if selection != Selection() else hint)
    since = {selected.newest_at(unit, selection, -(-decisions * left // BLOCKS)) for left in range(1, BLOCKS)}
    begins = sorted(at for at in since if at is not None)
    if len(begins) < BLOCKS - 1:
        hint = "a sweep learns from what came first, and judges by what came later"
        raise CheckFailed(f"{quantity(decisions, 'decision')} make no {BLOCKS} stretches of time", hint=hint)
    limits = [selection.since, *begins, selection.until]
    return [replace(selection, since=first, until=last) for first, last in pairwise(limits)]


def _learn(unit: Unit, candidates: Sequence[Candidate], blocks: Sequence[Selection], reward: Reward) -> list[Lesson]:
    """Lessons with what is known at the beginning of each block that is judged; every block is read once for all."""
    lessons: dict[Any, Lesson] = {}
    for candidate in candidates:
        policy = designs.policy_of(candidate.version)
        counted = getattr(type(policy), "statistics", None), policy.needs, policy.width, policy.examination
        name: Any = (*counted, repr(candidate.version.parameters))
        if getattr(policy, "expands", False) and policy.contextual:  # around weights of its own
            name = candidate.name
        lessons.setdefault(name, Lesson(candidate.version)).names.append(candidate.name)
    for number, block in enumerate(blocks[:-1], 1):
        folds = [(lesson, BeliefFold(unit, lesson.version, ordinal=0)) for lesson in lessons.values()]
        for impressions in reward_log.impressions(unit, block, reward, columns=COLUMNS):
            for lesson, fold in folds:
                lesson.sums = slot_statistics.add(lesson.sums, fold.sums(impressions))
        for lesson in lessons.values():
            lesson.version = expand(unit, lesson.version, lesson.sums) or lesson.version
            if number >= TAUGHT:
                lesson.remember()
    return [*lessons.values()]


def _target(unit: Unit, candidate: Candidate, lessons: Sequence[Lesson], begins: Ids, reward: Reward) -> LearningTarget:
    """The candidate as it learns."""
    lesson = next(lesson for lesson in lessons if candidate.name in lesson.names)
    features = designs.arm_features(unit, designs.policy_of(candidate.version))
    moments = []
    for learned, arms, sums in lesson.moments:
        version = replace(candidate.version, parameters=learned.parameters)
        start = VersionDistribution(version, designs.policy_of(version), sums=(), prior=(), arm_features=features)
        serving = start.at_moment((), ordinal=0, all_sums=(arms, sums)) if len(arms) else start
        moments.append(Target(name=candidate.name, reward=reward, serving=serving))
    return LearningTarget(
        name=candidate.name, reward=reward, serving=moments[-1].serving, begins=begins, moments=moments
    )


# -- what they earn --


def _judged(rows: Sequence[EstimateRow]) -> list[EstimateRow]:
    """One estimate for each target, by the estimator that can tell of most, of equal ones the last; best first. Bounds
    of lifts are those that hold together."""
    verdicts: dict[str, int] = {}
    for row in rows:
        if row.estimate.std_error is not None or row.estimate.verdict != "insufficient":
            label = row.estimate.estimator
            verdicts[label] = verdicts.get(label, 0) + VERDICTS.index(row.estimate.verdict)
    best = max(reversed(verdicts), key=lambda label: verdicts[label]) if verdicts else rows[-1].estimate.estimator
    judged = [row for row in rows if row.estimate.estimator == best]
    judged.sort(key=lambda row: (VERDICTS.index(row.estimate.verdict) > 0, row.estimate.lift or 0.0), reverse=True)
    return [
        row if row.estimate.may_be_best is None else replace(row, estimate=replace(
            row.estimate, lift_lower=row.estimate.simultaneous_lower, lift_upper=row.estimate.simultaneous_upper
        )) for row in judged
    ]  # fmt: skip


def _row(rank: int, row: EstimateRow, candidate: Candidate | None) -> SweptRow:
    estimate = row.estimate
    answer = row.answer
    return {
        "rank": rank, "candidate": row.target, "kind": None if candidate is None else candidate.kind,
        "params": {} if candidate is None else dict(candidate.version.policy.params), "value": estimate.value,
        "lift": estimate.lift, "lift_lower": estimate.lift_bounds[0], "lift_upper": estimate.lift_bounds[1],
        "may_be_best": estimate.may_be_best, "answer": answer.answer, "needed": answer.needed,
        "verdict": estimate.verdict, "ess": estimate.ess, "reasons": list(estimate.reasons),
    }  # fmt: skip


def _command(unit: Unit, best: str, candidates: Sequence[Candidate], request: Request) -> str | None:
    """The command that creates a candidate, learned from all of the log."""
    candidate = next((candidate for candidate in candidates if candidate.name == best), None)
    if candidate is None:
        return None
    taken = {policy.name for policy in policies.all_policies(unit)}
    names = (candidate.kind, *(f"{candidate.kind}-{number}" for number in range(2, len(taken) + 3)))
    words = ["rlrec policy create", next(name for name in names if name not in taken), "--kind", candidate.kind]
    words += [f"--param {name}={text}" for name, text in candidate.texts.items()]
    words += [f"--reward {request.reward}"] if request.reward not in (None, "default") else []
    words += ["--features FILE"] if request.features is not None and candidate.version.contextual else []
    return " ".join([*words, f"--from-log {request.log or filters.ALL}"])
