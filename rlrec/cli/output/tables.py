"""This module lays out tables for people, and csv. In a pipe a table has all columns at their natural width. On a
terminal no line is longer than the terminal is wide: columns are left out in the order that the view declares, long
texts are cut, and lines above and below a table are wrapped. On a terminal verdicts have a colour."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

from rlrec import times
from rlrec.cli.output.plain import dumps, is_record, iterate_records, record_mapping
from rlrec.cli.text.text import Screen, View, escape_unprintable

FILLER = "\0"  # occurs in no cell; len() counts it
COLUMN_GAP = "  "
ELLIPSIS = "..."
TEXT_WIDTH = 16  # to which text cells are elided before a declared column is left out
MIN_WIDTH = 6  # of an elided column
OUTSIDE_COMMANDS = r"(?=[^`]*(?:`[^`]*`[^`]*)*\Z)"  # of a command between backquotes, which must stay runnable
TIME_PATTERN = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)\.\d{6}Z" + OUTSIDE_COMMANDS)
COLOURS = {"ok": 32, "weak": 33, "warning": 33, "insufficient": 31, "error": 31}
INTERVAL_COLUMNS = ("value", "lower", "upper")  # columns that share their number of decimals
VERDICT_COLUMNS = ("verdict", "result", "severity")  # columns with colours
VERDICT_PATTERN = re.compile(rf"(?:\d+ )?({'|'.join(COLOURS)})")
BLOCKS, STEPS = " ▏▎▍▌▋▊▉█", "▁▂▃▄▅▆▇█"


# -- cells --


class Figures(str):
    """A Figures object is the text of a cell with several numbers. Such a text is never cut."""


def is_number(value: Any) -> bool:
    """Tell whether a value is a number. A bool is not a number here."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def cell(value: Any) -> str:
    """Return a value as the text that a table shows. Text is returned verbatim, except for characters that move the
    cursor."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, str):
        return escape_unprintable(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"cannot show {value}")
        if value == int(value) and abs(value) < 1e15:
            return str(int(value))
        return f"{value:.1f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
    tree = json.loads(dumps(value))
    if isinstance(tree, list) and not any(isinstance(item, dict | list) for item in tree):
        return ", ".join(map(cell, tree))
    return cell(tree) if not isinstance(tree, dict | list) else escape_unprintable(dumps(tree))


def record_text(record: Mapping[str, Any]) -> str:
    """Return a record as text for one cell, without the punctuation of JSON, such as hour=9 device=ios."""
    return " ".join(f"{key}={_value_text(value)}" for key, value in record.items())


def _value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({record_text(value)})"
    return f"({', '.join(map(_value_text, value))})" if isinstance(value, list) else cell(value)


def short_times(text: str) -> str:
    """Return a text with its times in the short form of a terminal: cut to seconds, and in the user's time zone. Times
    within commands stay unchanged."""
    if times.zone is None:
        return TIME_PATTERN.sub(r"\1 \2", text)
    return TIME_PATTERN.sub(lambda match: f"{times.local(times.parse(match[0])):%Y-%m-%d %H:%M:%S}", text)


def column_decimals(values: Iterable[Any]) -> int | None:
    """Return the number of decimals for the values of a column, with which the largest value shows four digits. The
    result is None for whole numbers and for texts."""
    numbers = [abs(value) for value in values if is_number(value)]
    if all(value == int(value) for value in numbers if math.isfinite(value)):
        return None
    return min(max(3 - math.floor(math.log10(max(numbers))), 0), 6)


def fixed_decimals(value: float, places: int) -> str:
    """Return a number as text with `places` decimals. A number that would show as 0 gets one significant digit."""
    text = f"{value:.{places}f}"
    return text if value == 0 or float(text) else f"{value:.1g}"


def interval_cell(value: float | None, lower: float | None, upper: float | None, places: int | None) -> Figures:
    """Return a value and its bounds as text for one cell. Without bounds, the text has only the value.

    `places` is the number of decimals of all three numbers."""
    texts = ["-" if number is None else fixed_decimals(number, places or 0) for number in (value, lower, upper)]
    return Figures(texts[0] if lower is None and upper is None else "{} [{}, {}]".format(*texts))


def bar(share: float, *, width: int = 10) -> str:
    """Return a bar of block characters for a share from 0 to 1. A bar for the share 1 is `width` characters long."""
    n_eighths = round(8 * width * min(max(share, 0.0), 1.0))
    return (BLOCKS[8] * (n_eighths // 8) + BLOCKS[n_eighths % 8]).rstrip()


def sparkline(numbers: Sequence[float]) -> str:
    """Return a text with an upright bar for each number. The largest number has the highest bar, and 0 is the base
    line."""
    maximum = max(numbers, default=0) or 1
    return "".join(STEPS[math.ceil(7 * number / maximum)] for number in numbers)


def text_width(text: str) -> int:
    """Return the number of terminal columns that a text takes up."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def elide_text(text: str, width: int) -> str:
    """Return `text`, shortened to at most `width` columns of the terminal."""
    if text_width(text) <= width:
        return text
    text = text[: 2 * width]  # cut first, since the loop below is slow for a long text
    while text_width(text) > max(width - len(ELLIPSIS), 0):
        text = text[:-1]
    return (text + ELLIPSIS)[:width]


