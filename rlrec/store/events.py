"""Events of decisions, the keys of the lines they came in, and what such a line needs to know of its decision."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from operator import itemgetter

from rlrec.records import Event
from rlrec.store.unit import Row, Unit

EVENT = ("decision_id", "position", "kind", "value", "at", "received_at", "seq", "key")
CENSOR = "!censor"

Wanted = tuple[int | None, int | None]  # a decision, and a position of it
Key = tuple[str, bytes, int | None, int]  # a feedback key, the digest of its line, the line's `at`, its decision

_ROW = (*EVENT, "number")
_place = itemgetter(0, 8)  # decision and number
_TARGET = (
    "SELECT d.id, d.policy_id, d.version_id, d.at, d.size, d.imported, s.arm_id,"
    " (SELECT max(number) FROM event WHERE decision_id = d.id)"
)
# The slot meant: without a position a slate of one slot means that slot, a longer one the page.
_TARGETS_SQLITE = (
    f"{_TARGET} FROM json_each(?) AS w LEFT JOIN decision AS d ON d.id = w.value ->> 0"
    " LEFT JOIN slot AS s ON s.decision_id = d.id AND s.position = coalesce(w.value ->> 1, d.size = 1)"
)
_TARGETS_POSTGRES = (
    f"{_TARGET} FROM unnest(?::bigint[], ?::bigint[]) WITH ORDINALITY AS w (id, position, place)"
    " LEFT JOIN decision AS d ON d.id = w.id LEFT JOIN slot AS s ON s.decision_id = d.id"
    " AND s.position = coalesce(w.position, CASE WHEN d.size = 1 THEN 1 END) ORDER BY w.place"
)


def targets(unit: Unit, wanted: Sequence[Wanted]) -> list[Row]:
    """(decision_id, policy_id, version_id, at, size, imported, arm_id, number) of every one wanted, in order.

    arm_id: of the slot meant, None for a page or where there is no such slot; number: of the decision's last event.
    All of it is None where there is no such decision.
    """
    if unit.postgres:
        return unit.ask(_TARGETS_POSTGRES, [one[0] for one in wanted], [one[1] for one in wanted])
    return unit.ask(_TARGETS_SQLITE, json.dumps(wanted))


def shown(unit: Unit, decision_ids: Collection[int]) -> dict[int, dict[int, int]]:
    """The arm at each position of these decisions, in order."""
    found: dict[int, dict[int, int]] = {}
    chosen = "SELECT decision_id, position, arm_id FROM slot WHERE decision_id IN (?*) ORDER BY decision_id, position"
    for decision_id, position, arm_id in unit.ask(chosen, decision_ids):
        found.setdefault(decision_id, {})[position] = arm_id
    return found


def of(unit: Unit, decision_ids: Collection[int]) -> dict[int, list[Event]]:
    """Events of each decision that has any, in the order in which they were stored."""
    chosen = f"SELECT {', '.join(_ROW)} FROM event WHERE decision_id IN (?*) ORDER BY decision_id, number"
    found: dict[int, list[Event]] = {}
    for row in unit.ask(chosen, decision_ids):
        found.setdefault(row[0], []).append(Event._make(row))
    return found


def add(unit: Unit, rows: Iterable[Event]) -> None:
    """Events, each with its number in the decision; the caller holds the lock of the decision's policy."""
    unit.insert("event", _ROW, sorted(rows, key=_place))


def keys(unit: Unit, known: Collection[str]) -> dict[str, tuple[bytes, int | None, int]]:
    """Of the feedback keys given, those known: digest of the line, its `at` if it gave one, its decision."""
    if not known:
        return {}
    rows = unit.ask("SELECT key, digest, at, decision_id FROM feedback_key WHERE key IN (?*)", known)
    return {row[0]: (bytes(row[1]), row[2], row[3]) for row in rows}


def add_keys(unit: Unit, rows: Iterable[Key]) -> None:
    unit.insert("feedback_key", ("key", "digest", "at", "decision_id"), sorted(rows))
