"""This module reads the log in batches, for ranges of session ids. A batch holds whole sessions as columns, which have
one row for each impression."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import isnan
from typing import Any, NamedTuple

import numpy as np

from rlrec.arrays import Ids, Index, distinct, look_up, repeat_value, repeats_value, run_starts, take
from rlrec.log_fields import ABSENT as ABSENT
from rlrec.log_fields import DECISION, EVENT, SLOT, LogField
from rlrec.store.database.bulk import Columns, PendingQuery
from rlrec.store.database.unit import Unit, damage_error
from rlrec.store.log import contents
from rlrec.store.log.events import RETURN
from rlrec.store.log.selected import MAX_COLUMN_SPREAD, MAX_SPREAD, ROUTE, Selection, id_ends, numbers

BATCH = 50_000  # decisions in a batch, approximately
MAX_CELLS = 4_000_000  # arms of the eligible sets of its rows, where each row has an array of these
_NO_PROBABILITY = "2.0"  # stands for a missing probability, or its logarithm
_HOLDS = "constants_hold"  # a column that says whether a row has the constants
_NO_BYTES = ("x''", "''::bytea")  # on SQLite and PostgreSQL
# one scan of a range of ids is used where it spans at most so many ids per decision; else events are looked up
MAX_EVENT_SPREAD = 2


def _array_columns(table: str, fields: Iterable[LogField]) -> dict[str, tuple[type, str]]:
    """Return, by name, the numpy type and the SQL expression of each of these fields that readers need."""
    types = {int: np.int64, bool: np.bool_, float: np.float64}
    return {
        field.name: (types.get(field.kind, object), _sql_expression(table, field)) for field in fields if field.is_read
    }


def _sql_expression(table: str, field: LogField) -> str:
    if not field.optional:
        return f"{table}.{field.name}"
    absent_value = (
        "{empty}" if isinstance(field.absent, bytes) else _NO_PROBABILITY if isnan(field.absent or 0) else field.absent
    )
    return f"coalesce({table}.{field.name}, {absent_value})"


# name: (type, expression over decision d, slot s, session v)
COLUMNS: dict[str, tuple[type, str]] = {
    "decision_id": (np.int64, "d.id"),
    "user_id": (np.int64, f"coalesce(v.user_id, {ABSENT})"),
    "session_digest": (np.int64, "coalesce(v.digest, 0)"),
    "user_digest": (np.int64, "coalesce((SELECT u.digest FROM users u WHERE u.id = v.user_id), 0)"),
    "split": (np.int64, "v.split"),
    "created_at": (np.int64, "v.created_at"),
    "route_id": (np.int64, f"coalesce({ROUTE}, {ABSENT})"),
    "subsampled": (np.bool_, "CASE WHEN d.keep_probability IS NULL THEN 0 ELSE 1 END"),
    # Whether the visit as the decision saw it (`history`) is stored; its column also reads as empty bytes where it is
    # not.
    "recorded": (np.bool_, "CASE WHEN d.history IS NULL THEN 0 ELSE 1 END"),
    **_array_columns("d", DECISION[1:]),
    **_array_columns("s", SLOT[1:]),
}
EVENTS: dict[str, tuple[type, str]] = {**_array_columns("e", EVENT), "age_us": (np.int64, "e.at - d.at")}
_AUDIT_COLUMNS = (
    "session_digest", "user_digest", "created_at", "seed", "log_propensity", "rounded", "belief_ordinal",
    "catalogue_revision", "recorded", "history",
)  # fmt: skip
# the columns that readers other than the audit need
LOGGED = tuple(name for name in COLUMNS if name not in _AUDIT_COLUMNS)
PER_SESSION = tuple(name for name, (_, text) in COLUMNS.items() if "v." in text)
PER_DECISION = ("history",)  # too large to be read with each slot
EVENT_COLUMNS = ("decision_id", "position", "kind", "value", "age_us")


def _find_rows(table: str, stored_ids: Ids, ids: Ids) -> Index:
    """Return the index at which each of `ids` occurs in `stored_ids`, which are the sorted ids of the rows of a table.
    Raise RlrecError for an id that does not occur, since the table has lost a row."""
    index, is_stored = look_up(stored_ids, ids)
    if not is_stored.all():
        raise damage_error(f"row {ids[~is_stored][0]} of table {table} is gone")
    return index


@dataclass(frozen=True, eq=False)
class ContextTexts:
    """This record holds several contexts: their ids (m,), ascending, and the stored text of each context."""

    ids: Ids
    texts: Sequence[str]

    def select(self, ids: Ids) -> Sequence[str]:
        """Return the text of each of these ids. The ids are ascending, and all of them are in `self.ids`."""
        if np.array_equal(ids, self.ids):
            return self.texts
        return [self.texts[index] for index in _find_rows("context", self.ids, ids).tolist()]

    @classmethod
    def merge(cls, pieces: Sequence[ContextTexts]) -> ContextTexts:
        """Return a record with the contexts of all pieces. A context that is in several pieces is in the record
        once."""
        ids, first_rows = np.unique(np.concatenate([piece.ids for piece in pieces]), return_index=True)
        texts = [text for piece in pieces for text in piece.texts]
        return cls(ids, [texts[index] for index in first_rows.tolist()])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A Batch holds the log of several decisions as columns.

    slots: columns with one row per impression. events: columns with one row per event of these decisions; the
    position is 0 for an event of a whole page. contexts: the texts that the caller asked for. visits: columns with
    one row per visit of these sessions, of any policy, in order of session_id and number; they are started_at,
    last_at, ended_at (ABSENT for a visit that has not ended) and steps. keys: columns with one row per session, in
    order of session_id; they are the key of the session and the key of its user ("" if the session has no user)."""

    slots: Columns
    events: Columns
    contexts: ContextTexts | None = None
    visits: Columns | None = None
    keys: Columns | None = None

    def __len__(self) -> int:
        return len(self.slots["decision_id"])

    def select_rows(self, rows: Ids) -> Batch:
        """Return a batch with only these rows of slots, and with the events, visits and keys that belong to these rows.
        The rows must be whole decisions."""
        if len(rows) == len(self):
            return self
        slots = take(self.slots, rows)
        other_tables: dict[str, Any] = {
            name: take(columns, np.isin(columns[key], slots[key])) for name, key, columns in self._other_tables()
        }
        return replace(self, slots=slots, **other_tables)

    def _other_tables(self) -> Iterator[tuple[str, str, Columns]]:
        """Yield the name of each table except slots, the name of the column that links the rows of the table to slots,
        and the columns of the table."""
        for name, key in (("events", "decision_id"), ("visits", "session_id"), ("keys", "session_id")):
            if (columns := getattr(self, name)) is not None:
                yield name, key, columns

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickling, in which all columns of one type form one matrix, since pickle handles a
        few large arrays many times faster than many small arrays. A column that repeats one value is stored as this
        value."""
        state = dict(vars(self))
        for name, columns in (("slots", self.slots), *((name, columns) for name, _, columns in self._other_tables())):
            names_by_type: dict[tuple[str, int], list[str]] = {}
            for key, column in columns.items():
                n_values = 1 if repeats_value(column) else len(column)
                names_by_type.setdefault((column.dtype.char, n_values), []).append(key)
            state[name] = [
                (keys, np.stack([columns[key][:n] for key in keys]), len(columns[keys[0]]))
                for (_, n), keys in names_by_type.items()
            ]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            if isinstance(value, list):
                value = {
                    key: column if len(column) == n else repeat_value(column, n)
                    for names, rows, n in value
                    for key, column in zip(names, rows, strict=True)
                }
            object.__setattr__(self, name, value)

    def split(self, parts: Ids) -> Iterator[tuple[int, Batch]]:
        """Yield the number of each part that has rows, and a batch with the rows of this part. parts (n,): the number
        of the part to which each row belongs; all rows of a session belong to the same part."""
        if len(parts) and (parts == parts[0]).all():
            yield int(parts[0]), self
            return
        tables = {"slots": (self.slots, parts)}
        for name, key, columns in self._other_tables():
            first_rows, _ = distinct(self.slots[key])
            index, is_selected = look_up(self.slots[key][first_rows], columns[key])
            row_parts = np.where(is_selected, parts[first_rows][index], -1) if len(first_rows) else index - 1
            tables[name] = columns, row_parts
        sorted_tables = {
            name: (take(columns, order := np.argsort(numbers.astype(np.int16), kind="stable")), numbers[order])
            for name, (columns, numbers) in tables.items()
        }
        ordered_parts = sorted_tables["slots"][1]
        for number in ordered_parts[run_starts(ordered_parts)].tolist():
            slice_ends = {
                name: np.searchsorted(numbers, [number, number + 1]) for name, (_, numbers) in sorted_tables.items()
            }
            piece_tables: dict[str, Any] = {
                name: take(columns, slice(*slice_ends[name].tolist())) for name, (columns, _) in sorted_tables.items()
            }
            yield number, replace(self, **piece_tables)

    def cut(self, cells: Ids, limit: int) -> Iterator[Batch]:
        """Yield smaller batches of whole sessions that together have all rows. A batch ends where the sum of the cells
        so far passes a multiple of `limit`. cells (n,): the memory that each row takes, in numbers of an array."""
        if cells.sum() <= limit:
            yield self
            return
        starts = run_starts(self.slots["session_id"])
        portion_numbers = np.cumsum(cells)[starts] // limit
        for start, end in pairwise([*starts[run_starts(portion_numbers)].tolist(), len(self)]):
            yield self.select_rows(np.arange(start, end))

    @classmethod
    def concatenate(cls, batches: Sequence[Batch]) -> Batch:
        """Return one batch with the rows of several batches, which must not have a session in common."""
        if len(batches) == 1:
            return batches[0]
        tables = {"slots": batches[0].slots} | {name: table for name, _, table in batches[0]._other_tables()}
        columns = {
            name: {key: np.concatenate([getattr(batch, name)[key] for batch in batches]) for key in table}
            for name, table in tables.items()
        }
        texts = [batch.contexts for batch in batches if batch.contexts is not None]
        return cls(**columns, contexts=ContextTexts.merge(texts) if len(texts) == len(batches) else None)


def batches(
    unit: Unit, selection: Selection, *, size: int = BATCH, columns: Collection[str] = LOGGED,
    pick_contexts: Callable[[Ids], Ids] | None = None, visits: bool = False, keys: bool = False,
    bounds: tuple[int, int] | None = None, few_test: str | None = None, by_id: bool = False,
) -> Iterator[Batch]:  # fmt: skip
    """Yield the selected log in batches of about `size` decisions, each for one range of session ids. A batch has whole
    sessions, and its rows are in order of session, decision and position. At most two batches are in memory: the next
    batch is read while the caller works on one batch.

    columns: the columns of slots that are read; pick_contexts: a function that gets the context ids of a batch and
    returns the ids of the contexts whose texts are read; visits, keys: whether the visits and the keys of sessions
    are read; bounds: a pair (low, high), to read only sessions with low < id <= high; few_test: a test from
    `selected.few_test`, to read all decisions that pass the test as one range; by_id: whether batches are ranges of
    decision ids, with rows in order of decision and position, for callers that join the parts of a session
    themselves."""
    needed_columns = {*columns, "decision_id", "session_id", "position", *(["context_id"] if pick_contexts else [])}
    names = [name for name in COLUMNS if name in needed_columns]
    extra_queries = {**({"visits": ask_visits} if visits else {}), **({"keys": ask_keys} if keys else {})}
    constants: Mapping[str, float] | None = None
    pending_ranges = (
        _RangeQueries(unit, id_range, selection.conditions(), names, extra_queries, constants, few_test)
        for id_range in (
            _few_range(unit, few_test, by_id=by_id) if few_test
            else _id_ranges(unit, size) if by_id else _session_ranges(unit, size, bounds)
        )
    )  # fmt: skip
    queries, n_read = next(pending_ranges, None), 0
    while queries is not None:
        batch = queries.batch()
        constants = queries.constants
        n_read += queries.ids.decisions
        unit.progress("decisions", n_read, queries.ids.share)
        contexts = None
        if pick_contexts and len(batch):
            contexts = PendingContexts(unit, pick_contexts(batch.slots["context_id"]))
        queries = next(pending_ranges, None)
        if len(batch):
            yield replace(batch, contexts=None if contexts is None else contexts.texts())


def _session_ranges(unit: Unit, size: int, bounds: tuple[int, int] | None) -> Iterator[IdRange]:
    next_decisions = "SELECT session_id, id FROM decision WHERE session_id > ? ORDER BY session_id LIMIT ?"
    low, last = bounds or (0, 0)
    while not bounds or low < last:
        columns = f"{low}, max(session_id), min(id), max(id), count(*), 1.0"
        (id_range,) = unit.records(IdRange, f"SELECT {columns} FROM ({next_decisions}) AS portion", low, size)
        if id_range.decisions < size:  # the last ones
            if id_range.decisions:
                yield id_range
            return
        # Its last session may have further decisions, with other ids.
        (last_session,) = unit.records(IdRange, f"SELECT {columns} FROM decision WHERE session_id = ?", id_range.high)
        last = last or unit.ask_value("SELECT max(session_id) FROM decision")
        id_ends = {"first": min(id_range.first, last_session.first), "last": max(id_range.last, last_session.last)}
        yield id_range._replace(**id_ends, share=min(1.0, id_range.high / last))
        low = id_range.high


def _few_range(unit: Unit, few_test: str, *, by_id: bool) -> list[IdRange]:
    """Return a list with one range, which spans all decisions that pass the test. The list is empty if no decision
    passes."""
    session_bounds = "0, 0" if by_id else "min(d.session_id) - 1, max(d.session_id)"
    text = f"SELECT {session_bounds}, min(d.id), max(d.id), count(*), 1.0 FROM decision d WHERE {few_test}"
    return [id_range for id_range in unit.records(IdRange, text) if id_range.decisions]


def _id_ranges(unit: Unit, size: int) -> Iterator[IdRange]:
    first, last = id_ends(unit)
    for start in range(first or 1, last + 1, size):
        end = min(start + size - 1, last)
        yield IdRange(0, 0, start, end, end - start + 1, (end - first + 1) / (last - first + 1))


class IdRange(NamedTuple):
    """This record is a range of session ids, low < id <= high. If `high` is 0, the range is not limited by session.

    first, last: the first and last id of the decisions in the range (None if the range has no decisions); decisions:
    about how many decisions the range has; share: the fraction of the log that has been read at the end of this
    range."""

    low: int
    high: int
    first: int
    last: int
    decisions: int
    share: float


def _constants(slots: Columns) -> dict[str, float]:
    """Return, by name, the value of each column that has the same value in all rows. Columns whose value SQL cannot
    write exactly are left out: the value must be an integer, the probability 1, or a missing probability (NaN)."""
    return {
        name: column[0]
        for name, column in slots.items()
        if len(column) and column.dtype != np.object_
        and (column.dtype != np.float64 or column[0] == 1 or isnan(column[0]))
        and ((column == column[0]).all() or np.isnan(column).all())
    }  # fmt: skip


def _constant_test(constants: Mapping[str, float]) -> str:
    """Return an SQL expression that is 1 for a slot that has all these values in the named columns, and 0 for other
    slots."""
    values = {name: _NO_PROBABILITY if isnan(value) else int(value) for name, value in constants.items()}
    tests = " AND ".join(f"{COLUMNS[name][1]} = {value}" for name, value in values.items())
    return f"CASE WHEN {tests} THEN 1 ELSE 0 END"


class _RangeQueries:
    """A _RangeQueries object asks for the rows of one range of sessions, and makes a batch from the answers.

    constants: the value of each column of slots that had only one value in all earlier ranges (None for the first
    range). In place of these columns, the query only reads whether a slot has all these values. If any slot differs,
    the range is read again with all columns.

    Decisions whose ids lie close together are read in order of id, which is their order on the disk; reads through an
    index would be scattered. A `+` before a test keeps SQLite from using an index for the test."""

    def __init__(
        self, unit: Unit, ids: IdRange, conditions: Sequence[str], names: Sequence[str],
        extra_queries: Mapping[str, RangeQuery], constants: Mapping[str, float] | None, few_test: str | None = None,
    ) -> None:  # fmt: skip
        sessions = [f"d.session_id > {ids.low}", f"d.session_id <= {ids.high}"] if ids.high else []
        bounds = [f">= {ids.first}", f"<= {ids.last}"]
        ids_per_decision = (ids.last - ids.first) / ids.decisions
        self.ids, self._names, tests = ids, names, [f"+{test}" for test in conditions]
        if few_test is not None or ids_per_decision < MAX_SPREAD:
            few_ids = [f"d.id IN (SELECT d.id FROM decision d WHERE {few_test})"]
            is_dense = few_test is None or ids_per_decision < MAX_COLUMN_SPREAD
            id_tests = [f"d.id {bound}" for bound in bounds] if is_dense else few_ids
            tests, order = [*id_tests, *(f"+{test}" for test in sessions), *tests], "d.id, s.position"
        else:
            tests, order = [*sessions, *tests], "d.session_id, d.id, s.position"
        self.constants, self._columns = constants, [name for name in names if name not in PER_SESSION + PER_DECISION]
        self._ask_slots = partial(ask_slots, unit, tests=tests, order=order)
        varying_names = [name for name in self._columns if name not in (constants or ())]
        self._slots = self._ask_slots(varying_names, constants=constants or {})
        if ids_per_decision < MAX_EVENT_SPREAD:
            event_tests = [*tests, *(f"e.decision_id {bound}" for bound in bounds)]
            tables = "event e CROSS JOIN decision d"
            self._events = ask_events(unit, EVENT_COLUMNS, event_tests, tables=tables)
        else:
            self._events = ask_events(unit, EVENT_COLUMNS, tests)
        # extra tables, by the column that links their rows to slots
        self._keyed_queries: dict[str, PendingQuery] = {}
        if per_session := [name for name in names if name in PER_SESSION]:
            # Looking up the session of every slot would add a third to the cost of reading slots.
            columns = {"session_id": (np.int64, "v.id"), **{name: COLUMNS[name] for name in per_session}}
            test = f"v.id > {ids.low} AND v.id <= {ids.high}"
            if few_test is not None and ids.high - ids.low > ids.decisions:
                test += f" AND v.id IN (SELECT d.session_id FROM decision d WHERE {few_test})"
            self._keyed_queries["session_id"] = _pending_query(unit, columns, f"session v WHERE {test} ORDER BY v.id")
        if per_decision := [name for name in names if name in PER_DECISION]:
            self._keyed_queries["decision_id"] = ask_decisions(unit, per_decision, tests)
        self._extra_queries = {name: ask(unit, ids.low, ids.high) for name, ask in extra_queries.items()}

    def batch(self) -> Batch:
        slots, events = self._read_slots(), self._events.columns()
        session = slots["session_id"]
        if self.ids.high and (session[1:] < session[:-1]).any():
            slots = take(slots, np.argsort(session, kind="stable"))
        for key, query in self._keyed_queries.items():
            columns = query.columns()
            index = _find_rows(key.removesuffix("_id"), columns[key], slots[key])
            slots |= {name: column[index] for name, column in columns.items() if name != key}
        extra_columns = {name: query.columns() for name, query in self._extra_queries.items()}
        slots = {name: slots[name] for name in self._names}
        return Batch(slots=slots, events=events, visits=extra_columns.get("visits"), keys=extra_columns.get("keys"))

    def _read_slots(self) -> Columns:
        slots, constants = read_slots(self._slots), self.constants
        if not constants:
            self.constants = _constants(slots) if constants is None else constants
            return slots
        has_constants = slots.pop(_HOLDS)
        if has_constants.all():
            constant_arrays: Columns = {name: np.array([value], COLUMNS[name][0]) for name, value in constants.items()}
            return slots | {name: repeat_value(value, len(has_constants)) for name, value in constant_arrays.items()}
        slots = read_slots(self._ask_slots(self._columns))
        constant_texts = {name: str(value) for name, value in _constants(slots).items()}
        self.constants = {name: value for name, value in constants.items() if constant_texts.get(name) == str(value)}
        return slots


def ranges(
    unit: Unit, policy_id: int, *, first: int, last: int, size: int = BATCH, tests: Sequence[str] = (),
    columns: Sequence[str] = LOGGED, slot_tests: Sequence[str] = (),
) -> Iterator[Batch]:  # fmt: skip
    """Yield the decisions that the store drew from a policy, in batches that are ranges of decision ids. Beliefs are
    computed from such batches, since they do not need whole sessions.

    first, last: the first and last id of the decisions to read; size: the number of decisions in a batch; tests: SQL
    tests on decisions `d`; columns: the columns of slots to read; slot_tests: SQL tests on the slots `s`."""
    tests = ["d.imported = 0", *tests]
    for start, end in id_ranges(unit, policy_id, first=first, last=last, size=size):
        batch = read_range(unit, policy_id, start, end, tests=tests, slots=columns, slot_tests=slot_tests)
        if len(batch):
            yield batch


def id_ranges(unit: Unit, policy_id: int, *, first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield pairs (start, end) of decision ids, both included, such that each range has `size` decisions of the policy
    (the last range may have fewer)."""
    last_of_range = "SELECT id FROM decision WHERE policy_id = ? AND id >= ? AND id <= ? ORDER BY id LIMIT 1 OFFSET ?"
    first_id, n_read = first, 0
    while first <= last:
        end = unit.ask_value(last_of_range, policy_id, first, last, size - 1) or last
        yield first, int(end)
        first, n_read = int(end) + 1, n_read + size
        if first <= last:  # the range was full
            unit.progress("decisions", n_read, (first - first_id) / (last - first_id + 1))


