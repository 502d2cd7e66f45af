"""This module holds the command `rlrec sweep`, which compares kinds of policy and their parameters on a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.commands.judging.evaluate import estimates_view, result_row
from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.shared import (
    HOW_TO_RUN,
    OUTPUT,
    GroupedCommand,
    Store,
    option_group,
    takes_read_store,
    workers_options,
)
from rlrec.cli.text.values import LIST, NAME, NUMBER, ParsedType, parse_file
from rlrec.errors import quantity
from rlrec.sentences import LOGGED, best_of

if TYPE_CHECKING:
    from rlrec.app.evaluation.passes.estimates import EstimateRow


KINDS = (
    "epsilon-greedy", "ucb", "ucb-tuned", "kl-ucb", "thompson", "exp3", "linucb", "lin-thompson", "logistic-thompson",
    "softmax", "plackett-luce", "squarecb",
)  # fmt: skip
FEATURES = ParsedType("file", lambda path: (path, parse_file(path)))  # a program may give the object itself


@click.command(cls=GroupedCommand, epilog="`rlrec help contexts` compares the kinds.")
@option_group(
    "What to play",
    click.option("--kinds", type=LIST, required=True, metavar="KIND,...", help=f"Kinds, of {', '.join(KINDS)}."),
    click.option(
        "--param", "params", multiple=True, metavar="KIND:NAME=V1,V2",
        help="Values of a parameter of one kind; repeatable: every combination is tried, at most 40 in all.",
    ),
    click.option("--features", type=FEATURES, help="How contexts and arms are read [default: fitted to the log]."),
    click.option("--reward", type=NAME, metavar="NAME", help="To learn and judge by [default: what policies learn]."),
)  # fmt: skip
@option_group("Which log", click.option("--log", metavar="FILTER", help="Filter, as in `evaluate` [default: all]."))
@option_group(
    HOW_TO_RUN,
    click.option("--level", type=NUMBER, default=0.95, show_default=True, help="Confidence of all intervals together."),
    click.option("--cluster", metavar="UNIT", help="user, session or row [default: user, else session]."),
)  # fmt: skip
@workers_options
@option_group(OUTPUT, click.option("--details", is_flag=True, help="Every estimator, and every reason of each."))
@takes_read_store(
    "rlrec sweep --kinds thompson,ucb,lin-thompson",
    "rlrec sweep --kinds thompson,linucb --param linucb:alpha=0.3,1 --param linucb:floor=0.05 --log policy=home",
)
def sweep(
    store: Store, show: Show, features: tuple[str, Mapping[str, Any]] | Mapping[str, Any] | None, details: bool,
    workers: app.evaluate.Workers, **request: Any,
) -> None:  # fmt: skip
    """The log is cut into 10 periods. For each of the last 7, a candidate learns from the earlier periods and is
    evaluated on this one, weighted by the logged propensities, never on what it learned from. So a value is that of a
    policy that learned from 60 % of the log on average; the command at the end creates a policy from all of it.

    The first line says which may be best, and whether it is better than what was logged. Intervals of lifts hold for
    all rows together. The table has the candidates, `uniform`, and what was logged on the same rows, the best first.

    Pages are judged one by one, in the logged visits: a sweep does not see a candidate's effect on later pages and
    returns. See `rlrec effects` and `rlrec help visits`."""
    path, definition = features if isinstance(features, tuple) else ("FILE", features)
    sweep_request = app.sweep.Request(features=definition, features_path=path, **request)
    result, judged_rows, rows = app.sweep.sweep(store, sweep_request, workers)
    may_be_best = {row.name: row.estimate.may_be_best for row in judged_rows if row.estimate.may_be_best is not False}
    claim = judged_rows[0].claim._replace(name="" if len(may_be_best) == 1 else judged_rows[0].name).sentence
    title = [f"{best_of(may_be_best)}; {claim}" if may_be_best[judged_rows[0].name] else claim]
    decisions_text = quantity(result["decisions"], "decision")
    title.append(
        f"judged on {decisions_text}, the last {len(result['begins'])} of {result['blocks']} stretches of time"
    )
    if result["returns"]:
        title.append(
            f"reward {result['reward']} weighs returns; a sweep does not see what a candidate does to these in time: "
            f"`rlrec effects --reward {result['reward']}` tells"
        )
    if details:
        table = estimates_view([row.record for row in rows], None, app.evaluate.explain_rows(rows))
    else:
        # an insufficient estimate is no result
        shown_rows = [
            result_row(row) | ({"lift": None} if row.estimate.verdict == "insufficient" else {}) for row in judged_rows
        ]
        logged_row = dict.fromkeys(shown_rows[0]) | {name: shown_rows[0][name] for name in ("unit", "reward")}
        table = estimates_view(
            [*shown_rows, logged_row | {"target": LOGGED, "value": result["served"]}],
            None,
            _candidate_notes(judged_rows),
        )
    if result["command"]:
        kind_clause = f"; of this kind, with these parameters: {', '.join(result['same'])}" if result["same"] else ""
        same_kind = [f"{name} ({text or 'defaults'})" for name, text in result["same_kind"].items()]
        kind_clause += f"; of this kind, with other parameters: {', '.join(same_kind)}" if same_kind else ""
        table = table._replace(notes=[*table.notes, f"To create {result['best']}: `{result['command']}`{kind_clause}"])
    flat = [row.record for row in rows] if details else result["candidates"]
    show(result, table=table._replace(title=title), flat=flat)


def _candidate_notes(judged_rows: Sequence[EstimateRow]) -> list[str]:
    """Return lines with the reasons for the verdict on the best candidate. Hints to run `evaluate` are changed into
    hints to run `sweep`.

    judged_rows: the estimate of each candidate, the best candidate first."""
    command_start = f"`rlrec evaluate {judged_rows[0].name} "
    return [
        line.replace(command_start, "this command with `")
        for line in app.evaluate.reasons_in_words(judged_rows[:1])
        if command_start not in line or "--estimator" not in line
    ]
