"""This package holds the policies, each of which is a distribution over arms and over ordered slates.

The functions of this package are pure: they take arrays and return arrays."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeGuard

from rlrec.errors import InputError, suggest

if TYPE_CHECKING:
    from rlrec.policy.beliefs.base import Policy
    from rlrec.policy.contexts.encoder import ContextualPolicy, Design

KINDS = {
    "uniform": "rlrec.policy.kinds.fixed:Uniform",
    "fixed": "rlrec.policy.kinds.fixed:Fixed",
    "scored": "rlrec.policy.kinds.fixed:Scored",
    "logged": "rlrec.policy.kinds.fixed:LoggedPolicy",
    "epsilon-greedy": "rlrec.policy.kinds.bandits:EpsilonGreedy",
    "ucb": "rlrec.policy.kinds.bandits:Ucb",
    "ucb-tuned": "rlrec.policy.kinds.bandits:UcbTuned",
    "kl-ucb": "rlrec.policy.kinds.bandits:KlUcb",
    "thompson": "rlrec.policy.kinds.thompson:Thompson",
    "exp3": "rlrec.policy.kinds.bandits:Exp3",
    "linucb": "rlrec.policy.kinds.linear:LinUcb",
    "lin-thompson": "rlrec.policy.kinds.linear:LinThompson",
    "logistic-thompson": "rlrec.policy.kinds.linear:LogisticThompson",
    "softmax": "rlrec.policy.kinds.linear:Softmax",
    "plackett-luce": "rlrec.policy.kinds.odds:PlackettLuce",
    "squarecb": "rlrec.policy.kinds.linear:SquareCb",
    "long-term": "rlrec.policy.kinds.long_term:LongTerm",
    "gradient": "rlrec.policy.gradients.gradient:Gradient",
    "two-stage": "rlrec.policy.kinds.two_stage:TwoStage",
}
KINDS_THAT_DO_NOT_LEARN = (
    "uniform",
    "fixed",
    "scored",
)  # kinds that count pulls and rewards but do not learn from them
ANY_REWARD = "epsilon-greedy"  # a kind that learns from rewards of any range
TEAM_DRAFT = "team-draft"
INTERNAL = {TEAM_DRAFT: "rlrec.policy.kinds.fixed:TeamDraft"}  # kinds that users do not create
TWO_STAGE, STAGES = "two-stage", ("first", "second")
FIELDS_NOT_TYPED = ("design", "stage_parameters")  # fields of a policy that are not parameters, or not under that name

BUDGET = "budget"  # a parameter of policies, not of stages; omitted where it is empty
# Parameters of every kind; a policy has those that were typed. NARROWING: they take arms away from a request.
NARROWING = ("arms", "block", "not_after", "not_shown")
# PAGE_RULES: they shape the draw of a page.
PAGE_RULES = ("pin", "most", "least")
COMMON_PARAMETERS = (*NARROWING, *PAGE_RULES)
KINDS_WITHOUT_PAGE_RULES = {TWO_STAGE: "it draws a list of candidates first", TEAM_DRAFT: "two rankers take turns"}
CURVE = "examination"  # a parameter that is not typed: the values of the curve `position`
_policies_without_design: dict[tuple[str, str], Policy] = {}  # by kind and parameters


@cache
def load(kind: str) -> type[Policy]:
    """Return the class of a policy kind, which is imported at its first use. Raises InputError for an unknown kind."""
    if kind not in KINDS and kind not in INTERNAL:
        raise InputError(f"unknown kind {kind!r}", hint=suggest(kind, list(KINDS)) or "`rlrec policy kinds` lists them")
    module, name = (KINDS | INTERNAL)[kind].split(":")
    return getattr(import_module(module), name)


def learns_from_slots(kind: str) -> bool:
    """Tell whether a kind of policy can learn from the log of any policy, one slot at a time."""
    return load(kind).learns_online and kind not in (*KINDS_THAT_DO_NOT_LEARN, TWO_STAGE, *INTERNAL)


def parameters(kind: str, typed_parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the default value of each parameter of a policy kind, by name. Values are not checked.

    typed_parameters: the parameters that a user typed. With them, the result includes the rules that the user typed,
    such as `pin`. For a two-stage policy, the result then also includes the parameters of both stages, such as
    `first.floor`."""
    defaults = dict(_defaults(kind)) | {name: "" for name in COMMON_PARAMETERS if name in (typed_parameters or {})}
    if typed_parameters is not None and kind == TWO_STAGE:
        for stage in STAGES:
            stage_defaults = parameters(typed_parameters.get(stage, defaults[stage]))
            stage_names = (name for name in stage_defaults if name not in defaults and name != BUDGET)
            defaults |= {f"{stage}.{name}": stage_defaults[name] for name in stage_names}
    return defaults


@cache
def _defaults(kind: str) -> dict[str, Any]:
    from dataclasses import MISSING, fields

    parameter_fields = [field for field in fields(load(kind)) if field.name not in (*FIELDS_NOT_TYPED, CURVE)]
    last_names = ("floor", "explore_slots", "discount", "window", "position", BUDGET)  # they come last
    parameter_fields.sort(key=lambda field: last_names.index(field.name) if field.name in last_names else -1)
    return {field.name: None if field.default is MISSING else field.default for field in parameter_fields}