def read_range(
    unit: Unit, policy_id: int, first: int, last: int, *, tests: Sequence[str] = (),
    slots: Sequence[str] = LOGGED, events: Sequence[str] = EVENT_COLUMNS, slot_tests: Sequence[str] = (),
) -> Batch:  # fmt: skip
    """Return a batch with the decisions of a policy whose ids are from `first` to `last`, in order of decision and
    position.

    slots, events: the names of the columns to read; tests: SQL tests on decisions `d`; slot_tests: SQL tests on the
    slots `s` of these decisions."""
    conditions = [f"d.policy_id = {policy_id}", f"d.id >= {first}", f"d.id <= {last}", *tests]
    return read_decisions(unit, conditions, slots=slots, events=events, slot_tests=slot_tests)


def read_decisions(
    unit: Unit, tests: Sequence[str], *, slots: Sequence[str], events: Sequence[str] = EVENT_COLUMNS,
    slot_tests: Sequence[str] = (), order: str = "d.id, s.position",
) -> Batch:  # fmt: skip
    """Return a batch with all decisions that pass the tests, with their events, and with the slots that pass the
    slot_tests.

    tests: SQL tests on decisions `d`; slots, events: the names of the columns to read; slot_tests: SQL tests on
    slots `s`; order: the order of the slots, in SQL."""
    slot_query = ask_slots(unit, slots, [*tests, *slot_tests], order=order)
    event_query = ask_events(unit, events, tests)
    return Batch(slots=read_slots(slot_query), events=event_query.columns())


