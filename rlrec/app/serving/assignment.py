"""This module finds the variant of an experiment that a user or session gets. At first, a salted hash of the key
chooses the variant. The user or session keeps it until a phase of the experiment moves users to other variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from rlrec.app.inputs import lookup
from rlrec.app.serving.open_sessions import OpenSessions
from rlrec.app.serving.requests import Outdated, PlannedRequest, Request
from rlrec.errors import InputError
from rlrec.store import Unit
from rlrec.store.database.unit import parse
from rlrec.store.log import sessions
from rlrec.store.policies import experiments
from rlrec.store.policies.experiments import Experiment, Variant
from rlrec.store.policies.routes import RouteChange

UnitKey = tuple[str, str]  # a unit that experiments assign: `user` or `session`, and its key


def _uniform(salt: str, unit_key: str) -> float:
    return int.from_bytes(sha256(f"{salt}/{unit_key}".encode()).digest()[:8]) / 2**64


def is_in_layer(experiment: Experiment, unit_key: str) -> bool:
    """Tell whether an experiment may take a user or session. The experiments of a layer share no users, and each has a
    part of the range of the hash. The result is True if the experiment has no layer. unit_key: the key of the user or
    session."""
    if experiment.parts is None:
        return True
    layer = parse(experiment.parts, f"parts of experiment {experiment.name}")
    uniform = _uniform(layer["salt"], unit_key)
    return any(low <= uniform < high for low, high in layer["intervals"])


def hash_variant(experiment: Experiment, unit_key: str, weights: Mapping[str, float] | None = None) -> Variant:
    """Return the variant of a user or session. A hash of the key chooses it, in proportion to the weights. unit_key:
    the key; weights: the weight of each variant, by label, None for the weights of the newest phase."""
    uniform = _uniform(experiment.salt, unit_key)
    weights = weights or {variant.label: variant.weight for variant in experiment.variants}
    total_weight, upper_bound = sum(weights.values()), 0.0
    for variant in experiment.variants:
        upper_bound += weights[variant.label] / total_weight
        if uniform < upper_bound:
            return variant
    return experiment.variants[-1]


class Assignment(NamedTuple):
    """This record has the variants that a request gets. If any of them has a policy that serves, the last of these
    serves the request. variants: each variant with its experiment; by: what was assigned, `user` or `session`;
    fallback: the policy that serves the request if the experiment that it names does not take its user or session."""

    variants: tuple[tuple[Experiment, Variant], ...]
    by: str
    fallback: str | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Return a key that is equal for requests that share a distribution."""
        return (self.by, self.fallback, *(variant.id for _, variant in self.variants))

    @property
    def serving(self) -> tuple[Experiment, Variant] | None:
        """Return the experiment and the variant whose policy serves. Returns None if another policy serves: the
        fallback, or the policy of the route."""
        serving = [(experiment, variant) for experiment, variant in self.variants if variant in experiment.serving]
        return serving[-1] if serving else None


