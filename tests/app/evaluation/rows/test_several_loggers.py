"""Logs of several loggers: each is weighed by the spread of its weights, so that more log makes no estimate worse."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec import ope
from rlrec.app.evaluation.passes import estimates, fold, passes
from rlrec.app.evaluation.passes.request import Request
from rlrec.app.evaluation.rows.loggers import FixedLoggers, LoggerFacts
from rlrec.app.log import partitions
from rlrec.ope.units.sessions import SessionFold
from rlrec.ope.units.strata import Stratum
from rlrec.store.log.selected import Selection
from tests.app import logs
from tests.conftest import runner

ARMS = 45
FIXED = "until=2026-02-01T00:30:00Z"
RATES = [0.02 + 0.01 * arm for arm in range(ARMS)]


def fixed(db: str, name: str, share: float, folder: Path) -> None:
    """A policy that shows the last arm with this probability, and the others alike."""
    path = folder / f"{name}.csv"
    others = (1 - share) / (ARMS - 1)
    lines = [f"a{arm},{share if arm == ARMS - 1 else others!r}\n" for arm in range(ARMS)]
    path.write_text("arm,probability\n" + "".join(lines))
    logs.create(db, name, "fixed", probabilities=str(path))


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> str:
    """2,000 near rows, 2,000 of a uniform logger, and some of a bandit that learns while it serves."""
    folder = tmp_path_factory.mktemp("loggers")
    db = str(folder / "log.db")
    Path(db).write_bytes(sqlite_template.read_bytes())
    logs.catalogue(db, ARMS)
    fixed(db, "near", 0.8, folder)
    fixed(db, "target", 0.95, folder)
    logs.create(db, "old", "uniform")
    logs.create(db, "bandit", "thompson", floor="0.2")
    logs.serve(db, "near", pages=2_000, rates=RATES, together=1, users=700)
    logs.serve(db, "old", pages=2_000, rates=RATES, together=1, users=700, seed=2, start=20)
    logs.serve(db, "bandit", pages=300, rates=RATES, together=1, users=700, seed=3, start=60)
    return db


def judged(db: str, log: str | None, **options: Any) -> dict[str, Any]:
    return logs.estimate(db, "target", options.pop("estimators", "snips"), log=log, **options)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["ips", "snips", "dr", "wdr", "pdis", "rips"])
def test_an_old_log_makes_no_estimate_worse(db: str, estimator: str) -> None:
    both, near, old = (
        judged(db, log, estimators=estimator, cluster="session") for log in (FIXED, "policy=near", "policy=old")
    )
    assert (both["loggers"], near["loggers"], old["loggers"]) == (2, 1, 1)
    assert both["ess"] >= near["ess"] > 10 * old["ess"]
    assert both["std_error"] <= near["std_error"]
    assert both["n"] == near["n"] + old["n"]


@pytest.mark.slow
def test_the_row_says_how_much_each_logger_counts(db: str) -> None:
    row = judged(db, FIXED)
    weights = {each["version"]: each for each in row["logger_weights"]}
    assert weights.keys() == {"near@1", "old@1"}
    assert weights["near@1"]["weight"] > 10 * weights["old@1"]["weight"]
    assert sum(each["rows"] * each["weight"] for each in weights.values()) == pytest.approx(row["n"])
    table = runner(db)("evaluate", "target", "--estimator", "snips", "--log", FIXED)
    assert "loggers: rows count in inverse proportion" in table.stdout + table.stderr


def test_rows_of_a_logger_that_learns_count_once(db: str) -> None:
    row = judged(db, None)
    others = next(each for each in row["logger_weights"] if each["version"] is None)
    assert row["loggers"] == 2
    assert (others["rows"], others["weight"]) == (300, 1.0)


def test_a_logger_that_learned_from_the_selected_rows_is_not_weighed(db: str, tmp_path: Path) -> None:
    copy = str(tmp_path / "copy.db")
    Path(copy).write_bytes(Path(db).read_bytes())
    run, later = runner(copy), "since=2026-02-01T02:00:00Z"
    assert run("--now", "2026-02-03T00:00:00Z", "policy", "freeze", "bandit").exit_code == 0
    assert run("--now", "2026-02-03T00:00:00Z", "policy", "promote", "bandit@2").exit_code == 0
    for name in ("bandit", "near"):
        logs.serve(copy, name, pages=400, rates=RATES, together=1, seed=4, start=3 * 1440 + (name == "near"))
    every, newer = (judged(copy, log) for log in (None, later))
    assert {each["version"] for each in every["logger_weights"]} == {"near@1", "old@1", None}
    assert {each["version"] for each in newer["logger_weights"]} == {"near@1", "bandit@2"}


def test_a_session_counts_as_the_logger_of_its_first_row() -> None:
    """And that logger is not fixed where another one that served in its sessions is not."""
    loggers = FixedLoggers(names={7: "a@1", 8: "b@1"})
    slots = {"version_id": np.array([7, 8, 8, 9, 7, 7]), "cluster": np.array([1, 1, 3, 3, 5, 5])}
    rows = loggers.strata(slots, np.arange(6), spans_batches=False, max_loggers=15)
    assert [rows.strata[code].logger for code in rows.codes] == ["a@1", "a@1", "b@1", "b@1", "a@1", "a@1"]
    assert rows.mixed == {("a@1", "b@1"), ("b@1", None)}
    met = LoggerFacts(mixed=rows.mixed)
    assert (met.is_fixed("a@1"), met.is_fixed("b@1")) == (True, False)
    assert not replace(met, learned=frozenset({"b@1"})).is_fixed("a@1")


def test_rows_of_users_count_as_their_own_logger() -> None:
    loggers = FixedLoggers(names={7: "a@1", 8: "b@1"})
    slots = {"version_id": np.array([7, 8, 9]), "cluster": np.array([2, 2, 2])}
    rows = loggers.strata(slots, np.arange(3), spans_batches=True, max_loggers=15)
    assert [rows.strata[code].logger for code in rows.codes] == ["a@1", "b@1", None]
    assert rows.mixed == set()


def test_nothing_is_weighed_where_memory_allows_one_logger() -> None:
    loggers = FixedLoggers(names={7: "a@1", 8: "b@1"})
    slots = {"version_id": np.array([7, 8]), "cluster": np.array([1, 2])}
    assert loggers.strata(slots, np.arange(2), spans_batches=False, max_loggers=1).strata == [Stratum()]
    fold = SessionFold(estimators=ope.parse("wdr").sessions, gamma=1.0, horizon=1_000, spans_batches=False)
    assert fold.most_loggers < 2


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["impression", "session", "slate"])
def test_batches_of_several_loggers_add_up_in_any_order(db: str, monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    request = Request(targets=["target"], estimators=unit, interval="normal")
    monkeypatch.setattr(partitions, "BATCH", 200)
    with closing(logs.at(db, 1e6)) as store, store.read() as opened:
        evaluation, (of_rows, *_), log = estimates.prepare(opened, request, estimates.estimators(request), Selection())
        models = passes.fit_models([of_rows], evaluation, log)[of_rows]
        partials = [fold.fold(of_rows, evaluation, batch, models) for batch in log.to_judge(of_rows.judged_on)]
    assert len(partials) > 10
    orders = [partials, [partials[number] for number in np.random.default_rng(1).permutation(len(partials))]]
    (first, second) = (
        next(iter(fold.estimates(of_rows, evaluation, reduce(add, order), failures={}, cluster="user").values()))
        for order in orders
    )
    for before, after in zip(first, second, strict=True):
        for name, value in vars(before).items():
            if name in ("logger_weights", "ess_by_step"):
                continue
            assert getattr(after, name) == (pytest.approx(value, rel=1e-10) if isinstance(value, float) else value), (
                name
            )
        weights = [[each.weight for each in side.logger_weights] for side in (before, after)]
        assert weights[0] == pytest.approx(weights[1], rel=1e-10)


@pytest.mark.slow
def test_the_gate_of_training_weighs_loggers_as_evaluate_does(sqlite_db: str, tmp_path: Path) -> None:
    logs.catalogue(sqlite_db, 10)
    lines = [f"a{arm},{0.46 if arm == 0 else 0.06}\n" for arm in range(10)]
    (tmp_path / "old.csv").write_text("arm,probability\n" + "".join(lines))
    logs.create(sqlite_db, "near", "uniform")
    logs.create(sqlite_db, "old", "fixed", probabilities=str(tmp_path / "old.csv"))
    logs.create(sqlite_db, "pg", "gradient")
    logs.serve(sqlite_db, "old", pages=2_000, rates=RATES)
    logs.serve(sqlite_db, "near", pages=2_000, rates=RATES, seed=2, start=20)
    options = ("train-pg", "pg", "--epochs", "1", "--seed", "1", "--json")
    result = runner(sqlite_db)("--now", "2026-02-03T00:00:00Z", *options)
    assert result.exit_code == 0, result.stderr
    gate = json.loads(result.stdout)
    both, near = (
        logs.estimate(sqlite_db, f"pg@{gate['version']}", "wdr", log=f"split=gate{more}")
        for more in ("", ",policy=near")
    )
    assert both["loggers"] == 2
    assert gate["value"] == pytest.approx(both["value"], abs=both["std_error"])  # by another model
    assert min(both["ess"], gate["ess"]) >= near["ess"] > 50


@pytest.mark.slow
def test_versions_that_tuning_visits_have_chosen_are_weighed_apart_where_they_choose_the_next(sqlite_db: str) -> None:
    logs.catalogue(sqlite_db, 10)
    logs.create(sqlite_db, "pg", "gradient")
    run = runner(sqlite_db)
    rates = [0.9, *[0.1] * 9]
    answers = list[dict[str, Any]]()
    for number, options in enumerate([("--lr", "0.1", "--promote", "always"), ("--lr", "1e-9", "--epochs", "1")]):
        logs.serve(sqlite_db, "pg", pages=6_000, rates=rates, seed=number, start=60 * number)
        result = run("--now", f"2026-02-0{number + 2}T00:00:00Z", "train-pg", "pg", *options, "--seed", "1", "--json")
        assert result.exit_code == 0, result.stderr
        answers.append(json.loads(result.stdout))
    assert answers[0]["best_epoch"] > 0
    # 20 % of the second log, less 3 standard deviations: the first one, of other weights, takes nothing from it
    visits = answers[1]["sessions"] - answers[0]["sessions"]
    assert answers[1]["tune_ess"] > 0.2 * visits - 3 * (0.16 * visits) ** 0.5
