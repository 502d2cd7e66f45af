"""This module holds the commands of `rlrec reward`, which define the reward of a decision, list definitions, and show
how long events take to arrive."""

from __future__ import annotations

from typing import Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.shared import CommandGroup, Store, level_option, takes_read_store, takes_write_store
from rlrec.cli.text.text import View
from rlrec.cli.text.values import DURATION, NAME, NUMBER, ParsedType, parse_number
from rlrec.errors import InputError
from rlrec.times import format_duration


def _parse_range(text: str) -> tuple[float, float]:
    low, comma, high = text.partition(",")
    if not comma:
        raise InputError(f"{text!r} is not a range", hint="write LO,HI, for example 0,1")
    bounds = parse_number(low), parse_number(high)
    if bounds[0] > bounds[1]:
        raise InputError(f"the range {text!r} is empty", hint="write LO,HI with LO below HI")
    return bounds


reward = CommandGroup("reward")


@reward.command()
@click.argument("name", type=NAME)
@click.argument("weights")
@click.option(
    "--window", "window_us", type=DURATION, default="30m", show_default=True,
    help="How long after a decision its events count.",
)  # fmt: skip
@click.option("--default", type=NUMBER, default="0", show_default=True, help="Reward of a slot without events.")
@click.option("--clip", type=ParsedType("lo,hi", _parse_range), help="Keep a slot's reward inside LO,HI.")
@click.option(
    "--learn", type=click.Choice(["served", "settled"]), default="served", show_default=True,
    help="When a belief learns from a slot: at once, corrected by its events, or when its window is over.",
)  # fmt: skip
@click.option(
    "--late", type=click.Choice(["count", "ignore"]), default="count", show_default=True,
    help="Whether events after the window still correct a belief (estimates never count them).",
)  # fmt: skip
@takes_write_store(
    "rlrec reward define basket 'click=0.1, purchase=1' --window 1d --clip 0,1",
    "rlrec reward define reading 'click=0.2, log1p(min(dwell_s,600))=0.1'",
    "rlrec reward define durable 'click=0.05, purchase=2, return=1' --window 7d",
)
def define(store: Store, show: Show, **request: Any) -> None:
    """Define what the events of a slot are worth.

    The reward of a slot is the sum of weight x value over its events, clipped, or the default if there was no such
    event. In place of KIND, log1p(KIND), min(KIND,CAP) and log1p(min(KIND,CAP)) transform the sum of its values first;
    log1p of a negative sum -x is -log1p(x). Definitions never change: give a new definition a new name, and try it on
    old logs.

    Once a reward weighs the event `return`, it is recorded automatically: when a known user begins a visit, the last
    decision of their previous visit gets the event, in any session and under any policy. It belongs to the page of that
    decision or, if the slate has one slot, to the slot; beliefs learn only from slots. Choose a --window in which users
    come back. Earlier visits in the log get the event, too, also imported ones. From then on, `feedback` refuses a
    `return` by hand, because it would count a visit twice."""
    show(app.reward.define(store, app.reward.Request(**request)))


@reward.command("list")
@takes_read_store("rlrec reward list")
def list_(store: Store, show: Show) -> None:
    """List all reward definitions."""
    definitions = app.reward.list_rewards(store)
    headers = ["reward", "weights", "window_s", "default", "clip", "learn", "late"]
    table = View.select([{**row, "weights": _weights_text(row)} for row in definitions], headers)
    show(definitions, table=table, columns=[*headers, "transforms"])


def _weights_text(row: app.reward.Definition) -> str:
    """Return the weights of a reward as text, in the form that `reward define` takes."""
    return ", ".join(f"{row['transforms'].get(kind, kind)}={weight:g}" for kind, weight in row["weights"].items())


@reward.command()
@click.argument("name", type=NAME, required=False)
@click.option("--log", metavar="FILTER", help="Look only at these decisions: policy=NAME,since=TIME and so on.")
@takes_read_store("rlrec reward delays", "rlrec reward delays default --log policy=home")
def delays(store: Store, show: Show, name: str | None, log: str | None) -> None:
    """Show how much reward arrives within each window, to choose one. Without a NAME it is the reward that all policies
    learn.

    The reward of a decision is that of its page under the definition, minus the defaults, from the events inside the
    window. Two windows are compared on the decisions old enough for the longer one, so that young decisions do not
    look poor (a chain ladder). The share is a share of what arrives within the longest window. Decisions with a
    censored slot are left out; imported ones count as old enough for every window.

    \b
    What --json has:
      share                 of the reward of the longest window; null: unknown.
                            Above 1 where later events take reward away
      decisions             how many are old enough for the window
      events                weighed events inside the window, of these decisions
      reward_per_decision   the mean reward of these, from events in the window
      own                   whether it is the window of the definition"""
    rows = app.delays.delays(store, name, log=log)
    result = [{"window": format_duration(round(row["window_s"] * 1e6)), **row} for row in rows]
    headers = ["window", "share", "events", "decisions", "reward_per_decision"]
    marked_rows = [{**row, "window": f"{row['window']}{' *' if row['own'] else ''}"} for row in result]
    show(result, table=View.select(marked_rows, headers, notes=[f"* the window of reward {rows[0]['reward']}"]))


