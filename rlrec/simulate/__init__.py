"""Modules here simulate audiences. An audience is a simulated world in which the best arm or policy is known. The
modules use no SQL, no files, no clock, and no random state that is shared."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from rlrec.errors import InputError, suggest

if TYPE_CHECKING:
    from rlrec.simulate.base import Audience

ENVIRONMENTS = {
    "bernoulli": "rlrec.simulate.clicks:Bernoulli",
    "contextual": "rlrec.simulate.clicks:Contextual",
    "pbm": "rlrec.simulate.clicks:PositionBased",
    "cascade": "rlrec.simulate.clicks:Cascade",
    "page": "rlrec.simulate.clicks:Page",
    "drift": "rlrec.simulate.clicks:Drift",
    "delayed": "rlrec.simulate.clicks:Delayed",
    "barista": "rlrec.simulate.barista:Barista",
    "choc-kale": "rlrec.simulate.choc_kale:ChocKale",
    "shop": "rlrec.simulate.shop:Shop",
    "news": "rlrec.simulate.news:News",
    "corridor": "rlrec.simulate.corridor:Corridor",
}


def load_environment(name: str) -> type[Audience]:
    """Import the environment with this name, and return its class. Raise InputError for an unknown name."""
    if name not in ENVIRONMENTS:
        names = list(ENVIRONMENTS)
        raise InputError(f"unknown environment {name!r}", hint=suggest(name, names) or f"there are {', '.join(names)}")
    module, attribute = ENVIRONMENTS[name].split(":")
    return cast("type[Audience]", getattr(import_module(module), attribute))


def default_parameters(name: str) -> dict[str, Any]:
    """Return the default value of each parameter of an environment, by the name of the parameter."""
    from dataclasses import fields

    return {field.name: field.default for field in fields(cast(Any, load_environment(name)))}


def make_audience(name: str, values: Mapping[str, Any]) -> Audience:
    """Return an audience of the environment `name` with these parameters. Raise InputError for an unknown parameter or
    an impossible value."""
    environment, defaults = load_environment(name), default_parameters(name)
    for parameter_name in values:
        if parameter_name not in defaults:
            hint = suggest(parameter_name, list(defaults)) or f"it has {', '.join(defaults)}"
            raise InputError(f"environment {name} has no parameter {parameter_name!r}", hint=hint)
    return environment(**values)


def arm_names(arms: int) -> list[str]:
    """Return names for a number of arms, for an audience whose arms have no names of their own."""
    return [f"arm{index}" for index in range(arms)]
