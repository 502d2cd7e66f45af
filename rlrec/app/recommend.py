"""Draw slates and log them with exact propensities, a group of requests at a time."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any, Protocol

import numpy as np

from rlrec.app.learning.ledger import Ledger, SlotKey, Unordered
from rlrec.app.serving import assignment, decision_json, planned_requests
from rlrec.app.serving.cache import Warm
from rlrec.app.serving.draws import Page, draw, draw_seeing, signed
from rlrec.app.serving.open_sessions import Guest, Guests
from rlrec.app.serving.requests import Duplicate, Lane, Plan, Planned, Request
from rlrec.app.serving.visit_history import Memory
from rlrec.errors import InputError, StoreBusy
from rlrec.policy.forgetting import Forgetting
from rlrec.policy.history import History
from rlrec.store import Store, Unit, arms, contents, decisions, policies, settings
from rlrec.store.unit import Row
from rlrec.times import written

__all__ = ["Answer", "Request", "recommend", "recommend_group"]

Answer = dict[str, Any]
TRIES = 5


class Stale(Exception):
    """A request id came into the store after the plan was made."""


def recommend(store: Store, request: Request, *, seed: int | None = None, dry_run: bool = False) -> Answer:
    """One slate. Raises InputError (a Conflict where the request id is known with other content)."""
    answer = recommend_group(store, [request], seed=seed, dry_run=dry_run)[0]
    if isinstance(answer, InputError):
        raise answer
    return answer


class Beside(Protocol):
    """What else happens in the transaction of a group."""

    def policies(self, unit: Unit) -> Collection[int]:
        """Those that it changes: they are locked with the others."""

    def work(self, unit: Unit, ledger: Ledger) -> None:
        """Done when the group's decisions are stored; once more as a whole where the database wants that."""


def recommend_group(
    store: Store,
    requests: Sequence[Request | InputError],
    *,
    seed: int | None = None,
    dry_run: bool = False,
    warm: Warm | None = None,
    beside: Beside | None = None,
) -> list[Answer | InputError]:
    """Answers in order, all in one transaction; a refused request has its error in its place.

    All draws of the group come from the beliefs before it. requests: anything with the fields of Request. seed: 64
    bits; None: random ones. warm: what earlier groups of the process have read.
    """
    bits = int.from_bytes(os.urandom(8)) if seed is None else seed
    warm = Warm() if warm is None else warm
    unordered = False
    for _ in range(TRIES):
        with store.read() as unit:
            planned = planned_requests.plan(unit, requests, warm)
            plans = {place: plan for place, plan in enumerate(planned) if isinstance(plan, Plan)}
            _tell_unread(store, plans, warm)
            if dry_run:
                return _answers(unit, planned, _dry(unit, plans, bits, warm))
            interned = _interned(unit, plans, warm)
            locked = {plan.lane.version.policy.id for plan in plans.values()}
            locked |= set(beside.policies(unit)) if beside is not None else set()
            locked |= {policy.id for policy in policies.all_policies(unit)} if unordered else set()
        if not interned:
            _intern(store, plans, warm)
        write = partial(_write, plans=plans, locked=locked, bits=bits, warm=warm, beside=beside)
        try:
            outcome = store.write(write) if plans or beside is not None else {}
        except Stale:
            continue
        except Unordered:  # a policy that nobody knew of a moment ago
            unordered = True
            continue
        if any(isinstance(one, Duplicate) for one in planned):
            with store.read() as unit:
                return _answers(unit, planned, outcome)
        return [one if isinstance(one, InputError) else outcome[place] for place, one in enumerate(planned)]
    raise StoreBusy("other writers keep using the same request ids", hint="a retry is safe")


def _tell_unread(store: Store, plans: Mapping[int, Plan], warm: Warm) -> None:
    """Say, once for each policy, that it was given a context and reads none."""
    for lane in {plan.lane for plan in plans.values() if plan.context != "{}"}:
        name = lane.version.policy.shown
        if not lane.case.reads and name not in warm.unread:
            warm.unread.add(name)
            store.notice(f"policy {name} reads no context; what was given is stored all the same")


def _interned(unit: Unit, plans: Mapping[int, Plan], warm: Warm) -> bool:
    """Whether the contexts and eligible sets of the plans have ids, and today's catalogue is known by its own."""
    bodies, sets = {plan.context for plan in plans.values()}, {plan.lane.eligible for plan in plans.values()}
    return warm.look_up(unit, bodies, sets) and not (warm.unnamed and warm.active in sets)


