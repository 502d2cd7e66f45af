"""A folder of Parquet whose export was stopped: the same command finishes it. And one whose manifest was changed."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
from collections.abc import Callable
from itertools import chain, cycle
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rlrec.app.imports.parquet_files import DATASETS
from tests.conftest import Run, runner, store_after
from tests.stops import cpu_of_children, wait_for_work

pq = pytest.importorskip("pyarrow.parquet")
N = 60  # decisions


def serve(db: str, *, day: int = 1, users: str = "ab") -> None:
    """Serve decisions of some users, whose contexts no file packs well."""
    run, random = runner(db), Random(day)
    if day == 1:
        run("arm", "add", "a1").done()
        run("--now", "2026-01-01", "policy", "create", "home", "--kind", "uniform").done()
    pages = [{"session": f"{day}-{users}-{n}", "user": users[n % len(users)]} for n in range(N // 2)]
    lines = [
        {"op": "recommend", "policy": "home", **page, "context": {"text": random.randbytes(4000).hex()}}
        for page in pages
    ]
    run("--now", f"2026-01-0{day}T01:00", "pipe", stdin=lines).done()


def serve_twice(db: str) -> None:
    for day in (1, 2):
        serve(db, day=day)


run = store_after(serve_twice)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


def rows(folder: Path, dataset: str) -> list[str]:
    """All rows of a dataset as a reader of the files sees them that knows no manifest; without numbers of exports."""
    files = [path for path in (folder / dataset).rglob("*") if path.is_file()]
    all_rows = chain.from_iterable(pq.read_table(path, partitioning=None).to_pylist() for path in files)
    return sorted(repr({**row, "part": None}) for row in all_rows)


def finish(run: Run, folder: Path, *, decisions: int = N) -> None:
    """Repeat the command: each decision is there once, and nothing else."""
    again = run("export-log", folder, "--layout", "parquet", "--json").done().json
    complete = folder.parent / "complete"
    if not complete.exists():
        run("export-log", complete, "--layout", "parquet").done()
    assert again["decisions"] == decisions
    assert [rows(folder, name) for name in DATASETS] == [rows(complete, name) for name in DATASETS]
    assert list(folder.rglob(".*")) == []


def stop(run: Run, folder: Path, *, prepare: Callable[[], Any] = lambda: None, after: float = 600, by: int = 0) -> bool:
    """Whether an export in a process of its own did not end by itself, or failed. after: seconds of its CPU."""

    def work() -> None:
        prepare()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        os._exit(run("export-log", folder, "--layout", "parquet").exit_code)

    process = get_context("fork").Process(target=work)
    process.start()
    wait_for_work(process, after)
    if process.pid is not None and process.exitcode is None:
        os.kill(process.pid, by)
    process.join()
    return process.exitcode != 0


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_a_first_export_that_was_stopped_is_finished_by_the_same_command(run: Run, folder: Path, by: int) -> None:
    random, before, stopped = Random(1), cpu_of_children(), 0
    stop(run, folder.with_name("measured"))
    took = cpu_of_children() - before
    for n in range(3):
        target = folder.with_name(f"log{n}")
        stopped += stop(run, target, after=random.uniform(0.1, 0.9) * took, by=by)
        finish(run, target)
    assert stopped > 0


@pytest.mark.slow
def test_an_export_that_met_a_full_disk_is_finished_by_the_same_command(
    run: Run, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No file of its process grows beyond a size."""
    run("export-log", folder.with_name("complete"), "--layout", "parquet").done()
    sizes = sorted(path.stat().st_size for path in folder.with_name("complete").rglob("*") if path.is_file())
    for n, limit in enumerate((sizes[-1] // 2, sizes[-1] - 1)):  # more than SQLite needs to read
        target = folder.with_name(f"log{n}")
        limits = (limit, limit)
        assert stop(run, target, prepare=lambda limits=limits: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
        assert "Traceback" not in capfd.readouterr().err
        finish(run, target)


def test_files_that_no_manifest_names_are_removed_by_the_next_export(run: Run, sqlite_db: str, folder: Path) -> None:
    run("export-log", folder, "--layout", "parquet", "--log", "until=2026-01-02").done()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run("export-log", folder, "--layout", "parquet").done()
    for path, content in before.items():  # as if it had been killed before the manifest was replaced
        path.write_bytes(content)
    assert len(list(folder.rglob("*.parquet"))) > len(before)
    serve(sqlite_db, day=2, users="cdefghi")  # then other files are numbered otherwise
    finish(run, folder, decisions=3 * N // 2)


def test_a_folder_of_others_is_left_alone(run: Run, folder: Path) -> None:
    precious = folder / "decisions/share=01-of-04/part-000001.parquet"
    precious.parent.mkdir(parents=True)
    precious.write_text("of others")
    assert "is not empty" in run("export-log", folder, "--layout", "parquet").failed(2)
    assert [path for path in folder.rglob("*") if path.is_file()] == [precious]


def test_two_exports_do_not_write_to_one_folder_at_a_time(run: Run, folder: Path) -> None:
    folder.mkdir()
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    refused = run("export-log", folder, "--layout", "parquet")
    os.close(lock)
    assert (refused.exit_code, "another export" in refused.stderr) == (4, True)
    finish(run, folder)


def test_nothing_is_written_for_a_store_that_is_not_there(folder: Path) -> None:
    assert runner(str(folder.with_name("no.db")))("export-log", folder, "--layout", "parquet").exit_code == 3
    assert not folder.exists()


JSON: list[Any] = [None, True, -1, 1.5, "text", [], {}, [1], [[]], {"a": 1}, 10**40]
PATHS = [
    "../x.parquet", "/etc/passwd", "decisions/../../x.parquet", "events/day=2026-01-01/bucket=00/part-000001.parquet",
    "events/share=00-of-04/part-000001.parquet", "decisions/share=0-of-4/part-000001.parquet",
    "decisions/day=2026-01-01/bucket=00/part-٣٣٣٣٣٣.parquet", "decisions/day=2026-01-01/bucket=xx/part-1.parquet", "",
    "decisions", "\ud800", "\x00", "x" * 5000, None, 1, ["x"],
]  # fmt: skip


@pytest.mark.slow
def test_a_manifest_of_any_json_is_named_in_one_line(run: Run, folder: Path) -> None:
    run("export-log", folder, "--layout", "parquet").done()
    stored = json.loads((folder / "manifest.json").read_text())
    (first, *_), keys = stored["files"]["decisions"], ("format", "store", "forgotten", "decisions", "files")
    changed = [{**stored, key: value} for key in keys for value in JSON if type(value) is not type(stored[key])]
    changed += [{name: value for name, value in stored.items() if name != key} for key in keys]
    files = [{name: value} for name in DATASETS for value in JSON if value != []]
    files += [{"decisions": [*stored["files"]["decisions"], path]} for path in [*PATHS, first]]
    changed += [{**stored, "files": {**stored["files"], **entry}} for entry in files]
    texts = [*map(json.dumps, [*JSON, *changed]), "", "[" * 100_000, '{"format": 1']
    commands = cycle([["export-log", folder, "--layout", "parquet"], ["exposure", "--log", f"parquet:{folder}"]])
    for text in texts:
        (folder / "manifest.json").write_text(text)
        refused = run(*next(commands))
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1), (text[:200], refused.stderr)
        assert "manifest.json: " in refused.stderr


def test_a_link_out_of_the_folder_to_what_is_no_log_is_named(run: Run, folder: Path, tmp_path: Path) -> None:
    run("export-log", folder, "--layout", "parquet").done()
    for target in (tmp_path / "nothing", tmp_path, Path("/etc/passwd")):
        for name in ("decisions", "visits"):
            file = next(folder.glob(f"{name}/*/*.parquet"))
            content = file.read_bytes()
            file.unlink()
            file.symlink_to(target)
            refused = run("exposure", "--log", f"parquet:{folder}")
            assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1), refused.stderr
            assert str(file) in refused.stderr
            file.unlink()
            file.write_bytes(content)
