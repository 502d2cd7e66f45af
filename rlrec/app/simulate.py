"""A simulated audience that is served through the store as a script would serve it."""

from __future__ import annotations

import heapq
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlrec.app import session as visits
from rlrec.app.audiences import environments as audiences
from rlrec.app.audiences.crowd import Crowd
from rlrec.app.feedback import Line
from rlrec.app.inputs import lookup
from rlrec.app.pipe import Pipe
from rlrec.app.recommend import Answer
from rlrec.app.recommend import Request as Asked
from rlrec.arrays import Array, Index
from rlrec.errors import InputError
from rlrec.policy.reward import clipped
from rlrec.records import Reward
from rlrec.simulate.base import Audience
from rlrec.simulate.visitors import Visitors
from rlrec.store import Store, Unit, arms, decisions, settings
from rlrec.times import SECOND, parse, written

FIRST = "2026-01-01T00:00:00Z"  # where the clock starts in an empty store
LATER = 1  # seconds after the last window is over


@dataclass(frozen=True, kw_only=True)
class Request:
    """An audience with its parameters as typed, and how much of it: sessions of so many decisions, each a page of
    `size` positions; so many sessions at a time. steps: None for 1, or to the end of visits that end by themselves."""

    environment: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    policy: str
    sessions: int
    steps: int | None = None
    size: int = 1
    group: int = 1
    seed: int | None = None


def simulate(store: Store, request: Request) -> dict[str, Any]:
    """What the audience earned, and what it would have earned from the best pages. The clock stands a second later
    after every decision; it starts at the newest one, or where `--now` says.

    Visits of an audience with memory are played to their end, and ended in the store; then the clock goes past the
    window of the reward, so that every decision is mature by `ended_at`."""
    audience, names = audiences.made(request.environment, request.parameters)
    check(request.environment, audience, len(names), size=request.size, steps=request.steps)
    bits = seeded(request.seed)
    with store.read() as unit:
        version, _ = lookup.version(unit, request.policy)
        first, newest = decisions.peek(unit), decisions.newest(unit)
        _check_group(request, audience, timeout_us=settings.get(unit).session_timeout_us)
    if store.now is None:
        store.now = parse(FIRST) if newest is None else newest
    _tell_lost(store, audience, version.reward)
    names, restricted = store.write(lambda unit: _catalogue(unit, names, own=bool(audience.names)))
    given = _Given(store=store, request=request, names=names, restricted=restricted, bits=bits, first=first)
    world = _Visits(given, audience, version.reward) if isinstance(audience, Visitors) else _World(given, audience)
    started = store.now
    world.play()
    reward, optimum, regret = world.earned.tolist()
    return {
        "environment": request.environment,
        "policy": version.policy.name,
        "version": version.number,
        "sessions": request.sessions,
        "decisions": world.decisions,
        "reward": reward,
        "reward_per_session": reward / request.sessions,
        "optimum_per_session": optimum / request.sessions,
        "regret": regret,
        **world.visits(),
        "seed": bits,
        "started_at": written(started),
        "ended_at": written(store.now),
    }


def check(environment: str, audience: Audience, arms: int, *, size: int = 1, steps: int | None = None) -> None:
    """Raises InputError for what such an audience cannot be served."""
    if size > arms:
        raise InputError(f"k is {size}, but the audience has {arms} arms", field="k")
    if not isinstance(audience, Visitors):
        return
    if size > 1:
        raise InputError(f"visitors of {environment} are shown one arm at a time", hint="leave -k away")
    if steps is not None:
        hint = "leave --steps away; --env cap=N cuts visits off after N decisions"
        raise InputError(f"visits of {environment} end by themselves", hint=hint)


def _check_group(request: Request, audience: Audience, *, timeout_us: int) -> None:
    """Raises InputError where a visit would lapse while the rest of its group is served."""
    group = min(request.group, request.sessions)
    if isinstance(audience, Visitors) and group * SECOND > timeout_us:
        raise InputError(
            f"a group of {group} takes {group} seconds, and a session ends after {timeout_us // SECOND}",
            hint="choose a smaller --group",
        )


