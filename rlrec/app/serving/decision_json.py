"""This module turns stored decisions into the objects that commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import Any, TypedDict

from rlrec.app.serving.requests import Answer, DrawnAnswer, add_teams, answer_fields, candidate_fields, slot_fields
from rlrec.policy import TEAM_DRAFT
from rlrec.records import Decision, Event
from rlrec.store import Unit
from rlrec.store.database.unit import parse
from rlrec.store.log import candidates, sessions
from rlrec.store.log.events import CENSOR
from rlrec.store.policies import arms, experiments, policies, routes
from rlrec.times import format_time

WITH_CANDIDATES = ("two-stage", "logged")  # kinds whose decisions may have a list of candidates


def answers(unit: Unit, decisions: Mapping[int, Decision]) -> dict[int, Answer]:
    """Return, by id, each stored decision in the form in which `recommend` answered it."""
    versions = policies.by_id(unit, {decision.version_id for decision in decisions.values()})
    sessions_by_id = sessions.by_id(unit, {decision.session_id for decision in decisions.values()})
    kinds = {number: versions[decision.version_id].policy.kind for number, decision in decisions.items()}
    lists = candidates.find_lists(unit, [number for number, kind in kinds.items() if kind in WITH_CANDIDATES])
    teams = candidates.find_teams(unit, [number for number, kind in kinds.items() if kind == TEAM_DRAFT])
    shown_arms = {slot.arm_id for decision in decisions.values() for slot in decision.slots}
    keys = arms.keys(unit, shown_arms.union(*(candidate_list.arms for candidate_list in lists.values())))
    labels = experiments.labels(unit, {decision.variant_id for decision in decisions.values() if decision.variant_id})
    by_route = routes.by_decision(unit, decisions)
    answers_by_id: dict[int, Answer] = {}
    for number, decision in decisions.items():
        version, session = versions[decision.version_id], sessions_by_id[decision.session_id]
        experiment, variant = labels[decision.variant_id] if decision.variant_id else (None, None)
        log_propensity = decision.log_propensity
        slate = [
            slot_fields(slot.position, keys[slot.arm_id], slot.propensity, slot.marginal, slot.score)
            for slot in decision.slots
        ]
        probability = None if log_propensity is None else exp(log_propensity), log_propensity
        names = experiment, variant, by_route.get(number)
        fields = answer_fields(version, names, probability, slate, format_time(decision.at))
        visit = decision.request_key, session.key, decision.visit, decision.step, session.user
        answer = DrawnAnswer(number, *visit, fields).to_json()
        # stated by the imported line
        source = parse(decision.source, f"source of decision {number}") if decision.source else {}
        answer.update({name: value for name, value in source.items() if name in answer})  # type: ignore[typeddict-item]
        answers_by_id[number] = answer
        add_teams(answer["slate"], teams.get(number))
        if number in lists:
            answer.update(candidate_fields(*lists[number][2:], keys))  # type: ignore[typeddict-item]  # as above
    return answers_by_id


def states(unit: Unit, decisions: Mapping[int, Decision]) -> dict[int, dict[str, Any]]:
    """Return, by id, the session state that each decision saw, with the history of the visit if it can be read."""
    states = {number: parse(decision.state, f"state of decision {number}") for number, decision in decisions.items()}
    if not any(decision.history for decision in decisions.values()):
        return states
    import numpy as np

    from rlrec.policy.gradients import history

    packed_histories = [decision.history or b"" for decision in decisions.values()]
    readable_histories = [blob if history.is_packed(blob) else b"" for blob in packed_histories]
    past_slots = history.unpack(readable_histories, np.zeros(len(readable_histories), np.int64))
    histories = history.to_json(past_slots, arms.keys(unit, set(past_slots.arm.tolist())))
    return {number: states[number] | visit for number, visit in zip(decisions, histories, strict=True)}


# One slot of a slate.
SlotJson = TypedDict("SlotJson", {
    "position": int, "arm": str, "propensity": float | None, "marginal": float | None, "score": float | None,
})  # fmt: skip


# One event of a decision; without a position, of its page.
EventJson = TypedDict("EventJson", {
    "position": int | None, "kind": str, "value": float, "at": str, "key": str | None,
})  # fmt: skip


def events(rows: Sequence[Event]) -> list[EventJson]:
    """Return events in the form that commands print, in the order in which they were stored. The kind `!censor` is
    shown as `censor` or `uncensor`."""
    return [
        {
            "position": event.position,
            "kind": event.kind if event.kind != CENSOR else "censor" if event.value == 1.0 else "uncensor",
            "value": event.value, "at": format_time(event.at), "key": event.key,
        }
        for event in rows
    ]  # fmt: skip
