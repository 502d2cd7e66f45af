"""Engines: whoever works on the partitions of a log, and whatever happens to workers, the figures are the same bits."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from rlrec.app.evaluation.passes import passes
from rlrec.app.evaluation.passes.passes import Workers
from rlrec.app.judging import evaluate, exposure
from rlrec.compute import ENVIRONMENT, cluster, local, pack, unpack
from rlrec.compute.cluster import Cluster, Fingerprint, SchedulerAbsent, fingerprint, is_mixed
from rlrec.compute.local import Processes
from rlrec.errors import InputError, RlrecError
from tests.app import logs
from tests.compute.runners import Lost, Poisoned, Weighed, environment, process
from tests.compute.store_runners import MortalMeeting
from tests.conftest import PATIENCE_S

SIZE = 60  # decisions of a partition, of 240
Rows = list[dict[str, Any]]


def judged(db: str, workers: Workers = passes.IN_PROCESS, **options: Any) -> Rows:
    request = evaluate.Request(targets=["uniform", "log"], estimators="impression,session,tis,sips", **options)
    with closing(logs.at(db, 1e6)) as store:
        return [row.record for row in evaluate.evaluate(store, request, workers)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> str:
    """A log of slates for users who come back."""
    path = tmp_path_factory.mktemp("engines") / "log.db"
    path.write_bytes(sqlite_template.read_bytes())
    serve(str(path))
    return str(path)


@pytest.fixture(scope="module")
def expected(served: str) -> Rows:
    """What this process says of it."""
    with pytest.MonkeyPatch.context() as patch:
        logs.in_batches(patch, SIZE)
        return judged(served)


def serve(db: str) -> None:
    logs.begin(db, 5, "log", "thompson", floor="0.2")
    contexts = [{"hour": hour} for hour in range(3)]
    logs.serve(db, "log", pages=240, rates=(0.1, 0.2, 0.3, 0.4, 0.5), size=2, users=60, contexts=contexts)


@pytest.fixture(autouse=True)
def many_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    logs.in_batches(monkeypatch, SIZE)


@pytest.mark.slow
def test_processes_give_the_same_bits(served: str) -> None:
    assert judged(served, Workers(jobs=2), by="hour") == judged(served, by="hour")


def test_a_log_of_one_partition_starts_no_process(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logs.in_batches(monkeypatch, 10_000)
    monkeypatch.setattr(local, "WORKER_COMMAND", ["false"])
    assert judged(served, Workers(jobs=2)) == judged(served)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("db", ["postgres"], indirect=True)
def test_processes_read_a_server(db: str) -> None:
    serve(db)
    assert judged(db, Workers(jobs=2)) == judged(db)


@pytest.mark.slow
def test_a_cluster_gives_the_same_bits(served: str, expected: Rows) -> None:
    """Of one worker; below one of two does, although it loses one."""
    assert judged(served, Workers(engine="dask")) == expected


# -- workers that end --


@pytest.mark.slow
@pytest.mark.usefixtures("forked_nannies", "forked_workers")
@pytest.mark.parametrize("engine", ["local", "dask"])
def test_two_workers_fold_at_the_same_time_and_the_partition_of_a_lost_one_is_worked_on_again(
    served: str, expected: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    for name in ("MEETING", "MORTAL"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(passes, "StoreRunner", MortalMeeting)
    assert judged(served, Workers(jobs=2, engine=engine)) == expected
    assert len(list((tmp_path / "MEETING").iterdir())) >= 2
    assert (tmp_path / "MORTAL" / "2").exists()


@pytest.mark.slow
def test_a_partition_that_ends_four_workers_is_named() -> None:
    with (
        closing(Processes(2, Poisoned())) as engine,
        pytest.raises(RlrecError, match="partition 3 of the log has ended its worker 4 times"),
    ):
        dict(engine.map(b"", range(6)))


@pytest.mark.slow
@pytest.mark.usefixtures("forked_nannies")
def test_a_partition_that_ends_four_workers_of_a_cluster_ends_the_work() -> None:
    """Dask blames the partitions that wait at the same worker, too: which one it names is chance."""
    with (
        closing(Cluster(2, Poisoned(), scheduler=None)) as engine,
        pytest.raises(RlrecError, match=r"partition [0-5] of the log has ended its worker 4 times"),
    ):
        dict(engine.map(b"", range(6)))


@pytest.mark.slow
@pytest.mark.usefixtures("forked_nannies")
def test_an_answer_that_is_lost_with_its_worker_is_computed_again() -> None:
    with closing(Cluster(1, process, scheduler=None)) as engine:
        answers, deadline = engine.map(b"", range(2)), monotonic() + PATIENCE_S
        first, number = next(answers)  # whose future Dask releases in a thread of its own, sooner or later
        key = next(key for key in list(engine.client.futures) if f"partition-{1 - first}-" in key)
        state = engine.client.futures[key]
        for status in ("finished", "lost"):
            while state.status != status:
                assert monotonic() < deadline
                sleep(0.01)
            if status == "finished":
                os.kill(number, signal.SIGKILL)
        [(_, again)] = answers
        assert again != number


@pytest.mark.slow
@pytest.mark.usefixtures("forked_nannies")
def test_a_lost_answer_whose_partition_ends_workers_ends_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first death, so that the test starts few workers."""
    monkeypatch.setitem(cluster._QUIET_SETTINGS, "distributed.scheduler.allowed-failures", 0)
    with (
        closing(Cluster(1, Lost(tmp_path), scheduler=None)) as engine,
        pytest.raises(RlrecError, match="partition 0 of the log has ended its worker"),
    ):
        dict(engine.map(b"", range(1)))


