"""Off-policy evaluation: estimators by name, loaded when asked for, so that naming them costs no numpy."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from rlrec.errors import InputError, suggest

if TYPE_CHECKING:
    from rlrec.ope.base import Estimator, Kind
    from rlrec.ope.sequential import SessionEstimator

# What one row of the estimate is -> name -> where its class lives. To add an estimator: its file, and one line here.
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

ESTIMATORS = {name: place for family in _BY_UNIT.values() for name, place in family.items()}
GROUPS = {**{unit: tuple(family) for unit, family in _BY_UNIT.items()}, "all": tuple(ESTIMATORS)}
DEFAULT = "ips,snips,dr"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Estimators by the label they were asked by, apart by what one row of the estimate is: each unit is a fold of
    its own.

    labels: all of them, in the order asked"""

    labels: tuple[str, ...]
    impressions: dict[str, Estimator]
    sessions: dict[str, SessionEstimator]


def parse(text: str) -> Asked:
    """Estimators of a comma list such as `ips,clipped-ips:5,wdr`, a group (`impression`, `session`) or `all`.

    Raises InputError for an unknown name, a parameter where none belongs, and a value out of range."""
    asked = [word.strip() for word in text.split(",") if word.strip()]
    if not asked:
        raise InputError("no estimator named", hint=f"one or more of {', '.join([*ESTIMATORS, *GROUPS])}")
    kinds = {label: estimator(label) for word in asked for label in GROUPS.get(word, (word,))}
    return Asked(
        labels=tuple(kinds),
        impressions={label: cast("Estimator", kind) for label, kind in kinds.items() if kind.unit == "impression"},
        sessions={label: cast("SessionEstimator", kind) for label, kind in kinds.items() if kind.unit == "session"},
    )


def estimator(label: str) -> Kind:
    """The estimator `NAME`, or `NAME:value` where its class has a parameter. Raises InputError as `parse` does."""
    name, colon, value = label.partition(":")
    if name not in ESTIMATORS:
        names = [*ESTIMATORS, *GROUPS]
        raise InputError(f"unknown estimator {name!r}", hint=suggest(name, names) or f"known: {', '.join(names)}")
    module, _, attribute = ESTIMATORS[name].partition(":")
    kind = getattr(import_module(module), attribute)
    if not colon:
        return cast("Kind", kind())
    if not (parameters := _parameters(kind)):
        raise InputError(f"{name} takes no parameter, got {label!r}", hint=f"write {name}")
    return cast("Kind", kind(**{parameters[0]: _number(label, value)}))


def described() -> dict[str, list[tuple[str, str]]]:
    """Name and description of every estimator by unit: a parameter stands in brackets at its default, as in
    `clipped-ips[:20]`, and the first paragraph of the class docstring describes it."""
    return {unit: [_described(estimator(name)) for name in family] for unit, family in _BY_UNIT.items()}


def _described(kind: Kind) -> tuple[str, str]:
    parameter = "".join(f"[:{getattr(kind, name):g}]" for name in _parameters(type(kind)))
    paragraph = (type(kind).__doc__ or "").split("\n\n")[0]
    return f"{kind.name}{parameter}", " ".join(paragraph.split())


def _parameters(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]


def _number(label: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(f"{value!r} in {label!r} is not a number", hint="as in clipped-ips:20") from None
