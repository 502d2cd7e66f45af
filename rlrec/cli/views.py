"""Tables before they are laid out, and the terminal that they are laid out for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class View(NamedTuple):
    """A table for people before it is laid out: rows of raw values under their headers, lines and tables above it and
    below. drop: the headers of columns that a narrow terminal leaves out, the first one first."""

    headers: Sequence[str]
    rows: Iterable[Sequence[Any]]
    title: Sequence[str | View] = ()
    notes: Sequence[str | View] = ()
    drop: Sequence[str] = ()

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]], columns: Sequence[str], **lines: Sequence[Any]) -> View:
        """The values that records have in these columns, which are the headers; lines: the title, the notes, drop."""
        return cls(columns, [[record[column] for column in columns] for record in records], **lines)


class Screen(NamedTuple):
    """Where a table is shown. width: of the terminal, None in a pipe or a file; colour: whether verdicts have one."""

    width: int | None = None
    colour: bool = False

    @classmethod
    def of_stdout(cls, *, plain: bool) -> Screen:
        """The terminal that stdout is, as COLUMNS, NO_COLOR, FORCE_COLOR and TERM say. plain: without colour."""
        terminal, env = sys.stdout is not None and sys.stdout.isatty(), os.environ
        width = None
        if terminal:
            from shutil import get_terminal_size

            width = get_terminal_size().columns
        forced = env.get("FORCE_COLOR", "0") not in ("", "0")
        off = plain or env.get("NO_COLOR") or (env.get("TERM") == "dumb" and not forced)
        return cls(width, (terminal or forced) and not off)
