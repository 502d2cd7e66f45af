"""This module writes results as a table, json, ndjson or csv. The output is in UTF-8, has no NaN, and leaves the names
of keys unchanged.

A result is a record (a dataclass, a msgspec Struct, a mapping), or a list or an iterator of records. The records of
an iterator are written one by one as they come, except in a table. The modules `plain.py` (JSON) and `tables.py`
(tables, csv) format results. These modules are loaded when a result is shown."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TextIO

import click

from rlrec.cli.text.text import Screen, View

FORMATS = ("table", "json", "ndjson", "csv")
FLUSH_INTERVAL_S = 0.2


class Show:
    """A Show object writes results in the format that the user chose.

    With `plain`, the output has no colour. `is_explicit` says whether the format was given on the command line."""

    def __init__(self, form: str, *, plain: bool = False, is_explicit: bool = True) -> None:
        self.format, self.is_explicit = form, is_explicit
        self.answer: Any = None  # the result written
        self.draw: Callable[[], Any] | None = None  # its figure
        self.clear_progress: Callable[[], None] = lambda: None  # removes the progress line
        self.screen = Screen.detect(sys.stdout, plain=plain) if form == "table" else Screen()

    def __call__(
        self, result: Any, *, table: View | None = None, columns: Sequence[str] | None = None,
        flat: Iterable[Mapping[str, Any]] | None = None, lines: Iterable[Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        """Write one result.

        `table` is what `--format table` shows, and for a single record csv as well. `columns` are the keys of a list
        of records; a csv or a table shows these keys even if the list is empty. `flat` has the records of the csv,
        and `lines` has the records of ndjson, if they differ from the records of the result."""
        from rlrec.cli.output import plain

        self.clear_progress()
        self.answer = result
        if self.format == "json":
            _write_all(plain.json_document(result))
        elif self.format == "ndjson":
            _write_all(map(plain.json_line, plain.iterate_records(result) if lines is None else lines))
        else:
            from rlrec.cli.output import tables

            screen = self.screen if self.format == "table" else None
            _write_all(tables.lay_out_result(result, table, columns, flat, screen))
        flush()

    def add_lines(self, *lines: str) -> None:
        """Write lines below a table, wrapped on a terminal."""
        from rlrec.cli.output import tables

        write(b"\n" + tables.wrap_lines(lines, self.screen).encode("utf-8", "backslashreplace"))
        flush()

    def stream(self, groups: Iterable[Iterable[Any]], *, rehearsal: AbstractContextManager[None] | None = None) -> None:
        """Write the answers to a stream as JSON objects, one per line in every format. The answers of a group are
        written together, as soon as the group is answered.

        `rehearsal` is a transaction around all groups, or None. With a rehearsal, nothing is written before the
        transaction ends, so that it does not wait for a slow reader."""
        if self.format == "csv" and self.is_explicit:
            raise click.UsageError("a stream is answered in ndjson, not in csv")
        from rlrec.cli.output import plain

        if rehearsal is None:
            for group in groups:
                write(plain.json_lines([*group]))
                flush()
            return
        from tempfile import TemporaryFile

        with TemporaryFile() as answers:
            with rehearsal:
                for group in groups:
                    answers.write(plain.json_lines([*group]))
            answers.seek(0)
            _write_all(iter(partial(answers.read, 1 << 16), b""))
        flush()


def write(data: bytes) -> None:
    """Write all of `data` to stdout. Raises OSError if stdout is closed or cannot take the data."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    stream, remainder = sys.stdout.buffer, memoryview(data)
    while remainder:
        remainder = remainder[stream.write(remainder) :]  # an unbuffered stream may accept only a part


def discard_unwritten(stream: TextIO | None) -> None:
    """Discard output that could not be written. Otherwise the interpreter would try again at its end, and exit with
    120.

    `stream` is stdout or stderr; any other stream is left alone."""
    is_standard = any(stream is file for file in (sys.__stdout__, sys.__stderr__))
    if stream is None or not is_standard:
        return
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def flush() -> None:
    """Flush stdout, if it is open."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _write_all(chunks: Iterable[bytes]) -> None:
    """Write chunks of data as they come. Flush stdout after the first chunk, and then at most five times a second."""
    sent_at = -math.inf
    for chunk in chunks:
        write(chunk)
        if (now := time.monotonic()) - sent_at > FLUSH_INTERVAL_S:
            flush()
            sent_at = now
