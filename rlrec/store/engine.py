"""From a URL or a path to an engine whose transactions lose nothing, and its errors to ours.

SQLite: a writer takes the write lock when it begins (a reader that turns writer cannot wait), a reader never does.
PostgreSQL: writers run READ COMMITTED under row locks, readers see one snapshot.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, make_url

from rlrec.errors import CheckFailed, InputError, RlrecError, StoreBusy

BUSY_TIMEOUT_S = 30
# Of SQLite: pages that a stream changes again and again are copied out of the log every 32 MB, not every 4.
SETTINGS = ("foreign_keys = ON", "synchronous = NORMAL", "cache_size = -64000", "wal_autocheckpoint = 8000")
CONNECT_TIMEOUT_S = 8
FULL = {"53100", "53200"}  # disk, memory: no retry mends that
# PostgreSQL asks for the whole transaction again: serialization failure, deadlock; and a key that came in meanwhile,
# which the next try will find.
RETRIED = {"40001", "40P01", "23505"}


class Retry(Exception):
    """The database asks for the whole transaction again."""


def location(db: str) -> URL:
    """The database meant by a URL or by a path. Raises InputError for a scheme rlrec does not speak."""
    if "://" not in db:
        return URL.create("sqlite", database=os.path.expanduser(db))
    try:
        url = make_url(db)
    except (exc.ArgumentError, ValueError) as error:
        raise InputError(
            "the database URL cannot be read", hint="use sqlite:///FILE or postgresql://HOST/NAME"
        ) from error
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername == "sqlite" and url.database:
        return url
    raise InputError(
        f"rlrec does not speak {url.drivername!r}",
        hint="use a path, sqlite:///FILE or postgresql://HOST/NAME",
    )


def shown(url: URL) -> str:
    """The database as it may be printed: a path, or a URL without its password."""
    if url.drivername == "sqlite":
        return str(url.database)
    plain = url.set(drivername="postgresql").difference_update_query(["password"])
    return plain.render_as_string(hide_password=True)


def connect(url: URL, *, create: bool = False) -> sa.Engine:
    """An engine on `url`. SQLite: `create` alone may make the file; without it nothing appears by looking."""
    if url.drivername == "sqlite":
        return _sqlite(str(url.database), create=create)
    try:
        import psycopg  # noqa: F401  (its absence is a matter of installation, said in one line)
    except ImportError as error:
        raise RlrecError("PostgreSQL needs the driver psycopg", hint="pip install 'rlrec[postgres]'") from error
    arguments = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_TIMEOUT_S}
    return sa.create_engine(url, connect_args=arguments, pool_size=2)


def _sqlite(path: str, *, create: bool) -> sa.Engine:
    mode = "rwc" if create else "rw"

    def open_file() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(os.path.abspath(path))}?mode={mode}",
            uri=True,
            isolation_level=None,
            timeout=BUSY_TIMEOUT_S,
        )
        try:
            for setting in SETTINGS:
                connection.execute(f"PRAGMA {setting}")
        except sqlite3.Error:  # no database, for one
            connection.close()
            raise
        return connection

    engine = sa.create_engine("sqlite+pysqlite://", creator=open_file, poolclass=sa.pool.QueuePool, pool_size=2)

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("rlrec_write", False)
        connection.connection.cursor().execute("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def transaction(engine: sa.Engine, *, write: bool, where: str, sound: bool = False) -> Iterator[sa.Connection]:
    """One transaction. Raises Retry where the database asks for it, else an RlrecError for a database error.

    sound: whoever writes answers for the foreign keys, and SQLite does not look them up row by row."""
    options: dict[str, Any] = {"rlrec_write": write}
    if engine.dialect.name == "postgresql" and not write:
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    try:
        with (
            engine.connect().execution_options(**options) as connection,
            _trusted(connection) if sound else nullcontext(),
            connection.begin(),
        ):
            yield connection
    except UnicodeEncodeError as error:
        raise InputError("a name is not valid Unicode", hint="check the encoding of your shell") from error
    except exc.DBAPIError as error:
        raise translated(error, where=where) from error
    except engine.dialect.loaded_dbapi.Error as error:  # from a cursor of the driver's own
        raise _said(error, where=where) from error


@contextmanager
def _trusted(connection: sa.Connection) -> Iterator[None]:
    """Outside a transaction: foreign keys are not looked up in what follows."""
    if connection.dialect.name != "sqlite":
        yield
        return
    cursor = connection.connection.cursor()
    cursor.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        cursor.execute("PRAGMA foreign_keys = ON")


def translated(error: exc.DBAPIError, *, where: str) -> Exception:
    """The error a person reads for what the driver said."""
    return _said(error.orig, where=where)


def _said(error: BaseException | None, *, where: str) -> Exception:
    if isinstance(error, sqlite3.Error):
        return _sqlite_error(error, where=where)
    return _postgres_error(error, where=where)


def _sqlite_error(error: sqlite3.Error, *, where: str) -> Exception:
    name = getattr(error, "sqlite_errorname", "") or ""
    said = str(error)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StoreBusy(f"the store {where} is locked by another process", hint="a retry is safe")
    if name == "SQLITE_CANTOPEN":
        return _unopened(where)
    if "no such table" in said or "no such column" in said:
        return out_of_date(where)
    if name.startswith("SQLITE_READONLY"):
        return RlrecError(f"the store {where} cannot be written", hint="check who owns the file and its folder")
    if name == "SQLITE_NOTADB":
        return RlrecError(f"{where} is not a database", hint="give another path with --db")
    return RlrecError(f"the store {where} failed: {said}")


def _unopened(where: str) -> RlrecError:
    """Why SQLite could not open a file that should be there."""
    try:
        os.stat(where)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            folder = os.path.dirname(os.path.abspath(where))
            return missing(where) if os.path.isdir(folder) else _folderless(where)
    if os.path.isdir(where):
        return RlrecError(f"{where} is a folder", hint="name a file in it with --db")
    return RlrecError(f"cannot open {where}: permission denied", hint="check who owns the file and its folder")


def _folderless(where: str) -> CheckFailed:
    return CheckFailed(f"no store at {where}: its folder does not exist", hint="make it, then run `rlrec init`")


def uncreated(error: sqlite3.Error, *, where: str) -> Exception:
    """Why SQLite could not make a file, in the system's words; else the error as it is anywhere."""
    if getattr(error, "sqlite_errorname", "") != "SQLITE_CANTOPEN" or os.path.isdir(where):
        return _sqlite_error(error, where=where)
    folder = os.path.dirname(os.path.abspath(where))
    hint = "choose another path with --db" if os.path.exists(folder) else f"make its folder first: {folder}"
    try:
        os.close(os.open(where, os.O_RDWR | os.O_CREAT))
    except OSError as refused:
        return RlrecError(f"cannot create {where}: {(refused.strerror or str(refused)).lower()}", hint=hint)
    return RlrecError(f"cannot create {where}: {error}", hint=hint)


