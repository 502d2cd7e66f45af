"""A server that is stopped at once and started again: nothing acknowledged is lost, nothing is counted twice, and every
client finishes."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest

from rlrec.app.requests.feedback import Line, feedback
from rlrec.app.setup.init import init
from rlrec.app.upkeep.doctor import Request as Audit
from rlrec.app.upkeep.doctor import doctor
from rlrec.store import Store
from rlrec.store.database.engine import Waits
from tests.app.shop import ask, stocked
from tests.app.workers import processes
from tests.conftest import PATIENCE_S, runner
from tests.store.servers import PostgresServer, new_server

CLIENTS = 4
ROUNDS = 5  # of a client before the server is killed, and after it has come back; was run with 60, and three kills

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with new_server() as running:
        yield running


def named(server: PostgresServer, name: str, more: str = "") -> str:
    """The name of a new database."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} {more}")
    return name


def client(db: str, number: int, answers: Any, stop: Any) -> None:
    """Recommend and tell what happened until told to stop; every second round has a request id and a key."""
    acknowledged = list[int]()
    with closing(Store(db, waits=Waits(reconnect=PATIENCE_S * 1_000_000))) as store:
        while not stop.is_set():
            turn = len(acknowledged)
            key = f"{number}-{turn}" if turn % 2 else None
            decision_id = ask(store, session=f"s{number}-{turn}", request_id=key)["decision_id"]
            feedback(store, Line(decision_id=decision_id, events={"click": 1.0}, key=key))
            acknowledged.append(decision_id)
    answers.put(acknowledged)


def wait_for_rounds(store: Store) -> None:
    """Until the clients have done as many more as ROUNDS of each."""

    def count() -> int:
        with store.read() as unit:
            return int(unit.ask_value("SELECT count(*) FROM event"))

    before, deadline = count(), time.monotonic() + PATIENCE_S
    while count() < before + CLIENTS * ROUNDS:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_nothing_acknowledged_is_lost_when_the_server_is_killed(server: PostgresServer) -> None:
    db = server.url(named(server, "killed"))
    with closing(Store(db)) as store:
        init(store)
        stocked(store, home="thompson")
        answers, stop = processes.Queue(), processes.Event()
        clients = [processes.Process(target=client, args=(db, number, answers, stop)) for number in range(CLIENTS)]
        for process in clients:
            process.start()
        wait_for_rounds(store)
        server.stop("immediate")
        time.sleep(0.3)
        server.start()
        wait_for_rounds(store)
        stop.set()
        acknowledged = [decision_id for _ in clients for decision_id in answers.get(timeout=PATIENCE_S)]
        for process in clients:
            process.join(PATIENCE_S)
            assert process.exitcode == 0
        with store.read() as unit:
            decisions = [row[0] for row in unit.ask("SELECT id FROM decision ORDER BY id")]
            events = [row[0] for row in unit.ask("SELECT decision_id FROM event ORDER BY decision_id")]
            pulls, rewards = unit.ask("SELECT sum(pulls), sum(reward_sum) FROM belief")[0]
        assert decisions == events == sorted(acknowledged)
        assert pulls == rewards == len(acknowledged) >= 2 * CLIENTS * ROUNDS
        assert [finding for finding in doctor(store, Audit()).findings if finding.severity == "error"] == []


# -- a full disk --


@pytest.fixture
def small_disk(server: PostgresServer) -> Iterator[PostgresServer]:
    """The server, restarted where it sees a file system of 32 MB in its folder `small`."""
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    if os.geteuid() or shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("needs a file system of its own")
    user, folder = server.user, server.folder / "small"
    assert user
    folder.mkdir()
    mount = f'mount -t tmpfs -o size=32m,uid={user.pw_uid},gid={user.pw_gid},mode=700 none {folder} && exec "$@"'
    server.stop("fast")
    server.start(inside=["unshare", "-m", "sh", "-c", mount, "sh"])
    yield server
    server.stop("fast")
    server.start()


def test_a_full_disk_is_said_in_one_line_and_nothing_is_half_stored(small_disk: PostgresServer) -> None:
    with psycopg.connect(small_disk.url(), autocommit=True) as connection:
        connection.execute(f"CREATE TABLESPACE small LOCATION '{small_disk.folder}/small'")
    db = small_disk.url(named(small_disk, "filling", "TABLESPACE small"))
    run = runner(db)
    with closing(Store(db)) as store, psycopg.connect(db, autocommit=True) as other:
        init(store)
        stocked(store, home="thompson")
        other.execute("CREATE TABLE filler (text text)")
        with suppress(psycopg.errors.DiskFull):
            while True:
                other.execute("INSERT INTO filler SELECT repeat('x', 500) FROM generate_series(1, 100)")
        for number in range(2_000):
            result = run("recommend", "--policy", "home", "--session", f"s{number}", "--json")
            if result.exit_code:
                break
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert result.error["error"].startswith("the disk of postgresql://")
        assert "nothing was stored" in result.error["hint"]
        other.execute("DROP TABLE filler")
        assert run("recommend", "--policy", "home", "--session", f"s{number}").exit_code == 0
        assert run("doctor").exit_code == 0