# -- grids --


class Column:
    """A Column is one column of a table, with its cells as text. A column of numbers is aligned to the right.

    `places` is the number of decimals of all numbers of the column. If it is None, each number has as many decimals
    as it needs."""

    def __init__(self, header: str, values: Sequence[Any], screen: Screen, *, places: int | None = None) -> None:
        self.header, self.cells = header, list(map(cell, values))
        self.is_numeric = any(map(is_number, values)) and all(value is None or is_number(value) for value in values)
        texts = [value for value in values if isinstance(value, str)]
        self.is_rigid = self.is_numeric or any(
            isinstance(text, Figures) or TIME_PATTERN.fullmatch(text) for text in texts
        )
        if screen.width is not None:
            self.cells = list(map(short_times, self.cells))
        if self.is_numeric and places is not None:
            self.cells = ["-" if value is None else fixed_decimals(value, places) for value in values]
        self.width = max(map(text_width, [header, *self.cells]))
        self.min_width = self.width if self.is_rigid else min(self.width, TEXT_WIDTH)  # minimum width
        self.has_colour = screen.colour and header in VERDICT_COLUMNS

    def draw(self, text: str) -> str:
        """Return the text of a cell as the library tabulate needs it: cut to the width, coloured, and with a filler for
        each character that takes up two columns."""
        text = elide_text(text, self.width)
        filler = FILLER * (text_width(text) - len(text))
        if self.has_colour and (word := VERDICT_PATTERN.match(text)):
            text = f"\x1b[{COLOURS[word[1]]}m{text}\x1b[0m"
        return filler + text


def _columns(view: View, screen: Screen) -> list[Column]:
    """Return the columns of a view, with their cells at full length."""
    body = [list(row) for row in view.rows]
    values: list[Sequence[Any]] = list(zip(*body, strict=True)) if body else [()] * len(view.headers)
    pairs = list(zip(view.headers, values, strict=True))
    if not view.same_decimals or screen.width is None:
        return [Column(*pair, screen) for pair in pairs]
    places = column_decimals(chain(*(column for header, column in pairs if header in INTERVAL_COLUMNS)))
    return [
        Column(header, values, screen, places=places if header in INTERVAL_COLUMNS else column_decimals(values))
        for header, values in pairs
    ]


def _fit_columns(columns: Sequence[Column], width: int, drop: Sequence[str]) -> list[Column]:
    """Return the columns of a table that fit into a width. Columns of text may become narrower.

    `drop` has the headers of the columns to leave out first, in this order. If that is not enough, other columns are
    left out from the right."""
    shown_columns = list(columns)
    undeclared_headers = [column.header for column in reversed(columns[1:]) if column.header not in drop]
    for header in [*drop, *undeclared_headers]:
        if sum(column.min_width for column in shown_columns) + len(COLUMN_GAP) * (len(shown_columns) - 1) <= width:
            break
        shown_columns = [column for column in shown_columns if column.header != header]
    excess = sum(column.width for column in shown_columns) + len(COLUMN_GAP) * (len(shown_columns) - 1) - width
    while excess > 0:
        texts = [column for column in shown_columns if not column.is_rigid] or shown_columns
        widest_column = max(texts, key=lambda column: column.width)
        if widest_column.width <= MIN_WIDTH:
            break
        widest_column.width -= 1
        excess -= 1
    return shown_columns


def _grid_text(view: View, screen: Screen) -> str:
    columns = _columns(view, screen)
    shown_columns = columns if screen.width is None else _fit_columns(columns, screen.width, view.drop)
    import tabulate

    tabulate.MIN_PADDING = (
        len(COLUMN_GAP) if screen.width is None else 0
    )  # of a header: a terminal has no room for padding
    text = tabulate.tabulate(
        list(zip(*(map(column.draw, column.cells) for column in shown_columns), strict=True)),
        headers=[column.draw(column.header) for column in shown_columns],
        colalign=["right" if column.is_numeric else "left" for column in shown_columns],
        disable_numparse=True, preserve_whitespace=True,
    )  # fmt: skip
    text = text.replace(FILLER, "") + "\n"
    headers = [column.header for column in columns if column not in shown_columns]
    return text + (wrap_lines([f"not shown: {', '.join(headers)} (--format csv has all)"], screen) if headers else "")


