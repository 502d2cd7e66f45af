"""Queries here read all rows of the store for an audit, in ranges and portions, and find rows that contradict other
rows."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from rlrec.arrays import Ids
from rlrec.log_fields import NO_SCORE
from rlrec.store.database.bulk import Columns
from rlrec.store.database.unit import Row, Unit, quote_columns, slices
from rlrec.store.log import decisions, reader
from rlrec.store.log.selected import id_ends, numbers

BATCH = 20_000  # decisions, or rows of a stream
MAX_ROWS = 50  # rows that one test lists
SPARSE = 50  # ids per own decision beyond which random ids would rarely hit one
# From reading a belief to locking its policy; on PostgreSQL an earlier release read the clock before that wait, too.
LONGEST_WAIT_US = 3_600_000_000

SLOTS = (
    "decision_id", "session_id", "visit", "at", "version_id", "belief_seq", "belief_ordinal", "ordinal",
    "catalogue_revision", "context_id", "eligible_id", "size", "seed", "log_propensity", "keep_probability",
    "imported", "position", "arm_id", "propensity", "marginal", "min_propensity", "censored", "rounded",
)  # fmt: skip


# -- the log --


def ranges(
    unit: Unit, policy_id: int, *, first: int = 1, size: int = BATCH, tests: Sequence[str] = ()
) -> Iterator[reader.Batch]:  # fmt: skip
    """Yield all decisions of a policy from id `first` on, including imported decisions, in batches that are ranges of
    decision ids. Rows are in order of decision and position.

    size: the number of decisions in a batch; tests: SQL tests that decisions `d` must pass."""
    newest_id = decisions.newest_id(unit, policy_id)
    for start, last in reader.id_ranges(unit, policy_id, first=first, last=newest_id, size=size):
        yield reader.read_range(unit, policy_id, start, last, tests=tests, slots=SLOTS, events=tuple(reader.EVENTS))


def session_rows(unit: Unit, sessions: Collection[int], columns: Sequence[str]) -> reader.Batch:
    """Return a batch with the decisions of these sessions, in order of session, decision and position. columns: the
    names of the columns of slots that are read."""
    tests = [f"d.session_id IN ({numbers(sessions)})"]
    events, order = tuple(reader.EVENTS), "d.session_id, d.id, s.position"
    return reader.read_decisions(unit, tests, slots=columns, events=events, order=order)


def decision_slots(unit: Unit, decision_ids: Sequence[int]) -> Columns:
    """Return the slots of these decisions, with the same columns as in `ranges` and the column `score`."""
    pieces = []
    for portion in list(slices(decision_ids, 5_000)) or [[]]:
        test = f"d.id IN ({numbers(portion)})"
        pieces.append(reader.read_slots(reader.ask_slots(unit, (*SLOTS, "score"), [test], order="d.id, s.position")))
    slots = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    return slots | {"score": np.where(slots["score"] == NO_SCORE, np.nan, slots["score"])}


def visit_histories(unit: Unit, decision_ids: Sequence[int]) -> Columns:
    """Return what was known of the visit's history at each of these decisions, in order of decision id. The columns are
    decision_id, step, recorded and history (see `reader.COLUMNS`)."""
    test = f"d.id IN ({numbers(decision_ids)})"
    return reader.ask_decisions(unit, ("step", "recorded", "history"), [test]).columns()


def random_ids(unit: Unit, size: int, *, seed: int, run: int = 1) -> tuple[Ids, int]:
    """Return the ids of `size` random decisions that this store drew, ascending, and the total number of decisions that
    this store drew. Imported decisions do not count.

    If such decisions are not too few among all ids of the log, random ids are tried, so that the other ids need not
    be read. Groups of `run` adjacent ids are then tried together, so that the sample has several decisions drawn
    from the same belief."""
    source, rng = "FROM decision WHERE imported = 0", np.random.default_rng(seed)
    total = int(unit.ask_value(f"SELECT count(*) {source}"))
    first_id, last_id = id_ends(unit)
    if total <= 2 * size or total * SPARSE < last_id - first_id:
        ids = [row[0] for rows in unit.portions(f"SELECT id {source} ORDER BY id") for row in rows]
        return np.sort(rng.choice(np.array(ids, np.int64), min(size, total), replace=False)), total
    sample, neighbours = dict[int, None](), np.arange(run)
    while len(sample) < size:
        runs = rng.integers(first_id // run, last_id // run, size=-(-2 * size // run), endpoint=True)
        tried_ids = dict.fromkeys((runs[:, None] * run + neighbours).ravel().tolist())
        stored_ids = {row[0] for row in unit.ask(f"SELECT id {source} AND id IN (?*)", list(tried_ids))}
        sample |= dict.fromkeys(number for number in tried_ids if number in stored_ids)
    return np.array(sorted(list(sample)[:size]), np.int64), total


def count_overdue(unit: Unit, policy_id: int, *, first: int, before: int) -> tuple[int, int]:
    """Count the slots of the decisions that were drawn from a policy before a time. Return the number of slots, and the
    time of the first of these decisions, or 0 and 0 if there are no such decisions.

    first: the smallest decision id that counts; before: the time."""
    text = (
        "SELECT count(*), coalesce(min(d.at), 0) FROM slot s JOIN decision d ON d.id = s.decision_id"
        " WHERE d.policy_id = ? AND d.id >= ? AND d.imported = 0 AND d.at < ?"
    )
    count, first_at = unit.ask(text, policy_id, first, before)[0]
    return count, first_at


# -- contradictions --


def counts(unit: Unit) -> dict[str, int]:
    """Return the number of rows of each table that an audit reads."""
    tables = ("policy", "version", "belief_delta", "decision", "slot", "event", "visit")
    return {table: int(unit.ask_value(f"SELECT count(*) FROM {table}")) for table in tables}


def dangling_rows(unit: Unit) -> Iterator[tuple[sa.ForeignKeyConstraint, dict[str, object]]]:
    """Yield rows that refer to a missing row, as pairs: the foreign key that is broken, and the key of the row. At most
    MAX_ROWS rows are listed for each foreign key."""
    if not unit.postgres and _has_all_references(unit):
        return
    for table in _tables_with_progress(unit):
        for reference in sorted(table.foreign_key_constraints, key=lambda key: str(key.column_keys)):
            column_pairs = [(f'child."{element.parent.name}"', element.column.name) for element in reference.elements]
            is_set = " AND ".join(f"{column} IS NOT NULL" for column, _ in column_pairs)
            is_same = " AND ".join(f'parent."{target}" = {column}' for column, target in column_pairs)
            referred_rows = f'SELECT 1 FROM "{reference.referred_table.name}" AS parent WHERE {is_same}'
            key_columns = quote_columns(table.primary_key.columns.keys())
            text = f'SELECT {key_columns} FROM "{table.name}" AS child WHERE {is_set} AND NOT EXISTS ({referred_rows})'
            for row in unit.ask(f"{text} LIMIT {MAX_ROWS}"):
                yield reference, _row_key(table, row)


def _row_key(table: sa.Table, values: Sequence[object]) -> dict[str, object]:
    return {column.name: value for column, value in zip(table.primary_key, values, strict=True)}


def _has_all_references(unit: Unit) -> bool:
    """Tell whether the SQLite file declares all foreign keys, and SQLite finds no row that refers to a missing row."""
    from rlrec.store.database import tables as t  # few commands need the definitions

    n_keys = sum(len(key.elements) for table in t.metadata.sorted_tables for key in table.foreign_key_constraints)
    declared_keys = unit.ask_value(
        "SELECT count(*) FROM sqlite_master m, pragma_foreign_key_list(m.name) WHERE m.type = 'table'"
    )
    return declared_keys == n_keys and not any(
        unit.ask("SELECT 1 FROM pragma_foreign_key_check(?) LIMIT 1", table.name)
        for table in _tables_with_progress(unit)
    )


def _tables_with_progress(unit: Unit) -> Iterator[sa.Table]:
    """Yield the definition of each table of the store, and report the progress."""
    from rlrec.store.database import tables as t  # few commands need the definitions

    tables = t.metadata.sorted_tables
    for number, table in enumerate(tables):
        unit.progress("tables", number, number / len(tables))
        yield table


def rows_ahead(unit: Unit, *, since: int) -> Iterator[tuple[sa.Column[Any], dict[str, object], int]]:
    """Yield rows with a time later than `since`, as triples: the column with the time, the key of the row, and the
    time. At most MAX_ROWS rows are listed for each column."""
    from rlrec.store.database import tables as t  # few commands need the definitions

    for column in t.time_columns():
        columns = quote_columns([*column.table.primary_key.columns.keys(), column.name])
        text = f'SELECT {columns} FROM "{column.table.name}" WHERE "{column.name}" > ? LIMIT {MAX_ROWS}'
        for *values, at in unit.ask(text, since):
            yield column, _row_key(column.table, values), at


_SLOT_COUNTS = "SELECT decision_id, count(*) AS n, max(position) AS last FROM slot GROUP BY decision_id"
_VISIT_COUNTS = (
    "SELECT session_id, visit, count(*) AS n, max(step) AS last, max(imported) AS imported, min(id) AS first,"
    " min(at) AS first_at, max(at) AS last_at FROM decision GROUP BY session_id, visit"
)
_REMOVED = "(SELECT coalesce(removed_to, 0) FROM settings)"


def _contradictions() -> dict[str, str]:
    """Return the SQL statements of the file contradictions.sql, which find contradicting rows. The key of each
    statement is the text of its finding."""
    text = Path(__file__).with_name("contradictions.sql").read_text(encoding="utf-8")
    _, *tests = (block.partition("\n") for block in text.split("\n\n"))
    return {
        finding.removeprefix("-- "): statement.format(
            slots=f"({_SLOT_COUNTS})", visits=f"({_VISIT_COUNTS})", removed=_REMOVED, longest_wait=LONGEST_WAIT_US
        )
        for finding, _, statement in tests
    }


# whether any test of visits has rows; each test counts the decisions of all visits
_ANY_VISIT = (
    f"SELECT 1 FROM ({_VISIT_COUNTS}) c LEFT JOIN visit v ON v.session_id = c.session_id AND v.number = c.visit"
    " WHERE v.session_id IS NULL OR v.steps <> c.last + 1 OR (c.imported = 0"
    " AND (c.n <> v.steps OR v.started_at <> c.first_at OR v.last_at <> c.last_at)) LIMIT 1"
)


# stand for tables of the log, with the rows of some sessions only
_SAMPLED = ", ".join(
    f"{name} AS MATERIALIZED (SELECT {name}.* FROM {rows})"
    for name, rows in {
        "decision": "{main}decision WHERE session_id IN (?*)",
        "visit": "{main}visit WHERE session_id IN (SELECT session_id FROM decision)",
        "slot": "decision JOIN {main}slot ON slot.decision_id = decision.id",
        "event": "decision JOIN {main}event ON event.decision_id = decision.id",
    }.items()
)
_UNSAMPLED = re.compile("ordinal|FROM (feedback_key|assignment|merged_user|policy) ")  # in tests that need all rows


def contradictions(unit: Unit, sessions: Collection[int] | None = None) -> Iterator[tuple[str, list[Row]]]:
    """Find rows that contradict other rows. For each test that finds such rows, yield the text of the finding and the
    first MAX_ROWS rows.

    sessions: if given, only tests of decisions are run, and only on the decisions of these sessions."""
    has_visits = sessions is not None or bool(unit.ask(_ANY_VISIT))
    tests = [test for test in _contradictions().items() if has_visits or _VISIT_COUNTS not in test[1]]
    sample, parameters = "", [] if sessions is None else [sessions]
    if sessions is not None:
        main_schema = "" if unit.postgres else "main."
        sample = f"WITH {_SAMPLED.format(main=main_schema)} "
        tests = [test for test in tests if not _UNSAMPLED.search(test[1])]
    for number, (finding, statement) in enumerate(tests):
        unit.progress("tests of rows", number, number / len(tests))
        if rows := unit.ask(f"{sample}{statement} LIMIT {MAX_ROWS}", *parameters):
            yield finding, rows


def columns(unit: Unit, table: str, *names: str) -> Iterator[tuple[Sequence[Any], ...]]:
    """Yield the named columns of a table, in portions of rows. Each portion is a tuple with the values of each
    column."""
    for rows in unit.portions(f"SELECT {', '.join(names)} FROM {table}"):
        yield tuple(zip(*rows, strict=True))


def answered_requests(unit: Unit, decision_ids: Collection[int]) -> list[Row]:
    """Return a row for each of these decisions that stores the digest of its request. Decisions without such a digest
    are left out.

    The row has the decision id, the digest, the length of the slate, the keys of the session and the user, the
    context, the eligible set, and the names that the request may have used: the policy, the number of the version,
    the experiment and the route."""
    text = (
        "SELECT d.id, d.request_digest, d.size, s.key, u.key, c.body, coalesce(l.catalogue_id, d.eligible_id),"
        " p.name, v.number, e.name, r.name"
        " FROM decision d JOIN policy p ON p.id = d.policy_id JOIN version v ON v.id = d.version_id"
        " JOIN session s ON s.id = d.session_id JOIN context c ON c.id = d.context_id"
        " LEFT JOIN users u ON u.id = s.user_id LEFT JOIN variant a ON a.id = d.variant_id"
        " LEFT JOIN experiment e ON e.id = a.experiment_id LEFT JOIN route_decision q ON q.decision_id = d.id"
        " LEFT JOIN route r ON r.id = q.route_id LEFT JOIN candidate_list l ON l.decision_id = d.id"
        " WHERE d.request_digest IS NOT NULL AND d.id IN (?*)"
    )
    return unit.ask(text, decision_ids)


class KeyedEvent(NamedTuple):
    """This record is an event that came in a line of feedback with a key. digest: the digest of the line, which is
    stored under the key."""

    key: str
    digest: bytes
    decision_id: int
    position: int | None
    kind: str
    value: float


def keyed_events(unit: Unit) -> Iterator[KeyedEvent]:
    """Yield all events that came in lines with a feedback key, in order of decision, key and number of the event."""
    events = (
        "SELECT k.key, k.digest, e.decision_id, e.position, e.kind, e.value FROM event e"
        " JOIN feedback_key k ON k.key = e.key AND k.decision_id = e.decision_id"
        " ORDER BY e.decision_id, e.key, e.number"
    )
    return map(KeyedEvent._make, chain.from_iterable(unit.portions(events)))


def assigned_units(unit: Unit) -> Iterator[Sequence[Any]]:
    """Yield a row for each assignment of a user or session to a variant: the id of the experiment, the key of the user
    or session, the variant, and the time of the assignment."""
    units = (
        "SELECT a.experiment_id, coalesce(u.key, s.key), a.variant_id, a.at FROM assignment a"
        " LEFT JOIN users u ON u.id = a.user_id LEFT JOIN session s ON s.id = a.session_id"
    )
    return chain.from_iterable(unit.portions(units))


def open_visits(unit: Unit, first_session: int, last_session: int) -> list[Row]:
    """Return a row for each visit that has a stored history and has not ended, of the sessions with ids from
    `first_session` to `last_session`.

    The row has the session, the number of the visit, the steps, the arms in the state of the next decision (as
    JSON), and the history (packed)."""
    condition = "history IS NOT NULL AND ended_at IS NULL ORDER BY session_id, number"
    text = (
        f"SELECT session_id, number, steps, recent, history FROM visit WHERE session_id BETWEEN ? AND ? AND {condition}"
    )
    return unit.ask(text, first_session, last_session)


def spend(
    unit: Unit, policy_id: int, *, kind: str, slice_us: int, offset_us: int, after: int,
    decision_ids: Collection[int] | None = None,
) -> Iterator[tuple[int, int, float, float, float]]:  # fmt: skip
    """Yield rows with the spend of a policy: the number of the slice of time, the arm, the number of slots shown, the
    sum of the values of the events, and the number of slots with such an event. The caller must add up the rows of the
    same slice and arm, since slots and events come in different rows.

    kind: the kind of the events; slice_us: the length of a slice; offset_us: a time that is added before the
    division into slices; after: only decisions and events that were stored after this change of the policy count;
    decision_ids: if given, only these decisions count."""
    tests = "d.policy_id = ? AND d.imported = 0" + ("" if decision_ids is None else " AND d.id IN (?*)")
    ids = [] if decision_ids is None else [decision_ids]
    slice_number, slots = f"(d.at + {offset_us}) / {slice_us}", "decision d JOIN slot s ON s.decision_id = d.id"
    query = (
        f"SELECT {slice_number}, s.arm_id, count(*), 0.0, 0.0 FROM {slots} WHERE {tests} AND d.seq > ? GROUP BY 1, 2"
    )
    yield from unit.ask(query, policy_id, *ids, after)
    is_first = (
        "CASE WHEN EXISTS (SELECT 1 FROM event f WHERE f.decision_id = e.decision_id AND f.position = e.position"
        " AND f.kind = e.kind AND f.number < e.number) THEN 0.0 ELSE 1.0 END"
    )
    events = f"{slots} JOIN event e ON e.decision_id = d.id AND e.position = s.position"
    query = (
        f"SELECT {slice_number}, s.arm_id, 0.0, sum(e.value), sum({is_first}) FROM {events}"
        f" WHERE {tests} AND e.kind = ? AND e.seq > ? GROUP BY 1, 2"
    )
    yield from unit.ask(query, policy_id, *ids, kind, after)
