"""Draw slates and log them with exact propensities, a group of requests at a time."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from rlrec.app import assigning, planning, rendering
from rlrec.app.drawing import Drawn, draw, signed
from rlrec.app.ledger import Ledger
from rlrec.app.planning import Duplicate, Plan, Planned, Request
from rlrec.app.visiting import Guests
from rlrec.errors import InputError, StoreBusy
from rlrec.store import Store, Unit, arms, contents, decisions, settings
from rlrec.store.unit import Row

__all__ = ["Answer", "Request", "recommend", "recommend_group"]

Answer = dict[str, Any]
TRIES = 5


class _Stale(Exception):
    """A request id came into the store after the plan was made."""


class _Refused(Exception):
    """Every request of the group was refused under the locks: nothing is to be stored."""

    def __init__(self, outcome: dict[int, dict[str, Any] | InputError]) -> None:
        super().__init__()
        self.outcome = outcome


def recommend(store: Store, request: Request, *, seed: int | None = None, dry_run: bool = False) -> Answer:
    """One slate. Raises InputError (a Conflict where the request id is known with other content)."""
    answer = recommend_group(store, [request], seed=seed, dry_run=dry_run)[0]
    if isinstance(answer, InputError):
        raise answer
    return answer


def recommend_group(
    store: Store, requests: Sequence[Request | InputError], *, seed: int | None = None, dry_run: bool = False
) -> list[Answer | InputError]:
    """Answers in order, all in one transaction; a refused request has its error in its place.

    All draws of the group come from the beliefs before it. seed: 64 bits; None: random ones.
    """
    bits = secrets.randbits(64) if seed is None else seed
    for _ in range(TRIES):
        plans = planning.plan(store, requests)
        try:
            return _dry(store, plans, bits) if dry_run else _store(store, plans, bits)
        except _Stale:
            continue
    raise StoreBusy("other writers keep using the same request ids", hint="a retry is safe")


def _store(store: Store, planned: Sequence[Planned], bits: int) -> list[Answer | InputError]:
    plans = {place: plan for place, plan in enumerate(planned) if isinstance(plan, Plan)}
    if plans:
        named = _intern(store, plans)
        try:
            outcome = store.write(lambda unit: _write(unit, dict(plans), named, bits))
        except _Refused as refused:
            outcome = refused.outcome
    else:
        outcome = {}
    return _answers(store, planned, outcome)


def _intern(store: Store, plans: Mapping[int, Plan]) -> tuple[dict[str, int], dict[tuple[int, ...], int]]:
    """Ids of contexts and eligible sets: looked up in a reader, stored ahead in a transaction of their own if new."""
    bodies, sets = {plan.context for plan in plans.values()}, {plan.eligible for plan in plans.values()}
    with store.read() as unit:
        found = contents.known(unit, bodies, sets)
        named = settings.get(unit).catalogue_id is not None or tuple(arms.active(unit)) not in sets
    if found is not None and named:
        return found

    def work(unit: Unit) -> tuple[dict[str, int], dict[tuple[int, ...], int]]:
        ids = contents.contexts(unit, bodies), contents.eligible_sets(unit, sets)
        now = settings.get(unit)
        catalogue = tuple(arms.active(unit)) if now.catalogue_id is None else ()
        if catalogue in ids[1]:
            settings.know_catalogue(unit, revision=now.catalogue_revision, eligible_id=ids[1][catalogue])
        return ids

    return store.write(work)


def _write(
    unit: Unit,
    plans: dict[int, Plan],
    named: tuple[Mapping[str, int], Mapping[tuple[int, ...], int]],
    bits: int,
) -> dict[int, Answer | InputError]:
    ledger = Ledger(unit, {plan.version.policy.id for plan in plans.values()})
    keys = {plan.request.request_id for plan in plans.values() if plan.request.request_id is not None}
    if keys and decisions.requests(unit, keys):
        raise _Stale
    ledger.settle()
    outcome: dict[int, Answer | InputError] = dict(assigning.refused(unit, plans))
    plans = {place: plan for place, plan in plans.items() if place not in outcome}
    config = settings.get(unit)
    guests = Guests(unit, config, [(plan.request.session, plan.request.user) for plan in plans.values()])
    unit.now = max(unit.now, decisions.newest(unit) or 0)  # of another policy, while we waited for the sessions
    outcome |= _conflicts(guests, plans)
    plans = {place: plan for place, plan in plans.items() if place not in outcome}
    if not plans:
        raise _Refused(outcome)
    ids = dict(zip(plans, decisions.reserve(unit, len(plans)), strict=True))
    drawn = draw(plans, ids, bits)
    shown = arms.keys(unit, {arm for one in drawn.values() for arm in one.arms})
    rows: list[Row] = []
    for place in plans:
        one = drawn[place]
        session = guests.sessions[one.plan.request.session]
        visit, step, state = guests.step(session)
        guests.shown(session, [shown[arm] for arm in one.arms])
        rows.append(_row(unit, one, named, ledger, (session.id, visit, step, state), bits))
        ledger.serve(one.plan.version.policy.id, one.arms)
        outcome[place] = rendering.drawn(one, shown, session, visit=visit, step=step, at=unit.now)
    decisions.add(unit, rows, [slot for one in drawn.values() for slot in _slots(one)])
    assigning.remember(unit, plans, guests)
    guests.close()
    ledger.close()
    return outcome


def _conflicts(guests: Guests, plans: Mapping[int, Plan]) -> dict[int, InputError]:
    """Requests whose session belongs to somebody else."""
    refused: dict[int, InputError] = {}
    for place, plan in plans.items():
        try:
            guests.check(plan.request.session, plan.request.user)
        except InputError as error:
            error.line = plan.request.number
            refused[place] = error
    return refused


def _row(
    unit: Unit,
    one: Drawn,
    named: tuple[Mapping[str, int], Mapping[tuple[int, ...], int]],
    ledger: Ledger,
    place: tuple[int, int, int, str],
    bits: int,
) -> Row:
    """A row of decisions.DECISION."""
    plan = one.plan
    session_id, visit, step, state = place
    values = {
        "id": one.decision_id,
        "policy_id": plan.version.policy.id,
        "version_id": plan.version.id,
        "belief_seq": plan.head.seq,
        "seq": ledger.seq(plan.version.policy.id),
        "session_id": session_id,
        "visit": visit,
        "step": step,
        "context_id": named[0][plan.context],
        "state": state,
        "eligible_id": named[1][plan.eligible],
        "catalogue_revision": plan.revision,
        "size": plan.request.size,
        "log_propensity": one.log_propensity,
        "seed": signed(bits),
        "variant_id": None if plan.variant is None else plan.variant.id,
        "at": unit.now,
        "imported": 0,
        "request_key": plan.request.request_id,
        "request_digest": None if plan.request.request_id is None else plan.request.digest(),
        "run_id": None,
        "source": None,
    }
    return tuple(values[name] for name in decisions.DECISION)


def _slots(one: Drawn) -> list[Row]:
    """Rows of decisions.SLOT."""
    columns = zip(one.arms, one.propensity, one.marginal, one.minimum, one.score, one.rounded, strict=True)
    return [
        (one.decision_id, position, arm, propensity, _probability(marginal), minimum, score, 0, int(rounded))
        for position, (arm, propensity, marginal, minimum, score, rounded) in enumerate(columns, 1)
    ]


def _probability(value: float) -> float | None:
    """A marginal, or None where it has no closed form."""
    return value if value > 0 else None


def _dry(store: Store, planned: Sequence[Planned], bits: int) -> list[Answer | InputError]:
    """What would be drawn if nobody else came first; nothing is written."""
    plans = {place: plan for place, plan in enumerate(planned) if isinstance(plan, Plan)}
    with store.read() as unit:
        first = decisions.peek(unit)
        drawn = draw(plans, {place: first + offset for offset, place in enumerate(plans)}, bits)
        shown = arms.keys(unit, {arm for one in drawn.values() for arm in one.arms})
        outcome: dict[int, Answer | InputError] = {
            place: rendering.dry(one, shown, at=unit.now) for place, one in drawn.items()
        }
    return _answers(store, planned, outcome)


def _answers(
    store: Store, planned: Sequence[Planned], outcome: Mapping[int, Answer | InputError]
) -> list[Answer | InputError]:
    stored = {one.decision_id for one in planned if isinstance(one, Duplicate) and one.decision_id is not None}
    known: dict[int, Answer] = {}
    if stored:
        with store.read() as unit:
            known = rendering.stored(unit, stored)
    answers: list[Answer | InputError] = []
    for place, one in enumerate(planned):
        if isinstance(one, InputError):
            answers.append(one)
        elif not isinstance(one, Duplicate):
            answers.append(outcome[place])
        elif one.decision_id is not None:
            answers.append(known[one.decision_id] | {"duplicate": True})
        else:
            assert one.place is not None
            before = answers[one.place]
            answers.append(_again(before, one.line) if isinstance(before, InputError) else before | {"duplicate": True})
    return answers


def _again(error: InputError, line: int | None) -> InputError:
    """The same refusal for another line."""
    other = copy(error)
    other.line = line
    return other
