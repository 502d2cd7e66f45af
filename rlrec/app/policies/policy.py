"""This module lists the kinds of policies, and creates policies."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np

from rlrec import policy as kinds
from rlrec.app.distributions import designs
from rlrec.app.evaluation.rows import groups
from rlrec.app.inputs import arm_rules, canonical, lookup, parameters
from rlrec.app.inputs.arm_names import ArmNames, members
from rlrec.app.learning import arm_means, belief_versions, graduation
from rlrec.app.learning.warm_start import NO_BELIEF, InitialBelief, warm_start
from rlrec.app.log import lineage
from rlrec.errors import Conflict, InputError, suggest
from rlrec.policy.beliefs.base import Policy
from rlrec.policy.kinds.long_term import LongTerm
from rlrec.policy.slates import page_rules
from rlrec.records import Record, Reward, StoredPolicy, Version
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.database.unit import parse
from rlrec.store.log import settings
from rlrec.store.policies import arms, beliefs, policies

MAX_NAMED = 10  # fields named in a notice
FAR_KL = 0.2  # nats; beyond this a copy differs too much from its source
TEXT_WORDS = 3  # words from which on a value is taken for text rather than a name
DETERMINISTIC = ("ucb", "ucb-tuned", "kl-ucb", "linucb")  # kinds that draw at random only with a floor


class Request(Record):
    """This record has the options of `policy create`. parameters: the text of each parameter, by name; prior: the file
    of a prior; from_log: the filter of a log from which version 1 learns; prior_from, prior_weight: the filter of a log
    for a prior, and its weight in pulls; from_policy: the version that is copied; features: the encoders as JSON."""

    name: str
    kind: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    reward: str = "default"
    prior: str | None = None
    from_log: str | None = None
    prior_from: str | None = None
    prior_weight: float | None = None
    from_policy: str | None = None
    features: Mapping[str, Any] | None = None


class CreatedPolicy(belief_versions.VersionSummary):
    """This record is the answer of `policy create`. kl: for a trained policy that copies a version, the KL divergence
    of version 1 from the copied version, KL(copied || version 1), in nats."""

    created: bool
    kl: NotRequired[float]


KindRow = TypedDict("KindRow", {"kind": str, "parameters": dict[str, Any], "when": str, "what": str})


def list_kinds() -> list[KindRow]:
    """Return a row for each kind, with its parameters, their defaults, and a text that says when to use the kind."""
    rows: list[KindRow] = []
    for kind in kinds.KINDS:
        kind_class = kinds.load(kind)
        purpose = " ".join((kind_class.__doc__ or "").split("\n\n")[0].split())
        rows.append({"kind": kind, "parameters": kinds.parameters(kind), "when": kind_class.purpose, "what": purpose})
    return rows


def create(store: Store, request: Request) -> CreatedPolicy:
    """Create a policy, with version 1 live. A repeated call with the same request changes nothing. Raises Conflict if a
    policy with the same name has another definition."""
    if request.kind in kinds.INTERNAL:
        hint = "`rlrec experiment create NAME --interleave A,B`"
        raise InputError(f"policies of kind {request.kind} are made by experiments", hint=hint)
    source = _source_version(store, request)
    policy = kinds.make(request.kind, _resolve_parameters(store, request, source))
    if isinstance(policy, LongTerm):
        groups.refuse_group(policy.by)
    rules = arm_rules.policy_rules(policy.rules)
    typed_parameters = kinds.values(policy)  # with the present defaults, since a policy never changes
    prior_options = arm_means.options(request.prior_from, request.prior_weight, prior=request.prior)
    prior = {} if request.prior is None else parameters.read_prior(Path(request.prior))
    features = None if request.features is None else parameters.parse_features(request.features)
    if features is not None and not policy.is_contextual:
        raise InputError(f"kind {request.kind} reads no context", hint="leave out --features, or use linucb, say")
    definition = {
        "kind": request.kind,
        "params": typed_parameters,
        "reward": request.reward,
        "prior": canonical.digest_of({key: list(pair) for key, pair in prior.items()}).hex(),
        "from_log": request.from_log,
        **prior_options,
        **({} if source is None else {"from_policy": request.from_policy}),
        **({} if features is None else {"features": {side: encoder.spec() for side, encoder in features.items()}}),
    }
    if request.from_log is not None and not policy.learns_online and not policy.is_contextual:
        hint = f"leave it out, and learn afterwards: `rlrec policy rebuild {request.name} --log FILTER`"
        raise InputError(f"kind {request.kind} takes nothing from a log when it is made", hint=hint)
    if prior or prior_options:
        _check_prior(store, policy, request.kind, typed_parameters)
    with store.read() as unit, bulk.alongside(unit) if request.from_log or prior_options else nullcontext():
        belief, is_new = NO_BELIEF, policies.by_name(unit, request.name) is None
        n_removals = settings.get(unit).removals
        ArmNames(unit, rules.names).find(rules.names, field="param")  # raises for unknown names
        if is_new:
            encoders = features if source is None else graduation.encoders(source) | (features or {})
            belief = warm_start(
                unit, request.kind, typed_parameters, encoders, reward_name=request.reward, from_log=request.from_log
            )
        if is_new and source is None and request.from_log is not None and request.kind == graduation.KIND:
            from rlrec.app.training import log_copy

            reward = lookup.reward(unit, request.reward)
            belief = log_copy.copy_log(unit, belief, typed_parameters, reward, request.from_log)
        if is_new and source is not None:
            belief = graduation.graduate(unit, source, belief, typed_parameters)
        if is_new and prior_options:
            draft = designs.make_draft(request.kind, typed_parameters, lookup.reward(unit, request.reward))
            prior, record = arm_means.prior_from_log(unit, draft, **prior_options)
            belief = replace(belief, record={**belief.record, **record})

    def work(unit: Unit) -> CreatedPolicy:
        stored_policy = policies.by_name(unit, request.name)
        if stored_policy is not None:
            return _existing_answer(unit, stored_policy, definition)
        settings.lock_removals(unit, n_removals)
        lookup.refuse_route_name(unit, request.name)
        definition_of_reward = lookup.reward(unit, request.reward)
        policy.check(definition_of_reward)
        parameters.check_budget(unit, policy)
        parameters.check_page_rules(unit, policy.rules)
        _check_layout(unit, policy)
        parameters.check_curve(typed_parameters, definition_of_reward)
        return _store_policy(unit, request, typed_parameters, definition, definition_of_reward, prior, belief)

    answer = store.write(work, repeatable=True)
    if not answer["created"]:
        return answer
    parameters.notice_other_reward(store, typed_parameters, request.reward)
    parameters.notice_page_rules(store, policy.rules)
    if rules.kinds:
        with store.read() as unit:
            arm_rules.notice_unseen_kinds(store, unit, rules.kinds)
    if answer.get("kl", 0.0) > FAR_KL:
        store.notice(
            f"version 1 is live, but serves differently from what it was copied from (KL {answer['kl']:.2g} nats): "
            f"compare it by `rlrec evaluate {request.name}` before a route leads to it"
        )
    fitted_encoder = (
        belief.parameters.get("context") if request.from_log and "context" not in (features or {}) else None
    )
    if fitted_encoder is not None:
        names = [*fitted_encoder["fields"]]
        fields = ", ".join(names[:MAX_NAMED]) or "nothing: the log has no field to fit"
        store.notice(
            f"reads of contexts {fields}{f' and {len(names) - MAX_NAMED} more' if len(names) > MAX_NAMED else ''}"
        )
        for name, declaration in fitted_encoder["fields"].items():
            values = declaration["values"] if declaration["type"] == "category" else []
            if 2 * sum(len(value.split()) >= TEXT_WORDS for value in values) > len(values):
                hint = f'{{"{name}": {{"text": 65536}}}} in the fields of --features reads their words'
                store.notice(f"a text of {name} counts as one value; {hint}")
    if request.kind == graduation.KIND and request.from_log and source is None and "kl" not in answer:
        store.notice("version 1 is uniform: the log has no session that has ended, with propensities, to copy")
    has_no_features = features is None and request.from_log is None and not (source and source.is_contextual)
    if policy.is_contextual and has_no_features:
        store.notice(
            "no features are named: contexts are hashed into 16 columns (name them by --features or --from-log)"
        )
    if source is not None:
        _notice_rules_left(store, source, policy)
    if request.kind in DETERMINISTIC and policy.exploration == 0:
        store.notice(
            f"{request.kind} without a floor leaves a log that cannot judge other policies: consider --param floor=0.05"
        )
    return answer


def _notice_rules_left(store: Store, source: Version, policy: Policy) -> None:
    """If the copied version `source` has rules that the new policy lacks, print these rules."""
    rules = designs.policy_of(source).rules.items()
    missing_rules = [f"--param {shlex.quote(f'{name}={text}')}" for name, text in rules if name not in policy.rules]
    if missing_rules:
        options = " ".join(missing_rules)
        store.notice(
            f"rules of {source.policy.name} are not copied; under another name, `policy create` takes {options}"
        )


def _check_layout(unit: Unit, policy: Policy) -> None:
    """Raise InputError if the policy's rules on slates (such as at most 2 arms of a group) contradict each other with
    the present catalogue."""
    rules = page_rules.parse_texts(policy.rules)
    if rules is None or not (rules.most or rules.least):
        return
    from rlrec.policy.slates.page_layout import lay_out

    features, revision = designs.CatalogueFeatures(unit), settings.get(unit).catalogue_revision
    groups = members(unit, rules.names)
    ids = arms.ids(unit, {*rules.names}.union(*groups.values()))
    arm_ids = np.array([*ids.values()], np.int64)
    lay_out([rules], [*ids], lambda field: features.values(arm_ids, revision, field), groups)


def _check_prior(store: Store, policy: Policy, kind: str, params: Mapping[str, Any]) -> None:
    """Raise InputError for a kind without a prior. Print a notice if the prior has no effect."""
    if policy.why_no_prior:
        raise InputError(f"kind {kind} has no prior: {policy.why_no_prior}", hint="leave it out")
    if not lineage.depends_on_belief(policy):
        store.notice(f"kind {kind} ignores the prior when it draws; `policy show` includes it")
    if (model := params.get("model")) in ("shared", "hybrid", "features"):
        name = "shared" if model == "features" else model
        store.notice(f"a {name} model has no prior per arm: this prior changes nothing")


def _source_version(store: Store, request: Request) -> Version | None:
    """Return the version that a trained policy copies, or None if the request has no `from_policy`."""
    if request.from_policy is None:
        return None
    if request.kind != graduation.KIND:
        raise InputError(
            f"kind {request.kind} does not start from another policy",
            hint=f"--from-policy is for {graduation.KIND}; a bandit learns from a log by --from-log policy=NAME",
        )
    with store.read() as unit:
        return graduation.find_source(unit, request.from_policy)


def _resolve_parameters(store: Store, request: Request, source: Version | None) -> Mapping[str, Any]:
    """Return the parsed parameters. They include the values of a named curve, and the exploration of a copied version
    `source`.

    A curve without a number is the newest curve of that name. If the policy exists already, it is the curve that the
    policy has."""
    typed_parameters = parameters.parse_parameters(request.kind, request.parameters)
    if source is not None:
        typed_parameters = graduation.parameters(source, typed_parameters)
    if not any(value for name, value in typed_parameters.items() if name.rpartition(".")[2] == "position"):
        return typed_parameters
    with store.read() as unit:
        stored_policy = policies.by_name(unit, request.name)
        curves = {} if stored_policy is None else {name: str(value) for name, value in stored_policy.params.items()}
        curves = {
            name: text for name, text in curves.items() if text.rpartition("@")[0] == typed_parameters.get(name) != ""
        }
        return parameters.with_curve(unit, {**typed_parameters, **curves})


def _existing_answer(unit: Unit, policy: StoredPolicy, definition: Mapping[str, Any]) -> CreatedPolicy:
    """Return the answer of `policy create` for a policy that exists. Raises Conflict if its definition is not
    `definition`."""
    stored_definition = parse(policies.definition(unit, policy.id), f"definition of policy {policy.name}")
    # parameters added in later releases have their defaults
    defaults = kinds.parameters(policy.kind, stored_definition["params"])
    if not stored_definition["params"].get(kinds.BUDGET):
        defaults.pop(kinds.BUDGET, None)
    stored_definition["params"] = defaults | stored_definition["params"]
    if canonical.text(stored_definition) != canonical.text(definition):
        hint = "policies never change: use another name"
        raise Conflict(f"policy {policy.name!r} already has another definition", hint=hint)
    version, _ = lookup.version(unit, policy.name)
    return _make_answer(unit, version, policies.versions(unit, [policy.id])[0], is_created=False)


def _make_answer(unit: Unit, version: Version, first_version: Version, *, is_created: bool) -> CreatedPolicy:
    answer = cast(CreatedPolicy, {**belief_versions.summary(unit, version), "created": is_created})
    if "kl" in first_version.learned_from:
        answer["kl"] = first_version.learned_from["kl"]
    return answer


def _store_policy(
    unit: Unit, request: Request, typed_parameters: Mapping[str, Any], definition: Mapping[str, Any], reward: Reward,
    prior: Mapping[str, tuple[float, float]], belief: InitialBelief,
) -> CreatedPolicy:  # fmt: skip
    _, version_id = policies.create(
        unit, name=request.name, kind=request.kind, params=typed_parameters, definition=canonical.text(definition),
        status="learning" if kinds.load(request.kind).learns_online else "frozen", reward_id=reward.id,
        entered_to=None if reward.learn == "served" else 0, learned_from=belief.record, parameters=belief.parameters,
        parent_id=belief.parent_id,
    )  # fmt: skip
    beliefs.add_prior(unit, version_id, _prior_rows(unit, prior))
    beliefs.add_weights(unit, version_id, belief.weights)
    if belief.sums:
        beliefs.add(unit, version_id, seq=0, changes=belief.sums)
    belief_versions.omit_excluded(unit, version_id, belief.logs)
    settings.add_run(unit, "policy create", {"name": request.name, **asdict(request)}, belief.record)
    version = policies.by_id(unit, [version_id])[version_id]
    return _make_answer(unit, version, version, is_created=True)


def _prior_rows(unit: Unit, prior: Mapping[str, tuple[float, float]]) -> list[tuple[int, float, float]]:
    ids = arms.ids(unit, list(prior))
    unknown_arm = next((key for key in prior if key not in ids), None)
    if unknown_arm is not None:
        hint = suggest(unknown_arm, [arm.key for arm in arms.all_arms(unit)])
        raise InputError(f"the prior names arm {unknown_arm!r}, which the catalogue lacks", hint=hint or "add it first")
    return [(ids[key], *prior[key]) for key in prior]
