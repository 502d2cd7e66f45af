"""This module holds the command `rlrec evaluate`, which estimates how much reward policies would have earned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.output.tables import Figures
from rlrec.cli.program import app
from rlrec.cli.program.files import plot_option, save_plot
from rlrec.cli.program.shared import (
    HOW_TO_RUN,
    OUTPUT,
    GroupedCommand,
    Store,
    option_group,
    takes_read_store,
    workers_options,
)
from rlrec.cli.text.text import View
from rlrec.cli.text.values import NAMED_TABLE, NUMBER, PERCENT, TABLE, Integer
from rlrec.errors import InputError, quantity
from rlrec.sentences import LOGGED, best_of, percent

if TYPE_CHECKING:
    from rlrec.app.evaluation.passes.estimates import EstimateRow

COLUMN_HEADERS = {
    "target": "target", "version": "version", "group": "group", "estimator": "estimator", "unit": "unit",
    "reward": "reward", "value": "value", "lower": "lower", "upper": "upper", "served": "as served",
    "lift": "lift", "ess": "ess", "n": "rows",
    "verdict": "verdict", "answer": "answer", "reasons": "reasons",
}  # fmt: skip
MAX_SENTENCES = 8  # above a table of groups
MAX_LIFT_WIDTH = 10.0  # of an interval of a lift that is shown although nothing is known
DROPPED_COLUMNS = ("version", "rows", "unit", "reasons", "ess", "as served", "lift")
VERDICTS = ("insufficient", "weak", "ok")


@click.command(cls=GroupedCommand, epilog="`rlrec help evaluate` explains units, verdicts, reasons and estimators.")
@click.argument("names", nargs=-1, metavar="TARGET...")
@option_group(
    "What to estimate",
    click.option(
        "--estimator", "estimators", multiple=True, metavar="LIST",
        callback=lambda _ctx, _param, lists: ",".join(lists) or None,
        help="Names, or groups; repeatable [default: ips,snips,dr].",
    ),
    click.option(
        "--target", "targets", type=NAMED_TABLE, multiple=True, metavar="[NAME=]FILE",
        help="Table decision_id,arm,probability or ...,score.",
    ),
    click.option("--temperature", type=NUMBER, metavar="T", help="Probabilities from scores: softmax(score / T)."),
    click.option("--fitted-on", metavar="FILTER", help="Decisions that tables learned from, or none."),
    click.option("--reward", metavar="NAME", help="Reward definition [default: what each target learns]."),
    click.option("--gamma", type=NUMBER, default=1.0, show_default=True, help="Discount per step of a session."),
    click.option("--by", metavar="FIELD", help="One estimate for each position, day, field, ..."),
    click.option("--greedy", is_flag=True, help="Judge the target without its exploration."),
)  # fmt: skip
@option_group(
    "Which log",
    click.option(
        "--log", metavar="FILTER",
        help="Decisions, e.g. policy=home,since=2026-01-01, or parquet:DIR; all counts each row once [default: all "
        "loggers with enough evidence].",
    ),
)  # fmt: skip
@option_group(
    "Model of rewards",
    click.option("--reward-model", type=TABLE, metavar="FILE", help="[decision_id,]arm,reward [default: fitted anew]."),
    click.option("--reward-model-by", metavar="FIELD", help="Context field that `value` in that CSV refers to."),
    click.option(
        "--reward-model-hash", type=Integer(0), default=0, metavar="N",
        help="Columns to hash each arm's contexts into.",
    ),
    click.option("--position", metavar="CURVE", help="Multiply attraction by examination, by this curve."),
)  # fmt: skip
@option_group(
    HOW_TO_RUN,
    click.option(
        "--interval", default="bootstrap-t", show_default=True, metavar="KIND",
        help="Also normal, cressie-read.",
    ),
    click.option("--level", type=NUMBER, default=0.95, show_default=True, help="Confidence of the interval."),
    click.option("--cluster", metavar="UNIT", help="user, session or row [default: user, else session]."),
    click.option(
        "--target-samples", type=Integer(0), default=1_000, show_default=True, metavar="N",
        help="Pages simulated per context.",
    ),
    click.option("--seed", type=Integer(0), default=0, show_default=True, metavar="N", help="Random seed."),
)  # fmt: skip
@workers_options
@option_group(
    OUTPUT,
    click.option("--plan", type=PERCENT, metavar="LIFT", help="How many more visits could detect this lift."),
    click.option("--best", is_flag=True, help="Say which of the targets may still be the best."),
    click.option("--details", is_flag=True, help="Every estimator, and every reason of each."),
)  # fmt: skip
@plot_option
@takes_read_store(
    "rlrec evaluate home uniform --plot home.svg",
    "rlrec evaluate home@2 --log policy=home,since=2026-01-01 --by position --json",
    "rlrec evaluate home uniform --estimator wdr,pdis --gamma 0.9 --log split=gate",
    "rlrec evaluate home uniform --estimator rips,sn-iips,pbm:home",
    "rlrec evaluate home other uniform --best",
)
def evaluate(
    store: Store, show: Show, names: Sequence[str], targets: Sequence[tuple[str, Any]], best: bool, details: bool,
    plan: float | None, plot: str | None, workers: app.evaluate.Workers, **request: Any,
) -> None:  # fmt: skip
    """A target is a policy (as it stands now), NAME@V, a variant POLICY@EXPERIMENT/VARIANT, or the built-in `uniform`.
    By default all loggers with enough evidence count, those with less variable weights more. First comes the answer:
    better, worse or no different from what was logged, or how much more data an answer needs. Every estimate has an
    interval, an effective sample size (ess), and a verdict (ok, weak, insufficient) with reasons."""
    if not names and not targets:
        raise click.UsageError("Missing argument 'TARGET...', or --target FILE.")
    if best and (len(names) + len(targets) < 2 or request["by"]):
        raise click.UsageError("--best compares targets: name at least two, without --by")
    if plan is not None and not 0 < abs(plan) <= 100:
        raise InputError(f"the lift of --plan is {100 * plan:.12g} %", hint="write --plan 5%, or -5% for a loss")
    estimates = app.evaluate.evaluate(store, app.evaluate.Request(targets=names, sources=targets, **request), workers)
    plans = [{} if plan is None else {"plan": row.plan(plan)} for row in estimates]
    rows = [row.record | plan_field for row, plan_field in zip(estimates, plans, strict=True)]
    by = request["by"]
    answering_rows = app.evaluate.answering_rows(estimates)
    shown_estimates = app.evaluate.comparable_rows(answering_rows)
    save_plot(plot, lambda: app.figures.estimates(estimates if by or details else shown_estimates))
    sentence_rows = answering_rows if by else sorted(answering_rows, key=lambda row: bool(row.target_loggers))
    sentences = [
        f"{row.group.label}: {_answer_sentence(row)}" if by else _answer_sentence(row) for row in sentence_rows
    ]
    if by:
        sentences = [_count_sentence(rows, by), *(sentences if len(sentences) <= MAX_SENTENCES else [])]
    sentences += [] if plan is None or by else [row.plan_sentence(plan) for row in answering_rows]
    if best:
        sentences.insert(0, best_of({row.name: row.estimate.may_be_best for row in answering_rows}))
        if all(row.answer.answer != "better" for row in answering_rows):
            unknown_names = [row.name for row in answering_rows if row.answer == ("unknown", None)]
            unknown_clause = f": this log cannot tell about {' and '.join(unknown_names)}" if unknown_names else ""
            sentences.insert(0, f"none is known to be better than {LOGGED}{unknown_clause}")
    if by or details:
        table = estimates_view([*map(result_row, estimates)], by, app.evaluate.explain_rows(estimates))
    else:
        table = estimates_view([*map(result_row, shown_estimates)], by, app.evaluate.reasons_in_words(shown_estimates))
    rewards = {row["reward"] for row in rows}
    sentences += ["the targets learn different rewards: --reward judges all by one"] * (len(rewards) > 1)
    sentences += app.evaluate.log_sentences(estimates)
    sentences += dict.fromkeys(f"{row.name}: {row.origin}" for row in answering_rows if row.origin)
    if len(rewards) == 1 and not by and show.format == "table" and estimates[0].has_returns:
        best_sentence = app.best_policy.find(store, by="evaluate", reward=rewards.pop(), log=request["log"])
        sentences += [] if best_sentence is None else [best_sentence]
    show(rows, table=table._replace(title=sentences))


def _answer_sentence(row: EstimateRow) -> str:
    """Return a sentence that says whether a target (a policy that is evaluated) is better than what was logged."""
    nothing_earned = f"; no row earned anything by reward {row.reward}" if row.estimate.served == 0 else ""
    return row.untaught or row.claim.sentence + nothing_earned


def result_row(row: EstimateRow) -> dict[str, Any]:
    """Return the row of a target (a policy that is evaluated) as a mapping. If the target has learned nothing, its
    figures are None, since they would be those of `uniform`.

    In three other cases only the lift is None: the log is in doubt; the target is the policy that it is compared
    with; or the answer is unknown, and the bounds of the lift lie so far apart that the lift means nothing."""
    lower, upper = (bound or 0.0 for bound in row.estimate.lift_bounds)
    has_lift = not row.target_loggers and row.answer != ("unknown", None)
    is_vague = row.answer.answer == "unknown" and upper - lower > MAX_LIFT_WIDTH
    record = row.record | row.judgement
    if row.untaught is not None:
        return record | dict.fromkeys(("value", "lower", "upper", "lift"))
    return record if has_lift and not is_vague else record | {"lift": None}


def estimates_view(rows: Sequence[Mapping[str, Any]], by: str | None, notes: Sequence[str]) -> View:
    """Return the estimates as one view, with a table for each unit of analysis, such as impressions and visits. Further
    tables are below the first.

    `by` is the field that divides the log into groups, or None if the log is not divided. `notes` are the lines
    below the tables."""
    views = []
    shown_headers = {key: header for key, header in COLUMN_HEADERS.items() if key != "group" or by}
    if len({row["reward"] for row in rows}) == 1:
        shown_headers.pop("reward")
    for unit in dict.fromkeys(row["unit"] for row in rows):
        # a table rounds sample sizes; json and csv have all digits
        rounded_rows = [
            {**row, "ess": None if row["ess"] is None else round(row["ess"]), "lift": _lift_cell(row)}
            for row in rows if row["unit"] == unit
        ]  # fmt: skip
        table = View.select(rounded_rows, [*shown_headers], drop=DROPPED_COLUMNS, same_decimals=True)
        views.append(
            table._replace(headers=[f"by {by}" if key == "group" else shown_headers[key] for key in table.headers])
        )
    first_table, *more_tables = views
    tables_below = [item for table in more_tables for item in (table, "")]
    return first_table._replace(notes=[*tables_below, *notes])


def _lift_cell(row: Mapping[str, Any]) -> Figures | None:
    if row["lift"] is None:
        return None
    prefix = "lift" if row["simultaneous_lower"] is None else "simultaneous"
    bounds = row[f"{prefix}_lower"], row[f"{prefix}_upper"]
    lower_text, upper_text = ("-" if bound is None else percent(bound) for bound in bounds)
    return Figures(f"{percent(row['lift'])} % [{lower_text}, {upper_text}]")


def _count_sentence(rows: Sequence[Mapping[str, Any]], by: str) -> str:
    """Return a sentence that counts the estimates, the groups of the log, and the estimates with each verdict.

    `by` is the field that divides the log into groups."""
    n_groups, verdicts = len({row["group"] for row in rows}), [row["verdict"] for row in rows]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in reversed(VERDICTS) if verdict in verdicts)
    return f"{quantity(len(rows), 'estimate')} by {by}, {quantity(n_groups, 'group')}: {counts}."
