"""A simulated audience that is served through the store as a script would serve it, or in memory for studies."""

from __future__ import annotations

import heapq
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlrec import policy as kinds
from rlrec.app import audience as audiences
from rlrec.app import ephemeral, naming, parameters
from rlrec.app.feedback import Line
from rlrec.app.pipe import Pipe
from rlrec.app.recommend import Answer
from rlrec.app.recommend import Request as Asked
from rlrec.errors import InputError
from rlrec.policy.base import Policy
from rlrec.policy.scores import Array
from rlrec.simulate.base import Audience
from rlrec.store import Store, Unit, arms, decisions
from rlrec.times import SECOND, parse, written

FIRST = "2026-01-01T00:00:00Z"  # where the clock starts in an empty store
CLICK = {"click": 1.0}


@dataclass(frozen=True, kw_only=True)
class Request:
    """An audience with its parameters as typed, and how much of it: sessions of so many decisions, each a page of
    `size` positions; so many sessions at a time."""

    environment: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    policy: str
    sessions: int
    steps: int = 1
    size: int = 1
    group: int = 1
    seed: int | None = None


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
    steps: int = 1
    seed: int | None = None


# -- through the store --


def simulate(store: Store, request: Request) -> dict[str, Any]:
    """What the audience earned, and what it would have earned from the best pages. The clock stands a second later
    after every decision; it starts at the newest one, or where `--now` says."""
    audience, names = audiences.made(request.environment, request.parameters)
    if request.size > len(names):
        raise InputError(f"k is {request.size}, but the audience has {len(names)} arms", field="k")
    bits = _seed(request.seed)
    with store.read() as unit:
        version, _ = naming.one(unit, request.policy)
        first, newest = decisions.peek(unit), decisions.newest(unit)
    if store.now is None:
        store.now = parse(FIRST) if newest is None else newest
    names, restricted = store.write(lambda unit: _catalogue(unit, names))
    world = _World(store, request, audience, names, restricted=restricted, bits=bits, first=first)
    started = store.now
    world.play()
    reward, optimum, regret = world.earned.tolist()
    return {
        "environment": request.environment,
        "policy": version.policy.name,
        "version": version.number,
        "sessions": request.sessions,
        "decisions": request.sessions * request.steps,
        "reward": reward,
        "reward_per_session": reward / request.sessions,
        "optimum_per_session": optimum / request.sessions,
        "regret": regret,
        "seed": bits,
        "started_at": written(started),
        "ended_at": written(store.now),
    }


def _seed(given: int | None) -> int:
    return int.from_bytes(os.urandom(8)) if given is None else given


def _catalogue(unit: Unit, names: Sequence[str]) -> tuple[list[str], bool]:
    """The keys of the audience's arms, and whether there are others that it must not be shown.

    An empty catalogue gets these arms. Otherwise they are in it, or it has as many, which take their place."""
    active = [arm.key for arm in arms.every(unit) if arm.retired_at is None]
    if not arms.every(unit):
        arms.put(unit, dict.fromkeys(names, "{}"))
        return list(names), False
    if set(names) <= set(active):
        return list(names), len(names) < len(active)
    if len(names) == len(active) and names[0] == "arm0":
        return active, False
    missing = next(name for name in names if name not in active)
    raise InputError(
        f"the audience has {len(names)} arms, and the catalogue has no arm {missing!r}",
        hint=f"its {len(active)} arms are `rlrec arm list`: give as many, or --env rates=FILE, a CSV arm,rate",
    )


