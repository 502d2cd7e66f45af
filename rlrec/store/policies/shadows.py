"""Challengers in the shadow of routes, and the probabilities that they would have given to what was shown."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from rlrec.store.database.unit import Row, Unit


class Shadow(NamedTuple):
    """number: of the version, None where the policy's live one is followed; stopped_at: None while it goes on."""

    id: int
    route_id: int
    policy: str
    number: int | None
    started_at: int
    stopped_at: int | None

    @property
    def reference(self) -> str:
        """The challenger, as commands name it."""
        return self.policy if self.number is None else f"{self.policy}@{self.number}"


_SHADOWS = (
    "SELECT s.id, s.route_id, policy.name, version.number, s.started_at, s.stopped_at FROM shadow s"
    " JOIN policy ON policy.id = s.policy_id LEFT JOIN version ON version.id = s.version_id"
)


def running(unit: Unit, route_ids: Collection[int]) -> dict[int, Shadow]:
    """The challenger of each of these routes that has one now."""
    rows = unit.records(Shadow, f"{_SHADOWS} WHERE s.route_id IN (?*) AND s.stopped_at IS NULL", route_ids)
    return {shadow.route_id: shadow for shadow in rows}


def history(unit: Unit, route_id: int) -> list[Shadow]:
    """All challengers that a route has had, newest first."""
    return unit.records(Shadow, f"{_SHADOWS} WHERE s.route_id = ? ORDER BY s.id DESC", route_id)


def start(unit: Unit, route_id: int, *, policy_id: int, version_id: int | None) -> None:
    unit.add("shadow", route_id=route_id, policy_id=policy_id, version_id=version_id, started_at=unit.now)


def stop(unit: Unit, shadow_id: int) -> None:
    unit.tell("UPDATE shadow SET stopped_at = ? WHERE id = ?", unit.now, shadow_id)


def add_decisions(unit: Unit, rows: Iterable[Row]) -> None:
    """Store (shadow id, decision id, log of the probability or None)."""
    unit.insert("shadow_decision", ("shadow_id", "decision_id", "log_probability"), rows)


class LoggedRatio(NamedTuple):
    """log_probability: the challenger's, None where it has none; log_propensity: of what served."""

    log_probability: float | None
    log_propensity: float


def ratios(unit: Unit, shadow_id: int) -> list[LoggedRatio]:
    """Both probabilities of every slate that was shown in the shadow."""
    tables = "shadow_decision s JOIN decision d ON d.id = s.decision_id"
    text = f"SELECT s.log_probability, d.log_propensity FROM {tables} WHERE s.shadow_id = ?"
    return unit.records(LoggedRatio, text, shadow_id)
