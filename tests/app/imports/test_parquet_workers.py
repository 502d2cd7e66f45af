"""Workers read the partitions of a folder themselves: every command has the figures of the store, whoever works."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rlrec.app.evaluation.passes import passes
from rlrec.app.evaluation.passes.passes import IN_PROCESS, Workers
from rlrec.app.imports.parquet_files import Manifest
from rlrec.app.judging import exposure, positions
from rlrec.app.log import partitions
from rlrec.app.policies import train
from rlrec.errors import RlrecError
from rlrec.store.log.folder import FolderLog
from rlrec.store.policies import beliefs
from tests.app import logs
from tests.app.imports.test_parquet_files import FEW, export, judged, prepare_catalogue, serve
from tests.compute.store_runners import Meeting, Mortal
from tests.conftest import Run, runner

pytestmark = pytest.mark.slow
TWO = Workers(jobs=2)


@pytest.fixture(autouse=True)
def many_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches are those of any process: workers may be real ones."""
    monkeypatch.setattr(partitions, "count_partitions", lambda decisions: 2)


@pytest.fixture(scope="module")
def prepared(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, `shop.db`, and its log, `log`."""
    folder = tmp_path_factory.mktemp("workers")
    db = str(shutil.copy(sqlite_template, folder / "shop.db"))
    prepare_catalogue(db)
    serve(db, pages=100)
    logs.create(db, "pg", "gradient", minutes=3)
    export(db, folder / "log")
    return folder


@pytest.fixture
def exported(prepared: Path, tmp_path: Path) -> tuple[str, Path]:
    """A store and its log, of this test alone."""
    folder = shutil.copytree(prepared, tmp_path / "exported")
    return str(folder / "shop.db"), folder / "log"


def exposed(db: str, log: str | None, workers: Workers) -> Any:
    with closing(logs.at(db, 1e6)) as store:
        return exposure.exposure(store, exposure.Request(log=log, by="day"), workers)


def fitted(db: str, log: str | None, workers: Workers) -> Any:
    with closing(logs.at(db, 1e6)) as store:
        answer = positions.fit(store, positions.Request(name="curve", log=log), workers)
    return {name: value for name, value in answer.items() if name not in ("log", "number")}


def trained(db: str, log: str | None, workers: Workers) -> list[float]:
    """The parameters of a new version, and what the gate says of it."""
    request = train.Request(name="pg", log=log, seed=1, epochs=1, batch=40)
    with closing(logs.at(db, 1e6)) as store:
        answer: dict[str, Any] = dict(train.train(store, request, workers))
        with store.read() as unit:
            version = int(unit.ask_value("SELECT max(id) FROM version"))
            text = unit.ask_value("SELECT parameters FROM version WHERE id = ?", version)
            packed = b"".join(weights for _, weights in beliefs.weights(unit, version))
    figures = [answer[name] for name in ("sessions", "gate_sessions", "tune_estimate", "ess_wanted")]
    shared = json.loads(text)["shared"]
    return [*memoryview(packed).cast("d"), *(x for row in shared.values() for x in flat(row)), *figures]


def judged_in_process(db: str, log: str | None, workers: Workers) -> Any:
    assert workers is IN_PROCESS
    return judged(db, "log", "lin", log=log, estimators=FEW)


def flat(values: Any) -> list[float]:
    return [x for value in values for x in flat(value)] if isinstance(values, list) else [values]


COMMANDS: dict[str, Callable[[str, str | None, Workers], Any]] = {
    "exposure": exposed, "position fit": fitted, "train-pg": trained, "evaluate": judged_in_process,
}  # fmt: skip


@pytest.fixture(scope="module")
def of_store(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What each command says of the log in the store, worked out in one process, and once for every test."""
    db = str(shutil.copy(prepared / "shop.db", tmp_path_factory.mktemp("store")))

    @cache
    def answer(command: str) -> Any:
        expected = COMMANDS[command](db, None, IN_PROCESS)
        return pytest.approx(expected, rel=1e-12, abs=1e-15) if command == "train-pg" else expected

    return answer


@pytest.mark.usefixtures("forked_workers")
def test_training_on_a_folder_gives_the_parameters_of_the_store(
    exported: tuple[str, Path], of_store: Callable[[str], Any]
) -> None:
    db, folder = exported
    for log in (f"parquet:{folder}", None):
        assert trained(db, log, TWO) == of_store("train-pg")


@pytest.mark.usefixtures("forked_nannies")
def test_training_survives_a_lost_worker(
    exported: tuple[str, Path],
    of_store: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    db, folder = exported
    expected = of_store("train-pg")
    monkeypatch.setenv("MORTAL", str(tmp_path))
    monkeypatch.setattr(passes, "StoreRunner", Mortal)
    assert trained(db, f"parquet:{folder}", Workers(jobs=2, engine="dask")) == expected
    assert (tmp_path / "2").exists()


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("command", ["exposure", "position fit"])
def test_workers_have_the_figures_of_the_store(
    exported: tuple[str, Path], of_store: Callable[[str], Any], command: str
) -> None:
    db, folder = exported
    for log in (None, f"parquet:{folder}"):
        assert COMMANDS[command](db, log, TWO) == of_store(command)


def test_a_folder_needs_no_row_of_the_store(exported: tuple[str, Path], of_store: Callable[[str], Any]) -> None:
    """One process reads it as well as workers do."""
    db, folder = exported
    runner(db)("--now", "2026-03-01T00:00:00Z", "db", "prune", "--before", "2026-02-20", "--yes").done()
    for command, run in COMMANDS.items():
        assert run(db, f"parquet:{folder}", IN_PROCESS) == of_store(command), command


@pytest.mark.parametrize("pages", [80, 100])
def test_a_user_who_came_after_the_export_takes_the_session_along(sqlite_db: str, tmp_path: Path, pages: int) -> None:
    """Its first decisions lie in the bucket of the session, its later ones in that of the user; as many as before are
    merged with those into one file. Workers are real ones: in processes forked from one with a history the last bit of
    wdr was seen to differ."""
    logs.catalogue(sqlite_db, 5)
    for name, kind in (("log", "thompson"), ("lin", "lin-thompson")):
        logs.create(sqlite_db, name, kind, floor="0.2")
    for number, (users, n) in enumerate(((None, 100), (30, pages))):  # the same sessions once more
        logs.serve(
            sqlite_db, "log", pages=n, rates=(0.1, 0.5, 0.2, 0.3, 0.4), size=2, users=users, start=1 + 10 * number
        )
        export(sqlite_db, tmp_path / "log")
    log = f"parquet:{tmp_path / 'log'}"
    with closing(FolderLog(str(tmp_path / "log"), Manifest.read(str(tmp_path / "log")).files)) as folder_log:
        assert {len(column) for column in folder_log._changes} == {pages // 2}
        is_merged = all("part-000001" not in path for path in folder_log.files["decisions"])
    assert is_merged == (pages == 100)
    of_log: list[dict[str, Any]] = [{}, {"log": log}]
    of_log += [] if is_merged else [{"log": log, "workers": TWO}]
    assert len({repr(judged(sqlite_db, "uniform", estimators="dr,wdr", **options)) for options in of_log}) == 1


def test_all_that_imports_hold_beside_slates_is_read(run: Run, db: str, tmp_path: Path) -> None:
    lines = [
        {
            "session": f"s{n // 2}", "user": f"u{n // 4}", "at": f"2026-01-01T00:{n % 60:02d}:00Z", "step": n % 2,
            "context": {"hour": n % 3}, "eligible": ["a", "b", "c"],
            "events": [{"kind": "click", "position": 1}] * (n % 2), "keep_probability": 0.5,
            "features": {"b": {"price": n}},
            "slate": [{"arm": "ab"[n % 2], "propensity": 0.5}], "support": {"a": 0.5, "b": 0.5, "c": 0.0},
        }
        for n in range(40)
    ]  # fmt: skip
    slates = [
        {
            "session": f"t{n}", "at": "2026-01-02T00:00:00Z", "eligible": ["a", "b", "c"],
            "slate": [{"arm": "a", "propensity": 0.5}, {"arm": "c", "propensity": 1}],
            "slot_sets": [["a", "b"], ["a", "c"]], "events": [{"kind": "click", "position": 2}] * (n % 2),
        }
        for n in range(20)
    ]  # fmt: skip
    assert run("import-log", "-", "--layout", "jsonl", "--policy", "shop", stdin=[*lines, *slates]).exit_code == 0
    run("policy", "create", "one", "--kind", "lin-thompson")
    run("recommend", "--policy", "one", "--session", "z", "--json").done()
    export(db, tmp_path / "log")
    words = ("evaluate", "uniform", "one", "--estimator", "impression,sips", "--by", "hour", "--json")
    of_store = run(*words, "--log", "since=2026-01-01")
    of_folder = run(*words, "--log", f"parquet:{tmp_path / 'log'},since=2026-01-01")
    assert of_store.exit_code == 0, of_store.stderr
    assert (of_folder.stdout, of_folder.stderr) == (of_store.stdout, of_store.stderr)


def test_two_workers_work_at_once_and_give_the_bits_of_the_store(
    exported: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db, folder = exported
    (tmp_path / "met").mkdir()
    monkeypatch.setenv("MEETING", str(tmp_path / "met"))
    monkeypatch.setattr(passes, "StoreRunner", Meeting)
    assert judged(db, "uniform", "lin", log=f"parquet:{folder}", workers=TWO) == judged(db, "uniform", "lin")
    assert len(os.listdir(tmp_path / "met")) == 2


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("command", ["evaluate uniform", "train-pg pg", "exposure", "position fit curve"])
def test_a_folder_that_breaks_ends_the_command_in_a_line(exported: tuple[str, Path], command: str) -> None:
    """A file that is cut in half is met by a worker."""
    db, folder = exported
    path = max((folder / "events").rglob("*.parquet"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    words = (*command.split(), "--log", f"parquet:{folder}", "--jobs", "2")
    result = runner(db)("--now", "2026-03-01T00:00:00Z", *words)
    assert (result.exit_code, f"cannot read {path}" in result.stderr) == (1, True), result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_folder_that_vanishes_in_the_middle_is_named(
    exported: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    db, folder = exported
    partitions_of = FolderLog.split

    def vanishing(self: FolderLog, number: int) -> Any:
        for index, partition in enumerate(partitions_of(self, number)):
            if index == 1:
                shutil.rmtree(folder)
            yield partition

    monkeypatch.setattr(FolderLog, "split", vanishing)
    with pytest.raises(RlrecError, match=f"cannot read {folder}"):
        judged(db, log=f"parquet:{folder}")
