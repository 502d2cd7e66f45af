"""Decisions as the command contract shows them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from math import exp
from typing import Any, TypedDict

from rlrec.app.serving.draws import Page
from rlrec.app.serving.requests import Plan
from rlrec.policy import history
from rlrec.records import Decision, Event, Version
from rlrec.store import Unit, arms, decisions, experiments, policies, sessions
from rlrec.store.events import CENSOR
from rlrec.store.sessions import Session
from rlrec.times import written


def drawn(
    plan: Plan,
    page: Page,
    decision_id: int | None,
    user: str | None,
    visit: int | None,
    step: int | None,
    at: str,
) -> dict[str, Any]:
    """A slate that was drawn just now; without an id one that would have been drawn, and is not stored."""
    lane, request = plan.lane, plan.request
    return {
        "decision_id": decision_id,
        "request_id": request.request_id,
        "session": request.session,
        "visit": visit,
        "step": step,
        "user": user,
        "policy": lane.version.policy.shown,
        "version": lane.version.number,
        "experiment": lane.experiment and lane.experiment.name,
        "variant": lane.variant and lane.variant.label,
        "propensity": page.propensity,
        "log_propensity": page.log_propensity,
        "slate": page.answer,
        "at": at,
        "duplicate": False,
    }


def stored(unit: Unit, decision_ids: Collection[int]) -> dict[int, dict[str, Any]]:
    """Decisions of the log, by id, with the keys of `recommend --json`."""
    return shown(unit, decisions.find(unit, decision_ids))


def shown(unit: Unit, found: Mapping[int, Decision]) -> dict[int, dict[str, Any]]:
    """The same for decisions that were read already."""
    versions = policies.by_id(unit, {decision.version_id for decision in found.values()})
    owners = sessions.by_id(unit, {decision.session_id for decision in found.values()})
    keys = arms.keys(unit, {slot.arm_id for decision in found.values() for slot in decision.slots})
    labels = experiments.labels(unit, {decision.variant_id for decision in found.values() if decision.variant_id})
    return {
        key: _stored(decision, versions[decision.version_id], owners[decision.session_id], keys, labels)
        for key, decision in found.items()
    }


def states(unit: Unit, found: Mapping[int, Decision]) -> dict[int, dict[str, Any]]:
    """What each decision saw of its visit: the state as it is stored, and what else is known to have been known."""
    packed = {key: decision.history or b"" for key, decision in found.items()}
    known = {key: blob if history.whole(blob) else b"" for key, blob in packed.items()}  # `doctor` tells of others
    names = arms.keys(unit, {arm for blob in known.values() for arm in history.arms(blob)})
    return {key: json.loads(found[key].state) | history.shown(blob, names) for key, blob in known.items()}


def _stored(
    decision: Decision,
    version: Version,
    session: Session,
    keys: Mapping[int, str],
    labels: Mapping[int, tuple[str, str]],
) -> dict[str, Any]:
    experiment, variant = labels[decision.variant_id] if decision.variant_id else (None, None)
    answer = {
        "decision_id": decision.id,
        "request_id": decision.request_key,
        "session": session.key,
        "visit": decision.visit,
        "step": decision.step,
        "user": session.user,
        "policy": version.policy.shown,
        "version": version.number,
        "experiment": experiment,
        "variant": variant,
        "propensity": None if decision.log_propensity is None else exp(decision.log_propensity),
        "log_propensity": decision.log_propensity,
        "slate": [
            {
                "position": slot.position,
                "arm": keys[slot.arm_id],
                "propensity": slot.propensity,
                "marginal": slot.marginal,
                "score": slot.score,
            }
            for slot in decision.slots
        ],
        "at": written(decision.at),
        "duplicate": False,
    }
    said = json.loads(decision.source) if decision.source else {}
    return answer | {name: value for name, value in said.items() if name in answer}


class SlotJson(TypedDict):
    """One slot of a slate."""

    position: int
    arm: str
    propensity: float | None
    marginal: float | None
    score: float | None


class EventJson(TypedDict):
    """One event of a decision; without a position, of its page."""

    position: int | None
    kind: str
    value: float
    at: str
    key: str | None


def events(stored: Sequence[Event]) -> list[EventJson]:
    """Events in the order in which they were stored; those of `--censor` by its name."""
    return [
        {
            "position": event.position,
            "kind": event.kind if event.kind != CENSOR else "censor" if event.value == 1.0 else "uncensor",
            "value": event.value,
            "at": written(event.at),
            "key": event.key,
        }
        for event in stored
    ]
