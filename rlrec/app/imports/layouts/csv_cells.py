"""The cells of a table in CSV: the text of each becomes what its column holds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import repeat
from json.encoder import encode_basestring
from math import isfinite
from typing import Any

import msgspec
import numpy as np

from rlrec import times
from rlrec.app.imports.layouts.fields import (
    KEY_LENGTH,
    EventEntry,
    at_least,
    bounded,
    checked,
    finite,
    key,
    policy_name,
)
from rlrec.app.inputs import canonical
from rlrec.errors import InputError
from rlrec.log_fields import DECISION, SLOT, LogField
from rlrec.policy.gradients import history

NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
# numbers whose text is canonical as it stands: up to 15 digits, without an exponent, the last behind a point not 0
CANONICAL = re.compile(r"0|-?[1-9][0-9]{0,14}|-?0\.(?!0000)[0-9]{0,13}[1-9]|-?[1-9][0-9]{0,6}\.[0-9]{0,7}[1-9]")
WORDS = {"true": "true", "True": "true", "false": "false", "False": "false"}
EPOCH_UNITS = ((10**11, 1_000_000), (10**14, 1_000), (10**17, 1))  # below: seconds, milliseconds, microseconds

ENDING = re.compile(r"(?:Z|([+-])([0-9]{2}):([0-9]{2}))?$")  # of a time
DIGITS = str.maketrans("123456789", "0" * 9)
# of times without that, their digits all 0
FRACTIONS = "", *("." + digits * "0" for digits in range(1, 7))
SHAPES = {f"0000-00-00{mark}00:00:00{fraction}" for mark in "T " for fraction in FRACTIONS}

Parse = Callable[[str, str], Any]  # of a cell, and of the name of its column


def _position(cell: str, name: str) -> int:
    if not (cell.isascii() and cell.isdigit() and len(cell) < 7 and int(cell) > 0):
        raise InputError(f"{cell[:40]!r} is no position", hint="they count from 1", field=name)
    return int(cell)


def number(cell: str, name: str) -> float | None:
    """The number in a cell, None in an empty one."""
    return bounded(finite(cell, name), name) if cell else None


def count(cell: str, name: str) -> float | None:
    """The value of an event; None where a cell says that there was none."""
    word = WORDS.get(cell)
    return {"true": 1.0, "false": None}[word] if word else number(cell, name) or None


def pieces(cells: Sequence[str], name: str) -> list[str]:
    """The fields of contexts in a column: numbers where a cell looks like one in JSON, true, false, or texts; empty
    where a cell is."""
    start, is_canonical = f"{encode_basestring(name)}:", CANONICAL.fullmatch
    texts = {cell: start + (cell if is_canonical(cell) else _json_text(cell)) for cell in set(cells)}
    if "" in texts:
        texts[""] = ""
    return list(map(texts.__getitem__, cells))


def _json_text(cell: str) -> str:
    """The canonical JSON of a cell."""
    if (text := WORDS.get(cell)) is not None:
        return text
    return _number(cell) if NUMBER.fullmatch(cell) and isfinite(float(cell)) else encode_basestring(cell)


def _number(cell: str) -> str:
    """The canonical text of a number in JSON."""
    return str(int(cell)) if cell.lstrip("-").isdigit() else canonical.number(float(cell))


def are_keys(cells: Sequence[str]) -> bool:
    """Whether every cell is a key, as `fields.key` checks them."""
    lengths = set(map(len, cells))
    return bool(lengths) and min(lengths) > 0 and max(lengths) <= KEY_LENGTH and "\x00" not in "".join(cells)


def arms(cell: str, name: str) -> tuple[str, ...]:
    """The arms that a cell lists: JSON, or keys between |, ; or commas."""
    if cell.startswith("["):
        try:
            listed = json.loads(cell)
        except ValueError:
            raise InputError(f"{cell[:40]!r} is no JSON list", field=name) from None
        keys = [str(arm) if isinstance(arm, str | int) and not isinstance(arm, bool) else "" for arm in listed]
    else:
        keys = list(map(str.strip, cell.split(next((mark for mark in "|;" if mark in cell), ","))))
    return tuple(sorted({key(arm, name) for arm in keys}))


def instants(cells: Sequence[str]) -> list[int] | None:
    """Microseconds since 1970 of times that all look like 2026-01-31T12:00:00.5, and end alike: with nothing, Z or one
    offset from UTC; else None."""
    if not cells or (ending := ENDING.search(cells[0])) is None or not all(map(str.endswith, cells, repeat(ending[0]))):
        return None
    local = list(map(str.removesuffix, cells, repeat(ending[0])))
    if not set("\n".join(local).translate(DIGITS).split("\n")) <= SHAPES:
        return None
    hours, minutes = (int(digits or 0) for digits in ending.group(2, 3))
    offset = (hours * 60 + minutes) * 60 * times.SECOND * (-1 if ending[1] == "-" else 1)
    with suppress(ValueError):
        ats = np.array(local, f"U{max(map(len, local))}").astype("datetime64[us]").astype(np.int64) - offset
        return ats.tolist() if hours < 24 and minutes < 60 and ats.min() >= times.FIRST else None
    return None


def epoch(cell: str) -> int | None:
    """Microseconds since 1970 of a time written as a number: of seconds, milliseconds or microseconds, by its size."""
    if not re.fullmatch(r"[0-9]{9,17}(\.[0-9]+)?", cell):
        return None
    value = float(cell) if "." in cell else int(cell)
    return next(int(value * unit) for limit, unit in EPOCH_UNITS if value < limit)


def states(cell: str, name: str) -> tuple[str, Any] | None:
    """The state of a decision, as canonical JSON, and the history of its visit, from a cell that holds both in JSON."""
    if not cell:
        return None
    state, shown = history.from_json(_json(cell, name, dict[str, Any]))
    return canonical.text(state), shown


def objects(cell: str, name: str) -> str:
    """Canonical JSON of a cell that holds an object."""
    return canonical.text(_json(cell or "{}", name, dict[str, Any]))


def events(cell: str, name: str) -> list[EventEntry]:
    """The events that a cell lists in JSON."""
    return _json(cell, name, list[EventEntry]) if cell else []


def _json(cell: str, name: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(cell, type=kind)
    except msgspec.MsgspecError as error:
        raise InputError(f"{cell[:40]!r} is no JSON as expected: {error}", field=name) from None


def _optional(parse: Parse) -> Parse:
    return lambda cell, name: parse(cell, name) if cell else None


def _integer(least: int) -> Parse:
    def parse(cell: str, name: str) -> int | None:
        if not cell.isascii() or not cell.isdigit():
            raise InputError(f"{cell[:40]!r} is no whole number", field=name)
        return at_least(int(cell[:20]), least, name)

    return _optional(parse)


def _checked(field: LogField) -> Parse:
    read = count if field.kind is bool else number
    return lambda cell, name: checked(read(cell, name), field, name)


OF_SLOT: Mapping[str, Parse] = {
    "arm": key,
    "position": _position,
    **{field.name: _checked(field) for field in SLOT if field.in_csv and field.kind is float},
}
OF_DECISION: Mapping[str, Parse] = {
    "session": key,
    "user": _optional(key),
    "request_id": _optional(key),
    "policy": policy_name,
    "visit": _integer(1),
    "step": _integer(0),
    "state": states,
    "size": _integer(1),
    **{field.name: _checked(field) for field in DECISION if field.in_csv and field.kind in (float, bool)},
}