def _intern(store: Store, plans: Mapping[int, Plan], warm: Warm) -> None:
    """Store contexts and eligible sets ahead, in a transaction of their own."""
    bodies, sets = {plan.context for plan in plans.values()}, {plan.lane.eligible for plan in plans.values()}

    def work(unit: Unit) -> tuple[dict[str, int], dict[tuple[int, ...], int]]:
        ids = contents.contexts(unit, bodies), contents.eligible_sets(unit, sets)
        now = settings.get(unit)
        catalogue = tuple(arms.active(unit)) if now.catalogue_id is None else ()
        if catalogue in ids[1]:
            settings.know_catalogue(unit, revision=now.catalogue_revision, eligible_id=ids[1][catalogue])
        return ids

    warm.learn(*store.write(work))  # once they are stored: a transaction that failed leaves none


def _write(
    unit: Unit, *, plans: dict[int, Plan], locked: Collection[int], bits: int, warm: Warm, beside: Beside | None
) -> dict[int, Answer | InputError]:
    ledger = Ledger(unit, locked)
    ledger.settle()
    outcome = _decide(unit, ledger, plans, bits, warm) if plans else {}
    if beside is not None:
        beside.work(unit, ledger)
    ledger.close()
    return outcome


def _decide(
    unit: Unit, ledger: Ledger, plans: Mapping[int, Plan], bits: int, warm: Warm
) -> dict[int, Answer | InputError]:
    """Draw and store what the plans say, under the ledger's locks: the answers by place.

    Raises Stale where a request id has come into the store since it was planned."""
    keys = {key for plan in plans.values() if (key := plan.request.request_id) is not None}
    if keys and decisions.requests(unit, keys):
        raise Stale
    outcome: dict[int, Answer | InputError] = dict(assignment.refused(unit, plans))
    plans = {place: plan for place, plan in plans.items() if place not in outcome}
    wanted = [(plan.request.session, plan.request.user) for plan in plans.values()]
    guests = Guests(unit, settings.get(unit), wanted)
    unit.now = max(unit.now, decisions.newest(unit) or 0)  # of another policy, while we waited for the sessions
    if refused := _conflicts(guests, plans):
        outcome |= refused
        plans = {place: plan for place, plan in plans.items() if place not in refused}
    if plans:
        guests.name()
        outcome |= _store(unit, ledger, plans, bits, warm, guests)
        assignment.remember(unit, plans, guests)
        guests.close()
    return outcome


def _conflicts(guests: Guests, plans: Mapping[int, Plan]) -> dict[int, InputError]:
    """Requests whose session belongs to somebody else."""
    refused: dict[int, InputError] = {}
    for place, plan in plans.items():
        try:
            guests.check(plan.request.session, plan.request.user)
        except InputError as error:
            refused[place] = error
    return refused


def _store(
    unit: Unit, ledger: Ledger, plans: Mapping[int, Plan], bits: int, warm: Warm, guests: Guests
) -> dict[int, Answer]:
    """Decisions and their slots into the tables, and into the ledger: the answers by place."""
    ids = dict(zip(plans, decisions.reserve(unit, len(plans)), strict=True))
    seen, pages = _serve(unit, plans, ids, bits, warm, guests)
    lanes = {lane: _shared(lane, ledger, warm) for lane in {plan.lane for plan in plans.values()}}
    rows: list[Row] = []
    slots: list[Row] = []
    answers: dict[int, Answer] = {}
    served: dict[int, list[SlotKey]] = defaultdict(list)
    now, at, seed, contexts = unit.now, written(unit.now), signed(bits), warm.contexts
    ordinals = _ordinals(ledger, plans)
    for place, plan in plans.items():
        request, lane, context, digest = plan
        key, page = ids[place], pages[place]
        guest, step, state, history = seen[place]
        policy_id, version_id, belief_seq, before, seq, eligible_id, variant_id = lanes[lane]
        context_id, mine = contexts[context], ordinals.get(policy_id)
        ordinal = None if mine is None else next(mine)
        rows.append((
            key, policy_id, version_id, belief_seq, before, seq, ordinal, guest.id, guest.number, step,
            context_id, state, eligible_id, lane.revision, lane.size, page.log_propensity, seed,
            variant_id, now, 0, request.request_id, digest, history,
        ))  # fmt: skip
        slots += [(key, *slot) for slot in page.slots]
        served[policy_id] += [SlotKey(arm, ordinal or 0, context_id) for arm in page.arms]
        answers[place] = decision_json.drawn(plan, page, key, guest.user, guest.number, step, at)
    decisions.add(unit, rows, slots)
    for policy_id, keys in served.items():
        ledger.serve(policy_id, keys)
    return answers


Seen = tuple[Guest, int, str, bytes]  # what a decision saw of its visit: step, state and, packed, history


