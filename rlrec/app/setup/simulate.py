"""This module simulates an audience. The audience is served through the store, as a script would do it, or many runs
are played in memory."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import partial
from itertools import chain, compress
from typing import Any, TypedDict

import numpy as np

from rlrec import policy as kinds
from rlrec.app.audiences import environments, in_memory
from rlrec.app.audiences.environments import NO_VISITOR, AudienceFigures, Crowd, Returning
from rlrec.app.inputs import canonical, lookup, parameters
from rlrec.app.inputs.seeds import seed_or_random
from rlrec.app.requests import session as app_session
from rlrec.app.requests.feedback import Line
from rlrec.app.requests.pipe import Pipe
from rlrec.app.requests.recommend import Answer
from rlrec.app.serving import requests
from rlrec.arrays import Array, Index, plain_number
from rlrec.errors import InputError, quantity
from rlrec.policy.beliefs.base import Policy
from rlrec.policy.beliefs.reward import clip
from rlrec.policy.beliefs.statistics import PROPENSITY
from rlrec.records import Record, Reward, Version
from rlrec.simulate import load_environment
from rlrec.simulate.base import Audience, Regulars, Visitors
from rlrec.simulate.news import News
from rlrec.store import Store, Unit
from rlrec.store.log import decisions, settings
from rlrec.store.policies import arms, policies, routes
from rlrec.store.policies.experiments import Experiment
from rlrec.times import DAY_US, SECOND, format_time, parse

FIRST_TIME = "2026-01-01T00:00:00Z"  # start of the clock in an empty store
MARGIN_S = 1  # seconds after the end of the last window
VISITS = "simulate visits"  # the command of the row that stores who is to come again
LATEST_DAYS = 1  # days by which a visitor may be late between runs, and still comes


class Request(Record):
    """This record has the options of a simulation.

    environment, parameters: the audience, and its parameters as typed; sessions: the number of sessions; steps: the
    number of decisions per session, None for 1 or for visits that end by themselves; size: the number of positions
    per slate; policy: a policy or a route, None if an experiment serves.

    group: the number of sessions that are served at a time, through the store; runs: the number of runs in memory;
    kind, params: what is studied in memory; if `policy` is given instead, its kind and parameters, without its belief.
    """

    environment: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    policy: str | None = None
    experiment: str | None = None
    kind: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    sessions: int = 1
    steps: int | None = None
    size: int = 1
    group: int = 1
    runs: int = 1
    seed: int | None = None


Served = TypedDict("Served", {
    "environment": str, "policy": str | None, "version": int | None, "experiment": str | None, "sessions": int,
    "decisions": int, "reward": float, "reward_per_session": float, "optimum_per_session": float, "regret": float,
    "events": dict[str, float], "seed": int, "started_at": str, "ended_at": str,
})  # fmt: skip
Runs = TypedDict("Runs", {
    "environment": str, "policy": str, "runs": int, "sessions": int, "decisions": float, "reward": float,
    "reward_std_error": float | None, "reward_per_session": float, "optimum_per_session": float, "regret": float,
    "regret_std_error": float | None, "seed": int,
})  # fmt: skip


class Result(Served, AudienceFigures):
    """This record has the figures of an audience that was served through the store."""


class RunMeans(Runs, AudienceFigures):
    """This record has the means of an audience's figures over runs in memory."""


def check_environment(name: str) -> None:
    """Raise InputError if no environment has this name. The error suggests similar names."""
    load_environment(name)


