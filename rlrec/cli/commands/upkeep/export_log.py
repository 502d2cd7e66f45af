"""This module holds the command `rlrec export-log`, which writes the log in file formats of rlrec and of other
programs."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pkgutil import resolve_name

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.files import check_target, open_target
from rlrec.cli.program.shared import GroupedCommand, Store, notice, takes_read_store
from rlrec.cli.text.values import RegisteredName
from rlrec.errors import InputError


@click.command("export-log", cls=GroupedCommand)
@click.argument("path", type=click.Path(allow_dash=True), metavar="PATH|-")
@click.option(
    "--layout", type=RegisteredName("rlrec.app.imports.layouts:WRITERS"), default="jsonl", show_default=True,
    help="jsonl: one JSON object a decision. csv: a table, a row a slot. dsjson, vw: for Vowpal Wabbit. parquet: PATH "
    "is a folder, to which what is new is appended (pip install 'rlrec[parquet]').",
)  # fmt: skip
@click.option("--log", metavar="FILTER", help="Which decisions, e.g. policy=home,since=2026-01-01. Default: all.")
@click.option("--reward", metavar="NAME", help="Reward definition [default: that of each policy]; not of parquet.")
@takes_read_store(
    "rlrec export-log - --log policy=home > home.jsonl",
    "rlrec export-log log.csv.gz --layout csv",
    "rlrec export-log log.json --layout dsjson --log policy=home",
    "rlrec export-log log --layout parquet && rlrec evaluate home uniform --log parquet:log",
)
def export_log(store: Store, show: Show, path: str, layout: str, log: str | None, reward: str | None) -> None:
    """In order of decision, to a file (gzip if it ends in .gz) or to stdout. import-log reads every layout except
    parquet. jsonl is complete; a line on stderr counts what csv and dsjson cannot hold.

    csv: one row per slot, with a header that import-log reads without --map. Columns of the decision come first, then
    those of the slot, last its reward and events; eligible and events are lists in JSON, context and state are objects
    in JSON, and events of the page stand in its first row. It lacks lists of candidates, and features, sets or
    probabilities of arms that came with a decision. A spreadsheet runs cells that begin with =, +, - or @ as formulas:
    import the file there with all columns as text (`rlrec help formats`).

    dsjson: cb for pages of one slot, ccb for longer ones. An action has its arm in `_tag` (--arm-id _tag, where arms
    have a feature `id`) and the features of the arm; session and user stand beside. Rewards are those of the policy's
    definition, or of --reward, from events inside its window, as `evaluate` counts them. It lacks marginals, times of
    events, states, policies, and decisions that are censored or have no propensity. vw: text of --cb_adf for pages of
    one slot; a cost is a negative reward, an arm is the tag of its line. It lacks sessions, users and times.

    parquet: a folder with decisions, events and visits; run again, the command appends new ones. It may be a URL that
    fsspec knows (s3://bucket/log). `rlrec help machines` has its columns; evaluate and exposure read it by `--log
    parquet:DIR`.

    --format is for the summary; stdout has only the log."""
    from rlrec.app.imports.layouts import FOLDERS, WRITERS

    if layout in FOLDERS:
        if reward is not None:
            raise InputError(f"--layout {layout} has events and no rewards", hint="leave --reward out")
        if path == "-" or os.path.isfile(path):
            raise InputError(f"--layout {layout} writes a folder, and {path} is none", hint="name a folder")
        show(resolve_name(WRITERS[layout])(store, path, log=log))
        return
    if os.path.isdir(path):
        raise InputError(f"PATH {path} is a folder", hint="name a file; --layout parquet writes folders")
    writer = resolve_name(WRITERS[layout])()
    if path != "-":
        check_target(path, "PATH")
    elif sys.stdout is not None and sys.stdout.isatty():  # the log on the terminal shows the progress itself
        store.progress = lambda *_: None
    records = app.export_log.export_log(store, log=log, reward=reward, has_details=writer.needs_details)
    with closing(records), open_target(path) as write:
        n_exported = sum(1 for _ in map(write, writer.lines(records)))
    if writer.left_out:
        counts = ", ".join(f"{name} ({count:,})" for name, count in writer.left_out.items())
        notice(f"left out, since {layout} cannot hold them (decisions): {counts}; jsonl holds all")
    if path == "-":
        notice(f"exported {n_exported}")
    else:
        show({"exported": n_exported})
