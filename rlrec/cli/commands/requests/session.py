"""This module holds the commands of `rlrec session`, which list sessions, show a session as a timeline, and end its
visit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import exp
from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.output.tables import cell, record_text
from rlrec.cli.program import app
from rlrec.cli.program.shared import CommandGroup, Store, takes_read_store, takes_write_store
from rlrec.cli.text.text import View
from rlrec.cli.text.values import KEY, NAME, NUMBER, Integer

FLAT_COLUMNS = (
    "session", "user", "visit", "step", "decision_id", "at", "policy", "version", "experiment", "variant", "context",
    "state", "position", "arm", "propensity", "marginal", "score", "censored", "events", "reward", "page_events",
    "page_reward", "page_return",
)  # fmt: skip
MIN_LOG_PROBABILITY = -700.0  # log of the smallest probability that a double can hold, about
EVENTS_WITHOUT_VALUE = ("censor", "uncensor")  # events without a value
SESSION_COLUMNS = ("session", "user", "visits", "decisions", "last_at")

if TYPE_CHECKING:
    from rlrec.app.requests.session import TimelineEvent
    from rlrec.app.serving.requests import Answer


session = CommandGroup("session")


@session.command("list")
@click.option("--limit", type=Integer(0), default=100, show_default=True, help="How many; 0 for all.")
@click.option("--user", type=KEY, metavar="KEY", help="Only of this user.")
@takes_read_store("rlrec session list --limit 20", "rlrec session list --user u1")
def list_(store: Store, show: Show, limit: int, user: str | None) -> None:
    """List sessions, newest first."""
    show(app.session.list_sessions(store, limit=limit or None, user=user), columns=SESSION_COLUMNS)


@session.command("show")
@click.argument("key", type=KEY)
@click.option("--visit", type=Integer(1), help="Number of the visit.  [default: the newest]")
@click.option("--gamma", type=NUMBER, default=1.0, show_default=True, help="Discount of the return.")
@click.option("--reward", type=NAME, metavar="NAME", help="Reward definition.  [default: each decision's own]")
@takes_read_store("rlrec session show s1")
def show_(store: Store, show: Show, **request: Any) -> None:
    """Show a visit step by step: state, slate, propensities, events, reward, return."""
    visit = app.session.show(store, app.session.Request(**request))
    show(visit, table=timeline_view(visit), columns=FLAT_COLUMNS, flat=_csv_records(visit))


def timeline_view(visit: app.session.Result) -> View:
    """Return a visit as a table with a row for each slot, and a row for each whole slate that has several slots."""
    end_text = f"ended {visit['ended_at']}" if visit["ended_at"] else "open"
    title = (
        f"session {visit['session']}, user {cell(visit['user'])}, visit {visit['visit']} of {visit['visits']}",
        f"started {visit['started_at']}, {end_text}",
        f"reward {cell(visit['reward'])}, return {cell(visit['return'])} (gamma {cell(visit['gamma'])})",
    )
    headers = (
        "step", "decision", "at", "policy", "context", "state", "position", "arm", "propensity", "events", "reward",
        "return",
    )  # fmt: skip
    rows = [row for step in visit["decisions"] for row in _timeline_rows(step)]
    return View(
        title=title, headers=headers, rows=rows, drop=("state", "at", "policy", "context", "decision", "return")
    )


def _csv_records(visit: app.session.Result) -> Iterator[dict[str, Any]]:
    """Yield a record for each slot of a visit, which includes the fields of its decision and of the whole slate."""
    visit_fields = {"session": visit["session"], "user": visit["user"], "visit": visit["visit"]}
    for step in visit["decisions"]:
        page_fields = {"page_events": events_text(step["events"], None), "page_reward": step["reward"]}
        for slot in step["slate"]:
            fields = {**visit_fields, **step, **page_fields, "page_return": step["return"], **slot}
            fields["events"] = events_text(step["events"], slot["position"])
            yield {name: fields[name] for name in FLAT_COLUMNS}


def _timeline_rows(step: app.session.Step) -> Iterator[list[Any]]:
    """Yield a table row for each slot of a decision. If there are several slots, a row for the whole slate follows.

    step: the decision."""
    policy = f"{step['policy']}@{step['version']}"
    if step["variant"] is not None and "@" not in step["policy"]:  # imported by an earlier release
        policy += f" {step['experiment']}/{step['variant']}"
    step_cells = [step["step"], step["decision_id"], step["at"], policy]
    step_cells += [
        record_text(context_without_features(step["context"])),
        record_text(state_without_history(step["state"])),
    ]
    is_single_slot = len(step["slate"]) == 1
    for number, slot in enumerate(step["slate"]):
        events = events_text(step["events"], slot["position"], for_person=True)
        events += " (censored)" if slot["censored"] else ""
        reward = step["reward"] if is_single_slot else slot["reward"]
        slot_cells = [slot["position"], slot["arm"], slot["propensity"], events.strip(), reward]
        yield (
            (step_cells if number == 0 else [None] * len(step_cells))
            + slot_cells
            + [step["return"] if is_single_slot else None]
        )
    if not is_single_slot:
        events = events_text(step["events"], None, for_person=True)
        page_cells = [None, "(page)", step["propensity"], events, step["reward"], step["return"]]
        yield [None] * len(step_cells) + page_cells


def state_without_history(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state without the history of the visit, which is its longest field."""
    return {name: value for name, value in state.items() if name != "history"}


def context_without_features(context: dict[str, Any]) -> dict[str, Any]:
    """Return a context in which the features of arms, if the request had them, are replaced by the number of these
    arms."""
    return context | {"@arms": f"{len(context['@arms'])} described"} if "@arms" in context else context


def events_text(events: Sequence[TimelineEvent], position: int | None, *, for_person: bool = False) -> str:
    """Return events as text, in the form that `feedback` takes.

    `position` is the position of the slot whose events are shown, or None for events of the whole slate. With
    `for_person`, values are rounded, and events after the reward window are marked."""
    format_value = cell if for_person else repr
    return " ".join(
        (event["kind"] if event["kind"] in EVENTS_WITHOUT_VALUE else f"{event['kind']}={format_value(event['value'])}")
        + " (late)" * (for_person and event["late"])
        for event in events
        if event["position"] == position
    )


def candidates_text(answer: Answer, *, limit: int) -> list[str]:
    """Return a line with the candidates from which the slate was ranked, and the probability of this list. The result
    is empty if the answer has no list of candidates.

    limit: the largest number of candidates to show."""
    if "candidates" not in answer:
        return []
    log_propensity = answer["candidates_log_propensity"]
    propensity = cell(exp(log_propensity)) if log_propensity > MIN_LOG_PROBABILITY else f"e^{log_propensity:.1f}"
    entries_text = ", ".join(f"{entry['arm']} {cell(entry['propensity'])}" for entry in answer["candidates"][:limit])
    ellipsis = ", ..." if len(answer["candidates"]) > limit else ""
    return [f"candidates, propensity {propensity} in this order: {entries_text}{ellipsis}"]


@session.command("end")
@click.argument("key", type=KEY)
@takes_write_store("rlrec session end s1")
def end(store: Store, show: Show, key: str) -> None:
    """End the newest visit of a session; its next decision opens another visit."""
    show(app.session.end(store, key))
