"""The clock of a database against the times in its log: decisions that lie ahead of it, and how they are put back."""

from __future__ import annotations

from typing import NamedTuple

from rlrec.store.unit import Unit


class Ahead(NamedTuple):
    """Decisions that were not imported and lie ahead of `clock`: how many, the first and the last of their times.
    before: the newest time of the others; None where there is none."""

    clock: int
    decisions: int
    first: int
    newest: int
    before: int | None

    @property
    def by(self) -> int:
        """How far the newest lies ahead, in microseconds."""
        return self.newest - self.clock


def ahead(unit: Unit) -> Ahead:
    """Decisions ahead of the database's clock; without any, the times are those of the clock."""
    clock = unit.clock()
    log = "FROM decision WHERE imported = 0 AND at"
    count, first, newest = unit.ask(f"SELECT count(*), min(at), max(at) {log} > ?", clock)[0]
    before = unit.ask_value(f"SELECT max(at) {log} <= ?", clock)
    return Ahead(clock, count, first or clock, newest or clock, before)


def put_back(unit: Unit, block: Ahead) -> None:
    """Move decisions ahead of the clock, their events and their visits by one distance, so that the newest is of now.
    Between a decision and its events, and between decisions, all distances stay, so that rewards stay too."""
    by, clock = block.by, block.clock
    ids = "SELECT id FROM decision WHERE imported = 0 AND at > ?"
    unit.tell(
        f"UPDATE event SET at = at - ?, received_at = received_at - ? WHERE decision_id IN ({ids})", by, by, clock
    )
    unit.tell("UPDATE decision SET at = at - ? WHERE imported = 0 AND at > ?", by, clock)
    for column in ("started_at", "last_at", "ended_at"):
        unit.tell(f"UPDATE visit SET {column} = {column} - ? WHERE {column} > ?", by, clock)
