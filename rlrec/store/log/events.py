"""Functions here read and write the events of decisions, and the feedback keys of the lines that reported the events.
They also find the decision that a line of feedback names."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rlrec.errors import Conflict
from rlrec.records import Event, Line
from rlrec.store.database.unit import Row, Unit, parse
from rlrec.store.log import decisions
from rlrec.store.log.decisions import CENSOR as CENSOR
from rlrec.store.log.decisions import LAST_ID

if TYPE_CHECKING:
    from rlrec.arrays import Ids


RETURN = "return"  # the event of a user's last decision in a visit, after which the user came back

POSITION_BITS = 23  # lowest bits of a slot's number; the bits above them hold its decision
NO_POSITION = 2**POSITION_BITS - 1  # stands for a position that no page has


class FeedbackTarget(NamedTuple):
    """A FeedbackTarget is the decision and the slot that a line of feedback names. If there is no such decision,
    `ordinal` and `event_count` are 0, and all other fields except `number` are None.

    number: the id of the decision and the position, packed into one integer; size: the length of the slate; arm_id:
    the arm of the slot, or None if the line names a whole slate or a slot that does not exist; event_count: the
    number of the decision's events; ordinal: the decision's ordinal, or 0 if it has none."""

    number: int
    decision_id: int
    policy_id: int
    version_id: int
    at: int
    size: int
    imported: int
    arm_id: int
    event_count: int
    ordinal: int
    context_id: int


class AgedEvent(NamedTuple):
    """An AgedEvent is an event with its age (`age_us`): the number of microseconds from the decision to the event."""

    decision_id: int
    position: int | None
    kind: str
    value: float
    age_us: int


# The line that a key names: its digest, its `at` if it had one, and its decision.
FeedbackKey = tuple[bytes, int | None, int]


# Without a position a line names the only slot of a slate of one, or the whole page of a longer slate.
_TARGETS = f"""
SELECT w.value, d.id, d.policy_id, d.version_id, d.at, d.size, d.imported, s.arm_id,
    coalesce((SELECT max(number) FROM event WHERE decision_id = d.id), 0), coalesce(d.ordinal, 0), d.context_id
FROM {{numbers}} LEFT JOIN decision d ON d.id = w.value >> {POSITION_BITS}
LEFT JOIN slot s ON s.decision_id = d.id AND s.position =
    CASE WHEN w.value & {NO_POSITION} > 0 THEN w.value & {NO_POSITION} WHEN d.size = 1 THEN 1 END
