"""Streams outlast a store that is busy, and connections that break: nothing is lost and nothing stored twice."""

from __future__ import annotations

import json
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest

from rlrec.app.requests.feedback import Line, Result
from rlrec.app.requests.pipe import Pipe, Request
from rlrec.app.serving.requests import DrawnAnswer
from rlrec.cli.commands.requests import recommend
from rlrec.errors import InputError, OutcomeUnknown
from rlrec.store import Store
from rlrec.store.database import engine
from tests.cli.commands.requests.test_pipe import ask, stocked, tell
from tests.conftest import ON_BOTH, PATIENCE_S, jsonl, runner

pytestmark = ON_BOTH

IMPATIENT = (
    "import sys, rlrec.store.database.engine as engine; engine.BUSY_TIMEOUT_S = 0.2; from rlrec.cli import main; main()"
)


def as_json(answers: Sequence[Any]) -> list[Any]:
    """Answers as the commands give them."""
    return [answer.to_json() if isinstance(answer, DrawnAnswer) else answer for answer in answers]


@contextmanager
def stream(db: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A real process that waits 0.2 s for a lock of SQLite, not 30."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", IMPATIENT, "--db", db, *words]
    with subprocess.Popen(command, text=True, **pipes) as child:
        try:
            yield child
        finally:
            child.kill()


def send(child: subprocess.Popen[str], line: dict[str, Any]) -> None:
    assert child.stdin is not None
    child.stdin.write(jsonl([line]))
    child.stdin.flush()


def answer(child: subprocess.Popen[str]) -> Any:
    assert child.stdout is not None
    return json.loads(child.stdout.readline())