def ask_slots(
    unit: Unit, names: Sequence[str], tests: Sequence[str], *, order: str, constants: Mapping[str, float] = {},
) -> PendingQuery:  # fmt: skip
    """Return a query for columns of the slots of all decisions `d` that pass the tests.

    names: the columns, by their names in COLUMNS; order: the order of the slots, in SQL; constants: expected values
    of other columns, by name. With `constants`, one more column tells whether a slot has all these values."""
    session = " CROSS JOIN session v" if any(name in PER_SESSION for name in names) else ""
    conditions = ["s.decision_id = d.id", *(["v.id = d.session_id"] if session else []), *tests]
    tables = f"decision d CROSS JOIN slot s{session} WHERE {' AND '.join(conditions)} ORDER BY {order}"
    columns = {name: COLUMNS[name] for name in names}
    return _pending_query(
        unit, columns | ({_HOLDS: (np.bool_, _constant_test(constants))} if constants else {}), tables
    )


def ask_decisions(unit: Unit, names: Sequence[str], tests: Sequence[str]) -> PendingQuery:
    """Return a query for the ids of all decisions `d` that pass the tests, and for further columns of these decisions,
    in order of id. names: the further columns, by their names in COLUMNS."""
    columns = {name: COLUMNS[name] for name in ("decision_id", *names)}
    return _pending_query(unit, columns, f"decision d WHERE {' AND '.join(tests)} ORDER BY d.id")


