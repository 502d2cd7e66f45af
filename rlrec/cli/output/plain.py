"""This module turns results into JSON values and JSON text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from rlrec.errors import InputError
from rlrec.times import EPOCH, format_time

SCHEMA_VERSION = 1  # raised when a key of an answer disappears or changes its meaning
NOT_FINITE = rb"\xcb[\x7f\xff][\xf0-\xff]"  # first bytes of a double in MessagePack whose exponent is all ones
MAX_PATH_NAMES = 8  # names of the fields around one that cannot be written


@cache
def _field_names(kind: type) -> tuple[str, ...] | None:
    """Return the names of the fields of a class of records, or None for another class."""
    if not hasattr(kind, "__dataclass_fields__"):
        return getattr(kind, "__struct_fields__", None)
    from dataclasses import fields

    return tuple(field.name for field in fields(kind))


def json_value(value: Any) -> Any:
    """Return the JSON value of an object that the module `json` cannot write by itself. Raises TypeError for an object
    without a JSON value."""
    if (names := _field_names(value.__class__)) is not None:
        return {name: getattr(value, name) for name in names}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=EPOCH.tzinfo)
        duration = moment - EPOCH
        return format_time((duration.days * 86_400 + duration.seconds) * 1_000_000 + duration.microseconds)
    if isinstance(value, timedelta):
        return f"{value.total_seconds():.6f}s"
    if hasattr(value, "tolist"):  # an array, or a number from one
        return value.tolist()
    raise TypeError(f"cannot show a {type(value).__name__}")


def dumps(value: Any) -> str:
    """Return compact JSON on one line. Raises ValueError for a NaN or an infinity."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=json_value)


def dumps_fields(values: Mapping[str, Any]) -> str:
    """Return a mapping as JSON. Raises InputError if JSON has no form for a value; the error names the first such
    field, such as `context.price`."""
    try:
        return dumps(values)
    except (TypeError, ValueError, RecursionError) as error:
        message = str(error)
    field, value = _first_unwritable(values)
    with suppress(TypeError, ValueError, RecursionError):  # what can be written with NaN lacks nothing else
        json.dumps(value, default=json_value)
        message = "JSON has no NaN and no infinity"
    raise InputError(message, hint="leave out what is missing; give text or numbers", field=field)


def _first_unwritable(value: Any, *names: str) -> tuple[str, Any]:
    """Return the first field that JSON cannot hold, as a pair of its name and its value. The name is a path, such as
    `context.price`.

    `names` are the names of the fields around `value`."""
    for key, item in value.items() if isinstance(value, Mapping) and len(names) < MAX_PATH_NAMES else ():
        try:
            dumps(item)
        except (TypeError, ValueError, RecursionError):
            return _first_unwritable(item, *names, str(key))
    return ".".join(names), value  # or a mapping with a key that is no text


def json_line(record: Any) -> bytes:
    """Return a record as one line of JSON."""
    return dumps(record).encode("utf-8", "backslashreplace") + b"\n"


def json_lines(group: Sequence[Any]) -> bytes:
    """Return many records of JSON values as text, with one object per line. If several records share an object
    `fields`, the object is encoded once."""
    drawn_answers = [record for record in group if hasattr(record, "fields")]
    if not drawn_answers:
        return _encode_lines(group)
    shared_fields = {id(record.fields): record.fields for record in drawn_answers}
    texts = dict(zip(shared_fields, _encode_lines([*shared_fields.values()]).decode().split("\n"), strict=False))
    answers = lines = drawn_answers[0].lines(drawn_answers, {key: f"{text[1:]}\n" for key, text in texts.items()})
    if len(drawn_answers) < len(group):
        lines = (next(answers) if hasattr(record, "fields") else _encode_lines([record]).decode() for record in group)
    return "".join(lines).encode()


def _encode_lines(group: Sequence[Any]) -> bytes:
    """Return many records of JSON values as text, with one object per line. Raises an error for NaN and infinity.

    The encoder is msgspec, which would write NaN and infinity as null. To find them, the records are first encoded
    in MessagePack, where NaN and infinity begin with bytes that no text contains. If such bytes are found, the slow
    encoder is used, which raises an error."""
    import msgspec

    with suppress(TypeError, ValueError, OverflowError):
        if re.search(NOT_FINITE, msgspec.msgpack.encode(group)) is None:
            return msgspec.json.Encoder().encode_lines(group)
    return b"".join(map(json_line, group))


def is_record(result: Any) -> bool:
    """Tell whether a result is one record."""
    return isinstance(result, Mapping) or _field_names(result.__class__) is not None


def iterate_records(result: Any) -> Iterator[Any]:
    """Return an iterator over the records of a result, which may be a single record."""
    return iter([result]) if is_record(result) else iter(result)


def json_document(result: Any) -> Iterator[bytes]:
    """Yield the chunks of one JSON document. A single record becomes an object with the additional key
    `schema_version`. Several records become a list with one record per line."""
    if is_record(result):
        yield json_line({**record_mapping(result), "schema_version": SCHEMA_VERSION})
        return
    if not isinstance(result, Iterable):
        yield json_line(result)
        return
    separator = b"["
    for record in result:
        yield separator + json_line(record)[:-1]
        separator = b",\n "
    yield b"[]\n" if separator == b"[" else b"]\n"


def record_mapping(record: Any) -> Mapping[str, Any]:
    """Return the keys and values of a record as a mapping."""
    values = record if isinstance(record, Mapping) else json_value(record)
    if not isinstance(values, Mapping):
        raise TypeError(f"cannot show a {type(record).__name__} as a row")
    return values
