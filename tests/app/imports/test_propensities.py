"""Logs without propensities, and imports that only count."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.imports import propensities
from rlrec.app.imports.columns import LogColumns, LoggedEvents, LoggedSlots
from rlrec.store.database.loading import Same
from tests.app.logs import summary
from tests.app.shop import fixed
from tests.conftest import CommandResult, Run, jsonl

pytestmark = pytest.mark.usefixtures("folder")


def line(n: int, arms: Iterable[str] = ("a",), eligible: str = "abc", **more: Any) -> dict[str, Any]:
    return {"session": f"s{n}", "slate": [{"arm": arm} for arm in arms], "eligible": list(eligible), **more}


def imported(run: Run, lines: Iterable[dict[str, Any]], *options: str) -> CommandResult:
    Path("log.jsonl").write_text(jsonl(lines))
    return run("import-log", "log.jsonl", "--layout", "jsonl", "--policy", "old", "--json", *options)


def slots(run: Run) -> list[list[tuple[float | None, float | None]]]:
    lines = run("export-log", "-").lines
    return [[(slot["propensity"], slot["marginal"]) for slot in each["slate"]] for each in lines]


def test_a_uniform_logger_draws_from_those_left(run: Run) -> None:
    partial = line(2) | {"slate": [{"arm": "b", "position": 2}], "k": 3}
    stored = line(3) | {"slate": [{"arm": "a", "propensity": 0.9}]}
    result = imported(run, [line(1, "ca"), partial, stored], "--propensity", "uniform")
    assert result.json["accepted"] == 3
    assert result.stderr == "2 decisions with estimated propensities (uniform): no gate passes by them\n"
    assert slots(run) == [[(1 / 3, None), (1 / 2, None)], [(None, 1 / 3)], [(0.9, None)]]


def test_fitted_propensities_are_those_of_a_logger_that_weighs_arms(run: Run) -> None:
    """Among the same arms they are shares; among others, what makes the log most likely."""
    shown = [line(n, "a" if n % 4 else "b", "ab") for n in range(400)]
    shown += [line(400 + n, "b" if n % 3 else "c", "bc") for n in range(300)]
    imported(run, shown, "--propensity", "fitted")
    by_pair = {(each["slate"][0]["arm"], len(each["eligible"]), "a" in each["eligible"]): each["slate"][0]["propensity"]
               for each in run("export-log", "-").lines}  # fmt: skip
    expected = {("a", 2, True): 0.75, ("b", 2, True): 0.25, ("b", 2, False): 2 / 3, ("c", 2, False): 1 / 3}
    assert by_pair == pytest.approx(expected, abs=1e-6)


def test_the_fit_finds_the_weights_of_a_logger() -> None:
    random, truth = np.random.default_rng(2), {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}
    sets = [tuple(sorted(each)) for each in {frozenset(each) for each in permutations("abcd", 3)}]
    which = random.integers(len(sets), size=20_000)
    chances = [np.array([truth[arm] for arm in arms]) for arms in sets]
    arms = [sets[n][random.choice(3, p=chances[n] / chances[n].sum())] for n in which.tolist()]
    row = list(range(len(arms)))
    columns = LogColumns(
        number=row, session=[""] * len(row), context=["{}"] * len(row), eligible=which.tolist(), eligible_sets=sets,
        size=Same(1), slots=LoggedSlots(row=row, position=Same(1), arm=arms),
        events=LoggedEvents(row=(), position=(), kind=(), value=()),
    )  # fmt: skip
    weights = propensities.fit([columns])
    assert {arm: weights[arm] for arm in truth} == pytest.approx(truth, abs=0.02)


def test_the_fit_counts_decisions_as_often_as_they_stand_for_others(run_sqlite: Run) -> None:
    lines = [line(1, "a") | {"keep_probability": 0.5}, line(2, "b"), line(3, "c")]
    imported(run_sqlite, lines, "--propensity", "fitted")
    assert slots(run_sqlite) == [[(pytest.approx(p), None)] for p in (0.5, 0.25, 0.25)]


def test_what_was_estimated_before_stays_so(run_sqlite: Run) -> None:
    logged = line(1) | {"slate": [{"arm": "a", "propensity": 0.9}]}
    lines = [logged, line(2) | {"slate": [{"arm": "a", "propensity": 0.5}], "estimated": True}, line(3)]
    for checked in ("--check", "--on-error=fail"):
        assert "2 decisions with estimated" in imported(run_sqlite, lines, "--propensity", "uniform", checked).stderr
    assert [each.get("estimated", False) for each in run_sqlite("export-log", "-").lines] == [False, True, True]


@pytest.mark.slow
def test_estimates_by_estimated_propensities_are_weak_and_pass_no_gate(run: Run) -> None:
    random = np.random.default_rng(1)
    lines = [line(n, arm, reward=int(arm == "a")) for n, arm in enumerate(random.choice(list("abc"), 3000))]
    imported(run, lines, "--propensity", "uniform")
    judging = ("--log", "policy=old", "--estimator", "snips", "--cluster", "session", "--json")
    (row,) = run("evaluate", "uniform", *judging).json
    assert (row["verdict"], row["reasons"]) == ("weak", ["estimated-propensity"])
    fixed(run, "best", {"a": 0.9, "b": 0.05, "c": 0.05})
    fixed(run, "worst", {"a": 0.05, "b": 0.05, "c": 0.9})
    run("route", "create", "front", "--to", "worst")
    result = run("route", "set", "front", "--to", "best", "--require", "if-better")
    assert (result.exit_code, "computed when it was imported" in result.stderr) == (3, True)
    run("policy", "create", "visits", "--kind", "gradient")
    result = run("train-pg", "visits", "--promote", "if-better", "--epochs", "5", "--lr", "0.05", "--seed", "1")
    assert (result.exit_code, "computed when it was imported" in result.stderr) == (3, True)


def test_a_check_counts_what_an_import_stores_and_stores_nothing(run: Run) -> None:
    lines = [line(1, reward=5), line(2, events=[{"kind": "wink"}]), line(3)]
    imported(run, lines[:1])
    Path("more.jsonl").write_text(json.dumps(lines[2]) + "\n")
    checked = imported(run, lines, "more.jsonl", "--check")
    assert len(run("export-log", "-").lines) == 1
    assert checked.json == summary(accepted=2, duplicates=2, ignored=1, ignored_kinds=["wink"], without_propensity=4)
    assert imported(run, lines, "more.jsonl").json == checked.json
    assert imported(run, [*lines, line(4) | {"session": ""}], "--check").exit_code == 2


def test_marginals_are_taken_where_only_they_are_there(run_sqlite: Run) -> None:
    """They weigh impressions, and the marginal of an arm that is alone on its page is its propensity."""
    pages = [
        {"session": f"s{n}", "slate": slate, "eligible": ["a", "b", "c"], "reward": n % 2}
        for n in range(40)
        for slate in ([{"arm": "a", "marginal": 0.25}], [{"arm": "b", "marginal": 0.5}, {"arm": "c", "marginal": 0.4}])
    ]
    result = run_sqlite("import-log", "-", "--layout", "jsonl", "--policy", "shop", "--json", stdin=pages)
    assert result.json == summary(accepted=80)
    assert "without a propensity" not in result.stderr
    first, second = run_sqlite("export-log", "-").lines[:2]
    assert (first["slate"][0]["propensity"], first["log_propensity"]) == (0.25, pytest.approx(math.log(0.25)))
    assert ([slot["propensity"] for slot in second["slate"]], second["log_propensity"]) == ([None, None], None)
    rows = run_sqlite("evaluate", "uniform", "--estimator", "ips,sips", "--json").json
    earned = sum(n % 2 / 3 / 0.25 for n in range(40))
    assert [(row["n"], row["left_out"]) for row in rows] == [(120, 0), (40, 40)]
    assert rows[1]["value"] == pytest.approx(earned / 40)
