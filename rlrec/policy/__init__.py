"""The policy module: every policy is a distribution over arms and over ordered slates. Pure: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from rlrec.errors import InputError, suggest

if TYPE_CHECKING:
    from rlrec.policy.base import Policy

KINDS = {
    "uniform": "rlrec.policy.fixed:Uniform",
    "fixed": "rlrec.policy.fixed:Fixed",
    "logged": "rlrec.policy.fixed:Logged",
    "epsilon-greedy": "rlrec.policy.epsilon_greedy:EpsilonGreedy",
    "ucb": "rlrec.policy.ucb:Ucb",
    "thompson": "rlrec.policy.thompson:Thompson",
}


def load(kind: str) -> type[Policy]:
    """The class of a kind, imported when asked for. Raises InputError for an unknown one."""
    if kind not in KINDS:
        raise InputError(f"unknown kind {kind!r}", hint=suggest(kind, list(KINDS)) or "`rlrec policy kinds` lists them")
    module, name = KINDS[kind].split(":")
    found: type[Policy] = getattr(import_module(module), name)
    return found


def make(kind: str, parameters: Mapping[str, Any]) -> Policy:
    """A policy of a kind with checked parameters. Raises InputError for an unknown or impossible one."""
    from dataclasses import fields

    made = load(kind)
    known = [field.name for field in fields(cast(Any, made))]
    for name in parameters:
        if name not in known:
            hint = suggest(name, known) or f"it has {', '.join(known)}"
            raise InputError(f"kind {kind} has no parameter {name!r}", hint=hint)
    return made(**parameters)
