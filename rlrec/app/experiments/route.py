"""This module manages routes. A route is a name under which callers ask for slates; the policy behind it can change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain, count, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, TypedDict, cast

from rlrec import policy as kinds
from rlrec.app.evaluation.comparisons import declared, holdout
from rlrec.app.experiments import experiment
from rlrec.app.inputs import lookup
from rlrec.app.learning.belief_versions import is_complete
from rlrec.app.policies import versions
from rlrec.errors import CheckFailed, Conflict, InputError, StoreBusy
from rlrec.records import Head, Record, Version
from rlrec.store import Store, Unit
from rlrec.store.database.unit import parse
from rlrec.store.log import decisions, settings
from rlrec.store.policies import experiments, policies, routes
from rlrec.store.policies.routes import GateLook, RouteChange
from rlrec.times import DAY_US, format_duration, format_time

if TYPE_CHECKING:
    from rlrec.app.evaluation.comparisons.paired_gate import GateOptions, GuardReport, RouteGate
    from rlrec.app.serving.shadows import ShadowReport

IF_BETTER, UNIFORM = "if-better", holdout.KIND
CURRENT, CANDIDATE = "current", "candidate"  # variants of a ramp
BLOCKED = "ramp blocked"  # the run that records why somebody must look at a ramp
YEAR_US = 365 * DAY_US
NAME_LENGTH = 52  # of a route, in the name of its ramp, since the name of an experiment has at most 64 characters


class Request(Record):
    """This record holds the options of `route create`, `route set` and `route ramp`.

    to: what the route serves: NAME follows the live version of a policy, NAME@V is pinned to one version, and None
    only begins a holdout; holdout: the share of the users whom another policy serves permanently; steps: the rising
    shares of a ramp that advances by itself; hold_us: how long each step lasts at least; guards: metrics in which
    the candidate must not lose."""

    name: str
    to: str | None = None
    holdout: float | None = None
    holdout_policy: str = UNIFORM
    share: float | None = None  # of the route's users, for a ramp
    gate: GateOptions | None = None  # that must pass; it compares `to` with what the route serves
    steps: Sequence[float] = ()
    hold_us: int = 0
    guards: Sequence[declared.GuardName] = ()
    metrics: Sequence[declared.MetricName] = ()  # that decide a ramp; none: reward per unit

    @property
    def command(self) -> str:
        """Return the name of the route and these options as on the command line."""
        gate_guards = [f"{guard.name}:{_percent(guard.least)}" for guard in self.gate.guards] if self.gate else []
        options = [
            ("to", self.to),
            ("holdout", None if self.holdout is None else _percent(self.holdout)),
            ("holdout-policy", None if self.holdout_policy == UNIFORM else self.holdout_policy),
            ("share", None if self.share is None or self.steps else _percent(self.share)),
            ("steps", ",".join(map(_percent, self.steps)) or None),
            ("hold", format_duration(self.hold_us) if self.steps else None),
            *(("metric", name) for name in self.metrics),
            ("require", IF_BETTER if self.gate else None),
            *(("guard", guard) for guard in (*gate_guards, *self.guards)),
        ]
        return " ".join([self.name, *(f"--{name} {value}" for name, value in options if value is not None)])


def _percent(share: float) -> str:
    return f"{100 * share:.12g}%"


# The state of a route. version: the number that serves now; live: whether it is the policy's live one, which the route
# follows; reference: its name for other commands; experiment: the running ramp, and ramp: its state; repeated: whether
# the gate had run the same test before; holdout: the experiment that keeps some users apart.
RouteSummary = TypedDict("RouteSummary", {
    "route": str, "policy": str, "version": int, "experiment": str | None, "since": str, "live": bool,
    "reference": str, "created": NotRequired[bool], "set": NotRequired[bool], "changed": NotRequired[bool],
    "history": NotRequired[list[dict[str, Any]]], "shadows": NotRequired[list["ShadowReport"]],
    "estimate": NotRequired[float | None], "lower": NotRequired[float | None], "estimator": NotRequired[str],
    "guards": NotRequired[list["GuardReport"]], "gate": NotRequired["RouteGate"], "why": NotRequired[str | None],
    "repeated": NotRequired[bool], "holdout": NotRequired[str], "ramp": NotRequired["RampState | None"],
})  # fmt: skip


# The state of a ramp; share: of the candidate now; next_share, next_at: of the next step; why: in words; steps,
# hold_days, metric, guards: as defined.
RampState = TypedDict("RampState", {
    "share": float, "next_share": float | None, "next_at": str | None, "why": str, "steps": list[float],
    "hold_days": float | None, "metric": list[str], "guards": list[str],
})  # fmt: skip


class Stage(NamedTuple):
    """This record holds the state of a ramp.

    change: the change of the route that began the ramp; ramp: the experiment that splits the users; share: the
    candidate's part of the users; next_share: its part after the next step, None if no step is left; due_at: the
    earliest time of the next step, None if the ramp has no steps; is_due: whether this time has come; awaits_rewards:
    whether this time follows from the windows of the rewards that decide, since these are longer than the step lasts;
    block_reason: why somebody must look at the ramp, as the last `route advance` recorded it, or None."""

    change: RouteChange
    ramp: experiments.Experiment
    share: float
    next_share: float | None
    due_at: int | None
    is_due: bool
    awaits_rewards: bool
    definition: Mapping[str, Any]
    block_reason: str | None

    @property
    def outlook(self) -> str:
        """Return a description of the next step in words."""
        if self.ramp.mode == experiments.FROZEN:
            return "frozen"
        if self.next_share is None or self.due_at is None:
            return f"its last step: `rlrec experiment show {self.ramp.name}` says whether the candidate earns more"
        share, at = f"{100 * self.next_share:.12g} %", format_time(self.due_at)
        if self.is_due:
            command = f"`rlrec route advance {self.change.route}`"
            return f"{share} has been due since {at}: {command} takes the step, or says what it waits for"
        return f"{share} from {at} on{', when the first users have had time for their rewards' * self.awaits_rewards}"

    @property
    def sentence(self) -> str:
        """Return the present share and the next step in words, or the reason why the ramp is blocked."""
        return self.block_reason or f"{self.ramp.name} is at {100 * self.share:.12g} %; {self.outlook}"


def create(store: Store, request: Request) -> RouteSummary:
    """Create a route. Repeating the request changes nothing. Raises Conflict if a route of this name was created with
    other options."""
    command = f"route create {request.command}"
    with store.read() as unit:
        forks, n_removals = _forks_of_holdout(unit, request, str(request.to)), settings.get(unit).removals

    def work(unit: Unit) -> RouteSummary:
        settings.lock_removals(unit, n_removals) if forks else settings.lock(unit)
        stored_route = routes.by_name(unit, [request.name]).get(request.name)
        if stored_route is not None:
            first_change = routes.history(unit, stored_route.route_id)[0]
            if first_change.command != command:
                message = f"route {request.name!r} already exists, and was created by `{first_change.command}`"
                raise Conflict(message, hint=f"`rlrec route set {request.name} --to {request.to}` changes it")
            return {**summary(unit, stored_route), "created": False}
        if policies.by_name(unit, request.name) is not None:
            raise Conflict(f"{request.name!r} is the name of a policy", hint="choose another name")
        version, _ = servable(unit, str(request.to))
        route_id = routes.add(unit, request.name)
        _change(unit, route_id, version, str(request.to), command=command)
        _start_holdout(unit, request, forks)
        return {**summary(unit, routes.by_name(unit, [request.name])[request.name]), "created": True}

    return _with_notice(store, store.write(work, repeatable=True))


def _with_notice(store: Store, answer: RouteSummary) -> RouteSummary:
    """Return the answer as it is. Print a notice if the route follows a policy with a newer version that was rebuilt
    and is not live."""
    with store.read() as unit:
        version, _ = lookup.version(unit, answer["reference"])
        rebuild = policies.versions(unit, [version.policy.id])[-1]
    if answer["live"] and rebuild.number > version.number and "rebuilt_from" in rebuild.learned_from:
        clause = f"route {answer['route']} serves {version.reference}, not {rebuild.reference}, which was rebuilt later"
        store.notice(f"{clause}: `rlrec policy promote {rebuild.reference}` lets that serve")
    return answer


def _forks_of_holdout(unit: Unit, request: Request, reference: str) -> list[experiment.Fork]:
    """Return a list with the state from which the policy of a holdout begins; it is empty if the request has no
    holdout. Raises InputError if the share is impossible, or if the holdout would get what the route serves.

    reference: what the route serves, as POLICY or POLICY@V."""
    if request.holdout is None:
        return []
    holdout.check_share(request.holdout)
    name, is_pinned = request.holdout_policy, lookup.split_reference(request.holdout_policy)[1] is not None
    if name != UNIFORM or policies.by_name(unit, name) is not None:
        version, route_version = servable(unit, name)[0], servable(unit, reference)[0]
        if version.id == route_version.id and not (is_pinned and lookup.split_reference(reference)[1] is None):
            hint = "`--holdout-policy NAME` names another policy, or a version that stays behind, NAME@V"
            raise InputError(f"the holdout would get {reference}, as the route does", hint=hint)
    return [experiment.fork(unit, variant) for variant in _holdout(request, "").variants]


def _holdout(request: Request, name: str) -> experiment.Request:
    """Return the request for an experiment that keeps some users of a route apart. name: the name of the experiment."""
    share, policy = request.holdout or 0.0, request.holdout_policy
    variant = experiment.VariantSpec(label=holdout.LABEL, policy=policy, weight=share)
    return experiment.Request(name=name, variants=[variant], holdout_of=request.name)


def _start_holdout(unit: Unit, request: Request, forks: Sequence[experiment.Fork]) -> None:
    """Start the holdout of a route, which keeps some users apart from now on. forks: the state from which the holdout's
    policy begins, in a list; if it is empty, nothing is started."""
    if not forks:
        return
    name = _free_name(unit, request.name, chain([holdout.LABEL], (f"{holdout.LABEL}-{n}" for n in count(2))))
    experiment_id = experiment.start(unit, _holdout(request, name), forks)
    assert experiment_id is not None  # the settings are locked
    routes.set_holdout(unit, lookup.route(unit, request.name).route_id, experiment_id)


def _free_name(unit: Unit, route: str, suffixes: Iterable[str]) -> str:
    """Return the first unused name for an experiment on a route. suffixes: endings to try after the route's name, in
    order."""
    names = lookup.experiment_names(unit)
    return next(name for suffix in suffixes if (name := f"{route[:NAME_LENGTH]}-{suffix}") not in names)


def set_holdout(store: Store, request: Request) -> RouteSummary:
    """Begin a holdout, which keeps some users of a route apart from now on. Repeating the request changes nothing.
    Raises Conflict if the route has another holdout."""
    with store.read() as unit:
        reference, n_removals = lookup.route(unit, request.name).reference, settings.get(unit).removals
        forks = _forks_of_holdout(unit, request, reference)

    def work(unit: Unit) -> RouteSummary:
        settings.lock_removals(unit, n_removals)
        route = lookup.route(unit, request.name, lock=True)
        _refuse_ramp(route)
        is_new = route.holdout is None
        if is_new:
            _start_holdout(unit, request, forks)
            settings.add_run(unit, f"route set {request.command}", {"holdout": request.holdout})
        else:
            old_holdout = lookup.experiment(unit, str(route.holdout))
            if not _holdout(request, old_holdout.name).defines(old_holdout):
                hint = f"a holdout never changes: `rlrec experiment stop {old_holdout.name}` ends it for good"
                raise Conflict(f"route {route.route} has another holdout, {old_holdout.name}", hint=hint)
        return {**summary(unit, lookup.route(unit, request.name)), "set": True, "changed": is_new}

    return store.write(work)


def servable(unit: Unit, reference: str) -> tuple[Version, Head]:
    """Return a version that a route is to serve, and the head of its policy. Raises InputError if the version cannot be
    served. reference: POLICY or POLICY@V."""
    version, head = lookup.version(unit, reference)
    name = f"version {version.number} of {version.policy.name}"
    if not kinds.load(version.policy.kind).can_serve:
        raise InputError(f"policy {version.policy.name!r} only holds an imported log", hint="name another policy")
    if version.status == "retired":
        raise InputError(f"{name} is retired", hint="choose another version")
    if not is_complete(version):
        raise InputError(f"{name} is a rebuild that has not finished", hint="`rlrec policy rebuild` continues it")
    lookup.refuse_running_variant(unit, version)
    return version, head


def _change(unit: Unit, route_id: int, version: Version, reference: str, *, command: str, **ids: int | None) -> None:
    """Make a route serve a version. If the reference has no number, the route follows the live version of the policy.
    ids: ids of records behind the change, such as `look_id`, which `routes.change` stores."""
    version_id = None if lookup.split_reference(reference)[1] is None else version.id
    routes.change(unit, route_id, policy_id=version.policy.id, version_id=version_id, command=command, **ids)
    settings.add_run(unit, command, {"to": reference})


def set_route(store: Store, request: Request) -> RouteSummary:
    """Change what a route serves or, if the request has a share, begin a ramp. Nothing changes if the route serves the
    requested version already. Raises StoreBusy if somebody else changed the route meanwhile."""
    from rlrec.store.database import bulk

    if request.to is None:
        return set_holdout(store, request)
    to, command = request.to, f"route {'ramp' if request.steps else 'set'} {request.command}"
    with store.read() as unit, bulk.alongside(unit) if request.gate else nullcontext():
        route = lookup.route(unit, request.name)
        _refuse_ramp(route)
        version, _ = servable(unit, to)
        if request.steps and version.id == lookup.version(unit, route.reference)[0].id:
            hint = "`--to` names the policy to compare it with"
            raise InputError(f"route {request.name} serves {to} already", hint=hint)
        looks = routes.looks(unit, route.route_id, since=unit.now - YEAR_US)
        options = request.gate and replace(request.gate, candidate=to, current=route.reference)
        gate, earlier_id = (None, None) if options is None else _look(unit, route, options, looks)
        reward_name = version.reward.name if options is None or options.reward is None else options.reward
        if gate is not None and gate["reward"] != reward_name:
            basis = f"judged by reward {gate['reward']}, which {route.reference} learns"
            store.notice(f"{basis}; --reward {reward_name} judges by what {to} learns")
        ramp = None if request.share is None else _ramp(unit, route, request, to, request.share)
        n_removals = settings.get(unit).removals
        forks = [] if ramp is None else [experiment.fork(unit, variant) for variant in ramp.variants]

    def work(unit: Unit) -> RouteSummary:
        if ramp is not None:
            settings.lock_removals(unit, n_removals)
        state = lookup.route(unit, request.name, lock=True)
        _refuse_ramp(state)
        is_unchanged = state.id == route.id and looks == routes.looks(unit, state.route_id, since=unit.now - YEAR_US)
        if not is_unchanged and (ramp is not None or gate is not None):
            raise StoreBusy(f"route {request.name} was changed meanwhile", hint="look at it, and try again")
        version, _ = servable(unit, to)
        has_passed, look_id = gate is None or gate["passed"], earlier_id
        if gate is not None and earlier_id is None:
            look_id = routes.add_look(
                unit, state.route_id, policy_id=version.policy.id, version_id=version.id, report=gate
            )
        is_changed = has_passed and (ramp is not None or state.reference != to)
        if is_changed and ramp is not None:
            _start(unit, route, ramp, forks, command=command, look_id=look_id)
        elif is_changed:
            _change(unit, state.route_id, version, to, command=command, look_id=look_id)
        new_route = lookup.route(unit, request.name)
        answer: RouteSummary = {**summary(unit, new_route), "set": has_passed, "changed": is_changed}
        if request.steps:
            answer["ramp"] = ramp_state(unit, new_route)
        if gate is not None:
            from rlrec.app.evaluation.comparisons import paired_gate

            answer |= {
                "estimate": gate["estimate"], "lower": gate["lower"], "estimator": gate["estimator"],
                "guards": gate["guards"], "gate": gate, "why": paired_gate.refusal_sentence(gate),
                "repeated": earlier_id is not None,
            }  # fmt: skip
        return answer

    return _with_notice(store, store.write(work))


def _look(unit: Unit, route: RouteChange, options: GateOptions, looks: list[GateLook]) -> tuple[RouteGate, int | None]:
    """Compare a candidate with what a route serves, by the route's gate. Returns the result and None. If the gate made
    the same test on the same rows before, returns the earlier result and its id, since a repeated test spends no error
    probability. Raises InputError if the route serves the candidate already.

    route: the newest change of the route; looks: the tests by the route's gate in the last year."""
    from rlrec.app.evaluation.comparisons import paired_gate

    if route.reference == options.candidate:
        raise InputError(f"route {route.route} serves {route.reference} already: there is nothing to compare it with")
    reports = [parse(look.report, f"look {look.id} of the gate of route {route.route}") for look in looks]
    gate = paired_gate.judge_candidate(unit, options, earlier_tests=reports)
    version, _ = servable(unit, options.candidate)
    for look, report in zip(looks, reports, strict=True):
        if look.version_id == version.id and paired_gate.is_repeated(gate, report):
            return cast("RouteGate", {**gate, **report}), look.id
    return gate, None


