"""Draw slates and log them with exact propensities, a group of requests at a time."""

from __future__ import annotations

import json
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from math import exp, log
from typing import Any

import numpy as np

from rlrec.app import assigning, canonical, naming, rendering, serving
from rlrec.app.ledger import Ledger
from rlrec.app.serving import Case, Ids, Serving
from rlrec.app.visiting import Guests
from rlrec.errors import Conflict, InputError, StoreBusy, suggest
from rlrec.policy import slate
from rlrec.records import Head, Version
from rlrec.store import Store, Unit, arms, contents, decisions, settings
from rlrec.store.experiments import Experiment, Variant
from rlrec.store.unit import Row

Answer = dict[str, Any]
TRIES = 5


@dataclass(frozen=True, kw_only=True)
class Request:
    """One page to fill. `number` is its line in the input, for errors."""

    policy: str | None = None
    experiment: str | None = None
    session: str
    user: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    size: int = 1
    arms: Sequence[str] | None = None
    request_id: str | None = None
    number: int | None = None

    def digest(self) -> bytes:
        """What was asked, for retries: arms as a set."""
        wanted = None if self.arms is None else sorted(set(self.arms))
        asked = [self.policy, self.experiment, self.session, self.user, self.context, self.size, wanted]
        return canonical.named(asked)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a request will be drawn from."""

    request: Request
    version: Version
    head: Head
    experiment: Experiment | None
    variant: Variant | None
    eligible: tuple[int, ...]
    context: str
    revision: int
    case: Case
    group: tuple[int, tuple[int, ...], str, int]  # requests that share one distribution and length


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
        plans = _plan(store, requests)
        try:
            return _dry(store, plans, bits) if dry_run else _store(store, plans, bits)
        except _Stale:
            continue
    raise StoreBusy("other writers keep using the same request ids", hint="a retry is safe")


# -- what to draw from: one snapshot --


class _Duplicate:
    """The request was answered before (or by an earlier line of the group): the stored decision, or that line."""

    def __init__(self, *, decision_id: int | None = None, place: int | None = None, line: int | None = None) -> None:
        self.decision_id = decision_id
        self.place = place
        self.line = line


Planned = Plan | InputError | _Duplicate


class _Snapshot:
    """What the requests of a group need of the store, read once."""

    def __init__(self, unit: Unit, requests: Sequence[Request]) -> None:
        self.unit = unit
        self.settings = settings.get(unit)
        self.experiments = assigning.Assigner(unit, requests)
        names = {request.policy for request in requests if request.policy is not None}
        self.versions = naming.resolve(unit, names | self.experiments.policies())
        self.catalogue = self._catalogue()
        named = {key for request in requests for key in request.arms or ()}
        self.ids = arms.ids(unit, named)
        self.keys = arms.keys(unit, self.catalogue)
        self._active = set(self.catalogue)
        self._sets: dict[tuple[int, ...], Ids] = {}
        self._servings: dict[int, Serving] = {}

    def _catalogue(self) -> tuple[int, ...]:
        known = self.settings.catalogue_id
        if known is not None:
            return contents.eligible_arms(self.unit, [known])[known]
        return tuple(arms.active(self.unit))

    def eligible(self, request: Request) -> tuple[int, ...]:
        if request.arms is None:
            found = self.catalogue
        else:
            unknown = next((key for key in request.arms if key not in self.ids), None)
            if unknown is not None:
                known = [arm.key for arm in arms.every(self.unit)]
                raise InputError(
                    f"unknown arm {unknown!r}",
                    hint=suggest(unknown, known) or "`rlrec arm list` shows them",
                    field="arms",
                )
            found = tuple(sorted({self.ids[key] for key in request.arms} & self._active))
        if not found:
            raise InputError("no arm is eligible", hint="add arms with `rlrec arm add`, or restore some", field="arms")
        if request.size > len(found):
            raise InputError(f"k is {request.size}, but only {len(found)} arms are eligible", field="k")
        return found

    def array(self, eligible: tuple[int, ...]) -> Ids:
        if eligible not in self._sets:
            self._sets[eligible] = np.array(eligible, np.int64)
        return self._sets[eligible]

    def serving(self, version: Version) -> Serving:
        if version.id not in self._servings:
            self._servings[version.id] = serving.load(self.unit, version)
        return self._servings[version.id]


def _plan(store: Store, requests: Sequence[Request | InputError]) -> list[Planned]:
    with store.read() as unit:
        asked = [request for request in requests if isinstance(request, Request)]
        snapshot = _Snapshot(unit, asked)
        known = decisions.requests(unit, {request.request_id for request in asked if request.request_id is not None})
        first: dict[str, tuple[bytes, int]] = {}
        planned: list[Planned] = []
        for place, request in enumerate(requests):
            planned.append(request if isinstance(request, InputError) else _one(snapshot, request, known, first, place))
        return planned


def _one(
    snapshot: _Snapshot,
    request: Request,
    known: Mapping[str, tuple[bytes | None, int]],
    first: dict[str, tuple[bytes, int]],
    place: int,
) -> Planned:
    try:
        if request.request_id is not None:
            digest = request.digest()
            if request.request_id in known:
                return _Duplicate(decision_id=_same(request.request_id, digest, known[request.request_id]))
            if request.request_id in first:
                before = _same(request.request_id, digest, first[request.request_id])
                return _Duplicate(place=before, line=request.number)
        plan = _drawable(snapshot, request)
        if request.request_id is not None:
            first[request.request_id] = digest, place
        return plan
    except InputError as error:
        error.line = request.number
        return error


def _same(key: str, digest: bytes, known: tuple[bytes | None, int]) -> int:
    if known[0] is not None and bytes(known[0]) != digest:
        raise Conflict(
            f"request id {key!r} is known with other content", hint="a retry repeats the request", field="request_id"
        )
    return known[1]


def _drawable(snapshot: _Snapshot, request: Request) -> Plan:
    if (request.policy is None) == (request.experiment is None):
        raise InputError("name a policy or an experiment, one of them", hint="--policy or --experiment", field="policy")
    experiment, variant, reference = snapshot.experiments.choose(request)
    found = snapshot.versions[reference]
    if isinstance(found, InputError):
        raise found
    version, head = found
    served = snapshot.serving(version)
    if not served.policy.served:
        raise InputError(
            f"policy {version.policy.name!r} is the label of an imported log", hint="recommend from another policy",
            field="policy",
        )  # fmt: skip
    eligible = snapshot.eligible(request)
    case = served.case(eligible, snapshot.array(eligible), request.context, keys=snapshot.keys)
    snapshot.experiments.met(request)
    return Plan(
        request=request,
        version=version,
        head=head,
        experiment=experiment,
        variant=variant,
        eligible=eligible,
        context=canonical.text(dict(request.context)),
        revision=snapshot.settings.catalogue_revision,
        case=case,
        group=(version.id, eligible, served.reading(request.context), request.size),
    )


# -- draw --


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A slate as it is stored: places among the plan's arms, and what the draw's probabilities were."""

    plan: Plan
    decision_id: int
    arms: list[int]
    propensity: list[float]
    marginal: list[float]
    minimum: list[float]
    rounded: list[bool]
    score: list[float | None]

    @property
    def log_propensity(self) -> float:
        total = sum(map(log, self.propensity))
        return 0.0 if total > 0 else total  # a NaN stays one, and no database takes it