def wrap_lines(lines: Iterable[str], screen: Screen) -> str:
    """Return the lines above or below a table as one text. On a terminal the lines are wrapped."""
    rows = list(map(escape_unprintable, lines))
    if screen.width is not None:
        rows = [row for line in map(short_times, rows) for row in _terminal_rows(line, screen.width)]
    return "".join(f"{row}\n" for row in rows)


def _terminal_rows(line: str, width: int) -> list[str]:
    if text_width(line) <= width:
        return [line]
    from textwrap import wrap

    return [elide_text(row, width) for row in wrap(line, width, subsequent_indent=COLUMN_GAP, break_on_hyphens=False)]


def view_text(view: View, screen: Screen) -> str:
    """Return a view as text: its title, its rows in a grid (if it has headers), and its notes."""
    title, notes = (
        "".join(_grid_text(item, screen) if isinstance(item, View) else wrap_lines([item], screen) for item in items)
        for items in (view.title, view.notes)
    )
    grid = ("\n" if title else "") + _grid_text(view, screen) if view.headers else ""
    return title + grid + ("\n" if notes else "") + notes


def lay_out_result(
    result: Any, view_of_result: View | None, columns: Sequence[str] | None, flat: Iterable[Mapping[str, Any]] | None,
    screen: Screen | None,
) -> Iterable[bytes]:  # fmt: skip
    """Return the chunks of a result, as a table for a screen, or as csv if `screen` is None.

    `view_of_result` is the table to show for the result. `columns` are the keys of a list of records. `flat` has the
    records of the csv, if they differ from those of the result."""
    if screen is not None:
        text = view_text(view_of_result, screen) if view_of_result else table_text(result, columns, screen)
        return [text.encode("utf-8", "backslashreplace")]
    if flat is None and view_of_result is not None and is_record(result):
        return csv_lines(view_of_result.headers, view_of_result.rows)
    return csv_lines_of_records(iterate_records(result) if flat is None else iter(flat), columns)


def table_text(result: Any, columns: Sequence[str] | None, screen: Screen) -> str:
    """Return a result as text. One record becomes a line for each key, and several records become a grid with a row for
    each record.

    `columns` are the keys that the grid shows; None shows all keys."""
    if is_record(result):
        # each key on its own line; a list of records below, as its own table
        record = record_mapping(result)
        lists = {key: value for key, value in record.items() if isinstance(value, list | tuple)}
        tables = {key: value for key, value in lists.items() if value and all(map(is_record, value))}
        fields = {key: value for key, value in record.items() if key not in tables}
        width, texts = max(map(len, fields), default=0), zip(fields, map(cell, fields.values()), strict=True)
        lines = wrap_lines([f"{key.ljust(width)}  {text or '-'}" for key, text in texts], screen)
        return lines + "".join(
            f"\n{escape_unprintable(key)}\n{table_text(value, None, screen)}" for key, value in tables.items()
        )
    if not isinstance(result, Iterable) or isinstance(result, str):
        return cell(result) + "\n"
    rows = [record_mapping(record) for record in result]
    keys = list(columns or dict.fromkeys(key for row in rows for key in row))
    return _grid_text(View(keys, [[row.get(key) for key in keys] for row in rows]), screen) if keys else ""


# -- csv --


def _csv_cell(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    return json.loads(text) if (text := dumps(value)).startswith('"') else text


def csv_lines(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    """Yield the lines of a csv (RFC 4180), the header first."""
    from csv import writer as csv_writer

    line: Any = SimpleNamespace(write=lambda text: text.encode("utf-8", "backslashreplace"))
    writer = csv_writer(line)  # `writerow` returns the result of `write`
    for row in chain([headers], rows):
        yield writer.writerow([_csv_cell(value) for value in row])


def csv_lines_of_records(rows: Iterator[Any], columns: Sequence[str] | None) -> Iterator[bytes]:
    """Return an iterator over the lines of a csv with a row for each record. The header is `columns`, or the keys of
    the first record if `columns` is None."""
    first_record = next(rows, None)
    if first_record is None:
        return csv_lines(columns, ()) if columns else iter(())
    keys = columns or list(record_mapping(first_record))
    return csv_lines(keys, (_row_values(record, keys) for record in chain([first_record], rows)))


def _row_values(record: Any, keys: Sequence[str]) -> list[Any]:
    values = record_mapping(record)
    if extra_keys := values.keys() - set(keys):
        raise ValueError(f"a row has keys that the header lacks: {sorted(extra_keys)}")
    return [values.get(key) for key in keys]