def _ramp(unit: Unit, route: RouteChange, request: Request, to: str, share: float) -> experiment.Request:
    """Return the request for an experiment in which a part of a route's users gets another version. to: the reference
    of this version; share: the part of the users."""
    first_number = routes.count_ramps(unit, route.route_id) + 1
    name = _free_name(unit, route.route, (f"ramp-{n}" for n in count(first_number)))
    specs = ((CURRENT, route.reference, 1 - share), (CANDIDATE, to, share))
    variants = []
    for label, reference, weight in specs:
        version, head = lookup.version(unit, reference)
        # a learning version is named by its policy where it is live
        policy = version.policy.name if version.learning and head.live_id == version.id else reference
        variants.append(experiment.VariantSpec(label=label, policy=policy, weight=weight))
    ramp = experiment.Request(name=name, variants=variants, route=route.route, metrics=request.metrics)
    if not request.steps:
        return ramp
    reward = lookup.version(unit, route.reference)[0].reward
    users = declared.expected_size(unit, "user") * request.hold_us / declared.TRAFFIC_US
    return replace(
        ramp, steps=request.steps, hold_us=request.hold_us, guards=request.guards,
        metrics=request.metrics or [declared.MetricName(declared.DEFAULT_METRIC, reward.name)],
        best_n=min(max(declared.LEAST_SIZE, round(users)), declared.MOST_SIZE),  # the users of the first step
    )  # fmt: skip


