"""The log as one decision a line: everything that is needed to take it in elsewhere."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from rlrec.app.inputs import filters
from rlrec.app.log.decision_reward import reward_of
from rlrec.app.serving import decision_json
from rlrec.records import Decision, Event, Slot, Version
from rlrec.store import Store, Unit, arms, contents, decisions, events, policies, reader
from rlrec.store.events import CENSOR
from rlrec.times import written

GROUP = 1_000
Record = dict[str, Any]


def export_log(store: Store, *, log: str | None = None) -> Iterator[Record]:
    """Every selected decision in order of its id, from one snapshot; memory is bounded by a group of them."""
    with store.read() as unit:
        selection = filters.selection(unit, log)
        low = 0
        while ids := reader.ids_after(unit, selection, low=low, limit=GROUP):
            yield from _records(unit, ids)
            low = ids[-1]


def _records(unit: Unit, ids: Collection[int]) -> Iterator[Record]:
    found = decisions.find(unit, ids)
    happened = events.by_decision(unit, ids)
    answers, states = decision_json.answers(unit, found), decision_json.states(unit, found)
    versions = policies.by_id(unit, {decision.version_id for decision in found.values()})
    contexts = contents.context_bodies(unit, {decision.context_id for decision in found.values()})
    eligible = _eligible(unit, {decision.eligible_id for decision in found.values()})
    for key in ids:
        one = found[key]
        yield _slate({**answers[key]}, one) | {
            "context": json.loads(contexts[one.context_id]),
            "state": states[key],
            "eligible": eligible[one.eligible_id],
            "reward": _reward(versions[one.version_id], one, happened.get(key, ())),
            "seed": one.seed,
            "belief_seq": _said(one).get("belief_seq", one.belief_seq),
            "events": [_event(event) for event in happened.get(key, ()) if event.kind != CENSOR],
        }


def _eligible(unit: Unit, ids: Collection[int]) -> dict[int, list[str]]:
    """Arm keys of each eligible set, in order of the key: ids are another store's."""
    sets = contents.eligible_arms(unit, ids)
    keys = arms.keys(unit, {arm for found in sets.values() for arm in found})
    return {number: sorted(keys[arm] for arm in found) for number, found in sets.items()}


def _slate(answer: Record, decision: Decision) -> Record:
    """The answer with what only the log knows of its slots, and the page's length where it was not shown whole."""
    slots = zip(answer["slate"], decision.slots, strict=True)
    answer["slate"] = [entry | _apart(slot) for entry, slot in slots]
    whole = len(decision.slots) == decision.size == decision.slots[-1].position
    return answer if whole else answer | {"k": decision.size}


def _apart(slot: Slot) -> Record:
    more: Record = {} if slot.min_propensity is None else {"min_propensity": slot.min_propensity}
    return more | ({"censored": True} if slot.censored else {}) | ({"rounded": True} if slot.rounded else {})


def _said(decision: Decision) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(decision.source) if decision.source else {}
    return found


def _reward(version: Version, decision: Decision, happened: Collection[Event]) -> float:
    """The page's, as the decision's own definition has it."""
    return reward_of(version.reward, decision, [one for one in happened if one.kind != CENSOR], position=None)


def _event(event: Event) -> Record:
    return {
        "position": event.position,
        "kind": event.kind,
        "value": event.value,
        "at": written(event.at),
        "key": event.key,
    }