@pytest.mark.slow
@pytest.mark.parametrize("words", [("pipe",), ("recommend", "--input", "-")])
def test_a_stream_waits_for_a_store_that_is_locked(sqlite_db: str, words: tuple[str, ...]) -> None:
    stocked(runner(sqlite_db))
    request = ask() if words == ("pipe",) else {name: value for name, value in ask().items() if name != "op"}
    with stream(sqlite_db, *words) as child:
        send(child, request)
        assert answer(child)["decision_id"] == 1
        with closing(sqlite3.connect(sqlite_db, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            send(child, request)
            assert child.stderr is not None
            assert "is locked by another process; the group is tried again" in child.stderr.readline()
            time.sleep(0.5)  # for more than one try
            other.execute("COMMIT")
        assert answer(child)["decision_id"] == 2
        assert child.communicate(timeout=PATIENCE_S) == ("", "")
    assert child.returncode == 0


def test_a_stream_that_a_full_disk_ends_says_what_is_stored(sqlite_db: str) -> None:
    stocked(runner(sqlite_db))
    request = ask()
    with stream(sqlite_db, "pipe") as child:
        send(child, request)
        assert answer(child)["decision_id"] == 1
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (1, 1))  # no file may grow any more
        out, err = child.communicate(jsonl([request]), timeout=PATIENCE_S)
    assert (child.returncode, out) == (1, "")
    assert "all before line 2 is stored: begin there" in err
    assert "nothing was stored" not in err


def test_nobody_is_sent_to_repeat_lines_that_may_be_stored(sqlite_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the connection breaks at a commit, nobody knows what became of the group."""
    stocked(runner(sqlite_db))
    answer_group = recommend.answer_group

    def broken(pipe: Pipe, group: Sequence[Any], kind: Any) -> Any:
        if group[0][0] > 1:
            raise OutcomeUnknown("the connection broke", hint="look before you repeat it")
        return answer_group(pipe, group, kind)

    monkeypatch.setattr(recommend, "answer_group", broken)
    lines = [ask(), {"op": "flush"}, ask()]
    result = runner(sqlite_db)("pipe", stdin=lines)
    assert len(result.lines) == 1
    assert "all before line 3 is stored; look before you repeat it" in result.stderr


def postgres_only(db: str) -> str:
    if not db.startswith("postgresql"):
        pytest.skip("connections of PostgreSQL")
    stocked(runner(db))
    return db


def end_others(db: str) -> None:
    """The server ends all connections to the database but this one."""
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with psycopg.connect(db, autocommit=True) as connection:
        connection.execute(f"SELECT pg_terminate_backend(pid) {others}")
        while connection.execute(f"SELECT 1 {others} AND backend_type = 'client backend'").fetchone():
            time.sleep(0.01)


@pytest.mark.slow
def test_a_stream_connects_again_after_its_connection_was_closed(db: str) -> None:
    with stream(postgres_only(db), "pipe") as child:
        send(child, ask())
        assert answer(child)["decision_id"] == 1
        for number in (1, 1):
            end_others(db)
            send(child, tell(decision_id=number))
            assert answer(child)["reward"] == 1.0
        out, err = child.communicate(timeout=PATIENCE_S)
    assert (child.returncode, out) == (0, "")
    assert all("the group is tried again" in line for line in err.splitlines()), err
    with closing(Store(db)) as store, store.read() as unit:
        assert unit.ask_value("SELECT count(*) FROM event") == 2


@pytest.mark.slow
@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_of_an_unknown_outcome_only_lines_with_keys_are_sent_again(
    db: str, monkeypatch: pytest.MonkeyPatch, after: bool, numbered: bool
) -> None:
    """The connection breaks once, before or after COMMIT has reached the server. numbered: the server can tell later
    whether a transaction was committed, so that nothing is unknown."""
    if not numbered:
        monkeypatch.setattr(engine, "_SERVER", engine._SERVER + " AND false")
    commit = psycopg.Connection.commit

    def broken(connection: Any) -> None:
        if connection.read_only or not connection.info.transaction_status:
            return commit(connection)
        monkeypatch.setattr(psycopg.Connection, "commit", commit)
        if after:
            commit(connection)
        end_others(db)
        connection.execute("SELECT 1")
        return None

    with closing(Store(postgres_only(db), notice=print)) as store:
        pipe = Pipe(store)
        pipe.answer([Request(policy="home", session="s")])
        monkeypatch.setattr(psycopg.Connection, "commit", broken)
        keyed, bare, reported, untold = as_json(pipe.answer([
            Request(policy="home", session="s", request_id="r"), Request(policy="home", session="t"),
            Line(decision_id=1, events={"click": 1.0}, key="k"), Line(decision_id=1, events={"seen": 1.0}),
        ]))  # fmt: skip
        assert isinstance(keyed, dict)
        if numbered:
            assert isinstance(bare, dict)
            assert [keyed["duplicate"], bare["duplicate"]] == [False, False]
            assert all(isinstance(line, Result) and line.events == 1 for line in (reported, untold))
        else:
            assert keyed["duplicate"] is after
            assert reported == Result(decision_id=1, events=1 - after, duplicates=int(after), reward=1.0)
            assert all(isinstance(line, InputError) and "nobody knows" in str(line) for line in (bare, untold))
        with store.read() as unit:
            counts = [unit.ask_value(f"SELECT count(*) FROM {table}") for table in ("decision", "event")]
    assert counts == ([3, 2] if after or numbered else [2, 1])


@pytest.mark.slow
def test_a_connection_that_breaks_behind_a_stored_group_repeats_nothing(
    db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the group has a duplicate, whose answer has to be read."""
    commit = psycopg.Connection.commit

    def broken(connection: Any) -> None:
        writes = not connection.read_only and connection.info.transaction_status
        commit(connection)
        if writes:
            end_others(db)

    with closing(Store(postgres_only(db))) as store:
        pipe, again = Pipe(store), Request(policy="home", session="s", request_id="r")
        pipe.answer([again])
        monkeypatch.setattr(psycopg.Connection, "commit", broken)
        first, second = as_json(pipe.answer([again, Request(policy="home", session="t")]))
        monkeypatch.setattr(psycopg.Connection, "commit", commit)
        assert isinstance(first, dict)
        assert isinstance(second, dict)
        assert (first["duplicate"], second["decision_id"]) == (True, 2)
        assert pipe.answer([again])[0] == first


@pytest.mark.slow
def test_patience_ends(sqlite_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stocked(runner(sqlite_db))
    monkeypatch.setattr("rlrec.store.database.engine.BUSY_TIMEOUT_S", 0.1)
    monkeypatch.setattr("rlrec.app.requests.pipe.PATIENCE_S", 0.3)
    with closing(sqlite3.connect(sqlite_db, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        result = runner(sqlite_db)("pipe", "--json", stdin=[ask()])
    assert (result.exit_code, result.stdout) == (4, "")
    assert "retry is safe" in json.loads(result.stderr.splitlines()[-1])["hint"]
