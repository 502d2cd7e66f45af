"""rlrec export-log: the log as one decision a line."""

from __future__ import annotations

import os
import sys

import click

from rlrec.cli import output
from rlrec.cli.files import complete_file
from rlrec.cli.output import Show
from rlrec.cli.shared import Store, check_target, examples, notice, reading
from rlrec.cli.values import Registered
from rlrec.errors import InputError


@click.command("export-log")
@click.argument("path", type=click.Path(allow_dash=True), metavar="PATH|-")
@click.option(
    "--layout", type=Registered("rlrec.app.imports.layouts:WRITERS"), default="jsonl", show_default=True,
    help="jsonl: one JSON object a decision. parquet: PATH is a folder, to which what is new is appended "
    "(pip install 'rlrec[parquet]').",
)  # fmt: skip
@click.option("--log", metavar="FILTER", help="Which decisions, e.g. policy=home,since=2026-01-01. Default: all.")
@reading
@examples(
    "rlrec export-log - --log policy=home > home.jsonl",
    "rlrec export-log log --layout parquet && rlrec evaluate home uniform --log parquet:log",
)
def export_log(store: Store, show: Show, path: str, layout: str, log: str | None) -> None:
    """Write the log, one decision a line.

    In order of decision, to a file (gzip if it ends in .gz) or to stdout.

    A folder of Parquet has decisions, events and visits by day and bucket; repeated, the command appends what is new.
    `rlrec help machines` has its columns; evaluate and exposure read it by `--log parquet:DIR`.

    import-log takes jsonl back: request ids, times, sessions, propensities and events are kept. --format is that of the
    summary; to stdout goes the log alone."""
    from rlrec.app import export_log as use_case
    from rlrec.app.imports import layouts

    if layout in layouts.FOLDERS:
        if path == "-" or os.path.isfile(path):
            raise InputError(f"--layout {layout} writes a folder, and {path} is none", hint="name a folder")
        show(layouts.folder_writer(layout)(store, path, log=log))
        return
    if os.path.isdir(path):
        raise InputError(f"PATH {path} is a folder", hint="name a file; --layout parquet writes folders")
    lines = layouts.writer(layout)(use_case.export_log(store, log=log))
    if path == "-":
        if sys.stdout is not None and sys.stdout.isatty():  # the log itself shows how far it is
            store.progress = lambda *_: None
        exported = sum(1 for _ in map(output.write, lines))
        output.flush()
        notice(f"exported {exported}")
        return
    check_target(path, "PATH")
    with complete_file(path) as file:
        exported = sum(1 for _ in map(file.write, lines))
    show({"exported": exported})
