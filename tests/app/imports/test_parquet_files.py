"""The log in a folder of Parquet: exact, appended to at once, and read like that of a store."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest

from rlrec.app.evaluation.passes.passes import IN_PROCESS, Workers
from rlrec.app.imports import log_stores, parquet_files
from rlrec.app.imports.parquet_files import Manifest
from rlrec.app.judging import evaluate
from rlrec.app.log import partitions
from rlrec.errors import CheckFailed, InputError, RlrecError
from tests.app import logs
from tests.conftest import Run, filled, runner

pytestmark = pytest.mark.slow
ALL, FEW = "impression,session,slate", "dr,wdr,sips"


def judged(
    db: str, *targets: str, estimators: str = ALL, workers: Workers = IN_PROCESS, **options: Any
) -> list[dict[str, Any]]:
    request = evaluate.Request(targets=targets or ("uniform", "log", "lin"), estimators=estimators, **options)
    with closing(logs.at(db, 1e6)) as store:
        return [row.record for row in evaluate.evaluate(store, request, workers)]


def export(db: str, folder: Path, **options: Any) -> tuple[int, int]:
    """The decisions in the folder, and how many of them are new."""
    with closing(logs.at(db, 1e6)) as store:
        written = parquet_files.export(store, str(folder), **options)
    assert written.files == len([*folder.rglob("*.parquet")])
    return written.decisions, written.new


def serve(db: str, *, pages: int = 200, seed: int = 1, start: float = 1.0) -> None:
    contexts = [{"hour": hour} for hour in range(3)]
    rates = (0.1, 0.2, 0.3, 0.4, 0.5)
    logs.serve(db, "log", pages=pages, rates=rates, size=2, users=60, contexts=contexts, seed=seed, start=start)


def prepare_catalogue(db: str) -> None:
    logs.begin(db, 5, "log", "thompson", floor="0.2")
    logs.create(db, "lin", "lin-thompson", floor="0.1")


def prepare(db: str) -> str:
    prepare_catalogue(db)
    serve(db)
    return db


@pytest.fixture
def served(db: str) -> str:
    """A log of slates for users who come back, on either database."""
    filled(db, prepare)
    return db


@pytest.fixture
def folder(served: str, tmp_path: Path) -> Path:
    export(served, tmp_path / "log")
    return tmp_path / "log"


def change(db: str, text: str) -> None:
    with closing(logs.at(db, 1e6)) as store:
        store.write(lambda unit: unit.tell(text))


@pytest.mark.parametrize(
    ("db", "targets", "options"),
    [
        ("postgres", ["log", "lin"], {}), ("sqlite", ["lin"], {"by": "hour"}),
        ("sqlite", ["lin"], {"cluster": "session", "gamma": 0.9}),
    ],
    indirect=["db"],
)  # fmt: skip
def test_a_folder_gives_the_bits_of_its_store(
    served: str, folder: Path, targets: list[str], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.in_batches(monkeypatch, 120)
    assert judged(served, *targets, log=f"parquet:{folder}", **options) == judged(served, *targets, **options)


def test_a_filter_follows_the_folder(served: str, folder: Path) -> None:
    of_log = ({"log": f"parquet:{folder},split=train"}, {"log": "split=train"})
    first, second = (judged(served, "log", estimators=FEW, **log) for log in of_log)
    assert first == second


@pytest.mark.parametrize("db", ["postgres"], indirect=True)
def test_both_databases_give_the_same_bits(
    sqlite_db: str, db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same lines, imported into either one."""
    logs.in_batches(monkeypatch, 120)
    source = tmp_path / "source.db"
    source.write_bytes(Path(sqlite_db).read_bytes())
    lines = runner(prepare(str(source)))("export-log", "-").stdout
    answers = []
    for target in (sqlite_db, db):
        assert runner(target)("import-log", "-", "--layout", "jsonl", "--policy", "log", stdin=lines).exit_code == 0
        request = evaluate.Request(targets=["uniform"], estimators=ALL)
        with closing(logs.at(target, 1e6)) as store:
            answers.append([row.record for row in evaluate.evaluate(store, request)])
    assert answers[0] == answers[1]


READERS = {
    "train-pg": ("train-pg", "pg", "--seed", "1", "--epochs", "1", "--dry-run"),
    "exposure": ("exposure", "--by", "day"),
    "position fit": ("position", "fit", "curve", "--dry-run"),
}


