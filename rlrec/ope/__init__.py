"""Off-policy evaluation: estimators by name, loaded when asked for, so that naming them costs no numpy."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING

from rlrec.errors import InputError, suggest

if TYPE_CHECKING:
    from rlrec.ope.base import Estimator

# What one row of the estimate is -> name -> where its class lives. To add an estimator: its file, and one line here.
_BY_UNIT = {
    "impression": {
        "ips": "rlrec.ope.weighting:Ips",
        "snips": "rlrec.ope.weighting:Snips",
        "clipped-ips": "rlrec.ope.weighting:ClippedIps",
        "dm": "rlrec.ope.direct:Dm",
        "dr": "rlrec.ope.doubly_robust:Dr",
    },
}

ESTIMATORS = {name: place for family in _BY_UNIT.values() for name, place in family.items()}
GROUPS = {**{unit: tuple(family) for unit, family in _BY_UNIT.items()}, "all": tuple(ESTIMATORS)}
DEFAULT = "ips,snips,dr"


def parse(text: str) -> dict[str, Estimator]:
    """Estimators of a comma list such as `ips,clipped-ips:5` or `all`, in order, each under the label it was asked
    by.

    Raises InputError for an unknown name, a parameter where none belongs, and a value out of range."""
    asked = [word.strip() for word in text.split(",") if word.strip()]
    if not asked:
        raise InputError("no estimator named", hint=f"one or more of {', '.join([*ESTIMATORS, *GROUPS])}")
    labels = [label for word in asked for label in GROUPS.get(word, (word,))]
    return {label: estimator(label) for label in labels}


def estimator(label: str) -> Estimator:
    """The estimator `NAME`, or `NAME:value` where its class has a parameter. Raises InputError as `parse` does."""
    name, colon, value = label.partition(":")
    if name not in ESTIMATORS:
        known = [*ESTIMATORS, *GROUPS]
        raise InputError(f"unknown estimator {name!r}", hint=suggest(name, known) or f"known: {', '.join(known)}")
    module, _, kind = ESTIMATORS[name].partition(":")
    made = getattr(import_module(module), kind)
    parameter = next((field.name for field in fields(made)), None)
    if colon and parameter is None:
        raise InputError(f"{name} takes no parameter, got {label!r}", hint=f"write {name}")
    built: Estimator = made(**{parameter: _number(label, value)}) if parameter and colon else made()
    return built


def _number(label: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(f"{value!r} in {label!r} is not a number", hint="as in clipped-ips:20") from None