class Assigner:
    """An Assigner assigns the requests of a group to variants. It has read the experiments that the requests name, and
    the variants of the users and sessions that are assigned already."""

    def __init__(
        self, unit: Unit, requests: Sequence[Request], routes: Mapping[str, RouteChange], main_keys: Mapping[str, str]
    ) -> None:
        """Read the experiments of a group of requests. routes: the newest change of each route that requests name, by
        name; main_keys: for each user key that was merged into another one, the main key of the person."""
        self.unit, self._main_keys = unit, main_keys
        self._by_route = {name: route.experiments for name, route in routes.items()}
        to_assign = [request for request in requests if self._experiment_names(request)]
        names = {name for request in to_assign for name in self._experiment_names(request)}
        self._request_names = {request.experiment for request in to_assign if request.experiment is not None}
        self.experiments = experiments.by_name(unit, names, holdouts=True) if names else {}
        self._holdouts = [name for name, row in self.experiments.items() if lookup.is_holdout(row)]
        self._budget = iter(range(lookup.MAX_SUGGESTIONS))
        self._users: dict[str, str] = {}  # by session: the user of earlier requests of the group
        self._sessions = sessions.find(unit, {request.session for request in to_assign}) if to_assign else {}
        # experiment and unit, where another experiment of its layer has the unit
        self._rival_units: set[tuple[str, UnitKey]] = set()
        self._variants = {
            name: self._stored_variants(
                experiment,
                [request for request in to_assign if name in self._holdouts or name in self._experiment_names(request)],
            )
            for name, experiment in self.experiments.items()
        }

    def _experiment_names(self, request: Request) -> tuple[str, ...]:
        """Return the names of the experiments that may take a request. If the request names a route, these are the
        experiments of the route; otherwise it is the experiment that the request names, if any."""
        if request.policy is not None:
            return self._by_route.get(request.policy, ())
        return () if request.experiment is None else (request.experiment,)

    def _stored_variants(self, experiment: Experiment, requests: Sequence[Request]) -> dict[UnitKey, int]:
        """Return the variant that an experiment has assigned already to each user or session of the requests, as an
        id."""
        user_keys = {user for user in map(self._user, requests) if user is not None}
        ids = {
            "session": {session.key: session.id for session in self._sessions.values()},
            "user": sessions.user_ids(self.unit, user_keys) if experiment.unit == "user" else {},
        }
        variant_ids: dict[UnitKey, int] = {}
        for by, unit_ids in ids.items():
            assigned_ids = (
                experiments.assignments(self.unit, experiment.id, by, list(unit_ids.values())) if unit_ids else {}
            )
            variant_ids |= {
                (by, key): assigned_ids[number] for key, number in unit_ids.items() if number in assigned_ids
            }
            if experiment.layer is not None and unit_ids:
                rival_ids = experiments.units_elsewhere(self.unit, experiment, by, list(unit_ids.values()))
                keys = ((by, key) for key, number in unit_ids.items() if number in rival_ids)
                self._rival_units |= {(experiment.name, key) for key in keys}
        return variant_ids

    def _user(self, request: Request) -> str | None:
        session = self._sessions.get(request.session)
        user = request.user and self._main_keys.get(request.user, request.user)
        return user or (session and session.user) or self._users.get(request.session)

    def remember_user(self, request: Request) -> None:
        """Remember the user of a request. Later requests of the same session in this group have the same user."""
        if request.user is not None:
            self._users.setdefault(request.session, self._main_keys.get(request.user, request.user))

    def policies(self) -> set[str]:
        """Return the policies that may serve: those of all variants, and those that serve users whom an experiment does
        not take."""
        variants = {variant.policy for experiment in self.experiments.values() for variant in experiment.serving}
        return variants | {fallback(self.experiments[name]) for name in self._request_names & self.experiments.keys()}

    def choose(self, request: Request) -> Assignment | None:
        """Return the variants that a request gets in its experiments, or None if the request takes part in no
        experiment. A user in the holdout of a route takes part in the experiment of this holdout only. Raises
        InputError if the request names an experiment that cannot serve it."""
        variants: list[tuple[Experiment, Variant]] = []
        by, fallback_policy = "", None
        for name in self._experiment_names(request):
            experiment, variant, by = self._variant(request, name)
            # the holdout of a route has the unit, or will have it once it reaches that route
            if name not in self._holdouts and any(
                self._variant(request, holdout)[1] in self.experiments[holdout].serving for holdout in self._holdouts
            ):
                variant = None
            if variant is not None:
                variants.append((experiment, variant))
            elif request.experiment is not None:
                fallback_policy = fallback(experiment)
            if variant in experiment.serving:
                break
        return Assignment(tuple(variants), by, fallback_policy) if variants or fallback_policy else None

    def _variant(self, request: Request, name: str) -> tuple[Experiment, Variant | None, str]:
        """Return an experiment, the variant of a request in it, and what is assigned, `user` or `session`. The variant
        is None if the experiment does not take the user or session. name: the name of the experiment."""
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
        if (name, unit_key) in self._rival_units:
            return experiment, None, unit_key[0]
        takes_unit = variant is not None or is_in_layer(experiment, unit_key[1])
        may_change = variant is None or experiment.mode == experiments.MOVES
        if experiment.mode != experiments.FROZEN and takes_unit and may_change:
            hashed_variant = hash_variant(experiment, unit_key[1])
            # the larger id, since a ramp gives no unit back
            variant = hashed_variant if variant is None else max(variant, hashed_variant)
        return experiment, variant, unit_key[0]

    def _unit_key(self, request: Request, experiment: Experiment) -> UnitKey:
        """Return what an experiment assigns for a request: the word `user` or `session`, and the key. If an experiment
        of a route assigns users, and the request has no user, it assigns the session. Raises InputError if the request
        names such an experiment itself."""
        user = self._user(request) if experiment.unit == "user" else None
        if user is not None:
            return ("user", user)
        if experiment.unit == "session" or request.experiment != experiment.name:
            return ("session", request.session)
        message = f"experiment {experiment.name} assigns by user, and the request has none"
        raise InputError(message, hint="give --user, or start an experiment with --unit session", field="user")


