"""Tables that a person reads, and csv."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

from rlrec.cli.plain import dumps, mapping, single
from rlrec.cli.text import printable


def _csv_cell(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    return json.loads(text) if (text := dumps(value)).startswith('"') else text


def csv(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    """The lines of a csv (RFC 4180)."""
    from csv import writer as csv_writer

    line: Any = SimpleNamespace(write=lambda text: text.encode("utf-8", "backslashreplace"))
    writer = csv_writer(line)  # `writerow` returns what `write` does
    for row in chain([headers], rows):
        yield writer.writerow([_csv_cell(value) for value in row])


def csv_records(records: Iterator[Any], columns: Sequence[str] | None) -> Iterator[bytes]:
    """A csv whose header is `columns`, else the keys of the first record."""
    first = next(records, None)
    if first is None:
        return csv(columns, ()) if columns else iter(())
    keys = columns or list(mapping(first))
    return csv(keys, (_row(record, keys) for record in chain([first], records)))


def _row(record: Any, keys: Sequence[str]) -> list[Any]:
    values = mapping(record)
    if extra := values.keys() - set(keys):
        raise ValueError(f"a row has keys that the header lacks: {sorted(extra)}")
    return [values.get(key) for key in keys]


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
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return _number(value)
    shown = json.loads(dumps(value))
    if isinstance(shown, list) and not any(isinstance(item, dict | list) for item in shown):
        return ", ".join(map(cell, shown))
    return cell(shown) if not isinstance(shown, dict | list) else printable(dumps(shown))


def _grid(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns of verbatim cells, numbers to the right."""
    import tabulate

    body = [list(row) for row in rows]
    numeric = [
        any(map(_numeric, column)) and all(value is None or _numeric(value) for value in column)
        for column in (zip(*body, strict=True) if body else [()] * len(headers))
    ]
    tabulate.PRESERVE_WHITESPACE = True  # tabulate 0.9; 0.10 has an argument
    has_argument = "preserve_whitespace" in tabulate.tabulate.__code__.co_varnames
    keep: dict[str, Any] = {"preserve_whitespace": True} if has_argument else {}
    align = ["right" if right else "left" for right in numeric]
    cells = [[cell(value) for value in row] for row in body]
    text: str = tabulate.tabulate(cells, headers=[*headers], colalign=align, disable_numparse=True, **keep)
    return "".join(line.rstrip() + "\n" for line in text.split("\n"))


def lines(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A grid as lines, for the title or the notes of a view."""
    return _grid(headers, rows).splitlines()


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def view(headers: Sequence[str], rows: Iterable[Sequence[Any]], title: Sequence[str], notes: Sequence[str]) -> str:
    """A view: title, grid and notes."""
    above, below = ("".join(f"{printable(line)}\n" for line in lines) for lines in (title, notes))
    return above + ("\n" if above else "") + _grid(headers, rows) + ("\n" if below else "") + below


def table(result: Any, columns: Sequence[str] | None) -> str:
    """One record as a sheet, several as a grid."""
    if single(result):
        return _sheet(mapping(result))
    if not isinstance(result, Iterable) or isinstance(result, str):
        return cell(result) + "\n"
    records = [mapping(record) for record in result]
    keys = list(columns or dict.fromkeys(key for record in records for key in record))
    return _grid(keys, [[record.get(key) for key in keys] for record in records]) if keys else ""


def _sheet(record: Mapping[str, Any]) -> str:
    """One record: a line a key; a list of records below, as a table of its own."""
    lists = {key: value for key, value in record.items() if isinstance(value, list | tuple)}
    nested = {key: value for key, value in lists.items() if value and all(map(single, value))}
    flat = {key: value for key, value in record.items() if key not in nested}
    width = max(map(len, flat), default=0)
    lines = "".join(f"{printable(key).ljust(width)}  {cell(value)}\n" for key, value in flat.items())
    return lines + "".join(f"\n{printable(key)}\n{table(value, None)}" for key, value in nested.items())
