"""Reading commands on a replica."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from rlrec.app.setup.init import init
from rlrec.store import Store
from rlrec.store.database import bulk
from tests.app.shop import ask, stocked, tell
from tests.conftest import PATIENCE_S, runner
from tests.store.servers import PostgresServer, new_server

pytestmark = pytest.mark.slow
Servers = tuple[PostgresServer, PostgresServer]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """A primary with a small store, and its replica."""
    with new_server("autovacuum=off") as primary:
        with closing(Store(primary.url())) as store:
            init(store)
            stocked(store, home="thompson")
            for number in range(20):
                tell(store, ask(store, session=f"s{number}"), 1, click=1)
        with new_server(of=primary) as replica:
            yield primary, replica


def catch_up(servers: Servers) -> None:
    def count(server: PostgresServer) -> int:
        with closing(Store(server.url())) as store, store.read() as unit:
            return int(unit.ask_value("SELECT count(*) FROM decision"))

    wanted = count(servers[0])
    while count(servers[1]) < wanted:
        time.sleep(0.02)


def test_reading_commands_read_the_replica_and_others_write_to_the_primary(servers: Servers) -> None:
    primary, replica = (server.url() for server in servers)
    run = runner(primary)
    catch_up(servers)
    evaluate = ["--now", "+1h", "evaluate", "uniform", "--json"]
    assert run("--read-db", replica, *evaluate).json == run(*evaluate).json
    answer = run("--read-db", replica, "recommend", "--policy", "home", "--session", "new", "--json").done()
    catch_up(servers)
    shown = run("decision", "show", answer.json["decision_id"], "--json", env={"RLREC_READ_DB": replica})
    assert shown.json["session"] == "new"
    assert "no database" in run("--read-db", replica.replace("/postgres?", "/none?"), "status").failed(3)


def test_a_replica_takes_no_writes(servers: Servers) -> None:
    result = runner(servers[1].url())("recommend", "--policy", "home", "--session", "s")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "read-only" in result.stderr


def test_the_time_of_a_replica_is_that_of_the_last_change_it_has(servers: Servers) -> None:
    catch_up(servers)
    with closing(Store(servers[0].url())) as store, closing(Store(servers[1].url())) as copy:
        with store.read() as unit:
            changed = unit.now
        time.sleep(0.3)
        with copy.read() as unit:
            assert unit.ask_value("SELECT max(at) FROM decision") <= unit.now <= changed


def test_the_time_of_a_replica_without_a_change_is_that_of_its_copy(servers: Servers) -> None:
    with psycopg.connect(servers[0].url(), autocommit=True) as primary:
        primary.execute("CREATE ROLE plain LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain")
    assert runner(servers[0].url())("recommend", "--policy", "home", "--session", "last").exit_code == 0
    with new_server(of=servers[0]) as fresh:
        run = runner(fresh.url(user="plain"))
        with closing(Store(fresh.url(user="plain"))) as copy, copy.read() as unit:
            assert unit.ask_value("SELECT pg_last_xact_replay_timestamp()") is None
            assert 0 <= time.time() - unit.now / 1e6 < PATIENCE_S
        result = run("doctor", "--json")
        assert (result.json["findings"], result.stderr) == ([], "")


def test_a_second_process_reads_the_snapshot_of_a_replica(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MIN_DECISIONS", 0)
    catch_up(servers)
    with closing(Store(servers[1].url())) as copy, copy.read() as unit, bulk.alongside(unit):
        assert unit.arrow_worker is not None
        query = bulk.PendingQuery(unit, "SELECT count(*) FROM decision", {"n": int})
        assert query.columns()["n"].tolist() == [unit.ask_value("SELECT count(*) FROM decision")]


def test_a_replica_of_another_store_is_refused(db: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other.db")
    with closing(Store(other)) as store:
        init(store)  # with a salt of its own
    for read_db in (other, db):
        refused = runner(db if read_db == other else other)("--read-db", read_db, "status")
        assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
        assert "is no replica of" in refused.stderr
        assert (
            runner(db)("--read-db", read_db, "arm", "add", f"arm{read_db == db}").exit_code == 0
        )  # reads nothing there


def test_a_copy_is_read_beside_its_store_and_without_it(sqlite_db: str, tmp_path: Path) -> None:
    copy = str(tmp_path / "copy.db")
    assert runner(sqlite_db)("db", "backup", copy).exit_code == 0
    for primary in (sqlite_db, str(tmp_path / "none.db"), "postgresql://u:@/x?host=/none"):
        result = runner(primary)("--read-db", copy, "status", "--json")
        assert (result.exit_code, result.stderr) == (0, "")
