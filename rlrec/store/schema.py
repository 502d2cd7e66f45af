"""Create, upgrade and check the schema: the only place that imports Alembic, and only for `init`."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL

from rlrec.errors import CheckFailed, StoreBusy
from rlrec.store import engine as engines
from rlrec.store.unit import Unit

HEAD = "0003"  # the revision that `tables` describes: the only thing a command checks, with one SELECT
VERSION_TABLE = "rlrec_version"
LOCK = 0x726C726563  # the advisory lock that serialises migrations on PostgreSQL


def revision(connection: sa.Connection) -> str | None:
    """The revision the store is at; None where there is no store."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return str(connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")))


def check(unit: Unit, *, where: str) -> None:
    """One SELECT. Raises CheckFailed unless the store is at the revision this program was written for."""
    found = unit.ask_value(f"SELECT version_num FROM {VERSION_TABLE}")
    if found != HEAD:
        raise _newer(where, str(found)) if found is not None and found > HEAD else engines.out_of_date(where)


def _newer(where: str, found: str) -> CheckFailed:
    return CheckFailed(f"the store {where} is at revision {found}, made by a newer rlrec", hint="install that one")


def migrations() -> Path:
    """The folder of the migrations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def upgrade(url: URL) -> tuple[str | None, str]:
    """Bring the store to the head under one lock: (revision found, revision now). Safe to run many times at once."""
    engine = engines.connect(url, create=True)
    try:
        if url.drivername == "sqlite":
            _switch_to_wal(engine, where=engines.shown(url))
        with _locked(engine, where=engines.shown(url)) as connection:
            found = revision(connection)
            if found is not None and found > HEAD:
                raise _newer(engines.shown(url), found)
            if found != HEAD:
                _run_alembic(connection)
            return found, HEAD
    finally:
        engine.dispose()


@contextmanager
def _locked(engine: sa.Engine, *, where: str) -> Iterator[sa.Connection]:
    with engines.transaction(engine, write=True, where=where) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        yield connection


def _switch_to_wal(engine: sa.Engine, *, where: str) -> None:
    """WAL is kept in the file. The switch needs the file for a moment and does not wait, so we ask again."""
    deadline = time.monotonic() + engines.BUSY_TIMEOUT_S
    while True:
        try:
            with closing(engine.raw_connection()) as raw:
                if raw.cursor().execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal":
                    return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise engines.uncreated(error, where=where) from error
        except sqlite3.Error as error:
            raise engines._sqlite_error(error, where=where) from error
        if time.monotonic() > deadline:
            raise StoreBusy(f"the store {where} is locked by another process", hint="a retry is safe")
        time.sleep(random.uniform(0.002, 0.02))


def _run_alembic(connection: sa.Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
