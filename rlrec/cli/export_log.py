"""rlrec export-log: the log as one decision a line."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager as ContextManager
from contextlib import contextmanager, nullcontext, suppress
from typing import BinaryIO, cast

import click

from rlrec.cli import output
from rlrec.cli.output import Show
from rlrec.cli.shared import Store, check_target, examples, notice, stored
from rlrec.cli.values import Registered
from rlrec.errors import RlrecError


@click.command("export-log")
@click.argument("path", type=click.Path(dir_okay=False, allow_dash=True), metavar="PATH|-")
@click.option(
    "--layout", type=Registered("rlrec.app.imports.layouts:WRITERS"), default="jsonl", show_default=True,
    help="One JSON object a decision.",
)  # fmt: skip
@click.option("--log", metavar="FILTER", help="Which decisions, e.g. policy=home,since=2026-01-01. Default: all.")
@stored
@examples("rlrec export-log - --log policy=home > home.jsonl")
def export_log(store: Store, show: Show, path: str, layout: str, log: str | None) -> None:
    """Write the log, one decision a line.

    In order of decision, to a file (gzip if it ends in .gz) or to stdout.

    import-log takes it back: request ids, times, sessions, propensities and events are kept. --format is that of the
    summary; to stdout goes the log alone."""
    from rlrec.app import export_log as use_case
    from rlrec.app.imports import layouts

    lines = layouts.writer(layout)(use_case.export_log(store, log=log))
    if path == "-":
        exported = sum(1 for _ in map(output.write, lines))
        output.flush()
        notice(f"exported {exported}")
        return
    check_target(path, "PATH")
    with _created(path) as file:
        exported = sum(1 for _ in map(file.write, lines))
    show({"exported": exported})


@contextmanager
def _created(path: str) -> Iterator[BinaryIO]:
    """A file that gets its name once it is complete and on the disk; what is no plain file is written to as it is.

    Until then it lies beside its place under a name that nobody else has."""
    target = os.path.realpath(path)  # where a link leads, so that the link stays one
    plain = os.path.isfile(target) or not os.path.exists(target)
    draft = os.path.join(os.path.dirname(target), f".rlrec-{os.urandom(8).hex()}") if plain else path
    file = _opened(draft, path, mode="xb" if plain else "wb")
    try:
        with file:
            packed = gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) if path.endswith(".gz") else None
            with cast(ContextManager[BinaryIO], packed or nullcontext(file)) as stream:
                yield stream
            if plain:
                file.flush()
                os.fsync(file.fileno())
        if plain:
            os.replace(draft, target)
    finally:
        if plain:
            with suppress(FileNotFoundError):
                os.unlink(draft)


def _opened(draft: str, path: str, *, mode: str) -> BinaryIO:
    try:
        return cast(BinaryIO, open(draft, mode))
    except OSError as error:
        folder = os.path.dirname(path)
        hint = f"make its folder first: {folder}" if folder and not os.path.exists(folder) else "choose another path"
        raise RlrecError(f"cannot write {path}: {(error.strerror or str(error)).lower()}", hint=hint) from None
