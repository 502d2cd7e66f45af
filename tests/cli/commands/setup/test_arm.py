"""rlrec arm: the catalogue from the shell."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run, begin


def arms(run: Run) -> dict[str, Any]:
    return {row["arm"]: row["features"] for row in run("arm", "list", "--json").json}


def test_a_new_arm_that_begins_far_above_the_others_is_told_of(run: Run) -> None:
    """Beta(1, 1) has a mean of 0.5, the arms of the store one of some 0.04: once for all new arms. The policy that is
    named as the way out begins with their mean."""
    run("policy", "create", "home", "--kind", "thompson")
    run("policy", "create", "even", "--kind", "epsilon-greedy")
    rates = ("--env", "rates=0.04,0.05,0.03", "--sessions", 600, "--group", 300, "--seed", 1)
    for name in ("home", "even"):
        run("simulate", "bernoulli", "--policy", name, *rates)
    news = run("arm", "import", "-", stdin='{"arm": "new"}\n{"arm": "newer"}\n').stderr
    assert news.startswith("home: a new arm begins with a mean reward of 0.5, ")
    assert news.count("\n") == 1
    command = news.split("`")[1].replace("NAME", "next").split()[1:]
    assert run("--allow-future", "--now", "2027-01-01", *command, "--json").json["created"]
    new, old = ({a["arm"]: a for a in run("policy", "show", name, "--json").json["arms"]} for name in ("next", "home"))
    assert new["new"]["probability"] < old["new"]["probability"] / 1.5
    assert run("arm", "add", "new", "--features", '{"x": 1}').stderr == ""


def test_several_arms_are_added_at_once_or_none_is(run: Run) -> None:
    assert run("arm", "add", "tea", "milk", "tea", "--group", "home", "--json").json["added"] == 2
    listed = {arm["arm"]: arm["groups"] for arm in run("arm", "list", "--json").json}
    assert (listed["tea"], listed["milk"]) == (["home"], ["home"])
    assert run("arm", "add", "ham", "x" * 201).exit_code == 2
    assert "ham" not in {arm["arm"] for arm in run("arm", "list", "--json").json}


def test_adding_again_updates_and_the_same_again_changes_nothing(run: Run) -> None:
    add = ["arm", "add", "a1", "--json", "--features"]
    assert run(*add, '{"price": 3}').json == {"added": 1, "updated": 0, "unchanged": 0}
    assert run(*add, '{"price": 3.0}').json == {"added": 0, "updated": 0, "unchanged": 1}
    assert run(*add, '{"price": 4}').json == {"added": 0, "updated": 1, "unchanged": 0}
    assert arms(run) == {"a1": {"price": 4}}


def test_features_may_come_from_a_file(run_sqlite: Run, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"topic": "tea"}')
    run_sqlite("arm", "add", "a1", "--features", f"@{tmp_path / 'f.json'}")
    assert arms(run_sqlite) == {"a1": {"topic": "tea"}}


def test_ndjson_is_imported_and_updates(run: Run) -> None:
    lines = '{"arm": "a1", "features": {"topic": "tea"}}\n\n{"arm": "a2"}\r\n'
    assert run("arm", "import", "-", "--json", stdin="\ufeff" + lines).json == {
        "added": 2, "updated": 0, "unchanged": 0, "rejected": 0,
    }  # fmt: skip
    again = run("arm", "import", "-", "--json", stdin=lines.replace("tea", "rum")).json
    assert (again["updated"], again["unchanged"]) == (1, 1)
    assert arms(run) == {"a1": {"topic": "rum"}, "a2": {}}


def test_csv_has_numbers_where_json_would(run_sqlite: Run, tmp_path: Path) -> None:
    (tmp_path / "arms.csv").write_bytes(
        b'\xef\xbb\xbfarm,price,zip,name\r\na1,3.5,007,"x, y"\na2,-1e2,1_0,\n1e5,nan,inf,3\n'
    )
    assert run_sqlite("arm", "import", tmp_path / "arms.csv").exit_code == 0
    assert arms(run_sqlite) == {
        "a1": {"price": 3.5, "zip": "007", "name": "x, y"},
        "a2": {"price": -100, "zip": "1_0"},
        "1e5": {"price": "nan", "zip": "inf", "name": 3},
    }


def test_csv_has_groups_and_times_as_lines_of_json_have(run_sqlite: Run) -> None:
    table = "arm,show,from,until,groups\r\nep4,crime,2026-11-01,2026-11-10T12:00Z,home+deals\r\nep5,,,,\r\n"
    assert run_sqlite("arm", "import", "-", stdin=table).exit_code == 0
    assert run_sqlite("arm", "import", "-", stdin="arm,until,groups\nep4,,\n").exit_code == 0  # stay as they were
    first, second = run_sqlite("arm", "list", "--json").json
    assert (first["features"], first["groups"]) == ({}, ["deals", "home"])
    assert (first["from"], first["until"]) == ("2026-11-01T00:00:00.000000Z", "2026-11-10T12:00:00.000000Z")
    assert (second["features"], second["groups"], second["from"], second["until"]) == ({}, [], None, None)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"arm;show\na1;x\n", "the first column of a CSV of arms is `arm`. separate its columns by commas"),
        (b"arm,until\na1,soon\n", "line 2: 'soon' is"),
        (b"arm,n\na1,1\na2\n", "line 3: 1 cell, but 2 columns"),
        (b"arm,n\na1,1\n\xff,2\n", "line 3: not UTF-8: byte 0xff at column 1. write it as UTF-8"),
        (b'[{"arm": "a1"}]\n', "jq -c '.[]' makes lines"),
        (b'arm,n\na1,"1\n', "line 2: not CSV"),
        (b"arm,n\n,1\n", "line 2: a key has 1 to 200 characters"),
        (b"arm,n\na1,\x00\n", "line 2: the line holds a NUL character"),
        (b"key,n\na1,1\n", "line 1: the first column of a CSV of arms is `arm`"),
        (b"arm,n,n\na1,1,2\n", "line 1: two columns have the name 'n'"),
        (b'{"arm": "a1"}\n{"arm": 3}\n', "line 2, field arm: expected text, got 3"),
        (
            b'{"arm": "a1"}\n{"arm": "a2", "feature": {}}\n',
            "line 2, field feature: unknown field. did you mean features?",
        ),
        (b'{"arm": "a1", "features": {"n": 1e999}}\n', "line 1, field features.n"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_stored(run_sqlite: Run, tmp_path: Path, text: bytes, what: str) -> None:
    (tmp_path / "arms").write_bytes(text)
    result = run_sqlite("arm", "import", tmp_path / "arms").failed(2)
    assert what in result
    assert result.count("\n") == 1
    assert arms(run_sqlite) == {}


@pytest.mark.parametrize("text", ["arm,n\na1,1\na2\na3,3\n", '{"arm": "a1"}\n{"arm": ""}\n{"arm": "a3"}\n'])
def test_quarantine_keeps_the_good_lines(run_sqlite: Run, tmp_path: Path, text: str) -> None:
    rejects = tmp_path / "rejects"
    result = run_sqlite("arm", "import", "-", "--on-error", "quarantine", "--rejects", rejects, "--json", stdin=text)
    assert result.exit_code == 5
    assert result.json == {"added": 2, "updated": 0, "unchanged": 0, "rejected": 1}
    assert json.loads(rejects.read_text())["line"] in (2, 3)
    assert list(arms(run_sqlite)) == ["a1", "a3"]


def test_a_retired_arm_is_eligible_no_more_until_restored(run: Run) -> None:
    begin(run, ("a1", "a2"), "p", "uniform")
    assert run("arm", "retire", "a1", "--json").json == {"arms": ["a1"], "changed": 1}
    assert run("arm", "retire", "a1", "--json").json["changed"] == 0
    assert run("recommend", "--policy", "p", "--session", "s", "--json").json["slate"][0]["arm"] == "a2"
    assert run("recommend", "--policy", "p", "--session", "s", "-k", "2").exit_code == 2
    assert run("recommend", "--policy", "p", "--session", "s", "--arms", "a1").exit_code == 2
    assert [(row["arm"], row["status"]) for row in run("arm", "list", "--json").json] == [
        ("a1", "retired"), ("a2", "active"),
    ]  # fmt: skip
    assert run("arm", "restore", "a1", "--json").json["changed"] == 1
    assert len(run("recommend", "--policy", "p", "--session", "s", "-k", "2", "--json").json["slate"]) == 2


def test_an_arm_that_has_ended_is_not_restored_and_a_line_says_how(run_sqlite: Run) -> None:
    run_sqlite("--now", "2026-01-01", "arm", "add", "punch", "--until", "2026-01-20")
    run_sqlite("--now", "2026-01-10", "arm", "retire", "punch")
    assert run_sqlite("--now", "2026-01-11", "arm", "restore", "punch").stderr == ""
    restored = run_sqlite("--now", "2026-01-25", "arm", "restore", "punch")
    assert restored.stderr == "punch has ended: `rlrec arm add punch --until TIME` gives it a later end\n"
    assert run_sqlite("--now", "2026-01-25", "arm", "retire", "punch").stderr == ""


def test_an_unknown_arm_is_named_with_near_ones_and_none_is_retired(run: Run) -> None:
    run("arm", "add", "coffee")
    result = run("arm", "retire", "coffee", "cofee", "--json")
    assert (result.exit_code, result.error["hint"]) == (2, "did you mean coffee?")
    assert run("arm", "list", "--json").json[0]["status"] == "active"


def test_every_format_lists_the_same_arms(run_sqlite: Run) -> None:
    run_sqlite("arm", "add", "007", "--features", '{"n": 1}')
    run_sqlite("arm", "add", "a,b")
    rows = run_sqlite("arm", "list", "--json").json
    assert list(rows[0]) == ["arm", "status", "features", "added_at", "retired_at", "groups", "from", "until"]
    assert run_sqlite("arm", "list", "--format", "ndjson").lines == rows
    read = list(csv.DictReader(io.StringIO(run_sqlite("arm", "list", "--format", "csv").stdout)))
    assert [row["arm"] for row in read] == ["007", "a,b"]
    assert json.loads(read[0]["features"]) == {"n": 1}
    assert "007" in run_sqlite("arm", "list").stdout


def test_an_empty_list_has_its_header_in_csv(run_sqlite: Run) -> None:
    header = "arm,status,features,added_at,retired_at,groups,from,until"
    assert run_sqlite("arm", "list", "--format", "csv").stdout.split() == [header]
    assert run_sqlite("policy", "list", "--format", "csv").stdout.split() == [
        "policy,version,kind,params,reward,status,versions"
    ]
    assert run_sqlite("arm", "list", "--json").json == []


@pytest.mark.parametrize("key", ["-x", "a b", "ü", "a" * 200])
def test_any_text_is_a_key(run_sqlite: Run, key: str) -> None:
    assert run_sqlite("arm", "add", "--", key).exit_code == 0
    assert list(arms(run_sqlite)) == [key]
