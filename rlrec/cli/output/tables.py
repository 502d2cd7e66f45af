"""Tables that a person reads, and csv. In a pipe a table has everything, at its natural width."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

from rlrec.cli.output.cells import FILLER, Column, cell
from rlrec.cli.output.plain import dumps, mapping, single
from rlrec.cli.text.text import Screen, View, printable


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


def _grid(view: View, screen: Screen) -> str:
    """Columns of verbatim cells."""
    body = [list(row) for row in view.rows]
    values = list(zip(*body, strict=True)) if body else [()] * len(view.headers)
    named = list(zip(view.headers, values, strict=True))
    if screen == Screen():
        return _draw([Column(*pair) for pair in named], padding=2)
    from rlrec.cli.output import terminal

    columns = terminal.columns_of(view, named, screen)
    if screen.width is None:
        return _draw(columns, padding=2)
    shown = terminal.fit(columns, screen.width, view.drop)
    hidden = [column.header for column in columns if column not in shown]
    text = _draw(shown, padding=0)  # of a header: a terminal has no room for it
    return text + (wrapped(f"not shown: {', '.join(hidden)} (--format csv has all)", screen) if hidden else "")


def _draw(columns: Sequence[Column], *, padding: int) -> str:
    import tabulate

    tabulate.MIN_PADDING = padding
    text = tabulate.tabulate(
        list(zip(*([column.draw(text) for text in column.cells] for column in columns), strict=True)),
        headers=[column.draw(column.header) for column in columns],
        colalign=["right" if column.numeric else "left" for column in columns],
        disable_numparse=True,
        preserve_whitespace=True,
    )
    return text.replace(FILLER, "") + "\n"


def wrapped(line: str, screen: Screen) -> str:
    """A line above or below a table; on a terminal on several ones where it is too long."""
    if screen.width is None:
        return printable(line) + "\n"
    from rlrec.cli.output.terminal import fold

    return fold(line, screen.width)


def view(view: View, screen: Screen) -> str:
    """A view: title, grid and notes."""
    title, notes = (
        "".join(_grid(item, screen) if isinstance(item, View) else wrapped(item, screen) for item in items)
        for items in (view.title, view.notes)
    )
    return title + ("\n" if title else "") + _grid(view, screen) + ("\n" if notes else "") + notes


def table(result: Any, columns: Sequence[str] | None, screen: Screen) -> str:
    """One record as a sheet, several as a grid."""
    if single(result):
        return _sheet(mapping(result), screen)
    if not isinstance(result, Iterable) or isinstance(result, str):
        return cell(result) + "\n"
    records = [mapping(record) for record in result]
    keys = list(columns or dict.fromkeys(key for record in records for key in record))
    return _grid(View(keys, [[record.get(key) for key in keys] for record in records]), screen) if keys else ""


def _sheet(record: Mapping[str, Any], screen: Screen) -> str:
    """One record: a line a key; a list of records below, as a table of its own."""
    lists = {key: value for key, value in record.items() if isinstance(value, list | tuple)}
    nested = {key: value for key, value in lists.items() if value and all(map(single, value))}
    flat = {key: value for key, value in record.items() if key not in nested}
    width = max(map(len, flat), default=0)
    lines = "".join(wrapped(f"{key.ljust(width)}  {cell(value) or '-'}", screen) for key, value in flat.items())
    return lines + "".join(f"\n{printable(key)}\n{table(value, None, screen)}" for key, value in nested.items())
