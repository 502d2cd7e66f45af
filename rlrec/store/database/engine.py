"""Functions here create engines for URLs or paths of databases, and transactions that lose nothing.

On SQLite, a transaction that writes takes the write lock when it begins, since a reader that becomes a writer cannot
wait for the lock; a transaction that only reads never takes the lock. On PostgreSQL, writers run at the level READ
COMMITTED with row locks, and readers see one snapshot."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NamedTuple
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, make_url

from rlrec.errors import InputError, OutcomeUnknown, RlrecError, StoreBusy
from rlrec.store.database import database_errors

BUSY_TIMEOUT_S = 30
# Of SQLite. Pages that a stream changes repeatedly are copied from the WAL to the file every 32 MB, not every 4.
SETTINGS = ("foreign_keys = ON", "synchronous = NORMAL", "cache_size = -64000", "wal_autocheckpoint = 8000")
CONNECT_TIMEOUT_S = 6
# A client that stops within a writing transaction holds its locks for at most this time.
IDLE_TIMEOUT = "set_config('idle_in_transaction_session_timeout', '120s', true)"
# Of PostgreSQL: settings that queries rely on, whatever the role or the database sets. Writers run READ COMMITTED, too.
POSTGRES_SETTINGS = {
    "client_encoding": "'UTF8'",
    "standard_conforming_strings": "'on'",
    "bytea_output": "'hex'",
    "array_nulls": "'on'",
    "extra_float_digits": "'1'",  # doubles are read as they were stored
    # pg_dump empties it, also in a connection that a pooler then gives to others
    "search_path": """CASE WHEN current_setting('search_path') <> '' THEN current_setting('search_path')
        ELSE (SELECT reset_val FROM pg_settings WHERE name = 'search_path') END""",
}
# If no lock timeout is set, use one that ends before the statement timeout: a wait for a lock is then reported as such.
_LOCK_TIMEOUT = f"""CASE
    WHEN current_setting('lock_timeout') <> '0' THEN current_setting('lock_timeout')
    WHEN current_setting('statement_timeout')::interval BETWEEN '1ms' AND '{BUSY_TIMEOUT_S}s'
        THEN greatest(1, 900 * extract(epoch FROM current_setting('statement_timeout')::interval))::int || 'ms'
    ELSE '{BUSY_TIMEOUT_S}s' END"""
# The locks of a transaction are released before it is on disk, so that those who wait for them need not wait for the
# disk, too; the committing process waits for the disk afterwards, in `flush`. True, unless the role wants no such wait.
EARLY_RELEASE = """CASE WHEN current_setting('synchronous_commit') <> 'off'
    THEN set_config('synchronous_commit', 'off', true) END IS NOT NULL"""
# The identity of the server (transaction ids mean nothing to another one, or after a replica took over), and whether
# the role may do what `flush` does.
_SERVER = """SELECT system_identifier::text, left(pg_walfile_name(pg_current_wal_lsn()), 8),
    (SELECT bool_and(has_function_privilege(oid, 'execute')) FROM pg_proc WHERE proname = 'pg_logical_emit_message')
    FROM pg_control_system() WHERE NOT pg_is_in_recovery()"""
_MICROS = "SELECT (extract(epoch FROM {}) * 1000000)::bigint"
CLOCK = _MICROS.format("clock_timestamp()")  # of PostgreSQL, in a writing transaction
NOW = _MICROS.format("CASE WHEN pg_is_in_recovery() THEN pg_last_xact_replay_timestamp() ELSE clock_timestamp() END")
RECONNECT_S = 10
logging.getLogger("psycopg").addHandler(logging.NullHandler())  # errors are raised, and printed once
URL_HINT = "use a path, sqlite:///FILE or postgresql://HOST/NAME"


class Waits(NamedTuple):
    """This record has the longest times, in microseconds, that a command waits for the database.

    lock: the longest wait for a lock that another process holds (None: the setting of the role or the database, else
    30 s). statement: the longest time of a single statement (None: the setting of the role or the database).
    reconnect: the longest wait for an unreachable server (None: 10 s for a server that was reached before)."""

    lock: int | None = None
    statement: int | None = None
    reconnect: int | None = None


USUAL_WAITS = Waits()


def location(db: str) -> URL:
    """Return the URL of a database, given as a URL or a path. Raise InputError for an unsupported scheme, and for a URL
    whose password cannot be told from its other parts."""
    if "\0" in db:
        raise InputError("the database URL or path holds a NUL", hint="give another path with --db")
    if "://" not in db:
        if re.match(r"(postgres|sqlite)\w*(\+\w+)?:|\w[\w+.-]*:.*@", db):
            raise InputError("the database URL has no //", hint=URL_HINT)
        path = os.path.expanduser(db)
    elif not db.startswith("sqlite") and db.partition("?")[0].count("@") > 1:
        raise InputError("the database URL has more than one @", hint="write the @ of a password or a name as %40")
    else:
        try:
            url = make_url(db)
        except (exc.ArgumentError, ValueError):
            # the original error quotes the URL
            raise InputError("the database URL cannot be read", hint=URL_HINT) from None
        if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
            return url.set(drivername="postgresql+psycopg")
        if url.drivername != "sqlite" or not url.database:
            raise InputError(f"rlrec does not speak {url.drivername!r}", hint=URL_HINT)
        path = url.database
    if ":memory:" in path:
        raise InputError("a store in memory would end with the command", hint="give the path of a file with --db")
    return URL.create("sqlite", database=path)


def printable_address(url: URL) -> str:
    """Return a name for the database that can be printed: a path, or a URL without anything that may be secret."""
    if url.drivername == "sqlite":
        return str(url.database)
    query = {name: value for name, value in url.query.items() if name in ("host", "port", "user", "dbname")}
    return url.set(drivername="postgresql", query=query).render_as_string(hide_password=True)


def connect(url: URL, *, create: bool = False, waits: Waits = USUAL_WAITS) -> sa.Engine:
    """Create an engine for the database at `url`. A missing SQLite file is created only if `create` is set."""
    if url.drivername == "sqlite":
        return _sqlite(str(url.database), create=create, timeout_s=lock_timeout_s(waits))
    try:
        import psycopg
    except ImportError as error:
        raise RlrecError("PostgreSQL needs the driver psycopg", hint="pip install 'rlrec[postgres]'") from error
    arguments = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_TIMEOUT_S}
    engine = sa.create_engine(url, connect_args=arguments, pool_size=2, isolation_level="READ COMMITTED")
    values = dict(POSTGRES_SETTINGS)
    for name, micros in (("statement_timeout", waits.statement), ("lock_timeout", waits.lock)):
        if micros is not None:  # for PostgreSQL, 0 means no limit
            values[name] = f"'{max(1, micros // 1000)}ms'"
    values.setdefault("lock_timeout", _LOCK_TIMEOUT)  # last, for it reads the other one
    # A pooler gives each transaction any connection to the server, and names another process than the one that serves.
    pooler_condition = "pg_backend_pid() <> {process}"
    settings_text = ", ".join(f"set_config('{name}', {value}, {pooler_condition})" for name, value in values.items())

    @event.listens_for(engine, "connect", insert=True)
    def configure(connection: Any, record: sa.pool.ConnectionPoolEntry) -> None:
        connection.autocommit = True
        text = f"SELECT {pooler_condition}, {settings_text}".format(process=connection.info.backend_pid)
        record.info["settings"] = None
        if connection.execute(text).fetchone()[0]:
            record.info["settings"] = text  # of each transaction, so that other clients keep theirs
            connection.prepare_threshold = None  # a statement of another client may have the same name
        with suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction):
            record.info["server"] = connection.execute(_SERVER).fetchone()
        connection.autocommit = False

    @event.listens_for(engine, "begin")
    def configure_transaction(connection: sa.Connection) -> None:
        if (text := connection.info["settings"]) is not None:
            connection.exec_driver_sql(text)

    @event.listens_for(engine, "checkout")
    def forget_reading(connection: Any, *_: object) -> None:
        connection.read_only = None  # the setting of the role or the database; False would be READ WRITE

    return engine


def lock_timeout_s(waits: Waits) -> float:
    """Return how long, in seconds, SQLite waits for its only lock."""
    return BUSY_TIMEOUT_S if waits.lock is None else waits.lock / 1e6


def _sqlite(path: str, *, create: bool, timeout_s: float) -> sa.Engine:
    def open_file() -> sqlite3.Connection:
        mode = "ro&immutable=1" if is_frozen(path) else "rwc" if create else "rw"
        name = f"file:{quote(os.path.abspath(path))}?mode={mode}"
        # The pool gives a connection to one thread at a time.
        connection = sqlite3.connect(name, uri=True, isolation_level=None, timeout=timeout_s, check_same_thread=False)
        try:
            for setting in SETTINGS:
                connection.execute(f"PRAGMA {setting}")
        except sqlite3.Error:  # e.g. the file is no database
            connection.close()
            raise
        return connection

    pool: dict[str, Any] = {"poolclass": sa.QueuePool, "pool_size": 2}
    if is_frozen(path):  # pages that a connection has read may be out of date
        pool = {"poolclass": sa.NullPool}
    engine = sa.create_engine("sqlite+pysqlite://", creator=open_file, **pool)

    @event.listens_for(engine, "connect")
    def remember(connection: sqlite3.Connection, record: sa.pool.ConnectionPoolEntry) -> None:
        record.info["file"] = file_identity(path)
        if is_frozen(path):
            record.info["unchanged"] = file_state(path)

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        driver: Any = connection.connection
        if not driver.in_transaction:  # `_sqlite_transaction` has not begun one
            driver.execute("BEGIN")

    return engine


def is_frozen(path: str) -> bool:
    """Tell whether SQLite can only read this file, and cannot lock it. This is the case if nothing can be created in
    the folder of the file, and if no writer has left changes in a WAL."""
    folder = os.path.dirname(os.path.abspath(path))
    return os.path.isfile(path) and not os.access(folder, os.W_OK) and not file_state(path)[1]


def file_state(path: str) -> tuple[int, int, int]:
    """Return three numbers, of which at least one changes with every write: the time of the last change of a file, the
    size of its WAL, and its size. All are 0 if the file does not exist."""
    with suppress(OSError):
        status, wal_path = os.stat(path), path + "-wal"
        return status.st_mtime_ns, os.path.getsize(wal_path) if os.path.exists(wal_path) else 0, status.st_size
    return 0, 0, 0


def file_identity(path: str) -> tuple[int, int] | None:
    """Return the device and inode of a file, or None if the file does not exist."""
    with suppress(OSError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return None


@contextmanager
def transaction(
    engine: sa.Engine, *, write: bool, address: str, references_hold: bool = False, lazy: bool = False
) -> Iterator[sa.Connection]:
    """Run the block in one transaction, and yield the connection. Raise Retry if the database asks for a repetition,
    OutcomeUnknown if the connection broke after COMMIT was sent, and another RlrecError for any other database error.

    address: the name of the database in errors; references_hold: whether the writer guarantees that all foreign keys
    hold, so that SQLite need not check them; lazy: whether SQLite takes the write lock only at the first change."""
    postgres = engine.dialect.name == "postgresql"
    is_committing = False
    try:
        with (
            engine.connect() as connection,
            nullcontext() if postgres or not references_hold else _without_foreign_keys(connection),
        ):
            connection.info["flush"] = False
            if postgres and not write:
                connection.execution_options(isolation_level="REPEATABLE READ")
                driver: Any = connection.connection.driver_connection
                driver.read_only = True
            with connection.begin() if postgres else _sqlite_transaction(connection, write=write and not lazy):
                yield connection
                if write and not postgres and connection.info["file"] != file_identity(address):
                    message = f"the store {address} was deleted or replaced while it was open"
                    raise RlrecError(message, hint="nothing more was stored; a new start opens what is there now")
                is_unchanged = connection.info.get("unchanged")
                if is_unchanged is not None and is_unchanged != file_state(address):
                    raise StoreBusy(f"the store {address} was written while it was read", hint="repeat the command")
                is_committing = write
            if connection.info["flush"]:
                flush(connection)
    except UnicodeEncodeError as error:
        raise InputError("a name is not valid Unicode", hint="check the encoding of your shell") from error
    except OverflowError as error:
        if "SQLite" in str(error):  # raised by its driver
            raise database_errors.out_of_range() from error
        raise
    except (exc.DBAPIError, engine.dialect.loaded_dbapi.Error) as error:  # the latter from the driver's own cursor
        if (interrupt := _interruption(error)) is not None:
            raise interrupt from error
        translated_error = database_errors.translate(error, address=address)
        is_rolled_back = getattr(getattr(error, "orig", error), "sqlstate", None) == database_errors.IDLE
        if is_committing and postgres and isinstance(translated_error, StoreBusy) and not is_rolled_back:
            message = f"the connection to {address} broke at the end: nobody knows whether the last changes are stored"
            hint = "look before you repeat it: without a key it may be stored twice"
            translated_error = OutcomeUnknown(message, hint=hint)
        raise translated_error from error


@contextmanager
def _sqlite_transaction(connection: sa.Connection, *, write: bool) -> Iterator[None]:
    """Run the block in a transaction of SQLite, without the extra work of SQLAlchemy."""
    driver: Any = connection.connection
    driver.execute("BEGIN IMMEDIATE" if write else "BEGIN")
    try:
        yield
        (connection if connection.in_transaction() else driver).commit()
    except BaseException:
        if not connection.closed:  # a signal that came before the block began may have closed it
            driver.rollback()
        raise


def flush(connection: sa.Connection) -> None:
    """Wait until everything that PostgreSQL has committed so far is on disk. If the setting `synchronous_commit`
    demands it, wait for a synchronous replica, too. (The function makes a commit of its own, whose flush covers all
    earlier commits.)"""
    driver: Any = connection.connection.driver_connection
    driver.autocommit = True
    try:
        driver.execute("SELECT pg_logical_emit_message(true, 'rlrec', '')")
    finally:
        if not driver.closed:
            driver.autocommit = False


def _interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """If the driver raised an error while a KeyboardInterrupt was handled, return this KeyboardInterrupt; else return
    None."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


@contextmanager
def _without_foreign_keys(connection: sa.Connection) -> Iterator[None]:
    """Switch off SQLite's checks of foreign keys in this context, which must begin and end outside a transaction."""
    cursor = connection.connection.cursor()
    cursor.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        with suppress(connection.dialect.loaded_dbapi.ProgrammingError):  # the file is closed
            cursor.execute("PRAGMA foreign_keys = ON")


def clock(connection: sa.Connection) -> int:
    """Return the time of the database's clock, in microseconds since 1970 UTC. For SQLite, this is the clock of this
    machine. For a replica, it is the time of the last change that the replica has received. A later time would be
    wrong, since the replica may lack rows up to it."""
    if connection.dialect.name == "sqlite":
        return time.time_ns() // 1000
    replayed_to = connection.exec_driver_sql(NOW).scalar_one()
    if replayed_to is None:  # no commit since the replica started: it has the state of the checkpoint it started from
        checkpoint_query = f"{_MICROS.format('checkpoint_time')} FROM pg_control_checkpoint()"
        replayed_to = connection.exec_driver_sql(checkpoint_query).scalar_one()
    return int(replayed_to)
