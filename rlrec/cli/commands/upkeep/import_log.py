"""This module holds the command `rlrec import-log`, which imports logs of other systems."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, BinaryIO

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app, signals
from rlrec.cli.program.files import Refusals, refusal_options
from rlrec.cli.program.shared import (
    NOTHING_STORED,
    GroupedCommand,
    Store,
    dry_run_option,
    notice,
    option_group,
    print_sentences,
    rehearsal,
    suggest_next,
    takes_store,
)
from rlrec.cli.text import lines
from rlrec.cli.text.text import truncate
from rlrec.cli.text.values import DURATION, JSON_FILE, NAME, Integer, RegisteredName
from rlrec.errors import InputError, quantity

DEFAULT_POLL_US = 1_000_000  # between two reads of a file


def _check_files(_: click.Context, __: click.Parameter, files: Sequence[str]) -> Sequence[str]:
    """Return the files unchanged. Raises InputError if one of them is a folder, with a hint that says how to read the
    folder."""
    for folder in filter(os.path.isdir, files):
        hint = f"name its files: {folder}/*"
        if os.path.exists(os.path.join(folder, "manifest.json")):
            hint = f"export-log wrote it; it needs no import: `rlrec evaluate uniform --log parquet:{folder}`"
        raise InputError(f"{truncate(folder)} is a folder, and import-log reads files", hint=hint)
    return files


@click.command("import-log", cls=GroupedCommand, epilog="`rlrec help import-log` explains layouts, maps and states.")
@click.argument(
    "files", type=click.Path(exists=True, allow_dash=True), nargs=-1, required=True, metavar="FILE|-...",
    callback=_check_files,
)  # fmt: skip
@option_group(
    "Which log",
    click.option(
        "--layout", type=RegisteredName("rlrec.app.imports.layouts:READERS"), required=True, metavar="LAYOUT",
        help="csv or parquet: any table, with --map. dsjson: Vowpal Wabbit and Azure Personalizer. jsonl: as "
        "export-log writes it. obd: Open Bandit Dataset. vw: text of Vowpal Wabbit.",
    ),
    click.option("--map", "columns", type=JSON_FILE, metavar="FILE", help="JSON that names columns."),
    click.option("--arm-id", metavar="FIELD", help="dsjson: field of an action that names its arm, such as i.id."),
    click.option("--actions", type=Integer(2, 100_000), metavar="N", help="vw: a log of --cb, with so many actions."),
    click.option("--reward-from", metavar="KEY", help="dsjson: the key of the reward [default: minus _label_cost]."),
)  # fmt: skip
@option_group(
    "What to store",
    click.option("--policy", type=NAME, metavar="NAME", help="The owner of the log: new, or of kind logged."),
    click.option(
        "--propensity", type=click.Choice(["uniform", "fitted"]), metavar="HOW",
        help="Propensities for decisions without: uniform, or fitted to what was shown.",
    ),
    click.option("--check", is_flag=True, help="Read and count, and store nothing."),
    dry_run_option,
)  # fmt: skip
@option_group(
    "A log that grows",
    click.option("--follow", is_flag=True, help="Go on with lines that are added: see `rlrec help import-log`."),
    click.option("--poll", type=DURATION, metavar="DURATION", help="How often to look for new lines.  [default: 1s]"),
)  # fmt: skip
@option_group("Bad lines", refusal_options)  # fmt: skip
@takes_store(
    "rlrec export-log log.jsonl && rlrec --db copy.db init && rlrec --db copy.db import-log log.jsonl --layout jsonl",
    "rlrec import-log log.csv --layout csv --map map.json --policy shop",
    "rlrec import-log log.csv --layout csv --map map.json --check",
    "rlrec import-log clicks.csv --layout csv --map map.json --policy shop --propensity fitted",
    "rlrec import-log 2026-08-25_00.json --layout dsjson --policy personalizer --arm-id i.id",
    "rlrec import-log /var/log/shop/decisions.jsonl --layout jsonl --policy shop --follow",
)
def import_log(
    store: Store, show: Show, refusals: Refusals, files: Sequence[str], layout: str, policy: str | None,
    dry_run: bool, propensity: str | None, check: bool, columns: dict[str, Any] | None, reward_from: str | None,
    arm_id: str | None, actions: int | None, follow: bool, poll: int | None,
) -> None:  # fmt: skip
    """Unknown arms are added. A line that was imported before is a duplicate, so an overlapping file adds only new
    lines. Imported decisions are mature at once, and do not change beliefs by themselves. All lines are checked before
    the first one is stored. Times without a zone are read as UTC."""
    from rlrec.app.imports.layouts.base import Source

    if follow and len(files) > 1:
        raise click.UsageError("--follow takes one FILE")
    if follow and (check or dry_run):
        raise click.UsageError(f"--follow and {'--check' if check else '--dry-run'} contradict each other")
    if poll is not None and not (follow and poll):
        raise click.UsageError("--poll says how often --follow looks for new lines: more than 0s")
    options = {"map": columns, "reward_from": reward_from, "arm_id": arm_id, "actions": actions}
    readable_files = files if follow else [_rereadable_file(file, refusals) for file in files]
    sources = [
        Source(file=file, name=name, decode=lines.decode_group)
        for name, file in zip(files, readable_files, strict=True)
    ]
    bad_lines = app.import_log.BadLines(
        quarantine=refusals.quarantine, refuse=refusals.refuse, report_file=refusals.reading
    )
    request = app.import_log.Request(
        files=sources, layout=layout, policy=policy, options=options, propensity=propensity, check=check
    )
    if follow:
        result = _follow_log(store, request, bad_lines, files[0], DEFAULT_POLL_US if poll is None else poll)
    else:
        with rehearsal(store) if dry_run else nullcontext():
            result = app.import_log.import_log(store, request, bad_lines)
    refusals.n_lines = refusals.count + (0 if check else result.accepted + result.duplicates)
    show(result)
    decisions_text, lines_text = quantity(result.accepted, "new decision"), quantity(result.rejected, "line")
    print_sentences(show, f"{decisions_text}, {result.duplicates:,} stored before, {lines_text} refused.")
    if check:
        notice(NOTHING_STORED)
    if check or dry_run or follow or not result.accepted + result.duplicates:
        return
    log = f" --log policy={policy}" if policy else ""
    reward_clause = ", by what its reward counts" if result.clipped or result.ignored else ""
    command, effect = "evaluate uniform", f"estimates what another policy would have earned{reward_clause}"
    if result.without_propensity >= result.accepted + result.duplicates:
        command, effect = "outcomes", "shows what it earned: without propensities it judges no other policy"
    suggest_next(show, f"{command}{log}", effect)


def _follow_log(store: Store, request: Any, bad_lines: Any, file: str, poll_us: int) -> Any:
    bad_lines.report_file(file)
    # held to the end of the process: supervisors may repeat a signal
    waits = click.get_current_context().with_resource(signals.signals_end_waits())
    with lines.stream(file) or nullcontext() as stream:
        return app.import_log.follow_log(
            store, request, bad_lines, stream=stream, poll_s=poll_us / 1_000_000, wait=waits.wait
        )


def _rereadable_file(file: str, refusals: Refusals) -> str | BinaryIO:
    refusals.reading(file)
    return lines.rereadable(file)