def simulate(store: Store, request: Request) -> Result:
    """Serve the audience through the store. Returns its reward, and the reward that the best slates would have earned.

    The clock starts at `--now` or, without it, at the newest decision or phase of the experiment, and moves by a
    second after every decision. The visits of an audience with memory are played to their end, and are ended in the
    store. Then the clock moves past the window of the reward, so that every decision is mature by `ended_at`."""
    audience, names = environments.make(request.environment, request.parameters)
    environments.check(request.environment, audience, len(names), size=request.size, steps=request.steps)
    seed = seed_or_random(request.seed)
    with store.read() as unit:
        versions, experiment = _serving_versions(unit, request, audience)
        first_id, newest_at = decisions.peek(unit), decisions.newest_time(unit)
        _check_group(request, audience, timeout_us=settings.get(unit).session_timeout_us)
    store.now = _start_time(store, newest_at, experiment)
    store.allow_future = True  # from now on the simulation sets the time
    for reward in {version.reward.name: version.reward for version in versions}.values():
        _notice_unseen_reward(store, audience, reward)
    if isinstance(audience, News):  # its arms come and go
        names, is_restricted = [], False
    else:
        names, is_restricted = store.write(lambda unit: _catalogue_keys(unit, names, audience))
    if not isinstance(audience, Visitors):  # sessions of visitors have users
        options = {"environment": request.environment, "sessions": request.sessions, "seed": seed}
        store.write(lambda unit: settings.add_run(unit, "simulate", options))
    world_type = VisitWorld if isinstance(audience, Visitors) else SimulatedStore
    window_us = max(version.reward.window_us for version in versions)
    world = world_type(store, request, audience, names, seed, first_id, is_subset=is_restricted, window_us=window_us)
    started_at = store.now
    world.play()
    earned_reward, optimum, regret = world.totals.tolist()
    figures = environments.figures(
        audience, np.array([[*world.slot_counts.values()]]), length=world.decisions / request.sessions,
        visits=request.sessions, reward=earned_reward, size=request.size,
        visitors=None if world.crowd is None else world.crowd.n_visitors,
        returners=0 if world.crowd is None else world.crowd.n_returners,
    )  # fmt: skip
    version = versions[0] if experiment is None else None
    return {
        "environment": request.environment, "policy": None if version is None else version.policy.name,
        "version": None if version is None else version.number,
        "experiment": None if experiment is None else experiment.name,
        "sessions": request.sessions, "decisions": world.decisions, "reward": earned_reward,
        "reward_per_session": earned_reward / request.sessions, "optimum_per_session": optimum / request.sessions,
        "regret": regret, **figures, "events": dict(world.events), "seed": seed, "started_at": format_time(started_at),
        "ended_at": format_time(store.now),
    }  # fmt: skip


def _start_time(store: Store, newest_at: int | None, experiment: Experiment | None) -> int:
    """Return the start of the clock: `--now` or, without it, the time of the newest decision, but not before the
    present phase of the experiment. Raises InputError if `--now` is before that phase."""
    phase_at = 0 if experiment is None else experiment.phase_at
    phase_text = "" if experiment is None else f"phase of experiment {experiment.name} began at {format_time(phase_at)}"
    if store.now is not None:
        if store.now < phase_at:
            raise InputError(f"the newest {phase_text}: --now lies before", hint="give a later time, or none")
        return store.now
    last_at = parse(FIRST_TIME) if newest_at is None else newest_at
    start = max(last_at, phase_at)
    if start - last_at > DAY_US:
        days = quantity(round((start - last_at) / DAY_US), "day")
        store.notice(
            f"the newest {phase_text}, and the clock starts there, {days} after the newest decision; to"
            f" begin a phase in simulated time: `rlrec --now {format_time(last_at)} experiment set ...`"
        )
    return start


def _serving_versions(unit: Unit, request: Request, audience: Audience) -> tuple[list[Version], Experiment | None]:
    """Return the versions that serve, and the experiment to which they belong (None without an experiment). Raises
    InputError if no version serves, or if the experiment needs users and the audience has visits without a user."""
    experiment, name = request.experiment, request.policy
    if name is not None:
        route = routes.by_name(unit, [name]).get(name)
        if route is None or not route.running:
            return [lookup.version(unit, name if route is None else route.reference)[0]], None
        experiment = route.experiment
    assert experiment is not None
    stored_experiment = lookup.experiment(unit, experiment)
    share = audience.anonymous if isinstance(audience, Visitors) else 1
    if name is None and stored_experiment.unit == "user" and share:  # a route accepts visits without a user
        hint = "start an experiment with --unit session"
        raise InputError(
            f"experiment {experiment} assigns by user, and {share:.0%} of visits of {request.environment} have none",
            hint=f"give --env anonymous=0, or {hint}" if share < 1 else hint,
        )
    live_versions = policies.live(unit, {variant.policy for variant in stored_experiment.variants})
    return [live_versions[variant.policy].version for variant in stored_experiment.variants], stored_experiment