def fallback(experiment: Experiment) -> str:
    """Return the policy or version that serves users whom an experiment does not take. It is the first policy or
    version that was copied for a variant (`uniform` is no copy), or the first ranker of an interleaved experiment."""
    definition = experiment.declaration
    references = definition.get("interleave") or [source for _, source, _ in definition["variants"]]
    return str(next((source for source in references if source != "uniform"), references[0]))


def _stopped_error(experiment: Experiment) -> InputError | None:
    """If an experiment was stopped, return the error of requests that name it, else None."""
    message, hint = f"experiment {experiment.name} is stopped", "start another one, or recommend from a policy"
    return None if experiment.status == "running" else InputError(message, hint=hint, field="experiment")


def stopped_errors(unit: Unit, plans: Mapping[int, PlannedRequest], *, reread: bool) -> dict[int, InputError]:
    """Return the errors of requests whose experiment was stopped after they were planned, by the index of the request.
    Raises Outdated if a new phase has begun, or if a route led to a stopped experiment, since the route now serves
    something else. reread: whether to read the experiments again, since other transactions may have changed them."""
    distributions = {plan.distribution for plan in plans.values()}
    pairs = [(experiment, distribution) for distribution in distributions for experiment, _ in distribution.variants]
    planned_experiments = {experiment.name: experiment for experiment, _ in pairs}
    stored_experiments = experiments.by_name(unit, {*planned_experiments}, lock=True) if reread else planned_experiments
    if any(
        stored_experiments[name].phase_at != experiment.phase_at for name, experiment in planned_experiments.items()
    ):
        raise Outdated
    # the units belong to that phase
    unit.now = max([unit.now, *(experiment.phase_at for experiment in planned_experiments.values())])
    errors = {name: _stopped_error(now) for name, now in stored_experiments.items()}
    if any(distribution.route and errors[experiment.name] for experiment, distribution in pairs):
        raise Outdated
    by_index = {index: experiment for index, plan in plans.items() if (experiment := plan.distribution.experiment)}
    return {index: error for index, experiment in by_index.items() if (error := errors[experiment.name])}


def store(unit: Unit, plans: Mapping[int, PlannedRequest], open_sessions: OpenSessions, *, verify: bool) -> None:
    """Store the variants of the users and sessions of drawn requests. verify: whether to raise Outdated if the store
    has another variant for a user or session, which can happen if users are merged meanwhile."""
    assignments: dict[tuple[str, str], dict[int, int]] = {}
    ids = {"user": open_sessions.user_id, "session": open_sessions.id}
    by_name = {experiment.name: experiment for plan in plans.values() for experiment, _ in plan.distribution.variants}
    for plan in plans.values():
        by = plan.distribution.by or "session"
        unit_id = ids[by][open_sessions.row[plan.request.session]]
        for experiment, variant in plan.distribution.variants:
            if unit_id is not None:
                assignments.setdefault((experiment.name, by), {})[unit_id] = variant.id
    for (name, by), variants in sorted(assignments.items()):
        experiments.assign(unit, by_name[name], by, variants.items())
        if verify and experiments.assignments(unit, by_name[name].id, by, list(variants)) != variants:
            raise Outdated
