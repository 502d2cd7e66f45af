"""This module lists sessions, shows one visit decision by decision, and ends visits."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any, NotRequired, TypedDict, cast

from rlrec.app.inputs import lookup
from rlrec.app.serving import decision_json
from rlrec.errors import InputError, quantity
from rlrec.policy.beliefs.reward import rewards_of
from rlrec.records import Decision, Record, Reward
from rlrec.store import Store, Unit
from rlrec.store.database.unit import parse
from rlrec.store.log import contents, decisions, events, returns, sessions, settings
from rlrec.store.log.sessions import Session, Visit
from rlrec.store.policies import policies, users
from rlrec.times import format_time


class Request(Record):
    """This record has the options of `session show`. key: the key of the session; visit: the number of a visit, None
    for the newest visit; gamma: the discount per step; reward: the name of a reward, None for the reward of each
    decision's version."""

    key: str
    visit: int | None = None
    gamma: float = 1.0
    reward: str | None = None


SessionRow = TypedDict("SessionRow", {
    "session": str, "user": str | None, "visits": int, "decisions": int, "last_at": str | None,
})  # fmt: skip


class TimelineSlot(decision_json.SlotJson):
    """This record is one slot of a slate, with its reward. censored: whether feedback marked the slot as censored."""

    censored: bool
    reward: float


class TimelineEvent(decision_json.EventJson):
    """This record is one event. late: whether the event does not count, since it came after the window of the
    reward."""

    late: bool


# One decision of a visit.
Step = TypedDict("Step", {
    "decision_id": int, "request_id": str | None, "step": int, "at": str, "policy": str, "version": int,
    "experiment": str | None, "variant": str | None, "context": dict[str, Any], "state": dict[str, Any],
    "propensity": float | None, "log_propensity": float | None, "slate": list[TimelineSlot],
    "events": list[TimelineEvent], "reward": float, "return": NotRequired[float],
})  # fmt: skip


# A visit as a timeline.
Result = TypedDict("Result", {
    "session": str, "user": str | None, "visit": int, "visits": int, "started_at": str, "last_at": str,
    "ended_at": str | None, "reward": float, "return": float, "gamma": float, "decisions": list[Step],
})  # fmt: skip


def list_sessions(store: Store, *, limit: int | None, user: str | None = None) -> list[SessionRow]:
    """Return the sessions of all users, or of one user, newest first. limit: how many sessions are returned at most; if
    there are more, a notice is printed. Raises InputError for an unknown user."""
    with store.read() as unit:
        user_id = None if user is None else find_user(unit, user)[1]
        rows = sessions.list_sessions(unit, limit=None if limit is None else min(limit, 2**62) + 1, user_id=user_id)
    if limit is not None and len(rows) > limit:
        person = "" if user is None else f" --user {shlex.quote(user)}"
        newest = f"the newest {quantity(limit, 'session')}"
        store.notice(f"{newest}; `rlrec session list{person} --limit {10 * limit}` shows more")
    listed_rows = ((*row, None if last_at is None else format_time(last_at)) for *row, last_at in rows[:limit])
    return [cast(SessionRow, dict(zip(SessionRow.__annotations__, row, strict=True))) for row in listed_rows]


def find_user(unit: Unit, key: str) -> tuple[str, int]:
    """Return the main key and the id of the user who has a key. The main key is another key if the user was merged.
    Raises InputError if there is no such user."""
    person = users.main_keys(unit, [key]).get(key, key)
    ids = sessions.user_ids(unit, [person])
    if person not in ids:
        raise InputError(f"unknown user {key!r}", hint="`rlrec session list` shows users")
    return person, ids[person]


def show(store: Store, request: Request) -> Result:
    """Return one visit with the state, slate, propensities, events and reward of each of its decisions."""
    if not 0 <= request.gamma <= 1:
        raise InputError(f"gamma is {request.gamma:g}", hint="it lies between 0 and 1; 1 discounts nothing")
    with store.read() as unit:
        session = _find_session(unit, request.key)
        visits = sessions.all_visits(unit, session.id)
        visit = _find_visit(visits, request)
        reward = None if request.reward is None else lookup.reward(unit, request.reward)
        ids = decisions.visit_ids(unit, session.id, visit.number)
        session_records = records(unit, decisions.find(unit, ids), reward)
        fields = Step.__annotations__
        steps = [
            cast(Step, {name: session_records[key][name] for name in fields if name in session_records[key]})
            for key in ids
        ]
        end_us = ended_at(visit, timeout_us=settings.get(unit).session_timeout_us, now=unit.now)
    returns = discount_rewards([step["reward"] for step in steps], gamma=request.gamma)
    return {
        "session": session.key, "user": session.user, "visit": visit.number, "visits": len(visits),
        "started_at": format_time(visit.started_at), "last_at": format_time(visit.last_at),
        "ended_at": None if end_us is None else format_time(end_us), "reward": sum(step["reward"] for step in steps),
        "return": returns[0] if returns else 0.0, "gamma": request.gamma,
        "decisions": [{**step, "return": value} for step, value in zip(steps, returns, strict=True)],
    }  # fmt: skip


