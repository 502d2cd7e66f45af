"""Lines that contradict the store, or each other: the first is named, and nothing is stored."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.conftest import ON_BOTH, Run

pytestmark = ON_BOTH

FIELDS: dict[str, Any] = {"slate": [{"arm": "a", "propensity": 0.5}], "eligible": ["a", "b"], "at": "2026-01-01"}
STORED = {"session": "s0", "user": "u0", "request_id": "r0", "events": [{"kind": "click", "key": "k0"}]}
OTHER = [{"session": "s0", "user": "u9"}, {"request_id": "r0"}, {"events": [{"kind": "click", "key": "k0"}]}]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlrec.app.imports.layouts.base.GROUP", 2)


@pytest.fixture(params=[1, 10_000])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of a store are looked up, or all fetched."""
    monkeypatch.setattr("rlrec.store.database.loading.MAX_FETCHED", request.param)


def taken_in(run: Run, lines: Sequence[dict[str, Any]], *options: str) -> Any:
    return run("import-log", "-", "--layout", "jsonl", "--json", *options, stdin=[FIELDS | line for line in lines])


def sessions(run: Run) -> list[str]:
    return [line["session"] for line in run("export-log", "-").lines]


@pytest.mark.parametrize("change", OTHER)
def test_nothing_is_stored_where_the_store_contradicts_a_line(run: Run, change: dict[str, Any]) -> None:
    assert taken_in(run, [STORED]).exit_code == 0
    result = taken_in(run, [*({"session": f"t{n}"} for n in range(5)), {"session": "t0"} | change])
    assert (result.exit_code, result.stdout, "line 6, field" in result.stderr) == (6, "", True)
    assert sessions(run) == ["s0"]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("change", OTHER)
def test_a_line_that_contradicts_the_store_is_set_apart(run: Run, tmp_path: Path, change: dict[str, Any]) -> None:
    assert taken_in(run, [STORED]).exit_code == 0
    lines = [{"session": "t0"}, {"session": "t1"} | change, {"session": "t2"}, {"session": "t2"} | change]
    result = taken_in(run, lines, "--on-error", "quarantine", "--rejects", str(tmp_path / "rejects"))
    assert (result.json["accepted"], result.json["rejected"]) == (2, 2)
    assert sessions(run) == ["s0", "t0", "t2"]


def test_lines_that_are_new_may_name_less_than_those_beside_them(run_sqlite: Run) -> None:
    lines: list[dict[str, Any]] = [{"session": "t0", "request_id": "r0", "user": "u0"}, {"session": "t1"}]
    result = taken_in(run_sqlite, [*lines, lines[0], {"session": "t2"}])
    assert (result.json["accepted"], result.json["duplicates"]) == (3, 1)


def test_the_user_of_an_earlier_line_is_named(run_sqlite: Run) -> None:
    lines = [{"session": "s1", "user": f"u{n}"} for n in (1, 1, 1, 2)]
    result = taken_in(run_sqlite, lines)
    assert "line 4, field user: session 's1' belongs to user 'u1', not 'u2'" in result.stderr


def test_the_first_line_whose_policy_owns_no_log_is_named(run_sqlite: Run) -> None:
    run_sqlite("arm", "add", "a")
    for name in ("p", "q"):
        assert run_sqlite("policy", "create", name, "--kind", "uniform").exit_code == 0
    lines = [{"session": f"t{n}", "policy": name} for n, name in enumerate(["p", "x", "x", "q"])]
    assert "line 1, field policy: policy 'p'" in taken_in(run_sqlite, lines).failed(2)


@pytest.mark.usefixtures("few")
def test_a_session_that_follows_from_a_row_may_have_another_user(run_sqlite: Run, tmp_path: Path) -> None:
    """A row without a session is in one of its name, which a log from elsewhere may have with another user."""
    table, columns = tmp_path / "log.csv", tmp_path / "map.json"
    table.write_text("arm,user\n" + "".join(f"a,u{n}\n" for n in range(5)))
    columns.write_text('{"arm": "arm", "user": "user"}')
    command = ("import-log", table, "--layout", "csv", "--map", columns)
    assert run_sqlite(*command).exit_code == 0
    *others, _, last = sessions(run_sqlite)
    for user in ("u3", "u4"):
        assert run_sqlite("db", "forget", "--user", user, "--yes").exit_code == 0
    assert taken_in(run_sqlite, [{"session": last, "user": "other"}]).exit_code == 0
    assert "line 6, field user" in run_sqlite(*command).failed(6)
    assert sessions(run_sqlite) == [*others, last]


@pytest.mark.parametrize("key", ["", "s" * 201, "s\0"])
@pytest.mark.parametrize("layout", ["jsonl", "dsjson", "csv", "parquet"])
def test_no_layout_takes_a_key_of_a_session_that_no_table_takes(
    run_sqlite: Run, tmp_path: Path, layout: str, key: str
) -> None:
    """SQLite does not look at them again while they are stored."""
    log, columns = tmp_path / "log", tmp_path / "map.json"
    decision = {"a": [1], "p": [1.0], "c": {"_multi": [{"_tag": "a"}]}, "EventId": "e1", "session": key}
    columns.write_text('{"session": "s", "arm": "a"}')
    if layout == "parquet":
        pa.parquet.write_table(pa.table({"s": ["s1", key], "a": ["a", "a"]}), log)
    else:
        lines = {"jsonl": json.dumps(FIELDS | {"session": key}), "dsjson": json.dumps(decision), "csv": f"s,a\n{key},a"}
        log.write_text(lines[layout] + "\n")
    options = ["--map", columns] if layout in ("csv", "parquet") else []
    result = run_sqlite("import-log", log, "--layout", layout, *options)
    assert (result.exit_code, "key" in result.stderr or "NUL" in result.stderr) == (2, True)
    assert sessions(run_sqlite) == []


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("seed", range(10))
def test_the_first_line_that_contradicts_another_is_named(run_sqlite: Run, seed: int) -> None:
    """As a loop over the lines says; half of the logs have no such line."""
    draw = random.Random(seed)
    assert taken_in(run_sqlite, [STORED]).exit_code == 0
    lines = [STORED, *(_line(draw, number, mixes=seed % 2) for number in range(1, 12))]
    lines += draw.choices(lines, k=2)  # the same once more
    draw.shuffle(lines)
    expected, result = _first(lines), taken_in(run_sqlite, lines)
    assert result.exit_code == (6 if expected else 0), result.stderr
    assert f"line {expected}, field" in result.stderr or expected is None
    assert len(sessions(run_sqlite)) == (1 if expected else len({json.dumps(line) for line in lines}))


def _line(draw: random.Random, number: int, *, mixes: int) -> dict[str, Any]:
    """A line that names its request; some have another user than others of their session, or a stored name."""
    session = draw.randrange(4)
    usual = number, session, number
    request, user, key = (draw.randrange(12) if draw.random() < 0.06 * mixes else name for name in usual)
    return {"session": f"s{session}", "user": draw.choice([None, f"u{user}"]), "request_id": f"r{request}",
            "events": [{"kind": kind, "key": f"k{key}"} for kind in ("click", "order")]}  # fmt: skip


def _first(lines: Sequence[dict[str, Any]]) -> int | None:
    """The number of the first line that contradicts the store, or a line before."""
    stored, users = {"r0": STORED, "k0": STORED}, {"s0": "u0"}
    for number, line in enumerate(lines, 1):
        names = line["request_id"], line["events"][0]["key"]
        if any(stored.setdefault(name, line) != line for name in names):
            return number
        if line["user"] is not None and users.setdefault(line["session"], line["user"]) != line["user"]:
            return number
    return None