def _pending_query(unit: Unit, columns: Mapping[str, tuple[type, str]], tables: str) -> PendingQuery:
    """Return a query for columns. columns: the type and SQL expression of each column, by name, as in COLUMNS; tables:
    the part of the query after FROM."""
    texts = ", ".join(text for _, text in columns.values()).replace("{empty}", _NO_BYTES[unit.postgres])
    return PendingQuery(unit, f"SELECT {texts} FROM {tables}", {name: kind for name, (kind, _) in columns.items()})


RangeQuery = Callable[[Unit, int, int], PendingQuery]


def ask_visits(unit: Unit, low: int, high: int) -> PendingQuery:
    """Return a query for the visits of the sessions with low < id <= high."""
    names = ("session_id", "number", "started_at", "last_at", "ended_at", "steps")
    columns = {name: (np.int64, name) for name in names} | {"ended_at": (np.int64, f"coalesce(ended_at, {ABSENT})")}
    return _pending_query(
        unit, columns, f"visit WHERE session_id > {low} AND session_id <= {high} ORDER BY session_id, number"
    )


def ask_keys(unit: Unit, low: int, high: int) -> PendingQuery:
    """Return a query for the keys of the sessions with low < id <= high, and for the keys of the users of these
    sessions."""
    columns = {"session_id": (np.int64, "v.id"), "key": (object, "v.key"), "user": (object, "coalesce(u.key, '')")}
    tables = "session v LEFT JOIN users u ON u.id = v.user_id"
    return _pending_query(unit, columns, f"{tables} WHERE v.id > {low} AND v.id <= {high} ORDER BY v.id")


