"""What may not enter is refused at every door, so that what entered can always be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Run


@pytest.fixture
def shop(run_sqlite: Run) -> Run:
    run_sqlite("arm", "add", "a")
    run_sqlite("reward", "define", "open", "x=1")
    run_sqlite("policy", "create", "home", "--kind", "epsilon-greedy", "--reward", "open")
    run_sqlite("recommend", "--policy", "home", "--session", "s")
    return run_sqlite


@pytest.mark.parametrize("value", ["1e101", "1.5e308"])
def test_a_line_in_quarantine_leaves_nothing_and_the_good_one_stays(shop: Run, tmp_path: Path, value: str) -> None:
    shop("feedback", 1, "--censor")
    lines = f'{{"decision_id": 1, "events": {{"x": {value}}}}}\n{{"decision_id": 1, "events": {{"x": 2}}}}\n'
    options = ("--on-error", "quarantine", "--rejects", tmp_path / "bad.ndjson")
    assert shop("feedback", "--input", "-", *options, stdin=lines).exit_code == 5
    events = shop("export-log", "-").lines[0]["events"]
    assert [(event["kind"], event["value"]) for event in events] == [("x", 2.0)]


def test_an_imported_value_stays_readable(shop: Run, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    line = {"session": "i", "slate": [{"arm": "a", "propensity": 1}], "eligible": ["a"], "reward": 1e200}
    log.write_text(json.dumps(line), encoding="utf-8")
    assert "too large" in shop("import-log", log, "--layout", "jsonl").failed(2)


@pytest.mark.parametrize("words", [["--default", "1e200"], ["--clip", "1e200,1e201"]])
def test_a_reward_that_no_belief_could_sum_is_not_defined(shop: Run, words: list[str]) -> None:
    assert shop("reward", "define", "vast", "x=1", *words).exit_code == 2


@pytest.mark.parametrize("name", ["home@²", "\udcff"])
def test_strange_names_are_unknown_not_unexpected(shop: Run, name: str) -> None:
    result = shop("policy", "show", name)
    assert (result.exit_code, "unexpected" in result.stderr) == (2, False)


def test_a_page_has_a_longest_length(shop: Run) -> None:
    assert "at most 500" in shop("recommend", "--policy", "home", "--session", "s", "-k", 501).failed(2)


def test_by_arm_only_self_normalised_estimates_are_given(shop: Run) -> None:
    """In the rows that show an arm the mean weight is not 1: ips would be off by it."""
    shop("feedback", 1, "x")
    later = ("--now", "2099-01-01", "evaluate", "uniform", "--by", "arm", "--json")
    answer = shop(*later).json
    assert [(row["group"], row["estimator"]) for row in answer] == [("a", "snips")]
    assert shop(*later, "--estimator", "ips").exit_code == 2
