"""This module summarises a store. It reports the size of the store, the state of its policies and routes, what is
waiting, and warnings."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypedDict

from rlrec.app.audit.integrity import clock, live_versions
from rlrec.app.audit.integrity.findings import Findings
from rlrec.app.inputs import filters
from rlrec.errors import quantity
from rlrec.records import Version
from rlrec.sentences import gate_claim
from rlrec.store import Store, Unit
from rlrec.store.database import schema
from rlrec.store.database.unit import StoredRows, parse
from rlrec.store.log import activity, decisions
from rlrec.store.policies import experiments, policies, routes
from rlrec.store.policies.policies import LivePolicy
from rlrec.store.policies.routes import GateLook, RouteChange
from rlrec.times import DAY_US, format_time

if TYPE_CHECKING:
    from rlrec.app.experiments.route import RampState
    from rlrec.app.policies.policy_beliefs import Pacing

HOURS = 24
# decisions in a day that are needed to detect an outage; and newest ones that are read for it
MIN_SILENT, MAX_RECENT = 200, 5_000
WAITING, DOCTOR = "waiting", "doctor"  # the checks behind the warnings here, beside the one of the clock

# passed: whether a gate tested it and let it pass; None for a rebuilt version, which no gate tested
WaitingVersion = TypedDict("WaitingVersion", {
    "version": str, "since": str, "answer": str | None, "passed": bool | None, "rolled_back_at": str | None,
})  # fmt: skip
# live: number of the live version; versions: their number; decisions: imported ones included; decisions_24h: served;
# answer: of the newest gate test of the live version, None without one; waiting: the newest version, its time and its
# answer, where it was trained or rebuilt and is not live; budget: where it stands, None without one
PolicyStatus = TypedDict("PolicyStatus", {
    "policy": str, "kind": str, "live": int, "versions": int, "decisions": int, "decisions_24h": int,
    "last_at": str | None, "live_since": str, "reward": str, "answer": str | None,
    "waiting": WaitingVersion | None, "budget": "Pacing | None",
})  # fmt: skip
# live: whether the version is the policy's live one, which the route follows; experiment: the running ramp; ramp: its
# state
RouteStatus = TypedDict("RouteStatus", {
    "route": str, "policy": str, "version": int, "live": bool, "experiment": str | None, "since": str,
    "decisions_24h": int, "ramp": "RampState | None",
})  # fmt: skip
ExperimentStatus = TypedDict("ExperimentStatus", {
    "experiment": str, "unit": str, "units": int, "variants": list[str], "created_at": str,
})  # fmt: skip
# The last result on the users whom a route keeps apart, or on a ramp, and its time; None before `experiment show` or
# `report` ran.
HoldoutStatus = TypedDict("HoldoutStatus", {"route": str, "experiment": str, "sentence": str | None, "at": str | None})
# immature: decisions whose reward window is open; unsettled: slots that have not entered beliefs which learn settled
# rewards
Waiting = TypedDict("Waiting", {"immature": int, "unsettled": int})


class Status(TypedDict):
    """This record holds the answer of `status`.

    arms: the number of arms that may be served; policies: the policies, except variants of stopped experiments that
    no route serves; experiments: the running experiments; holdouts, ramps: the last result of each running holdout
    and ramp of a route; events_by_hour: the number of events in each of the last 24 hours, with the present hour
    last; warnings: the findings, as in `doctor`; best: the newest answer on the best known policy; training, doctor:
    the newest runs of `train-pg` and `doctor`, or None if the command never ran."""

    revision: str
    arms: int
    users: int
    sessions: int
    decisions: int
    events: int
    policies: list[PolicyStatus]
    routes: list[RouteStatus]
    experiments: list[ExperimentStatus]
    holdouts: list[HoldoutStatus]
    ramps: list[HoldoutStatus]
    best: dict[str, Any] | None
    waiting: Waiting
    events_by_hour: list[int]
    warnings: list[dict[str, Any]]
    training: dict[str, Any] | None
    doctor: dict[str, Any] | None
    at: str


def status(store: Store) -> Status:
    """Return the state of a store, from one snapshot, without reading the whole log."""
    with store.read() as unit:
        stored_policies = policies.all_policies(unit)
        live = StoredRows("policy", policies.live(unit, {policy.name for policy in stored_policies}).items())
        logs = activity.policy_logs(unit)
        sizes = activity.sizes(unit)
        settling_versions = policies.settling(unit)
        window_us = max((policy.version.reward.window_us for policy in live.values()), default=0)
        doctor = _run(activity.last_run(unit, "doctor"))
        findings, day = Findings(), unit.now - DAY_US
        served_counts = {policy.id: activity.count_served_since(unit, policy.id, day) for policy in stored_policies}
        route_counts = activity.route_counts_since(unit, day)
        if store.now is None:
            clock.check(unit, findings=findings)
        live_versions.check(unit, findings=findings)
        for version in settling_versions:
            _check_overdue(unit, version, findings)
        for policy in stored_policies:
            if served_counts[policy.id] >= MIN_SILENT:
                _check_events(unit, live[policy.name].version, findings)
        if doctor is not None and doctor["errors"]:
            errors = quantity(doctor["errors"], "error")
            findings.error(DOCTOR, "store", f"the last audit, at {doctor['at']}, found {errors}")
        running_experiments = [row for row in experiments.all_experiments(unit) if row.status == "running"]
        changes = routes.newest_changes(unit)
        ended_policies = {policy.id for policy in stored_policies if policy.base_id is not None}
        ended_policies -= {variant.policy_id for row in running_experiments for variant in row.variants}
        ended_policies -= {change.policy_id for change in changes}
        shown_policies = [policy for policy in stored_policies if policy.id not in ended_policies]
        sources = {live[policy.name].version.parent_id for policy in shown_policies if policy.base_id is not None}
        times = activity.decision_times(unit, [log.newest for log in logs.values()])
        since, numbers = activity.live_times(unit), policies.version_numbers(unit)
        looks = routes.newest_looks(unit, [version.id for version, _ in live.values()])
        return {
            "revision": schema.HEAD, "arms": sizes.arms, "users": sizes.users, "sessions": sizes.sessions,
            "decisions": sum(log.decisions for log in logs.values()), "events": sizes.events,
            "policies": [
                {
                    "policy": policy.name, "kind": policy.kind, "live": version.number,
                    "versions": len(numbers[policy.id]),
                    "decisions": logs[policy.id].decisions if policy.id in logs else 0,
                    "decisions_24h": served_counts[policy.id], "reward": version.reward.name,
                    "last_at": format_time(times[logs[policy.id].newest]) if policy.id in logs else None,
                    "live_since": format_time(since.get(policy.id, version.created_at)),
                    "answer": _answer(unit, version, looks)[0],
                    "waiting": _waiting_version(unit, version, numbers[policy.id][-1], sources),
                    "budget": _pacing(unit, version) if version.params.get("budget") else None,
                }
                for policy, version in ((policy, live[policy.name].version) for policy in shown_policies)
            ],
            "routes": [_route_status(unit, change, live, route_counts.get(change.route_id, 0)) for change in changes],
            "experiments": [
                {
                    "experiment": row.name, "unit": row.unit,
                    "units": sum(experiments.count_units(unit, row.id).values()),
                    "variants": [variant.label for variant in row.variants], "created_at": format_time(row.created_at),
                }
                for row in running_experiments
            ],
            "best": _run(activity.last_run(unit, activity.BEST_POLICY)),
            "holdouts": [_holdout_status(unit, change.route, change.holdout) for change in changes if change.holdout],
            "ramps": [
                _holdout_status(unit, change.route, change.experiment)
                for change in changes if change.running and change.experiment
            ],
            "waiting": {
                "immature": sum(
                    activity.count_served_since(unit, version.policy.id, unit.now - version.reward.window_us)
                    for version, _ in live.values()
                ),
                "unsettled": sum(
                    decisions.count_slots_after(unit, version.policy.id, version.entered_to or 0)
                    for version in settling_versions
                ),
            },
            "events_by_hour": activity.events_by_hour(unit, hours=HOURS, window_us=window_us),
            "warnings": [asdict(finding) for finding in findings.in_order()],
            "training": _run(activity.last_run(unit, "train-pg")), "doctor": doctor, "at": format_time(unit.now),
        }  # fmt: skip


def _answer(unit: Unit, version: Version, looks: Mapping[int, GateLook]) -> tuple[str | None, bool]:
    """Return the sentence on the newest gate test of a version, or None if no gate tested it, and whether the version
    passed. A test by the gate of a route takes precedence over the test at the end of training.

    looks: the newest test by the gate of a route, by the id of the version."""
    look = looks.get(version.id)
    if look is not None:
        gate: Mapping[str, Any] = parse(look.report, f"look {look.id} of the gate of a route")
    else:
        gate = ((policies.report(unit, version.id) if version.parameters else None) or {}).get("gate") or {}
    if not gate.get("candidate"):
        return None, False
    return gate_claim(gate, version.reference).sentence, gate["passed"]


def _route_status(unit: Unit, change: RouteChange, live: dict[str, LivePolicy], n_decisions: int) -> RouteStatus:
    ramp = None
    if change.running:
        from rlrec.app.experiments.route import ramp_state  # few stores have a ramp

        ramp = ramp_state(unit, change)
    return {
        "route": change.route, "policy": live[change.policy].version.policy.name,
        "version": live[change.policy].version.number if change.number is None else change.number,
        "live": change.number is None,
        "experiment": change.experiment if change.running else None, "since": format_time(change.at),
        "decisions_24h": n_decisions, "ramp": ramp,
    }  # fmt: skip


def _waiting_version(unit: Unit, live: Version, number: int, sources: Container[int | None]) -> WaitingVersion | None:
    """Return the newest version of a policy if it was trained or rebuilt and is not live yet, else None.

    live: the live version of the policy; number: the number of the newest version; sources: the ids of versions that
    do not wait, because experiments serve copies of them."""
    version = live_versions.waiting_version(unit, live) if number > live.number else None
    if version is None or version.id in sources:
        return None
    answer, has_passed = _answer(unit, version, routes.newest_looks(unit, [version.id]))
    if version.policy.kind == "gradient":
        answer = answer or f"{version.reference}: no gate has looked at it"
    promotions = [row for row in policies.promotions(unit, version.policy.id) if row.version_id == version.id]
    rolled_back_at = promotions[-1].rolled_back_at if promotions else None
    return {
        "version": version.reference, "since": format_time(version.created_at), "answer": answer,
        "passed": None if answer is None else has_passed,
        "rolled_back_at": None if rolled_back_at is None else format_time(rolled_back_at),
    }  # fmt: skip


def _holdout_status(unit: Unit, route: str, experiment: str) -> HoldoutStatus:
    run = activity.last_run(unit, activity.HOLDOUT, {"experiment": experiment})
    sentence, at = (run.result["sentence"], format_time(run.at)) if run else (None, None)
    return {"route": route, "experiment": experiment, "sentence": sentence, "at": at}


def _check_overdue(unit: Unit, version: Version, findings: Findings) -> None:
    """Add a warning if slots should have entered the version's belief, since their reward window is over, but have
    not."""
    first_id, drawn_before = (version.entered_to or 0) + 1, unit.now - version.reward.window_us
    if ids := decisions.find_overdue(unit, version.policy.id, first=first_id, drawn_before=drawn_before, slots=1):
        since = format_time(activity.decision_times(unit, ids)[ids[0]])
        detail = f"version {version.number}: slots since {since} wait to enter the belief; run `rlrec settle`"
        findings.warning(WAITING, f"policy {version.policy.name}", detail)


def _check_events(unit: Unit, version: Version, findings: Findings) -> None:
    """Add a finding if events stopped coming, or if the version learns nothing from those that come. Only the newest
    decisions of the version's policy are read, without excluded decisions."""
    from rlrec.app.audit.integrity.overdue import Outage  # loads numpy
    from rlrec.app.audit.integrity.uncounted import UncountedEvents
    from rlrec.store.upkeep import audit

    watchers = Outage(version, now=unit.now), UncountedEvents(unit, version)
    first_id = decisions.newest_id(unit, version.policy.id, MAX_RECENT)
    for batch in audit.ranges(unit, version.policy.id, first=first_id, tests=filters.unexcluded_tests(unit)):
        for watcher in watchers:
            watcher.take(batch)
    for watcher in watchers:
        watcher.finish(findings)


def _pacing(unit: Unit, version: Version) -> Pacing:
    from rlrec.app.policies.policy_beliefs import pacing  # with all that a belief needs

    return pacing(unit, version)


def _run(run: activity.Run | None) -> dict[str, Any] | None:
    return None if run is None else {"at": format_time(run.at), **run.options, **run.result}
