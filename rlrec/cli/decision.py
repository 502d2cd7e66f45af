"""Look into one decision."""

from __future__ import annotations

from typing import Any

import click

from rlrec.cli.session import brief, happenings
from rlrec.cli.shared import Group, printed, stored
from rlrec.cli.tables import cell
from rlrec.cli.values import DECISION
from rlrec.cli.view import View

MOST = 20  # arms a person is shown; the other formats have all


@click.group(cls=Group)
def decision() -> None:
    """Show how one decision's probabilities arose."""


@decision.command("show")
@click.argument("decision_id", type=DECISION, metavar="ID")
@printed
@stored
def show_(store: Any, show: Any, decision_id: int) -> None:
    """Show one decision: the belief it was drawn from, each arm's probability, what is stored.

    \b
    Example:
      rlrec decision show 1
    """
    from rlrec.app import decision as use_case

    found = use_case.show(store, decision_id)
    show(found, table=_view(found), flat=[_flat(found, slot) for slot in found["slate"]])


def _flat(found: dict[str, Any], slot: dict[str, Any]) -> dict[str, Any]:
    """One slot with what identifies it."""
    kept = ("decision_id", "at", "session", "visit", "step", "policy", "version")
    happened = {"events": happenings(found, slot["position"]), "page_events": happenings(found, None)}
    return {name: found[name] for name in kept} | slot | happened


def _view(found: dict[str, Any]) -> View:
    positions = [slot["position"] for slot in found["slate"]]
    shown = {slot["arm"] for slot in found["slate"]}
    rows = [
        [arm["arm"], arm["pulls"], arm["mean"], arm["score"], *arm["probabilities"]]
        for number, arm in enumerate(found["arms"])
        if number < MOST or arm["arm"] in shown
    ]
    headers = ["arm", "pulls", "mean", "score", *(f"p at {position}" for position in positions)]
    return View(title=[*_title(found), *_slots(found), *_left_out(found, len(rows))], headers=headers, rows=rows)


def _title(found: dict[str, Any]) -> list[str]:
    who = f"session {found['session']}, visit {found['visit']}, step {found['step']}, user {cell(found['user'])}"
    variant = f", variant {found['experiment']}/{found['variant']}" if found["variant"] is not None else ""
    policy = f"policy {found['policy']}, version {found['version']}, kind {found['kind']}{variant}"
    return [
        f"decision {found['decision_id']} at {found['at']}: {who}",
        f"{policy}, belief {found['belief_seq']}, floor {cell(found['floor'])}",
        f"context {cell(found['context'])}, state {cell(brief(found['state']))}, {found['eligible']} eligible arms",
        *([f"saw {_features(found['features'])}"] if "features" in found else []),
        f"propensity {cell(found['propensity'])}, reward {cell(found['reward'])} ({found['reward_definition']})",
    ]


def _features(named: dict[str, float] | None) -> str:
    """What a policy saw, by name; None: it is not known."""
    if named is None:
        return "what is not known now"
    return ", ".join(f"{name} {value:.4g}" for name, value in named.items()) or "nothing but 0"


def _slots(found: dict[str, Any]) -> list[str]:
    said = {None: "not derived again", True: "derived again: the same", False: "DERIVED AGAIN: ANOTHER"}
    lines = [
        f"position {slot['position']}: {slot['arm']}, propensity {cell(slot['propensity'])} "
        f"(again {cell(slot['derived_propensity'])}), marginal {cell(slot['marginal'])}, reward {cell(slot['reward'])}"
        for slot in found["slate"]
    ]
    return [*lines, f"stored probabilities {said[found['agrees']]}"]


def _left_out(found: dict[str, Any], rows: int) -> list[str]:
    more = len(found["arms"]) - rows
    return [f"{more} less likely arms are left out; --json has all"] if more else []
