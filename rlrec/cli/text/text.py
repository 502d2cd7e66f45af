"""Text on one line of a screen: whether a database takes it, tables before they are laid out, and the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

LARGEST = 2**63 - 1  # whole number that a database takes


def truncate(text: str, limit: int = 60) -> str:
    """`text` as one printable line: control characters escaped, no longer than `limit`."""
    return printable(text if len(text) <= limit else text[: limit - 1] + "…")


def clipped(text: str, limit: int = 2_000) -> str:
    """`text` without its middle, where it is longer than `limit`."""
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def printable(text: str) -> str:
    """`text` without anything that moves a cursor or breaks a line: such characters as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def unstorable(text: str) -> str | None:
    """Why no database takes `text`: a NUL, or half of a surrogate pair. None if it does."""
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return None


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
