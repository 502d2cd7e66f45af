"""Open Bandit logs, stored in columns: the same as line by line, whatever the file looks like."""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect
from collections.abc import Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from rlrec.app.log.splits import BOUNDS, splits
from rlrec.errors import RlrecError
from rlrec.store import Store
from tests.app.logs import summary
from tests.conftest import ON_BOTH, Run

NAMES = ["timestamp", "item_id", "position", "click", "propensity_score", "user_feature_0", "user-item_affinity_0"]
SMALL = {  # so that a few lines are many groups
    "rlrec.app.imports.layouts.base.GROUP": 2,
    "rlrec.store.database.loading.ROWS": 2,
    "rlrec.store.database.loading.MAX_FETCHED": 1,
    "rlrec.store.database.loading.PORTION": 2,
}


def rows(*changes: dict[str, object]) -> list[list[str]]:
    """One a second, but for what is changed."""
    result = []
    for second, change in enumerate(changes):
        usual = dict(
            zip(NAMES, (f"2019-11-24 00:00:{second:02d}.000000+00:00", second, 1, 0, 0.5, "x", 0.0), strict=True)
        )
        result.append([str(value) for value in (usual | change).values()])
    return result


def written(path: Path, lines: Sequence[Sequence[str]], *, quoted: bool = False) -> Path:
    cells = [[f'"{cell}"' if quoted else cell for cell in line] for line in [NAMES, *lines]]
    path.write_text("".join(",".join(line) + "\n" for line in cells))
    return path


def taken_in(run: Run, *files: Path) -> Any:
    return run("import-log", *files, "--layout", "obd", "--policy", "random", "--json").done().json


def log(run: Run) -> list[Any]:
    """What the export says of each line: arm, position, marginal, time, clicks, page."""
    return [
        (answer["slate"][0]["arm"], answer["slate"][0]["position"], answer["slate"][0]["marginal"], answer["at"],
         [(event["kind"], event["position"], event["at"]) for event in answer["events"]],
         answer["k"], answer["eligible"])
        for answer in run("export-log", "-").lines
    ]  # fmt: skip


VARIED = rows({"click": 1}, {"position": 2}, {"propensity_score": 0.25}, {"user_feature_0": "y"}, {"position": 3},
              {"item_id": "new", "click": 1}, {"user-item_affinity_0": 2.0})  # fmt: skip


