"""Decisions as the command contract shows them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from math import exp
from typing import TYPE_CHECKING, Any

from rlrec.records import Decision, Version
from rlrec.store import Unit, arms, decisions, experiments, policies, sessions
from rlrec.store.experiments import Experiment, Variant
from rlrec.store.sessions import Session
from rlrec.times import written

if TYPE_CHECKING:
    from rlrec.app.drawing import Drawn


def _answer(
    *,
    decision_id: int | None,
    request_id: str | None,
    session: str,
    visit: int | None,
    step: int | None,
    user: str | None,
    version: Version,
    labels: tuple[str | None, str | None],
    log_propensity: float | None,
    slate: Sequence[Mapping[str, Any]],
    at: int,
) -> dict[str, Any]:
    return {
        "decision_id": decision_id,
        "request_id": request_id,
        "session": session,
        "visit": visit,
        "step": step,
        "user": user,
        "policy": version.policy.shown,
        "version": version.number,
        "experiment": labels[0],
        "variant": labels[1],
        "propensity": None if log_propensity is None else exp(log_propensity),
        "log_propensity": log_propensity,
        "slate": list(slate),
        "at": written(at),
        "duplicate": False,
    }


def drawn(one: Drawn, keys: Mapping[int, str], session: Session, *, visit: int, step: int, at: int) -> dict[str, Any]:
    """A slate that was drawn just now."""
    return _drawn(one, keys, decision_id=one.decision_id, user=session.user, visit=visit, step=step, at=at)


def dry(one: Drawn, keys: Mapping[int, str], *, at: int) -> dict[str, Any]:
    """A slate that would have been drawn: nothing of it is stored."""
    return _drawn(one, keys, decision_id=None, user=one.plan.request.user, visit=None, step=None, at=at)


def _drawn(
    one: Drawn,
    keys: Mapping[int, str],
    *,
    decision_id: int | None,
    user: str | None,
    visit: int | None,
    step: int | None,
    at: int,
) -> dict[str, Any]:
    plan = one.plan
    columns = zip(one.arms, one.propensity, one.marginal, one.score, strict=True)
    return _answer(
        decision_id=decision_id,
        request_id=plan.request.request_id,
        session=plan.request.session,
        visit=visit,
        step=step,
        user=user,
        version=plan.version,
        labels=_labels(plan.experiment, plan.variant),
        log_propensity=one.log_propensity,
        slate=[
            {
                "position": position,
                "arm": keys[arm],
                "propensity": propensity,
                "marginal": marginal if marginal > 0 else None,
                "score": score,
            }
            for position, (arm, propensity, marginal, score) in enumerate(columns, 1)
        ],
        at=at,
    )


def _labels(experiment: Experiment | None, variant: Variant | None) -> tuple[str | None, str | None]:
    return (experiment.name, variant.label) if experiment and variant else (None, None)


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


def _stored(
    decision: Decision,
    version: Version,
    session: Session,
    keys: Mapping[int, str],
    labels: Mapping[int, tuple[str, str]],
) -> dict[str, Any]:
    answer = _answer(
        decision_id=decision.id,
        request_id=decision.request_key,
        session=session.key,
        visit=decision.visit,
        step=decision.step,
        user=session.user,
        version=version,
        labels=labels[decision.variant_id] if decision.variant_id else (None, None),
        log_propensity=decision.log_propensity,
        slate=[
            {
                "position": slot.position,
                "arm": keys[slot.arm_id],
                "propensity": slot.propensity,
                "marginal": slot.marginal,
                "score": slot.score,
            }
            for slot in decision.slots
        ],
        at=decision.at,
    )
    said = json.loads(decision.source) if decision.source else {}
    return answer | {name: value for name, value in said.items() if name in answer}
