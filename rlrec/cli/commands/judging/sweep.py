"""rlrec sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.commands.judging.evaluate import view
from rlrec.cli.output.output import Show
from rlrec.cli.output.tables import Figures
from rlrec.cli.program import app
from rlrec.cli.program.shared import HOW_TO_RUN, OUTPUT, GroupedCommand, Store, option_group, reading, workers_options
from rlrec.cli.text.text import View
from rlrec.cli.text.values import JSON_FILE, NAME, NUMBER
from rlrec.errors import quantity
from rlrec.sentences import LOGGED, percent, sweep_sentence

if TYPE_CHECKING:
    from rlrec.app.judging.evaluate import Workers
    from rlrec.app.judging.sweep import Result

COLUMNS = ("rank", "candidate", "value", "lift", "may_be_best", "verdict", "answer", "ess", "reasons")
DROP = ("reasons", "ess", "verdict")


@click.command(cls=GroupedCommand, epilog="`rlrec help contexts` compares the kinds.")
@option_group(
    "What to play",
    click.option("--kinds", required=True, metavar="KIND,...", help="Kinds that learn, as in `rlrec policy kinds`."),
    click.option(
        "--param", "params", multiple=True, metavar="KIND:NAME=V1,V2",
        help="Values of a parameter of one kind; repeatable: every combination is played, at most 40 in all.",
    ),
    click.option("--features", type=JSON_FILE, help="How contexts and arms are read [default: fitted to the log]."),
    click.option("--reward", type=NAME, metavar="NAME", help="Reward to learn and to judge by [default: `default`]."),
)  # fmt: skip
@option_group("Which log", click.option("--log", metavar="FILTER", help="Filter, as in `evaluate` [default: all]."))
@option_group(
    HOW_TO_RUN,
    click.option("--level", type=NUMBER, default=0.95, show_default=True, help="Confidence of all intervals together."),
    click.option("--cluster", metavar="UNIT", help="user, session or row [default: user, else session]."),
)  # fmt: skip
@workers_options
@option_group(OUTPUT, click.option("--details", is_flag=True, help="Every estimator, and every reason of each."))
@reading(
    "rlrec sweep --kinds thompson,ucb,lin-thompson",
    "rlrec sweep --kinds thompson,linucb --param linucb:alpha=0.3,1 --param linucb:floor=0.05 --log policy=home",
)
def sweep(store: Store, show: Show, details: bool, workers: Workers, **request: Any) -> None:
    """The log is cut into 10 stretches of time. Each candidate learns from those before a stretch, and is judged on
    what was shown there: on the last 7, by weighing with the logged probabilities, never on what taught it. So a value
    is that of a policy that knew a part of the log, 60 % on average; the command at the end makes one that knows all.

    The first line says which is best. Intervals hold for all rows together; `may_be_best` says whether the log leaves
    that open. `uniform` and what was logged on the same rows stand beside the candidates.

    Pages are judged one by one, on the visits that what was logged brought: what a candidate does to later pages and to
    coming back a sweep does not see. `rlrec effects` tells that, and `rlrec help visits`."""
    answer = app.sweep.sweep(store, app.sweep.Request(**request), workers)
    result = answer.result
    title = [sweep_sentence(result["candidates"]), _course(result)]
    if result["returns"]:
        title.append(
            f"reward {result['reward']} weighs returns; a sweep does not see what a candidate does to these in time: "
            f"`rlrec effects --reward {result['reward']}` tells"
        )
    if details:
        table = view([row.to_json() for row in answer.rows], None, app.evaluate.explained(answer.rows))
    else:
        # those of the best one; the others have theirs in the table
        notes = [_repeated(line, answer.judged[0].name) for line in app.evaluate.reasons_in_words(answer.judged[:1])]
        table = View.select(_table(result), COLUMNS, drop=DROP, notes=[line for line in notes if line])
    if result["command"]:
        table = table._replace(notes=[*table.notes, f"To create {result['best']}: `{result['command']}`"])
    show(result, table=table._replace(title=title))


def _repeated(line: str, name: str) -> str:
    """A line about a candidate that names this command in place of `evaluate`; "" where this one cannot do so."""
    command = f"`rlrec evaluate {name} "
    return line.replace(command, "this command with `") if command not in line or "--estimator" not in line else ""


def _course(result: Result) -> str:
    judged, blocks = len(result["begins"]), result["blocks"]
    read = quantity(result["decisions"], "decision")
    return f"judged on {read}, the last {judged} of {blocks} stretches of time, by reward {result['reward']}"


def _table(result: Result) -> Sequence[dict[str, Any]]:
    """The rows, and what was logged at its place among them."""
    rows: list[dict[str, Any]] = []
    for row in result["candidates"]:
        lift = None
        if row["lift"] is not None and (row["answer"], row["needed"]) != ("unknown", None):
            low, high = ("-" if bound is None else percent(bound) for bound in (row["lift_lower"], row["lift_upper"]))
            lift = Figures(f"{percent(row['lift'])} % [{low}, {high}]")
        rows.append(
            {
                **row,
                "lift": lift,
                "ess": None if row["ess"] is None else round(row["ess"]),
                "reasons": ", ".join(row["reasons"]),
            }
        )
    better = sum((row["lift"] or 0.0) > 0 for row in result["candidates"] if row["verdict"] != "insufficient")
    logged = dict.fromkeys(COLUMNS) | {"candidate": LOGGED, "value": result["served"]}
    return [*rows[:better], logged, *rows[better:]]
