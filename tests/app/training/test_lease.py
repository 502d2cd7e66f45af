"""One trainer a policy: who has the lease, until when, and that nobody stores what somebody else overtook."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlrec.app.policies import train
from rlrec.app.training import lease as leasing
from rlrec.app.training.lease import LEASE_S, TrainingLease
from rlrec.errors import InputError, StoreBusy
from rlrec.store import Store
from rlrec.store.policies import leases
from rlrec.times import SECOND, format_time
from tests.app.shop import START, clock, dump, version
from tests.app.visitors import LATER, QUICK, apart, ignored, opened, parameters, serve, trained
from tests.conftest import ON_BOTH, PATIENCE_S, empty_store, filled, runner

NOW = "2027-01-16T08:00:00Z"  # LATER
LONG = ("--seed", "1", "--batch", "40", "--epochs", "10000", "--patience", "10000", "--lr", "1e-7")


def logged(db: str) -> None:
    with closing(Store(db)) as store:
        serve(opened(store), visits=90)


@pytest.fixture
def shop(db: str) -> Iterator[Store]:
    """A store with a log of 90 visits."""
    filled(db, logged)
    with closing(Store(db, now=LATER, notice=ignored)) as store:
        yield clock(store, LATER)


def policy_id(store: Store) -> int:
    with store.read() as unit:
        return version(unit, "visits").policy.id


def held(store: Store) -> leases.Lease | None:
    with store.read() as unit:
        return leases.current_lease(unit, version(unit, "visits").policy.id)


def foreign(store: Store, *, left_s: float) -> None:
    """Another machine has the lease, for so many seconds on the database's clock."""
    number = policy_id(store)

    def work(unit: Any) -> None:
        now = unit.clock()
        until = now + int(left_s * SECOND)
        taken = leases.take(
            unit, number, holder="process 7 on elsewhere", token="boot-1/7/70/x", now=min(now, until - 1), until=until
        )
        assert taken is None

    store.write(work)


@ON_BOTH
def test_a_second_trainer_is_told_who_and_since_when(shop: Store, db: str) -> None:
    with shop.read() as unit:
        policy = version(unit, "visits").policy
    before = dump(shop, without=["lease"])
    with TrainingLease(shop, policy), closing(Store(db, now=LATER, notice=ignored)) as rival:
        selected = held(shop)
        assert selected is not None
        with pytest.raises(StoreBusy) as refused:
            trained(rival)
        assert refused.value.message == (
            f"policy visits is being trained by process {os.getpid()} on {socket.gethostname()} "
            f"since {format_time(selected.taken_at)}"
        )
        assert held(shop) == selected
    assert dump(shop) == before | {"lease": []}
    assert trained(shop)["version"] == 2


def test_policies_are_trained_side_by_side(shop: Store) -> None:
    from rlrec.app.policies import policy

    policy.create(shop, policy.Request(name="others", kind="gradient"))
    with shop.read() as unit:
        item = version(unit, "others").policy
    with TrainingLease(shop, item):
        assert trained(shop)["version"] == 2


@ON_BOTH
def test_a_lease_of_another_machine_ends_on_the_databases_clock(shop: Store) -> None:
    """Whatever time --now says."""
    foreign(shop, left_s=30)
    for now in (LATER, LATER + 10**15):
        with pytest.raises(StoreBusy, match="process 7 on elsewhere"):
            trained(clock(shop, now))
    shop.write(lambda unit: leases.release(unit, policy_id(shop), token="boot-1/7/70/x"))
    foreign(shop, left_s=-1)
    assert trained(clock(shop, LATER + 10**15))["version"] == 2


def test_a_process_of_this_machine_that_is_no_more_is_not_waited_for(shop: Store) -> None:
    with shop.read() as unit:
        policy = version(unit, "visits").policy
    with TrainingLease(shop, policy) as selected:
        machine, pid, started, _ = selected.token.split("/")
    now = int(time.time() * 1e6)
    gone = subprocess.Popen(["true"])
    gone.wait()
    for token, code in ((f"{machine}/{gone.pid}/5/x", 2), (f"{machine}/{pid}/{int(started) - 1}/x", 3)):
        shop.write(
            lambda unit, token=token: leases.take(
                unit, policy.id, holder="somebody", token=token, now=now, until=now + 99 * SECOND
            )
        )
        assert trained(shop)["version"] == code


@ON_BOTH
def test_whoever_has_lost_the_lease_stores_nothing(shop: Store, db: str) -> None:
    """It expired while its holder slept, and another one trains: its result must not come second."""
    before = dump(shop, without=["lease"])

    def steal(text: str) -> None:
        if text.startswith("epoch 1 "):
            with closing(Store(db, now=LATER, notice=ignored)) as rival:
                rival.write(lambda unit: unit.tell("UPDATE lease SET token = 'thief', holder = 'thief'"))

    with pytest.raises(StoreBusy, match="was lost"):
        train.train(shop, train.Request(**QUICK), progress=steal)
    assert dump(shop, without=["lease"]) == before
    result = held(shop)
    assert result is not None
    assert result.holder == "thief"


