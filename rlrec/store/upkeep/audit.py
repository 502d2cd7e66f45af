"""Everything stored, in ranges and streams, for an audit; and the rows that contradict others."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from rlrec.log_fields import NO_SCORE
from rlrec.store.database import bulk
from rlrec.store.database import tables as t
from rlrec.store.database.bulk import Columns
from rlrec.store.database.unit import Row, Unit, slices
from rlrec.store.log import reader
from rlrec.store.log.reader import Batch

BATCH = 20_000  # decisions, or rows of a stream
MOST = 50  # rows that one test names
# From the reading of a belief to the lock of its policy; on PostgreSQL the clock was once read before that wait, too.
LONGEST_WAIT_US = 3_600_000_000

_SLOTS = (
    "decision_id", "session_id", "visit", "at", "version_id", "belief_seq", "belief_ordinal", "ordinal",
    "catalogue_revision", "context_id", "eligible_id", "size", "seed", "log_propensity", "keep_probability",
    "imported", "position", "arm_id", "propensity", "marginal", "min_propensity", "censored", "rounded",
)  # fmt: skip
_EVENTS = tuple(reader.EVENTS)


# -- the log --


def ranges(unit: Unit, policy_id: int, *, first: int = 1, size: int = BATCH) -> Iterator[Batch]:
    """Every decision of a policy from id `first` on, imported ones too, in ranges of decision id: rows by decision and
    position."""
    newest = reader.last_id(unit, policy_id)
    for start, last in reader.decisions(unit, policy_id, first=first, last=newest, size=size):
        yield reader.between(unit, policy_id, start, last, slots=_SLOTS, events=_EVENTS)


def slots_of(unit: Unit, decision_ids: Sequence[int]) -> Columns:
    """The slots of some decisions, with the columns of `ranges` and their scores."""
    names = (*_SLOTS, "score")
    inside = (f"d.id IN ({reader.numbers(portion)})" for portion in list(slices(decision_ids, 5_000)) or [[]])
    queries = (reader.ask_slots(unit, names, [test], order="d.id, s.position") for test in inside)
    slots = [reader.read_slots(query) for query in queries]
    joined = {name: np.concatenate([columns[name] for columns in slots]) for name in names}
    return joined | {"score": np.where(joined["score"] == NO_SCORE, np.nan, joined["score"])}


def visit_histories(unit: Unit, decision_ids: Sequence[int]) -> Columns:
    """The visits of some decisions (ascending) as these saw them, by id: step, recorded, history (see
    `reader.COLUMNS`)."""
    inside = [f"d.id IN ({reader.numbers(decision_ids)})"]
    query = reader.ask_once(unit, ("step", "recorded", "history"), inside)
    assert query is not None
    return query.columns()


def drawn_ids(unit: Unit) -> Iterator[npt.NDArray[np.int64]]:
    """Ids of the decisions that this store drew itself, ascending, a batch at a time."""
    for columns in bulk.stream(unit, "SELECT id FROM decision WHERE imported = 0 ORDER BY id", {"id": np.int64}):
        yield columns["id"]


class OverdueSlots(NamedTuple):
    """How many slots were served before a time, and when the first of them was."""

    slots: int
    since: int | None


def overdue(unit: Unit, policy_id: int, *, first: int, before: int) -> OverdueSlots:
    """Slots of the policy's own decisions from id `first` on that were served before a time."""
    joined = "slot s JOIN decision d ON d.id = s.decision_id"
    waiting = "d.policy_id = ? AND d.id >= ? AND d.imported = 0 AND d.at < ?"
    chosen = f"SELECT count(*), min(d.at) FROM {joined} WHERE {waiting}"
    return unit.records(OverdueSlots, chosen, policy_id, first, before)[0]


# -- contradictions --