def values(policy: Policy) -> dict[str, Any]:
    """Return the parameters of a policy by name. The values of the position curve are included if the policy has a
    curve."""
    from dataclasses import fields

    hidden_names = FIELDS_NOT_TYPED if policy.examination else (*FIELDS_NOT_TYPED, CURVE)
    if policy.parsed_budget is None:
        hidden_names = (*hidden_names, BUDGET)
    parameters = {field.name: getattr(policy, field.name) for field in fields(policy) if field.name not in hidden_names}
    stage_values = dict[str, Any]()
    for stage, stage_policy in zip(STAGES, policy.stages, strict=False):
        for name, value in values(stage_policy).items():
            if name not in parameters:
                stage_values[f"{stage}.{name}"] = value
    return parameters | stage_values | dict(policy.rules)


def make(kind: str, typed_parameters: Mapping[str, Any], *, design: Design | None = None) -> Policy:
    """Return a policy of a kind, with checked parameters. Raises InputError for an unknown or impossible parameter.

    Without a design, equal arguments return the same object.

    typed_parameters: the parameters that a user typed, by name; design: how a contextual kind turns contexts into
    features (None for the default of the kind)."""
    name_and_values = kind, repr(typed_parameters)
    if design is None and name_and_values in _policies_without_design:
        return _policies_without_design[name_and_values]
    cls, defaults = load(kind), parameters(kind, typed_parameters)
    for name in typed_parameters:
        if name not in defaults and not (name == CURVE and "position" in defaults):
            hint = suggest(name, list(defaults)) or f"it has {', '.join(defaults)}"
            raise InputError(f"kind {kind} has no parameter {name!r}", hint=hint)
    rules = {name: str(typed_parameters[name]) for name in COMMON_PARAMETERS if typed_parameters.get(name)}
    typed_parameters = {name: value for name, value in typed_parameters.items() if name not in COMMON_PARAMETERS}
    plain_parameters = {name: value for name, value in typed_parameters.items() if "." not in name}
    if len(plain_parameters) < len(typed_parameters):
        plain_parameters["stage_parameters"] = {name: value for name, value in typed_parameters.items() if "." in name}
    design_argument = {"design": design} if design is not None and "design" in cls.__dataclass_fields__ else {}
    if design is not None:
        _check_width(kind, cls, design)
    curve = {CURVE: tuple(typed_parameters[CURVE])} if CURVE in typed_parameters else {}
    policy = cls(**{**cls.implied_defaults(typed_parameters), **plain_parameters, **curve}, **design_argument)
    if rules:
        object.__setattr__(policy, "rules", rules)
        _check_page_rules(kind, rules)
    if design is None:
        _policies_without_design[name_and_values] = policy
    return policy


def _check_page_rules(kind: str, rules: Mapping[str, str]) -> None:
    """Raise InputError if this kind of policy cannot satisfy the rules of a page, or if the rules contradict each
    other."""
    from rlrec.policy.slates.page_rules import parse_texts

    if parse_texts(rules) is not None and kind in KINDS_WITHOUT_PAGE_RULES:
        raise InputError(f"kind {kind} keeps no rules of a page", hint=KINDS_WITHOUT_PAGE_RULES[kind])


def _check_width(kind: str, cls: type[Policy], design: Design) -> None:
    """Raise InputError if the features of a design have more columns than a policy of this kind can hold.

    cls: the class of the kind."""
    from rlrec.policy.contexts.features import MAX_WIDTH

    if design.context.is_sparse and not getattr(cls, "takes_sparse", False):
        sparse_kinds = ", ".join(name for name in KINDS if getattr(load(name), "takes_sparse", False))
        limit = f"{kind} holds {MAX_WIDTH}: it learns how they vary together"
        hint = f"hash into fewer columns, or use {sparse_kinds}"
        raise InputError(f"features of contexts have {design.context.width} columns, and {limit}", hint=hint)
    if design.arm.is_sparse:
        hint = "list fewer values and hash the rest into fewer columns"
        raise InputError(f"features of arms have {design.arm.width} columns, and a policy holds {MAX_WIDTH}", hint=hint)


def is_contextual(policy: Policy) -> TypeGuard[ContextualPolicy]:
    """Tell whether a policy reads contexts through a design, which turns them into features."""
    return policy.is_contextual


def learns_from_contexts(policy: Policy) -> TypeGuard[ContextualPolicy]:
    """Tell whether the belief of a policy learns from the features of contexts."""
    return policy.is_contextual and policy.learns_online


def learns_stated(policy: Policy) -> TypeGuard[ContextualPolicy]:
    """Tell whether the belief of a policy learns from the features of arms that requests and imported lines state."""
    return learns_from_contexts(policy) and policy.uses_arm_features and policy.design.learns_stated


def learns_by_column(policy: Policy) -> bool:
    """Tell whether the belief of a policy has sums for each column of sparse contexts. The beliefs of other contextual
    policies have moments, which are sums of products of two columns."""
    return learns_from_contexts(policy) and policy.design.context.is_sparse
