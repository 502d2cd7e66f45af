"""Which variant of an experiment a unit belongs to: by salted hash, and for ever once assigned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from rlrec.app.inputs import lookup
from rlrec.app.serving.open_sessions import OpenSessions
from rlrec.app.serving.requests import Outdated, PlannedRequest, Request
from rlrec.errors import InputError
from rlrec.store import Unit
from rlrec.store.log import sessions
from rlrec.store.policies import experiments
from rlrec.store.policies.experiments import Experiment, Variant
from rlrec.store.policies.routes import RouteChange

UnitKey = tuple[str, str]  # a unit that experiments assign: `user` or `session`, and its key


def hash_variant(experiment: Experiment, unit_key: str) -> Variant:
    """The variant of a unit: a uniform hash of its key, divided in proportion to the weights."""
    uniform = int.from_bytes(sha256(f"{experiment.salt}/{unit_key}".encode()).digest()[:8]) / 2**64
    total = sum(variant.weight for variant in experiment.variants)
    upper = 0.0
    for variant in experiment.variants:
        upper += variant.weight / total
        if uniform < upper:
            return variant
    return experiment.variants[-1]


class Assigned(NamedTuple):
    """The variant of a request. by: the kind of its unit, user or session."""

    experiment: Experiment
    variant: Variant
    by: str

    @property
    def key(self) -> tuple[int, str]:
        """Requests with equal keys share a distribution."""
        return self.variant.id, self.by


class Assigner:
    """The experiments that a group of requests takes part in, and the units already assigned."""

    def __init__(self, unit: Unit, requests: Sequence[Request], routes: Mapping[str, RouteChange]) -> None:
        """routes: what those serve that requests name."""
        self.unit = unit
        self._ramps = {name: route.experiment for name, route in routes.items() if route.running}
        to_assign = [request for request in requests if self._name(request) is not None]
        names = {name for name in map(self._name, to_assign) if name is not None}
        self.experiments = experiments.by_name(unit, names) if names else {}
        self._budget = iter(range(lookup.MAX_SUGGESTIONS))
        self._users: dict[str, str] = {}  # by session, of earlier requests of the group
        self._sessions = sessions.find(unit, {request.session for request in to_assign}) if to_assign else {}
        self._variants = {
            name: self._stored(experiment, [request for request in to_assign if self._name(request) == name])
            for name, experiment in self.experiments.items()
        }

    def _name(self, request: Request) -> str | None:
        """The experiment that a request takes part in: the one that it names, or the ramp of its route."""
        return request.experiment if request.policy is None else self._ramps.get(request.policy)

    def _stored(self, experiment: Experiment, requests: Sequence[Request]) -> dict[UnitKey, int]:
        """The variant id of each unit that is assigned already."""
        users = {user for user in map(self._user, requests) if user is not None}
        ids = {
            "session": {session.key: session.id for session in self._sessions.values()},
            "user": sessions.user_ids(self.unit, users) if experiment.unit == "user" else {},
        }
        stored: dict[UnitKey, int] = {}
        for by, unit_ids in ids.items():
            assigned = experiments.assignments(self.unit, experiment, by, list(unit_ids.values())) if unit_ids else {}
            stored |= {(by, key): assigned[number] for key, number in unit_ids.items() if number in assigned}
        return stored

    def _user(self, request: Request) -> str | None:
        session = self._sessions.get(request.session)
        return request.user or (session and session.user) or self._users.get(request.session)

    def remember_user(self, request: Request) -> None:
        """Note the user of a request that will be drawn: later requests of its session have the same one."""
        if request.user is not None:
            self._users.setdefault(request.session, request.user)

    def policies(self) -> set[str]:
        """Names of the policies of all variants."""
        return {variant.policy for experiment in self.experiments.values() for variant in experiment.variants}

    def choose(self, request: Request) -> Assigned | None:
        """The experiment that a request takes part in, and its variant; None where there is none. Raises InputError
        where the request names one that cannot serve it."""
        name = self._name(request)
        if name is None:
            return None
        experiment = self.experiments.get(name)
        if experiment is None:
            is_first = next(self._budget, None) is not None
            names = [experiment.name for experiment in experiments.all_experiments(self.unit)] if is_first else []
            raise lookup.unknown("experiment", name, names, field="experiment")
        if error := _stopped_error(experiment):
            raise error
        unit_key = self._unit_key(request, experiment)
        variant_id = self._variants[name].get(unit_key)
        variant = next((variant for variant in experiment.variants if variant.id == variant_id), None)
        return Assigned(experiment, variant or hash_variant(experiment, unit_key[1]), unit_key[0])

    def _unit_key(self, request: Request, experiment: Experiment) -> UnitKey:
        """The unit of a request. A route serves everybody: there, sessions without a user are units themselves."""
        user = self._user(request) if experiment.unit == "user" else None
        if user is not None:
            return ("user", user)
        if experiment.unit == "session" or request.experiment is None:
            return ("session", request.session)
        raise InputError(
            f"experiment {experiment.name} assigns by user, and the request has none",
            hint="give --user, or start an experiment with --unit session",
            field="user",
        )


def _stopped_error(experiment: Experiment) -> InputError | None:
    """The error where an experiment was stopped."""
    message, hint = f"experiment {experiment.name} is stopped", "start another one, or recommend from a policy"
    return None if experiment.status == "running" else InputError(message, hint=hint, field="experiment")


def stopped_errors(unit: Unit, planned: Mapping[int, PlannedRequest]) -> dict[int, InputError]:
    """The errors of requests whose experiment was stopped since they were planned, by index. Raises Outdated where a
    route led to it: that route serves something else now."""
    distributions = {plan.shared for plan in planned.values()}
    names = {shared.experiment.name for shared in distributions if shared.experiment is not None}
    if not names:
        return {}
    by_name = {name: _stopped_error(now) for name, now in experiments.by_name(unit, names, lock=True).items()}
    if any(shared.experiment and shared.route and by_name[shared.experiment.name] for shared in distributions):
        raise Outdated
    in_experiments = {index: plan.shared.experiment for index, plan in planned.items() if plan.shared.experiment}
    return {index: error for index, experiment in in_experiments.items() if (error := by_name[experiment.name])}


def store(unit: Unit, planned: Mapping[int, PlannedRequest], opened: OpenSessions) -> None:
    """Store the variant of every unit that was drawn for."""
    assignments: dict[tuple[int, str], dict[int, int]] = {}
    for plan in planned.values():
        experiment, variant = plan.shared.experiment, plan.shared.variant
        if experiment is None or variant is None:
            continue
        session = opened.by_key[plan.request.session]
        by, unit_id = ("user", session.user_id) if plan.shared.by == "user" else ("session", session.id)
        if unit_id is not None:
            assignments.setdefault((experiment.id, by), {})[unit_id] = variant.id
    for (experiment_id, by), variants in sorted(assignments.items()):
        experiments.assign(unit, experiment_id, by, variants.items())
