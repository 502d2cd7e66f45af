"""What each request of a group will be drawn from: read from the store in one snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlrec.app import assigning, canonical, naming, serving
from rlrec.app.serving import Case, Ids, Serving
from rlrec.errors import Conflict, InputError, suggest
from rlrec.records import Head, Version
from rlrec.store import Store, Unit, arms, contents, decisions, settings
from rlrec.store.experiments import Experiment, Variant

LONGEST = 500  # positions of a page: exact probabilities of all of them cost more than their square


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


class Duplicate:
    """The request was answered before (or by an earlier line of the group): the stored decision, or that line."""

    def __init__(self, *, decision_id: int | None = None, place: int | None = None, line: int | None = None) -> None:
        self.decision_id = decision_id
        self.place = place
        self.line = line


Planned = Plan | InputError | Duplicate


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
        self._looked = False
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
                raise InputError(f"unknown arm {unknown!r}", hint=self._near(unknown), field="arms")
            found = tuple(sorted({self.ids[key] for key in request.arms} & self._active))
        if not found:
            raise InputError("no arm is eligible", hint="add arms with `rlrec arm add`, or restore some", field="arms")
        if request.size > LONGEST:
            raise InputError(f"k is {request.size}", hint=f"a page has at most {LONGEST} positions", field="k")
        if request.size > len(found):
            raise InputError(f"k is {request.size}, but only {len(found)} arms are eligible", field="k")
        return found

    def _near(self, unknown: str) -> str:
        """A hint; near names are looked for once a group, not for each of its bad lines."""
        near = None
        if not self._looked:
            self._looked = True
            near = suggest(unknown, [arm.key for arm in arms.every(self.unit)])
        return near or "`rlrec arm list` shows them"

    def array(self, eligible: tuple[int, ...]) -> Ids:
        if eligible not in self._sets:
            self._sets[eligible] = np.array(eligible, np.int64)
        return self._sets[eligible]

    def serving(self, version: Version) -> Serving:
        if version.id not in self._servings:
            self._servings[version.id] = serving.load(self.unit, version)
        return self._servings[version.id]


def plan(store: Store, requests: Sequence[Request | InputError]) -> list[Planned]:
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
                return Duplicate(decision_id=_same(request.request_id, digest, known[request.request_id]))
            if request.request_id in first:
                before = _same(request.request_id, digest, first[request.request_id])
                return Duplicate(place=before, line=request.number)
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
