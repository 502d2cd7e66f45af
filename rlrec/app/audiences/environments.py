"""Audiences as people name them: an environment, and its parameters as K=V."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlrec import simulate
from rlrec.app.inputs import parameters
from rlrec.errors import InputError
from rlrec.simulate.base import Audience


def made(name: str, texts: Mapping[str, str]) -> tuple[Audience, list[str]]:
    """An audience, and what its arms are called. Raises InputError for what is unknown, or impossible."""
    known = simulate.parameters(name)
    given: dict[str, Any] = {}
    names: list[str] = []
    for word, text in texts.items():
        if word == "rates" and Path(text).is_file():
            table = parameters.rates(Path(text))
            names, given[word] = list(table), tuple(table.values())
        else:
            given[word] = _typed(word, text, known.get(word))
    audience = simulate.make(name, given)
    return audience, names or list(audience.names) or simulate.names(audience.arms)


def _typed(word: str, text: str, default: Any) -> Any:
    """A value of the type that the default has."""
    if word == "rates":
        return tuple(_number(one, "a rate", hint="give numbers, 0.9,0.8, or a CSV arm,rate") for one in text.split(","))
    if word == "jumps":
        return tuple(_jump(one) for one in text.split(",")) if text != "none" else ()
    if isinstance(default, int):
        return _whole(text, word)
    return _number(text, word) if isinstance(default, float) else text


def _jump(text: str) -> tuple[int, float, int, int]:
    parts = text.split(":")
    if len(parts) != 4:
        raise InputError(f"a jump is {text!r}", hint="write ARM:RATE:FROM:TO, as 2:0.9:3000:5000")
    arm, rate, start, end = parts
    return _whole(arm, "a jump's arm"), _number(rate, "a jump's rate"), _whole(start, "a time"), _whole(end, "a time")


def _number(text: str, what: str, *, hint: str = "give a number") -> float:
    try:
        return float(text.strip().replace("_", "?"))
    except ValueError:
        raise InputError(f"{what} is {text!r}", hint=hint) from None


def _whole(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 18):
        raise InputError(f"{what} is {text!r}", hint="give a whole number")
    return int(text)