@pytest.mark.parametrize("command", READERS)
def test_other_commands_read_a_folder(served: str, tmp_path: Path, command: str) -> None:
    logs.create(served, "pg", "gradient", minutes=3)
    export(served, tmp_path / "log")
    run = runner(served)
    answers = [
        run("--now", "2026-03-01T00:00:00Z", *READERS[command], *log, "--json")
        for log in ((), ("--log", f"parquet:{tmp_path / 'log'}"))
    ]
    assert [answer.exit_code for answer in answers] == [0, 0], answers
    first, second = ({name: value for name, value in answer.json.items() if name != "log"} for answer in answers)
    assert first == second


# -- appending --


def test_only_what_is_new_is_appended(served: str, folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.parquet")}
    assert export(served, folder) == (200, 0)
    serve(served, pages=100, seed=2, start=1_000)
    assert export(served, folder) == (300, 100)
    assert {path: path.read_bytes() for path in before} == before
    assert judged(served, "log", log=f"parquet:{folder}", estimators=FEW) == judged(served, "log", estimators=FEW)


def test_late_events_and_censoring_are_appended(served: str, folder: Path) -> None:
    run = runner(served)
    for words in (("7", "click=1", "--position", "1"), ("9", "--censor", "--position", "2")):
        assert run("--now", "2026-02-01T00:05:00Z", "feedback", *words).exit_code == 0
    stale = judged(served, "log", log=f"parquet:{folder}", estimators=FEW)
    assert export(served, folder) == (200, 0)
    fresh = judged(served, "log", log=f"parquet:{folder}", estimators=FEW)
    assert stale != fresh == judged(served, "log", estimators=FEW)


def test_a_folder_by_days_is_read_and_appended_to(served: str, tmp_path: Path) -> None:
    """Version 0.1 wrote a file for each day and bucket, without the columns of buckets and exports."""
    export(served, tmp_path / "log")
    manifest = json.loads((tmp_path / "log" / "manifest.json").read_text())
    for name, paths in manifest["files"].items():
        (path,) = paths
        table = pq.ParquetFile(tmp_path / "log" / path).read()
        (tmp_path / "log" / path).unlink()
        buckets = table.column("bucket").to_numpy()
        manifest["files"][name] = [
            f"{name}/day=2026-02-01/bucket={bucket:02d}/part-{bucket + 1:06d}.parquet" for bucket in {*buckets.tolist()}
        ]
        columns = ["bucket", "part"] if name == "visits" else ["bucket"]
        for by_day in manifest["files"][name]:
            (tmp_path / "log" / by_day).parent.mkdir(parents=True)
            rows = table.filter(buckets == int(by_day.partition("bucket=")[2][:2])).drop_columns(columns)
            pq.write_table(rows, tmp_path / "log" / by_day)
    (tmp_path / "log" / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    log, options = f"parquet:{tmp_path / 'log'}", {"estimators": "dr"}
    assert judged(served, "lin", log=log, **options) == judged(served, "lin", **options)
    serve(served, pages=50, seed=2, start=1_000)
    assert export(served, tmp_path / "log") == (250, 50)
    assert judged(served, "lin", log=log, **options) == judged(served, "lin", **options)


def test_files_follow_the_size_of_an_export(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size, files in ((200, 3), (50, 12)):
        monkeypatch.setattr(partitions, "BATCH", size)
        export(served, tmp_path / str(size))
        assert len([*(tmp_path / str(size)).rglob("*.parquet")]) == files


@pytest.mark.parametrize(("protocol", "nights"), [("", 8), ("memory://", 2)])
def test_a_folder_that_is_exported_to_every_night_has_few_files(
    sqlite_db: str, tmp_path: Path, protocol: str, nights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exports of one size are merged as a binary counter counts: those of 7 nights are 4, 2 and 1 of them."""
    monkeypatch.setattr(partitions, "BATCH", 80)
    prepare_catalogue(sqlite_db)
    folder, counts = f"{protocol}{tmp_path}/log", []
    for night in range(nights):
        serve(sqlite_db, pages=20, seed=night, start=1 + 1440 * night)
        assert sent(sqlite_db, folder) == (20 * (night + 1), 20)
        counts.append(len(Manifest.read(folder).files["decisions"]))
        files = {*fsspec.filesystem(protocol[:-3] or "file").find(f"{tmp_path}/log")}
        assert len(files) == 1 + sum(map(len, Manifest.read(folder).files.values()))
    assert counts == [1, 1, 2, 1, 2, 2, 3, 2][:nights]  # a file has 80 decisions, about
    options: list[dict[str, Any]] = [{}, {"log": f"parquet:{folder}"}]
    assert len({repr(judged(sqlite_db, "log", estimators=FEW, **each)) for each in options}) == 1


def test_a_file_that_an_export_has_merged_since_is_named(served: str, tmp_path: Path) -> None:
    export(served, tmp_path / "log")
    with closing(logs.at(served, 1e6)) as store, log_stores.open_log(store, f"parquet:{tmp_path}/log") as (log, _):
        serve(served, pages=200, seed=2, start=1_000)
        assert export(served, tmp_path / "log") == (400, 200)
        with pytest.raises(RlrecError, match="part-000001") as caught, log.read() as unit:
            unit.ask("SELECT count(*) FROM decision")
        assert "repeat the command" in str(caught.value.hint)


def test_rows_that_lie_together_are_bounded_in_bytes(
    served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that come together are 5,000, and fewer where files are merged."""
    monkeypatch.setattr(parquet_files, "GROUP", 50)
    monkeypatch.setattr(parquet_files, "MAX_WAITING_BYTES", 1)
    groups = {}
    for size in (10**9, 1):
        monkeypatch.setattr(parquet_files, "GROUP_BYTES", size)
        export(served, tmp_path / str(size))
        (path,) = (tmp_path / str(size) / "decisions").rglob("*.parquet")
        groups[size] = pq.ParquetFile(path).num_row_groups
    assert groups == {10**9: 1, 1: 4}


def test_a_bucket_holds_whole_users(served: str, tmp_path: Path) -> None:
    export(served, tmp_path / "log")
    buckets: dict[str, set[str]] = {}
    for path in (tmp_path / "log" / "decisions").rglob("*.parquet"):
        for user in pq.ParquetFile(path).read(columns=["user"]).column(0).to_pylist():
            buckets.setdefault(user, set()).add(path.parent.name)
    assert len(buckets) == 60
    assert {len(each) for each in buckets.values()} == {1}


def test_the_columns_are_readable_by_themselves(served: str, tmp_path: Path) -> None:
    export(served, tmp_path / "log")
    path = next((tmp_path / "log" / "decisions").rglob("*.parquet"))
    row = pq.ParquetFile(path).read().to_pylist()[0]
    assert (row["policy"], row["version"], row["eligible"]) == ("log", 1, ["a0", "a1", "a2", "a3", "a4"])
    assert {slot["arm"] for slot in row["slot"]} <= {*row["eligible"]}
    assert json.loads(row["context"]).keys() == {"hour"}
    assert row["at"].isoformat().startswith("2026-02-01T")


def test_a_stopped_export_leaves_what_was_there(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "log"
    export(served, folder)
    before = set(folder.rglob("*"))
    serve(served, pages=50, seed=2, start=1_000)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parquet_files, "_write_visits", stop)
        with pytest.raises(KeyboardInterrupt):
            export(served, folder)
    assert {path for path in folder.rglob("*") if path.is_file()} <= before
    assert export(served, folder) == (250, 50)


def test_a_log_is_exported_to_a_url_as_to_a_folder(served: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is new is sent when it is complete; the manifest goes last, and names nothing that is not there."""
    files, url = fsspec.filesystem("memory"), f"memory://{folder}"
    assert sent(served, url) == (200, 200)
    there = {name: files.cat(name) for name in files.find(str(folder)) if name.endswith(".parquet")}
    local = {str(path): path.read_bytes() for path in folder.rglob("*.parquet")}
    assert there == local
    serve(served, pages=50, seed=2, start=1_000)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "write", refuse)
        with pytest.raises(RlrecError, match=r"cannot write memory://.*: no such bucket"):
            sent(served, url)
    assert sent(served, url) == (250, 50)
    assert judged(served, "log", log=f"parquet:{url}", estimators=FEW) == judged(served, "log", estimators=FEW)


def sent(db: str, url: str) -> tuple[int, int]:
    with closing(logs.at(db, 1e6)) as store:
        written = parquet_files.export(store, url)
    return written.decisions, written.new


def refuse(*_: Any) -> None:
    raise OSError("No such bucket")


# -- what is refused --


def refusal(db: str, folder: Path, kind: type[RlrecError]) -> str:
    with pytest.raises(kind) as caught:
        judged(db, log=f"parquet:{folder}")
    return caught.value.message


def test_a_damaged_folder_is_refused_by_its_file(served: str, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    export(served, folder)
    path = next((folder / "decisions").rglob("*.parquet"))
    complete = path.read_bytes()
    path.write_bytes(complete[: len(complete) // 2])
    assert f"cannot read {path}" in refusal(served, folder, RlrecError)
    path.unlink()
    assert f"cannot read {path}" in refusal(served, folder, RlrecError)


@pytest.mark.parametrize(
    ("dataset", "column"), [("decisions", "eligible_arms"), ("events", "number"), ("visits", "part")]
)
def test_a_missing_column_is_named(served: str, tmp_path: Path, dataset: str, column: str) -> None:
    folder = tmp_path / "log"
    export(served, folder)
    path = next((folder / dataset).rglob("*.parquet"))
    pq.write_table(pq.ParquetFile(path).read().drop_columns([column]), path)
    assert refusal(served, folder, RlrecError) == f"{path} has no column {column}"


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_a_folder_may_be_a_url(served: str, folder: Path, protocol: str) -> None:
    url = f"{protocol}://{folder}"
    if protocol == "memory":
        fsspec.filesystem("memory").put(str(folder), str(folder), recursive=True)
    of_log = ({"log": f"parquet:{url},split=train"}, {"log": "split=train"})
    first, second = (judged(served, "log", estimators=FEW, **log) for log in of_log)
    assert first == second
    if protocol == "memory":
        files = fsspec.filesystem("memory")
        path = next(name for name in files.find(f"{folder}/decisions") if name.endswith(".parquet"))
        files.pipe(path, files.cat(path)[:1000])
        with pytest.raises(RlrecError, match=f"cannot read {url}/decisions"):
            judged(served, log=f"parquet:{url}")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://bucket/log", "s3fs"),
        ("nowhere://bucket/log", "Protocol not known: nowhere"),
        ("file:///nowhere/log", "holds no log"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_in_a_line(run_sqlite: Run, url: str, reason: str) -> None:
    result = run_sqlite("evaluate", "uniform", "--log", f"parquet:{url}", "--json")
    assert (result.exit_code, reason in result.error["error"]) == (2, True), result.stderr


def test_a_folder_of_another_store_is_refused(served: str, tmp_path: Path) -> None:
    export(served, tmp_path / "log")
    with closing(sqlite3.connect(served)) as connection:
        connection.execute("UPDATE settings SET salt = 'another'")
        connection.commit()
    assert "holds the log of another store" in refusal(served, tmp_path / "log", CheckFailed)
    with pytest.raises(CheckFailed, match="holds the log of another store"):
        export(served, tmp_path / "log")


def test_a_folder_with_a_forgotten_user_is_refused(served: str, tmp_path: Path) -> None:
    export(served, tmp_path / "log")
    with closing(logs.at(served, 1e6)) as store, store.read() as unit:
        user = unit.ask_value("SELECT min(key) FROM users")
    assert runner(served)("db", "forget", "--user", user, "--yes").exit_code == 0
    assert "may hold a user whom the store has forgotten since" in refusal(served, tmp_path / "log", CheckFailed)
    assert export(served, tmp_path / "new")[0] < 200


def test_a_folder_needs_duckdb(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(served, tmp_path / "log")
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert refusal(served, tmp_path / "log", InputError) == "a log in Parquet needs DuckDB"


def test_a_folder_without_a_log_is_refused(served: str, tmp_path: Path) -> None:
    assert refusal(served, tmp_path, InputError) == f"{tmp_path} holds no log"
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(InputError, match="is not empty, and is not a log"):
        export(served, tmp_path)


def test_the_command_counts(sqlite_db: str, tmp_path: Path) -> None:
    logs.begin(sqlite_db, 2, "log", "uniform")
    logs.serve(sqlite_db, "log", pages=1, rates=(0.0, 0.0))
    run, words = runner(sqlite_db), ("export-log", str(tmp_path / "log"), "--layout", "parquet", "--json")
    assert run(*words).json == {"files": 2, "decisions": 1, "new": 1}
    assert run(*words).json == {"files": 2, "decisions": 1, "new": 0}
    assert run("export-log", "-", "--layout", "parquet").exit_code == 2
    assert run(*words[:1], f"file://{tmp_path}/log", *words[2:]).json == {"files": 2, "decisions": 1, "new": 0}
    assert "s3fs" in run("export-log", "s3://bucket/log", "--layout", "parquet", "--json").error["error"]
