"""Events of decisions, the keys of the lines they came in, and what such a line needs to know of its decision."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

from rlrec.records import Event
from rlrec.store.unit import Row, Unit

if TYPE_CHECKING:
    from rlrec.arrays import Ids


EVENT = ("decision_id", "position", "kind", "value", "at", "received_at", "seq", "key")
CENSOR = "!censor"

Wanted = tuple[int | None, int | None]  # a decision, and a position of it
Known = tuple[bytes, int | None, int]  # of a feedback key: the digest of its line, the line's `at`, its decision

_ROW = (*EVENT, "number")
# The slot meant: without a position a slate of one slot means that slot, a longer one the page.
_TARGETS = """
SELECT d.id, d.policy_id, d.version_id, d.at, d.size, d.imported, s.arm_id,
    (SELECT max(number) FROM event WHERE decision_id = d.id), coalesce(d.ordinal, 0), d.context_id
FROM {wanted} LEFT JOIN decision AS d ON d.id = w.id LEFT JOIN slot AS s ON s.decision_id = d.id
    AND s.position = coalesce(w.position, CASE WHEN d.size = 1 THEN 1 END)
"""
_ARRAYS = "unnest(?::bigint[], ?::bigint[]) WITH ORDINALITY AS w (id, position, place)"
PORTION = 1_000
NEAR = 4  # decisions among which one is wanted: a range of ids costs less than each by itself


def targets(unit: Unit, wanted: Sequence[Wanted]) -> list[Row]:
    """(decision_id, policy_id, version_id, at, size, imported, arm_id, number, ordinal, context_id) of every one
    wanted, in order.

    arm_id: of the slot meant, None for a page or where there is no such slot; number: of the decision's last event.
    All of it is None where there is no such decision.
    """
    if unit.postgres:
        text = _TARGETS.format(wanted=_ARRAYS) + "ORDER BY w.place"
        return unit.ask(text, [one[0] for one in wanted], [one[1] for one in wanted])
    found: list[Row] = []
    for first in range(0, len(wanted), PORTION):
        part = wanted[first : first + PORTION]
        found += unit.ask(_targets_sqlite(len(part)), *chain.from_iterable(part))
    return found


@lru_cache(maxsize=8)
def _targets_sqlite(count: int) -> str:
    """The loops are nested as they are written, so that rows come in the order of the values."""
    return f"WITH w (id, position) AS (VALUES {','.join(['(?,?)'] * count)}) {_TARGETS.format(wanted='w')}"


def shown(unit: Unit, decision_ids: Collection[int]) -> dict[int, dict[int, int]]:
    """The arm at each position of these decisions, in order."""
    found: dict[int, dict[int, int]] = {}
    chosen = "SELECT decision_id, position, arm_id FROM slot WHERE decision_id IN (?*) ORDER BY decision_id, position"
    for decision_id, position, arm_id in unit.ask(chosen, decision_ids):
        found.setdefault(decision_id, {})[position] = arm_id
    return found


def earlier(unit: Unit, decision_ids: Collection[int], kinds: Collection[str]) -> dict[int, list[Row]]:
    """Events of these kinds, and words on censoring, of each decision that has any, in the order in which they were
    stored: the first six fields of an Event."""
    if not decision_ids:
        return {}
    chosen = f"SELECT {', '.join(_ROW[:6])} FROM event WHERE decision_id IN (?*) AND kind IN (?*)"
    found: dict[int, list[Row]] = {}
    for row in unit.ask(f"{chosen} ORDER BY decision_id, number", decision_ids, [*kinds, CENSOR]):
        found.setdefault(row[0], []).append(row)
    return found


def known(unit: Unit, decision_ids: Ids, kinds: Collection[str], *, received: int) -> list[Row]:
    """(decision_id, position, kind, value, age) of the events of these kinds, and words on censoring, that had been
    received of these decisions by a time, in the order in which they were stored; age: microseconds after the decision.

    Where the decisions lie close together, those of others between them come along: to leave them out would cost
    more."""
    first, last = int(decision_ids.min()), int(decision_ids.max())
    near = last - first < NEAR * len(decision_ids)
    of = "decision_id BETWEEN ? AND ?" if near else "decision_id IN (?*)"
    wanted = (first, last) if near else (sorted(set(decision_ids.tolist())),)
    made = "SELECT d.at FROM decision d WHERE d.id = event.decision_id"  # no join: it would read all decisions
    chosen = (
        f"SELECT decision_id, position, kind, value, at - ({made}) FROM event"
        f" WHERE {of} AND received_at <= ? AND kind IN (?*) ORDER BY decision_id, number"
    )
    return unit.ask(chosen, *wanted, received, [*kinds, CENSOR])


def of(unit: Unit, decision_ids: Collection[int]) -> dict[int, list[Event]]:
    """Events of each decision that has any, in the order in which they were stored."""
    chosen = f"SELECT {', '.join(_ROW)} FROM event WHERE decision_id IN (?*) ORDER BY decision_id, number"
    found: dict[int, list[Event]] = {}
    for row in unit.ask(chosen, decision_ids):
        found.setdefault(row[0], []).append(Event._make(row))
    return found


def add(unit: Unit, rows: Iterable[Row]) -> None:
    """Fields of events, each with its number in the decision; the caller holds the lock of the decision's policy."""
    unit.insert("event", _ROW, rows)


def keys(unit: Unit, known: Collection[str]) -> dict[str, Known]:
    """Of the feedback keys given, those known: digest of the line, its `at` if it gave one, its decision."""
    if not known:
        return {}
    rows = unit.ask("SELECT key, digest, at, decision_id FROM feedback_key WHERE key IN (?*)", known)
    return {row[0]: (bytes(row[1]), row[2], row[3]) for row in rows}


def add_keys(unit: Unit, rows: Iterable[tuple[str, *Known]]) -> None:
    unit.insert("feedback_key", ("key", "digest", "at", "decision_id"), sorted(rows))