def counts(unit: Unit) -> dict[str, int]:
    """How many rows each table has that an audit reads."""
    tables = ("policy", "version", "belief_delta", "decision", "slot", "event", "visit")
    return {table: int(unit.ask_value(f"SELECT count(*) FROM {table}")) for table in tables}


class DanglingRows(NamedTuple):
    """Rows of `table` whose `columns` refer to no row of `parent`, by their primary `key`: one of `rows` each."""

    table: str
    columns: tuple[str, ...]
    parent: str
    key: tuple[str, ...]
    rows: list[Row]


def dangling_rows(unit: Unit) -> Iterator[DanglingRows]:
    """Rows that refer to nothing."""
    if not unit.postgres and _all_refer(unit):
        return
    for table in _tables(unit):
        for key in sorted(table.foreign_key_constraints, key=lambda key: str(key.column_keys)):
            parent = key.referred_table.alias("parent")
            pairs = [(element.parent, parent.c[element.column.name]) for element in key.elements]
            there = sa.select(sa.literal(1)).select_from(parent).where(*(column == target for column, target in pairs))
            lost = sa.select(*table.primary_key).where(*(column.is_not(None) for column, _ in pairs), ~sa.exists(there))
            if rows := unit.rows(lost.limit(MOST)):
                names = tuple(column.name for column in table.primary_key)
                yield DanglingRows(table.name, tuple(key.column_keys), key.referred_table.name, names, rows)


def _all_refer(unit: Unit) -> bool:
    """Whether SQLite finds no such row by the keys that its file declares, and all are declared."""
    keys = sum(len(key.elements) for table in t.metadata.sorted_tables for key in table.foreign_key_constraints)
    declared = unit.ask_value(
        "SELECT count(*) FROM sqlite_master m, pragma_foreign_key_list(m.name) WHERE m.type = 'table'"
    )
    return declared == keys and not any(
        unit.ask("SELECT 1 FROM pragma_foreign_key_check(?) LIMIT 1", table.name) for table in _tables(unit)
    )


def _tables(unit: Unit) -> Iterator[sa.Table]:
    """All tables, one after another, with a word on progress."""
    tables = t.metadata.sorted_tables
    for number, table in enumerate(tables):
        unit.progress("tables", number, number / len(tables))
        yield table


def rows_ahead(unit: Unit, *, after: int) -> Iterator[tuple[sa.Column[Any], dict[str, object], int]]:
    """Times of rows after another, the first MOST of each column: the column, the key of the row, and the time."""
    for column in t.time_columns():
        keys = list(column.table.primary_key)
        for *key, at in unit.rows(sa.select(*keys, column).where(column > after).limit(MOST)):
            yield column, {named.name: value for named, value in zip(keys, key, strict=True)}, at