def ask_events(
    unit: Unit, names: Sequence[str], tests: Sequence[str], *, tables: str = "decision d CROSS JOIN event e"
) -> PendingQuery:
    """Return a query for columns of the events of all decisions `d` that pass the tests.

    names: the columns, by their names in EVENTS; tables: the tables in SQL, in the order in which the database loops
    over them."""
    tables = f"{tables} WHERE {' AND '.join(['e.decision_id = d.id', *tests])}"
    if unit.postgres or unit.folder is not None:  # SQLite returns them in this order, in which values are added up
        tables += " ORDER BY e.decision_id, e.number"
    return _pending_query(unit, {name: EVENTS[name] for name in names}, tables)


def ask_returns(unit: Unit, tests: Sequence[str]) -> PendingQuery:
    """Return a query for the events `return` of all decisions `d` that pass the tests, with the session and the visit
    of each event."""
    names = ("decision_id", "position", "kind", "value", "at")
    columns: dict[str, tuple[type, str]] = {name: (np.int64, f"d.{name}") for name in ("session_id", "visit")}
    columns |= {name: EVENTS.get(name, (np.int64, f"e.{name}")) for name in names}
    tests = ["e.decision_id = d.id", f"e.kind = '{RETURN}'", *tests]
    return _pending_query(
        unit, columns, f"decision d CROSS JOIN event e WHERE {' AND '.join(tests)} ORDER BY d.id, e.number"
    )


