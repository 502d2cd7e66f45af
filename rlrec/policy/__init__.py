"""The policy module: every policy is a distribution over arms and over ordered slates. Pure: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlrec.errors import InputError, suggest

if TYPE_CHECKING:
    from rlrec.policy.base import Policy
    from rlrec.policy.contextual import Design

KINDS = {
    "uniform": "rlrec.policy.fixed:Uniform",
    "fixed": "rlrec.policy.fixed:Fixed",
    "logged": "rlrec.policy.fixed:LoggedPolicy",
    "epsilon-greedy": "rlrec.policy.epsilon_greedy:EpsilonGreedy",
    "ucb": "rlrec.policy.ucb:Ucb",
    "ucb-tuned": "rlrec.policy.ucb:UcbTuned",
    "kl-ucb": "rlrec.policy.ucb:KlUcb",
    "thompson": "rlrec.policy.thompson:Thompson",
    "exp3": "rlrec.policy.exp3:Exp3",
    "linucb": "rlrec.policy.linear:LinUcb",
    "lin-thompson": "rlrec.policy.linear:LinThompson",
    "logistic-thompson": "rlrec.policy.linear:LogisticThompson",
    "softmax": "rlrec.policy.linear:Softmax",
    "plackett-luce": "rlrec.policy.odds:PlackettLuce",
    "squarecb": "rlrec.policy.linear:SquareCb",
    "gradient": "rlrec.policy.gradient:Gradient",
}

CURVE = "examination"  # a parameter that nobody types: the values of the curve `position`


def load(kind: str) -> type[Policy]:
    """The class of a kind, imported when asked for. Raises InputError for an unknown one."""
    if kind not in KINDS:
        raise InputError(f"unknown kind {kind!r}", hint=suggest(kind, list(KINDS)) or "`rlrec policy kinds` lists them")
    module, name = KINDS[kind].split(":")
    return getattr(import_module(module), name)


def parameters(kind: str) -> dict[str, Any]:
    """The parameters of a kind with their defaults; a kind checks by itself what it needs."""
    from dataclasses import MISSING, fields

    listed = [field for field in fields(load(kind)) if field.name not in ("design", CURVE)]
    common = ("floor", "explore_slots", "discount", "window", "position")  # they come last
    listed.sort(key=lambda field: field.name in common)
    return {field.name: None if field.default is MISSING else field.default for field in listed}


def values(policy: Policy) -> dict[str, Any]:
    """The parameters of a policy; with the values of its curve, where it has one."""
    from dataclasses import fields

    hidden = ("design",) if policy.examination else ("design", CURVE)
    return {field.name: getattr(policy, field.name) for field in fields(policy) if field.name not in hidden}


def make(kind: str, typed: Mapping[str, Any], *, design: Design | None = None) -> Policy:
    """A policy of a kind with checked parameters. Raises InputError for an unknown or impossible one.

    design: how a contextual kind reads contexts; None for its default."""
    cls, defaults = load(kind), parameters(kind)
    for name in typed:
        if name not in defaults and not (name == CURVE and "position" in defaults):
            hint = suggest(name, list(defaults)) or f"it has {', '.join(defaults)}"
            raise InputError(f"kind {kind} has no parameter {name!r}", hint=hint)
    designed = {"design": design} if design is not None and "design" in cls.__dataclass_fields__ else {}
    curve = {CURVE: tuple(typed[CURVE])} if CURVE in typed else {}
    return cls(**{**cls.implied_defaults(typed), **typed, **curve}, **designed)
