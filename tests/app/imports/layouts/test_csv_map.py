"""Tables in CSV: what the map names is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec import times
from rlrec.app.imports.layouts import csv_cells
from rlrec.app.imports.layouts.csv_map import SINGLE, ColumnMap
from rlrec.errors import InputError
from tests.app.logs import summary
from tests.conftest import Run

MAP = {
    "session": "visit", "user": "uid", "at": "time", "arm": "item", "propensity": "p", "position": "slot",
    "events": {"click": "clicked"}, "eligible": "items", "context": ["country", "hour"],
}  # fmt: skip
HEADER = "visit,uid,time,slot,item,p,clicked,items,hour,country\n"
ROW = "v{n},u{n},2026-01-31T12:00:00Z,1,{item},{p},{click},a|b|c,9,de\n"


def row(n: int = 0, item: str = "a", p: object = 0.5, click: object = 0) -> str:
    return ROW.format(n=n, item=item, p=p, click=click)


@pytest.fixture(autouse=True)
def columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("map.json").write_text(json.dumps(MAP))


def imported(run: Run, text: str, **changes: Any) -> Any:
    Path("log.csv").write_text(text)
    Path("map.json").write_text(json.dumps({**MAP, **changes}))
    return run("import-log", "log.csv", "--layout", "csv", "--map", "map.json", "--policy", "shop", "--json")


def test_a_row_becomes_what_the_map_says(run: Run) -> None:
    assert imported(run, HEADER + row(click=1)).json["accepted"] == 1
    (line,) = run("export-log", "-").lines
    assert (line["session"], line["user"], line["at"]) == ("v0", "u0", "2026-01-31T12:00:00.000000Z")
    assert (line["context"], line["eligible"], line["log_propensity"]) == (
        {"country": "de", "hour": 9}, ["a", "b", "c"], pytest.approx(np.log(0.5))
    )  # fmt: skip
    assert [(event["kind"], event["position"], event["value"]) for event in line["events"]] == [("click", 1, 1.0)]


def test_a_list_of_many_arms_is_a_cell(run_sqlite: Run) -> None:
    many = "|".join(["a", *(f"arm-with-a-long-key-{n}" for n in range(8_000))])
    assert imported(run_sqlite, HEADER + row().replace("a|b|c", many)).json == summary(accepted=1)


def test_an_arm_and_a_reward_are_enough(run: Run) -> None:
    """The arms of the file are eligible, and each row is a session of its own."""
    Path("map.json").write_text('{"arm": "item", "reward": "stars"}')
    Path("log.csv").write_text("item;stars\na;0.5\nb;\n")
    result = run("import-log", "log.csv", "--layout", "csv", "--map", "map.json", "--json")
    assert result.json == summary(accepted=2, without_propensity=2)
    first, second = run("export-log", "-").lines
    assert (first["eligible"], first["reward"], second["reward"]) == (["a", "b"], 0.5, 0.0)
    assert (first["policy"], first["slate"][0]["propensity"]) == ("imported", None)
    assert first["session"] != second["session"]


def test_a_bad_row_is_named_where_no_decision_has_several(run_sqlite: Run) -> None:
    """Without columns that say which rows are of one decision."""
    Path("map.json").write_text('{"arm": "item", "reward": "stars"}')
    Path("log.csv").write_text("item;stars\na;0.5\nb;many\na;1\n")
    command = ("import-log", "log.csv", "--layout", "csv", "--map", "map.json", "--json")
    assert "line 3, field stars: 'many' is no finite number, such as 0.5" in run_sqlite(*command).failed(2)
    result = run_sqlite(*command, "--on-error", "quarantine", "--rejects", "bad.jsonl")
    assert (result.json["accepted"], result.json["rejected"]) == (2, 1)


def test_rows_of_one_decision_are_one_slate(run: Run) -> None:
    text = "page,item,p\nx,a,0.5\nx,b,0.5\n,a,0.25\n,a,0.25\n"
    Path("map.json").write_text('{"decision": "page", "arm": "item", "propensity": "p"}')
    Path("log.csv").write_text(text)
    assert run("import-log", "log.csv", "--layout", "csv", "--map", "map.json", "--json").json["accepted"] == 3
    lines = run("export-log", "-").lines
    assert sorted(len(line["slate"]) for line in lines) == [1, 1, 2]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(p=0), "field p"),
        (row(p="nan"), "field p"),
        (row(item=""), "field item"),
        (row(item="x"), "not eligible"),
        (row(click="often"), "field clicked"),
        (row().replace("12:00:00Z", "25:00:00Z"), "field time"),
        (row().replace("2026", "2999"), "in the future"),
        (row().replace(",de\n", "\n"), "9 cells"),
        (row().replace(",de\n", ',"de\n'), "a row is one line"),
        (row().replace(",1,a", ",0,a"), "field slot"),
        (row().replace("a|b|c", "a").replace("0.5", "0.7"), "must be 1"),
        (row().replace("a|b|c", "[1"), "no JSON list"),
    ],
)
def test_a_bad_row_is_named(run_sqlite: Run, bad: str, reason: str) -> None:
    result = imported(run_sqlite, HEADER + row(1) + bad + row(2))
    assert result.exit_code == 2
    assert "log.csv line 3" in result.error["error"]
    assert reason in result.error["error"] + str(result.error["hint"])


def test_decisions_whose_rows_contradict_each_other_are_set_apart(run_sqlite: Run) -> None:
    text = HEADER + row(1) + row(2) + row(2, "b").replace(",1,b", ",2,b").replace(",de", ",fr") + row(3)
    Path("log.csv").write_text(text)
    command = ("import-log", "log.csv", "--layout", "csv", "--map", "map.json")
    result = run_sqlite(*command, "--on-error", "quarantine", "--rejects", "bad.jsonl", "--json")
    assert (result.exit_code, result.json) == (5, summary(accepted=2, rejected=1))
    bad = json.loads(Path("bad.jsonl").read_text())
    assert (bad["line"], "'country'" in bad["error"]) == (3, True)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"propensity": "prob"}, "its columns are visit, uid, time, slot,"),
        ({"context": ["contry"]}, "no column 'contry'"),
        ({"propensty": "p"}, "did you mean propensity"),
        ({"time": "time"}, "its words are decision, reward,"),
        ({"reward": "clicked"}, "has \"reward\" and \"events\""),
        ({"events": {"!": "clicked"}}, "no kind of event"),
    ],
)  # fmt: skip
def test_a_map_that_does_not_fit_is_named(run_sqlite: Run, change: dict[str, Any], word: str) -> None:
    result = imported(run_sqlite, HEADER + row(), **change)
    assert (result.exit_code, word in f"{result.error['error']} {result.error['hint']}") == (2, True)


def test_a_table_needs_a_map_and_other_layouts_have_no_use_for_one(run_sqlite: Run) -> None:
    Path("log.csv").write_text(HEADER + row())
    assert "--map" in run_sqlite("import-log", "log.csv", "--layout", "csv").stderr
    assert "no use for --map" in run_sqlite("import-log", "log.csv", "--layout", "jsonl", "--map", "map.json").stderr


@pytest.mark.slow
def test_train_pg_learns_from_a_table(run: Run) -> None:
    """The second arm of a visit pays where it is not the first one: the state follows from the rows of the visit."""
    random, arms = np.random.default_rng(4), "abc"
    lines = [HEADER]
    for n in range(1500):
        first, second = random.choice(3, size=2).tolist()
        for minute, arm, click in ((0, first, 0), (1, second, int(first != second))):
            lines.append(
                f"v{n},u{n},2026-01-{n % 28 + 1:02}T12:{minute:02}:00Z,1,{arms[arm]},{1 / 3!r},{click},a|b|c,9,de\n"
            )
    assert imported(run, "".join(lines)).json == summary(accepted=3000)
    states = {line["step"]: line["state"] for line in run("export-log", "-").lines}
    assert (states[0]["step"], states[1]["step"], states[1]["shown"]) == (0, 1, 1)
    assert run("policy", "create", "pg", "--kind", "gradient").exit_code == 0
    result = run("train-pg", "pg", "--log", "policy=shop", "--seed", "1", "--epochs", "3", "--json").done()
    assert (result.json["version"], result.json["trained"], result.json["tune_estimate"] > 0) == (2, True, True)


@pytest.mark.parametrize("text", ["1769860800", "1769860800000", "2026-01-31 12:00:00", "2026-01-31T13:00:00+01:00"])
def test_times_come_in_several_forms(run_sqlite: Run, text: str) -> None:
    imported(run_sqlite, HEADER + row().replace("2026-01-31T12:00:00Z", text))
    assert run_sqlite("export-log", "-").lines[0]["at"] == "2026-01-31T12:00:00.000000Z"


@pytest.mark.parametrize(
    "cells",
    [
        ["2026-01-31T13:00:00+01:00", "2026-01-31T13:00:00.25+01:00"],
        ["2026-01-31 07:30:00-04:30", "1969-12-31 23:59:59-04:30"],
        ["2026-01-31T12:00:00.5Z", "2026-01-31T12:00:00Z"],
        ["2026-01-31T12:00:00", "2026-01-31 12:00:00.123456"],
    ],
)
def test_times_that_end_alike_are_read_at_once(cells: list[str]) -> None:
    assert csv_cells.instants(cells) == list(map(times.parse, cells))


@pytest.mark.parametrize("other", [
    "2026-01-31T12:00:00+01:00", "2026-01-31", "", "2026-01-31T12:00:60Z", "2026-01-31T12:00:00.Z", "2026-01-31T12:00Z",
    "2026-01-31T12:00:00.1234567Z", "2026-01-31T12:00:00+25:00Z", "2026-13-31T12:00:00Z", "20260131T12:00:00.00Z",
    "0000-01-31T12:00:00Z", "2026-01-31T12:00:00-1Z", "٢٠٢٦-01-31T12:00:00Z",
])  # fmt: skip
def test_other_times_are_read_one_by_one(other: str) -> None:
    assert csv_cells.instants(["2026-01-31T12:00:00Z", other]) is None
    assert csv_cells.instants([other, "2026-01-31T12:00:00Z"]) is None


def test_no_time_has_an_offset_of_a_day() -> None:
    assert csv_cells.instants(["2026-01-31T12:00:00+24:00"]) is None
    assert csv_cells.instants(["2026-01-31T12:00:00+01:60"]) is None


def test_rows_of_a_decision_that_stand_apart_are_counted(run_sqlite: Run) -> None:
    """Each run of rows is a decision; blank names are none."""
    Path("map.json").write_text('{"decision": "page", "arm": "item"}')
    rows = "p1,a\np2,a\np2,b\np1,b\n,a\np3,b\n,b\n"
    Path("log.csv").write_text("page,item\n" + rows)
    result = run_sqlite("import-log", "log.csv", "--layout", "csv", "--map", "map.json", "--policy", "shop", "--json")
    assert result.json["accepted"] == 6
    assert "log.csv: the rows of 1 decision are not one after the other, and count as several" in result.stderr


def test_decisions_without_propensities_are_said(run_sqlite: Run) -> None:
    command = ("import-log", "log.csv", "--layout", "csv", "--map", "map.json", "--policy", "shop")
    Path("log.csv").write_text(HEADER + row(1, p="") + row(2))
    assert "1 decision without a propensity" in run_sqlite(*command).stderr
    assert "1 line stored before" not in (output := run_sqlite(*command, "--propensity", "uniform").stderr)
    assert "2 lines stored before, with the propensities of that time" in output


JSON = [None, True, 0, 1.5, "", "no such column", [], {}, ["item"], [["item"]], [{"a": 1}, "b"], {"click": ["item"]}]


def test_a_map_of_any_json_is_one_or_is_named() -> None:
    words, maps = [*SINGLE, "events", "context"], list[Any](JSON)
    maps += [{"arm": "item", word: value} for word in words for value in JSON]
    refused = 0
    for columns in maps:
        try:
            assert all(isinstance(name, str) for name in ColumnMap.read(columns).names)
        except InputError:
            refused += 1
    assert 0.5 * len(maps) < refused < len(maps)


@pytest.mark.parametrize("layout", ["csv", "parquet"])
def test_a_list_in_place_of_a_column_is_named_in_one_line(run_sqlite: Run, layout: str) -> None:
    if layout == "parquet":
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.table({"item": ["a", "b"]}), "log")
    else:
        Path("log").write_text("item\na\nb\n")
    Path("map.json").write_text('{"arm": ["item"]}')
    refused = run_sqlite("import-log", "log", "--layout", layout, "--map", "map.json")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert '["item"] is no name of a column' in refused.stderr