def _start(
    unit: Unit, route: RouteChange, ramp: experiment.Request, forks: Sequence[experiment.Fork], *, command: str,
    look_id: int | None,
) -> None:  # fmt: skip
    """Start a ramp, which serves the route's users while it runs. forks: the states from which its variants begin;
    look_id: the id of the gate's test that the candidate passed, or None."""
    experiment_id = experiment.start(unit, ramp, forks)
    if experiment_id is None:
        raise StoreBusy(f"experiment {ramp.name} was created meanwhile", hint="a retry is safe")
    routes.change(
        unit, route.route_id, policy_id=route.policy_id, version_id=route.version_id, command=command,
        experiment_id=experiment_id, look_id=look_id,
    )  # fmt: skip
    settings.add_run(unit, command, {"experiment": ramp.name})


def _refuse_ramp(route: RouteChange) -> None:
    if route.running:
        ramp, rollback = route.experiment, f"`rlrec route rollback {route.route}`"
        hint = f"`rlrec experiment stop {ramp} --promote LABEL`, or {rollback}"
        raise InputError(f"route {route.route} has a ramp that runs, {ramp}", hint=hint)


def rollback(store: Store, name: str) -> RouteSummary:
    """Make a route serve again what it served before its newest change that was not rolled back. A promotion that came
    with this change is rolled back too, unless the policy had a later promotion. Raises CheckFailed if there is no such
    change, or if the version that the route served before is retired."""
    return store.write(lambda unit: roll_back(unit, name, command=f"route rollback {name}"))


