"""This module holds the command `rlrec exposure`, which shows how often each arm was shown in the log."""

from __future__ import annotations

from typing import Any, cast

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.files import plot_option, save_plot
from rlrec.cli.program.shared import GroupedCommand, Store, takes_read_store, workers_options
from rlrec.cli.text.text import View
from rlrec.errors import quantity

ARM_COLUMNS = ("arm", "realised", "expected", "rate", "lower", "upper", "age_days")
DAY_COLUMNS = ("day", "decisions", "slots", "coverage", "gini", "effective_arms", "floor_share", "young_share")


@click.command(cls=GroupedCommand)
@click.option("--policy", metavar="NAME", help="Only decisions of this policy.")
@click.option("--log", metavar="FILTER", help="Filter of the log, or parquet:DIR, as in `evaluate` [default: all].")
@click.option("--by", type=click.Choice(["day"]), help="The figures of the catalogue for each day, too.")
@click.option("--reward", metavar="NAME", help="Reward of the rates [default: what the policy, or all, learn].")
@click.option("--position", metavar="CURVE", help="Curve that counts pulls of the rates [default: the policy's].")
@workers_options
@plot_option
@takes_read_store(
    "rlrec exposure --policy home --plot home.svg", "rlrec exposure --log since=2026-01-01 --by day --json"
)
def exposure(store: Store, show: Show, plot: str | None, workers: app.evaluate.Workers, **request: Any) -> None:
    """Expected exposure sums an arm's probabilities at each position of each decision, so it does not depend on the
    draws. Realised exposure counts the slots that showed the arm. An arm counts in the figures of the catalogue if it
    was eligible in any decision. The rate is the mean reward of its mature slots, each weighted by the examination of
    its position if there is a curve (`rlrec position fit`).

    \b
    Figures of the catalogue (with expected_ in front: of expected exposure):
      coverage         share of the arms that had a slot
      gini             0: all arms had the same; near 1: one had it all
      entropy          in nats; effective_arms is its exponential
      floor_share      share of slots that a uniform pick fills, expected
      popularity_lift  mean summed reward of the arms shown, over that of the
                       catalogue: above 1, popular arms are shown more
      young_share      share of slots with an arm added less than 7 days before
      variety          mean distance (1 - cosine) of two arms of a slate, by the
                       features of the catalogue

    With --json, underived counts decisions without known probabilities of arms, for which expected exposure is null;
    underived_reason says why (null if there are none)."""
    result = app.exposure.exposure(store, app.exposure.Request(**request), workers)
    save_plot(plot, lambda: app.figures.exposure(result))
    catalogue = result["catalogue"]
    figures = ((name, cast(float | None, value)) for name, value in catalogue.items() if name != "arms")
    pull_sentence = "every slot is a pull" if result["curve"] is None else f"pulls counted by curve {result['curve']}"
    title = [
        f"{quantity(result['decisions'], 'decision')}, {quantity(result['slots'], 'slot')}, "
        f"{quantity(catalogue['arms'], 'eligible arm')}",
        f"rates of reward {result['reward']}; {pull_sentence}",
        ", ".join(f"{name} {value:.3g}" for name, value in figures if value is not None),
    ]
    notes = []
    if result["underived"]:
        decisions, reason = quantity(result["underived"], "decision"), result["underived_reason"]
        notes.append(f"expected exposure is unknown: {decisions} without probabilities of all arms ({reason})")
    if result["curve"] is None and result["slots"] > result["decisions"]:
        notes.append(
            "arms that stand low on the page earn less for that alone; `rlrec position fit` estimates how much"
        )
    if (total := sum(row["realised"] for row in result["arms"])) > result["slots"]:
        notes.append(f"the log dropped rows (keep_probability): arms and shares are of {total:,} slots")
    records, columns = (result["days"], DAY_COLUMNS) if "days" in result else (result["arms"], ARM_COLUMNS)
    show(result, table=View.select(records, columns, title=title, notes=notes))