def _tell_lost(store: Store, audience: Audience, reward: Reward) -> None:
    """Say so where the policy's reward does not see what the audience gives."""
    worth = reward.weights.get(audience.event, 0.0) * audience.lowest
    if audience.lowest < 0 and clipped(reward, worth) == reward.default:
        event, lowest = audience.event, audience.lowest
        store.notice(
            f"a `{event}` of {lowest:g} is worth {reward.default:g} by reward {reward.name!r}: nothing is learned;"
            f" `rlrec reward define steps '{event}=1' --clip {lowest:g},0` makes one that sees it"
        )


def told_visits(
    audience: Audience, *, length: float, visits: float, visitors: float | None = None, returned: float = 0
) -> dict[str, Any]:
    """What is told of visits: null where nobody is known again. length: decisions of a visit."""
    known = audience if isinstance(audience, Visitors) else None
    return {
        "context_free_per_session": None if known is None else known.context_free()[0],
        "session_length": length,
        "visitors": visitors,
        "visits_per_visitor": visits / visitors if visitors else None,
        "retention": returned / visitors if visitors and known is not None and known.returning else None,
    }


def seeded(given: int | None) -> int:
    return int.from_bytes(os.urandom(8)) if given is None else given


def _catalogue(unit: Unit, names: Sequence[str], *, own: bool) -> tuple[list[str], bool]:
    """The keys of the audience's arms, and whether there are others that it must not be shown. own: no other keys do.

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
    fits = f"its {len(active)} arms are `rlrec arm list`: give as many, or --env rates=FILE, a CSV arm,rate"
    raise InputError(
        f"the audience has {len(names)} arms, and the catalogue has no arm {missing!r}",
        hint=f"add it: `rlrec arm add {missing}`" if own else fits,
    )


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What is served: a request, the keys of the audience's arms, and whether the catalogue has others; the first
    decision of it, and the seed."""

    store: Store
    request: Request
    names: Sequence[str]
    restricted: bool
    bits: int
    first: int


class _World:
    """An audience before the store."""

    def __init__(self, given: _Given, audience: Audience) -> None:
        self.store, self.request, self.audience, self.first = given.store, given.request, audience, given.first
        self.places = {name: place for place, name in enumerate(given.names)}
        self.eligible = list(given.names) if given.restricted else None
        self.pipe = Pipe(given.store, seed=given.bits)
        self.rng = np.random.Generator(np.random.SFC64([given.bits, given.first]))
        self.earned = np.zeros(3)  # reward, optimum, regret
        self.steps = given.request.steps or 1
        self.decisions = given.request.sessions * self.steps
        self._late: list[tuple[int, int, int, float]] = []  # a heap of events to come: time, decision, position, value

    def play(self) -> None:
        for start in range(0, self.request.sessions, self.request.group):
            end = min(start + self.request.group, self.request.sessions)
            crowd = [self._key(number) for number in range(start, end)]
            seen = self.audience.reset(len(crowd), self.rng, first=start * self.steps)
            for _ in range(self.steps):
                seen = self._serve(crowd, seen)
        while self._late:  # nothing more is asked, and what is to come still comes
            self._wait(max(0, self._late[0][0] - self._clock))

    def visits(self) -> dict[str, Any]:
        return told_visits(self.audience, length=float(self.steps), visits=self.request.sessions)

    @property
    def _clock(self) -> int:
        assert self.store.now is not None
        return self.store.now

    def _key(self, number: int) -> str:
        """Of a session."""
        return f"sim{self.first}-{number}"

    def _serve(self, crowd: Sequence[str], seen: Array) -> Array:
        """A page for each session, and what has come by the next one: the contexts of that."""
        answers, pages = self._asked(crowd, seen)
        following, reward, _, _, info = self.audience.step(pages)
        lacking = info["optimum"] - info["expected"].sum(axis=1)
        self.earned += [reward.sum(), info["optimum"].sum(), lacking.sum()]
        self._hear(answers, reward, info.get("delay"))
        self._wait(len(crowd) * SECOND)
        return following

    def _asked(
        self, crowd: Sequence[str], seen: Array, users: Sequence[str | None] | None = None
    ) -> tuple[list[Answer], Index]:
        """The answers to these sessions, and the places of the arms shown, (sessions, positions)."""
        contexts = [{"x": x} for x in seen.tolist()] if self.audience.features else [{}] * len(crowd)
        policy, size, eligible = self.request.policy, self.request.size, self.eligible
        asked = [
            Asked(policy=policy, session=session, user=user, context=context, size=size, arms=eligible)
            for session, user, context in zip(crowd, users or [None] * len(crowd), contexts, strict=True)
        ]
        answers = _sound(self.pipe.group(asked))
        pages = [[self.places[slot["arm"]] for slot in answer["slate"]] for answer in answers]
        return answers, np.array(pages, np.intp)

    def _hear(self, answers: Sequence[Answer], reward: Array, delay: Array | None = None) -> None:
        """Events will come of these pages. reward, and decisions until it comes: (pages, positions)."""
        delays = np.zeros(reward.shape, np.int64) if delay is None else delay.astype(np.int64)
        for page, slot in np.argwhere(reward != 0).tolist():
            at = self._clock + int(delays[page, slot]) * SECOND
            heapq.heappush(self._late, (at, int(answers[page]["decision_id"]), slot + 1, float(reward[page, slot])))

    def _wait(self, micros: int) -> None:
        """Let time pass, and take in the events that have come by then."""
        self.store.now = self._clock + micros
        lines = []
        while self._late and self._late[0][0] <= self.store.now:
            at, decision_id, position, value = heapq.heappop(self._late)
            events = {self.audience.event: value}
            lines.append(Line(decision_id=decision_id, position=position, events=events, at=at))
        if lines:
            _sound(self.pipe.group(lines))