def roll_back(unit: Unit, name: str, *, command: str, or_live: bool = False) -> RouteSummary:
    """Roll back a route within a transaction, as `rollback` does, and return the state of the route. or_live: if the
    earlier version is retired, whether to serve the live version of its policy."""
    route = lookup.route(unit, name, lock=True)
    policies.lock(unit, [route.policy_id])
    last, changes = policies.last_promotion(unit, route.policy_id), _standing_changes(unit, route)
    for older_change, change in reversed([*pairwise(changes)]):  # skips changes that changed nothing
        is_promotion = last is not None and last.at == change.at and change.command.startswith("experiment stop ")
        if route.running or is_promotion or older_change.reference != route.reference:
            break
    else:
        undo = f"`rlrec policy rollback {route.policy}` undoes a promotion"
        hint = None if last is None or route.number else undo
        raise CheckFailed(f"route {name} has no change to roll back", hint=hint)
    if is_promotion:
        versions.roll_back(unit, route.policy)
    if route.running and route.experiment_id is not None:
        experiments.stop(unit, route.experiment_id)
    reference = older_change.reference
    version, _ = lookup.version(unit, reference)
    if version.status == "retired" and or_live:
        reference = version.policy.name
        version, _ = lookup.version(unit, reference)
    elif version.status == "retired":
        hint = f"`rlrec route set {name} --to POLICY` chooses another"
        raise CheckFailed(f"{older_change.reference}, which {name} served before, is retired", hint=hint)
    _change(unit, route.route_id, version, reference, command=command, restored_id=older_change.id)
    return summary(unit, lookup.route(unit, name))


