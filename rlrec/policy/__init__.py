"""The policy module: every policy is a distribution over arms and over ordered slates. Pure: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlrec.errors import InputError, suggest

if TYPE_CHECKING:
    from rlrec.policy.base import Policy
    from rlrec.policy.design import Design

KINDS = {
    "uniform": "rlrec.policy.fixed:Uniform",
    "fixed": "rlrec.policy.fixed:Fixed",
    "logged": "rlrec.policy.fixed:Logged",
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
    "squarecb": "rlrec.policy.linear:SquareCb",
    "gradient": "rlrec.policy.gradient:Gradient",
}


def load(kind: str) -> type[Policy]:
    """The class of a kind, imported when asked for. Raises InputError for an unknown one."""
    if kind not in KINDS:
        raise InputError(f"unknown kind {kind!r}", hint=suggest(kind, list(KINDS)) or "`rlrec policy kinds` lists them")
    module, name = KINDS[kind].split(":")
    return getattr(import_module(module), name)


def parameters(kind: str) -> dict[str, Any]:
    """The parameters of a kind with their defaults; a kind checks by itself what it needs."""
    from dataclasses import MISSING, fields

    every = [one for one in fields(load(kind)) if one.name != "design"]
    every.sort(key=lambda one: one.name in ("floor", "discount", "window"))  # what all share comes last
    return {one.name: None if one.default is MISSING else one.default for one in every}


def values(policy: Policy) -> dict[str, Any]:
    """The parameters of a policy."""
    from dataclasses import fields

    return {one.name: getattr(policy, one.name) for one in fields(policy) if one.name != "design"}


def make(kind: str, given: Mapping[str, Any], *, design: Design | None = None) -> Policy:
    """A policy of a kind with checked parameters. Raises InputError for an unknown or impossible one.

    design: how a contextual kind reads contexts; None for its default."""
    made, known = load(kind), parameters(kind)
    for name in given:
        if name not in known:
            hint = suggest(name, list(known)) or f"it has {', '.join(known)}"
            raise InputError(f"kind {kind} has no parameter {name!r}", hint=hint)
    parts = {"design": design} if design is not None and made.contextual else {}
    return made(**{**made.implied(given), **given}, **parts)
