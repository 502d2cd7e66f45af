"""This module holds the command `rlrec decision show`, which explains how the probabilities of one decision arose."""

from __future__ import annotations

from typing import Any, cast

import click

from rlrec.cli.commands.requests.session import brief, brief_context, candidates_text, events_text
from rlrec.cli.output.output import Show
from rlrec.cli.output.tables import cell, pairs
from rlrec.cli.program import app
from rlrec.cli.program.shared import CommandGroup, Store, reading
from rlrec.cli.text.text import View
from rlrec.cli.text.values import DECISION
from rlrec.errors import quantity

N_ARMS = 20  # in the table; the other formats have all


decision = CommandGroup("decision")


@decision.command("show")
@click.argument("decision_id", type=DECISION, metavar="ID")
@reading("rlrec decision show 1")
def show_(store: Store, show: Show, decision_id: int) -> None:
    """Show one decision: the belief it was drawn from, the probability of each arm, and what is stored."""
    result = app.decision.show(store, decision_id)
    show(result, table=view(result), flat=[_flat(result, slot) for slot in cast(Any, result["slate"])])


def _flat(result: app.decision.Result, slot: dict[str, Any]) -> dict[str, Any]:
    """Return a record of one slot, with the keys of its decision and its events."""
    keys = {name: result[name] for name in ("decision_id", "at", "session", "visit", "step", "policy", "version")}
    events = result["events"]
    return keys | slot | {"events": events_text(events, slot["position"]), "page_events": events_text(events, None)}


def view(result: app.decision.Result) -> View:
    """Return lines about a decision, and a table of its most probable arms and of those that it showed."""
    positions = [slot["position"] for slot in result["slate"]]
    shown = {slot["arm"] for slot in result["slate"]}
    rows = [
        [arm["arm"], arm["pulls"], arm["mean"], arm["score"], *arm["probabilities"]]
        for number, arm in enumerate(result["arms"])
        if number < N_ARMS or arm["arm"] in shown
    ]
    headers = ["arm", "pulls", "mean", "score", *(f"p at {position}" for position in positions)]
    n_hidden = len(result["arms"]) - len(rows)
    left_out = [f"left out: {quantity(n_hidden, 'less likely arm')}; --json has all"] if n_hidden else []
    return View(title=[*_title(result), *_slots(result), *left_out], headers=headers, rows=rows)


def _left_out(result: app.decision.Result) -> list[str]:
    """Return a line on the arms that could not be shown, if there are any."""
    rows = result.get("left_out", [])
    names = [row["arm"] if row["reason"] == "narrowed" else f"{row['arm']} ({row['reason']})" for row in rows[:N_ARMS]]
    hidden = f" and {len(rows) - N_ARMS} more" if len(rows) > N_ARMS else ""
    rules = f"; narrowed by {', '.join(result['narrowed_by'])}" if result.get("narrowed_by") else ""
    return [f"not eligible: {', '.join(names)}{hidden}{rules}"] if rows else []


def _title(result: app.decision.Result) -> list[str]:
    visitor = (
        f"session {result['session']}, visit {result['visit']}, step {result['step']}, user {cell(result['user'])}"
    )
    policy = f"policy {result['policy']}, version {result['version']}, kind {result['kind']}"
    eligible, condition = quantity(result["eligible"], "eligible arm"), ""
    if "candidates" in result:
        eligible, condition = quantity(result["eligible"], "candidate"), " given the candidates"
        eligible += f" of {quantity(result['catalogue'], 'eligible arm')}" if result["catalogue"] is not None else ""
    return [
        f"decision {result['decision_id']} at {result['at']}: {visitor}",
        f"{policy}, belief {result['belief_seq']}, floor {cell(result['floor'])}",
        f"context {pairs(brief_context(result['context'])) or '-'}, state {pairs(brief(result['state']))}, {eligible}",
        *_left_out(result),
        *([f"rules of the page: {', '.join(result['rules'])}"] if "rules" in result else []),
        *([f"features: {_features(result['features'])}"] if "features" in result else []),
        *candidates_text(result, first=N_ARMS),
        f"propensity {cell(result['propensity'])}{condition}, "
        f"reward {cell(result['reward'])} ({result['reward_definition']}){_events(result, None)}",
    ]


def _events(result: app.decision.Result, position: int | None) -> str:
    """Return text with the events of a slot, or of the page, behind its reward. The text is empty where none came."""
    events = events_text(result["events"], position, for_person=True)
    return f", events {events}" if events else ""


def _features(named: dict[str, float] | None) -> str:
    """Return features by name as text. `named` is None where the state was not stored."""
    if named is None:
        return "not stored"
    named = {"constant" if name == "1" else name: value for name, value in named.items()}
    return ", ".join(f"{name}={value:.4g}" for name, value in named.items()) or "all 0"


def _slots(result: app.decision.Result) -> list[str]:
    verdict = {
        None: "stand alone: what drew this decision is not in the store",
        True: "agree with those derived from the belief",
        False: "DISAGREE with those derived from the belief",
    }
    lines = [
        f"position {slot['position']}: {slot['arm']}, propensity {cell(slot['propensity'])} "
        f"(derived {cell(slot['derived_propensity'])}), marginal {cell(slot['marginal'])}, "
        f"reward {cell(slot['reward'])}{_events(result, slot['position'])}"
        for slot in cast(Any, result["slate"])
    ]
    return [*lines, f"stored probabilities {verdict[result['agrees']]}"]
