"""What a connection relies on, whatever the role, the database or the schema say; and what it says when it breaks."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rlrec.app.setup.init import init
from rlrec.errors import CheckFailed, InputError, OutcomeUnknown, RlrecError, StoreBusy
from rlrec.store import Store, Unit
from rlrec.store.database import database_errors, engine
from rlrec.store.database.engine import Waits
from rlrec.store.log import decisions
from tests.app.shop import ask, stocked, tell
from tests.conftest import PATIENCE_S, CommandResult, runner
from tests.store.servers import pooled

ROLE = {
    "extra_float_digits": "-15",
    "standard_conforming_strings": "off",
    "bytea_output": "escape",
    "array_nulls": "off",
    "client_encoding": "LATIN1",
    "default_transaction_isolation": "serializable",
}


@pytest.fixture
def postgres(postgres_server: str, request: pytest.FixtureRequest) -> str:
    """An initialised, empty store on PostgreSQL."""
    from tests.conftest import _create

    return _create(postgres_server, f"c{os.getpid()}_{time.time_ns()}", request.getfixturevalue("postgres_template"))


def options(db: str, **values: str) -> str:
    """The URL with settings of the session, as a role would have them."""
    words = "%20".join(f"-c%20{name}%3D{value}" for name, value in values.items())
    return f"{db}&options={words}"


def administer(db: str, *statements: str) -> None:
    with psycopg.connect(db, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def name_of(db: str) -> str:
    return re.sub(r".*/|\?.*", "", db.partition("?")[0])


def test_settings_of_a_database_do_not_reach_the_store(postgres: str) -> None:
    name = name_of(postgres)
    administer(postgres, *(f'ALTER DATABASE "{name}" SET {key} TO {value!r}' for key, value in ROLE.items()))
    with closing(Store(postgres)) as store:
        stocked(store, home="thompson")
        first = ask(store, session="é")
        tell(store, first, 1, click=0.1)
        with store.read() as unit:
            assert unit.ask_value("SELECT reward_sum FROM belief WHERE reward_sum > 0") == 0.1
            assert unit.ask_value("SELECT key FROM session") == "é"
        run = runner(postgres)
        assert run("feedback", first["decision_id"], "click").exit_code == 0
        assert run("doctor", "--json").json["findings"] == []


@pytest.mark.slow
def test_clients_of_a_pooler_share_its_connections(postgres: str, forked_rlrec: Path) -> None:
    """Each transaction has the settings that it relies on, whichever connection it gets, and leaves none behind."""
    if (program := shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")) is None:
        pytest.skip("PgBouncer is not installed")
    name = name_of(postgres)
    administer(postgres, *(f'ALTER DATABASE "{name}" SET {key} TO {value!r}' for key, value in ROLE.items()))
    with closing(Store(postgres)) as store:
        stocked(store, home="thompson")
    with pooled(postgres, program) as db:
        administer(db, "SELECT set_config('search_path', '', false)")  # as pg_dump does
        lines: list[dict[str, Any]] = [
            {"op": "recommend", "policy": "home", "session": f"é{number}"} for number in range(30)
        ]
        lines += [{"op": "feedback", "decision_id": number, "events": {"click": 0.1}} for number in range(1, 20)]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        pipe = partial(subprocess.run, [forked_rlrec, "--db", db, "pipe"], input=text, text=True)
        with ThreadPoolExecutor() as pool:
            runs = [pool.submit(pipe, capture_output=True, check=True, timeout=PATIENCE_S) for _ in range(2)]
            assert [done.result().stdout.count('"decision_id"') for done in runs] == [len(lines)] * 2
        run = runner(db)
        assert run("doctor", "--json").json["findings"] == []
        assert run("status", "--json").json["decisions"] == 60
        assert run("export-log", "-").lines == runner(postgres)("export-log", "-").lines
        with psycopg.connect(db, autocommit=True) as other:
            query = "SELECT current_setting('lock_timeout'), current_setting('extra_float_digits')"
            left = {other.execute(query).fetchone() for _ in range(8)}
            assert left == {("0", ROLE["extra_float_digits"])}


def test_warnings_of_the_driver_are_no_lines_of_a_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger := logging.getLogger("psycopg"), "propagate", False)  # pytest listens
    logger.warning("error ignored terminating a pipeline")
    assert capsys.readouterr().err == ""


def test_what_a_role_refuses_is_said_as_it_is(postgres: str) -> None:
    with closing(Store(options(postgres, default_transaction_read_only="on"))) as store:
        with pytest.raises(RlrecError, match="read-only") as refused:
            store.write(lambda unit: unit.tell("UPDATE settings SET salt = 'x'"))
        assert refused.value.code == 1
    with closing(Store(options(postgres, statement_timeout="50"))) as store:
        with pytest.raises(RlrecError, match="stopped a statement") as refused, store.read() as unit:
            unit.ask("SELECT pg_sleep(5)")
        assert (refused.value.code, "statement_timeout" in str(refused.value.hint)) == (1, True)


def test_a_role_that_is_read_only_reads_and_stays_so(postgres: str) -> None:
    with closing(Store(postgres)) as store:
        stocked(store, home="thompson")
        ask(store)
    name = name_of(postgres)
    administer(postgres, f'ALTER DATABASE "{name}" SET default_transaction_read_only TO on')
    run = runner(postgres)
    for line in ("status", "doctor", "policy show home", "exposure", "export-log -"):
        assert run(*line.split()).exit_code == 0, line
    for line in ("recommend --policy home --session s", "arm add more", "policy freeze home"):
        result = run(*line.split())
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1), (line, result.stdout)
        assert "default_transaction_read_only" in result.stderr
    with closing(Store(postgres)) as store:
        with store.read() as unit:
            assert unit.ask_value("SELECT count(*) FROM arm") > 0
        with pytest.raises(RlrecError, match="read-only"):  # on the connection that was read on
            store.write(lambda unit: unit.tell("UPDATE settings SET salt = 'x'"))


def test_a_writer_behind_a_held_lock_waits_for_a_bounded_time(postgres: str) -> None:
    with psycopg.connect(postgres) as other, closing(Store(options(postgres, lock_timeout="200"))) as store:
        other.execute("LOCK TABLE settings")
        began = time.monotonic()
        with pytest.raises(StoreBusy, match="locked by another process") as refused:
            store.write(lambda unit: unit.tell("UPDATE settings SET salt = 'x'"))
        assert time.monotonic() - began < 25  # by default it waits for 30 s
        assert refused.value.hint == database_errors.RETRY_HINT


@pytest.mark.parametrize(
    ("role", "waits", "limit"),
    [
        ({}, Waits(), "30s"),
        ({"lock_timeout": "700"}, Waits(), "700ms"),
        ({"statement_timeout": "2000"}, Waits(), "1800ms"),
        ({"statement_timeout": "1h"}, Waits(), "30s"),
        ({"lock_timeout": "700"}, Waits(lock=5_000_000), "5s"),
        ({}, Waits(lock=0, statement=3_000_000), "1ms"),
    ],
)
def test_a_wait_for_a_lock_ends_before_the_statement_does(
    postgres: str, role: dict[str, str], waits: Waits, limit: str
) -> None:
    with closing(Store(options(postgres, **role), waits=waits)) as store, store.read() as unit:
        assert unit.ask_value("SELECT current_setting('lock_timeout')") == limit


DRAW, TELL = ["recommend", "--policy", "home", "--session", "s"], ["feedback", "1", "click"]


@pytest.mark.parametrize("command", [DRAW, TELL])
def test_a_command_behind_a_held_lock_ends_with_exit_4_within_its_time(db: str, command: list[str]) -> None:
    result = behind_a_lock(db, command, RLREC_LOCK_TIMEOUT="300ms")
    assert (result.exit_code, result.stderr.count("\n")) == (4, 1)
    assert "is locked by another process" in result.stderr


def test_a_statement_that_takes_too_long_ends_the_command_with_exit_1(postgres: str) -> None:
    result = behind_a_lock(postgres, DRAW, RLREC_LOCK_TIMEOUT="10s", RLREC_STATEMENT_TIMEOUT="300ms")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "stopped a statement" in result.stderr
    assert "--statement-timeout" in result.stderr


def behind_a_lock(db: str, command: list[str], **env: str) -> CommandResult:
    """What a command says while somebody else holds the policy's lock; it ends within 5 s."""
    with closing(Store(db)) as store:
        stocked(store, home="thompson")
        ask(store)
        with ThreadPoolExecutor() as pool:

            def held(unit: Unit) -> CommandResult:
                unit.tell("UPDATE policy_head SET ordinal = ordinal")
                return pool.submit(runner(db), *command, env=env).result(timeout=PATIENCE_S)

            began = time.monotonic()
            result = store.write(held)
    assert time.monotonic() - began < 25  # by default it waits for 30 s
    return result


