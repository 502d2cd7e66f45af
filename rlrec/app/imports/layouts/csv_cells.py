"""Functions here parse the text of a cell of CSV. They return the value for its column."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, timedelta, tzinfo
from itertools import repeat
from json.encoder import encode_basestring
from math import isfinite
from sys import intern
from typing import Any

import msgspec
import numpy as np

from rlrec import times
from rlrec.app.imports.layouts.jsonl import EventEntry
from rlrec.app.inputs import canonical
from rlrec.arrays import Ids
from rlrec.errors import InputError
from rlrec.log_fields import DECISION, SLOT, LogField
from rlrec.policy.gradients import history

NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
# numbers whose text is canonical already: up to 15 digits, no exponent, no 0 at the end of decimals
CANONICAL = re.compile(r"0|-?[1-9][0-9]{0,14}|-?0\.(?!0000)[0-9]{0,13}[1-9]|-?[1-9][0-9]{0,6}\.[0-9]{0,7}[1-9]")
WITH_COMMA = re.compile(r"[-+]?[0-9]*,[0-9]+([eE][-+]?[0-9]+)?")
WORDS = {"true": "true", "True": "true", "false": "false", "False": "false"}
EPOCH_UNITS = ((10**11, 1_000_000), (10**14, 1_000), (10**17, 1))  # below: seconds, milliseconds, microseconds

QUARTER_US = 900 * times.SECOND  # clocks change at quarters of an hour
ZONE_FORM = re.compile(r"(?:Z|([+-])([0-9]{2}):([0-9]{2}))?$")  # at the end of a time
DIGITS = str.maketrans("123456789", "0" * 9)
# of times without a zone, with all digits replaced by 0
FRACTIONS = "", *("." + digits * "0" for digits in range(1, 7))
SHAPES = {f"0000-00-00{mark}00:00:00{fraction}" for mark in "T " for fraction in FRACTIONS}

Parse = Callable[[Any], Any]  # of a cell, or of several
TimedEvents = Sequence[tuple[EventEntry, int | None]]


def optional_text(cell: str) -> str | None:
    """Return the text of a cell, or None if the cell is empty."""
    return cell or None


def integer(cell: str) -> int | None:
    """Return the whole number in a cell, or None if the cell is empty."""
    if cell and not (cell.isascii() and cell.isdigit()):
        raise InputError(f"{cell[:40]!r} is no whole number")
    return int(cell[:20]) if cell else None


def position(cell: str) -> int:
    """Return the position in a cell. Raises InputError if the cell has none."""
    return integer(cell or "-") or 0


def finite_number(cell: str) -> float:
    """Return the number in a cell. Raises InputError if the cell holds no finite number."""
    with suppress(ValueError):
        if "_" not in cell and isfinite(value := float(cell)):
            return value
    hint = '"decimal": "," in the map reads it' if WITH_COMMA.fullmatch(cell) else None
    raise InputError(f"{cell[:40]!r} is no finite number, such as 0.5; of an event true or false will do", hint=hint)


def with_point(cell: str) -> str:
    """Return the cell with a decimal point in place of a decimal comma."""
    return cell.replace(",", ".") if WITH_COMMA.fullmatch(cell) else cell


def number(cell: str) -> float | None:
    """Return the number in a cell, or None if the cell is empty."""
    return finite_number(cell) if cell else None


def count(cell: str) -> float | None:
    """Return the value of an event, or None if the cell says that there was no event."""
    boolean = WORDS.get(cell)
    return {"true": 1.0, "false": None}[boolean] if boolean else number(cell) or None


def flag(cell: str) -> int:
    """Return 1 if the cell says yes, and 0 if it says no or is empty."""
    value = count(cell) or 0
    if value not in (0, 1):
        raise InputError(f"{cell[:40]!r} is neither 0 nor 1")
    return int(value)


def mark(cell: str) -> int | None:
    """Return 1 if the cell says yes, and None if it says no or is empty."""
    return flag(cell) or None


def piece(name: str, cell: str) -> str:
    """Return the JSON member, such as `"age":31`, that a cell adds to a context. The value is a number, true or
    false if the cell looks like one in JSON, else a text. The result is "" for an empty cell. name: the field of the
    context."""
    return f"{encode_basestring(name)}:{_json_text(cell)}" if cell else ""


def _json_text(cell: str) -> str:
    """Return the canonical JSON of a cell, which is a number, true, false or a text."""
    if CANONICAL.fullmatch(cell):
        return cell
    if (text := WORDS.get(cell)) is not None:
        return text
    if not (NUMBER.fullmatch(cell) and isfinite(float(cell))):
        return encode_basestring(cell)
    return str(int(cell)) if cell.lstrip("-").isdigit() else canonical.number(float(cell))


def arms(cell: str) -> tuple[str, ...]:
    """Return the arms that a cell lists, in order and without repetition. The list is JSON, or keys separated by |, ;
    or commas."""
    if cell.startswith("["):
        try:
            arm_keys = json.loads(cell)
        except ValueError:
            raise InputError(f"{cell[:40]!r} is no JSON list") from None
        keys = [str(arm) if isinstance(arm, str | int) and not isinstance(arm, bool) else "" for arm in arm_keys]
    else:
        keys = list(map(str.strip, cell.split(next((mark for mark in "|;" if mark in cell), ","))))
    return tuple(sorted(set(keys)))


def instants(cells: Sequence[str], default: tzinfo | None = None) -> list[int] | None:
    """Return times in microseconds since 1970, or None unless all cells look like 2026-01-31T12:00:00.5 and have the
    same end: Z, an offset from UTC, or nothing. default: the zone of times that name no zone (None: UTC)."""
    if not cells or (zone := ZONE_FORM.search(cells[0])) is None or not all(map(str.endswith, cells, repeat(zone[0]))):
        return None
    local_times = list(map(str.removesuffix, cells, repeat(zone[0])))
    if not set("\n".join(local_times).translate(DIGITS).split("\n")) <= SHAPES:
        return None
    hours, minutes = (int(digits or 0) for digits in zone.group(2, 3))
    offset = (hours * 60 + minutes) * 60 * times.SECOND * (-1 if zone[1] == "-" else 1)
    with suppress(ValueError):
        ats = np.array(local_times, f"U{max(map(len, local_times))}").astype("datetime64[us]").astype(np.int64) - offset
        if hours < 24 and minutes < 60 and ats.min() >= times.FIRST:
            return (ats if zone[0] or default is None else _in_zone(ats, default)).tolist()
    return None


def _in_zone(ats: Ids, zone: tzinfo) -> Ids:
    """Return the moments at which the clocks of a zone show these times. If clocks show a time twice, the first moment
    counts."""
    quarters, inverse = np.unique(ats // QUARTER_US * QUARTER_US, return_inverse=True)
    datetimes = ((times.EPOCH + timedelta(microseconds=quarter)).replace(tzinfo=zone) for quarter in quarters.tolist())
    moments = [(moment - times.EPOCH) // timedelta(microseconds=1) for moment in datetimes]
    return ats + (np.array(moments) - quarters)[inverse]


def time(cell: str, default: tzinfo | None = None) -> int:
    """Return a time in microseconds since 1970. If a cell is a number, it counts seconds, milliseconds or microseconds
    since 1970. default: the zone of times that name no zone (None: UTC)."""
    if not re.fullmatch(r"[0-9]{9,17}(\.[0-9]+)?", cell):
        return times.parse(cell, default=default or UTC)
    value = float(cell) if "." in cell else int(cell)
    return next(int(value * unit) for limit, unit in EPOCH_UNITS if value < limit)


def states(cell: str) -> tuple[str, Any]:
    """Return the state of a decision, as canonical JSON, and the history of its visit. A cell of JSON holds both."""
    if not cell:
        return "{}", None
    state, past = history.from_json(_json(cell, dict[str, Any]))
    return canonical.text(state), past


def objects(cell: str) -> str:
    """Return the JSON object in a cell as canonical JSON. An empty cell gives an empty object."""
    return canonical.text(_json(cell or "{}", dict[str, Any]))


def events(cell: str) -> TimedEvents:
    """Return the events that a cell lists in JSON. Each event has a time or None."""
    entries = _json(cell, list[EventEntry]) if cell else ()
    return [(entry, None if entry.at is None else times.parse(entry.at)) for entry in entries]


def _json(cell: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(cell, type=kind)
    except msgspec.MsgspecError as error:
        raise InputError(f"{cell[:40]!r} is no JSON as expected: {error}") from None


def _parse(field: LogField) -> Parse:
    if field.table is not None or field.kind is str:
        return optional_text if field.optional else str
    return {int: integer, float: number, bool: mark if field.optional else flag}[field.kind]


NAMES = {"k": "size", "decision_id": "decision"}  # words of a map whose keys in a line differ
_FIELDS = {NAMES.get(field.key, field.key): field for field in DECISION if field.in_csv}
SLOT_PARSERS: dict[str, Parse] = {field.key: _parse(field) for field in SLOT if field.in_csv}
SLOT_PARSERS |= {"position": position, "arm": intern}
# words without a parser: `decision` has no column in the store, `context` may have several
UNPARSED = ("decision", "context")
DECISION_PARSERS: dict[str, Parse] = {word: _parse(_FIELDS[word]) for word in _FIELDS if word not in UNPARSED}
DECISION_PARSERS |= {"user": optional_text, "at": time, "eligible": arms, "policy": intern, "state": states}
"""These tables give the parser of each word that stands for one column, of slots and of decisions."""
