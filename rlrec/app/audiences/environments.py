"""Audiences as people name them: an environment, and its parameters as K=V."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from rlrec import simulate
from rlrec.app.inputs import parameters
from rlrec.errors import InputError
from rlrec.simulate.base import Audience
from rlrec.simulate.visitors import Visitors


def make(name: str, texts: Mapping[str, str]) -> tuple[Audience, list[str]]:
    """An audience, and the names of its arms. Raises InputError for an unknown or impossible one."""
    defaults = simulate.parameters(name)
    values: dict[str, Any] = {}
    names: list[str] = []
    for word, text in texts.items():
        if word == "rates" and Path(text).is_file():
            table = parameters.rates(Path(text))
            names, values[word] = list(table), tuple(table.values())
        else:
            values[word] = _parse(word, text, defaults.get(word))
    audience = simulate.make(name, values)
    return audience, names or list(audience.names) or simulate.names(audience.arms)


def check(environment: str, audience: Audience, arms: int, *, size: int = 1, steps: int | None = None) -> None:
    """Raises InputError for slates and visits that an audience does not have."""
    if size > arms:
        raise InputError(f"k is {size}, but the audience has {arms} arms", field="k")
    if not isinstance(audience, Visitors):
        return
    if size > 1:
        raise InputError(f"visitors of {environment} are shown one arm at a time", hint="leave out -k")
    if steps is not None:
        hint = "leave --steps away; --env cap=N cuts visits off after N decisions"
        raise InputError(f"visits of {environment} end by themselves", hint=hint)


VisitFigures = TypedDict("VisitFigures", {
    "context_free_per_session": float | None, "session_length": float, "visitors": float | None,
    "visits_per_visitor": float | None, "retention": float | None,
})  # fmt: skip


def visit_figures(
    audience: Audience, *, length: float, visits: float, visitors: float | None = None, returned: float = 0
) -> VisitFigures:
    """The figures of visits, None where visitors are not recognised. length: decisions of a visit; returned: visitors
    who came again."""
    with_memory = audience if isinstance(audience, Visitors) else None
    return {
        "context_free_per_session": None if with_memory is None else with_memory.context_free()[0],
        "session_length": length,
        "visitors": visitors,
        "visits_per_visitor": visits / visitors if visitors else None,
        "retention": returned / visitors if visitors and with_memory is not None and with_memory.returning else None,
    }


def seed_or_random(seed: int | None) -> int:
    """The seed, or 64 random bits."""
    return int.from_bytes(os.urandom(8)) if seed is None else seed


def _parse(word: str, text: str, default: Any) -> Any:
    """A value of the type that the default has."""
    if word == "rates":
        hint = "give numbers, 0.9,0.8, or a CSV arm,rate"
        return tuple(_number(rate, "a rate", hint=hint) for rate in text.split(","))
    if word == "jumps":
        return tuple(_jump(jump) for jump in text.split(",")) if text != "none" else ()
    if isinstance(default, int):
        return _integer(text, word)
    return _number(text, word) if isinstance(default, float) else text


def _jump(text: str) -> tuple[int, float, int, int]:
    fields = text.split(":")
    if len(fields) != 4:
        raise InputError(f"a jump is {text!r}", hint="write ARM:RATE:FROM:TO, as 2:0.9:3000:5000")
    arm, rate, start, end = fields
    return (
        _integer(arm, "a jump's arm"),
        _number(rate, "a jump's rate"),
        _integer(start, "a time"),
        _integer(end, "a time"),
    )


def _number(text: str, what: str, *, hint: str = "give a number") -> float:
    try:
        return float(text.strip().replace("_", "?"))
    except ValueError:
        raise InputError(f"{what} is {text!r}", hint=hint) from None


def _integer(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 18):
        raise InputError(f"{what} is {text!r}", hint="give a whole number")
    return int(text)
