"""This module has functions that fit text to one line of a screen, and that test whether a database accepts a text. Its
classes describe a table before its layout, and the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

MAX_INTEGER = 2**63 - 1  # whole number that a database accepts


def truncate(text: str, limit: int = 60) -> str:
    """Return `text` as one printable line. The text is cut to `limit` characters before control characters are
    escaped."""
    return escape_unprintable(text if len(text) <= limit else text[: limit - 1] + "…")


def cut_middle(text: str, limit: int = 2_000) -> str:
    """Return `text` if it has up to `limit` characters. A longer text is returned without its middle."""
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def escape_unprintable(text: str) -> str:
    """Return `text` with escapes for all characters that move a cursor or break a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def storage_fault(text: str) -> str | None:
    """Return the reason why no database accepts `text` (a NUL, or half of a surrogate pair). The result is None if
    databases accept the text."""
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return None


class View(NamedTuple):
    """A View describes a table for people before its layout: rows of raw values under headers, and lines and further
    tables above (`title`) and below (`notes`).

    `drop` has the headers of columns that a narrow terminal leaves out, in this order. With `same_decimals`, all
    numbers of a column have the same decimals on a terminal."""

    headers: Sequence[str]
    rows: Iterable[Sequence[Any]]
    title: Sequence[str | View] = ()
    notes: Sequence[str | View] = ()
    drop: Sequence[str] = ()
    same_decimals: bool = False

    @classmethod
    def select(cls, records: Iterable[Mapping[str, Any]], columns: Sequence[str], **fields: Any) -> View:
        """Return a view with a row for each record. `columns` are the keys of the records to show, and the headers.

        `fields` are the other fields of the view."""
        return cls(columns, [[record[column] for column in columns] for record in records], **fields)


class Screen(NamedTuple):
    """A Screen describes the place where a table is shown.

    `width` is the width of the terminal in columns, or None for a pipe or a file. `colour` says whether verdicts
    have a colour."""

    width: int | None = None
    colour: bool = False

    @classmethod
    def detect(cls, stream: TextIO | None, *, plain: bool = False) -> Screen:
        """Return the screen to which a stream writes. The environment variables COLUMNS, NO_COLOR, FORCE_COLOR and TERM
        can change its width and its colour.

        With `plain`, the screen has no colour."""
        is_terminal, env = stream is not None and stream.isatty(), os.environ
        forces_colour = env.get("FORCE_COLOR", "0") not in ("", "0")
        is_plain = plain or env.get("NO_COLOR") or (env.get("TERM") == "dumb" and not forces_colour)
        return cls(terminal_columns() if is_terminal else None, (is_terminal or forces_colour) and not is_plain)


def terminal_columns() -> int:
    """Return the width of the terminal in columns, from COLUMNS or from the terminal itself, or 80 if it is unknown.
    The module `shutil` would give the same width, but loads all compression modules."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return 80
