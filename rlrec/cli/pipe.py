"""rlrec pipe."""

from __future__ import annotations

from functools import cache
from typing import Any

import click

from rlrec.cli import feedback, recommend
from rlrec.cli.output import Show
from rlrec.cli.shared import FILE, drawing, printed, stored
from rlrec.errors import InputError


@click.command()
@click.option(
    "--input", "source", type=FILE, default="-", show_default=True, metavar="FILE|-", help="Where the lines are read."
)
@click.option("--seed", type=recommend.SEED, help="Seed of the draws [default: 64 random bits].")
@printed
@stored
@drawing
def pipe(store: Any, show: Show, source: str, seed: int | None) -> None:
    """Answer requests and feedback in one warm process.

    Each line of the input is {"op": "recommend", ...} with the keys of `recommend --input`, or {"op": "feedback", ...}
    with those of `feedback --input`. It is answered on one line, in order, once its group is stored; feedback with
    decision_id, events, duplicates and reward; a refused line with line, error and field. A group ends where nothing
    more waits, at 1,000 lines, or at a line {"op": "flush"}; with --seed not where nothing more waits. What a group
    teaches, the next one knows.

    \b
    Example:
      printf '{"op": "recommend", "policy": "home", "session": "s1"}\\n' | rlrec pipe
    """
    from rlrec.app.feedback import Line
    from rlrec.app.opening import ready
    from rlrec.app.pipe import Pipe
    from rlrec.cli import streams

    ready(store)
    session = Pipe(store, seed=seed)

    def take(lines: list[Any]) -> list[Any]:
        return [_answer(one) for one in session.answer([_asked(line, Line) for line in lines])]

    streams.answer(show, source, line_type(), take, eager=seed is None)


@cache
def line_type() -> Any:
    """A line: a request, or feedback, by its `op`."""
    from msgspec import defstruct

    kinds = {"recommend": recommend.line_type(), "feedback": feedback.line_type()}
    made: Any = [defstruct(op, [], bases=(kind,), tag_field="op", tag=op) for op, kind in kinds.items()]
    return made[0] | made[1]


def _asked(line: Any, said: Any) -> Any:
    """What the use case is asked: a request, or feedback as `said`; or what is wrong with the line."""
    if isinstance(line, InputError | recommend.line_type()):
        return recommend.checked(line)
    return feedback.said(said, None, line)


def _answer(one: Any) -> Any:
    if isinstance(one, dict | InputError):
        return one
    return {name: getattr(one, name) for name in ("decision_id", "events", "duplicates", "reward")}
