"""This module defines a unit: one transaction, its clock, and the few operations through which the query modules use
the database.

Queries that every command runs are SQL text that is passed to the driver unchanged, since building and compiling an
SQLAlchemy expression costs more than the query. SQLAlchemy only builds the queries that are derived from the
definitions of tables (`audit`)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache, partial
from itertools import count
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa

from rlrec.errors import RlrecError
from rlrec.store.database import engine

Row = tuple[Any, ...]
Record = TypeVar("Record", bound=NamedTuple)
K = TypeVar("K")
V = TypeVar("V")
# Called repeatedly in long work: a noun for what is counted, the number so far, and the share of all, if known.
Progress = Callable[[str, int, float | None], None]
_TABLES = (
    "decision|slot|event|users|session|visit|context|candidate_list|route_decision|decision_features|slot_set|"
    "logged_support|team_draft"
)
_LOG_ROWS = re.compile(rf'\b(?:FROM|JOIN) "?(?:{_TABLES})\b')
_settings_rows = lru_cache(256)(
    re.compile(r'\b(?:INTO|UPDATE|FROM) "?(?:settings|reward|merged_user|exclusion)\b').search
)
_streams = count(1)  # numbers of server-side cursors
BATCH = 20_000  # rows of a stream
NEXT_ID = "SELECT coalesce(max(id), 0) + 1 FROM {}"  # of SQLite
FEW = 20  # rows that PostgreSQL takes one by one as fast as at once


def no_progress(noun: str, rows: int, share: float | None) -> None:
    """Do nothing. A unit calls this function to report progress until a command sets another function. noun: what is
    counted; rows: the number so far; share: the fraction of the work that is done, or None."""


class Unit:
    """A Unit is one transaction. now: its time, in microseconds since 1970 UTC; on_clock: whether this time is from the
    database's clock."""

    progress: Progress = staticmethod(no_progress)
    note_exclusions: Callable[[Callable[[], str | None]], None] = staticmethod(lambda sentence: None)

    def __init__(self, connection: sa.Connection, *, now: int, on_clock: bool = False) -> None:
        self._connection, self.now, self.on_clock = connection, now, on_clock
        self._cursor: Any = connection.connection.cursor()
        self._changes: list[tuple[str, Sequence[Any]]] = []  # changes that are sent with the next query
        self.gathers = False  # whether small changes wait; whoever sets it must call `send` at the end
        self.postgres = connection.dialect.name == "postgresql"
        self.repeatable = False  # whether repeating the same work would change nothing
        # the server, and its number for a writing transaction; None if it cannot say whether that was committed
        self.transaction: tuple[Any, str] | None = None
        self.arrow_worker: Any = None  # reads the same snapshot in bulk: see `bulk.alongside`
        self.alongside = False  # whether that was tried: the snapshot is no longer renewed
        # of SQLite, as the unit found them: the row of settings, until it changes, and the next ids of some tables
        self.settings: Row | None = None
        self.next_ids: dict[str, int] = {}
        # by policy: its head and the learning versions, until a ledger takes them; None: not kept
        self.heads: dict[int, tuple[Any, list[Any]]] | None = None
        self.extents: dict[Any, Any] = {}  # of selections of the log; the snapshot does not change
        self.partitions: Any = None  # of the log, in files for further reads: see `partitions.share_partitions`
        self.marginals: dict[Any, Any] = {}  # of distributions that decisions were drawn from
        self.folder: Any = None  # a `FolderLog`, from which the log is read instead of the store

    def close(self) -> None:
        """Close the cursor. If the garbage collector closed it, this could happen in a thread that holds the store's
        lock: the thread would wait for this connection while the connection waits for the lock."""
        with suppress(self._connection.dialect.loaded_dbapi.Error):  # the file is closed
            self._cursor.close()

    def clock(self) -> int:
        """Return the present time of the database's clock, even if the time of the unit (`now`) is another one."""
        return engine.clock(self.connection)

    # -- SQL text: `?` stands for a value, `IN (?*)` for membership in a list --

    @property
    def driver(self) -> Any:
        """Return a cursor of the driver within this transaction. Statements put off by `note` are executed first."""
        if self._changes:
            self.send()
        return self._cursor

    @property
    def connection(self) -> sa.Connection:
        """Return the connection of this transaction. Statements put off by `note` are executed first."""
        if self._changes:
            self.send()
        return self._connection

    def send(self) -> None:
        """Execute the statements that `note` has put off, in order. On PostgreSQL this takes one round trip."""
        changes, self._changes = self._changes, []
        with self._connection.connection.pipeline() if len(changes) > 1 else nullcontext():
            for text, values in changes:
                self._cursor.execute(text, values)

    def ask(self, text: str, *values: Any) -> list[Row]:
        """Return all rows of a query."""
        if self.folder is not None and self.in_folder(text):
            return self.folder.ask(text, *values)
        return self._run(text, values).fetchall()

    @contextmanager
    def reading(self, folder: Any) -> Iterator[None]:
        """In this context, read the log from the given folder, or from the store if the folder is None."""
        previous_folder, self.folder = self.folder, folder
        try:
            yield
        finally:
            self.folder = previous_folder

    def in_folder(self, text: str) -> bool:
        """Tell whether a query is answered from a folder: the unit reads the log from one, and the query reads the
        log."""
        return self.folder is not None and _LOG_ROWS.search(text) is not None

    def records(self, kind: type[Record], text: str, *values: Any) -> list[Record]:
        """Return each row of a query as a record of this kind. The columns become the fields of the record, in
        order."""
        return list(map(partial(tuple.__new__, kind), self.ask(text, *values)))

    def select(self, kind: type[Record], source: str, *values: Any) -> list[Record]:
        """Return rows of a table as records of this kind. Only the columns that are fields of the record are read.
        source: the text of the query after FROM."""
        return self.records(kind, f"SELECT {', '.join(kind._fields)} FROM {source}", *values)

    def portions(self, text: str) -> Iterator[list[Row]]:
        """Yield all rows of a query in portions, while they arrive. The cursor is closed even if the caller stops
        early."""
        if self.in_folder(text):
            yield from map(list, slices(self.folder.ask(text), BATCH))
            return
        driver: Any = self.connection.connection
        cursor = driver.cursor(name=f"rows_{next(_streams)}") if self.postgres else driver.cursor()
        try:
            cursor.execute(text)
            while rows := cursor.fetchmany(BATCH):
                yield rows
        finally:
            with suppress(self.connection.dialect.loaded_dbapi.Error):  # if the store was closed before
                cursor.close()

    def ask_all(self, *queries: tuple[Any, ...]) -> list[list[Row]]:
        """Execute several queries in order, and return a list with all rows of each query. PostgreSQL needs only one
        round trip, and each query sees what was committed before this query began.

        queries: for each query, its text and its values."""
        if not self.postgres:
            return [self.ask(*query) for query in queries]
        connection: Any = self.connection.connection
        cursors = [connection.cursor() for _ in queries]
        with connection.pipeline():
            for cursor, (text, *values) in zip(cursors, queries, strict=True):
                cursor.execute(_postgres_text(text), [_as_list(value) for value in values])
        return [cursor.fetchall() for cursor in cursors]

    def ask_row(self, text: str, *values: Any) -> Row | None:
        """Return the first row of a query, or None if there is no row. (All rows are read, since SQLite keeps a query
        open until its last row is read.)"""
        return next(iter(self.ask(text, *values)), None)

    def ask_value(self, text: str, *values: Any) -> Any:
        """Return the first value of the first row of a query, or None if there is no row."""
        row = self.ask_row(text, *values)
        return None if row is None else row[0]

    def ask_groups(self, text: str, *values: Any) -> dict[Any, list[Any]]:
        """Return a list for each value of the first column of a query, by this value. The list has the values of the
        second column, in order; if there are further columns, it has a tuple of all columns after the first."""
        groups: dict[Any, list[Any]] = {}
        for key, *row in self.ask(text, *values):
            groups.setdefault(key, []).append(tuple(row) if row[1:] else row[0])
        return groups

    def tell(self, text: str, *values: Any) -> int:
        """Execute a statement that changes rows, and return the number of changed rows."""
        return int(self._run(text, values).rowcount)

    def note(self, text: str, *values: Any) -> None:
        """Execute a statement that changes rows, without returning their number. On PostgreSQL the statement is put off
        until the next query or the end of the transaction, so that several statements take one round trip."""
        if self.gathers and self.postgres:
            self._changes.append((_postgres_text(text), [_as_list(value) for value in values]))
        else:
            self._run(text, values)

    def tell_each(self, text: str, rows: Iterable[Row]) -> None:
        """Execute a statement that changes rows once for each row of values."""
        values = rows if isinstance(rows, list) else list(rows)
        if self.settings is not None and not text.startswith("SELECT") and _settings_rows(text):
            self.settings = None
        if self.postgres and len(values) == 1:  # psycopg's pipeline for many rows takes longer than a single row
            self.driver.execute(_postgres_text(text), values[0])
        else:
            self.driver.executemany(_postgres_text(text) if self.postgres else text, values)

    def _run(self, text: str, values: Sequence[Any]) -> Any:
        cursor = self.driver
        if self.postgres:
            return cursor.execute(_postgres_text(text), [_as_list(value) for value in values])
        if self.settings is not None and not text.startswith("SELECT") and _settings_rows(text):
            self.settings = None
        return cursor.execute(*_sqlite_text(text, values)) if "(?*)" in text else cursor.execute(text, values)

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Row], *, on_conflict: str = "") -> None:
        """Insert rows into a table, in the fastest way of the database. on_conflict: the text after ON CONFLICT; if it
        is empty, a conflict is an error."""
        values = rows if isinstance(rows, list) else list(rows)
        if self.postgres and len(values) > FEW:
            self._insert_many(table, columns, values, on_conflict)
        elif self.postgres and self.gathers:
            text = _postgres_text(_insertion(table, tuple(columns), on_conflict))
            self._changes += [(text, row) for row in values]
        elif values:
            self.tell_each(_insertion(table, tuple(columns), on_conflict), values)

    def _insert_many(self, table: str, columns: Sequence[str], rows: Iterable[Row], on_conflict: str) -> None:
        """Insert many rows into a table of PostgreSQL. The method uses COPY, or one statement over columns if
        `on_conflict` is given."""
        if not on_conflict:
            self.copy(table, columns, rows)
            return
        query = "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = ?::regclass"
        types: dict[str, str] = dict(self.ask(query, table))
        arrays = ", ".join(f"%s::{types[name]}[]" for name in columns)
        insertion = f'INSERT INTO "{table}" ({quote_columns(columns)}) SELECT * FROM unnest({arrays})'
        self.driver.execute(
            f"{insertion} ON CONFLICT {on_conflict}", [list(column) for column in zip(*rows, strict=True)]
        )

    def copy(self, table: str, columns: Iterable[str], rows: Iterable[Row]) -> None:
        """Insert rows into a table by COPY, which only PostgreSQL has."""
        with self.driver.copy(f'COPY "{table}" ({quote_columns(columns)}) FROM STDIN') as copy:
            for row in rows:
                copy.write_row(row)

    def add(self, table: str, **values: Any) -> int:
        """Insert one row into a table with an `id`, and return the id."""
        return int(self.ask_value(f"{_insertion(table, tuple(values), '')} RETURNING id", *values.values()))

    def reserve(self, table: str, count: int) -> Sequence[int]:
        """Reserve `count` ids of a table, which no other transaction will use, and return them in ascending order. On
        SQLite the unit must hold the write lock; on PostgreSQL the ids come from a sequence."""
        if self.postgres:
            text = f"SELECT nextval(pg_get_serial_sequence('{table}', 'id')) FROM generate_series(1, ?)"
            return sorted(int(row[0]) for row in self.ask(text, count))
        first = self.next_ids.get(table) or int(self.ask_value(NEXT_ID.format(table)))
        self.next_ids[table] = first + count
        return range(first, first + count)

    def rows(self, statement: sa.Executable) -> list[Row]:
        """Return all rows of a query that is an SQLAlchemy expression."""
        return [tuple(row) for row in self.connection.execute(statement)]


