"""A simulated audience in memory: many runs of a policy, and no store is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlrec import policy as kinds
from rlrec.app.audiences import environments as audiences
from rlrec.app.audiences import in_memory
from rlrec.app.inputs import lookup, parameters
from rlrec.app.simulate import check, seeded, told_visits
from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.policy.base import Policy
from rlrec.records import Reward
from rlrec.simulate.base import Audience
from rlrec.simulate.visitors import Visitors
from rlrec.store import Store


@dataclass(frozen=True, kw_only=True)
class Study:
    """So many runs in memory of sessions of so many decisions, by a kind with its parameters as typed, or with those of
    a policy of the store; what that has learned stays out of it."""

    environment: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    policy: str | None = None
    kind: str | None = None
    kind_parameters: Mapping[str, str] = field(default_factory=dict)
    runs: int = 1
    sessions: int = 1
    steps: int | None = None
    seed: int | None = None


def study(store: Store, request: Study) -> dict[str, Any]:
    """Means over runs of what a run earned, with standard errors; a store is read only where a policy is named."""
    audience, names = audiences.made(request.environment, request.parameters)
    check(request.environment, audience, len(names), steps=request.steps)
    policy, name = _policy(store, request, audience, names)
    bits = seeded(request.seed)
    if isinstance(audience, Visitors):
        found = in_memory.visit(policy, audience, runs=request.runs, visits=request.sessions, seed=bits, names=names)
    else:
        played = request.sessions * (request.steps or 1)
        found = in_memory.study(policy, audience, runs=request.runs, steps=played, seed=bits, names=names)
    return {
        "environment": request.environment,
        "policy": name,
        "runs": request.runs,
        "sessions": request.sessions,
        "decisions": _mean(found.decisions),
        "reward": float(found.reward.mean()),
        "reward_std_error": _error(found.reward),
        "reward_per_session": float(found.reward.mean()) / request.sessions,
        "optimum_per_session": float(found.optimum.mean()) / request.sessions,
        "regret": float(found.regret.mean()),
        "regret_std_error": _error(found.regret),
        **told_visits(
            audience,
            length=float(found.decisions.mean()) / request.sessions,
            visits=request.sessions,
            visitors=None if found.visitors is None else float(found.visitors.mean()),
            returned=0.0 if found.returned is None else float(found.returned.mean()),
        ),
        "seed": bits,
    }


def _policy(store: Store, request: Study, audience: Audience, names: Sequence[str]) -> tuple[Policy, str]:
    """The policy studied, and what it is called; a contextual one sees the audience by a design of its own."""
    if (request.policy is None) == (request.kind is None):
        raise InputError("name a policy of the store or a kind, one of them", hint="--policy or --kind")
    if request.policy is not None:
        with store.read() as unit:
            found = lookup.version(unit, request.policy)[0].policy
        kind, given, name = found.kind, found.params, found.name
    else:
        kind = name = str(request.kind)
        given = parameters.typed(kind, request.kind_parameters)
    made = kinds.make(kind, given, design=in_memory.design(audience, names, model=given.get("model")))
    made.check(_reward(request.environment, audience))
    if not made.served:
        raise InputError(f"{name} is the label of an imported log", hint="study another policy")
    if not made.online:
        hint = "leave --ephemeral away, train it on what the store has served"
        raise InputError(f"{name} is trained from a store, and a study in memory has none", hint=hint)
    return made, name


def _error(values: Array) -> float | None:
    """Standard error of the mean; None of a single run."""
    return float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None


def _mean(counts: Array) -> float | int:
    """The mean of counts, as a count where it is one."""
    found = float(counts.mean())
    return int(found) if found.is_integer() else found


def _reward(environment: str, audience: Audience) -> Reward:
    """The reward of a study: what the audience gives."""
    low, high = (0.0, 1.0) if audience.lowest == 0 else (audience.lowest, 0.0)
    return Reward(
        id=0, name=environment, weights={audience.event: 1.0}, window_us=0, default=0.0,
        clip_low=low, clip_high=high, learn="served", late="count",
    )  # fmt: skip
