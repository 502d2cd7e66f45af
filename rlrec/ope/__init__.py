"""Off-policy evaluation: estimators by name, loaded when asked for, so that naming them costs no numpy."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from rlrec.errors import InputError, suggest

if TYPE_CHECKING:
    from rlrec.ope.base import Estimator, ImpressionEstimator
    from rlrec.ope.sequential import SessionEstimator

# Unit (what one row of the estimate is) -> name -> class. To add an estimator: its class, and one line here.
_BY_UNIT = {
    "impression": {
        "ips": "rlrec.ope.weighting:Ips",
        "snips": "rlrec.ope.weighting:Snips",
        "clipped-ips": "rlrec.ope.weighting:ClippedIps",
        "dm": "rlrec.ope.direct:Dm",
        "dr": "rlrec.ope.doubly_robust:Dr",
        "sndr": "rlrec.ope.doubly_robust:Sndr",
        "switch-dr": "rlrec.ope.doubly_robust:SwitchDr",
        "dros": "rlrec.ope.doubly_robust:Dros",
    },
    "session": {
        "tis": "rlrec.ope.sequential:Tis",
        "pdis": "rlrec.ope.sequential:Pdis",
        "wis": "rlrec.ope.sequential:Wis",
        "wpdis": "rlrec.ope.sequential:Wpdis",
        "dr-rl": "rlrec.ope.sequential:DrRl",
        "wdr": "rlrec.ope.sequential:Wdr",
    },
}

ESTIMATORS = {name: path for family in _BY_UNIT.values() for name, path in family.items()}
GROUPS = {**{unit: tuple(family) for unit, family in _BY_UNIT.items()}, "all": tuple(ESTIMATORS)}
DEFAULT = "ips,snips,dr"


@dataclass(frozen=True, kw_only=True)
class EstimatorChoice:
    """Estimators by label and unit: each unit is a fold of its own.

    labels: all of them, in the order of the request"""

    labels: tuple[str, ...]
    impressions: dict[str, ImpressionEstimator]
    sessions: dict[str, SessionEstimator]


def parse(text: str) -> EstimatorChoice:
    """Estimators of a comma list such as `ips,clipped-ips:5,wdr`, a group (`impression`, `session`) or `all`.
    Raises InputError for an unknown name, a parameter where none belongs, and a value out of range."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise InputError("no estimator named", hint=f"one or more of {', '.join([*ESTIMATORS, *GROUPS])}")
    chosen = {label: estimator(label) for word in words for label in GROUPS.get(word, (word,))}
    return EstimatorChoice(
        labels=tuple(chosen),
        impressions=cast("dict[str, ImpressionEstimator]", _of_unit(chosen, "impression")),
        sessions=cast("dict[str, SessionEstimator]", _of_unit(chosen, "session")),
    )


def _of_unit(chosen: dict[str, Estimator], unit: str) -> dict[str, Estimator]:
    return {label: estimator for label, estimator in chosen.items() if estimator.unit == unit}


def estimator(label: str) -> Estimator:
    """The estimator `NAME`, or `NAME:value` where its class has a parameter. Raises InputError as `parse` does."""
    name, colon, value = label.partition(":")
    if name not in ESTIMATORS:
        names = [*ESTIMATORS, *GROUPS]
        raise InputError(f"unknown estimator {name!r}", hint=suggest(name, names) or f"known: {', '.join(names)}")
    module, _, attribute = ESTIMATORS[name].partition(":")
    named = getattr(import_module(module), attribute)
    if not colon:
        return cast("Estimator", named())
    if not (parameters := _parameters(named)):
        raise InputError(f"{name} takes no parameter, got {label!r}", hint=f"write {name}")
    return cast("Estimator", named(**{parameters[0]: _number(label, value)}))


def descriptions() -> dict[str, list[tuple[str, str]]]:
    """Name and description of every estimator by unit: a parameter stands in brackets at its default, as in
    `clipped-ips[:20]`, and the first paragraph of the class docstring describes it."""
    return {unit: [_description(estimator(name)) for name in family] for unit, family in _BY_UNIT.items()}


def _description(default: Estimator) -> tuple[str, str]:
    parameter = "".join(f"[:{getattr(default, name):g}]" for name in _parameters(type(default)))
    paragraph = (type(default).__doc__ or "").split("\n\n")[0]
    return f"{default.name}{parameter}", " ".join(paragraph.split())


def _parameters(of_class: Any) -> list[str]:
    return [field.name for field in fields(of_class)]


def _number(label: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        hint = f"as in {label.partition(':')[0]}:20"
        raise InputError(f"{value!r} in {label!r} is not a number", hint=hint) from None
