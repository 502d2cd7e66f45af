"""A simulated audience in memory: many runs of a policy, without a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from rlrec import policy as kinds
from rlrec.app.audiences import environments, in_memory
from rlrec.app.inputs import lookup, parameters
from rlrec.app.inputs.seeds import seed_or_random
from rlrec.arrays import Array, plain_number
from rlrec.errors import InputError
from rlrec.policy.beliefs.base import Policy
from rlrec.policy.beliefs.statistics import PROPENSITY
from rlrec.records import Reward
from rlrec.simulate.base import Audience
from rlrec.simulate.visitors import Visitors
from rlrec.store import Store


@dataclass(frozen=True, kw_only=True)
class Request:
    """So many runs in memory of sessions of so many decisions, each a slate of `size` positions, by a kind with its
    parameters as typed, or with those of a policy of the store; what that has learned stays out of it."""

    environment: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    policy: str | None = None
    kind: str | None = None
    kind_parameters: Mapping[str, str] = field(default_factory=dict)
    runs: int = 1
    sessions: int = 1
    steps: int | None = None
    size: int = 1
    seed: int | None = None


Result = TypedDict("Result", {
    "environment": str, "policy": str, "runs": int, "sessions": int, "decisions": float, "reward": float,
    "reward_std_error": float | None, "reward_per_session": float, "optimum_per_session": float, "regret": float,
    "regret_std_error": float | None, "coverage": float | None, "gini": float | None, "effective_arms": float | None,
    "context_free_per_session": float | None, "session_length": float, "visitors": float | None,
    "visits_per_visitor": float | None, "retention": float | None, "reward_per_visitor": float | None,
    "optimum_per_visitor": float | None, "seed": int,
})  # fmt: skip


def study(store: Store, request: Request) -> Result:
    """Means over runs of what a run earned, with standard errors; a store is read where a policy or curve is named."""
    audience, names = environments.make(request.environment, request.parameters)
    environments.check(request.environment, audience, len(names), size=request.size, steps=request.steps)
    policy, name = _policy(store, request, audience, names)
    seed = seed_or_random(request.seed)
    if isinstance(audience, Visitors):
        totals = in_memory.visit(
            policy, audience, runs=request.runs, visits=request.sessions, seed=seed, names=names, size=request.size
        )
    else:
        steps = request.sessions * (request.steps or 1)
        totals = in_memory.study(
            policy, audience, runs=request.runs, steps=steps, seed=seed, names=names, size=request.size
        )
    reward, optimum = float(totals.reward.mean()), float(totals.optimum.mean())
    figures = environments.figures(
        audience, totals.shown, length=float(totals.decisions.mean()) / request.sessions, visits=request.sessions,
        reward=reward, size=request.size,
        visitors=None if totals.visitors is None else float(totals.visitors.mean()),
        returned=0.0 if totals.returned is None else float(totals.returned.mean()),
    )  # fmt: skip
    return {
        "environment": request.environment, "policy": name, "runs": request.runs, "sessions": request.sessions,
        "decisions": plain_number(totals.decisions.mean()), "reward": reward,
        "reward_std_error": _std_error(totals.reward), "reward_per_session": reward / request.sessions,
        "optimum_per_session": optimum / request.sessions,
        "regret": float(totals.regret.mean()), "regret_std_error": _std_error(totals.regret),
        **figures, "seed": seed,
    }  # fmt: skip


def _policy(store: Store, request: Request, audience: Audience, names: Sequence[str]) -> tuple[Policy, str]:
    """The policy that is studied, and its name; a contextual one gets a design for the audience."""
    if (request.policy is None) == (request.kind is None):
        raise InputError("name a policy of the store or a kind, one of them", hint="--policy or --kind")
    if request.policy is not None:
        with store.read() as unit:
            stored = lookup.version(unit, request.policy)[0].policy
        kind, params, name = stored.kind, stored.params, stored.name
    else:
        kind = name = str(request.kind)
        params = parameters.typed(kind, request.kind_parameters)
        if params.get("position"):
            with store.read() as unit:
                params = parameters.with_curve(unit, params)
    policy = kinds.make(kind, params, design=in_memory.design(audience, names, model=params.get("model")))
    low, high = (0.0, 1.0) if audience.lowest == 0 else (audience.lowest, 0.0)
    reward = Reward(
        id=0, name=request.environment, weights={audience.event: 1.0}, window_us=0, default=0.0,
        clip_low=low, clip_high=high, learn="served", late="count",
    )  # fmt: skip
    policy.check(reward)
    if not policy.served:
        raise InputError(f"{name} is the label of an imported log", hint="study another policy")
    if policy.stages:
        raise InputError(f"{name} draws candidates, and a study in memory shows any arm", hint="leave --ephemeral away")
    if request.size > 1 and PROPENSITY in policy.needs:
        hint = "leave --ephemeral away, or -k"
        raise InputError(f"{name} learns by propensities, which pages in memory have at position 1 alone", hint=hint)
    if not policy.online:
        hint = "leave --ephemeral away, train it on what the store has served"
        raise InputError(f"{name} is trained from a store, and a study in memory has none", hint=hint)
    return policy, name


def _std_error(values: Array) -> float | None:
    """Standard error of the mean; None of a single run."""
    return float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None
