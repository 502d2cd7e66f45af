"""Decisions, their slots, and the request ids they answer."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import sqlalchemy as sa

from rlrec.records import Decision, Slot
from rlrec.store import tables as t
from rlrec.store.unit import Row, Unit

DECISION = (
    "id", "policy_id", "version_id", "belief_seq", "seq", "session_id", "visit", "step", "context_id", "state",
    "eligible_id", "catalogue_revision", "size", "log_propensity", "seed", "variant_id", "at", "imported",
    "request_key", "request_digest", "run_id", "source",
)  # fmt: skip
SLOT = (
    "decision_id", "position", "arm_id", "propensity", "marginal", "min_propensity", "score", "censored", "rounded",
)  # fmt: skip


def newest(unit: Unit) -> int | None:
    """The time of the newest decision that was not imported."""
    latest = sa.select(sa.func.max(t.decision.c.at)).where(sa.text("imported = 0"))
    found = unit.value(latest)
    return None if found is None else int(found)


def reserve(unit: Unit, count: int) -> list[int]:
    """`count` decision ids that no one else will use. SQLite: the write lock is ours; PostgreSQL: its sequence."""
    if unit.postgres:
        series = "SELECT nextval(pg_get_serial_sequence('decision', 'id')) FROM generate_series(1, :count)"
        return sorted(int(row[0]) for row in unit.rows(sa.text(series), {"count": count}))
    first = int(unit.value(sa.select(sa.func.coalesce(sa.func.max(t.decision.c.id), 0)))) + 1
    return list(range(first, first + count))


def peek(unit: Unit) -> int:
    """The id that the next decision would have if nobody else came first."""
    return int(unit.value(sa.select(sa.func.coalesce(sa.func.max(t.decision.c.id), 0)))) + 1


def add(unit: Unit, decisions: Iterable[Row], slots: Iterable[Row]) -> None:
    """Rows of DECISION and of SLOT, in their order."""
    unit.insert(t.decision, DECISION, decisions)
    unit.insert(t.slot, SLOT, slots)


def find(unit: Unit, ids: Collection[int]) -> dict[int, Decision]:
    """Decisions with their slots in order of position; unknown ids are left out."""
    heads = unit.many(sa.select(*(t.decision.c[name] for name in DECISION)), t.decision.c.id, ids)
    order = sa.select(*(t.slot.c[name] for name in SLOT)).order_by(t.slot.c.decision_id, t.slot.c.position)
    slots: dict[int, list[Slot]] = {}
    for decision_id, *values in unit.many(order, t.slot.c.decision_id, ids):
        slots.setdefault(decision_id, []).append(_slot(values))
    return {row[0]: _decision(row, slots.get(row[0], [])) for row in heads}


def _slot(values: list[Any]) -> Slot:
    record = dict(zip(SLOT[1:], values, strict=True))
    return Slot(**record | {"censored": bool(record["censored"]), "rounded": bool(record["rounded"])})


def _decision(row: Row, slots: list[Slot]) -> Decision:
    record = dict(zip(DECISION, row, strict=True))
    return Decision(**record | {"imported": bool(record["imported"])}, slots=tuple(slots))


def owners(unit: Unit, ids: Collection[int]) -> dict[int, int]:
    """The policy of each of these decisions that exists."""
    return dict(unit.many(sa.select(t.decision.c.id, t.decision.c.policy_id), t.decision.c.id, ids))


def of_visit(unit: Unit, session_id: int, visit: int) -> list[int]:
    """Ids of the decisions of one visit, in order of step."""
    decision = t.decision.c
    mine = sa.select(decision.id).where(decision.session_id == session_id, decision.visit == visit)
    return [row[0] for row in unit.rows(mine.order_by(decision.step))]


def requests(unit: Unit, keys: Collection[str]) -> dict[str, tuple[bytes | None, int]]:
    """Of the request ids given, those known: digest of what was asked (None: imported), and the decision."""
    known = sa.select(t.decision.c.request_key, t.decision.c.request_digest, t.decision.c.id)
    return {key: (digest, decision) for key, digest, decision in unit.many(known, t.decision.c.request_key, keys)}


def overdue(unit: Unit, policy_id: int, *, first: int, before: int, slots: int) -> list[int]:
    """Ids of the policy's own decisions from id `first` on that were made before a time, oldest first: as many as make
    up to `slots` slots, one at least.

    Within a policy ids are in order of time: where the first one is young, no other is looked at.
    """
    decision = t.decision.c
    mine = sa.select(decision.id, decision.at, decision.size).where(
        decision.policy_id == policy_id, decision.id >= first, decision.imported == 0
    )
    first_one = unit.row(mine.order_by(decision.id).limit(1))
    found: list[int] = []
    if first_one is None or first_one[1] >= before:
        return found
    room = slots
    for key, at, size in unit.rows(mine.order_by(decision.id).limit(slots)):
        if at >= before or (found and size > room):
            break
        found.append(key)
        room -= size
    return found


def newest_before(unit: Unit, policy_id: int, *, before: int) -> int:
    """The policy's newest decision of its own that was made before a time; 0 where there is none.

    Within a policy ids are in order of time, so that few newer ones are looked at.
    """
    decision = t.decision.c
    mine = sa.select(decision.id).where(decision.policy_id == policy_id, decision.imported == 0, decision.at < before)
    return int(unit.value(mine.order_by(decision.id.desc()).limit(1)) or 0)


def count_slots_after(unit: Unit, policy_id: int, *, first: int) -> int:
    """Slots of the policy's own decisions from id `first` on."""
    decision = t.decision.c
    statement = (
        sa.select(sa.func.count())
        .select_from(t.slot.join(t.decision, decision.id == t.slot.c.decision_id))
        .where(decision.policy_id == policy_id, decision.id >= first, decision.imported == 0)
    )
    return int(unit.value(statement))


def served(unit: Unit, *, policy_id: int, version_id: int | None = None) -> dict[int, int]:
    """How many slots each arm was given by a policy (or by one version of it)."""
    decision = t.decision.c
    statement = (
        sa.select(t.slot.c.arm_id, sa.func.count())
        .join(t.decision, decision.id == t.slot.c.decision_id)
        .where(decision.policy_id == policy_id)
        .group_by(t.slot.c.arm_id)
    )
    if version_id is not None:
        statement = statement.where(decision.version_id == version_id)
    return dict(unit.rows(statement))


def censor(unit: Unit, slots: Iterable[tuple[int, int]], *, censored: bool) -> None:
    """Mark slots (decision_id, position)."""
    mark = "%s" if unit.postgres else "?"
    where = f"UPDATE slot SET censored = {int(censored)} WHERE decision_id = {mark} AND position = {mark}"
    if rows := list(slots):
        unit.connection.exec_driver_sql(where, rows)