def slices(values: Sequence[V], size: int) -> Iterator[Sequence[V]]:
    """Yield all values, in slices of `size` values (the last slice may have fewer)."""
    return (values[start : start + size] for start in range(0, len(values), size))


def quote_columns(columns: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in columns)


@lru_cache(maxsize=256)
def _postgres_text(text: str) -> str:
    return text.replace("IN (?*)", "= ANY(%s)").replace("?", "%s")


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, set | frozenset | tuple) or hasattr(value, "keys") else value


def _sqlite_text(text: str, values: Sequence[Any]) -> tuple[str, list[Any]]:
    """Return the text and the values of a query in the form that SQLite takes. A list of values becomes one JSON text,
    so that the text of the query does not depend on the length of the list. In lists of bytes, which JSON cannot hold,
    and in lists with one value, each value has its own placeholder."""
    parameters: list[Any] = []
    for value in values:
        if isinstance(value, str | bytes | int | float | None):
            parameters.append(value)
        elif len(items := list(value)) == 1 or (items and isinstance(items[0], bytes)):
            text = text.replace("?*", ",".join("?" * len(items)), 1)
            parameters += items
        else:
            parameters.append(json.dumps(items, ensure_ascii=False))
            text = text.replace("?*", "SELECT value FROM json_each(?)", 1)
    return text, parameters


