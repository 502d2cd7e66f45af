"""rlrec reward: what a decision is worth."""

from __future__ import annotations

from typing import Any

import click

from rlrec.cli.output import Show
from rlrec.cli.shared import Group, printed, stored
from rlrec.cli.values import DURATION, NAME, NUMBER, Parsed, format_duration, parse_number
from rlrec.cli.view import View
from rlrec.errors import InputError


def _clip(text: str) -> tuple[float, float]:
    low, comma, high = text.partition(",")
    if not comma:
        raise InputError(f"{text!r} is no range", hint="write LO,HI, for example 0,1")
    bounds = parse_number(low), parse_number(high)
    if bounds[0] > bounds[1]:
        raise InputError(f"the range {text!r} is empty", hint="write LO,HI with LO below HI")
    return bounds


@click.group(cls=Group)
def reward() -> None:
    """Define and list rewards."""


@reward.command()
@click.argument("name", type=NAME)
@click.argument("weights")
@click.option("--window", type=DURATION, default="30m", show_default=True, help="Events count this long.")
@click.option("--default", type=NUMBER, default="0", show_default=True, help="Reward of a slot without events.")
@click.option("--clip", type=Parsed("lo,hi", _clip), help="Keep a slot's reward inside LO,HI.")
@click.option(
    "--learn", type=click.Choice(["served", "settled"]), default="served", show_default=True,
    help="When a belief takes a slot in: at once, corrected by its events, or when its window is over.",
)  # fmt: skip
@click.option(
    "--late", type=click.Choice(["count", "ignore"]), default="count", show_default=True,
    help="Whether events after the window still correct a belief (estimates never count them).",
)  # fmt: skip
@printed
@stored
def define(
    store: Any, show: Show, name: str, weights: str, window: int, default: float, clip: tuple[float, float] | None,
    learn: str, late: str,
) -> None:  # fmt: skip
    """Define what the events of a slot are worth.

    A slot's reward is the sum over kinds of event of weight x the sum of their values, clipped; the default if none
    came. In place of a KIND stand log1p(KIND), min(KIND,CAP) and log1p(min(KIND,CAP)) for what becomes of its sum
    first; log1p of a sum below 0 is that of its size, negative. Definitions never change: a new idea gets a new name,
    and can be tried on old logs.

    \b
    Examples:
      rlrec reward define basket 'click=0.1, purchase=1' --window 1d --clip 0,1
      rlrec reward define reading 'click=0.2, log1p(min(dwell_s,600))=0.1'
    """
    from rlrec.app import reward as use_case

    request = use_case.Request(
        name=name, weights=weights, window_us=window, default=default, clip=clip, learn=learn, late=late
    )
    show(use_case.define(store, request))


@reward.command("list")
@printed
@stored
def list_(store: Any, show: Show) -> None:
    """List all reward definitions.

    \b
    Example:
      rlrec reward list
    """
    from rlrec.app import reward as use_case

    found = use_case.listing(store)
    headers = ["reward", "weights", "window_s", "default", "clip", "learn", "late"]
    rows = [[one["reward"], _terms(one), *(one[name] for name in headers[2:])] for one in found]
    show(found, table=View(headers=headers, rows=rows), columns=[*headers, "transforms"])


def _terms(one: dict[str, Any]) -> str:
    return ", ".join(f"{one['transforms'].get(kind, kind)}={weight:g}" for kind, weight in one["weights"].items())


@reward.command()
@click.argument("name", type=NAME, default="default")
@click.option("--log", metavar="FILTER", help="Look only at these decisions: policy=NAME,since=TIME and so on.")
@printed
@stored
def delays(store: Any, show: Show, name: str, log: str | None) -> None:
    """Show how much reward arrives within each window, to choose one.

    A decision's reward is that of its page under the definition, less the defaults, from the events inside the window.
    Two windows are compared on the decisions old enough for the longer one, so that young ones never look poor (a chain
    ladder); the share is of what arrives within the longest window. Decisions with a censored slot are left out.
    Imported ones count as old enough for every window.

    \b
    What --json has:
      share                 of the reward of the longest window; null: unknown.
                            Above 1 where later events take reward away
      events, decisions     weighed events inside the window of the decisions
                            old enough for it; how many decisions these are
      reward_per_decision   of theirs, inside the window
      own                   whether it is the window of the definition

    \b
    Examples:
      rlrec reward delays
      rlrec reward delays default --log policy=home
    """
    from rlrec.app import delays as use_case

    found = [{"window": format_duration(row.pop("window_us")), **row} for row in use_case.delays(store, name, log=log)]
    headers = ["window", "share", "events", "decisions", "reward_per_decision"]
    rows = [[one["window"] + " *" * one["own"], *(one[key] for key in headers[1:])] for one in found]
    show(found, table=View(headers=headers, rows=rows, notes=[f"* the window of reward {name}"]))
