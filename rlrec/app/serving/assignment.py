"""Which variant of an experiment a unit belongs to: by salted hash, and for ever once assigned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

from rlrec.app.serving.open_sessions import Guests
from rlrec.app.serving.requests import Plan, Request
from rlrec.errors import InputError, suggest
from rlrec.store import Unit, experiments, sessions
from rlrec.store.experiments import Experiment, Variant


def hashed(experiment: Experiment, unit_key: str) -> Variant:
    """The variant of a unit: shares of a uniform hash in proportion to the weights."""
    share = int.from_bytes(sha256(f"{experiment.salt}/{unit_key}".encode()).digest()[:8]) / 2**64
    total = sum(variant.weight for variant in experiment.variants)
    reached = 0.0
    for variant in experiment.variants:
        reached += variant.weight / total
        if share < reached:
            return variant
    return experiment.variants[-1]


class Assigner:
    """The experiments that a group of requests names, and the units already assigned."""

    def __init__(self, unit: Unit, requests: Sequence[Request]) -> None:
        self.unit = unit
        asked = [request for request in requests if request.experiment is not None]
        names = {request.experiment for request in asked if request.experiment is not None}
        self.experiments = experiments.named(unit, names) if names else {}
        self._met: dict[str, str] = {}
        self._sessions = sessions.find(unit, {request.session for request in asked}) if asked else {}
        self._assigned: dict[str, dict[str, int]] = {
            name: self._known(experiment, [request for request in asked if request.experiment == name])
            for name, experiment in self.experiments.items()
        }

    def _known(self, experiment: Experiment, requests: Sequence[Request]) -> dict[str, int]:
        if experiment.unit == "session":
            ids = {session.key: session.id for session in self._sessions.values()}
        else:
            ids = sessions.known_users(self.unit, {user for user in map(self._user, requests) if user is not None})
        assigned = experiments.assigned(self.unit, experiment, list(ids.values()))
        return {key: assigned[number] for key, number in ids.items() if number in assigned}

    def _user(self, request: Request) -> str | None:
        known = self._sessions.get(request.session)
        return request.user or (known and known.user) or self._met.get(request.session)

    def met(self, request: Request) -> None:
        """The request will be drawn for: its session has its user for the later ones of the group."""
        if request.user is not None:
            self._met.setdefault(request.session, request.user)

    def policies(self) -> set[str]:
        """Names of the policies of all variants."""
        return {variant.policy for experiment in self.experiments.values() for variant in experiment.variants}

    def choose(self, request: Request) -> tuple[Experiment, Variant]:
        """The experiment a request names, and its variant. Raises InputError where there is none."""
        assert request.experiment is not None
        experiment = self.experiments.get(request.experiment)
        if experiment is None:
            known = [experiment.name for experiment in experiments.every(self.unit)]
            raise InputError(
                f"unknown experiment {request.experiment!r}",
                hint=suggest(request.experiment, known) or "`rlrec experiment list` shows them",
                field="experiment",
            )
        running(experiment)
        key = request.session if experiment.unit == "session" else self._user(request)
        if key is None:
            raise InputError(
                f"experiment {experiment.name} assigns by user, and the request has none",
                hint="give --user, or start an experiment with --unit session",
                field="user",
            )
        known_id = self._assigned[experiment.name].get(key)
        variant = next((variant for variant in experiment.variants if variant.id == known_id), None)
        return experiment, variant or hashed(experiment, key)


def running(experiment: Experiment) -> None:
    if experiment.status != "running":
        raise InputError(
            f"experiment {experiment.name} is stopped", hint="start another one, or recommend from a policy",
            field="experiment",
        )  # fmt: skip


def refused(unit: Unit, plans: Mapping[int, Plan]) -> dict[int, InputError]:
    """Requests whose experiment was stopped since it was read."""
    lanes = {plan.lane for plan in plans.values()}
    names = {lane.experiment.name for lane in lanes if lane.experiment is not None}
    if not names:
        return {}
    now = experiments.named(unit, names, lock=True)
    stopped: dict[int, InputError] = {}
    for place, plan in plans.items():
        try:
            if plan.lane.experiment is not None:
                running(now[plan.lane.experiment.name])
        except InputError as error:
            stopped[place] = error
    return stopped


def remember(unit: Unit, plans: Mapping[int, Plan], guests: Guests) -> None:
    """Store the variant of every unit that was drawn for."""
    rows: dict[int, tuple[Experiment, dict[int, int]]] = {}
    for plan in plans.values():
        experiment, variant = plan.lane.experiment, plan.lane.variant
        if experiment is None or variant is None:
            continue
        session = guests.sessions[plan.request.session]
        number = session.id if experiment.unit == "session" else session.user_id
        if number is not None:
            rows.setdefault(experiment.id, (experiment, {}))[1][number] = variant.id
    for _, (experiment, units) in sorted(rows.items()):
        experiments.assign(unit, experiment, units.items())
