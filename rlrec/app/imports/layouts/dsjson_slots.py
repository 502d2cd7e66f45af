"""A line of a decision service, its actions, and the slots in which they were shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import UNSET, Struct, UnsetType, field

from rlrec.app.imports.layouts.checks import CHECKS, FLOAT32, checked, is_distribution
from rlrec.errors import InputError
from rlrec.log_fields import PROBABILITY


class SlotOutcome(Struct):
    """The outcome of a slot of ccb or slates. a: the actions that it ranks, the shown one first; p: their
    probabilities."""

    a: list[int] | int = field(name="_a")
    p: list[float] | float = field(name="_p")
    cost: float | None = field(name="_label_cost", default=None)
    original_cost: float | None = field(name="_original_label_cost", default=None)
    observations: list[Any] = field(name="_o", default_factory=list)
    id: str | None = field(name="_id", default=None)


class DsJsonLine(Struct):
    """A line; it may have further keys, which are not read."""

    c: dict[str, Any] | None = None
    a: list[int] | None = None
    p: list[float] | None = None
    o: list[Any] = field(default_factory=list)
    outcomes: list[SlotOutcome] | None = field(name="_outcomes", default=None)
    event_id: str | None = field(name="EventId", default=None)
    timestamp: str | None = field(name="Timestamp", default=None)
    cost: float | None = field(name="_label_cost", default=None)
    probability: float | None = field(name="_label_probability", default=None)
    action: int | None = field(name="_label_Action", default=None)
    original_cost: float | None = field(name="_original_label_cost", default=None)
    skip_learn: bool = field(name="_skipLearn", default=False)
    deferred: bool | None = field(name="DeferredAction", default=None)
    not_activated: bool = field(name="_deferred", default=False)
    pdrop: float = 0.0
    session: str | None = None  # this and `user` are not part of the format: `export-log` writes them
    user: str | None = None
    baseline: list[int] | None = field(name="_ba", default=None)
    reward: float | None = field(name="RewardValue", default=None)
    enqueued: str | None = field(name="EnqueuedTimeUtc", default=None)
    observations: list[Any] = field(name="Observations", default_factory=list)
    action_taken: bool = field(name="ActionTaken", default=False)
    label_ca: Any | UnsetType = field(name="_label_ca", default=UNSET)
    ca: Any | UnsetType = field(name="_ca", default=UNSET)
    pdf: Any | UnsetType = UNSET


class Actions(NamedTuple):
    """The actions of a line. arms: the key of each; eligible: the same in order; slots: the slot of each in slates,
    else None; features: JSON of the features by arm, None where there are none."""

    arms: Sequence[str]
    eligible: tuple[str, ...]
    slots: Sequence[int] | None
    features: str | None


class ShownAction(NamedTuple):
    """A slot and the arm that it showed. arms: those that it could show; probabilities: theirs, where the line has all
    of them."""

    arm: str
    propensity: float
    arms: Sequence[str]
    probabilities: Sequence[float]
    outcome: SlotOutcome


def page_outcome(line: DsJsonLine) -> SlotOutcome:
    """The outcome that a line has outside its slots: in cb that of its only slot, else that of the page."""
    ranked = line.a if line.a is not None else [] if line.action is None else [line.action]
    p = line.p if line.p is not None else [] if line.probability is None else [line.probability]
    if 0 in ranked and line.action and line.action - 1 in ranked and len(p) == len(ranked):
        # in order of the actions, counted from 0: the label, counted from 1, says which was shown
        at = ranked.index(line.action - 1)
        ranked = [action + 1 for action in ranked[at : at + 1] + ranked[:at] + ranked[at + 1 :]]
        p = p[at : at + 1] + p[:at] + p[at + 1 :]
    return SlotOutcome(a=ranked, p=p, cost=line.cost, original_cost=line.original_cost, observations=line.o)


def shown_actions(line: DsJsonLine, actions: Actions) -> list[ShownAction]:
    """The slots of a line: one in cb, where the first action of `a` was shown."""
    outcomes, shown = line.outcomes, list[ShownAction]()
    if is_cb := outcomes is None:
        outcomes = [page_outcome(line)]
        if not outcomes[0].a or not outcomes[0].p:
            hint = "`a` ranks the actions, `p` has their probabilities"
            raise InputError("it does not say which action was shown with which probability", hint=hint, field="a")
    if not outcomes:
        raise InputError("no outcome", field="_outcomes")
    slots = (line.c or {}).get("_slots")
    for index, outcome in enumerate(outcomes):
        at_a, at_p = ("a", "p") if is_cb else (f"_outcomes[{index}]._a", f"_outcomes[{index}]._p")
        slot = slots[index] if isinstance(slots, list) and index < len(slots) else None
        could_show = [(arm, True) for arm in actions.arms]
        if not is_cb:
            could_show = available(actions, index, slot, {entry.arm for entry in shown})
        ranked = outcome.a if isinstance(outcome.a, list) else [outcome.a]
        p = outcome.p if isinstance(outcome.p, list) else [outcome.p]
        arms = [arm for arm, _ in could_show] if actions.slots else actions.arms
        ranking = ranked_arms(ranked, p, arms, first=int(is_cb), at_a=at_a, at_p=at_p)
        eligible = [arm for arm, is_left in could_show if is_left]
        if not set(ranking) <= set(eligible):
            raise InputError("it ranks an action that its slot could not show", field=at_a)
        is_complete = len(ranked) == len(arms) if is_cb else len(ranked) > 1 or len(eligible) == 1
        propensity = checked(p[0], CHECKS[PROBABILITY], at_p)
        arms, probabilities = (ranking, p) if is_complete else (eligible, ())
        shown.append(ShownAction(ranking[0], propensity, arms, probabilities, outcome))
        if is_cb:
            _check_label(line, ranked[0], p[0])
    return shown


def _check_label(line: DsJsonLine, action: int, p: float) -> None:
    """Raises InputError unless the label of a cb line is that of the action shown."""
    if line.action is not None and line.action != action:
        raise InputError(f"action {line.action} is not the first of `a`, {action}", field="_label_Action")
    passed = p * (1 - line.pdrop)  # this is the label probability in joined logs of Personalizer
    if line.probability is not None and min(abs(line.probability - entry) for entry in (p, passed)) > FLOAT32:
        raise InputError(f"{line.probability!r} is not the first of `p`, {p!r}", field="_label_probability")


def ranked_arms(
    ranked: Sequence[int], p: Sequence[float], arms: Sequence[str], *, first: int, at_a: str, at_p: str
) -> list[str]:  # fmt: skip
    """The arms of ranked actions, which are numbered from `first`. Raises InputError where the actions or their
    probabilities are impossible."""
    if len(ranked) != len(p):
        raise InputError(f"{len(p)} probabilities of {len(ranked)} actions", field=at_p)
    if not ranked or len(set(ranked)) < len(ranked):
        raise InputError("an action is ranked twice, or none", field=at_a)
    for number in ranked:
        if not first <= number < len(arms) + first:
            raise InputError(f"{number} is none of the {len(arms)} actions", hint=f"counted from {first}", field=at_a)
    if not all(0 <= entry <= 1 for entry in p):
        raise InputError("a probability outside [0, 1]", field=at_p)
    if len(p) > 1 and not is_distribution(p):
        raise InputError(f"probabilities that sum to {sum(p)!r}", field=at_p)
    return [arms[number - first] for number in ranked]


def withholds(line: DsJsonLine, shown: Sequence[ShownAction], actions: Actions) -> bool:
    """Whether some slot was denied its reward. That happens to an apprentice that chose another action than the
    baseline (`_ba`, in cb the first): the baseline's was shown."""
    if actions.slots is not None:
        return False
    first = 0 if line.outcomes is not None else 1
    return any(
        slot.outcome.original_cost and not slot.outcome.cost and number - first != actions.arms.index(slot.arm)
        for number, slot in zip(line.baseline or [1] * first, shown, strict=False)
    )