_SLOT_COUNTS = "SELECT decision_id, count(*) AS n, max(position) AS last FROM slot GROUP BY decision_id"
_VISIT_COUNTS = (
    "SELECT session_id, visit, count(*) AS n, max(step) AS last, max(imported) AS imported, min(id) AS first"
    " FROM decision GROUP BY session_id, visit"
)
_REMOVED = "(SELECT coalesce(removed_to, 0) FROM settings)"
# name: statement whose rows contradict others; its first column identifies what the name begins with
_CONTRADICTIONS = {
    "decision without slots": f"SELECT d.id FROM decision d LEFT JOIN ({_SLOT_COUNTS}) s ON s.decision_id = d.id"
    " WHERE s.n IS NULL OR s.last > d.size OR (d.imported = 0 AND s.n <> d.size)",
    "decision of another policy's version": "SELECT d.id FROM decision d JOIN version v ON v.id = d.version_id"
    " WHERE v.policy_id <> d.policy_id",
    "decision of another policy's variant": "SELECT d.id FROM decision d JOIN variant v ON v.id = d.variant_id"
    " WHERE v.policy_id <> d.policy_id",
    "decision of an unassigned unit": "SELECT d.id FROM decision d JOIN variant v ON v.id = d.variant_id"
    " JOIN experiment e ON e.id = v.experiment_id JOIN session s ON s.id = d.session_id"
    " LEFT JOIN assignment a ON a.experiment_id = e.id AND a.session_id = s.id"
    " LEFT JOIN assignment b ON b.experiment_id = e.id AND b.user_id = s.user_id AND e.unit = 'user'"
    " WHERE coalesce(a.variant_id, 0) <> v.id AND coalesce(b.variant_id, 0) <> v.id",
    "decision ahead of its policy": "SELECT d.id FROM decision d JOIN policy_head h ON h.policy_id = d.policy_id"
    " JOIN version v ON v.id = d.version_id"
    " WHERE d.seq > h.seq OR d.belief_seq >= d.seq OR (d.imported = 0 AND d.belief_seq < v.seq)",
    "decision beside other beliefs": "SELECT max(id) FROM decision WHERE imported = 0 GROUP BY policy_id, seq"
    " HAVING min(belief_seq) <> max(belief_seq)",
    "decision from an old belief": "SELECT id FROM (SELECT id, belief_seq, max(seq) OVER (PARTITION BY policy_id"
    f" ORDER BY at RANGE BETWEEN UNBOUNDED PRECEDING AND {LONGEST_WAIT_US} PRECEDING) AS older FROM decision"
    " WHERE imported = 0) n WHERE belief_seq < older",
    "request without digest": "SELECT id FROM decision WHERE (imported = 0 AND request_key IS NOT NULL"
    " AND request_digest IS NULL) OR (request_key IS NULL AND request_digest IS NOT NULL)",
    "events not numbered on": "SELECT decision_id FROM event GROUP BY decision_id"
    " HAVING count(*) <> max(number) OR min(number) <> 1",
    "event before its decision": "SELECT e.decision_id FROM event e JOIN decision d ON d.id = e.decision_id"
    " WHERE d.imported = 0 AND (e.at < d.at OR e.received_at < e.at)",
    "event ahead of its policy": "SELECT e.decision_id FROM event e JOIN decision d ON d.id = e.decision_id"
    " JOIN policy_head h ON h.policy_id = d.policy_id WHERE e.seq > h.seq",
    "events out of order": "SELECT e.decision_id FROM event e JOIN event b ON b.decision_id = e.decision_id"
    " AND b.number = e.number - 1 WHERE e.number > 1 AND (e.seq < b.seq OR e.received_at < b.received_at"
    f" - CASE WHEN e.seq > b.seq THEN {LONGEST_WAIT_US} ELSE 0 END)",
    "feedback key without events": "SELECT k.decision_id, k.key FROM feedback_key k WHERE NOT EXISTS"
    " (SELECT 1 FROM event e WHERE e.decision_id = k.decision_id AND e.key = k.key)",
    "decision without visit": f"SELECT c.first FROM ({_VISIT_COUNTS}) c LEFT JOIN visit v"
    " ON v.session_id = c.session_id AND v.number = c.visit WHERE v.session_id IS NULL",
    "decision out of time": "SELECT id FROM (SELECT id, at, lag(at) OVER (PARTITION BY policy_id ORDER BY id) AS last"
    " FROM decision WHERE imported = 0) n WHERE at < last",
    "visit at other times": "SELECT s.key, v.number FROM visit v JOIN session s ON s.id = v.session_id JOIN"
    " (SELECT session_id, visit, min(at) AS first, max(at) AS last, max(imported) AS imported FROM decision"
    " GROUP BY session_id, visit) c ON c.session_id = v.session_id AND c.visit = v.number"
    " WHERE c.imported = 0 AND (v.started_at <> c.first OR v.last_at <> c.last)",
    # where decisions were deleted, ordinals have gaps
    "decision out of ordinals": "SELECT id FROM (SELECT id, ordinal, lag(ordinal) OVER behind AS last,"
    " lag(id) OVER behind AS before FROM decision WHERE ordinal IS NOT NULL"
    " WINDOW behind AS (PARTITION BY policy_id ORDER BY id)) n"
    f" WHERE ordinal <= last OR (ordinal > last + 1 AND before >= {_REMOVED})",
    "policy at another ordinal": "SELECT p.name FROM policy_head h JOIN policy p ON p.id = h.policy_id JOIN"
    " (SELECT policy_id, max(ordinal) AS last, max(id) AS newest FROM decision GROUP BY policy_id) n"
    " ON n.policy_id = h.policy_id"
    f" WHERE h.ordinal < n.last OR (h.ordinal > n.last AND n.newest >= {_REMOVED})",
    "visit with other steps": f"SELECT s.key, v.number, v.steps, c.n FROM ({_VISIT_COUNTS}) c"
    " JOIN visit v ON v.session_id = c.session_id AND v.number = c.visit JOIN session s ON s.id = c.session_id"
    " WHERE v.steps <> c.last + 1 OR (c.imported = 0 AND c.n <> v.steps)",
    "visit without decisions": "SELECT s.key, v.number, v.steps, 0 FROM visit v JOIN session s ON s.id = v.session_id"
    " WHERE v.steps <> 0 AND NOT EXISTS (SELECT 1 FROM decision d WHERE d.session_id = v.session_id"
    " AND d.visit = v.number)",
    "policy without head": "SELECT p.name FROM policy p LEFT JOIN policy_head h ON h.policy_id = p.id"
    " LEFT JOIN version v ON v.id = h.live_id AND v.policy_id = p.id WHERE v.id IS NULL",
    "assignment of another experiment": "SELECT e.name FROM assignment a JOIN variant v ON v.id = a.variant_id"
    " JOIN experiment e ON e.id = a.experiment_id WHERE v.experiment_id <> a.experiment_id",
}