@pytest.mark.slow
def test_a_worker_of_a_cluster_that_is_killed_while_it_starts_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = tmp_path / "deadly.py"
    deadly.write_text("import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setitem(cluster._QUIET_SETTINGS, "distributed.worker.preload", [str(deadly)])
    with pytest.raises(
        RlrecError, match=r"a Dask worker has ended while it started: Nanny failed to start\n"
    ) as caught:
        Cluster(1, process, scheduler=None)
    assert (caught.value.code, caught.value.hint is None) == (1, False)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_nannies")
def test_a_large_partition_goes_to_a_cluster_without_a_warning() -> None:
    """Warnings are errors here."""
    with closing(Cluster(1, Weighed(), scheduler=None)) as engine:
        assert dict(engine.map(b"", [bytes(11_000_000)])) == {0: 11_000_000}


# -- what is refused --


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_an_error_of_a_task_is_raised_as_it_is(served: str) -> None:
    with pytest.raises(InputError) as caught:
        judged(served, Workers(jobs=2), by="colour")
    assert "no context of the log has the field 'colour'" in caught.value.message


def test_an_error_with_a_hint_comes_through_a_pipe() -> None:
    error = unpack(pack(InputError("no", hint="yes", line=3)))
    assert (type(error), error.message, error.hint, error.line) == (InputError, "no", "yes", 3)


@pytest.mark.slow
def test_a_scheduler_that_is_not_there_is_said_in_time() -> None:
    with pytest.raises(SchedulerAbsent, match=r"no scheduler answers at tcp://127.0.0.1:9") as caught:
        Cluster(1, Poisoned(), scheduler="tcp://127.0.0.1:9")
    assert caught.value.code == 4
    with pytest.raises(InputError, match="is no address"):
        Cluster(1, Poisoned(), scheduler="127.0.0.1:port")


def test_workers_with_other_versions_are_refused_and_other_processors_are_told() -> None:
    here = fingerprint()
    assert not is_mixed(fingerprint(), here)
    assert is_mixed(Fingerprint(here.versions, ("ABACUS",)), here)
    with pytest.raises(RlrecError, match=r"a worker has numpy 0\.1, and this process numpy"):
        is_mixed(Fingerprint((here.versions[0], "numpy 0.1", here.versions[2]), here.processor), here)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("run", [exposure.exposure, evaluate.evaluate])
def test_mixed_processors_are_said_once(served: str, monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    """By a notice, where what comes out has no reasons."""
    monkeypatch.setattr(Processes, "is_mixed", True)
    notices: list[str] = []
    request = exposure.Request() if run is exposure.exposure else evaluate.Request(targets=["uniform"])
    with closing(logs.at(served, 1e6)) as store:
        store.notice = notices.append
        answer = run(store, request, Workers(jobs=2))
    if isinstance(answer, list):
        assert all("mixed-cpus" in row.estimate.reasons for row in answer)
    assert [text.partition(":")[0] for text in notices] == ([] if isinstance(answer, list) else ["mixed-cpus"])


def test_a_scheduler_without_dask_is_refused(served: str) -> None:
    with pytest.raises(InputError, match="--scheduler is given, and --engine is local"):
        judged(served, Workers(scheduler="tcp://127.0.0.1:9"))


def test_workers_have_one_thread_and_hold_on_to_memory() -> None:
    with closing(Processes(1, environment)) as workers:
        assert [answer for _, answer in workers.map(b"", [[*ENVIRONMENT]])] == [ENVIRONMENT]
