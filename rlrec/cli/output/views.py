"""Tables before they are laid out, and the screen that shows them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TextIO


class View(NamedTuple):
    """A table for people before it is laid out: rows of raw values under their headers, lines and tables above it and
    below. drop: the headers of columns that a narrow terminal leaves out, the first one first; fixed: on a terminal
    all numbers of a column have the same decimals."""

    headers: Sequence[str]
    rows: Iterable[Sequence[Any]]
    title: Sequence[str | View] = ()
    notes: Sequence[str | View] = ()
    drop: Sequence[str] = ()
    fixed: bool = False

    @classmethod
    def select(cls, records: Iterable[Mapping[str, Any]], columns: Sequence[str], **fields: Any) -> View:
        """The values that records have in these columns, which are the headers. fields: the others of the view."""
        return cls(columns, [[record[column] for column in columns] for record in records], **fields)


class Screen(NamedTuple):
    """Where a table is shown. width: of the terminal, None in a pipe or a file; colour: whether verdicts have one."""

    width: int | None = None
    colour: bool = False

    @classmethod
    def detect(cls, stream: TextIO | None, *, plain: bool = False) -> Screen:
        """The terminal that a stream is, as COLUMNS, NO_COLOR, FORCE_COLOR and TERM say. plain: without colour."""
        terminal, env = stream is not None and stream.isatty(), os.environ
        forced = env.get("FORCE_COLOR", "0") not in ("", "0")
        is_plain = plain or env.get("NO_COLOR") or (env.get("TERM") == "dumb" and not forced)
        return cls(terminal_columns() if terminal else None, (terminal or forced) and not is_plain)


def terminal_columns() -> int:
    """Columns of the terminal, by COLUMNS or its own, else 80. `shutil` says the same, and loads all of compression."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return 80