def test_every_wait_has_an_end_unless_somebody_set_another(postgres: str) -> None:
    with closing(Store(postgres)) as store:
        limits = store.write(
            lambda unit: [
                unit.ask_value(f"SELECT current_setting('{name}')")
                for name in ("lock_timeout", "idle_in_transaction_session_timeout")
            ]
        )
        assert limits == ["30s", "2min"]
        with store.read() as unit:
            assert unit.ask_value("SELECT current_setting('idle_in_transaction_session_timeout')") == "0"


def test_a_schema_with_a_blank_in_its_name_holds_a_store(postgres_server: str, empty_db: str) -> None:
    administer(empty_db, 'CREATE SCHEMA "my shop"')
    db = f"{empty_db}&options=-csearch_path%3D%22my%5C%20shop%22"
    with closing(Store(db)) as store:
        assert init(store).created
        stocked(store, home="thompson")
        ask(store)
        from rlrec.store.database import bulk

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bulk, "MIN_DECISIONS", 0)
            with store.read() as unit, bulk.alongside(unit):
                assert unit.arrow_worker is not None
                query = bulk.PendingQuery(unit, "SELECT count(*) FROM decision", {"n": int})
                assert query.columns()["n"].tolist() == [1]


def test_an_encoding_without_every_character_is_refused_by_init(postgres_server: str) -> None:
    name = f"ascii{time.time_ns()}"
    administer(
        postgres_server.format("postgres"),
        f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'",
    )
    with closing(Store(postgres_server.format(name))) as store, pytest.raises(RlrecError, match="SQL_ASCII") as refused:
        init(store)
    assert "createdb -E UTF8" in str(refused.value.hint)


