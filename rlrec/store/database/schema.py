"""This module creates, upgrades and checks the schema of a store. No other module imports Alembic, and this module
needs it only for `init`."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL

from rlrec.errors import CheckFailed, RlrecError
from rlrec.store.database import database_errors
from rlrec.store.database import engine as engines
from rlrec.store.database.unit import Row, Unit

HEAD = "0015"  # the revision that `tables` describes; commands check only this, with one SELECT
OLDEST = "0010"  # the oldest revision that the migrations can upgrade; release 0.1.0 upgrades older stores to it
VERSION_TABLE = "rlrec_version"
COPYING = "copy-"  # prefix of the revision of a database to which a store is being copied
LOCK = 0x726C726563  # the advisory lock that serialises migrations on PostgreSQL


def revision(connection: sa.Connection, *, address: str) -> str | None:
    """Return the revision of the schema of a store, or None if the database has no store. Raise CheckFailed if the
    revision cannot be determined."""
    stored_revisions = revisions(connection)
    if stored_revisions is None:
        return None
    if (problem := _revision_error(stored_revisions, address=address)) is not None:
        raise problem
    return stored_revisions[0]


def revisions(connection: sa.Connection) -> list[str] | None:
    """Return the revisions that the version table lists, or None if the database has no such table."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return [str(row[0]) for row in connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))]


def check(unit: Unit, *, address: str, write: bool = False, state: str = "", source: str = "") -> Row:
    """Check that the store has the revision that this program needs; raise CheckFailed if it has another one. Return
    the values of the columns in `state`, which the same SELECT reads.

    write: whether the transaction writes; the server may then end it if the client stops in the middle (see
    `engine.IDLE_TIMEOUT`). state: further columns, in SQL; source: the tables of these columns, joined to the
    version table. An older store may lack the columns and tables."""
    columns, server = ["version_num"], unit.connection.info.get("server") if write and unit.postgres else None
    if write and unit.postgres:
        columns.append(engines.IDLE_TIMEOUT)
    if server is not None:
        columns += ["pg_current_xact_id()::text", engines.EARLY_RELEASE if server[2] else "false"]
    try:
        rows = unit.ask(f"SELECT {', '.join(columns)}{state} FROM {VERSION_TABLE}{source}")
    except sqlite3.OperationalError as error:
        if not state or "no such" not in str(error):
            raise
        return check(unit, address=address, write=write)
    if server is not None and rows:
        unit.transaction, unit.connection.info["flush"] = (server, rows[0][2]), rows[0][3]
    if len(rows) != 1 or rows[0][0] != HEAD:
        raise _revision_error([row[0] for row in rows], address=address) or _out_of_date_error(
            rows[0][0], address=address
        )
    return rows[0][len(columns) :]


def _revision_error(revisions: Sequence[str], *, address: str) -> CheckFailed | None:
    """Return the error for a store that cannot be upgraded, or None if it can be. revisions: the rows of the version
    table."""
    if not revisions:
        message = f"the store {address} does not say its revision: its table {VERSION_TABLE} is empty"
        hint = f"restore a backup, or insert the revision it was at (the newest is {HEAD})"
        return CheckFailed(message, hint=hint)
    if len(revisions) > 1:
        message = f"the store {address} has {len(revisions)} revisions: {', '.join(sorted(revisions))}"
        return CheckFailed(message, hint=f"delete all but the one it is at from its table {VERSION_TABLE}")
    if revisions[0].startswith(COPYING):
        return CheckFailed(f"the store {address} is an unfinished copy", hint="repeat `rlrec db copy`")
    if not re.fullmatch(r"\d{4}", revisions[0]):
        return _unknown_revision_error(revisions[0], address=address)
    if revisions[0] > HEAD:
        message = f"the store {address} is at revision {revisions[0]}, made by a newer rlrec"
        return CheckFailed(message, hint="install that one")
    return None


def _out_of_date_error(revision: str, *, address: str) -> CheckFailed:
    """Return the error for a store that is older than this program. The error names the release that can upgrade the
    store."""
    if revision >= OLDEST:
        return database_errors.old_store(address)
    message = f"the store {address} is at revision {revision}, and this rlrec takes stores from {OLDEST} on"
    return CheckFailed(message, hint="back it up, then run `rlrec init` of rlrec 0.1.0, which brings it there")


def _unknown_revision_error(revision: str, *, address: str) -> CheckFailed:
    message = f"the store {address} is at revision {revision[:40]!r}, which this rlrec does not know"
    hint = f"install the rlrec that made it, or correct its table {VERSION_TABLE} (the newest is {HEAD})"
    return CheckFailed(message, hint=hint)


def migrations() -> Path:
    """Return the folder of the migrations. The folder is inside the installed package or, in a checkout, next to it."""
    package_folder = Path(__file__).resolve().parents[2]
    packaged_folder = package_folder / "migrations"
    return packaged_folder if packaged_folder.is_dir() else package_folder.parent / "migrations"


