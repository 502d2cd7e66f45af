"""`db copy` and `db backup`: the same rows, to the last byte, in another place."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from rlrec.app.upkeep import db_copy
from rlrec.errors import RlrecError, StoreBusy
from rlrec.store import Store
from rlrec.store.database.tables import metadata
from rlrec.store.upkeep import copying
from tests.app.grown import grown
from tests.conftest import empty_store, filled, runner

LATE = "2026-01-01T03:00:00Z"
EVALUATE = ("--now", LATE, "evaluate", "ts", "sees", "--estimator", "dr,sips", "--json")


@pytest.fixture
def source(sqlite_db: str) -> str:
    filled(sqlite_db, grown)
    return sqlite_db


def content(db: str) -> dict[str, list[Any]]:
    """Every row of a store, by table."""
    with closing(Store(db)) as store, store.engine.connect() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key))]
            for table in metadata.sorted_tables
        }


def test_there_and_back_through_postgres_every_row_is_the_same(source: str, empty_db: str, tmp_path: Path) -> None:
    back = str(tmp_path / "back.db")
    there = runner(source)("db", "copy", "--to", empty_db, "--json").done().json
    rows = content(source)
    assert there["rows"] == sum(map(len, rows.values()))
    runner(empty_db)("db", "copy", "--to", back, "--json").done()
    assert content(empty_db) == rows == content(back)
    figures = [runner(db)(*EVALUATE).done().stdout for db in (source, empty_db, back)]
    assert figures[0] == figures[1] == figures[2]
    assert runner(empty_db)("--now", LATE, "doctor").exit_code == 0
    served = ("--now", LATE, "recommend", "--policy", "ts", "--session", "new", "--seed", 5, "--json")
    answers = [runner(db)(*served).done().json for db in (source, empty_db, back)]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["decision_id"] == len(rows["decision"]) + 1


class Stopped(Exception):
    pass


def test_a_stopped_copy_goes_on_and_is_no_store_before(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, added = str(tmp_path / "target.db"), list[str]()
    monkeypatch.setattr("rlrec.store.database.unit.BATCH", 100)
    add = copying.CopyTarget.add

    def stopping(self: copying.CopyTarget, table: sa.Table, batch: list[Any]) -> None:
        if table.name == "slot" and len(added) > 20:
            raise Stopped
        added.append(table.name)
        add(self, table, batch)

    monkeypatch.setattr(copying.CopyTarget, "add", stopping)
    with closing(Store(source)) as store, pytest.raises(Stopped):
        db_copy.copy(store, target)
    assert "is an unfinished copy" in runner(target)("policy", "list").failed(3)
    assert runner(target)("init").exit_code == 3
    monkeypatch.setattr(copying.CopyTarget, "add", add)
    assert runner(source)("db", "copy", "--to", target, "--json").done().json["resumed"] is True
    assert content(target) == content(source)


def test_a_copy_of_what_has_changed_since_is_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(tmp_path / "target.db")
    monkeypatch.setattr(copying.CopyTarget, "finish", lambda target: None)
    runner(source)("db", "copy", "--to", target).done()
    runner(source)("--now", LATE, "recommend", "--policy", "ts", "--session", "new").done()
    refused = runner(source)("db", "copy", "--to", target)
    assert (refused.exit_code, refused.stderr.count("\n")) == (3, 1)
    assert "has changed since" in refused.stderr


def test_two_copies_to_one_place_do_not_mix(source: str, tmp_path: Path, empty_db: str) -> None:
    for target in (str(tmp_path / "copy.db"), empty_db):
        with (
            closing(Store(source)) as store,
            store.read() as unit,
            closing(copying.CopyTarget(target, copying.fingerprint(unit))) as other,
        ):
            other.begin()
            batch = next(copying.read_rows(unit, copying.TABLES[0], n_skipped=0))
            other.add(copying.TABLES[0], batch)
            with pytest.raises(StoreBusy, match="another process copies to"):
                other.add(copying.TABLES[0], batch)
        assert runner(source)("db", "copy", "--to", target, "--json").done().json["resumed"]
        assert content(target) == content(source)


def test_a_copy_of_another_store_is_not_gone_on_with(tmp_path: Path) -> None:
    """Even where as many rows are in it."""
    marks = set[str]()
    for name in ("a", "b"):
        runner(str(tmp_path / name))("init").done()
        runner(str(tmp_path / name))("arm", "add", name).done()
        with closing(Store(str(tmp_path / name))) as store, store.read() as unit:
            marks.add(copying.fingerprint(unit))
    assert len(marks) == 2


@pytest.mark.parametrize("to", ["rlrec.db", "./link.db", "full.db", "other.db"])
def test_a_target_that_is_not_empty_is_refused(source: str, tmp_path: Path, to: str) -> None:
    (tmp_path / "link.db").symlink_to(source)
    empty_store(tmp_path / "full.db")("arm", "add", "a1").done()
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE things (id INTEGER)")
    refused = runner(source)("db", "copy", "--to", str(tmp_path / to)).failed({"full.db": 3, "other.db": 1}.get(to, 2))
    assert refused.count("\n") == 1


def test_a_dry_run_copies_nothing(source: str, tmp_path: Path) -> None:
    rows = sum(map(len, content(source).values()))
    assert runner(source)("db", "copy", "--to", tmp_path / "no.db", "--dry-run", "--json").done().json["rows"] == rows
    assert runner(source)("db", "backup", tmp_path / "no.db", "--dry-run", "--json").done().json["bytes"] > 100_000
    assert not (tmp_path / "no.db").exists()


@pytest.mark.slow
def test_a_killed_copy_to_postgres_goes_on(
    sqlite_db: str, empty_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table is several batches, and the process is killed once the first batch of sessions is stored."""
    run, back = runner(sqlite_db), str(tmp_path / "back.db")
    run("arm", "import", "-", stdin="".join(f'{{"arm": "a{n}"}}\n' for n in range(20))).done()
    run("policy", "create", "home", "--kind", "thompson", "--param", "floor=0.1").done()
    requests = (f'{{"policy": "home", "session": "s{n}", "user": "u{n // 9}", "k": 2}}\n' for n in range(1_000))
    run("--now", "2026-01-01T00:00:00Z", "recommend", "--input", "-", "--seed", 1, stdin="".join(requests)).done()
    clicks = (f'{{"decision_id": {n}, "position": 1, "events": {{"click": 1}}}}\n' for n in range(1, 1_000, 7))
    run("--now", "2026-01-01T00:01:00Z", "feedback", "--input", "-", stdin="".join(clicks)).done()
    monkeypatch.setattr("rlrec.store.database.unit.BATCH", 100)
    process = get_context("fork").Process(target=run, args=("db", "copy", "--to", empty_db))
    process.start()
    engine = sa.create_engine(empty_db.replace("postgresql://", "postgresql+psycopg://"))
    while process.is_alive():
        with engine.connect() as connection:
            is_answers = sa.inspect(connection).has_table("pruned_sums")
            if is_answers and connection.execute(sa.text("SELECT 1 FROM session LIMIT 1")).first():
                break
        time.sleep(0.005)
    engine.dispose()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert run("db", "copy", "--to", empty_db, "--json").done().json["resumed"] is True
    runner(empty_db)("db", "copy", "--to", back).done()
    assert content(back) == content(empty_db) == content(sqlite_db)
    evaluate = ("evaluate", "home", "uniform", "--json")
    assert len({runner(db)(*evaluate).done().stdout for db in (sqlite_db, empty_db, back)}) == 1
    assert runner(back)("doctor").exit_code == 0