def discount_rewards(rewards: Sequence[float], *, gamma: float) -> list[float]:
    """Return the return at every step of one visit: the reward of the step, plus the discounted rewards of later steps.
    gamma: the discount per step."""
    return [*accumulate(reversed(rewards), lambda later, reward: reward + gamma * later)][::-1]


def ended_at(visit: Visit, *, timeout_us: int, now: int) -> int | None:
    """Return the time at which a visit ended, by `session end` or by the timeout, or None if it is open."""
    if visit.ended_at is not None:
        return visit.ended_at
    lapses_at = visit.last_at + timeout_us
    return lapses_at if now > lapses_at else None


def _find_session(unit: Unit, key: str, *, lock: bool = False) -> Session:
    session = sessions.find(unit, [key], lock=lock).get(key)
    if session is None:
        raise lookup.unknown("session", key, sessions.newest_keys(unit, limit=1_000))
    return session


def _find_visit(visits: Sequence[Visit], request: Request) -> Visit:
    if not visits:
        raise InputError(f"session {request.key!r} has no decision yet")
    if request.visit is None:
        return visits[-1]
    by_number = {visit.number: visit for visit in visits}
    if request.visit not in by_number:
        hint = f"it has visits 1 to {visits[-1].number}"
        raise InputError(f"session {request.key!r} has no visit {request.visit}", hint=hint)
    return by_number[request.visit]


def records(unit: Unit, by_id: Mapping[int, Decision], reward: Reward | None = None) -> dict[int, dict[str, Any]]:
    """Return stored decisions, by id, in the form of answers, with the context, state and events of each decision, and
    the rewards of the slate and of its slots. by_id: the decisions; reward: how rewards are computed, None for the
    reward of each decision's version."""
    events_of = events.by_decision(unit, list(by_id))
    answers, states = decision_json.answers(unit, by_id), decision_json.states(unit, by_id)
    versions = policies.by_id(unit, {decision.version_id for decision in by_id.values()})
    bodies = contents.context_bodies(unit, {decision.context_id for decision in by_id.values()})
    records_by_id: dict[int, dict[str, Any]] = {}
    for number, decision in by_id.items():
        decision_events, definition = events_of.get(number, []), reward or versions[decision.version_id].reward
        positions, deadline = [slot.position for slot in decision.slots], decision.at + definition.window_us
        slot_rewards = rewards_of(definition, decision_events, served_at=decision.at, slots=positions)
        slate = [
            entry | {"censored": slot.censored, "reward": slot_rewards[slot.position]}
            for entry, slot in zip(answers[number]["slate"], decision.slots, strict=True)
        ]
        records_by_id[number] = answers[number] | {
            "context": parse(bodies[decision.context_id], f"body of context {decision.context_id}"),
            "state": states[number], "slate": slate, "reward": sum(slot_rewards.values()),
            "events": [
                entry | {"late": event.at > deadline and event.kind != events.CENSOR}
                for entry, event in zip(decision_json.events(decision_events), decision_events, strict=True)
            ],
        }  # fmt: skip
    return records_by_id


Ended = TypedDict("Ended", {
    "session": str, "visit": int, "decisions": int, "ended_at": str, "already_ended": bool,
})  # fmt: skip


def end(store: Store, key: str) -> Ended:
    """End the newest visit of a session, so that its next decision begins another visit. Ending a visit twice changes
    nothing."""

    def work(unit: Unit) -> Ended:
        session = _find_session(unit, key, lock=True)
        ended_visits = _end_newest(unit, [session])
        if not ended_visits:
            raise InputError(f"session {key!r} has no decision yet")
        ((visit, already_ended),) = ended_visits
        return {
            "session": session.key, "visit": visit.number, "decisions": visit.steps,
            "ended_at": format_time(visit.ended_at or 0), "already_ended": already_ended,
        }  # fmt: skip

    return store.write(work)


def end_all(store: Store, keys: Collection[str]) -> None:
    """End the newest visits of sessions in one transaction. A visit that has ended already stays as it is."""
    store.write(lambda unit: _end_newest(unit, sessions.find(unit, keys, lock=True).values()))


def _end_newest(unit: Unit, ending_sessions: Collection[Session]) -> list[tuple[Visit, bool]]:
    """End the newest visits of sessions, which must be locked. Returns each visit as it is now, and whether it had
    already ended."""
    store_settings = settings.get(unit)
    if store_settings.weighs_returns:  # whether a visit ends before the user's next one begins decides about a return
        returns.lock_users(unit, {session.user_id for session in ending_sessions if session.user_id is not None})
    ended_visits = list[tuple[Visit, bool]]()
    for visit in sessions.visits(unit, [session.id for session in ending_sessions]).values():
        end_us = ended_at(visit, timeout_us=store_settings.session_timeout_us, now=unit.now)
        at = end_us or max(unit.now, visit.last_at)
        ended_visits.append((visit._replace(ended_at=at, recent="[]", history=None), end_us is not None))
    sessions.put_visits(unit, [visit for visit, _ in ended_visits])
    return ended_visits
