"""Reward definitions: what a decision is worth, and when a belief learns it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlrec.errors import Conflict, InputError, suggest
from rlrec.policy import reward as rewards
from rlrec.records import Reward
from rlrec.store import Store, Unit, policies

NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
WINDOW_US = 30 * 60 * 1_000_000


@dataclass(frozen=True, kw_only=True)
class Request:
    name: str
    weights: str
    window_us: int = WINDOW_US
    default: float = 0.0
    clip: tuple[float, float] | None = None
    learn: str = "served"
    late: str = "count"


def define(store: Store, request: Request) -> dict[str, Any]:
    """The definition, stored. The same again is fine; raises Conflict where the name has another one."""
    asked = Reward(
        id=0,
        name=request.name,
        weights=rewards.weights(_weights(request.weights)),
        window_us=request.window_us,
        default=request.default,
        clip_low=request.clip[0] if request.clip else None,
        clip_high=request.clip[1] if request.clip else None,
        learn=request.learn,
        late=request.late,
    )

    for what, value in (("default", request.default), *(("clip", bound) for bound in request.clip or ())):
        if not rewards.bounded(value):
            raise InputError(f"the {what} is {value:g}", hint=f"give a finite number within {rewards.LIMIT:g}")

    def work(unit: Unit) -> dict[str, Any]:
        known = {definition.name: definition for definition in policies.rewards(unit)}.get(asked.name)
        if known is None:
            policies.add_reward(unit, asked)
        elif replace(known, id=0) != asked:
            raise Conflict(
                f"reward {asked.name!r} is defined otherwise already", hint="definitions never change: use another name"
            )
        return _shown(asked) | {"created": known is None}

    return store.write(work)


def _weights(text: str) -> dict[str, float]:
    """'click=1, dwell_s=0.01' as weights by kind."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, sign, weight = (piece.strip() for piece in part.partition("="))
        if not sign or not rewards.KIND.fullmatch(kind):
            raise InputError(f"{part!r} is no weight", hint="write KIND=WEIGHT, for example 'click=1, dwell_s=0.01'")
        if kind in found:
            raise InputError(f"{kind!r} is weighed twice")
        if not NUMBER.fullmatch(weight):
            raise InputError(f"the weight of {kind!r} is {weight!r}", hint="give a finite number")
        found[kind] = float(weight)
    return found


def listing(store: Store) -> list[dict[str, Any]]:
    with store.read() as unit:
        return [_shown(definition) for definition in policies.rewards(unit)]


def find(unit: Unit, name: str) -> Reward:
    """The definition of this name. Raises InputError where there is none."""
    known: Mapping[str, Reward] = {definition.name: definition for definition in policies.rewards(unit)}
    if name not in known:
        raise InputError(
            f"unknown reward {name!r}", hint=suggest(name, list(known)) or "`rlrec reward list` shows them"
        )
    return known[name]


def _shown(definition: Reward) -> dict[str, Any]:
    clip = None if definition.clip_low is None else [definition.clip_low, definition.clip_high]
    return {
        "reward": definition.name,
        "weights": dict(definition.weights),
        "window_s": definition.window_us / 1e6,
        "default": definition.default,
        "clip": clip,
        "learn": definition.learn,
        "late": definition.late,
    }