def _postgres_error(error: BaseException | None, *, where: str) -> Exception:
    state = getattr(error, "sqlstate", None)
    said = " ".join(str(error).split())
    if state in RETRIED:
        return Retry(said)
    if state == "42P01":
        return out_of_date(where)
    if state == "3D000" or (state is None and "database" in said and "does not exist" in said):
        return CheckFailed(f"no database at {where}", hint="create it with createdb, then run `rlrec init`")
    if state in ("28P01", "28000") or (state is None and ("authentication" in said or "no password" in said)):
        return RlrecError(f"{where} refused the login", hint="check user and password (PGPASSWORD, ~/.pgpass)")
    if state in FULL:
        return RlrecError(f"the store {where} failed: {said[:200]}")
    if state is None or state[:2] in ("08", "53", "57", "55"):
        return StoreBusy(f"cannot reach {where}: {said[:200]}", hint="a retry is safe")
    return RlrecError(f"the store {where} failed: {said[:300]}")


def missing(where: str) -> CheckFailed:
    return CheckFailed(f"no store at {where}", hint="create it with `rlrec init`")


def out_of_date(where: str) -> CheckFailed:
    return CheckFailed(f"the store {where} is empty or out of date", hint="bring it up with `rlrec init`")


def clock(connection: sa.Connection) -> int:
    """Microseconds since 1970 UTC, by the database's clock (SQLite: this machine's)."""
    if connection.dialect.name == "sqlite":
        return time.time_ns() // 1000
    seconds = connection.exec_driver_sql("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
    return int(seconds.scalar_one())
