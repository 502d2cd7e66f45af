"""Creating a store: by many at once, on what is no store, and never by looking."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from rlrec.app.setup.init import check, init
from rlrec.errors import CheckFailed, Conflict, RlrecError
from rlrec.store import Store, Unit
from tests.app.workers import together

AT_ONCE = 4  # was run with 32


def creates(store: Store, number: int) -> bool:
    return init(store).created


@pytest.mark.slow
def test_one_of_many_creates_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    assert sum(together(creates, str(path), range(AT_ONCE))) == 1
    with closing(Store(str(path))) as store:
        assert check(store).revision


@pytest.mark.slow
def test_one_of_many_creates_the_tables_of_a_server(empty_db: str) -> None:
    assert sum(together(creates, empty_db, range(AT_ONCE))) == 1
    with closing(Store(empty_db)) as store:
        assert check(store).revision


def test_init_again_changes_nothing(store: Store) -> None:
    with store.read() as unit:
        before = unit.ask("SELECT * FROM settings"), unit.ask("SELECT * FROM run")
    again = init(store)
    assert (again.created, again.migrated) == (False, False)
    with store.read() as unit:
        assert (unit.ask("SELECT * FROM settings"), unit.ask("SELECT * FROM run")) == before


def test_another_session_timeout_is_refused(store: Store) -> None:
    with pytest.raises(Conflict, match="another session timeout"):
        init(store, session_timeout_us=1)


def test_an_init_that_was_killed_half_way_is_finished(store: Store) -> None:
    store.write(lambda unit: [unit.tell(f"DELETE FROM {name}") for name in ("settings", "reward", "run")])
    with pytest.raises(CheckFailed, match="not set up"):
        check(store)
    init(store)
    assert check(store).created is False


def test_looking_makes_no_file(tmp_path: Path) -> None:
    with closing(Store(str(tmp_path / "none.db"))) as store, pytest.raises(CheckFailed, match="no store"):
        check(store)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8, b"x" * 5000, b"text"])
def test_a_file_that_is_no_database_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with closing(Store(str(path))) as store, pytest.raises(RlrecError, match="is not a database"):
        init(store)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_said_to_be_one(tmp_path: Path) -> None:
    with closing(Store(str(tmp_path))) as store, pytest.raises(RlrecError, match="is a folder"):
        init(store)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("no/x.db", "no such file"), ("file/x.db", "not a directory"), ("x" * 300, "file name too long")],
)
def test_where_no_file_can_be_the_reason_is_given(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with closing(Store(str(tmp_path / path))) as store, pytest.raises(RlrecError, match="cannot create") as refused:
        init(store)
    assert (reason in refused.value.message, refused.value.code) == (True, 1)
    assert "rlrec init" not in (refused.value.hint or "")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("table", ["customers", "session"])
def test_a_database_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path, table: str) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TABLE {table} (name)")
        connection.commit()
    before = path.read_bytes()
    with closing(Store(str(path))) as store:
        with pytest.raises(CheckFailed, match="there is no store in"):
            check(store)
        with pytest.raises(RlrecError, match=f"another program: it has the tables {table}") as refused:
            init(store)
    assert (refused.value.code, path.read_bytes()) == (1, before)
    assert list(tmp_path.iterdir()) == [path]


def test_the_last_changes_of_a_store_that_was_moved_stay(tmp_path: Path) -> None:
    changes = tmp_path / "moved.db-wal"
    changes.write_bytes(b"changes")
    with closing(Store(str(tmp_path / "moved.db"))) as store:
        for dry_run in (True, False):
            with pytest.raises(RlrecError, match=r"moved\.db-wal holds the last changes of a store that is no longer"):
                init(store, dry_run=dry_run)
    assert list(tmp_path.iterdir()) == [changes]


@pytest.mark.slow
def test_a_server_with_other_tables_is_refused_and_left_as_it_is(empty_db: str) -> None:
    with psycopg.connect(empty_db, autocommit=True) as connection:
        connection.execute("CREATE TABLE customers (name text)")
        with closing(Store(empty_db)) as store, pytest.raises(RlrecError, match=r"another program.*customers"):
            init(store)
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert tables == [("customers",)]


@pytest.mark.parametrize("content", [b"", None])
def test_an_empty_file_or_database_becomes_a_store(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "empty.db"
    if content is None:
        sqlite3.connect(path).close()
    else:
        path.write_bytes(content)
    with closing(Store(str(path))) as store:
        assert init(store).created


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "does not say its revision"), (["0001", "0002"], "has 2 revisions: 0001, 0002"), (["spam"], "does not know")],
)
def test_a_version_table_that_names_no_revision_is_said(store: Store, rows: list[str], message: str) -> None:
    def work(unit: Unit) -> None:
        unit.tell("DELETE FROM rlrec_version")
        unit.tell_each("INSERT INTO rlrec_version VALUES (?)", [(row,) for row in rows])

    store.write(work)
    for command in (check, init):
        with pytest.raises(CheckFailed, match=message) as refused:
            command(store)
        assert "rlrec_version" in str(refused.value) + str(refused.value.hint)


def test_init_names_the_release_that_leads_on_from_an_older_revision(store: Store) -> None:
    store.write(lambda unit: unit.tell("UPDATE rlrec_version SET version_num = '0009'"))
    with pytest.raises(CheckFailed, match="at revision 0009, and this rlrec takes stores from 0010 on"):
        init(store)


@pytest.mark.parametrize(
    ("revision", "result"),
    [("0009", "from 0010 on"), ("0014", "made by an older rlrec"), ("9999", "made by a newer rlrec")],
)
def test_another_revision_is_named(store: Store, revision: str, result: str) -> None:
    store.write(lambda unit: unit.tell(f"UPDATE rlrec_version SET version_num = '{revision}'"))
    with pytest.raises(CheckFailed, match=result):
        check(store)


def test_a_newer_store_is_left_alone(store: Store) -> None:
    store.write(lambda unit: unit.connection.execute(sa.text("UPDATE rlrec_version SET version_num = '9999'")))
    with pytest.raises(CheckFailed, match="made by a newer rlrec"):
        init(store)
