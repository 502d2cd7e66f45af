"""This module holds the command `rlrec pipe`, which answers lines of requests and feedback."""

from __future__ import annotations

from functools import cache
from typing import Any

import click

from rlrec.cli.commands.requests import feedback, recommend
from rlrec.cli.output.output import Show
from rlrec.cli.program.shared import GroupedCommand, Store, dry_run_option, refuses_future_clock, rehearsal, takes_store
from rlrec.cli.text.values import FILE


@click.command(cls=GroupedCommand)
@click.option(
    "--input", "source", type=FILE, default="-", show_default=True, metavar="FILE|-", help="Where the lines are read."
)
@click.option("--seed", type=recommend.SEED, help="Seed of the draws [default: 64 random bits].")
@takes_store('printf \'{"op": "recommend", "policy": "home", "session": "s1"}\\n\' | rlrec pipe')
@refuses_future_clock
@dry_run_option
def pipe(store: Store, show: Show, source: str, seed: int | None, dry_run: bool) -> None:
    """Each line of the input is {"op": "recommend", ...} with the keys of `recommend --input`, or {"op": "feedback",
    ...} with those of `feedback --input`. It is answered on one line, in order, once its group is stored; feedback with
    decision_id, events, duplicates and reward; a refused line with line, error and field. A group ends if no further
    line is waiting (not with --seed), at 1,000 lines, or at a line {"op": "flush"}. A group is drawn from beliefs that
    include the feedback of the groups before it.

    With --dry-run, the whole input is read before the first line is answered."""
    rehearsal_context = rehearsal(store) if dry_run else None
    recommend.answer_stream(store, show, source, line_type(), seed=seed, rehearsal=rehearsal_context)


@cache
def line_type() -> Any:
    """Return the type of a line: a msgspec Struct of a request or one of feedback. The field `op` of a line says
    which."""
    from msgspec import defstruct

    kinds = {"recommend": recommend.line_type(), "feedback": feedback.line_type()}
    tagged_kinds: Any = [defstruct(op, [], bases=(kind,), tag_field="op", tag=op) for op, kind in kinds.items()]
    return tagged_kinds[0] | tagged_kinds[1]
