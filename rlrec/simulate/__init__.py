"""Simulated audiences: worlds whose best arm or policy is known. Pure: no SQL, files, clock or global random state."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from rlrec.errors import InputError, suggest

if TYPE_CHECKING:
    from rlrec.simulate.base import Audience

ENVIRONMENTS = {
    "bernoulli": "rlrec.simulate.bernoulli:Bernoulli",
    "contextual": "rlrec.simulate.contextual:Contextual",
    "drift": "rlrec.simulate.drift:Drift",
    "delayed": "rlrec.simulate.delayed:Delayed",
    "barista": "rlrec.simulate.barista:Barista",
    "choc-kale": "rlrec.simulate.choc_kale:ChocKale",
    "corridor": "rlrec.simulate.corridor:Corridor",
}


def load(name: str) -> type[Audience]:
    """The class of an environment, imported when asked for. Raises InputError for an unknown one."""
    if name not in ENVIRONMENTS:
        known = list(ENVIRONMENTS)
        raise InputError(f"unknown environment {name!r}", hint=suggest(name, known) or f"there are {', '.join(known)}")
    module, attribute = ENVIRONMENTS[name].split(":")
    found: type[Audience] = getattr(import_module(module), attribute)
    return found


def parameters(name: str) -> dict[str, Any]:
    """The parameters of an environment with their defaults."""
    from dataclasses import fields

    return {one.name: one.default for one in fields(cast(Any, load(name)))}


def make(name: str, given: Mapping[str, Any]) -> Audience:
    """An audience with checked parameters. Raises InputError for an unknown or impossible one."""
    made, known = load(name), parameters(name)
    for word in given:
        if word not in known:
            hint = suggest(word, list(known)) or f"it has {', '.join(known)}"
            raise InputError(f"environment {name} has no parameter {word!r}", hint=hint)
    return made(**given)


def names(arms: int) -> list[str]:
    """What the arms of an audience are called."""
    return [f"arm{place}" for place in range(arms)]
