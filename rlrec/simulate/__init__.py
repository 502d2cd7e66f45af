"""Modules here simulate audiences. An audience is a world whose best arm or policy is known. The modules use no SQL,
files, clock or global random state."""

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
    """Import and return the class of the environment with this name. Raises InputError for an unknown name."""
    if name not in ENVIRONMENTS:
        names = list(ENVIRONMENTS)
        raise InputError(f"unknown environment {name!r}", hint=suggest(name, names) or f"there are {', '.join(names)}")
    module, attribute = ENVIRONMENTS[name].split(":")
    return cast("type[Audience]", getattr(import_module(module), attribute))


def default_parameters(name: str) -> dict[str, Any]:
    """Return the parameters of an environment with their defaults."""
    from dataclasses import fields

    return {field.name: field.default for field in fields(cast(Any, load_environment(name)))}


def make_audience(name: str, values: Mapping[str, Any]) -> Audience:
    """Return an audience with checked parameters. Raises InputError for an unknown parameter or an impossible value."""
    environment, defaults = load_environment(name), default_parameters(name)
    for parameter_name in values:
        if parameter_name not in defaults:
            hint = suggest(parameter_name, list(defaults)) or f"it has {', '.join(defaults)}"
            raise InputError(f"environment {name} has no parameter {parameter_name!r}", hint=hint)
    return environment(**values)


def arm_names(arms: int) -> list[str]:
    """Return names for the arms of an audience that does not name its arms."""
    return [f"arm{index}" for index in range(arms)]