@lru_cache(maxsize=64)
def _insertion(table: str, columns: tuple[str, ...], on_conflict: str) -> str:
    placeholders = ", ".join("?" * len(columns))
    conflict_clause = f" ON CONFLICT {on_conflict}" if on_conflict else ""
    names = '", "'.join(columns)
    return f'INSERT INTO "{table}" ("{names}") VALUES ({placeholders}){conflict_clause}'


# -- rows that are missing or unreadable since someone changed the database by hand --


def damage_error(damage: str) -> RlrecError:
    return RlrecError(f"the store is damaged: {damage}", hint="`rlrec doctor` finds what else is; go back to a backup")


class StoredRows(dict[K, V]):
    """A StoredRows is a dictionary of rows of a table by id. Looking up an id that is missing raises RlrecError."""

    def __init__(self, table: str, rows: Iterable[tuple[K, V]] = ()) -> None:
        super().__init__(rows)
        self.table = table

    def __missing__(self, key: K) -> V:
        raise damage_error(f"row {key} of table {self.table} is gone")


def to_text(value: Any) -> str:
    """Return a value as JSON in the form that the store uses: without blanks, and with keys in order."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def parse(text: str, column: str, kind: type = dict) -> Any:
    """Return the value of a JSON text from a column. Raise RlrecError if the text is no JSON, or if its value is not of
    the Python type `kind`. column: a description of the column, table and row, for the text of the error."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise damage_error(f"{column} is {text[:40]!r}")
    return value
