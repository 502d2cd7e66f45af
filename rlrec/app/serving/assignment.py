"""Which variant of an experiment a unit belongs to: by salted hash, and for ever once assigned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

from rlrec.app.inputs import lookup
from rlrec.app.serving.open_sessions import OpenSessions
from rlrec.app.serving.requests import PlannedRequest, Request
from rlrec.errors import InputError
from rlrec.store import Unit, experiments, sessions
from rlrec.store.experiments import Experiment, Variant


def hashed(experiment: Experiment, unit_key: str) -> Variant:
    """The variant of a unit: a uniform hash of its key, divided in proportion to the weights."""
    uniform = int.from_bytes(sha256(f"{experiment.salt}/{unit_key}".encode()).digest()[:8]) / 2**64
    total = sum(variant.weight for variant in experiment.variants)
    upper = 0.0
    for variant in experiment.variants:
        upper += variant.weight / total
        if uniform < upper:
            return variant
    return experiment.variants[-1]


class Assigner:
    """The experiments that a group of requests names, and the units already assigned."""

    def __init__(self, unit: Unit, requests: Sequence[Request]) -> None:
        self.unit = unit
        to_assign = [request for request in requests if request.experiment is not None]
        names = {request.experiment for request in to_assign if request.experiment is not None}
        self.experiments = experiments.by_name(unit, names) if names else {}
        self._users: dict[str, str] = {}  # by session, of earlier requests of the group
        self._sessions = sessions.find(unit, {request.session for request in to_assign}) if to_assign else {}
        self._variants: dict[str, dict[str, int]] = {
            name: self._stored(experiment, [request for request in to_assign if request.experiment == name])
            for name, experiment in self.experiments.items()
        }

    def _stored(self, experiment: Experiment, requests: Sequence[Request]) -> dict[str, int]:
        """The variant id of each unit that is assigned already, by its key."""
        if experiment.unit == "session":
            ids = {session.key: session.id for session in self._sessions.values()}
        else:
            ids = sessions.user_ids(self.unit, {user for user in map(self._user, requests) if user is not None})
        assigned = experiments.assignments(self.unit, experiment, list(ids.values()))
        return {key: assigned[unit_id] for key, unit_id in ids.items() if unit_id in assigned}

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

    def choose(self, request: Request) -> tuple[Experiment, Variant]:
        """The experiment that a request names, and its variant. Raises InputError where there is none."""
        assert request.experiment is not None
        experiment = self.experiments.get(request.experiment)
        if experiment is None:
            names = [experiment.name for experiment in experiments.every(self.unit)]
            raise lookup.unknown("experiment", request.experiment, names, field="experiment")
        if error := _stopped_error(experiment):
            raise error
        key = request.session if experiment.unit == "session" else self._user(request)
        if key is None:
            raise InputError(
                f"experiment {experiment.name} assigns by user, and the request has none",
                hint="give --user, or start an experiment with --unit session",
                field="user",
            )
        variant_id = self._variants[experiment.name].get(key)
        variant = next((variant for variant in experiment.variants if variant.id == variant_id), None)
        return experiment, variant or hashed(experiment, key)


def _stopped_error(experiment: Experiment) -> InputError | None:
    """The error where an experiment was stopped."""
    message, hint = f"experiment {experiment.name} is stopped", "start another one, or recommend from a policy"
    return None if experiment.status == "running" else InputError(message, hint=hint, field="experiment")


def stopped(unit: Unit, planned: Mapping[int, PlannedRequest]) -> dict[int, InputError]:
    """The errors of requests whose experiment was stopped since they were planned, by index."""
    distributions = {plan.shared for plan in planned.values()}
    names = {shared.experiment.name for shared in distributions if shared.experiment is not None}
    if not names:
        return {}
    by_name = {name: _stopped_error(now) for name, now in experiments.by_name(unit, names, lock=True).items()}
    in_experiments = {index: plan.shared.experiment for index, plan in planned.items() if plan.shared.experiment}
    return {index: error for index, experiment in in_experiments.items() if (error := by_name[experiment.name])}


def store(unit: Unit, planned: Mapping[int, PlannedRequest], opened: OpenSessions) -> None:
    """Store the variant of every unit that was drawn for."""
    assignments: dict[int, tuple[Experiment, dict[int, int]]] = {}
    for plan in planned.values():
        experiment, variant = plan.shared.experiment, plan.shared.variant
        if experiment is None or variant is None:
            continue
        session = opened.by_key[plan.request.session]
        unit_id = session.id if experiment.unit == "session" else session.user_id
        if unit_id is not None:
            assignments.setdefault(experiment.id, (experiment, {}))[1][unit_id] = variant.id
    for _, (experiment, variants) in sorted(assignments.items()):
        experiments.assign(unit, experiment, variants.items())