class _World:
    """An audience before the store."""

    def __init__(
        self, store: Store, request: Request, audience: Audience, names: Sequence[str], *,
        restricted: bool, bits: int, first: int,
    ) -> None:  # fmt: skip
        self.store, self.request, self.audience, self.first = store, request, audience, first
        self.places = {name: place for place, name in enumerate(names)}
        self.eligible = list(names) if restricted else None
        self.pipe = Pipe(store, seed=bits)
        self.rng = np.random.Generator(np.random.SFC64([bits, first]))
        self.earned = np.zeros(3)  # reward, optimum, regret
        self._late: list[tuple[int, int, int]] = []  # a heap of clicks to come: time, decision, position

    def play(self) -> None:
        for start in range(0, self.request.sessions, self.request.group):
            end = min(start + self.request.group, self.request.sessions)
            crowd = [f"sim{self.first}-{number}" for number in range(start, end)]
            seen = self.audience.reset(len(crowd), self.rng, first=start * self.request.steps)
            for _ in range(self.request.steps):
                seen = self._serve(crowd, seen)
        while self._late:  # nothing more is asked, and what is to come still comes
            self._wait(max(0, self._late[0][0] - self._clock))

    @property
    def _clock(self) -> int:
        assert self.store.now is not None
        return self.store.now

    def _serve(self, crowd: Sequence[str], seen: Array) -> Array:
        """A page for each session, and what has come by the next one: the contexts of that."""
        answers = self._asked(crowd, seen)
        pages = [[self.places[slot["arm"]] for slot in answer["slate"]] for answer in answers]
        following, reward, _, _, info = self.audience.step(np.array(pages, np.intp))
        lacking = info["optimum"] - info["expected"].sum(axis=1)
        self.earned += [reward.sum(), info["optimum"].sum(), lacking.sum()]
        delays = info.get("delay", np.zeros_like(reward)).astype(np.int64)
        for page, slot in np.argwhere(reward > 0).tolist():
            at = self._clock + int(delays[page, slot]) * SECOND
            heapq.heappush(self._late, (at, answers[page]["decision_id"], slot + 1))
        self._wait(len(crowd) * SECOND)
        return following

    def _asked(self, crowd: Sequence[str], seen: Array) -> list[Answer]:
        contexts = [{"x": x} for x in seen.tolist()] if self.audience.features else [{}] * len(crowd)
        policy, size, eligible = self.request.policy, self.request.size, self.eligible
        asked = [
            Asked(policy=policy, session=session, context=context, size=size, arms=eligible)
            for session, context in zip(crowd, contexts, strict=True)
        ]
        return _sound(self.pipe.group(asked))

    def _wait(self, micros: int) -> None:
        """Let time pass, and take in the clicks that have come by then."""
        self.store.now = self._clock + micros
        lines = []
        while self._late and self._late[0][0] <= self.store.now:
            at, decision_id, position = heapq.heappop(self._late)
            lines.append(Line(decision_id=decision_id, position=position, events=CLICK, at=at))
        if lines:
            _sound(self.pipe.group(lines))


def _sound(answers: Sequence[Any]) -> list[Any]:
    for one in answers:
        if isinstance(one, InputError):
            raise one
    return list(answers)


# -- in memory --


def study(store: Store, request: Study) -> dict[str, Any]:
    """Means over runs of what a run earned, with standard errors; a store is read only where a policy is named."""
    audience, names = audiences.made(request.environment, request.parameters)
    policy, name = _policy(store, request, audience, names)
    bits = _seed(request.seed)
    played = request.sessions * request.steps
    found = ephemeral.study(policy, audience, runs=request.runs, steps=played, seed=bits, names=names)
    return {
        "environment": request.environment,
        "policy": name,
        "runs": request.runs,
        "sessions": request.sessions,
        "decisions": played,
        "reward": float(found.reward.mean()),
        "reward_std_error": _error(found.reward),
        "reward_per_session": float(found.reward.mean()) / request.sessions,
        "optimum_per_session": float(found.optimum.mean()) / request.sessions,
        "regret": float(found.regret.mean()),
        "regret_std_error": _error(found.regret),
        "seed": bits,
    }


def _policy(store: Store, request: Study, audience: Audience, names: Sequence[str]) -> tuple[Policy, str]:
    """The policy studied, and what it is called; a contextual one sees the audience by a design of its own."""
    if (request.policy is None) == (request.kind is None):
        raise InputError("name a policy of the store or a kind, one of them", hint="--policy or --kind")
    if request.policy is not None:
        with store.read() as unit:
            found = naming.one(unit, request.policy)[0].policy
        kind, given, name = found.kind, found.params, found.name
    else:
        kind = name = str(request.kind)
        given = parameters.typed(kind, request.kind_parameters)
    made = kinds.make(kind, given, design=ephemeral.design(audience, names, model=given.get("model")))
    if not made.served:
        raise InputError(f"{name} is the label of an imported log", hint="study another policy")
    if not made.online:
        hint = "leave --ephemeral away, train it on what the store has served"
        raise InputError(f"{name} is trained from a store, and a study in memory has none", hint=hint)
    return made, name


def _error(values: Array) -> float | None:
    """Standard error of the mean; None of a single run."""
    return float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None
