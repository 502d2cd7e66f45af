"""Functions here copy the rows of a store to another database, table by table. The copy is exact. It is made in
batches, so that an interrupted copy can be continued."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from rlrec import drafts
from rlrec.errors import CheckFailed, InputError, RlrecError, StoreBusy
from rlrec.store.database import database_errors, engine, schema
from rlrec.store.database import tables as t
from rlrec.store.database.unit import Row, Unit, quote_columns

if TYPE_CHECKING:
    from rlrec.store import Store

# a lease belongs to a process, not to the log
TABLES = [table for table in t.metadata.sorted_tables if table is not t.lease]
FILLED_BY_INIT = ("settings", "reward", "run")  # tables in which `init` stores rows
BACKUP_PAGES = 10_000  # of SQLite, in one step of a backup


def fingerprint(unit: Unit) -> str:
    """Return a text that changes with every write after which an unfinished copy of the store would be inconsistent."""
    values: list[Any] = [unit.ask_value(f"SELECT count(*) FROM {table.name}") for table in TABLES]
    values += unit.ask("SELECT policy_id, seq, ordinal, live_id FROM policy_head ORDER BY policy_id")
    values += unit.ask("SELECT max(last_at), count(ended_at), max(ended_at) FROM visit")
    values += unit.ask("SELECT salt, created_at, catalogue_revision, catalogue_id, removals FROM settings")
    values += unit.ask("SELECT catalogue_from, catalogue_until FROM settings")
    values += unit.ask("SELECT id, status, entered_to FROM version ORDER BY id")
    values += unit.ask("SELECT (SELECT count(stopped_at) FROM shadow), (SELECT count(user_id) FROM session)")
    return blake2b(repr(values).encode(), digest_size=10).hexdigest()


def _file_mode(source_path: str) -> int:
    """Return the permissions for the copy of a file. Only users who may read the file may read the copy."""
    return os.stat(source_path).st_mode & 0o777 | 0o600


@contextmanager
def _snapshot(store: Store) -> Iterator[Unit]:
    """Yield a unit on a snapshot of a store, whose schema may be older than the present one. Raise CheckFailed if there
    is no store."""
    with engine.transaction(store.engine, write=False, address=store.address) as connection:
        if schema.revision(connection, address=store.address) is None:
            raise database_errors.no_store(store.address)
        yield Unit(connection, now=0)


def size(store: Store) -> int:
    """Return the size of the file of an SQLite store, in bytes."""
    with _snapshot(store) as unit:
        return int(unit.ask_value("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"))


def backup_command(address: str, path: str) -> str:
    """Return the command line that writes a backup of a store to a file."""
    if "://" in address:
        without_password = re.sub(r"(://[^:/?#@]*):.*@", r"\1@", address)  # pg_dump asks for it
        return f"pg_dump --format=custom --file={quote(path)} {quote(without_password)}"
    return f"rlrec --db {quote(address)} db backup {quote(path)}"


def count_rows(unit: Unit) -> int:
    return sum(int(unit.ask_value(f"SELECT count(*) FROM {table.name}")) for table in TABLES)


def read_rows(unit: Unit, table: sa.Table, *, n_skipped: int) -> Iterator[list[Row]]:
    """Yield the rows of a table in portions, in order of the primary key. The first `n_skipped` rows are left out."""
    keys = quote_columns(column.name for column in table.primary_key)
    text = f'SELECT {quote_columns(column.name for column in table.columns)} FROM "{table.name}" ORDER BY {keys}'
    text += f" LIMIT ALL OFFSET {n_skipped}" if unit.postgres else f" LIMIT -1 OFFSET {n_skipped}"
    return unit.portions(text)


class CopyTarget:
    """A CopyTarget is the database to which a store is copied. Until the copy is complete, the revision of the database
    is `schema.COPYING` with the fingerprint of the source, so that no command mistakes the database for a store."""

    def __init__(self, db: str, source: str, *, like: str | None = None) -> None:
        """Connect to the database that gets the copy. source: the fingerprint of the store that is copied; like: the
        file of this store, whose permissions are used for a new file."""
        self.url, self.mark = engine.location(db), schema.COPYING + source
        self.address = engine.printable_address(self.url)
        self._engine, self._like = engine.connect(self.url), like

    def begin(self) -> bool:
        """Create the tables of the copy, and return False. If the database has an unfinished copy of the same
        source, change nothing, and return True. Raise CheckFailed if the database holds a store, or a copy of
        another source."""
        stored_revision = self._revision()
        if stored_revision == self.mark:
            return True
        if stored_revision.startswith(schema.COPYING):
            hint = "the store has changed since: empty the target and begin again"
            raise CheckFailed(f"{self.address} holds the beginning of another copy", hint=hint)
        is_new_file = self.url.drivername == "sqlite" and not os.path.lexists(self.address)
        if self._like is not None and is_new_file:
            with suppress(OSError):  # it cannot be created: reported below
                drafts.create(self.address, _file_mode(self._like)).close()
        try:
            schema.upgrade(self.url)
        except RlrecError:
            if is_new_file and not self._revision():
                for suffix in ("", "-wal", "-shm"):
                    Path(self.address + suffix).unlink(missing_ok=True)
            raise
        with self.write() as unit:
            filled_tables = {table.name for table in TABLES if unit.ask_row(f'SELECT 1 FROM "{table.name}" LIMIT 1')}
            if filled_tables.difference(FILLED_BY_INIT) or unit.ask_value("SELECT count(*) FROM reward") > 1:
                hint = "copy to an empty database, or to a file that is not there"
                raise CheckFailed(f"{self.address} holds a store already", hint=hint)
            for name in FILLED_BY_INIT:
                unit.tell(f"DELETE FROM {name}")
            unit.tell(f"UPDATE {schema.VERSION_TABLE} SET version_num = ?", self.mark)
        return False

    def _revision(self) -> str:
        """Return the revision of the database, or an empty text if the database has no revision."""
        if self.url.drivername == "sqlite" and not os.path.exists(self.address):
            return ""
        with engine.transaction(self._engine, write=False, address=self.address) as connection:
            return next(iter(schema.revisions(connection) or []), "")

    def count(self, table: sa.Table) -> int:
        """Return the number of rows that have been copied to a table so far."""
        with self.write() as unit:
            return int(unit.ask_value(f'SELECT count(*) FROM "{table.name}"'))

    def add(self, table: sa.Table, batch: list[Row]) -> None:
        with self.write() as unit:
            unit.insert(table.name, [column.name for column in table.columns], batch)

    def finish(self) -> None:
        """Let new ids in the copy start after the highest ids of the source, and mark the database as a store."""
        with self.write() as unit:
            if unit.postgres:
                for table in (table for table in TABLES if "id" in table.columns):
                    if sequence := unit.ask_value("SELECT pg_get_serial_sequence(?, 'id')", table.name):
                        last_id = int(unit.ask_value(f"SELECT coalesce(max(id), 0) FROM {table.name}"))
                        if table is t.decision:
                            last_id = max(last_id, unit.ask_value("SELECT removed_to FROM settings") or 0)
                        unit.ask("SELECT setval(?, ?, ?)", sequence, max(last_id, 1), last_id > 0)
                unit.tell("ANALYZE")
            unit.tell(f"UPDATE {schema.VERSION_TABLE} SET version_num = ?", schema.HEAD)

    @contextmanager
    def write(self) -> Iterator[Unit]:
        """Yield the unit of a transaction on the database, which is not a store yet. Raise StoreBusy if another process
        also copies to this database."""
        try:
            with engine.transaction(self._engine, write=True, address=self.address, references_hold=True) as connection:
                yield Unit(connection, now=0)
        except (database_errors.Retry, database_errors.NotUnique) as error:
            message = f"another process copies to {self.address}"
            raise StoreBusy(message, hint="let it end; repeat the command where it was stopped") from error
        except RlrecError as error:
            error.hint = (error.hint or "").removeprefix("nothing was stored; ") or None  # earlier batches were
            raise

    def close(self) -> None:
        self._engine.dispose()


def backup(store: Store, path: str) -> int:
    """Write a snapshot of an SQLite store to a new file, and return the size of this file in bytes. The file gets its
    name only when it is complete and on disk. Raise InputError if the file exists, and RlrecError if the file cannot be
    written."""
    for leftover_path in (f"{path}-wal", f"{path}-journal"):
        if os.path.exists(leftover_path):
            text = f"{leftover_path} is left of another database: SQLite would write it into the backup"
            raise InputError(text, hint="name another file, or delete it")
    try:
        with (
            drafts.complete(path, stem=f"{path}.unfinished-", mode=_file_mode(store.address), replaces=False) as draft,
            closing(sqlite3.connect(draft.name, isolation_level=None)) as target,
            _snapshot(store) as unit,
        ):
            _write_snapshot(unit, target, path)
        return os.stat(path).st_size
    except FileExistsError:
        raise InputError(f"{path} exists already", hint="name a new file") from None
    except (OSError, sqlite3.Error) as error:
        raise _unwritable(path, error) from error


def _write_snapshot(unit: Unit, target: sqlite3.Connection, path: str) -> None:
    source = unit.connection.connection.driver_connection
    assert source is not None
    try:
        target.execute("PRAGMA synchronous = FULL")
        target.execute("PRAGMA journal_mode = OFF")  # a journal would remain next to the draft of a killed process
        source.backup(target, pages=BACKUP_PAGES)
    except sqlite3.Error as error:  # an error of the target, since a snapshot can be read
        raise _unwritable(path, error) from error


def _unwritable(path: str, error: Exception) -> RlrecError:
    reason = getattr(error, "strerror", None) or str(error)
    return RlrecError(f"cannot write {path}: {reason.lower()}", hint="choose another path, or make room")