def _check_group(request: Request, audience: Audience, *, timeout_us: int) -> None:
    """Raise InputError if a visit would time out while the other visits of its group are served. timeout_us: the pause
    that ends a visit."""
    group = min(request.group, request.sessions)
    if isinstance(audience, Visitors) and group * SECOND > timeout_us:
        raise InputError(
            f"a group of {group} takes {group} seconds, and a session ends after {timeout_us // SECOND}",
            hint="choose a smaller --group",
        )


def _notice_unseen_reward(store: Store, audience: Audience, reward: Reward) -> None:
    """Print a notice if the policy's reward ignores the events of the audience."""
    value = reward.weights.get(audience.event, 0.0) * audience.lowest_reward
    if audience.lowest_reward < 0 and clip(reward, value) == reward.default:
        event, lowest = audience.event, audience.lowest_reward
        store.notice(
            f"a `{event}` of {lowest:g} is worth {reward.default:g} by reward {reward.name!r}: nothing is learned;"
            f" `rlrec reward define steps '{event}=1' --clip {lowest:g},0` makes one that sees it"
        )


def _catalogue_keys(unit: Unit, names: Sequence[str], audience: Audience) -> tuple[list[str], bool]:
    """Return the keys of the audience's arms, and whether the catalogue has other arms, which must not be shown. Arms
    are added to an empty catalogue. Another catalogue must have all arms of the audience, or the same number of arms,
    which then stand for them."""
    active_keys = [arm.key for arm in arms.all_arms(unit) if arm.status(unit.now) == "active"]
    if not arms.all_arms(unit):
        arms.put(unit, {name: canonical.text(audience.features_of(arm)) for arm, name in enumerate(names)})
        return list(names), False
    if set(names) <= set(active_keys):
        return list(names), len(names) < len(active_keys)
    if len(names) == len(active_keys) and names[0] == "arm0":
        return active_keys, False
    missing_name = next(name for name in names if name not in active_keys)
    count_hint = f"`rlrec arm list` shows its {quantity(len(active_keys), 'arm')}: give as many, by --env rates=FILE"
    count_hint += " (a CSV arm,rate) or arms=N"
    hint = f"add it: `rlrec arm add {missing_name}`" if audience.names else count_hint
    raise InputError(
        f"the audience has {quantity(len(names), 'arm')}, and the catalogue has no arm {missing_name!r}", hint=hint
    )


