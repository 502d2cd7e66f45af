"""Sessions: list, show one as a timeline, end its visit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import click

from rlrec.cli.shared import Group, printed, stored
from rlrec.cli.tables import cell
from rlrec.cli.values import KEY, NAME, NUMBER, Whole
from rlrec.cli.view import View

FLAT = (
    "session", "user", "visit", "step", "decision_id", "at", "policy", "version", "experiment", "variant", "context",
    "state", "position", "arm", "propensity", "marginal", "score", "censored", "events", "reward", "page_events",
    "page_reward", "page_return",
)  # fmt: skip
MARKS = ("censor", "uncensor")  # what carries no value
COLUMNS = ("session", "user", "visits", "decisions", "last_at")


@click.group(cls=Group)
def session() -> None:
    """List sessions, show one as a timeline, end a visit."""


@session.command("list")
@click.option("--limit", type=Whole(0), default=100, show_default=True, help="How many; 0 for all.")
@printed
@stored
def list_(store: Any, show: Any, limit: int) -> None:
    """List sessions, newest first.

    \b
    Example:
      rlrec session list --limit 20
    """
    from rlrec.app import session as use_case

    show(use_case.listing(store, limit=limit or None), columns=COLUMNS)


@session.command("show")
@click.argument("key", type=KEY)
@click.option("--visit", type=Whole(1), help="Number of the visit.  [default: the newest]")
@click.option("--gamma", type=NUMBER, default=1.0, show_default=True, help="Discount of the return.")
@click.option("--reward", type=NAME, metavar="NAME", help="Reward definition.  [default: each decision's own]")
@printed
@stored
def show_(store: Any, show: Any, **request: Any) -> None:
    """Show a visit step by step: state, slate, propensities, events, reward, return.

    \b
    Example:
      rlrec session show s1
    """
    from rlrec.app import session as use_case

    found = use_case.show(store, use_case.Request(**request))
    show(found, table=_timeline(found), columns=FLAT, flat=_flat(found))


def _timeline(found: dict[str, Any]) -> View:
    ended = f"ended {found['ended_at']}" if found["ended_at"] else "open"
    title = (
        f"session {found['session']}, user {cell(found['user'])}, visit {found['visit']} of {found['visits']}",
        f"started {found['started_at']}, {ended}",
        f"reward {cell(found['reward'])}, return {cell(found['return'])} (gamma {cell(found['gamma'])})",
    )
    headers = (
        "step", "decision", "at", "policy", "context", "state", "position", "arm", "propensity", "events", "reward",
        "return",
    )  # fmt: skip
    return View(title=title, headers=headers, rows=[row for step in found["decisions"] for row in _rows(step)])


def _flat(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A record a slot, each with all that is known of its decision."""
    visit = {name: found[name] for name in ("session", "user", "visit")}
    for step in found["decisions"]:
        page = {
            "page_events": happenings(step, None),
            "page_reward": step["reward"],
            "page_return": step["return"],
        }
        for slot in step["slate"]:
            every = visit | step | page | slot | {"events": happenings(step, slot["position"])}
            yield {name: every[name] for name in FLAT}


def _rows(step: dict[str, Any]) -> Iterator[list[Any]]:
    """A line a slot, and one for the page where it is longer than one slot."""
    policy = f"{step['policy']}@{step['version']}"
    if step["variant"] is not None:
        policy += f" {step['experiment']}/{step['variant']}"
    head = [step["step"], step["decision_id"], step["at"], policy, step["context"], brief(step["state"])]
    single = len(step["slate"]) == 1
    for number, slot in enumerate(step["slate"]):
        happened = happenings(step, slot["position"], number=cell) + (" (censored)" if slot["censored"] else "")
        worth = step["reward"] if single else slot["reward"]
        line = [slot["position"], slot["arm"], slot["propensity"], happened.strip(), worth]
        yield (head if number == 0 else [None] * len(head)) + line + [step["return"] if single else None]
    if not single:
        page = [None, "(page)", step["propensity"], happenings(step, None, number=cell), step["reward"], step["return"]]
        yield [None] * len(head) + page


def brief(state: dict[str, Any]) -> dict[str, Any]:
    """A state without the long list of all that was remembered."""
    return {name: value for name, value in state.items() if name != "history"}


def happenings(step: dict[str, Any], position: int | None, *, number: Callable[[float], str] = repr) -> str:
    """The events of a slot, or without a position of the page, as they would be typed; values exact, or by `number`."""
    mine = [event for event in step["events"] if event["position"] == position]
    return " ".join(
        event["kind"] if event["kind"] in MARKS else f"{event['kind']}={number(event['value'])}" for event in mine
    )


@session.command("end")
@click.argument("key", type=KEY)
@printed
@stored
def end(store: Any, show: Any, key: str) -> None:
    """End the newest visit of a session; its next decision opens another visit.

    \b
    Example:
      rlrec session end s1
    """
    from rlrec.app import session as use_case

    show(use_case.end(store, key))