def available(actions: Actions, index: int, slot: Any, shown: set[str]) -> list[tuple[str, bool]]:
    """The actions of a slot, and whether it could show each: in slates its own actions, else those of `_inc` (by
    default all), without those shown above."""
    if actions.slots is not None:
        return [
            (arm, True) for arm, slot_number in zip(actions.arms, actions.slots, strict=True) if slot_number == index
        ]
    included = slot.get("_inc") if isinstance(slot, dict) else None
    if included is not None and not (isinstance(included, list) and all(isinstance(entry, int) for entry in included)):
        raise InputError("`_inc` is no list of actions", field=f"c._slots[{index}]._inc")
    ranking = range(len(actions.arms)) if included is None else set(included)
    return [(arm, number in ranking and arm not in shown) for number, arm in enumerate(actions.arms)]


def slot_sets(shown: Sequence[ShownAction], actions: Actions) -> tuple[tuple[str, ...], ...] | None:
    """The arms that each slot could show; None where every slot could show all that were left."""
    left = set(actions.eligible)
    differs = False
    for slot in shown:
        differs |= set(slot.arms) != left
        left.discard(slot.arm)
    return tuple(tuple(sorted(slot.arms)) for slot in shown) if differs else None


def support(top: ShownAction, actions: Actions) -> dict[str, float] | None:
    """The probability of each eligible arm at the first position, where all are known."""
    by_arm = dict(zip(top.arms, top.probabilities, strict=False))
    return {arm: by_arm.get(arm, 0.0) for arm in actions.eligible} if top.probabilities else None
