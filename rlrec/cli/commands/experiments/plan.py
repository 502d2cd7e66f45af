"""This module holds the command `rlrec experiment plan`, which says how many users or sessions an experiment needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.shared import Store, level_option, takes_read_store
from rlrec.cli.text.text import View, truncate
from rlrec.cli.text.values import NAME, PERCENT, Integer, ParsedType, parse_number, parse_percent
from rlrec.errors import InputError
from rlrec.sentences import plan_sentence

if TYPE_CHECKING:
    from rlrec.app.evaluation.comparisons.declared import MetricName


def parse_metric(text: str) -> MetricName:
    """Return the metric that METRIC or METRIC:REWARD names."""
    from rlrec.app.evaluation.comparisons.declared import MetricName

    metric, colon, reward = (piece.strip() for piece in text.partition(":"))
    if not metric or (colon and not reward):
        raise InputError(f"'{truncate(text)}' is not a metric", hint="write METRIC or METRIC:REWARD")
    return MetricName(metric, reward or None)


def parse_weights(text: str) -> tuple[float, ...]:
    """Return the weights of two or more variants from a text, in which commas separate them."""
    weights = tuple(parse_number(piece.strip()) for piece in text.split(","))
    if len(weights) < 2 or not all(1e-9 <= weight <= 1e9 for weight in weights):
        hint = "write one a variant, above 0: 9,1 or 1,1,1"
        raise InputError(f"'{truncate(text)}' are no weights of variants", hint=hint)
    return weights


def parse_lift(text: str) -> float:
    """Return the lift (relative gain) in a text such as 5% or 0.05. A number of 1 or more needs a % sign."""
    if abs(lift := parse_percent(text)) >= 1 and not text.endswith("%"):
        raise InputError(f"the lift is {truncate(text)}, which is {100 * lift:.12g} %", hint=f"write {truncate(text)}%")
    return lift


LIFT = ParsedType("share", parse_lift)
METRIC = ParsedType("metric[:reward]", parse_metric)
WEIGHTS = ParsedType("weights", parse_weights)


@click.command()
@click.argument("name", type=NAME, required=False)
@click.option("--lift", type=LIFT, default="10%", show_default=True, help="Lift to detect: 5%, or -2%.")
@click.option("--power", type=PERCENT, default="80%", show_default=True, help="Chance to detect it, if it is real.")
@level_option
@click.option(
    "--metric", type=METRIC, metavar="METRIC[:REWARD]",
    help="The metric, as in `outcomes` [default: what decides NAME, or reward_per_unit].",
)  # fmt: skip
@click.option("--weights", type=WEIGHTS, default="1,1", show_default=True, metavar="LIST", help="Of the variants.")
@click.option("--comparisons", type=Integer(1, 1000), metavar="N", help="[default: those that decide]")
@click.option("--unit", "by", type=click.Choice(["user", "session"]), default="user", help="Who has a variant.")
@click.option("--log", metavar="FILTER", help="The traffic: route=home, policy=home, ... [default: all].")
@click.option(
    "--rate", type=PERCENT, metavar="SHARE", help="Share of units with an event, in place of a metric of the log."
)
@takes_read_store(
    "rlrec experiment plan --lift 5% --log route=home",
    "rlrec experiment plan ab --lift 5%",
    "rlrec experiment plan --rate 5% --lift 10%",
)
def plan(store: Store, show: Show, **request: Any) -> None:
    """Say how many units, and how many days of traffic, an experiment needs to detect a lift. With NAME, for an
    existing experiment: with its variants, units and traffic, and the days that are left.

    It says this for one look fixed beforehand, and for any number of looks (`experiment show`). Rewards count when
    their window is over: wait for this time at the end. Days include the time in which the last users may come back: 7
    days for visits, active days and retention, 28 for returned_28d. --rate needs no store, but then days are not
    known."""
    result = app.plan.plan(store, app.plan.Request(**request))
    smallest_share, assumptions = min(result["assumed"]["shares"]), result["assumed"]
    total_sequential = result["total_sequential"]
    rows = [
        ["one look", result["total"], result["per_variant"], result["days"]],
        ["any number", total_sequential, round(total_sequential * smallest_share), result["days_sequential"]],
    ]
    if assumptions["narrowed"] is not None:
        rows.append(["one look, --adjust", None, None, result["adjusted_days"]])
    value, standard_deviation = assumptions["value"], assumptions["variance"] ** 0.5
    return_days, has_no_new_units = (
        assumptions["return_days"],
        result["days"] is None and assumptions["traffic_units"] is not None,
    )
    sentence = plan_sentence(result)
    title = [
        f"{sentence[0].upper()}{sentence[1:]}.",
        f"{assumptions['metric']}: {value:.4g} a {assumptions['unit']}, standard deviation {standard_deviation:.4g}",
        *([f"days are not known: this traffic brings no new {assumptions['unit']}s"] if has_no_new_units else []),
        *([f"the last {return_days} of these days are for those who came last to come again"] if return_days else []),
    ]
    show(result, table=View(["looks", f"{assumptions['unit']}s", "smallest variant", "days"], rows, title=title))