@reward.command()
@click.option("--reward", type=NAME, help="Reward that the weights add to [default: what all policies learn].")
@click.option("--log", metavar="FILTER", help="Filter of the log, or parquet:DIR, as in `effects` [default: all].")
@click.option("--horizon", "horizon_us", type=DURATION, help="Time within which people come back, as in `effects`.")
@level_option
@takes_read_store("rlrec reward suggest --reward durable --horizon 3d", "rlrec reward suggest --log policy=home --json")
def suggest(store: Store, show: Show, **request: Any) -> None:
    """Suggest weights of events by which a slot is worth what it brings in the long run.

    Arms differ in how many events of each kind a look at them brings, and in their later effects: on later pages of the
    visit, and on coming back (`rlrec effects`). A regression of the later effects on the events, across arms, says what
    one more event goes with (later); it allows for errors in both. A weight is what the event is worth now, in the
    reward, plus later. `return` has no weight, because it is part of the later effects; a clip is ignored.

    It describes how arms differ, not what an event causes: it may be wrong for an arm unlike all past ones. rank is the
    rank correlation, over arms, between events per look and the long-run effect. If it is below 0, a policy that learns
    only this event prefers the arms that cost most. If any later weight is significantly different from 0, a definition
    to paste follows, with the means of the others. Bounds of later and rank hold for all events together."""
    result = app.effects.suggest(store, app.effects.Request(**request))
    title = [_headline(result), *_rank_warnings(result), _basis_sentence(result)]
    rows = [
        [row["event"], row["now"], *row["later"].values(), row["weight"], row["answer"], *row["rank"].values()]
        for row in result["events"]
    ]
    headers = ["event", "now", "later", "lower", "upper", "weight", "answer", "rank", "rank_lower", "rank_upper"]
    notes = []
    if result["weights"] is not None:
        weights = ", ".join(f"{kind}={weight:g}" for kind, weight in result["weights"].items())
        window = format_duration(round(result["window_s"] * 1e6))
        notes.append(f"rlrec reward define {result['name']} '{weights}' --window {window}")
    show(result, table=View(headers, rows, title=title, notes=notes))


def _headline(result: app.effects.Suggestion) -> str:
    """Return the first line of the answer. For each kind of event that surely goes with later reward, the line says how
    much reward after the slate goes with one more event."""
    sure_events = [event for event in result["events"] if event["answer"] != "unknown"]
    if not result["events"]:
        return f"cannot tell: no kind of event differs enough between the {result['arms']} arms of this log"
    if not sure_events:
        return (
            "cannot tell which events carry the long run: what comes after looks at these arms differs too little, or "
            "too little is known of it; a policy of kind long-term learns it arm by arm"
        )
    sentences = [
        f"one more {event['event']} goes with {_interval_text(event['later'], '+.3g')}" for event in sure_events
    ]
    return f"after the page, across {result['arms']} arms, " + " and ".join(sentences)


def _rank_warnings(result: app.effects.Suggestion) -> list[str]:
    """Return a warning for each event or reward that ranks arms against their effect on the long-run reward."""
    ranks = [(event["event"], event["rank"]) for event in result["events"]]
    if result["rank"] is not None and len(ranks) > 1:
        ranks.append((f"reward {result['reward']} without returns", result["rank"]))
    return [
        f"{name} ranks arms against their long run: rank correlation {_interval_text(rank, '.2f')}"
        for name, rank in ranks
        if rank["upper"] < 0
    ]


def _basis_sentence(result: app.effects.Suggestion) -> str:
    basis_text = f"reward {result['reward']}; back within {format_duration(round(result['horizon_s'] * 1e6))}; "
    basis_text += f"{result['pages']:,} pages, {result['persons']:,} persons"
    if result["explained"] is None:
        return basis_text
    return f"{basis_text}; events tell {_interval_text(result['explained'], '.0%')} of what differs between arms later"


def _interval_text(estimate: app.effects.Doubt, number_format: str) -> str:
    value, lower, upper = (format(estimate[name], number_format) for name in ("value", "lower", "upper"))
    return f"{value} [{lower}, {upper}]"