"""
MAX_SPREAD = 4  # a range of ids is read at once where it spans at most so many ids for each decision that is needed


def targets(unit: Unit, lines: Sequence[Line]) -> list[FeedbackTarget]:
    """Return a FeedbackTarget for each line, in the order of the lines."""
    if not lines:
        return []
    decision_ids: Sequence[int | None]
    decision_ids, request_ids, positions, *_ = zip(*lines, strict=True)
    if request_keys := set(request_ids) - {None}:
        ids_by_key = {key: number for key, (_, number) in decisions.requests(unit, request_keys).items()}
        decision_ids = [number or ids_by_key.get(key) for number, key in zip(decision_ids, request_ids, strict=True)]
    numbers = [
        (number if number and 0 < number <= LAST_ID else 0) << POSITION_BITS
        | (0 if position is None else position if 0 < position < NO_POSITION else NO_POSITION)
        for number, position in zip(decision_ids, positions, strict=True)
    ]
    values = sorted(set(numbers))  # neighbours lie on one page
    source, array = (
        ("unnest(?::bigint[]) w (value)", values) if unit.postgres else ("json_each(?) w", json.dumps(values))
    )
    by_number = {target[0]: target for target in unit.records(FeedbackTarget, _TARGETS.format(numbers=source), array)}
    return list(map(by_number.__getitem__, numbers))


def slates(unit: Unit, decision_ids: Collection[int]) -> dict[int, dict[int, int]]:
    """Return the slate of each decision, by decision id: a dictionary from each position to the arm id, in order of
    position."""
    query = "SELECT decision_id, position, arm_id FROM slot WHERE decision_id IN (?*) ORDER BY decision_id, position"
    return {decision: dict(slots) for decision, slots in unit.ask_groups(query, decision_ids).items()}


def received_by(unit: Unit, decision_ids: Ids, kinds: Collection[str], *, time: int) -> list[AgedEvent]:
    """Return the events of these kinds, and all `!censor` events, that these decisions had received by a time. For each
    decision, events are in the order in which they were stored. If the given ids lie close together, events of other
    decisions with ids between them are in the result, too, since this is faster."""
    first, last = int(decision_ids.min()), int(decision_ids.max())
    is_dense = last - first < MAX_SPREAD * len(decision_ids)
    test = "decision_id BETWEEN ? AND ?" if is_dense else "decision_id IN (?*)"
    bounds = (first, last) if is_dense else (sorted(set(decision_ids.tolist())),)
    served_at = "SELECT d.at FROM decision d WHERE d.id = event.decision_id"  # no join: it would read all decisions
    query = (
        f"SELECT decision_id, position, kind, value, at - ({served_at}) FROM event"
        f" WHERE {test} AND received_at <= ? AND kind IN (?*) ORDER BY decision_id, number"
    )
    return unit.records(AgedEvent, query, *bounds, time, [*kinds, CENSOR])


_UNREAD = {"seq": "0", "key": "NULL", "number": "0"}  # columns that rewards do not need


def by_decision(
    unit: Unit, decision_ids: Collection[int], kinds: Collection[str] | None = None
) -> dict[int, list[Event]]:
    """Return the events of each decision, by decision id, in the order in which they were stored. Decisions without
    events are left out.

    kinds: return only events of these kinds and `!censor` events. Their key and numbers are not read, since rewards
    do not depend on them. None: return all events with all fields."""
    if not decision_ids:
        return {}
    columns = ", ".join(Event._fields if kinds is None else (_UNREAD.get(name, name) for name in Event._fields))
    filters = [] if kinds is None else [[*kinds, CENSOR]]
    query = f"SELECT {columns} FROM event WHERE decision_id IN (?*){' AND kind IN (?*)' if filters else ''}"
    by_decision: dict[int, list[Event]] = {}
    for event in unit.records(Event, f"{query} ORDER BY decision_id, number", decision_ids, *filters):
        by_decision.setdefault(event[0], []).append(event)
    return by_decision


def largest_values(unit: Unit, kinds: Collection[str], *, slots_only: bool) -> dict[str, float]:
    """Return the largest absolute value of the events of each of these kinds in the log, by kind. With `slots_only`,
    events that belong to a whole slate are left out."""
    source = f"FROM event WHERE kind IN (?*){' AND position IS NOT NULL' if slots_only else ''}"
    return dict(unit.ask(f"SELECT kind, MAX(ABS(value)) {source} GROUP BY kind", kinds))


def newest_kinds(unit: Unit, n_events: int) -> set[str]:
    """Return the kinds of the `n_events` events that belong to the newest decisions."""
    newest_events = "SELECT kind FROM event ORDER BY decision_id DESC LIMIT ?"
    return {kind for (kind,) in unit.ask(f"SELECT DISTINCT kind FROM ({newest_events}) e", n_events)}


def smallest_age(unit: Unit, kinds: Collection[str], n_events: int) -> int | None:
    """Return the shortest time, in microseconds, from a decision to an event of one of these kinds. Only the `n_events`
    events that belong to the newest decisions count; the result is None if none of these events has such a kind."""
    newest_events = "SELECT v.decision_id, v.kind, v.at FROM event v ORDER BY v.decision_id DESC LIMIT ?"
    tables = f"({newest_events}) e JOIN decision d ON d.id = e.decision_id"
    return unit.ask_value(f"SELECT MIN(e.at - d.at) FROM {tables} WHERE e.kind IN (?*)", n_events, sorted(kinds))


def any_of_pages(unit: Unit, kinds: Collection[str]) -> bool:
    """Tell whether an event of one of these kinds belongs to a whole slate and not to one slot."""
    text = "SELECT decision_id FROM event WHERE position IS NULL AND kind IN (?*) LIMIT 1"
    return bool(unit.ask(text, sorted(kinds)))


def add(unit: Unit, rows: Iterable[Row]) -> None:
    """Store events. Each row has the fields of Event. The caller must hold the lock of the policy that made the
    decision."""
    unit.insert("event", Event._fields, rows)


def keys_and_kinds(unit: Unit, keys: Collection[str | None]) -> tuple[dict[str, FeedbackKey], set[str]]:
    """Return the lines that are stored under these feedback keys, by key, and the kinds of events that any reward
    weighs. Every line of feedback needs both, so one query reads both."""
    stored_lines, kinds = dict[str, FeedbackKey](), set[str]()
    lines = "SELECT key, digest, at, decision_id FROM feedback_key WHERE key IN (?*)"
    query = f"{lines} UNION ALL SELECT weights, NULL, NULL, NULL FROM reward"
    for text, digest, at, decision_id in unit.ask(query, keys):
        if digest is None:
            kinds.update(parse(text, "weights of a reward"))
        else:
            stored_lines[text] = bytes(digest), at, decision_id
    return stored_lines, kinds


def key_conflict(key: str) -> Conflict:
    """Return the error for a line whose feedback key already belongs to a different line."""
    hint = "a key names one line for ever: use another"
    return Conflict(f"feedback key {key!r} is known with other content", hint=hint, field="key")


def add_keys(unit: Unit, rows: Iterable[tuple[str, bytes, int | None, int]]) -> None:
    unit.insert("feedback_key", ("key", "digest", "at", "decision_id"), sorted(rows))
