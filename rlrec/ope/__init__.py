"""This module finds the estimators of off-policy evaluation by name. An estimator is imported when it is asked for, so
that a list of names does not import numpy."""

from __future__ import annotations

from dataclasses import fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from rlrec.errors import InputError, suggest
from rlrec.records import Record

if TYPE_CHECKING:
    from rlrec.ope.sums.base import Estimator, ImpressionEstimator
    from rlrec.ope.units.sessions import SessionEstimator
    from rlrec.ope.units.slates import SlateEstimator

# Unit (of one row of the estimate) -> file -> estimators, each a class of that name in the file (SwitchDr is
# switch-dr).
# To add an estimator: its class, and its name here.
_NAMES_BY_FILE: dict[str, dict[str, tuple[str, ...]]] = {
    "impression": {
        "estimators.weighting": ("ips", "snips", "beta-ips", "clipped-ips", "cram"),
        "estimators.direct": ("dm", "dr", "sndr", "switch-dr", "dros"),
    },
    "session": {"units.sessions": ("tis", "pdis", "wis", "wpdis", "dr-rl", "wdr")},
    "slate": {
        "units.slates": (
            "sips", "iips", "rips", "pi", "cascade-dr", "interpol", "pbm",
            "sn-sips", "sn-iips", "sn-rips", "sn-pi", "sn-interpol", "sn-pbm",
        ),
        "units.effects": ("effects",),
    },
}  # fmt: skip

_NAMES_BY_UNIT = {unit: [name for names in files.values() for name in names] for unit, files in _NAMES_BY_FILE.items()}
ESTIMATORS = {name: file for files in _NAMES_BY_FILE.values() for file, names in files.items() for name in names}
NEED_CURVE = ("pbm", "sn-pbm")  # their parameter, a curve, has no default
# they need a curve of examination, so no group has them
CURVE_ESTIMATORS = (*NEED_CURVE, "interpol", "sn-interpol", "effects")
CRAM = "cram"  # it cannot be combined with others
GROUPS = {
    unit: tuple(name for name in family if name not in (*CURVE_ESTIMATORS, CRAM))
    for unit, family in _NAMES_BY_UNIT.items()
}
GROUPS["all"] = tuple(name for family in list(GROUPS.values()) for name in family)
DEFAULT = "ips,snips,dr"
COMPANION = "sn-rips"
# The estimators that answer about pages where none is requested, from the fewest assumptions to the most; by whether
# all rewards are on slots.
ANSWERING = {True: ("sn-sips", "sn-rips", "sn-iips"), False: ("sn-sips", "effects")}
ASSUMPTIONS = {
    **dict.fromkeys(("ips", "snips", "dr"), "what a slot earns does not depend on what was shown before"),
    "sn-sips": "what a page earns does not depend on the pages before it",
    "sn-rips": "what a slot earns depends on its arm and on the slots above alone",
    "sn-iips": "what a slot earns depends on its arm and its position alone",
    "effects": "effects of arms add up, and are what they were in the log",
    CRAM: "the policy goes on serving as it stood when the last twentieth of the log began",
}


class EstimatorChoice(Record):
    """An EstimatorChoice holds the estimators of a request, by label, for impressions, sessions and slates.

    labels: all labels, in the order of the request; named_labels: labels that the request has itself, not by a
    group's name; names_slates: whether the request names estimators per slate, or their group, and not only `all`;
    adds_answering: whether the request names no estimators. Then the first of the estimators ANSWERING with
    a sufficient estimate answers for slates."""

    labels: tuple[str, ...]
    impressions: dict[str, ImpressionEstimator]
    sessions: dict[str, SessionEstimator]
    slates: dict[str, SlateEstimator]
    named_labels: frozenset[str]
    names_slates: bool
    adds_answering: bool = False

    @property
    def with_answering(self) -> EstimatorChoice:
        """Return the choice with the estimators of slates that may answer. These have no label, and are reported only
        if they answer."""
        slates = {name: cast("SlateEstimator", estimator(name)) for names in ANSWERING.values() for name in names}
        return replace(self, slates=self.slates | slates, adds_answering=True)

    @property
    def with_companions(self) -> EstimatorChoice:
        """Return the choice with an additional estimator of slates, against which estimators that assume independent
        slots are checked. It is added only if there are such estimators, and none that assumes less. It has no label,
        and is not reported."""
        kinds = self.slates.values()
        if not any(kind.has_independent_slots for kind in kinds) or any(kind.needs_joint for kind in kinds):
            return self
        return replace(self, slates={**self.slates, COMPANION: cast("SlateEstimator", estimator(COMPANION))})

    @property
    def estimators(self) -> dict[str, Estimator]:
        """Return all estimators by their labels."""
        return {**self.impressions, **self.sessions, **self.slates}


