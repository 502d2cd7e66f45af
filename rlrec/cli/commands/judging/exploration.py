"""This module holds the command `rlrec exploration`, which tells how much reward exploration costs and earns."""

from __future__ import annotations

from typing import Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.shared import GroupedCommand, Store, level_option, takes_read_store
from rlrec.cli.text.text import View
from rlrec.cli.text.values import Integer
from rlrec.errors import quantity

MAX_RISEN_ARMS = 10  # arms that a person is shown
SWEPT_KINDS = "epsilon-greedy,lin-thompson"  # kinds that learn any reward, without and with contexts
DAY_COLUMNS = ("day", "rows", "cost", "lower", "upper")


@click.command(cls=GroupedCommand)
@click.option("--policy", metavar="NAME", help="The policy [default: the only one that has served].")
@click.option("--log", metavar="FILTER", help="Filter of its log, as in `evaluate` [default: all].")
@click.option("--reward", metavar="NAME", help="Reward definition [default: the policy's].")
@level_option
@click.option("--seed", type=Integer(0), default=0, show_default=True, help="Seed of the bootstrap.")
@takes_read_store("rlrec exploration --policy home", "rlrec exploration --policy home --log since=2026-01-01 --json")
def exploration(store: Store, show: Show, **request: Any) -> None:
    """The policy is compared with itself without exploration (floor, epsilon, temperature 0) on the same mature rows,
    each with the belief that served it. cost is the reward per slot that exploration costs: the self-normalised
    estimate without exploration, minus the mean as served. It does not say what the beliefs would have learned without
    exploration. It has bounds once 5 rewards can be expected from the slots that exploration added (few-rewards). For a
    policy that draws at random without a belief, there is nothing to compare with (no-belief).

    \b
    What it earned:
      risen          arms that were shown mostly by exploration in some twentieth
                     of the time, and have more than an equal share in the last
      ess            effective sample size, in rows, for judging `uniform` and the
                     other policies by this log
      without_floor  the same for a log of as many rows without exploration

    With --json, left_out counts mature slots without a probability by position; left_out_reason says why (null if there
    are none)."""
    result = app.exploration.exploration(store, app.exploration.Request(**request))
    sign, values = -1 if (result["upper"] or 0.0) < 0 else 1, [result["lower"], result["cost"], result["upper"]]
    lower, cost, upper, total = (_figure_text(value, sign) for value in [*values[::sign], result["total"]])
    cost_figures = f"{cost} a slot [{lower}, {upper}], {total} in total"
    cost_clause = (
        f"{'earns' if sign < 0 else 'costs'} {cost_figures if result['lower'] or result['upper'] else 'nothing'}"
    )
    has_belief = "no-belief" not in result["reasons"]
    if not has_belief:
        cost_clause = "has no known cost, since each page is drawn at random, without a belief to compare with"
    elif "no-variation" in result["reasons"]:
        cost_clause = "costs what this log cannot tell, as all slots earned the same so far"
    elif result["answer"] == "unknown":
        cost_clause = f"may cost nothing: {', '.join([*result['reasons'], cost_figures])}"
    title = [
        f"{result['policy']}, reward {result['reward']}, {quantity(result['rows'], 'slot')}: exploration "
        f"{cost_clause}; a slot earned {_figure_text(result['mean'])} as served",
    ]
    notes = []
    if not has_belief:
        options = f"--log policy={result['policy']} --reward {result['reward']}"
        notes.append(f"what a policy that learns would earn: `rlrec sweep --kinds {SWEPT_KINDS} {options}`")
    if result["left_out"]:
        reason = f"they have no probability by position, as {result['left_out_reason']}"
        notes.append(f"left out: {quantity(result['left_out'], 'mature slot')}, of all figures here: {reason}")
    notes += [
        f"effective sample size for judging {row['target']}: {row['ess']:.0f} of {quantity(result['rows'], 'slot')}"
        + (f"; without exploration it would be {min(row['without_floor'], result['rows']):.0f}" if has_belief else "")
        for row in result["ess"]
    ]
    notes += [
        f"risen: {row['arm']} from {row['probability_then']:.3g} to {row['probability_now']:.3g}"
        for row in result["risen"][:MAX_RISEN_ARMS]
    ]
    if (n_more_arms := len(result["risen"]) - MAX_RISEN_ARMS) > 0:
        notes.append(f"risen: {quantity(n_more_arms, 'more arm')}, which --json has")
    columns = DAY_COLUMNS if has_belief else DAY_COLUMNS[:2]
    show(result, table=View.select(result["by_day"], columns, title=title, notes=notes))


def _figure_text(value: float | None, sign: int = 1) -> str:
    return "unknown" if value is None else f"{sign * value:.4g}"
