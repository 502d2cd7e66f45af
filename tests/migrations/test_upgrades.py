"""A store of the first release with many decisions comes to the head on both databases, killed on the way or not."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import event

from rlrec.app.setup.init import init
from rlrec.store import Store
from rlrec.store.database import engine as engines
from rlrec.store.database import schema
from rlrec.store.database.schema import HEAD, OLDEST, VERSION_TABLE
from tests.conftest import _create, runner
from tests.migrations import story

N = 5_000  # decisions, copies of the last one
CLONES = f"""
WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < {99 + N})
INSERT INTO {{table}} SELECT {{columns}} FROM n, {{table}} WHERE {{table}}.{{key}} = 5"""
FIRST_ROWS = {"decision": "id", "slot": "decision_id"}


def fill(path: Path) -> None:
    """Make the stored store of the first release, and its decision 5 many times."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(story.read_sql(OLDEST))
        for table, key in FIRST_ROWS.items():
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            unlike = {key: "n.i", "step": "n.i", "request_key": "NULL"}
            columns = ", ".join(unlike.get(name, f"{table}.{name}") for name in names)
            connection.execute(CLONES.format(table=table, columns=columns, key=key))
        connection.commit()


def fill_postgres(url: str, path: Path) -> None:
    """Make the same store on PostgreSQL: its tables by the first migration, its rows from the file."""
    engine = engines.connect(engines.location(url))
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(schema.migrations()))
        config.attributes["connection"] = connection
        command.upgrade(config, OLDEST)
        connection.exec_driver_sql("SET session_replication_role = replica")  # the order of tables does not matter
        for name, (columns, rows) in tables(path).items():
            if rows and name != VERSION_TABLE:
                driver: Any = connection.connection.driver_connection
                with driver.cursor() as cursor, cursor.copy(f"COPY {name} ({', '.join(columns)}) FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row(row)
                if columns[0] == "id":
                    connection.exec_driver_sql(
                        f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), (SELECT max(id) FROM {name}))"
                    )
    engine.dispose()


def tables(path: Path) -> dict[str, tuple[list[str], list[tuple[Any, ...]]]]:
    """The columns and the rows of each table of a file."""
    with closing(sqlite3.connect(path)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        results = {name: connection.execute(f'SELECT * FROM "{name}"') for name in names}
        return {
            name: ([column[0] for column in cursor.description], cursor.fetchall()) for name, cursor in results.items()
        }


def stored_rows(db: str, columns: dict[str, list[str]]) -> dict[str, list[str]]:
    """The rows of a store in columns of tables, in order."""
    with closing(Store(db)) as store, store.engine.connect() as connection:
        return {
            name: sorted(
                str([bytes(value) if isinstance(value, memoryview) else value for value in row])
                for row in connection.exec_driver_sql(f"SELECT {', '.join(names)} FROM {name}")
            )
            for name, names in columns.items()
        }


@pytest.fixture(params=["sqlite", "postgres"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, list[str]]]:
    """A store of the first release, and its columns by table."""
    path = tmp_path / "old.db"
    fill(path)
    columns = {name: names for name, (names, _) in tables(path).items() if name != VERSION_TABLE}
    if request.param == "sqlite":
        return str(path), columns
    url = _create(request.getfixturevalue("postgres_server"), f"old_{os.getpid()}")
    fill_postgres(url, path)
    return url, columns


def upgrade_until(db: str, statement: int) -> int | None:
    """Bring a store to the head in a process of its own, which dies before it sends a statement of this number: the
    status that it ended with."""

    def work() -> None:
        sent = 0

        def count(*_: Any) -> None:
            nonlocal sent
            sent += 1
            if sent == statement:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(sa.Engine, "before_cursor_execute", count)
        with closing(Store(db, notice=lambda text: None)) as store:
            init(store)

    process = get_context("fork").Process(target=work)
    process.start()
    process.join()
    return process.exitcode


def revision(db: str) -> str:
    with closing(Store(db)) as store, store.engine.connect() as connection:
        return str(connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar_one())


def test_an_upgrade_that_is_killed_anywhere_loses_nothing_and_is_done_by_the_next(
    old: tuple[str, dict[str, list[str]]],
) -> None:  # fmt: skip
    db, columns = old
    before = stored_rows(db, columns)
    assert len(before["decision"]) > N
    statement, ends = 1, list[int | None]()
    while not ends or ends[-1] == -signal.SIGKILL:
        assert (revision(db), stored_rows(db, {"decision": columns["decision"]})) == (
            OLDEST, {"decision": before["decision"]}
        )  # fmt: skip
        ends.append(upgrade_until(db, statement))
        statement *= 2
    assert len(ends) > 4  # it died that often on its way
    assert (ends[-1], revision(db), stored_rows(db, columns)) == (0, HEAD, before)
    served = runner(db)("recommend", "--policy", "home", "--session", "s9", "--json")
    assert served.json["decision_id"] == N + 100
