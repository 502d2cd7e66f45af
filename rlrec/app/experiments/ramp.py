"""Ramps that go on by themselves: a candidate gets larger shares of a route's users, or goes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

from rlrec.app.evaluation.comparisons import unit_outcomes
from rlrec.app.evaluation.comparisons.unit_outcomes import DifferenceRow
from rlrec.app.experiments import ending, experiment, route
from rlrec.app.inputs import lookup
from rlrec.errors import InputError
from rlrec.sentences import difference_sentence, guard_sentence
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.database.unit import parse
from rlrec.store.log import settings
from rlrec.store.policies import experiments
from rlrec.store.policies.experiments import Experiment
from rlrec.store.policies.routes import RouteChange
from rlrec.times import format_time

CURRENT, CANDIDATE = "current", "candidate"

# What became of a ramp. did: waited, advanced, promoted or rolled-back, and none where the route has no ramp; share: of
# the candidate now; next_share, next_at: of the step that comes, None where that is not known; why: in plain words.
RampAnswer = TypedDict("RampAnswer", {
    "route": str, "experiment": str | None, "did": str, "share": float | None, "next_share": float | None,
    "next_at": str | None, "why": str,
})  # fmt: skip


class Stage(NamedTuple):
    """Where a ramp stands. change: of the route; due_at: when the next step may come."""

    change: RouteChange
    ramp: Experiment
    share: float
    next_share: float | None
    due_at: int

    @property
    def outlook(self) -> str:
        """The step that comes, in words."""
        if self.next_share is None:
            return f"its last step: `rlrec experiment stop {self.ramp.name} --promote {CANDIDATE}` ends it"
        return f"{100 * self.next_share:.3g} % from {format_time(self.due_at)} on"


def advance(store: Store, name: str) -> RampAnswer:
    """Let the ramp of a route go on: the candidate goes back where it loses, by the metric or a guard; it gets the next
    share, and with 100 % it is promoted, once the step has lasted and enough is known; else the ramp waits."""
    with store.read() as unit, bulk.alongside(unit):
        change = lookup.route(unit, name)
        stage = _stage(unit, change)
        if stage is None:
            since = f"since {format_time(change.at)}, by `{change.command}`"
            return _answer(name, None, "none", f"route {name} has no ramp; it serves {change.reference} {since}")
        look, now, by = unit_outcomes.look(unit, stage.ramp), unit.now, stage.ramp.unit
    losses = [
        *(difference_sentence(row, by) for row in look.differences if _is_lost(row)),
        *(guard_sentence(row, by) for row in look.guards if row["answer"] == "lost"),
    ]
    if losses:
        return _change(store, name, stage, losses)
    ramp_text = f"{stage.ramp.name} is at {100 * stage.share:.3g} %"
    if stage.ramp.mode == experiments.FROZEN:
        return _answer(name, stage, "waited", f"{ramp_text}, frozen")
    if stage.next_share is None or now < stage.due_at:
        return _answer(name, stage, "waited", f"{ramp_text}; {stage.outlook}")
    if doubts := [difference_sentence(row, by) for row in look.differences if row["lower"] is None]:
        return _answer(name, stage, "waited", f"{ramp_text} and waits for more users: {'; '.join(doubts)}")
    if stage.next_share < 1:
        return _change(store, name, stage, [])
    live = ending.stop(store, stage.ramp.name, promote=CANDIDATE, anyway=True)["live"]
    return _answer(name, stage, "promoted", f"{stage.ramp.name} ends: route {name} serves {live} to everybody")


def _is_lost(row: DifferenceRow) -> bool:
    """Whether the candidate surely has less of a metric that decides, whatever may come later."""
    return row["upper"] is not None and row["upper"] < 0 and "sample-ratio" not in row["reasons"]


def _change(store: Store, name: str, stage: Stage, losses: Sequence[str]) -> RampAnswer:
    """Roll a ramp back where the candidate loses, else let it have the next share; where somebody changed the ramp
    meanwhile, look again."""
    command = f"route advance {name}"

    def work(unit: Unit) -> RampAnswer | None:
        settings.lock(unit)
        now = _stage(unit, lookup.route(unit, name, lock=True))
        if now is None or (now.change.id, now.ramp.phase_at) != (stage.change.id, stage.ramp.phase_at):
            return None
        if losses:
            reference = _take_back(unit, stage, command)
            text = f"{stage.ramp.name} was rolled back at {100 * stage.share:.3g} %: {'; '.join(losses)}"
            return _answer(name, stage, "rolled-back", f"{text}; route {name} serves {reference}")
        share = stage.next_share or 1.0
        experiments.begin_phase(unit, stage.ramp.id, {CURRENT: 1 - share, CANDIDATE: share}, moves=True)
        settings.add_run(unit, command, {"experiment": stage.ramp.name, "share": share})
        step = _stage(unit, lookup.route(unit, name))
        assert step is not None
        text = f"{stage.ramp.name} goes from {100 * stage.share:.3g} to {100 * share:.3g} %; {step.outlook}"
        return _answer(name, step, "advanced", text)

    return store.write(work) or advance(store, name)


def _take_back(unit: Unit, stage: Stage, command: str) -> str:
    """The reference that a route serves once its ramp was rolled back. What `current` has learned is kept, as the next
    version of its policy, where the route follows that, and no other version went live meanwhile."""
    current = lookup.version(unit, stage.ramp.variants[0].policy)[0]
    heads, learning = ending.lock(unit, current)
    head = heads.get(stage.change.policy_id)
    reference = route.roll_back(unit, stage.change.route, command=command)["reference"]
    if stage.change.number is not None or head is None or head.live_id != current.parent_id:
        return reference
    return ending.make_live(unit, current, heads, learning).reference


def _stage(unit: Unit, change: RouteChange) -> Stage | None:
    """Where the ramp of a route stands; None where it has none. Raises InputError for a ramp that has no steps."""
    if not change.running or change.experiment is None:
        return None
    ramp = lookup.experiment(unit, change.experiment)
    definition = parse(ramp.definition, f"definition of experiment {ramp.name}")
    if experiment.STEPS not in definition:
        hint = f"`rlrec experiment stop {ramp.name} --promote {CANDIDATE}` ends it, `rlrec route ramp` begins others"
        raise InputError(f"the ramp {ramp.name} has no steps", hint=hint)
    share = experiment.shares_of(ramp)[ramp.variants[-1].id]
    next_share = next((step for step in definition[experiment.STEPS] if step > share + experiment.MIN_ROOM), None)
    due_at = max(ramp.created_at, ramp.phase_at) + definition[experiment.HOLD]
    return Stage(change=change, ramp=ramp, share=share, next_share=next_share, due_at=due_at)


def _answer(name: str, stage: Stage | None, did: str, sentence: str) -> RampAnswer:
    answer: RampAnswer = {
        "route": name, "experiment": None, "did": did, "share": None, "next_share": None, "next_at": None,
        "why": sentence,
    }  # fmt: skip
    if stage is not None:
        share = {"promoted": 1.0, "rolled-back": 0.0}.get(did, stage.share)
        answer |= {"experiment": stage.ramp.name, "share": share}
        if did in ("waited", "advanced") and stage.next_share is not None:
            answer |= {"next_share": stage.next_share, "next_at": format_time(stage.due_at)}
    return answer
