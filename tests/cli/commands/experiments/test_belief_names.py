"""A name means one belief: the variant of an experiment answers, is logged, exported, imported and judged by one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run, filled, initialise, runner, store_after

LATER = ("--allow-future", "--now", "2030-01-01")
AFTERWARDS = ("--allow-future", "--now", "2031-01-01")
RATES = ("--env", "rates=0.5,0.4,0.3", "--group", 20, "--seed", 1)
NAMES = {"shelf", "shelf@ranking/old", "shelf@ranking/new", "uniform@ranking/holdout"}


def shelved(db: str) -> None:
    """Decisions of a policy, then of two variants of it that go on learning, each for itself, and of a holdout."""
    run = runner(db)
    run("policy", "create", "shelf", "--kind", "thompson", "--param", "floor=0.1")
    run("policy", "create", "other", "--kind", "softmax", "--param", "floor=0.1")
    run("simulate", "bernoulli", "--policy", "shelf", "--sessions", 60, *RATES)
    variants = ("--variant", "old=shelf", "--variant", "new=shelf", "--holdout-uniform", "20%")
    run("experiment", "create", "ranking", "--unit", "session", *variants)
    assert run("simulate", "bernoulli", "--experiment", "ranking", "--sessions", 120, *RATES).exit_code == 0


shelf = store_after(shelved)


def beliefs(lines: list[dict[str, Any]]) -> list[Any]:
    keys = ("policy", "version", "experiment", "variant", "propensity")
    return sorted((*(line[key] for key in keys), line["slate"][0]["arm"]) for line in map(_without_none, lines))


def _without_none(line: dict[str, Any]) -> dict[str, Any]:
    return {key: "" if value is None else value for key, value in line.items()}


def test_every_answer_names_the_belief_that_policy_list_shows(shelf: Run) -> None:
    exported = shelf(*LATER, "export-log", "-").lines
    counts = Counter(line["policy"] for line in exported)
    assert counts.keys() == NAMES < {row["policy"] for row in shelf("policy", "list", "--json").json}
    for name, number in counts.items():
        served = sum(arm["served"] for arm in shelf("policy", "show", name, "--json").json["arms"])
        assert served == number
    for line in exported[::30]:
        shown = shelf("decision", "show", line["decision_id"], "--json").json
        assert (shown["policy"], shown["version"]) == (line["policy"], line["version"])
    drawn = shelf(*LATER, "recommend", "--experiment", "ranking", "--session", "s", "--dry-run", "--json").json
    again = shelf(*LATER, "recommend", "--policy", drawn["policy"], "--session", "s", "--dry-run", "--json").json
    assert again["policy"] == drawn["policy"] in NAMES
    by_experiment = shelf(*LATER, "experiment", "show", "ranking", "--json").json["variants"]
    assert {(row["policy"], row["decisions"]) for row in by_experiment} < set(counts.items())
    by_policy = shelf(*LATER, "evaluate", "uniform", "--estimator", "snips", "--by", "policy", "--json").json
    assert {row["group"]: row["n"] for row in by_policy} == counts
    assert {row["group"] for row in shelf(*LATER, "outcomes", "--by", "policy", "--json").json["outcomes"]} == NAMES


def test_export_and_import_keep_beliefs_apart(shelf: Run, tmp_path: Path) -> None:
    log, copy = tmp_path / "log.jsonl", str(tmp_path / "copy.db")
    assert shelf(*LATER, "policy", "freeze", "shelf").exit_code == 0
    assert shelf(*LATER, "recommend", "--policy", "shelf@2", "--session", "last").exit_code == 0
    assert shelf(*AFTERWARDS, "export-log", log).exit_code == 0
    initialise(copy)
    imported = runner(copy)
    assert imported(*AFTERWARDS, "import-log", log, "--layout", "jsonl").exit_code == 0
    assert {row["policy"] for row in imported("policy", "list", "--json").json} == NAMES
    exported = [*map(json.loads, log.read_text().splitlines())]
    assert {(line["policy"], line["version"]) for line in exported} == {("shelf", 2), *((name, 1) for name in NAMES)}
    assert beliefs(imported("export-log", "-").lines) == beliefs(exported)
    judged = imported(*AFTERWARDS, "evaluate", "uniform", "--estimator", "snips", "--by", "policy", "--json").json
    assert {row["group"]: row["n"] for row in judged} == Counter(line["policy"] for line in exported)
    create = (
        ("policy", "create", "own", "--kind", "thompson"),
        ("experiment", "create", "ranking", "--variant", "new=own"),
    )
    assert imported(*create[0]).exit_code == 0
    assert "an imported log has variants" in imported(*create[1], "--variant", "old=own").failed(6)


@pytest.mark.parametrize("reference", ["shelf", "shelf@1", "shelf@ranking/new", "shelf@ranking/old@1"])
def test_commands_take_what_policy_list_prints(shelf: Run, reference: str) -> None:
    for words in (
        ("report", "-", "--policy", reference, "--no-estimates"), ("exploration", "--policy", reference),
        ("exposure", "--policy", reference), ("evaluate", reference), ("policy", "show", reference),
        ("evaluate", "uniform", "--log", f"policy={reference}"),
        ("recommend", "--policy", reference.removesuffix("@1"), "--session", "s", "--dry-run"),
    ):  # fmt: skip
        done = shelf(*LATER, *words)
        assert done.exit_code == 0, (words, done.stderr)


def test_a_person_reads_the_name_once(shelf: Run) -> None:
    line = next(line for line in shelf(*LATER, "export-log", "-").lines if line["variant"] == "new")
    shown = shelf("decision", "show", line["decision_id"]).stdout + shelf("session", "show", line["session"]).stdout
    assert "policy shelf@ranking/new, version 1, kind thompson, belief" in shown
    assert ("shelf@ranking/new@1" in shown, " ranking/new" in shown) == (True, False)
    assert shelf(*LATER, "exploration", "--policy", "shelf@1", "--json").json["rows"] == 60
    assert shelf(*LATER, "exploration", "--json").json["policy"] == "shelf"  # a holdout is no other policy


def test_a_filter_by_a_version_is_of_that_belief_alone(shelf: Run) -> None:
    def number(log: str) -> int:
        return int(shelf(*LATER, "evaluate", "uniform", "--estimator", "ips", "--log", log, "--json").json[0]["n"])

    assert number("policy=shelf@1") == 60
    assert number("policy=shelf") == number("policy=shelf,version=1") > number("policy=shelf@ranking/new@1") > 0
    assert "version 2 beside shelf@1" in shelf("evaluate", "uniform", "--log", "policy=shelf@1,version=2").failed(2)


@pytest.mark.parametrize("command", [("evaluate", "shelf"), ("exploration", "--policy", "shelf")])
def test_judging_a_policy_whose_variants_serve_names_them(shelf: Run, command: tuple[str, ...]) -> None:
    sentence = "its variants shelf@ranking/new and shelf@ranking/old serve: judge these"
    assert f"shelf@1 served nobody since 2026-01-01; {sentence}" in shelf(*LATER, *command).stderr
    shelf("experiment", "stop", "ranking")
    assert sentence not in shelf(*LATER, *command).stderr


def test_what_a_promoted_variant_leaves_has_the_name_of_its_belief(sqlite_db: str) -> None:
    run = filled(sqlite_db, shelved)
    run("route", "create", "home", "--to", "other")
    run(*LATER, "route", "set", "home", "--to", "shelf", "--share", "50%")
    run(*LATER, "simulate", "bernoulli", "--policy", "home", "--sessions", 40, *RATES)
    done = run(*AFTERWARDS, "experiment", "stop", "home-ramp-1", "--promote", "candidate", "--anyway", "--json").done()
    name = "shelf"
    (route,) = run(*AFTERWARDS, "status", "--json").json["routes"]
    answer = run(*AFTERWARDS, "recommend", "--policy", "home", "--session", "s", "--dry-run", "--json").json
    assert {route["policy"], answer["policy"], run("route", "show", "home", "--json").json["policy"]} == {name}
    assert run("route", "show", "home", "--json").json["history"][0]["policy"] == name
    assert run("policy", "show", done.json["live"]).exit_code == 0