class SimulatedStore:
    """This class serves an audience through the store. names: the keys of the audience's arms; is_subset: whether the
    catalogue has other arms; first_id: the id of the first decision; window_us: the time until every decision is
    mature."""

    crowd: Crowd | None = None

    def __init__(
        self, store: Store, request: Request, audience: Audience, names: Sequence[str], seed: int, first_id: int, *,
        is_subset: bool, window_us: int,
    ) -> None:  # fmt: skip
        self.store, self.request, self.audience, self.window_us = store, request, audience, window_us
        self.arm_index = {name: index for index, name in enumerate(names)}
        self.arm_keys = list(names) if is_subset else None
        self.pipe, self.first_id = Pipe(store, seed=seed), first_id
        self.rng = np.random.Generator(np.random.SFC64([seed, first_id]))
        self.totals = np.zeros(3)  # reward, optimum, regret
        self.slot_counts = dict.fromkeys(names, 0)  # slots of each arm
        self.steps = request.steps or 1
        self.decisions = request.sessions * self.steps
        # sums of values by kind
        self.events: dict[str, float] = dict.fromkeys([audience.event, *audience.further_events], 0)
        # a heap of events: time, decision, position (0: the page), kind, value
        self._events_due: list[tuple[int, int, int, str, float]] = []

    def play(self) -> None:
        """Serve all sessions, and record their events."""
        for start in range(0, self.request.sessions, self.request.group):
            end = min(start + self.request.group, self.request.sessions)
            sessions = [self._session_key(number) for number in range(start, end)]
            observations = self.audience.reset(len(sessions), self.rng, first_time=start * self.steps)
            for _ in range(self.steps):
                observations = self._serve(sessions, observations)
            self.store.progress("sessions", end, end / self.request.sessions)
        while self._events_due:  # events after the last decision
            self._let_time_pass(max(0, self._events_due[0][0] - self._clock))

    @property
    def _clock(self) -> int:
        assert self.store.now is not None
        return self.store.now

    def _session_key(self, number: int) -> str:
        return f"sim{self.first_id}-{number}"

    def _serve(self, sessions: Sequence[str], observations: Array) -> Array:
        """Draw a slate for each session, and move the clock by a second for each. Returns the next observation of each
        session. observations: what the policy sees of each session, its context."""
        answers, slates = self._draw(sessions, observations)
        next_observations, reward, _, _, info = self.audience.step(slates)
        regret = info["optimum"] - info["expected"].sum(axis=1)
        self.totals += [reward.sum(), info["optimum"].sum(), regret.sum()]
        self._schedule_events(answers, reward, info.get("delay"))
        if "page" in info:
            self.totals[0] += info["page"].sum()
            self._schedule_events(answers, info["page"][:, None], first_position=None)
        self._let_time_pass(len(sessions) * SECOND)
        return next_observations

    def _draw(
        self, sessions: Sequence[str], observations: Array, users: Sequence[str | None] | None = None
    ) -> tuple[list[Answer], Index]:
        """Draw a slate for each session. Returns the answers, and the indices of the shown arms, (sessions, positions).
        observations: the context of each session; users: the user of each session, None for sessions without users."""
        contexts = [{"x": x} for x in observations.tolist()] if self.audience.features else [{}] * len(sessions)
        policy, experiment, size = self.request.policy, self.request.experiment, self.request.size
        make_request = partial(requests.Request, policy=policy, experiment=experiment, size=size, arms=self.arm_keys)
        group = [
            make_request(session=session, user=user, context=context)
            for session, user, context in zip(sessions, users or [None] * len(sessions), contexts, strict=True)
        ]
        answers = _accepted_answers(self.pipe.group(group))
        slates = [[slot["arm"] for slot in answer["slate"]] for answer in answers]
        for arm in chain.from_iterable(slates):
            self.slot_counts[arm] += 1
        return answers, np.array([[self.arm_index[arm] for arm in slate] for slate in slates], np.intp)

    def _schedule_events(
        self, answers: Sequence[Answer], values: Array, delay: Array | None = None, *, first_position: int | None = 1,
        kind: str | None = None,
    ) -> None:  # fmt: skip
        """Schedule the events on the slates of answers.

        values (slates, positions): the value of each event; delay: how many seconds later it comes, in the same
        shape; first_position: the position of the first column, None for events on whole pages, (slates, 1); kind:
        the kind of event, None for the main kind of the audience."""
        kind = kind or self.audience.event
        self.events[kind] += float(values.sum())
        delays = np.zeros(values.shape, np.int64) if delay is None else delay.astype(np.int64)
        for row, slot in np.argwhere(values != 0).tolist():
            at = self._clock + int(delays[row, slot]) * SECOND
            position = 0 if first_position is None else first_position + slot
            event = at, answers[row]["decision_id"], position, kind, float(values[row, slot])
            heapq.heappush(self._events_due, event)

    def _let_time_pass(self, duration_us: int) -> None:
        """Move the clock, and record the events that are due by then."""
        self.store.now = self._clock + duration_us
        lines = []
        while self._events_due and self._events_due[0][0] <= self.store.now:
            at, decision_id, position, kind, value = heapq.heappop(self._events_due)
            lines.append(Line(decision_id=decision_id, position=position or None, events={kind: value}, at=at))
        if lines:
            _accepted_answers(self.pipe.group(lines))