class _Visits(_World):
    """Visitors with memory: where a visit has ended the next one begins, so that groups stay full. Each visitor is a
    user, and each visit a session of theirs."""

    def __init__(self, given: _Given, audience: Visitors, reward: Reward) -> None:
        super().__init__(given, audience)
        self.visitors, self.window_us = audience, reward.window_us
        group, sessions = given.request.group, given.request.sessions
        self.crowd = Crowd(places=min(group, sessions), visits=sessions, away=audience.away)
        self.decisions = 0

    def play(self) -> None:
        optimum = self.visitors.optimum() * self.request.sessions
        self.earned[1:] = optimum, optimum  # of which what is expected of each arm shown is taken off
        self._seen = self.visitors.reset(len(self.crowd.visitor), self.rng)
        self._arrive()
        while len(busy := self.crowd.busy):
            self._round(busy)
        self._wait(self.window_us + LATER * SECOND)

    def visits(self) -> dict[str, Any]:
        sessions, visitors = self.request.sessions, len(self.crowd.visits)
        length, returned = self.decisions / sessions, self.crowd.returned
        return told_visits(self.audience, length=length, visits=sessions, visitors=visitors, returned=returned)

    def _round(self, busy: Index) -> None:
        """An arm for the visitor in each of these places."""
        sessions = [self._key(number) for number in self.crowd.visit[busy].tolist()]
        users = [f"sim{self.first}-visitor{number}" for number in self.crowd.visitor[busy].tolist()]
        answers, pages = self._asked(sessions, self._seen[busy], users)
        actions = np.zeros(len(self.crowd.visitor), np.intp)
        actions[busy] = pages[:, 0]
        self._seen, reward, terminated, truncated, info = self.visitors.step(actions)
        self.decisions += len(busy)
        self.earned += [reward[busy].sum(), 0.0, -info["expected"][busy].sum()]
        self._hear(answers, reward[busy, None])
        self._wait(len(busy) * SECOND)
        over = (terminated | truncated)[busy]
        if over.any():
            visits.end_all(self.store, [key for key, ended in zip(sessions, over.tolist(), strict=True) if ended])
            again = busy[over & (info["again"][busy] > 0)]
            self.crowd.leave(busy[over], again=again, decisions=self.decisions)
            self._arrive()

    def _arrive(self) -> None:
        places = self.crowd.arrive(self.decisions)
        self.visitors.admit(places, self.crowd.visitor[places])


def _sound(answers: Sequence[Any]) -> list[Any]:
    for one in answers:
        if isinstance(one, InputError):
            raise one
    return list(answers)
