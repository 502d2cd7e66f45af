"""This module exports the log as one line for each decision, with everything that another system needs to import it."""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from rlrec.app.inputs import filters, lookup
from rlrec.app.serving import decision_json
from rlrec.policy.beliefs.reward import rewards_of
from rlrec.records import Decision, Reward
from rlrec.store import Store, Unit
from rlrec.store.database.unit import StoredRows, parse
from rlrec.store.log import candidates, contents, decisions, events, imported_data, selected
from rlrec.store.policies import arms, policies

GROUP = 1_000
LogLine = dict[str, Any]


def export_log(
    store: Store, *, log: str | None = None, reward: str | None = None, has_details: bool = False
) -> Generator[LogLine, None, None]:
    """Yield every selected decision in order of id, from one snapshot. Only a group of decisions is in memory at a
    time.

    reward: the name of a reward, or None for the reward of each policy; has_details: whether to add `rewards` by
    position (None: of the whole slate), `clipped` (whether clipping changed the rewards), and `catalogue_features`
    (the features of the arms in the store)."""
    with store.read() as unit:
        definition = None if reward is None else lookup.reward(unit, reward)
        features = {arm.key: json.loads(arm.features) for arm in arms.all_arms(unit) if arm.features != "{}"}
        details = {"catalogue_features": features} if has_details else None
        selection = filters.selection(unit, log)
        last_exported = n_exported = 0
        newest_id = decisions.peek(unit)
        while ids := selected.ids_after(unit, selection, low=last_exported, limit=GROUP):
            yield from _log_lines(unit, ids, definition, details)
            last_exported, n_exported = ids[-1], n_exported + len(ids)
            unit.progress("decisions", n_exported, last_exported / newest_id)


def _log_lines(
    unit: Unit, ids: Collection[int], definition: Reward | None, details: LogLine | None
) -> Iterator[LogLine]:
    stored_decisions, stored_events = decisions.find(unit, ids), events.by_decision(unit, ids)
    answers, states = decision_json.answers(unit, stored_decisions), decision_json.states(unit, stored_decisions)
    versions = policies.by_id(unit, {decision.version_id for decision in stored_decisions.values()})
    contexts = contents.context_bodies(unit, {decision.context_id for decision in stored_decisions.values()})
    lists = candidates.find_lists(unit, [number for number in ids if "candidates" in answers[number]])
    drawn_from = {key: row.catalogue_id for key, row in lists.items() if row.catalogue_id is not None}
    set_ids = {decision.eligible_id for decision in stored_decisions.values()}
    sets = contents.eligible_arms(unit, set_ids.union(drawn_from.values()))
    keys = arms.keys(unit, {arm for members in sets.values() for arm in members})
    # in order of key, since ids differ between stores
    key_lists = StoredRows("eligible_set", ((number, sorted(map(keys.__getitem__, sets[number]))) for number in sets))
    imported_ids = [number for number in ids if stored_decisions[number].imported]
    further_data = imported_data.find(unit, imported_ids) if imported_ids else {}
    for number in ids:
        decision = stored_decisions[number]
        slate_events = [event for event in stored_events.get(number, ()) if event.kind != events.CENSOR]
        source = json.loads(decision.source) if decision.source else {}
        reward, shown_positions = (
            definition or versions[decision.version_id].reward,
            [slot.position for slot in decision.slots],
        )
        compute_rewards = partial(rewards_of, events=slate_events, served_at=decision.at, slots=shown_positions)
        rewards = compute_rewards(reward)
        record = _with_slots({**answers[number]}, decision) | {
            "context": parse(contexts[decision.context_id], f"body of context {decision.context_id}"),
            "state": states[number],
            "eligible": key_lists[decision.eligible_id],
            **({"catalogue": key_lists[drawn_from[number]]} if number in drawn_from else {}),
            "reward": sum(rewards.values()),
            "seed": decision.seed,
            "belief_seq": source.get("belief_seq", decision.belief_seq),
            "events": decision_json.events(slate_events),
            **_with_arm_keys(further_data.get(number, {}), sets[decision.eligible_id], keys),
        }
        if details is not None:
            record |= details | {"rewards": rewards}
            unclipped_reward = reward._replace(clip_low=None, clip_high=None)
            record["clipped"] = rewards != compute_rewards(unclipped_reward)
        yield record


def _with_arm_keys(data: Mapping[str, Any], eligible: Iterable[int], keys: Mapping[int, str]) -> LogLine:
    """Return the data that an imported line stated beyond the slate, with keys of arms in place of ids. eligible: the
    ids of the decision's eligible arms; keys: the key of each arm, by id."""
    record = dict(data)
    if "slot_sets" in record:
        record["slot_sets"] = [sorted(keys[arm] for arm in arm_ids) for arm_ids in record["slot_sets"]]
    if "support" in record:
        record["support"] = dict(sorted(zip(map(keys.__getitem__, sorted(eligible)), record["support"], strict=True)))
    return record


def _with_slots(answer: LogLine, decision: Decision) -> LogLine:
    """Add to an answer the fields of slots that only the log has. If not all slots of the slate were logged, add the
    length of the slate, too."""
    for entry, slot in zip(answer["slate"], decision.slots, strict=True):
        if slot.min_propensity is not None:
            entry["min_propensity"] = slot.min_propensity
        entry |= {name: True for name in ("censored", "rounded") if getattr(slot, name)}
    is_complete = len(decision.slots) == decision.size == decision.slots[-1].position
    return answer if is_complete else answer | {"k": decision.size}
