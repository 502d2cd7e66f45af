"""The only place that formats a result: table, json, ndjson, csv. Always UTF-8, never a NaN, keys as given.

A result is a record (a dataclass, a msgspec Struct, a mapping), or a list or an iterator of records. An iterator is
written as it comes, except as a table.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from datetime import date, datetime
from enum import Enum
from pathlib import PurePath
from typing import Any

import click

from rlrec.cli.text import printable
from rlrec.times import EPOCH, written

FORMATS = ("table", "json", "ndjson", "csv")
PAUSE_S = 0.2


@dataclass(frozen=True, kw_only=True)
class View:
    """What a person sees of a result: lines of text, rows of raw values under their headers, and notes to these."""

    headers: Sequence[str]
    rows: Iterable[Sequence[Any]]
    title: Sequence[str] = ()
    notes: Sequence[str] = ()


class Show:
    """Writes results in the format that the user asked for."""

    def __init__(self, form: str) -> None:
        self.format = form

    def __call__(
        self,
        result: Any,
        *,
        table: View | None = None,
        columns: Sequence[str] | None = None,
        flat: Iterable[Mapping[str, Any]] | None = None,
    ) -> None:
        """Write one result. table: what `--format table` shows instead, and csv where the result is one record.
        columns: the keys of a list of records, which a csv or a table without rows shows too.
        flat: the records that a csv has in place of the one that is the result."""
        if self.format == "csv" and flat is not None:
            _write_all(_csv_records(iter(flat), columns))
        elif self.format == "csv" and table is not None and _single(result):
            _write_all(_csv(table.headers, table.rows))
        elif self.format == "csv":
            _write_all(_csv_records(_records(result), columns))
        elif self.format == "table":
            write((_view(table) if table else _table(result, columns)).encode("utf-8", "backslashreplace"))
        elif self.format == "ndjson":
            _write_all(_line(record) for record in _records(result))
        else:
            _write_all(_json(result))
        flush()

    def stream(self, groups: Iterable[Iterable[Any]]) -> None:
        """Write the answers to a stream, one JSON object a line whatever the format, each group at once."""
        if self.format == "csv":
            raise click.UsageError("a stream is answered in ndjson, not in csv")
        for group in groups:
            write(_lines([*group]))
            flush()


# -- bytes --


def write(data: bytes) -> None:
    """All of `data` to stdout. Raises OSError, also where stdout is closed."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    stream, rest = sys.stdout.buffer, memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]  # an unbuffered stream may take a part


def flush() -> None:
    """What was written goes out now."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _write_all(parts: Iterable[bytes]) -> None:
    """Write parts as they come; what waits is sent after the first one, and then every fifth of a second."""
    sent = -math.inf
    for part in parts:
        write(part)
        if (now := time.monotonic()) - sent > PAUSE_S:
            flush()
            sent = now


# -- plain values --


def _names(kind: type) -> tuple[str, ...] | None:
    """The fields of a record's class; None if it is no record."""
    if kind not in _known:
        named = tuple(field.name for field in fields(kind)) if is_dataclass(kind) else None
        _known[kind] = named or getattr(kind, "__struct_fields__", None)
    return _known[kind]


_known: dict[type, tuple[str, ...] | None] = {}


