"""Ramps that go on by themselves: a candidate gets larger shares of a route's users, or goes back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypedDict

from rlrec.app.evaluation.comparisons import unit_outcomes
from rlrec.app.evaluation.comparisons.unit_outcomes import DifferenceRow
from rlrec.app.experiments import ending, experiment, route
from rlrec.app.experiments.route import RouteSummary
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
ROUNDING = 1e-9  # of a share

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
    def state(self) -> tuple[int, int]:
        """Equal as long as nobody has changed it."""
        return self.change.id, self.ramp.phase_at


def begin(store: Store, request: route.Request) -> RouteSummary:
    """Begin a ramp that goes on by itself. Raises InputError for steps that do not rise, or a hold of 0."""
    assert request.schedule is not None
    steps, hold_us, _ = request.schedule
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise InputError("--steps do not rise", hint="write 5%,20%,50%,100%")
    if steps[0] == 1:
        hint = f"`rlrec route set {request.name} --to {request.to}` gives it to everybody at once"
        raise InputError("--steps begins with 100%", hint=hint)
    if hold_us <= 0:
        raise InputError("--hold is 0", hint="write how long each step lasts at least, 2d")
    return route.set_route(store, request)


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
    doubts = [difference_sentence(row, by) for row in look.differences if row["lower"] is None]
    at = f"{stage.ramp.name} is at {100 * stage.share:.3g} %"
    if losses:
        return _change(store, name, stage, losses)
    if stage.ramp.mode == experiments.FROZEN:
        return _answer(name, stage, "waited", f"{at}, frozen")
    if stage.next_share is None:
        ends = f"`rlrec experiment stop {stage.ramp.name} --promote {CANDIDATE}` ends it"
        return _answer(name, stage, "waited", f"{at}, its last step: {ends}")
    if now < stage.due_at:
        due = f"{100 * stage.next_share:.3g} % from {format_time(stage.due_at)} on"
        return _answer(name, stage, "waited", f"{at}; {due}")
    if doubts:
        return _answer(name, stage, "waited", f"{at} and waits for more users: {'; '.join(doubts)}")
    if stage.next_share < 1:
        return _change(store, name, stage, [])
    ending.stop(store, stage.ramp.name, promote=CANDIDATE, anyway=True)
    with store.read() as unit:
        reference = lookup.route(unit, name).reference
    return _answer(name, stage, "promoted", f"{stage.ramp.name} ends: route {name} serves {reference} to everybody")


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
        if now is None or now.state != stage.state:
            return None
        if losses:
            reference = route.roll_back(unit, name, command=command)["reference"]
            text = f"{stage.ramp.name} was rolled back at {100 * stage.share:.3g} %: {'; '.join(losses)}"
            return _answer(name, stage, "rolled-back", f"{text}; route {name} serves {reference} again")
        share = stage.next_share or 1.0
        experiments.begin_phase(unit, stage.ramp.id, {CURRENT: 1 - share, CANDIDATE: share}, moves=True)
        settings.add_run(unit, command, {"experiment": stage.ramp.name, "share": share})
        following_stage = _stage(unit, lookup.route(unit, name))
        assert following_stage is not None
        following = (
            "its last step" if following_stage.next_share is None else f"{100 * following_stage.next_share:.3g} %"
        )
        text = f"{stage.ramp.name} goes from {100 * stage.share:.3g} to {100 * share:.3g} %; {following} from"
        return _answer(name, following_stage, "advanced", f"{text} {format_time(following_stage.due_at)} on")

    return store.write(work) or advance(store, name)


def _stage(unit: Unit, change: RouteChange) -> Stage | None:
    """Where the ramp of a route stands; None where it has none. Raises InputError for a ramp that has no steps."""
    if not change.running or change.experiment is None:
        return None
    ramp = lookup.experiment(unit, change.experiment)
    definition = parse(ramp.definition, f"definition of experiment {ramp.name}")
    if experiment.STEPS not in definition:
        hint = f"`rlrec experiment stop {ramp.name} --promote {CANDIDATE}` ends it, `rlrec route ramp` begins others"
        raise InputError(f"the ramp {ramp.name} has no steps", hint=hint)
    weights = {variant.label: variant.weight for variant in ramp.variants}
    share = weights[CANDIDATE] / sum(weights.values())
    next_share = next((step for step in definition[experiment.STEPS] if step > share + ROUNDING), None)
    due_at = max(ramp.created_at, ramp.phase_at) + definition[experiment.HOLD]
    return Stage(change=change, ramp=ramp, share=share, next_share=next_share, due_at=due_at)


def _answer(name: str, stage: Stage | None, did: str, sentence: str) -> RampAnswer:
    if stage is None:
        return {
            "route": name, "experiment": None, "did": did, "share": None, "next_share": None, "next_at": None,
            "why": sentence,
        }  # fmt: skip
    has_next = did in ("waited", "advanced") and stage.next_share is not None
    return {
        "route": name, "experiment": stage.ramp.name, "did": did,
        "share": {"promoted": 1.0, "rolled-back": 0.0}.get(did, stage.share),
        "next_share": stage.next_share if has_next else None,
        "next_at": format_time(stage.due_at) if has_next else None, "why": sentence,
    }  # fmt: skip