def _standing_changes(unit: Unit, route: RouteChange) -> list[RouteChange]:
    """Return the changes of a route that were not rolled back, oldest first. A rollback undoes all changes that came
    after the state which it restores."""
    changes: list[RouteChange] = []
    for change in routes.history(unit, route.route_id):
        if change.restored_id is None:
            changes.append(change)
        while changes and change.restored_id not in (None, changes[-1].id):
            changes.pop()
    return changes


def list_routes(store: Store) -> list[RouteSummary]:
    """Return the state of every route, in order of names."""
    with store.read() as unit:
        return [summary(unit, change) for change in routes.newest_changes(unit)]


def show(store: Store, name: str) -> RouteSummary:
    """Return the state of a route and its history, newest change first."""
    from rlrec.app.serving import shadows as serving_shadows

    with store.read() as unit:
        route, last_at = lookup.route(unit, name), decisions.newest_time(unit)
        if last_at is not None and last_at < route.at - DAY_US:
            clock = "times are those of the clock when the route was set"
            store.notice(f"{clock}; the newest decision is of {format_time(last_at)}")
        history = [
            {
                "at": format_time(change.at), "policy": lookup.version(unit, change.policy)[0].policy.name,
                "version": change.number, "experiment": change.experiment, "by": change.command,
                "gate": None if change.gate is None else parse(change.gate, f"the gate of a change of route {name}"),
                "reference": change.reference,
            }
            for change in reversed(routes.history(unit, route.route_id))
        ]  # fmt: skip
        reports = [serving_shadows.report(unit, name, shadow) for shadow in routes.shadows(unit, route.route_id)]
        return {**summary(unit, route), "history": history, "shadows": reports, "ramp": ramp_state(unit, route)}