# -- backups --


@pytest.mark.slow
def test_a_backup_is_a_store_and_never_replaces_a_file(source: str, tmp_path: Path) -> None:
    target = str(tmp_path / "backup.db")
    answer = runner(source)("db", "backup", target, "--json").done().json
    assert answer == {"file": target, "bytes": os.stat(target).st_size}
    assert content(target) == content(source)
    assert runner(target)("--now", LATE, "doctor").exit_code == 0
    before = Path(target).read_bytes()
    refused = runner(source)("db", "backup", target)
    assert (refused.exit_code, refused.stderr.count("\n"), Path(target).read_bytes()) == (2, 1, before)
    assert runner(source)("db", "backup", tmp_path / "no" / "b.db").failed(1).count("\n") == 1
    assert not list(tmp_path.glob("*.unfinished-*"))


def test_what_is_left_of_another_database_is_not_written_into_a_backup(source: str, tmp_path: Path) -> None:
    (tmp_path / "backup.db-wal").write_bytes(b"pages")
    assert "another database" in runner(source)("db", "backup", tmp_path / "backup.db").failed(2)
    assert not (tmp_path / "backup.db").exists()


def test_a_killed_backup_leaves_a_draft_that_the_next_one_deletes(source: str, tmp_path: Path) -> None:
    target = tmp_path / "b.db"
    script = (
        "import sqlite3, sys; from rlrec import drafts; drafts._name_anew = lambda *_: (print(1), sys.stdin.read())"
    )
    command = f"{script}; from rlrec.cli import main; main()"
    words = [sys.executable, "-u", "-c", command, "--db", source, "db", "backup", str(target)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        runner(source)("db", "backup", tmp_path / "other.db").done()
        (draft,) = tmp_path.glob("b.db.unfinished-*")
        runner(source)("db", "backup", target).done()
        assert draft.exists()  # somebody still writes it
        process.kill()
    target.unlink()
    runner(source)("db", "backup", target).done()
    assert sorted(path.name for path in tmp_path.glob("*b.db*")) == ["b.db"]


def test_who_may_not_read_a_store_may_not_read_its_copies(source: str, tmp_path: Path) -> None:
    os.chmod(source, 0o600)
    runner(source)("db", "backup", tmp_path / "backup.db").done()
    runner(source)("db", "copy", "--to", tmp_path / "copy.db").done()
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("backup.db", "copy.db")] == [0o600, 0o600]