def plain(value: Any) -> Any:
    """The JSON value of what `json` does not know by itself."""
    if (names := _names(type(value))) is not None:
        return {name: getattr(value, name) for name in names}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=EPOCH.tzinfo)
        since = moment - EPOCH
        return written((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):  # an array, or a number out of one
        return value.tolist()
    raise TypeError(f"cannot show a {type(value).__name__}")


def dumps(value: Any) -> str:
    """Compact JSON on one line. Raises ValueError for a NaN or an infinity."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=plain)


def _line(record: Any) -> bytes:
    return dumps(record).encode("utf-8", "backslashreplace") + b"\n"


def _lines(records: list[Any]) -> bytes:
    """Many records, a JSON object a line. msgspec writes them, but not what it reads back as another thing: a NaN."""
    import msgspec

    with suppress(TypeError, ValueError):
        data = msgspec.json.Encoder().encode_lines(records)
        if msgspec.json.Decoder().decode_lines(data) == records:
            return data
    return b"".join(map(_line, records))


def _single(result: Any) -> bool:
    return isinstance(result, Mapping) or _names(type(result)) is not None


def _records(result: Any) -> Iterator[Any]:
    return iter([result]) if _single(result) else iter(result)


def _json(result: Any) -> Iterator[bytes]:
    """One document; a list has one record a line."""
    if _single(result) or not isinstance(result, Iterable):
        yield _line(result)
        return
    before = b"["
    for record in result:
        yield before + _line(record)[:-1]
        before = b",\n "
    yield b"[]\n" if before == b"[" else b"]\n"


def _mapping(record: Any) -> Mapping[str, Any]:
    found = record if isinstance(record, Mapping) else plain(record)
    if not isinstance(found, Mapping):
        raise TypeError(f"cannot show a {type(record).__name__} as a row")
    return found


# -- csv (RFC 4180) --


def _csv_cell(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    return json.loads(text) if (text := dumps(value)).startswith('"') else text


def _csv(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    for row in _first_then([*headers], rows):
        writer.writerow([_csv_cell(value) for value in row])
        yield buffer.getvalue().encode("utf-8", "backslashreplace")
        buffer.seek(0)
        buffer.truncate()


def _first_then(first: Sequence[Any], rest: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    yield first
    yield from rest


def _csv_records(records: Iterator[Any], columns: Sequence[str] | None) -> Iterator[bytes]:
    """A csv whose header is `columns`, else the keys of the first record."""
    first = next(records, None)
    if first is None:
        return _csv(columns, ()) if columns else iter(())
    keys = columns or list(_mapping(first))
    return _csv(keys, (_row(record, keys) for record in _first_then(first, records)))


def _row(record: Any, keys: Sequence[str]) -> list[Any]:
    values = _mapping(record)
    if extra := values.keys() - set(keys):
        raise ValueError(f"a row has keys that the header lacks: {sorted(extra)}")
    return [values.get(key) for key in keys]


# -- tables --


def _number(value: float) -> str:
    if not math.isfinite(value):
        raise ValueError(f"cannot show {value}")
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.1f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def cell(value: Any) -> str:
    """A value as a person reads it in a table: text verbatim, but nothing that moves the cursor."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return _number(value)
    shown = json.loads(dumps(value))
    if isinstance(shown, list) and not any(isinstance(item, dict | list) for item in shown):
        return ", ".join(map(cell, shown))
    return cell(shown) if not isinstance(shown, dict | list | int) else printable(dumps(shown))


def _grid(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns of verbatim cells, numbers to the right."""
    import tabulate

    body = [list(row) for row in rows]
    numeric = [
        any(map(_numeric, column)) and all(value is None or _numeric(value) for value in column)
        for column in (zip(*body, strict=True) if body else [()] * len(headers))
    ]
    tabulate.PRESERVE_WHITESPACE = True  # tabulate 0.9; 0.10 has an argument
    keep: dict[str, Any] = {"preserve_whitespace": True} if _has_argument(tabulate.tabulate) else {}
    align = ["right" if right else "left" for right in numeric]
    cells = [[cell(value) for value in row] for row in body]
    text: str = tabulate.tabulate(cells, headers=[*headers], colalign=align, disable_numparse=True, **keep)
    return "".join(line.rstrip() + "\n" for line in text.split("\n"))


def _has_argument(function: Any) -> bool:
    return "preserve_whitespace" in function.__code__.co_varnames


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _view(view: View) -> str:
    title, notes = ("".join(f"{printable(line)}\n" for line in lines) for lines in (view.title, view.notes))
    return title + ("\n" if title else "") + _grid(view.headers, view.rows) + ("\n" if notes else "") + notes


def _table(result: Any, columns: Sequence[str] | None) -> str:
    if _single(result):
        return _sheet(_mapping(result))
    if not isinstance(result, Iterable) or isinstance(result, str):
        return cell(result) + "\n"
    records = [_mapping(record) for record in result]
    keys = list(columns or dict.fromkeys(key for record in records for key in record))
    return _grid(keys, [[record.get(key) for key in keys] for record in records]) if keys else ""


def _sheet(record: Mapping[str, Any]) -> str:
    """One record: a line a key; a list of records below, as a table of its own."""
    nested = {key: value for key, value in record.items() if _tabular(value)}
    flat = {key: value for key, value in record.items() if key not in nested}
    width = max(map(len, flat), default=0)
    lines = "".join(f"{printable(key).ljust(width)}  {cell(value)}\n" for key, value in flat.items())
    return lines + "".join(f"\n{printable(key)}\n{_table(value, None)}" for key, value in nested.items())


def _tabular(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_single, value))