def summary(unit: Unit, route: RouteChange) -> RouteSummary:
    """Return the state of a route. route: its newest change."""
    version, _ = lookup.version(unit, route.reference)
    state: RouteSummary = {
        "route": route.route, "policy": version.policy.name, "version": version.number,
        "experiment": route.experiment if route.running else None, "since": format_time(route.at),
        "live": route.number is None, "reference": route.reference,
    }  # fmt: skip
    return state if route.holdout is None else {**state, "holdout": route.holdout}


# -- the state of a ramp --


def ramp_state(unit: Unit, change: RouteChange) -> RampState | None:
    """Return the state of a route's ramp in the form of answers, or None if the route has no running ramp. change: the
    newest change of the route."""
    stage = find_stage(unit, change)
    if stage is None:
        return None
    goes_on = stage.ramp.mode != experiments.FROZEN and stage.due_at is not None and stage.block_reason is None
    next_share, due_at = (stage.next_share, stage.due_at) if goes_on else (None, None)
    next_at = None if next_share is None or due_at is None else format_time(due_at)
    hold_us = stage.definition.get(experiment.HOLD)
    hold_days = None if hold_us is None else hold_us / DAY_US
    return {
        "share": stage.share, "next_share": next_share, "next_at": next_at, "why": stage.sentence,
        "steps": [*stage.definition.get(experiment.STEPS, ())], "hold_days": hold_days,
        "metric": [str(declared.MetricName(*row)) for row in stage.definition.get(declared.METRIC, ())],
        "guards": [str(declared.GuardName(*row)) for row in stage.definition.get(declared.GUARDS, ())],
    }  # fmt: skip


def find_stage(unit: Unit, change: RouteChange) -> Stage | None:
    """Return the state of a route's ramp, or None if the route has no running ramp. change: the newest change of the
    route."""
    if not change.running or change.experiment is None:
        return None
    ramp = lookup.experiment(unit, change.experiment)
    definition = ramp.declaration
    share = experiment.shares_of(ramp)[ramp.variants[-1].id]
    steps, hold_us = definition.get(experiment.STEPS, ()), definition.get(experiment.HOLD)
    next_share = next((step for step in steps if step > share + experiment.MIN_ROOM), None)
    due_at = None if hold_us is None else max(ramp.created_at, ramp.phase_at) + hold_us
    names = {row[1] for key in (declared.METRIC, declared.GUARDS) for row in definition.get(key, ())} - {None}
    complete_at = ramp.created_at + max((lookup.reward(unit, name).window_us for name in names), default=0)
    awaits_rewards = due_at is not None and due_at < complete_at
    due_at = complete_at if awaits_rewards else due_at
    block_reason = (settings.state(unit, BLOCKED, {"experiment": ramp.name}) or {}).get("why")
    is_due = due_at is not None and due_at <= unit.now
    return Stage(change, ramp, share, next_share, due_at, is_due, awaits_rewards, definition, block_reason)