def test_groups_and_statements_of_any_size_store_the_same(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(name, value)
    path = written(tmp_path / "log.csv", VARIED)
    assert taken_in(run, path) == summary(accepted=7)
    eligible = ["0", "1", "2", "3", "4", "6", "new"]
    clicks = [
        [("click", int(row[2]), row[0].replace(" ", "T").replace("+00:00", "Z"))] if row[3] == "1" else []
        for row in VARIED
    ]
    assert log(run) == [
        (row[1], int(row[2]), float(row[4]), row[0].replace(" ", "T").replace("+00:00", "Z"), click, 3, eligible)
        for row, click in zip(VARIED, clicks, strict=True)
    ]
    assert taken_in(run, path) == summary(duplicates=7)


@pytest.mark.parametrize("change", ["quoted", "times", "order"])
def test_an_unusual_file_says_the_same(run_sqlite: Run, sqlite_db: str, tmp_path: Path, change: str) -> None:
    lines = [*VARIED]
    if change == "times":
        lines = [[row[0].replace(".000000+00:00", "Z").replace(" ", "T"), *row[1:]] for row in lines]
    if change == "order":
        lines.reverse()
    taken_in(run_sqlite, written(tmp_path / "log.csv", lines, quoted=change == "quoted"))
    result = log(run_sqlite)
    assert [(item[0], item[1], item[2], len(item[4])) for item in sorted(result, key=lambda each: each[3])] == [
        (row[1], int(row[2]), float(row[4]), int(row[3])) for row in VARIED
    ]
    assert [row[3] for row in result] == sorted((item[3] for item in result), reverse=change == "order")
    with closing(sqlite3.connect(sqlite_db)) as connection:
        (salt,) = connection.execute("SELECT salt FROM settings").fetchone()
        stored = connection.execute(
            "SELECT key, split, decision.at, started_at, last_at, ended_at, steps FROM session"
            " JOIN decision ON session_id = session.id JOIN visit USING (session_id)"
        ).fetchall()
    assert all(piece == split(salt, key) for key, piece, *_ in stored)
    assert all(set(times) == {times[0]} and steps == 1 for _, _, *times, steps in stored)


def test_a_line_that_comes_twice_is_two_lines(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlrec.app.imports.layouts.base.GROUP", 2)
    path = written(tmp_path / "log.csv", [*VARIED, *VARIED[:3]])
    assert taken_in(run, path) == summary(accepted=10)
    more = written(tmp_path / "more.csv", [*VARIED[:3], *VARIED[:3], *VARIED[:3], *rows({"item_id": "0"})])
    assert taken_in(run, path, more) == summary(accepted=4, duplicates=16)


def test_two_files_of_one_command_may_overlap(run: Run, tmp_path: Path) -> None:
    item, two = written(tmp_path / "one.csv", VARIED[:5]), written(tmp_path / "two.csv", VARIED[3:])
    assert taken_in(run, item, two) == summary(accepted=7, duplicates=2)


@ON_BOTH
def test_sessions_that_a_store_has_already_are_joined(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path / "log.csv", VARIED)
    taken_in(run, path)
    copied = [line | {"policy": None} for line in run("export-log", "-").lines]
    text = "".join(
        json.dumps({key: item[key] for key in ("session", "slate", "eligible", "at")}) + "\n" for item in copied
    )
    assert run("import-log", "-", "--layout", "jsonl", "--policy", "copy", stdin=text).exit_code == 0
    sessions = {item["session"].replace("random/", "other/") for item in copied}
    text = text.replace("random/", "other/")
    assert run("import-log", "-", "--layout", "jsonl", "--policy", "copy", stdin=text).exit_code == 0
    answer = run("import-log", path, "--layout", "obd", "--policy", "other", "--json").json
    assert answer == summary(accepted=7)
    answers = run("export-log", "-", "--log", "policy=other").lines
    assert {item["session"] for item in answers} == sessions
    assert {(item["visit"], item["step"]) for item in answers} == {(1, 1)}


@pytest.mark.parametrize("index", [0, 1, 4, 6])
def test_nothing_is_stored_where_any_line_is_bad(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    monkeypatch.setattr("rlrec.app.imports.layouts.base.GROUP", 2)
    bad = [*VARIED[:index], [*VARIED[index][:3], "maybe", *VARIED[index][4:]], *VARIED[index + 1 :]]
    fine, path = written(tmp_path / "fine.csv", VARIED[:2]), written(tmp_path / "log.csv", bad)
    result = run("import-log", fine, path, "--layout", "obd", "--policy", "random").failed(2)
    assert f"{path} line {index + 2}, field click" in result
    assert run("export-log", "-").stdout == ""
    assert run("policy", "list", "--json").json == []


def test_bad_lines_are_set_apart_in_order(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlrec.app.imports.layouts.base.GROUP", 2)
    lines = [[*row[:3], "maybe", *row[4:]] if index in (1, 2, 5) else row for index, row in enumerate(VARIED)]
    rejects = tmp_path / "bad.jsonl"
    command = ("import-log", written(tmp_path / "log.csv", lines), "--layout", "obd", "--policy", "random", "--json")
    result = run(*command, "--on-error", "quarantine", "--rejects", rejects)
    assert result.json == summary(accepted=4, rejected=3)
    assert [json.loads(line)["line"] for line in rejects.read_text().splitlines()] == [3, 4, 7]


@pytest.mark.parametrize("layout", ["obd", "jsonl"])
def test_no_row_of_an_import_dangles(run_sqlite: Run, sqlite_db: str, tmp_path: Path, layout: str) -> None:
    """Imports answer for the foreign keys themselves; here every one is looked up."""
    path = written(tmp_path / "log.csv", [*VARIED, *VARIED[:3]])
    if layout == "jsonl":
        taken_in(run_sqlite, path)
        path.write_text("".join(map(_line, range(10), run_sqlite("export-log", "-").lines)))
    for _ in range(2):
        assert run_sqlite("import-log", path, "--layout", layout, "--policy", layout).exit_code == 0
    with closing(sqlite3.connect(sqlite_db)) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("SELECT count(*) > 9 FROM event JOIN decision ON id = decision_id").fetchone() == (
            (1,) if layout == "jsonl" else (0,)
        )


def split(salt: str, key: str) -> int:
    """The split of one unit: where a uniform hash of its key stands among the bounds."""
    return bisect(BOUNDS, int.from_bytes(sha256(f"{salt}/split/{key}".encode()).digest()[:8]) / 2**64)


def test_many_splits_are_those_of_each() -> None:
    keys = [f"s{number}" for number in range(2000)]
    assert splits("salt", keys) == [split("salt", key) for key in keys]
    assert splits("salt", []) == []


def _line(index: int, item: dict[str, Any]) -> str:
    """A line of a session with a user, several decisions, and a click under a key."""
    event = {"kind": "click", "position": item["slate"][0]["position"], "key": f"k{index}"}
    line = {name: item[name] for name in ("slate", "eligible", "k", "at")} | {"events": [event]}
    return json.dumps(line | {"session": f"s{index % 4}", "user": f"u{index % 2}"}) + "\n"


def test_foreign_keys_are_looked_up_again(sqlite_db: str) -> None:
    dangling = "INSERT INTO policy_head (policy_id, seq, ordinal, live_id) VALUES (9, 0, 0, 9)"
    with closing(Store(sqlite_db)) as store:
        with pytest.raises(ZeroDivisionError):
            store.write(lambda unit: 1 // 0, references_hold=True)
        store.write(lambda unit: None, references_hold=True)
        with pytest.raises(RlrecError, match="FOREIGN KEY"):
            store.write(lambda unit: unit.tell(dangling))