def upgrade(
    url: URL, *, dry_run: bool = False, waits: engines.Waits = engines.USUAL_WAITS,
    notify: Callable[[str], None] = lambda revision: None,
) -> tuple[str | None, str]:  # fmt: skip
    """Upgrade the schema of a store, or create the store. Return the revision before (None if there was no store) and
    the new revision. Several processes may call this function at the same time, since a lock lets only one process
    change the schema.

    dry_run: whether to roll back all changes at the end; notify: a function that is called with the revision of an
    older store before the store is changed."""
    address = engines.printable_address(url)
    if url.drivername == "sqlite":
        _refuse_left_changes(address)
        _refuse_foreign_file(address)
        if dry_run and not os.path.lexists(address):
            _check_folder(address)
            return None, HEAD
    engine = engines.connect(url, create=not dry_run, waits=waits)
    try:
        if url.drivername == "sqlite" and not dry_run and not engines.is_frozen(address):
            _switch_to_wal(engine, address=address, wait_s=engines.lock_timeout_s(waits))
        with engines.transaction(engine, write=True, address=address) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            old_revision = revision(connection, address=address)
            if old_revision is None and connection.dialect.name == "postgresql":
                _check_database(connection, address=address)
            if old_revision is not None and old_revision < OLDEST:
                raise _out_of_date_error(old_revision, address=address)
            if old_revision != HEAD:
                if old_revision is not None:
                    notify(old_revision)
                _run_alembic(connection, old_revision, address=address)
            if dry_run:
                connection.rollback()
            return old_revision, HEAD
    finally:
        engine.dispose()


def _check_folder(path: str) -> None:
    """Raise RlrecError if no file can be created at this path."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise RlrecError(f"cannot create {path}: no such folder", hint=f"make its folder first: {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RlrecError(f"cannot create {path}: permission denied", hint="choose another path with --db")


def _refuse_left_changes(path: str) -> None:
    """Raise RlrecError if the path has no store, but the WAL of a store that was moved or deleted. This WAL holds the
    last changes of that store, and SQLite would delete it."""
    wal_path = f"{path}-wal"  # looked for first: another `init` makes the store before it
    if os.path.exists(wal_path) and os.path.getsize(wal_path) and not os.path.lexists(path):
        hint = "move it beside the store, as STORE-wal, if nobody has opened that since; else delete it"
        raise RlrecError(f"{wal_path} holds the last changes of a store that is no longer at {path}", hint=hint)


def _refuse_foreign_file(path: str) -> None:
    """Raise RlrecError if a file is the database of another program. The function only reads the file."""
    try:
        with closing(sqlite3.connect(f"file:{quote(os.path.abspath(path))}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
    except sqlite3.Error:  # no file, or no database: opening it for writing will report that
        return
    _refuse_foreign(
        [row[0] for row in rows if not row[0].startswith("sqlite_")], address=path, alternative="another path"
    )


def _check_database(connection: sa.Connection, *, address: str) -> None:
    """Raise RlrecError if a PostgreSQL database has the tables of another program, or an encoding that cannot hold
    every key."""
    encoding = connection.exec_driver_sql("SELECT current_setting('server_encoding')").scalar_one()
    if encoding != "UTF8":
        hint = "create another one: createdb -E UTF8 -T template0 NAME"
        raise RlrecError(f"the database {address} has the encoding {encoding}, and a store needs UTF8", hint=hint)
    tables = connection.exec_driver_sql(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p', 'v')"
        " AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')"
    )
    _refuse_foreign([row[0] for row in tables], address=address, alternative="another database or schema")


def _refuse_foreign(tables: Sequence[str], *, address: str, alternative: str) -> None:
    if tables and VERSION_TABLE not in tables:
        names = ", ".join(sorted(tables)[:3]) + (", ..." if len(tables) > 3 else "")
        message = f"{address} is the database of another program: it has the tables {names}"
        raise RlrecError(message, hint=f"give {alternative} with --db")


def _switch_to_wal(engine: sa.Engine, *, address: str, wait_s: float) -> None:
    """Switch the file to the journal mode WAL, permanently. SQLite needs exclusive access for this and does not wait
    for it, so the function tries repeatedly, for at most `wait_s` seconds."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with closing(engine.raw_connection()) as driver_connection:
                if driver_connection.cursor().execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal":
                    return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise database_errors.creation_error(error, address=address) from error
        except sqlite3.Error as error:
            raise database_errors.translate(error, address=address) from error
        if time.monotonic() > deadline:
            raise database_errors.lock_error(address)
        from random import uniform

        time.sleep(uniform(0.002, 0.02))


def _run_alembic(connection: sa.Connection, old_revision: str | None, *, address: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise _unknown_revision_error(str(old_revision), address=address) from error