def _serve(
    unit: Unit, plans: Mapping[int, Plan], ids: Mapping[int, int], bits: int, warm: Warm, guests: Guests
) -> tuple[dict[int, Seen], dict[int, Page]]:
    """What every decision saw, and its page, by place: the requests of a session in turn, so that each sees those
    before it."""
    pages = draw({place: plan for place, plan in plans.items() if not plan.lane.stateful}, ids, bits, warm.keys)
    now, waiting, seen = unit.now, len(pages) < len(plans), dict[int, Seen]()
    memory: Memory | None = None
    for turn in _turns(plans):
        arrived = [guests.arrive(plan.request.session) for plan in turn.values()]
        if memory is None:  # every session is here
            memory = Memory(unit, arrived, [lane.version.reward for lane in {plan.lane for plan in plans.values()}])
        histories = memory.histories(arrived, [plan.lane.version.reward for plan in turn.values()])
        if waiting:
            pages |= _drawn_in_turn(turn, ids, histories, bits, warm)
        for place, guest, history in zip(turn, arrived, histories.packed(), strict=True):
            seen[place] = guest, guest.steps, guest.state(now), history
            guest.show(ids[place], pages[place].arms, pages[place].recent, now)
    return seen, pages


def _drawn_in_turn(
    turn: Mapping[int, Plan], ids: Mapping[int, int], histories: History, bits: int, warm: Warm
) -> dict[int, Page]:
    """Pages of the plans whose lanes read the visit so far. histories: of all plans, in order."""
    chosen = np.array([plan.lane.stateful for plan in turn.values()])
    plans = {place: plan for place, plan in turn.items() if plan.lane.stateful}
    return draw_seeing(plans, ids, bits, warm.keys, histories=histories.take(chosen))


def _turns(plans: Mapping[int, Plan]) -> list[dict[int, Plan]]:
    """The first requests of all sessions, then the second ones, and so on."""
    if len({plan.request.session for plan in plans.values()}) == len(plans):
        return [dict(plans)]
    turns: list[dict[int, Plan]] = []
    had: Counter[str] = Counter()
    for place, plan in plans.items():
        turn = had[plan.request.session]
        had[plan.request.session] = turn + 1
        if turn == len(turns):
            turns.append({})
        turns[turn][place] = plan
    return turns


def _ordinals(ledger: Ledger, plans: Mapping[int, Plan]) -> dict[int, Iterator[int]]:
    """The ordinals of these decisions, by policy: of those that forget."""
    counts = Counter(plan.lane.version.policy.id for plan in plans.values())
    asked = {plan.lane.version.policy.id: plan.lane.version.policy for plan in plans.values()}
    found = {policy_id: ledger.ordinals(asked[policy_id], count) for policy_id, count in counts.items()}
    return {policy_id: iter(mine) for policy_id, mine in found.items() if mine is not None}


def _shared(lane: Lane, ledger: Ledger, warm: Warm) -> tuple[int, int, int, int | None, int, int, int | None]:
    """What the decisions of a lane have in common: policy, version, belief_seq, belief_ordinal, seq, eligible set and
    variant."""
    version, policy_id, head = lane.version, lane.version.policy.id, lane.head
    now = head.ordinal if version.learning else version.ordinal  # what learns no more forgets no more
    before = now if Forgetting.of(version.policy.params) else None
    variant_id = None if lane.variant is None else lane.variant.id
    seq, eligible_id = ledger.seq(policy_id), warm.sets[lane.eligible]
    return policy_id, version.id, head.seq, before, seq, eligible_id, variant_id


def _dry(unit: Unit, plans: Mapping[int, Plan], bits: int, warm: Warm) -> dict[int, Answer | InputError]:
    """What would be drawn if nobody else came first; nothing is written."""
    first, at = decisions.peek(unit), written(unit.now)
    ids = {place: first + offset for offset, place in enumerate(plans)}
    if any(plan.lane.stateful for plan in plans.values()):
        wanted = [(plan.request.session, plan.request.user) for plan in plans.values()]
        _, pages = _serve(unit, plans, ids, bits, warm, Guests(unit, settings.get(unit), wanted, look=True))
    else:
        pages = draw(plans, ids, bits, warm.keys)
    return {
        place: decision_json.drawn(plans[place], page, None, plans[place].request.user, None, None, at)
        for place, page in pages.items()
    }


def _answers(
    unit: Unit, planned: Sequence[Planned], outcome: Mapping[int, Answer | InputError]
) -> list[Answer | InputError]:
    stored = {one.decision_id for one in planned if isinstance(one, Duplicate) and one.decision_id is not None}
    known = decision_json.stored(unit, stored) if stored else {}
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
            answers.append(copy(before) if isinstance(before, InputError) else before | {"duplicate": True})
    return answers