# -- names of databases --


@pytest.mark.parametrize(
    "db",
    [
        "postgresql:u:s3cret@h/db", "postgres:u:s3cret@h", "postgresql+psycopg:u:s3cret@h/db", "mysql:u:s3cret@h/db",
        "postgresql://u:s3@cret@h/db", "postgresql://u:s3@c/ret@h/db", "postgresql://u:s3@c:ret@h/db",
        "postgresql://u:s3cret@h:port/db", ":memory:", "sqlite:///:memory:", "file::memory:", "mysql://u:s3cret@h/db",
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_used_is_refused_without_its_password(db: str) -> None:
    for debug in ([], ["--debug"]):
        result = runner(db)(*debug, "arm", "list").failed(2)
        assert not any(word in result for word in ("s3cret", "cret", "ret@"))
    assert not Path(":memory:").exists()


def test_a_path_may_have_any_sign(tmp_path: Path) -> None:
    for db in (f"sqlite:///{tmp_path}/a@b@c.db", f"{tmp_path}/a:b@c.db"):
        with closing(Store(db)) as store:
            assert init(store).created


def test_options_of_a_url_are_not_printed(postgres_server: str) -> None:
    db = postgres_server.format("none") + "&options=-c%20my.password%3Ds3cret"
    result = runner(db)("arm", "list")
    assert (result.exit_code, "s3cret" in result.stderr, "createdb" in result.stderr) == (3, False, True)


# -- broken connections --


def work(unit: Unit) -> None:
    unit.tell("UPDATE settings SET salt = 'x'")


def break_at(store: Store, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
    """The server ends the connection of the next transaction before its COMMIT, or after it and before the answer."""

    def end(pid: int) -> None:
        administer(store.url.set(drivername="postgresql").render_as_string(hide_password=False),
                   f"SELECT pg_terminate_backend({pid}, 20000)")  # fmt: skip

    commit = psycopg.Connection.commit

    def broken(connection: Any) -> None:
        if connection.read_only or not connection.info.transaction_status:
            return commit(connection)
        pid = connection.info.backend_pid
        if after:
            commit(connection)
            end(pid)
            connection.execute("SELECT 1")
        else:
            end(pid)
            commit(connection)
        return None

    monkeypatch.setattr(psycopg.Connection, "commit", broken)


def unnumbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server does not say which one it is, so that nobody can ask later for the end of a transaction."""
    monkeypatch.setattr(engine, "_SERVER", engine._SERVER + " AND false")


@pytest.mark.parametrize("after", [False, True])
def test_a_connection_that_breaks_at_the_end_leaves_the_outcome_unknown(
    postgres: str, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    unnumbered(monkeypatch)
    with closing(Store(postgres, waits=Waits(reconnect=0))) as store:
        with store.read():
            pass
        break_at(store, monkeypatch, after=after)
        with pytest.raises(OutcomeUnknown, match="nobody knows") as unknown:
            store.write(work)
        assert (unknown.value.code, "retry is safe" in str(unknown.value.hint)) == (1, False)
        with pytest.raises(StoreBusy, match="nobody knows") as safe:
            store.write(work, repeatable=True)
        assert "a retry is safe" in str(safe.value.hint)


@pytest.mark.parametrize("after", [False, True])
def test_the_server_tells_whether_a_commit_without_an_answer_was_stored(
    postgres: str, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    def count(unit: Unit) -> int:
        unit.tell("UPDATE settings SET catalogue_revision = catalogue_revision + 1")
        return int(unit.ask_value("SELECT catalogue_revision FROM settings"))

    with closing(Store(postgres)) as store:
        commit = psycopg.Connection.commit
        break_at(store, monkeypatch, after=after)
        broken = psycopg.Connection.commit

        def once(connection: Any) -> None:
            monkeypatch.setattr(psycopg.Connection, "commit", commit)
            broken(connection)

        monkeypatch.setattr(psycopg.Connection, "commit", once)
        assert [store.write(count), store.write(count)] == [1, 2]


def test_a_connection_that_breaks_before_the_flush_is_asked_for_it_again(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, flushed = engine.flush, list[int]()

    def broken(connection: Any) -> None:
        pid = connection.connection.driver_connection.info.backend_pid
        if not flushed:
            administer(postgres, f"SELECT pg_terminate_backend({pid})")
        flushed.append(pid)
        flush(connection)

    with closing(Store(postgres)) as store:
        monkeypatch.setattr(engine, "flush", broken)
        store.write(lambda unit: unit.tell("UPDATE settings SET catalogue_revision = catalogue_revision + 1"))
        with store.read() as unit:
            assert unit.ask_value("SELECT catalogue_revision FROM settings") == 1
    assert len(set(flushed)) == 2


def test_locks_go_before_the_flush_and_answers_come_after_it(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flush, waited = engine.flush, list[int]()

    def slow(connection: Any) -> None:
        if not waited:
            waited.append(1)
            with closing(Store(postgres, waits=Waits(lock=2_000_000))) as other:
                other.write(work)
        flush(connection)

    with closing(Store(postgres)) as store:
        monkeypatch.setattr(engine, "flush", slow)
        store.write(work)
        with store.read() as unit:
            distance = "pg_wal_lsn_diff(pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn())"
            assert unit.ask_value(f"SELECT {distance}") < 1_000


def test_a_role_that_waits_for_no_disk_is_left_alone(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "flush", lambda connection: pytest.fail("it does not want to wait"))
    with closing(Store(options(postgres, synchronous_commit="off"))) as store:
        store.write(work)


def test_a_connection_that_breaks_before_the_end_stores_nothing(postgres: str) -> None:
    def end(unit: Unit) -> None:
        unit.tell("UPDATE settings SET salt = 'y'")
        pid = unit.ask_value("SELECT pg_backend_pid()")
        administer(postgres, f"SELECT pg_terminate_backend({pid})")
        unit.tell("UPDATE settings SET salt = 'z'")

    with closing(Store(postgres, waits=Waits(reconnect=0))) as store:
        with pytest.raises(StoreBusy) as broken:
            store.write(end)
        assert broken.value.hint == database_errors.AWAY_HINT
        store.write(work)
        with pytest.raises(StoreBusy) as broken:
            store.write(end)
        assert "what was stored before stays" in str(broken.value.hint)


def test_a_sequence_at_its_end_is_no_reason_to_try_again(postgres: str) -> None:
    with closing(Store(postgres)) as store:
        stocked(store, home="uniform")
        administer(postgres, f"ALTER SEQUENCE decision_id_seq RESTART WITH {2**63 - 1}")
        for _ in range(2):
            with pytest.raises(RlrecError, match="no ids left") as refused:
                ask(store)
            assert refused.value.code == 1


def test_an_id_beyond_64_bits_is_refused(store: Store) -> None:
    with pytest.raises(InputError, match="beyond the range"):
        store.write(lambda unit: unit.tell("UPDATE settings SET catalogue_revision = ?", 2**63))


def test_ids_that_a_visit_cannot_pack_are_not_drawn(store: Store) -> None:
    def last(unit: Unit) -> None:
        if unit.postgres:
            unit.ask(f"SELECT setval('decision_id_seq', {decisions.LAST_ID})")
        else:
            unit.tell("UPDATE decision SET id = ?", decisions.LAST_ID)

    stocked(store, home="uniform")
    ask(store)
    store.write(last, references_hold=True)
    with pytest.raises(RlrecError, match="no ids left for new decisions"):
        ask(store, session="t")


def test_a_store_that_is_replaced_acknowledges_nothing_more(sqlite_db: str) -> None:
    path = Path(sqlite_db)
    with closing(Store(sqlite_db)) as store:
        store.write(work)
        content = path.read_bytes()
        path.unlink()
        for _ in range(2):
            with pytest.raises(RlrecError, match="deleted or replaced") as refused:
                store.write(work)
            assert refused.value.code == 1
            if not path.exists():
                with (
                    closing(Store(sqlite_db)) as other,
                    pytest.raises(CheckFailed, match="moved or deleted"),
                    other.read(),
                ):
                    pass
            path.write_bytes(content)


def test_imports_can_have_the_tables_counted(store: Store) -> None:
    stocked(store, home="uniform")
    store.analyse()
    with store.read() as unit:
        if unit.postgres:
            assert unit.ask_value("SELECT reltuples FROM pg_class WHERE relname = 'arm'") == 5


def test_a_stopped_client_does_not_hold_its_locks_for_ever(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit itself is shorter here."""
    monkeypatch.setattr(engine, "IDLE_TIMEOUT", engine.IDLE_TIMEOUT.replace("120s", "300ms"))
    with closing(Store(postgres)) as stopped, closing(Store(postgres)) as store:

        def idle(unit: Unit) -> None:
            work(unit)
            store.write(work)  # waits for the server to end the other transaction

        with pytest.raises(StoreBusy):
            stopped.write(idle)


@pytest.mark.parametrize(("key", "code"), [(None, 1), ("k", 4)])
def test_only_a_key_makes_a_retry_safe(
    postgres: str, monkeypatch: pytest.MonkeyPatch, key: str | None, code: int
) -> None:
    unnumbered(monkeypatch)
    with closing(Store(postgres)) as store:
        stocked(store, home="uniform")
        first = ask(store)
    run = runner(postgres)
    for command in (
        ["recommend", "--policy", "home", "--session", "s", *(["--request-id", key] if key else [])],
        ["feedback", first["decision_id"], "click", *(["--key", key] if key else [])],
    ):
        with monkeypatch.context() as patch, closing(Store(postgres)) as store:
            break_at(store, patch, after=True)
            result = run("--reconnect", "0s", *command)
        assert (result.exit_code, "nobody knows" in result.stderr) == (code, True)
        assert ("a retry is safe" in result.stderr) == (code == 4)


# -- streams --

STREAMS = {
    "recommend": (["recommend", "--input", "-"], '{"policy": "home", "session": "s"}'),
    "pipe": (["pipe"], '{"op": "recommend", "policy": "home", "session": "s"}'),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("replaced", [False, True])
def test_a_stream_whose_store_is_gone_acknowledges_nothing_more(
    sqlite_db: str, forked_rlrec: Path, name: str, replaced: bool
) -> None:
    with closing(Store(sqlite_db)) as store:
        stocked(store, home="uniform")
    content = Path(sqlite_db).read_bytes()
    command, line = STREAMS[name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([forked_rlrec, "--db", sqlite_db, *command], text=True, **pipes) as process:  # type: ignore[call-overload]
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        assert "decision_id" in process.stdout.readline()
        Path(sqlite_db).unlink()
        if replaced:
            Path(sqlite_db).write_bytes(content)
        out, err = process.communicate(f"{line}\n", timeout=PATIENCE_S)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert "was deleted or replaced" in err


@pytest.mark.parametrize("begin", [partial(engine._sqlite_transaction, write=True), engine._without_foreign_keys])
def test_a_signal_before_the_block_of_a_transaction_leaves_no_traceback(sqlite_db: str, begin: Any) -> None:
    """Then the connection is closed first, and the garbage collector closes the block."""
    with closing(Store(sqlite_db)) as store:
        connection = store.engine.connect()
        block = begin(connection)
        block.__enter__()
        connection.close()
        store.close()
        block.gen.close()
        with store.read() as unit:
            assert decisions.newest_time(unit) is None
