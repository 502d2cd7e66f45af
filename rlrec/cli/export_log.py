"""rlrec export-log: the log as one decision a line."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import click

from rlrec.cli import output
from rlrec.cli.output import Show
from rlrec.cli.plain import dumps
from rlrec.cli.shared import notice, printed, stored
from rlrec.errors import RlrecError


@click.command("export-log")
@click.argument("path", type=click.Path(dir_okay=False, allow_dash=True), metavar="PATH|-")
@click.option(
    "--layout", type=click.Choice(["jsonl"]), default="jsonl", show_default=True, help="One JSON object a decision."
)
@click.option("--log", metavar="FILTER", help="Which decisions, e.g. policy=home,since=2026-01-01. Default: all.")
@printed
@stored
def export_log(store: Any, show: Show, path: str, layout: str, log: str | None) -> None:
    """Write the log, one decision a line.

    In order of decision, to a file (gzip if it ends in .gz) or to stdout.

    import-log takes it back: request ids, times, sessions, propensities and events are kept. --format is that of the
    summary; to stdout goes the log alone.

    \b
    Example:
      rlrec export-log - --log policy=home > home.jsonl
    """
    from rlrec.app import export_log as use_case

    lines = (f"{dumps(record)}\n".encode() for record in use_case.export_log(store, log=log))
    if path == "-":
        exported = _write(lines, output.write)
        output.flush()
        notice(f"exported {exported}")
        return
    with _created(path) as file:
        exported = _write(lines, file.write)
    show({"exported": exported})


def _write(lines: Iterable[bytes], write: Any) -> int:
    count = 0
    for line in lines:
        write(line)
        count += 1
    return count


@contextmanager
def _created(path: str) -> Iterator[BinaryIO]:
    """A file that has its name only once it is complete; what is no plain file is written to as it is."""
    plain = os.path.isfile(path) or not os.path.exists(path)
    part = f"{path}.part" if plain else path
    try:
        with _opened(part, path) as file:
            if path.endswith(".gz"):
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
                    yield cast(BinaryIO, packed)
            else:
                yield file
        if plain:
            os.replace(part, path)
    finally:
        if plain and os.path.exists(part):
            os.unlink(part)


def _opened(part: str, path: str) -> BinaryIO:
    try:
        return open(part, "wb")
    except OSError as error:
        folder = os.path.dirname(path)
        hint = f"make its folder first: {folder}" if folder and not os.path.exists(folder) else "choose another path"
        raise RlrecError(f"cannot write {path}: {(error.strerror or str(error)).lower()}", hint=hint) from None
