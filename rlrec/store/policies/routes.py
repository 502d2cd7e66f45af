"""Queries here store routes: what a route serves and has served, the reports of its gates, and the decisions that were
requested through it. Other queries store shadows. A shadow is a challenger of what a route serves: for each slate that
was shown, the probability with which the challenger would have shown this slate is stored."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from rlrec.store.database.unit import Row, Unit, to_text


class RouteChange(NamedTuple):
    """This record is a change of what a route serves.

    number: the number of the version that is served, or None if the route follows the policy's live version;
    experiment: the name of the ramp (a gradual switch to a new version) that the change began, if any; running:
    whether this ramp still runs; gate: JSON of the report of the gate that allowed the change; holdout: the
    experiment that now holds out some users of the route; has_shadow: whether a challenger of the route runs now."""

    route: str
    route_id: int
    id: int
    at: int
    policy: str
    number: int | None
    experiment: str | None
    running: bool
    command: str
    gate: str | None
    restored_id: int | None
    policy_id: int
    version_id: int | None
    experiment_id: int | None
    holdout: str | None
    has_shadow: bool

    @property
    def reference(self) -> str:
        """Return the policy or version that is served, in the form that commands take."""
        return self.policy if self.number is None else f"{self.policy}@{self.number}"

    @property
    def experiments(self) -> tuple[str, ...]:
        """Return the names of the experiments in which users of the route take part: the holdout and, for users who are
        not held out, the running ramp."""
        return tuple(filter(None, (self.holdout, self.experiment if self.running else None)))


_CHANGES = (
    "SELECT route.name, route.id, c.id, c.at, policy.name, version.number, experiment.name,"
    " experiment.status = 'running', c.command, gate_look.report, c.restored_id, c.policy_id, c.version_id,"
    " c.experiment_id, h.name, EXISTS (SELECT 1 FROM shadow s WHERE s.route_id = route.id AND s.stopped_at IS NULL)"
    " FROM route JOIN route_change c ON c.route_id = route.id"
    " JOIN policy ON policy.id = c.policy_id"
    " LEFT JOIN version ON version.id = c.version_id LEFT JOIN experiment ON experiment.id = c.experiment_id"
    " LEFT JOIN gate_look ON gate_look.id = c.look_id"
    " LEFT JOIN experiment h ON h.id = route.holdout_id AND h.status = 'running'"
)
_NEWEST = "c.id = (SELECT max(id) FROM route_change WHERE route_id = route.id)"


def by_name(unit: Unit, names: Collection[str]) -> dict[str, RouteChange]:
    """Return the newest change of each of these routes, by route name. Names without a route are left out."""
    changes = unit.records(RouteChange, f"{_CHANGES} WHERE route.name IN (?*) AND {_NEWEST}", names)
    return {change.route: change for change in changes}


def newest_changes(unit: Unit) -> list[RouteChange]:
    """Return the newest change of each route, in order of name."""
    return unit.records(RouteChange, f"{_CHANGES} WHERE {_NEWEST} ORDER BY route.name")


def history(unit: Unit, route_id: int) -> list[RouteChange]:
    """Return all changes of a route, oldest first."""
    return unit.records(RouteChange, f"{_CHANGES} WHERE route.id = ? ORDER BY c.id", route_id)


def commands(unit: Unit) -> dict[int, str]:
    """Return the commands that changed what routes serve, by the time of the change."""
    return dict(unit.ask("SELECT at, command FROM route_change"))


def lock(unit: Unit, name: str) -> RouteChange | None:
    """Lock a route until the transaction ends, and return the newest change of the route, or None if there is no such
    route."""
    lock_clause = " FOR NO KEY UPDATE" if unit.postgres else ""
    unit.ask(f"SELECT id FROM route WHERE name = ?{lock_clause}", name)
    return by_name(unit, [name]).get(name)


def add(unit: Unit, name: str) -> int:
    return unit.add("route", name=name, created_at=unit.now)


def set_holdout(unit: Unit, route_id: int, experiment_id: int) -> None:
    unit.tell("UPDATE route SET holdout_id = ? WHERE id = ?", experiment_id, route_id)


def change(
    unit: Unit, route_id: int, *, policy_id: int, version_id: int | None, command: str,
    experiment_id: int | None = None, look_id: int | None = None, restored_id: int | None = None,
) -> None:  # fmt: skip
    """Store a change of what a route serves. The change holds from now on.

    version_id: the version that is served, or None to follow the policy's live version; experiment_id: the ramp (a
    gradual switch to a new version) that begins; look_id: the report of the gate that allowed the change;
    restored_id: the earlier change that is restored."""
    unit.add(
        "route_change", route_id=route_id, at=unit.now, policy_id=policy_id, version_id=version_id,
        experiment_id=experiment_id, command=command, look_id=look_id, restored_id=restored_id,
    )  # fmt: skip


def count_ramps(unit: Unit, route_id: int) -> int:
    query = "SELECT count(*) FROM route_change WHERE route_id = ? AND experiment_id IS NOT NULL"
    return int(unit.ask_value(query, route_id))


def add_look(unit: Unit, route_id: int, *, policy_id: int, version_id: int, report: Mapping[str, Any]) -> int:
    """Store the report of a gate about a version, and return the id of the report."""
    return unit.add(
        "gate_look", route_id=route_id, at=unit.now, policy_id=policy_id, version_id=version_id,
        report=to_text(dict(report)),
    )  # fmt: skip


class GateLook(NamedTuple):
    """This record is the stored report of a gate about a version. report: the report as JSON."""

    id: int
    version_id: int
    report: str


def looks(unit: Unit, route_id: int, *, since: int) -> list[GateLook]:
    """Return the reports of the gates of a route since a time, oldest first."""
    return unit.select(GateLook, "gate_look WHERE route_id = ? AND at >= ? ORDER BY id", route_id, since)


def newest_looks(unit: Unit, version_ids: Collection[int]) -> dict[int, GateLook]:
    """Return the newest report of a gate about each of these versions, by version id. Versions without a report are
    left out."""
    looks = unit.select(GateLook, "gate_look WHERE version_id IN (?*) ORDER BY id", version_ids)
    return {look.version_id: look for look in looks}


def add_decisions(unit: Unit, rows: Iterable[tuple[int, int]]) -> None:
    """Store the route through which each decision was requested. rows: pairs (decision id, route id)."""
    unit.insert("route_decision", ("decision_id", "route_id"), rows)


def by_decision(unit: Unit, decision_ids: Collection[int]) -> dict[int, str]:
    """Return the name of the route through which each decision was requested, by decision id. Decisions without a route
    are left out."""
    tables = "route_decision JOIN route ON route.id = route_decision.route_id"
    return dict(unit.ask(f"SELECT decision_id, name FROM {tables} WHERE decision_id IN (?*)", decision_ids))


# -- challengers in the shadow of a route --


class Shadow(NamedTuple):
    """This record is a challenger that runs in the shadow of a route, without being shown. number: the number of the
    version, or None if the challenger follows the policy's live version; stopped_at: the time at which the challenger
    was stopped, or None while it runs."""

    id: int
    route_id: int
    policy: str
    number: int | None
    started_at: int
    stopped_at: int | None

    @property
    def reference(self) -> str:
        """Return the policy or version of the challenger, in the form that commands take."""
        return self.policy if self.number is None else f"{self.policy}@{self.number}"


_SHADOWS = (
    "SELECT s.id, s.route_id, policy.name, version.number, s.started_at, s.stopped_at FROM shadow s"
    " JOIN policy ON policy.id = s.policy_id LEFT JOIN version ON version.id = s.version_id"
)


def running_shadows(unit: Unit, route_ids: Collection[int]) -> dict[int, Shadow]:
    """Return the running challenger of each of these routes, by route id. Routes without a running challenger are left
    out."""
    rows = unit.records(Shadow, f"{_SHADOWS} WHERE s.route_id IN (?*) AND s.stopped_at IS NULL", route_ids)
    return {shadow.route_id: shadow for shadow in rows}


def shadows(unit: Unit, route_id: int) -> list[Shadow]:
    """Return all challengers that a route has had, newest first."""
    return unit.records(Shadow, f"{_SHADOWS} WHERE s.route_id = ? ORDER BY s.id DESC", route_id)


def start_shadow(unit: Unit, route_id: int, *, policy_id: int, version_id: int | None) -> None:
    unit.add("shadow", route_id=route_id, policy_id=policy_id, version_id=version_id, started_at=unit.now)


def stop_shadow(unit: Unit, shadow_id: int) -> None:
    unit.tell("UPDATE shadow SET stopped_at = ? WHERE id = ?", unit.now, shadow_id)


def add_shadowed(unit: Unit, rows: Iterable[Row]) -> None:
    """Store the probability that a challenger would have given to each slate that was shown. Each row is (shadow id,
    decision id, logarithm of the probability or None)."""
    unit.insert("shadow_decision", ("shadow_id", "decision_id", "log_probability"), rows)


def log_probabilities(unit: Unit, shadow_id: int) -> list[Row]:
    """Return two logarithms for each slate that was shown while a challenger ran: the logarithm of the probability that
    the challenger would have given to the slate (None if this is unknown), and the logarithm of the propensity with
    which the slate was served."""
    tables = "shadow_decision s JOIN decision d ON d.id = s.decision_id"
    return unit.ask(f"SELECT s.log_probability, d.log_propensity FROM {tables} WHERE s.shadow_id = ?", shadow_id)
