"""This module advances ramps. At each step, the candidate of a ramp gets a larger part of a route's users, or the ramp
is rolled back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from rlrec.app.evaluation.comparisons import unit_outcomes
from rlrec.app.experiments import ending, route
from rlrec.app.experiments.route import BLOCKED, CANDIDATE, CURRENT, Stage, find_stage
from rlrec.app.inputs import lookup
from rlrec.errors import InputError
from rlrec.sentences import difference_sentence, guard_sentence, join_doubts
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.log import settings
from rlrec.store.policies import experiments, policies
from rlrec.times import format_time

# The result for a ramp. did: waited, advanced, promoted, rolled-back, blocked (somebody must look), or none (the route
# has no ramp); share: of the candidate now; next_share, next_at: of the next step, None where it is not known; why: in
# plain words.
RampAnswer = TypedDict("RampAnswer", {
    "route": str, "experiment": str | None, "did": str, "share": float | None, "next_share": float | None,
    "next_at": str | None, "why": str,
})  # fmt: skip


def advance(store: Store, name: str) -> RampAnswer:
    """Advance the ramp of a route, and return what was done. If the candidate loses, by the metric or by a guard, the
    ramp is rolled back. If the step has lasted long enough, the metric has an interval and every guard holds, the
    candidate gets its next share; at a share of 100 % it is promoted. Otherwise, the ramp waits."""
    with store.read() as unit, bulk.alongside(unit):
        change = lookup.route(unit, name)
        stage = find_stage(unit, change)
        if stage is None:
            since = f"since {format_time(change.at)}, by `{change.command}`"
            return _answer(name, None, "none", f"route {name} has no ramp; it serves {change.reference} {since}")
        if (due_at := stage.due_at) is None:
            name = stage.ramp.name
            hint = f"`rlrec experiment stop {name} --promote {CANDIDATE}` ends it, `rlrec route ramp` begins others"
            raise InputError(f"the ramp {name} has no steps", hint=hint)
        look, now, by = unit_outcomes.look_at_experiment(unit, stage.ramp), unit.now, stage.ramp.unit
        by_reward = len(policies.rewards(unit)) > 1
    block_reason = None
    if any("sample-ratio" in row["reasons"] for row in look.differences):
        text = f"{stage.ramp.name} stays at {100 * stage.share:.12g} %: the users that count are not split as defined"
        doubt = "some users are lost or left out by an exclusion, so that no figure tells whether the candidate loses"
        block_reason = f"{text} (sample-ratio): {doubt}; `rlrec route rollback {name}` takes the candidate back"
    if block_reason != stage.block_reason:
        options = {"experiment": stage.ramp.name}
        store.write(lambda unit: settings.keep_state(unit, BLOCKED, options, {"why": block_reason}), repeatable=True)
        stage = stage._replace(block_reason=block_reason)
    if block_reason is not None:
        return _answer(name, stage, "blocked", block_reason)
    lost_rows = [row for row in look.differences if row["upper"] is not None and row["upper"] < 0]  # for good
    losses = [
        *(difference_sentence(row, by, by_reward=by_reward) for row in lost_rows),
        *(guard_sentence(row, by) for row in look.guards if row["answer"] == "lost"),
    ]
    if losses:
        return _change(store, name, stage, losses)
    if stage.ramp.mode == experiments.FROZEN or stage.next_share is None or now < due_at:
        return _answer(name, stage, "waited", stage.sentence)
    unknown_rows = [row for row in look.differences if row["lower"] is None]
    if doubts := [difference_sentence(row, by, by_reward=by_reward) for row in unknown_rows]:
        return _answer(name, stage, "waited", f"{stage.ramp.name} waits for more users: {join_doubts(doubts)}")
    if doubts := [guard_sentence(row, by) for row in look.guards if row["answer"] != "holds"]:
        command = f"`rlrec experiment stop {stage.ramp.name} --promote {CANDIDATE} --anyway` promotes it by hand"
        text = f"{stage.ramp.name} waits for its {'guard' if len(doubts) == 1 else 'guards'}: {join_doubts(doubts)}"
        return _answer(name, stage, "waited", f"{text}; {command}")
    if stage.next_share < 1:
        return _change(store, name, stage, [])
    live = ending.stop(store, stage.ramp.name, promote=CANDIDATE, anyway=True)["live"]
    return _answer(name, stage, "promoted", f"{stage.ramp.name} ends: route {name} serves {live} to everybody")


def _change(store: Store, name: str, stage: Stage, losses: Sequence[str]) -> RampAnswer:
    """Roll a ramp back if the candidate loses, else give the candidate the next share. If somebody else changed the
    ramp meanwhile, `advance` runs again. losses: sentences that say where the candidate loses, empty if it does not."""
    command = f"route advance {name}"

    def work(unit: Unit) -> RampAnswer | None:
        settings.lock(unit)
        now = find_stage(unit, lookup.route(unit, name, lock=True))
        if now is None or (now.change.id, now.ramp.phase_at) != (stage.change.id, stage.ramp.phase_at):
            return None
        if losses:
            reference = _roll_back(unit, stage, command)
            text = f"{stage.ramp.name} was rolled back at {100 * stage.share:.12g} %: {'; '.join(losses)}"
            is_retired = stage.change.number is not None and reference != stage.change.reference
            clause = f", since {stage.change.reference} is retired" if is_retired else ""
            return _answer(name, stage, "rolled-back", f"{text}; route {name} serves {reference}{clause}")
        share = stage.next_share or 1.0
        experiments.begin_phase(unit, stage.ramp.id, {CURRENT: 1 - share, CANDIDATE: share}, moves=True)
        settings.add_run(unit, command, {"experiment": stage.ramp.name, "share": share})
        step = find_stage(unit, lookup.route(unit, name))
        assert step is not None
        text = f"{stage.ramp.name} goes from {100 * stage.share:.12g} to {100 * share:.12g} %; {step.outlook}"
        return _answer(name, step, "advanced", text)

    return store.write(work) or advance(store, name)


def _roll_back(unit: Unit, stage: Stage, command: str) -> str:
    """Roll back a ramp, and return the reference that its route serves from now on. If the route follows the policy of
    the variant `current`, and no other version went live meanwhile, what this variant has learned becomes the next
    version of the policy."""
    current_version = lookup.version(unit, stage.ramp.variants[0].policy)[0]
    heads, learners = ending.lock(unit, current_version)
    head = heads.get(stage.change.policy_id)
    reference = route.roll_back(unit, stage.change.route, command=command, or_live=True)["reference"]
    if stage.change.number is not None or head is None or head.live_id != current_version.parent_id:
        return reference
    return ending.make_live(unit, current_version, heads, learners).reference


def _answer(name: str, stage: Stage | None, did: str, sentence: str) -> RampAnswer:
    answer: RampAnswer = {
        "route": name, "experiment": None, "did": did, "share": None, "next_share": None, "next_at": None,
        "why": sentence,
    }  # fmt: skip
    if stage is not None:
        share = {"promoted": 1.0, "rolled-back": 0.0}.get(did, stage.share)
        answer |= {"experiment": stage.ramp.name, "share": share}
        if did in ("waited", "advanced") and stage.next_share is not None and stage.due_at is not None:
            answer |= {"next_share": stage.next_share, "next_at": format_time(stage.due_at)}
    return answer