def _draw(plans: Mapping[int, Plan], ids: Mapping[int, int], bits: int) -> dict[int, Drawn]:
    """Slates of the plans by place: those that share a distribution are drawn together."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, plan in plans.items():
        groups[plan.group].append(place)
    drawn: dict[int, Drawn] = {}
    for places in groups.values():
        case, size = plans[places[0]].case, plans[places[0]].request.size
        seeds = np.full(len(places), bits, np.uint64)
        numbers = np.array([ids[place] for place in places], np.int64)
        made = slate.draw(case.scores, size=size, floor=case.floor, seeds=seeds, decisions=numbers)
        columns = zip(
            places,
            made.slates.tolist(),
            case.arms[made.slates].tolist(),
            made.propensity.tolist(),
            made.marginal.tolist(),
            made.minimum.tolist(),
            made.rounded.tolist(),
            strict=True,
        )
        for place, chosen, arm_ids, propensity, marginal, minimum, rounded in columns:
            drawn[place] = Drawn(
                plan=plans[place],
                decision_id=ids[place],
                arms=arm_ids,
                propensity=propensity,
                marginal=marginal,
                minimum=minimum,
                rounded=rounded,
                score=[case.score(chosen_one) for chosen_one in chosen],
            )
    return drawn


# -- store --


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
    if found is not None:
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
    drawn = _draw(plans, ids, bits)
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


def signed(bits: int) -> int:
    """64 bits as the signed number that a BIGINT holds."""
    return bits - 2**64 if bits >= 2**63 else bits


def unsigned(stored: int) -> int:
    return stored + 2**64 if stored < 0 else stored


def _dry(store: Store, planned: Sequence[Planned], bits: int) -> list[Answer | InputError]:
    """What would be drawn if nobody else came first; nothing is written."""
    plans = {place: plan for place, plan in enumerate(planned) if isinstance(plan, Plan)}
    with store.read() as unit:
        first = decisions.peek(unit)
        drawn = _draw(plans, {place: first + offset for offset, place in enumerate(plans)}, bits)
        shown = arms.keys(unit, {arm for one in drawn.values() for arm in one.arms})
        outcome: dict[int, Answer | InputError] = {
            place: rendering.dry(one, shown, at=unit.now) for place, one in drawn.items()
        }
    return _answers(store, planned, outcome)


def _answers(
    store: Store, planned: Sequence[Planned], outcome: Mapping[int, Answer | InputError]
) -> list[Answer | InputError]:
    stored = {one.decision_id for one in planned if isinstance(one, _Duplicate) and one.decision_id is not None}
    known: dict[int, Answer] = {}
    if stored:
        with store.read() as unit:
            known = rendering.stored(unit, stored)
    answers: list[Answer | InputError] = []
    for place, one in enumerate(planned):
        if isinstance(one, InputError):
            answers.append(one)
        elif not isinstance(one, _Duplicate):
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


def probability(log_propensity: float | None) -> float | None:
    return None if log_propensity is None else exp(log_propensity)


def context_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found