# whether one of the tests of visits has rows: each of them counts the decisions of all visits
_VISITS = "decision without visit", "visit at other times", "visit with other steps"
_ANY_VISIT = (
    "SELECT 1 FROM (SELECT session_id, visit, count(*) AS n, max(step) AS last, max(imported) AS imported,"
    " min(at) AS first_at, max(at) AS last_at FROM decision GROUP BY session_id, visit) c LEFT JOIN visit v"
    " ON v.session_id = c.session_id AND v.number = c.visit WHERE v.session_id IS NULL OR v.steps <> c.last + 1"
    " OR (c.imported = 0 AND (c.n <> v.steps OR v.started_at <> c.first_at OR v.last_at <> c.last_at)) LIMIT 1"
)


def contradictions(unit: Unit) -> Iterator[tuple[str, list[Row]]]:
    """Rows that refer to the wrong row: the first MOST of each test that has any."""
    skipped = () if unit.ask(_ANY_VISIT) else _VISITS
    tests = {name: statement for name, statement in _CONTRADICTIONS.items() if name not in skipped}
    for number, (name, statement) in enumerate(tests.items()):
        unit.progress("tests of rows", number, number / len(tests))
        if rows := unit.ask(f"{statement} LIMIT {MOST}"):
            yield name, rows


class Content(NamedTuple):
    """A context or an eligible set, by its table."""

    table: str
    id: int
    digest: bytes
    text: str


def contents(unit: Unit) -> Iterator[Content]:
    """Every context and every eligible set."""
    for table, column in (("context", "body"), ("eligible_set", "arms")):
        yield from bulk.records(unit, Content, f"SELECT '{table}', id, digest, {column} FROM {table}")


def stored_json(unit: Unit) -> Iterator[tuple[str, str, Sequence[int], Sequence[str]]]:
    """The columns of JSON that have no digest, in portions: what the rows belong to, the column, ids and texts."""
    for owner, key, column, table in (
        ("arm", "id", "features", "arm"),
        ("arm", "arm_id", "features", "arm_history"),
        ("decision", "id", "state", "decision"),
    ):
        for rows in bulk.portions(unit, f"SELECT {key}, {column} FROM {table}"):
            ids, texts = zip(*rows, strict=True)
            yield owner, column, ids, texts


