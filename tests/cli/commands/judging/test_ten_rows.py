"""Ten rows that can be reckoned by hand, from files on the command line to every estimate per impression."""

import json
from pathlib import Path

import pytest

from tests.conftest import Run

ARMS = (0, 1, 2, 0, 1, 2, 0, 0, 1, 2)
REWARDS = (1, 0, 1, 0, 1, 0, 0, 1, 1, 0)
PROPENSITIES = (0.5, 0.3, 0.2, 0.5, 0.3, 0.2, 0.6, 0.6, 0.25, 0.15)
TARGET = {1: (0.2, 0.3, 0.5), 2: (0.1, 0.6, 0.3)}
MODEL = {1: (0.6, 0.4, 0.5), 2: (0.5, 0.7, 0.2)}
VALUES = {
    "ips": 0.6466666667, "snips": 0.5606936416, "dm": 0.51, "dr": 0.649, "sndr": 0.6305202312,
    "switch-dr:1.5": 0.492, "dros:5": 0.5650156559,
}  # fmt: skip


def line(row: int) -> str:
    slate = [{"position": 1, "arm": f"a{ARMS[row]}", "propensity": PROPENSITIES[row]}]
    decision = {"session": f"s{row}", "context": {"g": 1 + row // 5}, "at": f"2026-01-01T00:00:0{row}Z"}
    return json.dumps({**decision, "slate": slate, "eligible": ["a0", "a1", "a2"], "reward": REWARDS[row]})


def table(column: str, by_g: dict[int, tuple[float, ...]]) -> str:
    rows = [f"{g},a{arm},{number}" for g, numbers in by_g.items() for arm, number in enumerate(numbers)]
    return "\n".join([f"value,arm,{column}", *rows])


def test_ten_rows_give_the_figures_reckoned_by_hand(run: Run, tmp_path: Path) -> None:
    log, target, model = tmp_path / "log.jsonl", tmp_path / "target.csv", tmp_path / "model.csv"
    log.write_text("\n".join(map(line, range(10))))
    target.write_text(table("probability", TARGET))
    model.write_text(table("reward", MODEL))
    assert run("import-log", log, "--layout", "jsonl", "--policy", "log").exit_code == 0
    fixed = ["--kind", "fixed", "--param", f"probabilities={target}", "--param", "by=g"]
    assert run("policy", "create", "target", *fixed).exit_code == 0
    options = [
        "--log",
        "policy=log",
        "--reward-model",
        model,
        "--reward-model-by",
        "g",
        "--estimator",
        ",".join(VALUES),
    ]
    answer = run("--now", "2026-03-01", "evaluate", "target", *options, "--json")
    estimates = {estimate["estimator"]: estimate["value"] for estimate in answer.json}
    assert estimates == {name: pytest.approx(value, abs=1e-9) for name, value in VALUES.items()}
