"""This module stores reward definitions. A definition says how a reward is computed from the events of a decision, and
when beliefs learn from it."""

from __future__ import annotations

import re
from math import nan
from typing import TypedDict

from rlrec.app.requests.user import derive_returns, on_returns
from rlrec.errors import Conflict, InputError, suggest
from rlrec.policy.beliefs import reward as rewards
from rlrec.records import Record, Reward, Transform
from rlrec.store import Store, Unit
from rlrec.store.log.events import RETURN, newest_kinds
from rlrec.store.policies import policies

NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
CALL = re.compile(r"([A-Za-z_]\w*)\s*\((.*)\)", re.ASCII)
COMMA = re.compile(r",(?![^()]*\))")  # between terms, not inside one
FUNCTIONS = ("log1p", "min")  # functions in a term, from the outer to the inner one
SHAPES = "KIND, log1p(KIND), min(KIND,CAP) or log1p(min(KIND,CAP))"
N_EVENTS = 10_000  # newest events, to whose kinds the kinds of a definition are compared
MIN_SIMILARITY = 0.8  # of a kind that may be mistyped and another kind
WINDOW_US = 30 * 60 * 1_000_000


class Request(Record):
    """This record has the options of `reward define`.

    weights: the text as typed, such as 'click=1, log1p(dwell_s)=0.3'; window_us: how long events count; default: the
    reward without events; clip: the lowest and the highest reward; learn: `served` to learn a slot at once,
    `settled` to learn it after its window; late: whether events after the window still correct a belief, `count` or
    `ignore`."""

    name: str
    weights: str
    window_us: int = WINDOW_US
    default: float = 0.0
    clip: tuple[float, float] | None = None
    learn: str = "served"
    late: str = "count"


# One reward definition; `transforms` has the term of each kind whose values are transformed.
Definition = TypedDict("Definition", {
    "reward": str, "weights": dict[str, float], "window_s": float, "default": float,
    "clip": list[float | None] | None, "learn": str, "late": str, "transforms": dict[str, str],
})  # fmt: skip


class Result(Definition):
    """This record is a stored definition. created: whether the definition is new."""

    created: bool


def define(store: Store, request: Request) -> Result:
    """Store a reward definition. Repeating the request changes nothing. Raises Conflict if the name has another
    definition."""
    weights, transforms = _parse_terms(request.weights)
    low, high = request.clip or (None, None)
    definition = Reward(
        id=0, name=request.name, weights=rewards.weights(weights), window_us=request.window_us, default=request.default,
        clip_low=low, clip_high=high, learn=request.learn, late=request.late, transforms=transforms,
    )  # fmt: skip
    for field, value in (("default", request.default), *(("clip", bound) for bound in request.clip or ())):
        if not rewards.is_bounded(value):
            raise InputError(f"the {field} is {value:g}", hint=f"give a finite number within {rewards.LIMIT:g}")

    def work(unit: Unit) -> tuple[Result, int, set[str]]:
        stored_definition = {reward.name: reward for reward in policies.rewards(unit)}.get(request.name)
        n_derived, stored_kinds = 0, {*weights}
        if stored_definition is None:
            policies.add_reward(unit, definition)
            n_derived = derive_returns(unit) if RETURN in weights else 0
            stored_kinds = {RETURN} | newest_kinds(unit, N_EVENTS)
        elif stored_definition._replace(id=0) != definition:
            hint = "definitions never change: use another name"
            raise Conflict(f"reward {request.name!r} already has another definition", hint=hint)
        return {**_to_json(definition), "created": stored_definition is None}, n_derived, stored_kinds

    result, n_derived, stored_kinds = store.write(work, repeatable=True)
    costly_kinds = ", ".join(kind for kind, weight in weights.items() if weight < 0)
    if costly_kinds and low is not None and request.default <= low:
        message = (
            f"--clip hides {costly_kinds}: a slot with no other event is worth {low:g}, no less than one without any"
        )
        store.notice(f"{message}; where only some are judged, `feedback --censor` leaves out the others")
    for kind in sorted(weights.keys() - stored_kinds):
        if hint := suggest(kind, sorted(stored_kinds), cutoff=MIN_SIMILARITY):
            store.notice(f"no recent event is of kind {kind!r}: {hint} A definition never changes: use another name")
    if n_derived:
        store.notice(on_returns(n_derived))
    return result


def _parse_terms(text: str) -> tuple[dict[str, float], dict[str, Transform]]:
    """Parse a text such as 'click=1, log1p(dwell_s)=0.3'. Returns the weights and the transforms, both by kind of
    event."""
    weights: dict[str, float] = {}
    transforms: dict[str, Transform] = {}
    for pair in filter(None, (pair.strip() for pair in COMMA.split(text))):
        term, sign, weight = (piece.strip() for piece in pair.partition("="))
        kind, transform = _parse_term(term)
        if not sign or not rewards.KIND.fullmatch(kind):
            raise InputError(f"{pair!r} is not a weight", hint=f"write TERM=WEIGHT, a term being {SHAPES}")
        if kind in weights:
            raise InputError(f"{kind!r} has two weights")
        if not NUMBER.fullmatch(weight):
            raise InputError(f"the weight of {kind!r} is {weight!r}", hint="give a finite number")
        weights[kind] = float(weight)
        if transform != Transform():
            transforms[kind] = transform
    return weights, transforms


def _parse_term(text: str) -> tuple[str, Transform]:
    """Parse a term such as 'log1p(min(dwell_s,600))'. Returns the kind of event (not checked) and the function that is
    applied to the sum of its values."""
    calls = set[str]()
    for function in FUNCTIONS:
        call = CALL.fullmatch(text)
        if call and call[1] not in FUNCTIONS:
            raise InputError(f"unknown function {call[1]!r} in {text!r}", hint=f"a term is {SHAPES}")
        if call and call[1] == function:
            calls.add(function)
            text = call[2].strip()
    if "min" not in calls:
        return text, Transform(log1p="log1p" in calls)
    kind, _, limit = (piece.strip() for piece in text.partition(","))
    cap = float(limit) if NUMBER.fullmatch(limit) else nan
    if rewards.KIND.fullmatch(kind) and not 0 < cap <= rewards.LIMIT:
        raise InputError(f"the cap of {kind!r} is {limit!r}", hint=f"give a number above 0, up to {rewards.LIMIT:g}")
    return kind, Transform(log1p="log1p" in calls, cap=cap)


def list_rewards(store: Store) -> list[Definition]:
    """Return all reward definitions."""
    with store.read() as unit:
        return [_to_json(definition) for definition in policies.rewards(unit)]


def _to_json(definition: Reward) -> Definition:
    clip = None if definition.clip_low is None else [definition.clip_low, definition.clip_high]
    return {
        "reward": definition.name, "weights": dict(definition.weights), "window_s": definition.window_us / 1e6,
        "default": definition.default, "clip": clip, "learn": definition.learn, "late": definition.late,
        "transforms": {kind: rewards.term_text(kind, term) for kind, term in sorted(definition.transforms.items())},
    }  # fmt: skip
