"""The commands import-log and export-log: files, refused lines, exit codes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.conftest import Run

LINE = '{"session": "%s", "slate": [{"arm": "a", "propensity": 0.5}], "eligible": ["a", "b"]}\n'
HEADER = "timestamp,item_id,position,click,propensity_score,user_feature_0,user-item_affinity_0\n"
ROW = "2019-11-24 00:00:00+00:00,{item},{position},{click},{share},x,0.0\n"


def row(item: object = 0, position: object = 1, click: object = 0, share: object = 0.5) -> str:
    return ROW.format(item=item, position=position, click=click, share=share)


def test_bad_lines_are_set_apart(run: Run, tmp_path: Path) -> None:
    rejects = tmp_path / "bad.jsonl"
    text = LINE % "s1" + "{}\n" + LINE % "s2" + "\n" + LINE % ""
    said = run(
        "import-log", "-", "--layout", "jsonl", "--on-error", "quarantine", "--rejects", rejects, "--json", stdin=text
    )
    assert said.exit_code == 5
    assert said.json == {"accepted": 2, "duplicates": 0, "rejected": 2}
    told = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [(one["line"], one["field"]) for one in told] == [(2, "session"), (5, "session")]


def test_several_files_one_of_them_packed(run_sqlite: Run, tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl.gz"
    one.write_text(LINE % "s1" + LINE % "s2")
    two.write_bytes(gzip.compress((LINE % "s2" + LINE % "s3").encode()))
    said = run_sqlite("import-log", one, two, "--layout", "jsonl", "--json")
    assert said.json == {"accepted": 3, "duplicates": 1, "rejected": 0}


def test_an_error_names_its_own_file(run_sqlite: Run, tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text(LINE % "s1")
    two.write_text(LINE % "s2" + LINE.replace("0.5", "5e-324e") % "s3")
    said = run_sqlite("import-log", one, two, "--layout", "jsonl")
    assert said.exit_code == 2
    assert f"{two} line 2" in said.stderr
    assert run_sqlite("export-log", "-").stdout == ""


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (row(position=0), "position"),
        (row(position="x"), "position"),
        (row(click=2), "click"),
        (row(share=0), "propensity_score"),
        (row(share="1.01"), "propensity_score"),
        (row(share="nan"), "propensity_score"),
        (row(item=""), "item_id"),
        (row().replace("2019-11-24", "2019-13-24"), "timestamp"),
        (row().replace("2019", "2999"), "timestamp"),
        (row().replace(",0.0\n", ",inf\n"), "user-item_affinity_0"),
        (row().replace(",0.0\n", "\n"), "6 cells"),
        (row().replace(",0.0\n", ",0.0,0.0\n"), "8 cells"),
    ],
)
def test_a_bad_row_is_named(run_sqlite: Run, tmp_path: Path, bad: str, field: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(HEADER + row() + bad)
    said = run_sqlite("import-log", path, "--layout", "obd", "--policy", "random")
    assert said.exit_code == 2
    assert f"{path} line 3" in said.stderr
    assert field in said.stderr


def test_a_missing_column_is_named(run_sqlite: Run, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("timestamp,item_id,click\n")
    said = run_sqlite("import-log", path, "--layout", "obd", "--policy", "random")
    assert said.exit_code == 2
    assert "'position'" in said.stderr


def test_obd_needs_a_policy_and_that_must_be_a_logged_one(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(HEADER + row())
    run("policy", "create", "home", "--kind", "uniform")
    without = run("import-log", path, "--layout", "obd")
    wrong = run("import-log", path, "--layout", "obd", "--policy", "home")
    assert (without.exit_code, wrong.exit_code) == (2, 2)
    assert "--policy" in without.stderr
    assert "kind uniform" in wrong.stderr


def test_an_imported_policy_is_the_one_that_create_makes(run_sqlite: Run) -> None:
    run_sqlite("import-log", "-", "--layout", "jsonl", "--policy", "log", stdin=LINE % "s1")
    again = run_sqlite("policy", "create", "log", "--kind", "logged", "--json")
    assert (again.exit_code, again.json["created"]) == (0, False)
    assert run_sqlite("recommend", "--policy", "log", "--session", "s").exit_code == 2


def test_a_file_is_exported_whole_or_not_at_all(run_sqlite: Run, tmp_path: Path) -> None:
    run_sqlite("import-log", "-", "--layout", "jsonl", stdin=LINE % "s1" + LINE % "s2")
    path = tmp_path / "log.jsonl.gz"
    assert run_sqlite("export-log", path, "--json").json == {"exported": 2}
    assert gzip.decompress(path.read_bytes()).decode() == run_sqlite("export-log", "-").stdout
    assert run_sqlite("export-log", path, "--log", "policy=importd").exit_code == 2
    assert len(gzip.decompress(path.read_bytes()).splitlines()) == 2
    assert [one.name for one in tmp_path.iterdir() if "part" in one.name] == []


def test_an_export_is_filtered(run_sqlite: Run) -> None:
    for policy in ("one", "two"):
        run_sqlite("import-log", "-", "--layout", "jsonl", "--policy", policy, stdin=LINE % policy)
    found = run_sqlite("export-log", "-", "--log", "policy=two").lines
    assert [one["session"] for one in found] == ["two"]


def test_a_store_that_is_missing_is_named(run_sqlite: Run, tmp_path: Path) -> None:
    said = run_sqlite("--db", tmp_path / "none.db", "export-log", tmp_path / "log.jsonl")
    assert said.exit_code == 3
    assert not (tmp_path / "log.jsonl").exists()
    assert not (tmp_path / "none.db").exists()
