"""Events of decisions, and the keys of the lines they came in."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import sqlalchemy as sa

from rlrec.records import Event
from rlrec.store import tables as t
from rlrec.store.unit import Unit

EVENT = ("decision_id", "position", "kind", "value", "at", "received_at", "seq", "key")
CENSOR = "!censor"


def of(unit: Unit, decision_ids: Collection[int]) -> dict[int, list[Event]]:
    """Events of each decision that has any, in the order in which they were stored."""
    columns = [t.event.c[name] for name in EVENT]
    statement = sa.select(*columns).order_by(t.event.c.decision_id, t.event.c.number)
    found: dict[int, list[Event]] = {}
    for row in unit.many(statement, t.event.c.decision_id, decision_ids):
        found.setdefault(row[0], []).append(Event(**dict(zip(EVENT, row, strict=True))))
    return found


def add(unit: Unit, numbered: Iterable[tuple[int, Event]]) -> None:
    """Events with their number in the decision; the caller holds the lock of the decision's policy."""
    rows = [
        (e.decision_id, number, e.position, e.kind, e.value, e.at, e.received_at, e.seq, e.key)
        for number, e in numbered
    ]
    unit.insert(t.event, ("decision_id", "number", *EVENT[1:]), rows)


def keys(unit: Unit, known: Collection[str]) -> dict[str, tuple[bytes, int | None, int]]:
    """Of the feedback keys given, those known: digest of the line, its `at` if it gave one, its decision."""
    key = t.feedback_key.c
    statement = sa.select(key.key, key.digest, key.at, key.decision_id)
    return {row[0]: (bytes(row[1]), row[2], row[3]) for row in unit.many(statement, key.key, known)}


def add_keys(unit: Unit, rows: Iterable[tuple[str, bytes, int | None, int]]) -> None:
    unit.insert(t.feedback_key, ("key", "digest", "at", "decision_id"), sorted(rows))
