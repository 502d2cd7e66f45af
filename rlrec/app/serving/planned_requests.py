"""What each request of a group will be drawn from: read from the store in one snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from rlrec.app.inputs import lookup
from rlrec.app.serving import assignment
from rlrec.app.serving.cache import Eligible, Warm
from rlrec.app.serving.requests import Desk, Duplicate, Lane, Plan, Planned, Request, digest
from rlrec.errors import Conflict, InputError, suggest
from rlrec.store import Unit, arms, decisions, settings
from rlrec.store.experiments import Experiment, Variant

LONGEST = 500  # positions of a page: exact probabilities of all of them cost more than their square


def plan(unit: Unit, requests: Sequence[Request | InputError], warm: Warm) -> list[Planned]:
    """A plan for each request, or what is wrong with it."""
    asked = [request for request in requests if not isinstance(request, InputError)]
    group = _Group(unit, asked, warm)
    return [
        request if isinstance(request, InputError) else group.plan(request, place)
        for place, request in enumerate(requests)
    ]


class _Group:
    """The requests of a group before one snapshot of the store."""

    def __init__(self, unit: Unit, requests: Sequence[Request], warm: Warm) -> None:
        self.unit, self.requests, self.warm = unit, requests, warm
        self.settings = settings.get(unit)
        self.experiments = assignment.Assigner(unit, requests)
        names = {request.policy for request in requests if request.policy is not None}
        self.versions = lookup.resolve(unit, names | self.experiments.policies())
        self.catalogue = warm.catalogue(unit, self.settings)
        self.ids = arms.ids(unit, {key for request in requests for key in request.arms or ()})
        keys = {request.request_id for request in requests if request.request_id is not None}
        self.known = decisions.requests(unit, keys)
        self._first: dict[str, tuple[bytes, int]] = {}
        self._lanes: dict[tuple[Any, ...], Lane] = {}
        self._desks: dict[tuple[str, int | None], Desk] = {}
        self._active: frozenset[int] = frozenset(self.catalogue if self.ids else ())
        self._looked = False

    def plan(self, request: Request, place: int) -> Planned:
        key = request.request_id
        try:
            if key is None:
                return Plan(request, self._lane(request), self.warm.text(request.context), None)
            meant = digest(request)
            if key in self.known:
                return Duplicate(_same(key, meant, self.known[key]), None)
            if key in self._first:
                return Duplicate(None, _same(key, meant, self._first[key]))
            made = Plan(request, self._lane(request), self.warm.text(request.context), meant)
            self._first[key] = meant, place
            return made
        except InputError as error:
            return error

    def _lane(self, request: Request) -> Lane:
        """What a request is drawn from, once for all that share it. Raises InputError where it cannot be drawn."""
        variant = self._choose(request) if request.experiment is not None else None
        policy, wanted, size = request.policy, None if request.arms is None else tuple(request.arms), request.size
        name: tuple[Any, ...] = (policy, variant and variant[1].id, wanted, size)
        found = self._lanes.get(name)
        if found is None or found.case.reads:
            desk = self._desk(request, variant)
            desk[2].check(request.context)
            name = (*name, desk[2].reading(request.context))
            found = self._lanes.get(name) or self._made(request, desk)
            self._lanes[name] = self._lanes[name[:4]] = found
        if variant is not None:
            self.experiments.met(request)
        return found

    def _choose(self, request: Request) -> tuple[Experiment, Variant]:
        if request.policy is not None:
            raise _unnamed()
        return self.experiments.choose(request)

    def _desk(self, request: Request, chosen: tuple[Experiment, Variant] | None) -> Desk:
        """The version that a request is drawn from, as it stands."""
        reference = request.policy if chosen is None else chosen[1].policy
        if reference is None:
            raise _unnamed()
        name = reference, chosen and chosen[1].id
        if name not in self._desks:
            found = self.versions[reference]
            if isinstance(found, InputError):
                raise copy(found)
            version, head = found
            served = self.warm.serving(self.unit, version, head)
            whose = request.policy, request.experiment
            served.see(one.context for one in self.requests if (one.policy, one.experiment) == whose)
            if not served.policy.served:
                raise InputError(
                    f"policy {version.policy.name!r} is the label of an imported log",
                    hint="recommend from another policy", field="policy",
                )  # fmt: skip
            self._desks[name] = version, head, served, *(chosen or (None, None))
        return self._desks[name]

    def _made(self, request: Request, desk: Desk) -> Lane:
        version, head, served, experiment, variant = desk
        eligible = self._eligible(request)
        keys, revision = self.warm.know(self.unit, eligible), self.settings.catalogue_revision
        arms = self.warm.array(eligible)
        return Lane(
            version=version,
            head=head,
            experiment=experiment,
            variant=variant,
            eligible=eligible,
            revision=revision,
            case=served.case(eligible, arms, request.context, keys=keys, revision=revision),
            size=request.size,
            trained=served.trained,
        )

    def _eligible(self, request: Request) -> Eligible:
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


def _unnamed() -> InputError:
    return InputError("name a policy or an experiment, one of them", hint="--policy or --experiment", field="policy")


def _same(key: str, digest: bytes, known: tuple[bytes | None, int]) -> int:
    if known[0] is not None and bytes(known[0]) != digest:
        raise Conflict(
            f"request id {key!r} is known with other content", hint="a retry repeats the request", field="request_id"
        )
    return known[1]
