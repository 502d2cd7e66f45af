"""Logs that leave in a layout come back by it: what `evaluate` says of them is what it says of the log in jsonl."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.app import logs
from tests.conftest import Run, empty_store, jsonl, runner

RULE = "value,arm,probability\n" + "".join(
    f"{hour},a{arm},{0.4 if arm == hour else 0.15}\n" for hour in range(3) for arm in range(5)
)
CONTEXTS = [{"hour": hour, "list": [1, "5"], "text": 'a "b", c\nd', "flag": hour == 1} for hour in range(3)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rule.csv").write_text(RULE)


def serve(db: str, *, size: int, users: int | None = 40) -> Run:
    logs.begin(db, 5, "log", "thompson", floor="0.2")
    logs.serve(
        db, "log", pages=150, rates=(0.1, 0.2, 0.3, 0.4, 0.5), size=size, users=users, contexts=CONTEXTS, group=50
    )  # fmt: skip
    return runner(db)


def taken(run: Run, layout: str, change: Callable[[str], str] = str) -> list[dict[str, Any]]:
    """What `evaluate` says in a fresh store of the log of this one, after a trip by a layout."""
    text = change(run("export-log", "-", "--layout", layout).stdout)
    other = empty_store(Path(f"{layout}.db").absolute())
    other("import-log", "-", "--layout", layout, "--policy", "shop", "--json", stdin=text).done()
    other("policy", "create", "rule", "--kind", "fixed", "--param", "probabilities=rule.csv", "--param", "by=hour")
    options = ("--estimator", "impression,session,slate", "--interval", "normal", "--json")
    rows: list[dict[str, Any]] = other("evaluate", "uniform", "rule", "--log", "policy=shop", *options).json
    return rows


@pytest.mark.parametrize(("db", "size"), [("postgres", 1), ("sqlite", 3)], indirect=["db"])
def test_a_table_in_csv_gives_the_same_estimates(run: Run, db: str, size: int) -> None:
    """It needs no map, and has times, users, visits, contexts and events as they are."""
    serve(db, size=size)
    assert taken(run, "csv") == taken(run, "jsonl")


def poorer(text: str) -> str:
    """Lines of jsonl without what those of a decision service have no keys for."""
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        line["state"] = {}
        line["slate"] = [{name: slot[name] for name in ("position", "arm", "propensity")} for slot in line["slate"]]
        line["events"] = [event | {"at": None} for event in line["events"]]
    return jsonl(lines)


@pytest.mark.parametrize("size", [1, 2])
def test_lines_of_a_decision_service_give_the_same_estimates(run: Run, db: str, size: int) -> None:
    """As jsonl without what these have no keys for: marginals, smallest probabilities, times of events."""
    serve(db, size=size)
    rows, expected = taken(run, "dsjson"), taken(run, "jsonl", poorer)
    assert len(rows) == len(expected) > 10
    for row, of_jsonl in zip(rows, expected, strict=True):
        for name, value in of_jsonl.items():
            same = pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value
            assert row[name] == same, (row["estimator"], name)


def test_a_row_is_a_slot(run: Run, db: str) -> None:
    serve(db, size=2)
    run("feedback", "1", "share=1")  # of the page
    rows = list(csv.DictReader(io.StringIO(run("export-log", "-", "--layout", "csv").stdout)))
    records = run("export-log", "-").lines
    assert len(rows) == 300
    for record, of_page in zip(records, (rows[n : n + 2] for n in range(0, 300, 2)), strict=True):
        assert [json.loads(row["context"]) for row in of_page] == [record["context"]] * 2
        assert [row["arm"] for row in of_page] == [slot["arm"] for slot in record["slate"]]
        assert [float(row["propensity"]) for row in of_page] == [slot["propensity"] for slot in record["slate"]]
        assert sum(float(row["reward"]) for row in of_page) == record["reward"]
        events = [event for row in of_page for event in json.loads(row["events"] or "[]")]
        assert sorted(event["kind"] for event in events) == sorted(event["kind"] for event in record["events"])
    assert [event.get("position", 0) for event in json.loads(rows[0]["events"]) if event["kind"] == "share"] == [None]


def test_what_a_layout_cannot_hold_is_counted(run: Run, db: str) -> None:
    serve(db, size=2)
    run("feedback", "1", "--censor", "--position", "2")
    result = run("export-log", "log.json", "--layout", "dsjson", "--json")
    assert (result.exit_code, result.json["exported"]) == (0, 149)
    assert (
        "left out, since dsjson cannot hold them (decisions): censored (1), marginals (149), min_propensity (149)"
        in result.stderr
    )
    result = run("export-log", "log.csv.gz", "--layout", "csv", "--json")
    assert (result.exit_code, result.json["exported"]) == (0, 150)
    assert "left out" not in result.stderr
    assert run("export-log", "log.jsonl", "--json").stderr.count("left out") == 0


def test_a_table_takes_the_slots_out_that_were_censored(run: Run, db: str) -> None:
    serve(db, size=2)
    run("feedback", "1", "--censor", "--position", "2")
    run("export-log", "log.csv", "--layout", "csv")
    run("--db", "copy.db", "init")
    run("--db", "copy.db", "import-log", "log.csv", "--layout", "csv")
    slots = [line["slate"] for line in run("--db", "copy.db", "export-log", "-").lines]
    assert [slot.get("censored") for slot in slots[0]] == [None, True]
    assert not any("censored" in slot for slate in slots[1:] for slot in slate)


@pytest.mark.parametrize("name", ["censored", "estimated"])
def test_a_flag_in_a_table_is_0_or_1(run_sqlite: Run, name: str) -> None:
    run = run_sqlite
    run("init")
    Path("log.csv").write_text("session,arm,p,mark\ns1,a,0.5,1\ns2,a,0.5,0\ns3,b,0.5,2\n")
    Path("map.json").write_text(json.dumps({"session": "session", "arm": "arm", "propensity": "p", name: "mark"}))
    result = run("import-log", "log.csv", "--layout", "csv", "--map", "map.json")
    assert result.exit_code == 2
    assert "log.csv line 4, field mark: '2' is neither 0 nor 1" in result.stderr


def test_a_table_of_an_earlier_release_needs_no_map(run: Run, db: str) -> None:
    serve(db, size=2)
    run("export-log", "log.csv", "--layout", "csv")
    rows = [*csv.reader(io.StringIO(Path("log.csv").read_text()))]
    places = [index for index, name in enumerate(rows[0]) if name not in ("censored", "rounded")]
    with Path("old.csv").open("w") as file:
        csv.writer(file, lineterminator="\n").writerows([row[index] for index in places] for row in rows)
    run("--db", "copy.db", "init")
    assert run("--db", "copy.db", "import-log", "old.csv", "--layout", "csv", "--json").json["accepted"] == 150


@pytest.mark.parametrize("layout", ["csv", "dsjson", "vw", "jsonl"])
def test_rewards_are_those_of_estimates(run_sqlite: Run, layout: str) -> None:
    """What came after the window teaches a belief, but counts in no estimate; so other tools see the same rewards."""
    run = run_sqlite
    run("--now", "2026-03-01T08:00", "init")
    run("--now", "2026-03-01T08:00", "arm", "add", "a", "b")
    run("--now", "2026-03-01T08:00", "policy", "create", "home", "--kind", "uniform")
    for number, later in enumerate(("08:10", "09:10"), start=1):
        run("--now", "2026-03-01T08:00", "recommend", "--policy", "home", "--session", f"s{number}")
        run("--now", f"2026-03-01T{later}", "feedback", str(number), "click", "--at", f"2026-03-01T{later}")
    run("--now", "2026-03-01T10:00", "export-log", f"log.{layout}", "--layout", layout)
    run("--db", "copy.db", "--now", "2026-03-01T10:00", "init")
    options = [] if layout in ("csv", "jsonl") else ["--policy", "old"]
    run("--db", "copy.db", "--now", "2026-03-01T10:00", "import-log", f"log.{layout}", "--layout", layout, *options)
    for db in ("rlrec.db", "copy.db"):
        (row,) = run(
            "--db", db, "--now", "2026-03-01T10:00", "evaluate", "uniform", "--estimator", "snips", "--json"
        ).json
        assert (row["n"], row["value"]) == (2, 0.5)


def test_a_key_with_a_line_break_is_no_cell(run_sqlite: Run) -> None:
    run = run_sqlite
    run("arm", "add", "a"), run("policy", "create", "p", "--kind", "uniform")
    run("recommend", "--policy", "p", "--session", "two\nlines")
    result = run("export-log", "log.csv", "--layout", "csv")
    assert (result.exit_code, Path("log.csv").exists()) == (2, False)
    assert "a key of decision 1 has a line break" in result.stderr


def test_support_and_sets_of_slots_leave_as_they_came(run_sqlite: Run) -> None:
    """The probabilities of all arms as `a` and `p`, what a slot could show as `_inc`."""
    line = {
        "session": "s", "eligible": ["a", "b", "c"], "at": "2026-01-01T00:00:00Z", "request_id": "r1", "reward": 1.0,
        "keep_probability": 0.5, "features": {"b": {"price": 3}}, "slate": [{"arm": "b", "propensity": 0.25}],
        "support": {"a": 0.5, "b": 0.25, "c": 0.25},
    }  # fmt: skip
    page = {
        "session": "s", "eligible": ["a", "b", "c"], "at": "2026-01-01T00:01:00Z", "request_id": "r2",
        "slate": [{"arm": "b", "propensity": 0.5}, {"arm": "c", "propensity": 0.5}],
        "slot_sets": [["a", "b"], ["a", "c"]], "events": [{"kind": "reward", "position": 2, "value": 0.5}],
    }  # fmt: skip
    assert run_sqlite("import-log", "-", "--layout", "jsonl", stdin=(line, page)).exit_code == 0
    cb, ccb = run_sqlite("export-log", "-", "--layout", "dsjson").lines
    assert (cb["a"], cb["p"], cb["_label_cost"], cb["pdrop"]) == ([2, 1, 3], [0.25, 0.5, 0.25], -1.0, 0.5)
    assert cb["c"]["_multi"][:2] == [{"_tag": "a", "i": {"id": "a"}}, {"_tag": "b", "price": 3}]
    assert ccb["c"]["_slots"] == [{"_inc": [0, 1]}, {"_inc": [0, 2]}]
    assert [each["_label_cost"] for each in ccb["_outcomes"]] == [0.0, -0.5]
    other = empty_store(Path("other.db").absolute())
    lines = f"{json.dumps(cb)}\n{json.dumps(ccb)}\n"
    assert other("import-log", "-", "--layout", "dsjson", stdin=lines).exit_code == 0
    assert other("export-log", "-", "--layout", "dsjson").lines == [cb, ccb]


def test_rewards_beyond_a_definition_leave_by_another_one(run_sqlite: Run) -> None:
    """Ratings of a slot, and what a context says of slots, come back by dsjson."""
    run = run_sqlite
    slots = [{"size": "large"}, {"size": "small"}]
    page = {
        "session": "s", "eligible": ["a", "b"], "context": {"_slots": slots}, "request_id": "r", "slate": [
            {"arm": "b", "propensity": 0.5}, {"arm": "a", "propensity": 1.0}],
        "events": [{"kind": "reward", "position": 2, "value": 4.0}],
    }  # fmt: skip
    run("import-log", "-", "--layout", "jsonl", stdin=f"{json.dumps(page)}\n")
    run("reward", "define", "stars", "reward=1")
    clipped = run("export-log", "log.json", "--layout", "dsjson")
    assert "rewards beyond the range of their definition, without --reward (1)" in clipped.stderr
    (line,) = run("export-log", "-", "--layout", "dsjson", "--reward", "stars").lines
    assert ([slot["_label_cost"] for slot in line["_outcomes"]], line["c"]["_slots"]) == ([0.0, -4.0], slots)
    assert run("export-log", "log", "--layout", "parquet", "--reward", "stars").exit_code == 2


def test_keys_that_spreadsheets_run_as_formulas_stay_and_the_help_says_how_to_open_them(run_sqlite: Run) -> None:
    keys = ["=1+1", "+a", "-a", "@a", "\ta"]
    lines = [{"session": key, "slate": [{"arm": key}], "eligible": keys} for key in keys]
    assert run_sqlite("import-log", "-", "--layout", "jsonl", "--policy", "shop", stdin=lines).exit_code == 0
    text = run_sqlite("export-log", "-", "--layout", "csv").stdout
    assert [row["session"] for row in csv.DictReader(io.StringIO(text))] == keys
    other = empty_store(Path("formulas.db").absolute())
    assert other("import-log", "-", "--layout", "csv", stdin=text).exit_code == 0
    assert [line["slate"][0]["arm"] for line in other("export-log", "-").lines] == keys
    for words in (["export-log", "--help"], ["help", "formats"]):
        assert "all columns as text" in " ".join(run_sqlite(*words).stdout.split())
