"""This module replays kinds and their parameters over one log. Each candidate learns from the log block by block, and
is evaluated on later blocks.

Blocks are stretches of time with about equal numbers of decisions. What a candidate has learned is fixed before a
block begins, and the log's draws in the block have known probabilities. Weights are therefore exact for any logger,
even a logger that learns. No row evaluates a candidate that has learned from this row.

Source: Blum, Kalai & Langford 1999 (progressive validation), on weighted rows."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import prod
from typing import Any, NamedTuple, TypedDict

import numpy as np

from rlrec import policy as kinds
from rlrec.app.distributions import designs
from rlrec.app.evaluation.passes import estimates
from rlrec.app.evaluation.passes.estimates import EstimateRow
from rlrec.app.evaluation.passes.passes import IN_PROCESS, Workers
from rlrec.app.evaluation.passes.request import EmptyLog
from rlrec.app.evaluation.passes.request import Request as EvaluationRequest
from rlrec.app.evaluation.targets.learning_targets import LearningTarget, time_blocks
from rlrec.app.evaluation.targets.targets import BUILT_IN
from rlrec.app.imports.log_stores import PREFIX
from rlrec.app.inputs import filters, lookup, parameters
from rlrec.app.inputs.arm_rules import arm_lists
from rlrec.app.judging import evaluate
from rlrec.app.learning import slot_statistics
from rlrec.app.learning.slot_statistics import BeliefFold, Totals
from rlrec.app.learning.warm_start import expand, fit_design, shares_weights
from rlrec.app.log import reward_log
from rlrec.arrays import Ids
from rlrec.errors import CheckFailed, InputError
from rlrec.ope.checks.reasons import VERDICTS
from rlrec.policy.contexts.encoder import Design
from rlrec.records import Reward, Version
from rlrec.sentences import DEFAULT_REWARD
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.log import selected
from rlrec.store.log.events import RETURN
from rlrec.store.log.selected import Selection
from rlrec.store.policies import policies
from rlrec.times import format_time

N_BLOCKS, N_TAUGHT = 10, 3  # of the log, and those at the start that only teach
MAX_CANDIDATES = 40  # candidates, at most
COLUMNS = ("context_id", "position", "propensity", "marginal")


@dataclass(frozen=True, kw_only=True)
class Request:
    """This record holds the arguments of `sweep`.

    kinds: the names of kinds, joined by commas; params: values of parameters, each as KIND:NAME=V1,V2; features: the
    features of contexts as JSON; features_path: the file of these features; log: a filter; cluster: the unit within
    which rows may depend on each other, as in `evaluate`."""

    kinds: str
    params: Sequence[str] = ()
    features: Mapping[str, Any] | None = None
    features_path: str = "FILE"
    reward: str | None = None
    log: str | None = None
    level: float = 0.95
    cluster: str | None = None


# candidates: best first, rows of `evaluate` with their kind (None for `uniform`) and params; begins: of the evaluated
# blocks; command: creates the best one; same: policies with its kind, parameters and reward; same_kind: others with its
# kind, each with its parameters; returns: whether the reward weighs them.
Result = TypedDict("Result", {
    "reward": str, "log": str | None, "decisions": int, "blocks": int, "begins": list[str], "served": float | None,
    "best": str, "command": str | None, "same": list[str], "same_kind": dict[str, str],
    "returns": bool, "candidates": list[dict[str, Any]],
})  # fmt: skip


class Candidate(NamedTuple):
    """A Candidate is a kind with values of its parameters, which is to be evaluated.

    texts: the values of parameters as the user typed them, by name; version: a version with this kind and these
    parameters, which is not stored."""

    kind: str
    texts: Mapping[str, str]
    version: Version

    @property
    def name(self) -> str:
        return " ".join([self.kind, *(f"{name}={text}" for name, text in self.texts.items())])

    def is_like(self, version: Version) -> bool:
        """Tell whether a version has the kind and parameters of this candidate, and learns the same reward."""
        return version.policy[2:4] == self.version.policy[2:4] and version.reward.id == self.version.reward.id

    @property
    def count_key(self) -> Any:
        """Return a key for sharing sums. Candidates with equal keys add the same numbers to their beliefs for every
        slot."""
        policy = designs.policy_of(self.version)
        if policy.is_contextual and getattr(policy, "expands_model", False):  # around its own weights
            return self.name
        counts = type(policy).statistics, policy.needed_columns, policy.width, policy.examination
        return (*counts, repr(self.version.parameters))


class Moment(NamedTuple):
    """A Moment is what a candidate has learned when a block begins: the parameters of its version, and the sums of its
    belief."""

    parameters: Mapping[str, Any]
    sums: Totals


def sweep(
    store: Store, request: Request, workers: Workers = IN_PROCESS
) -> tuple[Result, list[EstimateRow], list[EstimateRow]]:
    """Estimate what each candidate would have earned. Return the result, one estimate for each candidate (best first),
    and the estimates by all estimators.

    Raises InputError for unknown names and impossible values, CheckFailed for a log too short to learn from and
    evaluate on."""
    if (request.log or "").startswith(PREFIX):
        raise InputError("a sweep learns from the log of a store", hint="`rlrec import-log` brings it into one")
    with store.read() as unit, bulk.alongside(unit), workers.open_engine(store, unit.now) as engine:
        reward = lookup.reward(unit, request.reward)
        selection = filters.selection(unit, request.log)
        candidates = candidates_of(unit, request, reward, selection)
        if not selected.extent(unit, selection).decisions:
            raise EmptyLog("no decision is selected", hint="widen --log, or serve with `rlrec recommend`")
        blocks = time_blocks(unit, selection, N_BLOCKS)
        moments = learn(unit, candidates, blocks, reward)
        starts = np.array([block.since for block in blocks[N_TAUGHT:]])
        targets = [learning_target(unit, candidate, moments[candidate.count_key], starts) for candidate in candidates]
        evaluation_request = EvaluationRequest(
            targets=BUILT_IN, reward=reward.name, log=filters.join_filters(filters.ALL, request.log),
            level=request.level, cluster=request.cluster,
        )  # fmt: skip
        rows = estimates.answer(
            unit, evaluation_request, estimates.estimators(evaluation_request),
            replace(selection, since=int(starts[0])), engine, candidates=targets,
        )  # fmt: skip
        names, ranking = {policy.name for policy in policies.all_policies(unit)}, _rank_targets(rows)
        live = [policy.version for policy in policies.live(unit, names).values()]
        counts = selected.version_counts(unit, replace(selection, since=int(starts[0])))
        total, versions = sum(counts.values()), policies.by_id(unit, list(counts))
        shares: dict[str | None, float] = {versions[key].reference: number / total for key, number in counts.items()}
        rivals = evaluate.former_rivals(unit, selection, {ranking[0].name: shares}, log=request.log)
        for sentence, log in rivals.values():
            store.notice(f"{sentence}: this command with `--log {shlex.quote(log)}` compares with that")
    if all("no-rows" in row.estimate.reasons for row in ranking):
        hint = "import the log with them, or into a new store with --propensity uniform or fitted"
        raise CheckFailed("no selected decision has the probability of its draw", hint=hint)
    by_name, first_row = {candidate.name: candidate for candidate in candidates}, ranking[0]
    best_candidate = by_name.get(first_row.target)
    result: Result = {
        "reward": reward.name, "log": request.log, "decisions": first_row.extent.decisions, "blocks": len(blocks),
        "begins": [*map(format_time, starts.tolist())], "served": first_row.estimate.served, "best": first_row.target,
        "command": best_candidate and creation_command(best_candidate, request, names),
        "returns": RETURN in reward.weights,
        "same": [version.policy.name for version in live if best_candidate and best_candidate.is_like(version)],
        "same_kind": {
            version.policy.name: " ".join(f"{name}={text}" for name, text in parameters.typed_params(version).items())
            for version in live
            if best_candidate and version.policy.base_id is None and version.policy.kind == best_candidate.kind
            and not best_candidate.is_like(version)
        },
        "candidates": [
            {"kind": None, "params": {}, **row.record} if (candidate := by_name.get(row.target)) is None
            else {"kind": candidate.kind, "params": candidate.version.params, **row.record}
            for row in ranking
        ],
    }  # fmt: skip
    return result, ranking, rows


# -- candidates --


def _combinations(request: Request) -> list[tuple[str, dict[str, str]]]:
    """Return every requested kind with each combination of its parameters. The values of parameters are texts, as the
    user typed them."""
    names = [name.strip() for name in request.kinds.split(",")]
    values: dict[str, dict[str, list[str]]] = {}
    for name in names:
        if name in values:
            raise InputError(f"kind {name!r} is named twice", hint="give its parameters by --param KIND:NAME=V1,V2")
        if not kinds.learns_from_slots(name):
            hint = "uniform is judged in any case; `rlrec evaluate` judges policies of other kinds"
            raise InputError(f"kind {name} cannot learn from a log slot by slot", hint=hint)
        values[name] = {}
    for text in request.params:
        kind, _, definition = text.partition(":")
        parameter, _, texts = definition.partition("=")
        if not parameter or not all(texts.split(",")):
            raise InputError(f"--param is {text!r}", hint="write KIND:NAME=V1,V2, such as linucb:alpha=0.5,1")
        if kind not in values:
            raise InputError(f"--param {text!r} names a kind that is not swept", hint=f"--kinds has {', '.join(names)}")
        if parameter in parameters.TIMELESS:
            hint = f"`rlrec simulate drift --kind {kind} --param {definition}` shows what it does"
            raise InputError(f"parameter {parameter!r} tells nothing here: a log teaches without forgetting", hint=hint)
        values[kind][parameter] = [*dict.fromkeys([*values[kind].get(parameter, []), *texts.split(",")])]
    number = sum(prod(map(len, by_parameter.values())) for by_parameter in values.values())
    if number > MAX_CANDIDATES:
        raise InputError(f"{number:,} candidates are more than {MAX_CANDIDATES}", hint="name fewer kinds or values")
    return [
        (kind, dict(zip(by_parameter, combination, strict=True)))
        for kind, by_parameter in values.items() for combination in product(*by_parameter.values())
    ]  # fmt: skip


def candidates_of(unit: Unit, request: Request, reward: Reward, selection: Selection) -> list[Candidate]:
    """Return the candidates of a request. For kinds that read contexts, the design of features is fitted to the log, as
    in `policy create --from-log`."""
    features = {} if request.features is None else parameters.parse_features(request.features)
    candidates, fits = list[Candidate](), dict[bool, Design]()
    for kind, texts in _combinations(request):
        policy = kinds.make(kind, parameters.with_curve(unit, parameters.parse_parameters(kind, texts)))
        policy.check(reward)
        if policy.parsed_budget is not None:
            hint = "sweep it without one; `rlrec policy create` takes it"
            message = f"{kind} has budget={policy.budget}: a log does not tell what it would have spent"
            raise InputError(message, hint=hint)
        params = kinds.values(policy)
        parameters.check_curve(params, reward)
        version = designs.make_draft(kind, params, reward)
        if policy.is_contextual:
            if (is_shared := shares_weights(params)) not in fits:
                fits[is_shared] = fit_design(unit, selection, version, encoders=features, is_shared=is_shared)
            version = replace(version, parameters=fits[is_shared].to_json())
            if fits[is_shared].context.is_sparse:
                raise InputError("features of contexts have too many columns to sweep", hint="hash into fewer columns")
            designs.policy_of(version)  # raises where the model cannot hold so many features
        candidates.append(Candidate(kind, texts, version))
    return candidates


# -- what candidates learn --


def learn(
    unit: Unit, candidates: Sequence[Candidate], blocks: Sequence[Selection], reward: Reward
) -> dict[Any, list[Moment]]:
    """Return what candidates have learned at the beginning of each evaluated block, by the candidates' `count_key`.
    Each block is read once for all candidates."""
    drafts = {candidate.count_key: candidate.version for candidate in candidates}
    sums = {key: Totals() for key in drafts}
    moments = {key: list[Moment]() for key in drafts}
    for number, block in enumerate(blocks[:-1], 1):
        folds = {key: BeliefFold(unit, draft, ordinal=0) for key, draft in drafts.items()}
        for impressions in reward_log.impressions(unit, block, reward, columns=COLUMNS):
            for key, fold in folds.items():
                sums[key] = slot_statistics.add_totals(sums[key], fold.sums(impressions))
        for key, total in sums.items():
            drafts[key] = expand(unit, drafts[key], total) or drafts[key]
            if number >= N_TAUGHT:
                moments[key].append(Moment(drafts[key].parameters, total))
    return moments


def learning_target(unit: Unit, candidate: Candidate, moments: Sequence[Moment], starts: Ids) -> LearningTarget:
    """Return the candidate as a target whose belief changes from block to block.

    moments: what the candidate has learned at the beginning of each evaluated block; starts: the times at which
    these blocks begin."""
    features = designs.arm_features(unit, designs.policy_of(candidate.version))
    makers = [
        partial(
            slot_statistics.distribution_of, unit, replace(candidate.version, parameters=parameters), sums, features
        )
        for parameters, sums in moments
    ]
    return LearningTarget(
        name=candidate.name, reward=candidate.version.reward, serving=makers[-1](), begins=starts, moments=makers,
        arm_lists=arm_lists(unit, candidate.version.policy.params),
    )  # fmt: skip


# -- what candidates earn --


def _rank_targets(rows: Sequence[EstimateRow]) -> list[EstimateRow]:
    """Return one estimate for each target, best first. All are by the estimator whose verdicts are best overall; of
    equally good estimators, by the last. The bounds of lifts hold for all targets together."""
    scores = dict.fromkeys((row.estimate.estimator for row in reversed(rows)), 0)
    for row in rows:
        scores[row.estimate.estimator] += VERDICTS.index(row.estimate.verdict) * (row.estimate.std_error is not None)
    best_label = max(scores, key=lambda label: scores[label])
    best_rows = [
        row if row.estimate.may_be_best is None else replace(row, estimate=replace(
            row.estimate, lift_lower=row.estimate.simultaneous_lower, lift_upper=row.estimate.simultaneous_upper
        )) for row in rows if row.estimate.estimator == best_label
    ]  # fmt: skip
    return sorted(best_rows, key=lambda row: (row.estimate.verdict == "insufficient", -(row.estimate.lift or 0.0)))


def creation_command(candidate: Candidate, request: Request, taken_names: set[str]) -> str:
    """Return the command that creates a policy like this candidate, and lets it learn from the whole log.

    taken_names: the names of existing policies, which the new policy cannot have."""
    names = (candidate.kind, *(f"{candidate.kind}-{number}" for number in range(2, len(taken_names) + 3)))
    words = ["rlrec policy create", next(name for name in names if name not in taken_names), "--kind", candidate.kind]
    words += [f"--param {shlex.quote(f'{name}={text}')}" for name, text in candidate.texts.items()]
    reward = candidate.version.reward.name  # that of the policies, where none was requested
    words += [f"--reward {reward}"] if reward != DEFAULT_REWARD else []
    if request.features is not None and candidate.version.is_contextual:
        words.append(f"--features {shlex.quote(request.features_path)}")
    return " ".join([*words, f"--from-log {shlex.quote(request.log or filters.ALL)}"])