class AnsweredRequest(NamedTuple):
    """A decision with a request id: the digest of the request, and what it can have asked for."""

    decision_id: int
    digest: bytes
    policy: str
    version: int
    experiment: str | None
    route: str | None
    session: str
    user: str | None
    context: str
    size: int
    eligible_id: int


def answered(unit: Unit, decision_ids: Collection[int]) -> list[AnsweredRequest]:
    """Those of the decisions that have the digest of a request, with what their request named."""
    text = (
        "SELECT d.id, d.request_digest, p.name, v.number, e.name, r.name, s.key, u.key, c.body, d.size,"
        " d.eligible_id FROM decision d JOIN policy p ON p.id = d.policy_id JOIN version v ON v.id = d.version_id"
        " JOIN session s ON s.id = d.session_id JOIN context c ON c.id = d.context_id"
        " LEFT JOIN users u ON u.id = s.user_id LEFT JOIN variant a ON a.id = d.variant_id"
        " LEFT JOIN experiment e ON e.id = a.experiment_id LEFT JOIN route_decision q ON q.decision_id = d.id"
        " LEFT JOIN route r ON r.id = q.route_id WHERE d.request_digest IS NOT NULL AND d.id IN (?*)"
    )
    return [AnsweredRequest(row[0], bytes(row[1]), *row[2:]) for row in unit.ask(text, decision_ids)]


class KeyedEvent(NamedTuple):
    """An event of a line that had a key, and the digest stored for that line."""

    key: str
    digest: bytes
    decision_id: int
    position: int | None
    kind: str
    value: float


def keyed_events(unit: Unit) -> Iterator[KeyedEvent]:
    """The events of every feedback key, in their order."""
    chosen = (
        "SELECT k.key, k.digest, e.decision_id, e.position, e.kind, e.value FROM event e"
        " JOIN feedback_key k ON k.key = e.key AND k.decision_id = e.decision_id"
        " ORDER BY e.decision_id, e.key, e.number"
    )
    return bulk.records(unit, KeyedEvent, chosen)


class AssignedUnit(NamedTuple):
    """A user or a session by its key, with its variant in an experiment."""

    experiment_id: int
    key: str
    variant_id: int


def assigned_units(unit: Unit) -> Iterator[AssignedUnit]:
    """The units of all experiments."""
    chosen = (
        "SELECT a.experiment_id, coalesce(u.key, s.key), a.variant_id FROM assignment a"
        " LEFT JOIN users u ON u.id = a.user_id LEFT JOIN session s ON s.id = a.session_id"
    )
    return bulk.records(unit, AssignedUnit, chosen)


class OpenVisit(NamedTuple):
    """A visit that goes on: the arms in the state of its next decision (JSON), and the history of that (packed)."""

    session_id: int
    number: int
    steps: int
    recent: str
    history: bytes


def open_visits(unit: Unit, first: int, last: int) -> list[OpenVisit]:
    """The visits of sessions with ids in a range that have a history and have not ended."""
    going_on = "history IS NOT NULL AND ended_at IS NULL ORDER BY session_id, number"
    return unit.select(OpenVisit, f"visit WHERE session_id BETWEEN ? AND ? AND {going_on}", first, last)


def keys(unit: Unit) -> Iterator[tuple[str, Sequence[str], Sequence[int | None]]]:
    """Every key of a user and of a session, in portions: the owner, keys and their digests."""
    for owner, table in (("user", "users"), ("session", "session")):
        for rows in bulk.portions(unit, f"SELECT key, digest FROM {table}"):
            keys, digests = zip(*rows, strict=True)
            yield owner, keys, digests