@ON_BOTH
def test_a_sign_of_life_moves_the_end(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "RENEWAL_S", 0)
    ends = []

    def look(text: str) -> None:
        result = held(shop)
        assert result is not None
        ends.append(result.expires_at)

    began = time.time()
    train.train(shop, train.Request(**QUICK), progress=look)
    assert len(ends) == 2
    assert ends[0] < ends[1]
    assert began + LEASE_S - 1 < ends[1] / SECOND < time.time() + LEASE_S + 1


def test_a_trainer_never_waits_for_its_own_reading(shop: Store, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of SQLite without WAL lets nobody write while it is read, who reads included."""
    shop.engine.dispose()
    with closing(sqlite3.connect(db)) as connection:
        assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    monkeypatch.setattr(leasing, "RENEWAL_S", 0)
    began = time.monotonic()
    assert trained(shop)["version"] == 2
    assert time.monotonic() - began < PATIENCE_S
    assert held(shop) is None


@pytest.mark.parametrize("options", [{}, {"log": "policy=visits"}, {"shaping": {"none": 1.0}}, {"min_new": 1000}])
def test_a_lease_ends_with_its_training(shop: Store, options: dict[str, Any]) -> None:
    try:
        trained(shop, **options)
    except InputError:
        assert options
    assert held(shop) is None


# -- real processes --


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which commands have their temporary files."""
    path = tmp_path / "spool"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    return path


@contextmanager
def training(db: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A real command in mid-training."""
    command = [sys.executable, "-m", "rlrec", "--db", db, "--now", NOW, "train-pg", "visits", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("epoch 10 "):
                break
        yield process
    finally:
        process.kill()
        process.communicate()


@ON_BOTH
@pytest.mark.slow
def test_a_killed_training_leaves_nothing_in_the_way(shop: Store, db: str, spool: Path, tmp_path: Path) -> None:
    """A second command exits 4 while it runs. Then the live version serves, nothing is stored, and training gives what
    it gives where none was killed."""
    before = dump(shop, without=["lease"])
    with training(db, *LONG) as process:
        result = runner(db)("--now", NOW, "train-pg", "visits", "--json")
        assert (result.exit_code, result.stdout) == (4, "")
        assert f"process {process.pid} on" in result.error["error"]
        assert "retry is safe" in result.error["hint"]
        process.send_signal(signal.SIGKILL)
        assert process.wait(PATIENCE_S) == -9
    assert list(spool.iterdir()) == []
    assert held(shop) is not None
    assert dump(shop, without=["lease"]) == before
    clock(shop, START + 3600 * SECOND)
    serve(shop, name="visits", visits=2, start=START + 3600 * SECOND, prefix="n")
    assert trained(shop, log="policy=base")["version"] == 2
    assert held(shop) is None
    empty_store(tmp_path / "twin.db")
    twin = str(tmp_path / "twin.db")
    filled(twin, logged)
    with closing(Store(twin, now=LATER, notice=ignored)) as other:
        trained(clock(other, LATER), log="policy=base")
        assert apart(parameters(shop, 2), parameters(other, 2)) == 0.0


def stops(db: str, words: Sequence[str], sent: signal.Signals) -> tuple[int, float, str, str]:
    """How a training ended by a signal, after how many seconds of CPU, and what it wrote."""
    with training(db, *words) as process:
        used = time.clock_gettime(~process.pid << 3 | 2), resource.getrusage(resource.RUSAGE_CHILDREN)
        process.send_signal(sent)
        code = process.wait(PATIENCE_S)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        took = now.ru_utime + now.ru_stime - used[1].ru_utime - used[1].ru_stime - used[0]
        out, err = process.communicate()
    return code, took, out, err


@pytest.mark.slow
def test_ctrl_c_ends_a_training_at_once(shop: Store, db: str) -> None:
    before = dump(shop)
    code, took, out, err = stops(db, LONG, signal.SIGINT)
    assert (code, out, err.splitlines()[-1]) == (130, "", "Error: interrupted.")
    assert "Traceback" not in err
    assert took < 1
    assert dump(shop) == before  # the lease is given back, too


@pytest.mark.slow
def test_a_training_that_is_ended_leaves_no_files(shop: Store, db: str, spool: Path) -> None:
    code, *_ = stops(db, LONG, signal.SIGTERM)
    assert (code, list(spool.iterdir())) == (143, [])
