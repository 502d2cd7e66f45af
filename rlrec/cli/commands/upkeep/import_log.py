"""rlrec import-log: take in logs from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, BinaryIO

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.inputs import FILE, Refusals, refusing
from rlrec.cli.program.shared import (
    NOTHING_STORED,
    Store,
    conclude,
    dry_run_option,
    notice,
    rehearsal,
    stored,
    suggest_next,
)
from rlrec.cli.text import lines
from rlrec.cli.text.values import NAME, Parsed, Registered, parse_file
from rlrec.errors import quantity


@click.command("import-log")
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE|-...")
@click.option(
    "--layout", type=Registered("rlrec.app.imports.layouts:READERS"), required=True,
    help="csv, parquet: any table, with --map. dsjson: lines of Vowpal Wabbit and Azure Personalizer. jsonl: one "
    "decision a line, as export-log writes them. obd: Open Bandit Dataset CSV. All but parquet may be gzip.",
)  # fmt: skip
@click.option(
    "--policy", type=NAME, metavar="NAME",
    help="The owner of the log: a new name, or a policy of kind logged. obd needs it; jsonl: else each line's own.",
)  # fmt: skip
@click.option(
    "--map", "columns", type=Parsed("file", parse_file), metavar="FILE",
    help="csv, parquet: a file of JSON that says which column is what.",
)  # fmt: skip
@click.option(
    "--reward-from",
    metavar="KEY",
    help="dsjson: the key of a line that holds its reward.  [default: minus _label_cost]",
)
@click.option(
    "--propensity", type=click.Choice(["uniform", "fitted"]),
    help="For decisions without propensities: those of a uniform logger, or fitted to what was shown, arm by arm. "
    "Estimates by them are weak, and pass no gate.",
)  # fmt: skip
@click.option("--check", is_flag=True, help="Read and count, and store nothing.")
@click.option("--arm-id", metavar="FIELD", help="dsjson: the field of an action that names its arm, such as i.id.")
@refusing
@stored(
    "rlrec export-log log.jsonl && rlrec --db copy.db init && rlrec --db copy.db import-log log.jsonl --layout jsonl",
    "rlrec import-log log.csv --layout csv --map map.json --policy shop",
    "rlrec import-log log.csv --layout csv --map map.json --check",
    "rlrec import-log clicks.csv --layout csv --map map.json --policy shop --propensity fitted",
    "rlrec import-log 2026-08-25_00.json --layout dsjson --policy personalizer --arm-id i.id",
)
@dry_run_option
def import_log(
    store: Store, show: Show, refusals: Refusals, files: Sequence[str], layout: str, policy: str | None,
    dry_run: bool, propensity: str | None, check: bool, columns: dict[str, Any] | None, reward_from: str | None,
    arm_id: str | None,
) -> None:  # fmt: skip
    """Take in logs from elsewhere, to estimate on and to learn from.

    Unknown arms are added. A line that was imported before is a duplicate: an overlapping file adds only what is new.
    Imported decisions are mature at once and teach no belief by themselves. A line that names no policy, where --policy
    does not either, goes to a policy called `imported`. Times without a zone are read as UTC.

    All lines are checked before the first one is stored; --check does no more than that, and counts. They are stored
    in portions, so that others are served meanwhile; an import that was stopped goes on where it ended when the same
    command runs again. The summary counts the decisions whose rewards the policy's reward definition clips or ignores,
    and the lines that the format itself leaves out (`skipped`).

    csv: the map is JSON, such as {"session": "visit_id", "user": "user_id", "at": "time", "arm": "item",
    "propensity": "p", "reward": "clicked", "eligible": "items", "context": ["hour", "country"]}: each word names a
    column. `arm` is all that must be there; there are also marginal, position, events ({"click": COLUMN, ...} in place
    of a reward), and decision: rows with one value there, one after the other, are the slots of one decision. A table
    of `export-log --layout csv` needs no map.

    dsjson: the first action of `a` (from 1), or of each `_a` in `_outcomes` (from 0), was shown; the event id is the
    request id; an arm is called as its action (`id`, `i.id` or `_tag`), else by a digest of its features. Rewards are
    minus `_label_cost`; --reward-from names another key: _original_label_cost, o (the values of observations) or
    o.KEY. Observations in other lines of these files join their decision. Lines with `_skipLearn`, decisions that
    nobody activated and lines of checkpoints are `skipped`; `pdrop` is the share of lines that the log has dropped.

    For `train-pg`, and for policies that read the session, a line of jsonl says in `state` what was known of its visit
    then: {"step": 0} at the first step; later on step, gap_s (since the last decision), shown (slots so far), reward
    (of them), and history, the last 64 of them, oldest first: [{"arm": A, "ago": decisions ago, "reward": R}, ...]."""
    from rlrec.app.imports.layouts.base import Options, Source

    options = Options(map=columns, reward_from=reward_from, arm_id=arm_id)
    sources = [Source(file=_rereadable(file, refusals), name=file, decode=lines.decode_group) for file in files]
    bad_lines = app.import_log.BadLines(
        quarantine=refusals.quarantine, refuse=refusals.refuse, reading=refusals.reading
    )
    request = app.import_log.Request(
        files=sources, layout=layout, policy=policy, options=options, propensity=propensity, check=check
    )
    with rehearsal(store) if dry_run else nullcontext():
        result = app.import_log.import_log(store, request, bad_lines)
    show(result)
    conclude(
        show,
        f"{quantity(result.accepted, 'new decision')}, {result.duplicates:,} stored before, "
        f"{quantity(result.rejected, 'line')} refused.",
    )
    if check:
        notice(NOTHING_STORED)
    if check or dry_run or not result.accepted + result.duplicates:
        return
    log = f" --log policy={policy}" if policy else ""
    reward = " --reward NAME" if result.clipped or result.ignored else ""
    command, what = "evaluate uniform", "estimates what another policy would have earned"
    if result.without_propensity >= result.accepted + result.duplicates:
        command, what = "outcomes", "shows what it earned: without propensities it judges no other policy"
    suggest_next(show, f"{command}{log}{reward}", what)


def _rereadable(file: str, refusals: Refusals) -> str | BinaryIO:
    refusals.reading(file)
    return lines.rereadable(file)
