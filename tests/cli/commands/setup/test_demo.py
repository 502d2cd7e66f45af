from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

from rlrec.app.setup import demo
from tests.cli.output.test_terminal import ESCAPE, terminal
from tests.conftest import Run

LONG_TABLE = """
from rlrec.app.setup import demo

demo._play_steps = lambda folder: iter([demo.DemoStep("# Why", "rlrec policy kinds", quiet=False)])
"""


def test_the_sample_data_is_found_with_its_licence() -> None:
    assert (demo.samples() / "random_all.csv.gz").is_file()
    assert "Apache" in (demo.samples() / "README.md").read_text(encoding="utf-8")


def test_the_audience_answers_slates_with_feedback_lines(run_sqlite: Run, tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("arm,mean\na,1.0\nb,\n", encoding="utf-8")
    slate = [{"position": 1, "arm": "b"}, {"position": 2, "arm": "a"}]
    answers = [{"decision_id": 7, "slate": slate}, {"line": 2, "error": "unknown policy"}]
    result = run_sqlite("demo", "--audience", rates, stdin=answers)
    assert result.lines == [{"decision_id": 7, "position": 2, "events": {"click": 1}}]


def test_rates_without_their_columns_are_named(run_sqlite: Run, tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("item,rate\na,1.0\n", encoding="utf-8")
    result = run_sqlite("demo", "--audience", rates, stdin="")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert str(rates) in result.stderr


def test_every_step_says_why_and_repeats_in_silence() -> None:
    steps = [*demo.log_steps(), *demo.live_steps(), *demo.last_steps(0.004)]
    assert all(step.comment and step.command for step in steps)
    assert sum(step.quiet for step in steps) == 3 * (demo.HOURS - 1)


def test_the_list_of_arms_is_by_the_column_that_its_comment_names(tmp_path: Path) -> None:
    (tmp_path / "rlrec").write_text("#!/bin/sh\ncat policy.csv\n")
    (tmp_path / "rlrec").chmod(0o755)
    columns = "arm,status,served,pending,pulls,reward_sum,mean,lower,upper,ipw_mean,p_best,probability"
    rows = [f"a{n},active,{10 * n},0,9,1,0.1,0,1,{9 - n},0.2,0.{n}" for n in (2, 3, 1)]
    (tmp_path / "policy.csv").write_text("\n".join([columns, *rows]) + "\n")
    command = next(step.command for step in demo.last_steps() if "show live" in step.command)
    result = subprocess.run(["sh", "-c", f"PATH=.:$PATH; {command}"], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.splitlines() == [
        "arm,served,reward_sum,probability",
        "a3,30,1,0.3",
        "a2,20,1,0.2",
        "a1,10,1,0.1",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 100])
def test_the_tables_of_a_demo_fit_its_terminal(tmp_path: Path, columns: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(LONG_TABLE)
    text = ESCAPE.sub("", terminal("unused.db", "demo", columns=columns, PYTHONPATH=str(tmp_path)))
    lines = text.partition("$ rlrec policy kinds\n")[2].splitlines()
    assert (lines[0].split()[0], len(lines) > 20) == ("kind", True)
    assert [line for line in lines if len(line) > columns] == []


def test_the_wheel_takes_the_samples_along() -> None:
    project = tomllib.loads((demo.samples().parent / "pyproject.toml").read_text(encoding="utf-8"))
    build = project["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["force-include"]["sample_data"] == "rlrec/sample_data"


def test_the_folder_of_the_samples_is_printed(run_sqlite: Run) -> None:
    folder = Path(run_sqlite("demo", "--data").stdout.rstrip("\n"))
    assert (folder / "random_all.csv.gz").is_file()
    assert run_sqlite("demo", "--data", "--json").json == {"folder": str(folder)}