def set_cells(unit: Unit, sets: Ids) -> Ids:
    """Return the number of arms in the eligible set of each row, (n,). If several rows have the same set, only the
    first of them gets the number, and the others get 0. sets (n,): the id of the eligible set of each row."""
    first_rows, _ = distinct(sets)
    sizes, cells = contents.set_sizes(unit, sets[first_rows].tolist()), np.zeros(len(sets), np.int64)
    cells[first_rows] = [sizes[key] for key in sets[first_rows].tolist()]
    return cells


class PendingContexts:
    """A PendingContexts object is a query for contexts whose answer may not have arrived yet. ids: the ids of the
    contexts, ascending."""

    def __init__(self, unit: Unit, ids: Ids) -> None:
        self._ids, self._query = ids, None
        if not len(ids):
            return
        first, last = int(ids[0]), int(ids[-1])
        is_dense = last - first < 2 * len(ids)
        test = f"id >= {first} AND id <= {last}" if is_dense else f"id IN ({numbers(ids.tolist())})"
        text = f"SELECT id, body FROM context WHERE {test} ORDER BY id"
        self._query = PendingQuery(unit, text, {"id": np.int64, "body": object})

    def texts(self) -> ContextTexts:
        if self._query is None:
            return ContextTexts(self._ids, ())
        columns = self._query.columns()
        stored_texts = ContextTexts(columns["id"], columns["body"].tolist())
        return ContextTexts(self._ids, stored_texts.select(self._ids))


def read_slots(query: PendingQuery) -> Columns:
    """Return the columns that a query from `ask_slots` answers. A missing probability is NaN in the result."""
    slots = query.columns()
    for name, column in slots.items():
        if column.dtype == np.float64 and name != "score" and (is_missing := column > 1).any():
            column[is_missing] = np.nan
    return slots
