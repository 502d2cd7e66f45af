"""This module holds the command `rlrec decision show`, which explains how the probabilities of one decision arose."""

from __future__ import annotations

from typing import Any, cast

import click

from rlrec.cli.commands.requests.session import (
    candidates_text,
    context_without_features,
    events_text,
    state_without_history,
)
from rlrec.cli.output.output import Show
from rlrec.cli.output.tables import cell, record_text
from rlrec.cli.program import app
from rlrec.cli.program.shared import CommandGroup, Store, takes_read_store
from rlrec.cli.text.text import View
from rlrec.cli.text.values import DECISION
from rlrec.errors import quantity

N_ARMS = 20  # in the table; the other formats have all


decision = CommandGroup("decision")


@decision.command("show")
@click.argument("decision_id", type=DECISION, metavar="ID")
@takes_read_store("rlrec decision show 1")
def show_(store: Store, show: Show, decision_id: int) -> None:
    """Show one decision: the belief it was drawn from, the probability of each arm, and what is stored."""
    result = app.decision.show(store, decision_id)
    show(result, table=decision_view(result), flat=[_csv_record(result, slot) for slot in cast(Any, result["slate"])])


def _csv_record(result: app.decision.Result, slot: dict[str, Any]) -> dict[str, Any]:
    """Return a record of one slot of a decision. It includes the fields that identify the decision, and the events of
    the slot and of the whole slate."""
    keys = {name: result[name] for name in ("decision_id", "at", "session", "visit", "step", "policy", "version")}
    events = result["events"]
    return keys | slot | {"events": events_text(events, slot["position"]), "page_events": events_text(events, None)}


def decision_view(result: app.decision.Result) -> View:
    """Return a table of the arms that a decision showed, and of its most probable arms. Lines about the decision stand
    above the table."""
    positions = [slot["position"] for slot in result["slate"]]
    shown_arms = {slot["arm"] for slot in result["slate"]}
    rows = [
        [arm["arm"], arm["pulls"], arm["mean"], arm["score"], *arm["probabilities"]]
        for number, arm in enumerate(result["arms"])
        if number < N_ARMS or arm["arm"] in shown_arms
    ]
    headers = ["arm", "pulls", "mean", "score", *(f"p at {position}" for position in positions)]
    n_hidden = len(result["arms"]) - len(rows)
    left_out = [f"left out: {quantity(n_hidden, 'less likely arm')}; --json has all"] if n_hidden else []
    return View(title=[*_title_lines(result), *_slot_lines(result), *left_out], headers=headers, rows=rows)


def _left_out_lines(result: app.decision.Result) -> list[str]:
    """Return a line about the arms that the decision could not show, or nothing if there are none."""
    rows = result.get("left_out", [])
    names = [row["arm"] if row["reason"] == "narrowed" else f"{row['arm']} ({row['reason']})" for row in rows[:N_ARMS]]
    more_text = f" and {len(rows) - N_ARMS} more" if len(rows) > N_ARMS else ""
    rules_clause = f"; narrowed by {', '.join(result['narrowed_by'])}" if result.get("narrowed_by") else ""
    return [f"not eligible: {', '.join(names)}{more_text}{rules_clause}"] if rows else []


def _title_lines(result: app.decision.Result) -> list[str]:
    visitor_text = (
        f"session {result['session']}, visit {result['visit']}, step {result['step']}, user {cell(result['user'])}"
    )
    policy_text = f"policy {result['policy']}, version {result['version']}, kind {result['kind']}"
    eligible_text, condition_clause = quantity(result["eligible"], "eligible arm"), ""
    if "candidates" in result:
        eligible_text, condition_clause = quantity(result["eligible"], "candidate"), " given the candidates"
        eligible_text += (
            f" of {quantity(result['catalogue'], 'eligible arm')}" if result["catalogue"] is not None else ""
        )
    return [
        f"decision {result['decision_id']} at {result['at']}: {visitor_text}",
        f"{policy_text}, belief {result['belief_seq']}, floor {cell(result['floor'])}",
        f"context {record_text(context_without_features(result['context'])) or '-'}, "
        f"state {record_text(state_without_history(result['state']))}, {eligible_text}",
        *_left_out_lines(result),
        *([f"rules of the page: {', '.join(result['rules'])}"] if "rules" in result else []),
        *([f"features: {_features_text(result['features'])}"] if "features" in result else []),
        *candidates_text(result, limit=N_ARMS),
        f"propensity {cell(result['propensity'])}{condition_clause}, "
        f"reward {cell(result['reward'])} ({result['reward_definition']}){_events_clause(result, None)}",
    ]


def _events_clause(result: app.decision.Result, position: int | None) -> str:
    """Return a text with the events that made the reward of a slot. The text is empty without an event.

    `position` is the position of the slot, or None for events of the whole slate."""
    events = events_text(result["events"], position, for_person=True)
    return f", events {events}" if events else ""


def _features_text(values_by_name: dict[str, float] | None) -> str:
    """Return the features of a session's state as text, each with its name.

    `values_by_name` has the value of each feature, or is None if the state was not stored."""
    if values_by_name is None:
        return "not stored"
    values_by_name = {"constant" if name == "1" else name: value for name, value in values_by_name.items()}
    return ", ".join(f"{name}={value:.4g}" for name, value in values_by_name.items()) or "all 0"


def _slot_lines(result: app.decision.Result) -> list[str]:
    verdict = {
        None: "stand alone: what drew this decision is not in the store",
        True: "agree with those derived from the belief",
        False: "DISAGREE with those derived from the belief",
    }
    lines = [
        f"position {slot['position']}: {slot['arm']}, propensity {cell(slot['propensity'])} "
        f"(derived {cell(slot['derived_propensity'])}), marginal {cell(slot['marginal'])}, "
        f"reward {cell(slot['reward'])}{_events_clause(result, slot['position'])}"
        for slot in cast(Any, result["slate"])
    ]
    return [*lines, f"stored probabilities {verdict[result['agrees']]}"]
