"""Functions here insert rows column by column, in the fastest way of each database, and find stored ids and names for
imports."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import Any

from rlrec.store.database.unit import Row, Unit, quote_columns, slices

ROWS = 512  # in one statement of SQLite, a power of two
VALUES = 32_000  # in one statement of SQLite, whose limit is 32,766
PORTION = 10_000  # keys looked up at once
MAX_FETCHED = 10_000  # rows that are fetched at once rather than looked up by key


@dataclass(slots=True, unsafe_hash=True)
class Same:
    """A Same is a column that has the same value in every row."""

    value: Any


Column = Sequence[Any] | Same


def copy_rarely(unit: Unit) -> None:
    """Let SQLite copy its WAL to the file only every 256 MB. During an import, the identities of lines change the same
    pages in every transaction, so copying more often would write these pages again and again."""
    if not unit.postgres:
        unit.tell("PRAGMA wal_autocheckpoint = 64000")


def column(values: Sequence[Any]) -> Column:
    """Return a column of these values. The result is a `Same` if there are several values and all of them are equal."""
    return Same(values[0]) if len(values) > 1 and values.count(values[0]) == len(values) else values


def write(unit: Unit, table: str, columns: Mapping[str, Column], *, on_conflict: str = "") -> None:
    """Insert rows, given as columns, into a table. At least one column must not be a `Same`. on_conflict: the SQL text
    after ON CONFLICT; if it is empty, a conflict is an error."""
    if unit.postgres or next(len(column) == 1 for column in columns.values() if not isinstance(column, Same)):
        values = [repeat(column.value) if isinstance(column, Same) else column for column in columns.values()]
        rows = zip(*values)  # noqa: B905 (a `Same` is repeated endlessly)
        unit.insert(table, tuple(columns), rows, on_conflict=on_conflict)
    else:
        _insert(unit, table, columns, on_conflict)


@contextmanager
def without_checks(unit: Unit) -> Iterator[None]:
    """Switch off SQLite's tests of CHECK constraints in this context, for values that were checked before. One test of
    whether a value is among three takes as long as all other work on a short row."""
    if unit.postgres:
        yield
        return
    unit.tell("PRAGMA ignore_check_constraints = ON")
    try:
        yield
    finally:
        unit.tell("PRAGMA ignore_check_constraints = OFF")


def add_new(unit: Unit, table: str, columns: Mapping[str, Sequence[Any]]) -> dict[Any, int]:
    """Store rows, given as columns, which the caller has looked up and not found. Return the id of each row by the
    value of the first column, which must be unique. On PostgreSQL, a row that another writer has stored meanwhile does
    not change (SQLite has no other writer)."""
    name, keys = next(iter(columns.items()))
    if not keys:
        return {}
    if unit.postgres:
        unit.insert(table, tuple(columns), zip(*columns.values(), strict=True), on_conflict=f"({name}) DO NOTHING")
        return ids(unit, table, name, keys)
    new_ids = unit.reserve(table, len(keys))
    _insert(unit, table, {"id": new_ids, **columns})
    return dict(zip(keys, new_ids, strict=True))


def ids(unit: Unit, table: str, name: str, keys: Collection[Any]) -> dict[Any, int]:
    """Return the ids of the stored rows of a table whose column `name` has one of the given keys, by key. The column
    must be unique."""
    text = f"SELECT {name}, id FROM {table} WHERE {name} IN (?*)"
    return dict(row for portion in slices(list(keys), PORTION) for row in unit.ask(text, portion))


def _insert(unit: Unit, table: str, columns: Mapping[str, Column], on_conflict: str = "") -> None:
    """Insert rows into a table of SQLite, many rows with each statement, since executemany would cost more than the
    rows themselves. The number of rows of a statement is a power of 2, so that few different statements have to be
    prepared. The value of a `Same` is sent once per statement."""
    constants = [column.value for column in columns.values() if isinstance(column, Same)]
    # One list may be several columns: it is bound once.
    lists = {id(column): column for column in columns.values() if not isinstance(column, Same)}
    indexes = {key: index for index, key in enumerate(lists, 1)}
    sources = tuple("?" if isinstance(column, Same) else f"column{indexes[id(column)]}" for column in columns.values())
    n_lists, n_rows = len(lists), len(next(iter(lists.values())))
    flat_values: list[Any] = [None] * (n_lists * n_rows)
    for index, column in enumerate(lists.values()):
        # the driver searches an adapter for each bytes object, but not for a bytearray
        is_bytes = isinstance(column[0], bytes)
        flat_values[index::n_lists] = [value and bytearray(value) for value in column] if is_bytes else column
    start, n_batch_rows = 0, ROWS
    while start < n_rows:
        while n_batch_rows > min(n_rows - start, (VALUES - len(constants)) // n_lists):
            n_batch_rows //= 2
        text = _insertion(table, tuple(columns), sources, n_lists, n_batch_rows, on_conflict)
        unit.driver.execute(text, constants + flat_values[start * n_lists : (start + n_batch_rows) * n_lists])
        start += n_batch_rows


@lru_cache(maxsize=256)
def _insertion(
    table: str, names: Sequence[str], sources: Sequence[str], width: int, rows: int, on_conflict: str
) -> str:
    """Return the text of an INSERT of many rows. Its placeholders have no numbers, since from 3.12 on Python would look
    up the name of every numbered placeholder.

    names: the columns of the table; sources: what each column gets, `columnN` for the N-th value of a row, or ? for
    a value that is the same in all rows; width: the number of values of a row; rows: the number of rows."""
    placeholders = f"({','.join('?' * width)})"
    conflict_clause = f" WHERE true ON CONFLICT {on_conflict}" if on_conflict else ""
    columns, values = quote_columns(names), ",".join([placeholders] * rows)
    return f'INSERT INTO "{table}" ({columns}) SELECT {", ".join(sources)} FROM (VALUES {values}){conflict_clause}'


# -- what is stored already --


def stored_digests(unit: Unit, policy_id: int, digests: Sequence[bytes]) -> set[bytes]:
    """Return the digests, among the given ones, of lines that the policy has already imported."""
    text = "SELECT digest FROM import_line WHERE policy_id = ? AND digest IN (?*)"
    return {bytes(row[0]) for portion in slices(digests, PORTION) for row in unit.ask(text, policy_id, portion)}


def few_digests(unit: Unit, policy_id: int) -> set[bytes] | None:
    """Return the digests of all lines that the policy has imported, or None if there are MAX_FETCHED or more of these
    lines."""
    rows = unit.ask("SELECT digest FROM import_line WHERE policy_id = ? LIMIT ?", policy_id, MAX_FETCHED)
    return {bytes(row[0]) for row in rows} if len(rows) < MAX_FETCHED else None


def few_names(unit: Unit) -> tuple[list[str], list[str], dict[str, str]] | None:
    """Return all request ids, all feedback keys, and a dictionary from the key of each session that has a user to the
    key of this user. Return None if the store has MAX_FETCHED or more sessions, request ids or feedback keys."""
    source = "(SELECT key, user_id FROM session LIMIT ?) AS s LEFT JOIN users ON users.id = s.user_id"
    if len(owners := unit.ask(f"SELECT s.key, users.key FROM {source}", MAX_FETCHED)) >= MAX_FETCHED:
        return None
    requests = unit.ask("SELECT request_key FROM decision WHERE request_key IS NOT NULL LIMIT ?", MAX_FETCHED)
    keys = unit.ask("SELECT key FROM feedback_key LIMIT ?", MAX_FETCHED)
    if max(len(requests), len(keys)) >= MAX_FETCHED:
        return None
    return [row[0] for row in requests], [row[0] for row in keys], {key: user for key, user in owners if user}


def stored_sessions(unit: Unit, keys: Collection[str]) -> set[str]:
    """Return the keys, among the given ones, that have a stored session."""
    # Keys that begin with a time are mostly greater than all stored ones. PostgreSQL may order them differently.
    overlap = "SELECT EXISTS (SELECT 1 FROM session WHERE key BETWEEN ? AND ?)"
    if not keys or not (unit.postgres or unit.ask_value(overlap, min(keys), max(keys))):
        return set()
    text = "SELECT key FROM session WHERE key IN (?*)"
    return {row[0] for portion in slices(list(keys), PORTION) for row in unit.ask(text, portion)}


def marks(unit: Unit, policy_ids: Collection[int]) -> list[Row]:
    """Return a list that shows whether others have changed these policies or deleted decisions: if so, a later call
    returns another list. The list has a row for each policy: the policy id, the number of its last change, and the
    number of commands that deleted decisions. The heads of the policies must be locked."""
    columns = "policy_id, seq, (SELECT removals FROM settings)"
    return unit.ask(f"SELECT {columns} FROM policy_head WHERE policy_id IN (?*) ORDER BY policy_id", list(policy_ids))