class VisitWorld(SimulatedStore):
    """This class serves visitors with memory. Each visitor is a user, and each visit is a session of that user. When a
    visit ends, another one begins in its place, so that groups stay full.

    Visitors who are still to come again when a run ends do so in the next run of the same audience. If they are more
    than a day late when that run begins, they are forgotten."""

    audience: Visitors
    crowd: Crowd

    def play(self) -> None:
        """Play all visits to their end. If the audience counts days, visits of a period end before the next period
        begins."""
        group, n_sessions, audience = self.request.group, self.request.sessions, self.audience
        n_seats, period_us = min(group, n_sessions), DAY_US // audience.a_day
        self.decisions = 0
        # the regret: the expected rewards are subtracted later
        self.totals[1:] = audience.optimum(self.request.size) * n_sessions
        self._observations = audience.reset(n_seats, self.rng)
        started_at = self._clock
        returning_visitors, n_new = self._recall_visitors()
        self._visitor_keys = [visitor.key for visitor in returning_visitors]
        self.crowd = Crowd(
            seats=n_seats, visits=n_sessions, absence=audience.away, daily=audience.daily, a_day=audience.a_day,
            returners=returning_visitors, n_new=n_new,
        )  # fmt: skip
        self._is_anonymous = np.zeros(n_seats, np.bool_)
        while self.crowd.visits_left:
            period_start = started_at + self.crowd.periods * period_us
            self._let_time_pass(max(0, period_start - self._clock))
            if isinstance(audience, News):
                self._publish(audience, period_start // period_us)
            self._arrive(np.arange(n_seats))
            while len(occupied_seats := self.crowd.busy_seats):
                self._serve_seats(occupied_seats)
            self.crowd.periods += 1
        self._remember_visitors(newest_at=self._newest_at)
        self._let_time_pass(self.window_us + MARGIN_S * SECOND)
        while self._events_due:  # events after the window
            self._let_time_pass(max(0, self._events_due[0][0] - self._clock))

    def _serve_seats(self, occupied_seats: Index) -> None:
        sessions = [self._session_key(number) for number in self.crowd.visit[occupied_seats].tolist()]
        visitors = zip(
            self.crowd.visitor[occupied_seats].tolist(), self._is_anonymous[occupied_seats].tolist(), strict=True
        )
        users = [None if is_anonymous else self._visitor_key(number) for number, is_anonymous in visitors]
        self._newest_at = self._clock
        answers, slates = self._draw(sessions, self._observations[occupied_seats], users)
        size = self.request.size
        actions = np.zeros((len(self.crowd.visitor), size), np.intp)
        actions[occupied_seats] = slates
        actions_shown = actions if size > 1 else actions[:, 0]
        self._observations, reward, is_terminated, is_truncated, info = self.audience.step(actions_shown)
        self.decisions += len(occupied_seats)
        self.totals += [reward[occupied_seats].sum(), 0.0, -info["expected"][occupied_seats].sum()]
        rewards = reward[occupied_seats].reshape(slates.shape)
        self._schedule_events(answers, rewards)
        if isinstance(self.audience, News):
            self.audience.count_clicks(slates, rewards)
        delay = np.full(slates.shape, self.audience.later_s)
        for kind in self.audience.further_events:
            self._schedule_events(answers, info[kind][occupied_seats].reshape(slates.shape), delay, kind=kind)
        self._let_time_pass(len(occupied_seats) * SECOND)
        has_ended = (is_terminated | is_truncated)[occupied_seats]
        if has_ended.any():
            app_session.end_all(self.store, list(compress(sessions, has_ended.tolist())))
            self.crowd.leave(
                occupied_seats[has_ended], days=info["again"][occupied_seats[has_ended]], now=self._crowd_time()
            )
            self._arrive(occupied_seats[has_ended])

    def _arrive(self, seats: Index) -> None:
        """Begin visits in free places of the group, if visitors come. seats: the indices of these places."""
        self.crowd.arrive(self._crowd_time())
        self.audience.admit(seats, self.crowd.visitor[seats] - NO_VISITOR)
        if self.audience.anonymous:
            self._is_anonymous[seats] = self.rng.random(len(seats)) < self.audience.anonymous

    def _crowd_time(self) -> float:
        return self.crowd.periods / self.crowd.a_day if self.crowd.daily else self.decisions

    def _visitor_key(self, visitor: int) -> str:
        """Return the user key of a visitor. visitor: the number of the visitor."""
        keys = self._visitor_keys
        return keys[visitor] if visitor < len(keys) else f"sim{self.first_id}-visitor{visitor - len(keys)}"

    def _publish(self, feed: News, period: int) -> None:
        """Add the articles of a period to the catalogue, and retire articles that are no longer shown."""
        articles = feed.publish(period)
        self.arm_index = {name: feed.arm_of(name) for name in articles}
        self.slot_counts = {**dict.fromkeys(articles, 0), **self.slot_counts}

        def work(unit: Unit) -> list[str]:
            arms.put(unit, {name: canonical.text(features) for name, features in articles.items()})
            active_keys = [arm.key for arm in arms.all_arms(unit) if arm.retired_at is None and arm.key not in articles]
            arms.retire(unit, [key for key in active_keys if feed.is_article(key)], is_retired=True)
            return [key for key in active_keys if not feed.is_article(key)]

        self.arm_keys = list(articles) if self.store.write(work) else None

    # -- from run to run --

    def _audience_key(self) -> dict[str, Any]:
        return {"environment": self.request.environment, "parameters": dict(self.request.parameters)}

    def _remember_visitors(self, *, newest_at: int) -> None:
        """Store the visitors who are to come again, for the next run. newest_at: the time of the newest decision."""
        if not isinstance(self.audience, Regulars):
            return
        crowd = self.crowd
        period = crowd.periods - 1  # the period in which the next run begins
        due_visitors = crowd.due_visitors(period / crowd.a_day if crowd.daily else self.decisions)
        traits = self.audience.traits_of(np.array([visitor for visitor, _ in due_visitors], np.intp) - NO_VISITOR)
        state = {
            "at": newest_at, "new": crowd.n_new - crowd.daily * period // crowd.a_day, "clicks": self.audience.memory(),
            "visitors": [
                (self._visitor_key(visitor), trait, delay)
                for (visitor, delay), trait in zip(due_visitors, traits.tolist(), strict=True)
            ],
        }  # fmt: skip
        self.store.write(lambda unit: settings.keep_state(unit, VISITS, self._audience_key(), state))

    def _recall_visitors(self) -> tuple[list[Returning], int]:
        """Return the visitors of earlier runs who are to come again, and how many of this period's new visitors have
        come already."""
        with self.store.read() as unit:
            state = settings.state(unit, VISITS, self._audience_key())
        if state is None or not isinstance(self.audience, Regulars):
            return [], 0
        days = max(0, self._clock - state["at"]) / DAY_US if self.audience.daily else 0.0
        visitors = [Returning(key, trait, delay - days) for key, trait, delay in state["visitors"]]
        visitors = [visitor for visitor in visitors if visitor.delay > -LATEST_DAYS or not self.audience.daily]
        self.audience.recall(
            np.arange(len(visitors)) - NO_VISITOR, np.array([visitor.trait for visitor in visitors], np.intp),
            state["clicks"],
        )  # fmt: skip
        return visitors, state["new"] if days * self.audience.a_day < 1 else 0


def _accepted_answers(answers: list[Any]) -> list[Any]:
    """Return the answers unchanged. If any of them is an error, raise the first error."""
    for answer in answers:
        if isinstance(answer, InputError):
            raise answer
    return answers


# -- in memory --


def study(store: Store, request: Request) -> RunMeans:
    """Play runs in memory. Returns the means of the figures over all runs, with standard errors. The store is read only
    if a policy or curve is named."""
    audience, names = environments.make(request.environment, request.parameters)
    environments.check(request.environment, audience, len(names), size=request.size, steps=request.steps)
    if isinstance(audience, News):
        raise InputError("articles of news come and go with the clock of a store", hint="leave out --ephemeral")
    policy, name = _studied_policy(store, request, audience, names)
    seed = seed_or_random(request.seed)
    totals = in_memory.study(
        policy, audience, runs=request.runs, sessions=request.sessions, steps=request.steps or 1, seed=seed,
        names=names, size=request.size,
    )  # fmt: skip
    reward, optimum = float(totals.reward.mean()), float(totals.optimum.mean())
    figures = environments.figures(
        audience, totals.shows, length=float(totals.decisions.mean()) / request.sessions, visits=request.sessions,
        reward=reward, size=request.size,
        visitors=None if totals.visitors is None else float(totals.visitors.mean()),
        returners=0.0 if totals.returners is None else float(totals.returners.mean()),
    )  # fmt: skip
    return {
        "environment": request.environment, "policy": name, "runs": request.runs, "sessions": request.sessions,
        "decisions": plain_number(totals.decisions.mean()), "reward": reward,
        "reward_std_error": _std_error(totals.reward), "reward_per_session": reward / request.sessions,
        "optimum_per_session": optimum / request.sessions,
        "regret": float(totals.regret.mean()), "regret_std_error": _std_error(totals.regret),
        **figures, "seed": seed,
    }  # fmt: skip


def _studied_policy(store: Store, request: Request, audience: Audience, names: Sequence[str]) -> tuple[Policy, str]:
    """Return the policy to study and its name. A contextual policy gets a design that fits the contexts of the
    audience."""
    if (request.policy is None) == (request.kind is None):
        raise InputError("name a policy of the store or a kind, one of them", hint="--policy or --kind")
    if request.policy is not None:
        with store.read() as unit:
            stored_policy = lookup.version(unit, request.policy)[0].policy
        kind, params, name = stored_policy.kind, stored_policy.params, stored_policy.name
    else:
        kind = name = str(request.kind)
        params = parameters.parse_parameters(kind, request.params)
        if params.get("position"):
            with store.read() as unit:
                params = parameters.with_curve(unit, params)
    policy = kinds.make(kind, params, design=in_memory.design(audience, names, model=params.get("model")))
    low, high = (0.0, 1.0) if audience.lowest_reward == 0 else (audience.lowest_reward, 0.0)
    reward = Reward(
        id=0, name=request.environment, weights={audience.event: 1.0}, window_us=0, default=0.0,
        clip_low=low, clip_high=high, learn="served", late="count",
    )  # fmt: skip
    policy.check(reward)
    if not policy.can_serve:
        raise InputError(f"{name} only holds an imported log", hint="study another policy")
    if policy.rules:
        rule_texts = ", ".join(f"{name}={value}" for name, value in policy.rules.items())
        raise InputError(
            f"{name} has {rule_texts}: a study in memory keeps no such rules", hint="leave out --ephemeral"
        )
    if policy.stages:
        raise InputError(f"{name} draws candidates, and a study in memory shows any arm", hint="leave out --ephemeral")
    if request.size > 1 and PROPENSITY in policy.needed_columns:
        hint = "leave out --ephemeral, or -k"
        raise InputError(f"{name} learns by propensities, which pages in memory have at position 1 alone", hint=hint)
    if not policy.learns_online:
        hint = "leave out --ephemeral, train it on what the store has served"
        raise InputError(f"{name} is trained from a store, and a study in memory has none", hint=hint)
    return policy, name


def _std_error(values: Array) -> float | None:
    """Return the standard error of the mean of the values; None for a single run."""
    return float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None