def test_a_disk_that_is_full_leaves_no_backup_behind(source: str, tmp_path: Path) -> None:
    words = f"ulimit -f 100; exec {sys.executable} -m rlrec --db {source} db backup {tmp_path / 'b.db'}"
    result = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert f"cannot write {tmp_path / 'b.db'}" in result.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "rlrec.db"] == []


def test_a_disk_that_is_full_from_the_start_leaves_no_copy_behind(source: str, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        result = runner(source)("db", "copy", "--to", tmp_path / "c.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert not [*tmp_path.glob("c.db*")]


def test_a_disk_that_fills_during_a_copy_has_what_was_stored_before(tmp_path: Path) -> None:
    def fill_up() -> None:
        with target.write() as unit:
            unit.ask("PRAGMA max_page_count = 1")
            unit.tell("CREATE TABLE filler AS SELECT zeroblob(1000000) AS body")

    with closing(copying.CopyTarget(str(tmp_path / "c.db"), "source")) as target:
        target.begin()
        with pytest.raises(RlrecError, match="is full") as refused:
            fill_up()
    assert refused.value.hint == "make room, and repeat"


def test_postgres_is_backed_up_by_its_own_tool(postgres_server: str, postgres_template: str) -> None:
    refused = runner(postgres_server.format(postgres_template))("db", "backup", "b.db")
    assert (refused.exit_code, "pg_dump --format=custom --file=b.db 'postgresql://" in refused.stderr) == (2, True)
    command = copying.backup_command("postgresql://me:***@host/shop", "b.db")  # the password is asked for
    assert command == "pg_dump --format=custom --file=b.db postgresql://me@host/shop"
