from __future__ import annotations

import json
import tomllib
from pathlib import Path

from rlrec.app import demo
from tests.conftest import Run


def test_the_sample_data_is_found_with_its_licence() -> None:
    assert (demo.samples() / "random_all.csv.gz").is_file()
    assert "Apache" in (demo.samples() / "README.md").read_text(encoding="utf-8")


def test_the_audience_answers_slates_with_feedback_lines(run_sqlite: Run, tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("arm,mean\na,1.0\nb,\n", encoding="utf-8")
    slate = [{"position": 1, "arm": "b"}, {"position": 2, "arm": "a"}]
    answers = [{"decision_id": 7, "slate": slate}, {"line": 2, "error": "unknown policy"}]
    said = run_sqlite("demo", "--audience", rates, stdin="\n".join(map(json.dumps, answers)))
    assert said.lines == [{"decision_id": 7, "position": 2, "events": {"click": 1}}]


def test_rates_without_their_columns_are_named(run_sqlite: Run, tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("item,rate\na,1.0\n", encoding="utf-8")
    said = run_sqlite("demo", "--audience", rates, stdin="")
    assert (said.exit_code, said.stderr.count("\n")) == (2, 1)
    assert str(rates) in said.stderr


def test_every_step_says_why_and_repeats_in_silence() -> None:
    steps = [*demo.before(), *demo.live(), *demo.after(0.004)]
    assert all(step.why and step.command for step in steps)
    assert sum(step.quiet for step in steps) == 3 * (demo.HOURS - 1)


def test_the_wheel_takes_the_samples_along() -> None:
    project = tomllib.loads((demo.samples().parent / "pyproject.toml").read_text(encoding="utf-8"))
    build = project["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["force-include"]["sample_data"] == "rlrec/sample_data"


def test_the_folder_of_the_samples_is_printed(run_sqlite: Run) -> None:
    folder = Path(run_sqlite("demo", "--data").stdout.rstrip("\n"))
    assert (folder / "random_all.csv.gz").is_file()
    assert run_sqlite("demo", "--data", "--json").json == {"folder": str(folder)}