def parse(text: str) -> EstimatorChoice:
    """Return the estimators that a text names. The text is a comma list such as `ips,clipped-ips:5,wdr`, in which a
    group (`impression`, `session`, `slate`) or `all` stands for its estimators. Raises InputError for an unknown name,
    a parameter where none belongs, and a value out of range or missing."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise InputError("no estimator named", hint=f"one or more of {', '.join([*ESTIMATORS, *GROUPS])}")
    if word_without_curve := next((word for word in words if word in NEED_CURVE), None):
        hint = f"write {word_without_curve}:CURVE; `rlrec position list` has the curves, `rlrec position fit` makes one"
        raise InputError(f"{word_without_curve} needs a position curve", hint=hint)
    estimators = {label: estimator(label) for word in words for label in GROUPS.get(word, (word,))}
    by_unit: dict[str, Any] = {
        f"{unit}s": {label: kind for label, kind in estimators.items() if kind.unit == unit} for unit in _NAMES_BY_UNIT
    }
    return EstimatorChoice(
        labels=tuple(estimators),
        **by_unit,
        named_labels=frozenset(words) - GROUPS.keys(),
        names_slates=any(
            estimators[label].unit == "slate" for word in words if word != "all" for label in GROUPS.get(word, (word,))
        ),
    )


def estimator(label: str) -> Estimator:
    """Return the estimator with the label `NAME`, or `NAME:value` if its class has a parameter. Raises InputError for
    an unknown name, a parameter where none belongs, and a value out of range or missing."""
    name, colon, value = label.partition(":")
    if name not in ESTIMATORS:
        names = [*ESTIMATORS, *GROUPS]
        raise InputError(f"unknown estimator {name!r}", hint=suggest(name, names) or f"known: {', '.join(names)}")
    module = import_module(f"rlrec.ope.{ESTIMATORS[name]}")
    estimator_class = getattr(module, "".join(map(str.capitalize, name.split("-"))))
    if not colon:
        return cast("Estimator", estimator_class())
    parameters, values = _parameters(estimator_class), value.split(":")
    if len(values) > len(parameters):
        accepted_text = (
            f"{len(parameters)} parameters" if len(parameters) > 1 else "one" if parameters else "no parameter"
        )
        example = f"{name}:2:CURVE" if len(parameters) > 1 else _form(estimator_class())
        raise InputError(f"{name} takes {accepted_text}, got {label!r}", hint=f"write {example}")
    pairs = zip(parameters.items(), values, strict=False)
    return cast("Estimator", estimator_class(**{key: _value(label, text, default) for (key, default), text in pairs}))


def descriptions() -> dict[str, list[tuple[str, str]]]:
    """Return, for impressions, sessions and slates, the form and the description of every estimator. The form has
    the default of a parameter in brackets, as `clipped-ips[:20]`. The description is the first paragraph of the
    docstring."""
    kinds = {unit: [estimator(name) for name in family] for unit, family in _NAMES_BY_UNIT.items()}
    return {
        unit: [(_form(kind), " ".join((kind.__doc__ or "").split("\n\n")[0].split())) for kind in family]
        for unit, family in kinds.items()
    }


def _form(kind: Any) -> str:
    """Return how an estimator is written, with an optional parameter in brackets, as `clipped-ips[:20]`. Of two
    parameters, only the first is shown."""
    forms = [f":{default:g}" if default else ":CURVE" for default in _parameters(kind).values()][:1]
    return kind.name + "".join(forms if kind.name in NEED_CURVE else (f"[{form}]" for form in forms))


def _parameters(kind: Any) -> dict[str, Any]:
    """Return the parameters that may follow the estimator's name, with their defaults."""
    return {field.name: field.default for field in fields(kind) if isinstance(field.default, int | float | str)}


def _value(label: str, text: str, default: float | str) -> float | str:
    name = label.partition(":")[0]
    if isinstance(default, str):
        if not text:
            raise InputError(f"{label!r} names no curve", hint="`rlrec position list` has them")
        return text
    try:
        return type(default)(text)
    except ValueError:
        kind = "a whole number" if isinstance(default, int) else "a number"
        hint = f"as in {name}:{1 if isinstance(default, int) else 20}"
        raise InputError(f"{text!r} in {label!r} is not {kind}", hint=hint) from None
