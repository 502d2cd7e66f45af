"""Contexts with objects inside, as the namespaces of Vowpal Wabbit: policies and estimates read fields in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conftest import Run, jsonl

RATES = {"Tom": (9, 1), "Ann": (1, 9)}  # of ten times that each of two arms was shown to a user


def log(path: Path) -> Path:
    """Two arms, each shown ten times to each of two users, in namespaces as dsjson has them."""
    lines = [
        {"session": f"{name}{arm}{number}", "eligible": ["a", "b"], "slate": [{"arm": "ab"[arm], "propensity": 0.5}],
         "context": {"User": {"name": name}, "From": [{"time": "noon"}]}, "reward": int(number < rates[arm])}
        for name, rates in RATES.items()
        for arm in (0, 1)
        for number in range(10)
    ]  # fmt: skip
    path.write_text(jsonl(lines))
    return path


def test_a_policy_learns_and_serves_by_fields_inside_objects(run: Run, tmp_path: Path) -> None:
    assert run("import-log", log(tmp_path / "log.ndjson"), "--layout", "jsonl", "--policy", "old").exit_code == 0
    create = ("policy", "create", "seeing", "--kind", "lin-thompson", "--param", "floor=0.01")
    assert "reads of contexts From.time, User.name\n" in run(*create, "--from-log", "policy=old").stderr
    assert "reads From.time, User.name" in run("policy", "show", "seeing").stdout
    requests: list[dict[str, Any]] = [
        {"policy": "seeing", "session": f"{name}{number}", "context": {"User": {"name": name}}}
        for number in range(20)
        for name in RATES
    ]  # fmt: skip
    answers = run("recommend", "--input", "-", "--seed", "1", stdin=requests).lines
    served = {(line["session"][:3], line["slate"][0]["arm"]): line["propensity"] for line in answers}
    for name, best in (("Tom", "a"), ("Ann", "b")):
        answer = run("policy", "show", "seeing", "--context", json.dumps({"User": {"name": name}}), "--json").json
        assert max(answer["arms"], key=lambda arm: arm["probability"])["arm"] == best
        assert served[name, best] > 0.8
    assert run("doctor").exit_code == 0


def test_estimates_by_a_field_inside_an_object(run: Run, tmp_path: Path) -> None:
    run("import-log", log(tmp_path / "log.ndjson"), "--layout", "jsonl", "--policy", "old")
    result = run("evaluate", "uniform", "--estimator", "snips", "--by", "User.name", "--json")
    assert {row["group"]: row["value"] for row in result.json} == {"Tom": 0.5, "Ann": 0.5}
    assert "User.age" in run("evaluate", "uniform", "--estimator", "snips", "--by", "User.age").failed(2)


def test_a_field_inside_an_object_is_suggested_by_its_name(run_sqlite: Run, tmp_path: Path) -> None:
    run_sqlite("import-log", log(tmp_path / "log.ndjson"), "--layout", "jsonl", "--policy", "old")
    for field, complete in (("name", "User.name"), ("time", "From.time")):
        assert f"did you mean {complete}?" in run_sqlite("evaluate", "uniform", "--by", field).failed(2)
