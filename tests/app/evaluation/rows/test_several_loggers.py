"""Logs of several loggers: each is weighed by the spread of its weights, so that more log makes no estimate worse."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec import ope
from rlrec.app.evaluation.passes import estimates
from rlrec.app.evaluation.rows.loggers import LoggingVersions
from rlrec.app.judging import evaluate
from rlrec.errors import InputError
from rlrec.ope.units.sessions import SessionFold
from rlrec.ope.units.strata import NO_LOGGER
from tests.app import logs
from tests.benchmarks.loggers import Shop
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
    fixed(db, "wide", 0.5, folder)
    logs.create(db, "old", "uniform")
    logs.create(db, "bandit", "thompson", floor="0.2")
    logs.serve(db, "near", pages=2_000, rates=RATES, together=1, users=700)
    logs.serve(db, "old", pages=2_000, rates=RATES, together=1, users=700, seed=2, start=20)
    logs.serve(db, "bandit", pages=300, rates=RATES, together=1, users=700, seed=3, start=60)
    return db


def judged(db: str, log: str | None, **options: Any) -> dict[str, Any]:
    target, estimators = options.pop("target", "wide"), options.pop("estimators", "snips")
    return logs.estimate(db, target, estimators, log=log, **options)


@pytest.mark.slow
def test_an_old_log_makes_no_estimate_worse(db: str) -> None:
    """The page `judging` says so."""
    names = ["ips", "snips", "dr", "wdr", "pdis", "rips"]
    rows = [
        logs.judged(db, "wide", estimators=",".join(names), log=log, cluster="session")
        for log in (FIXED, "policy=near", "policy=old")
    ]
    for name, both, near, old in zip(names, *rows, strict=True):
        assert (both["loggers"], near["loggers"], old["loggers"]) == (2, 1, 1), name
        assert both["ess"] >= near["ess"] > 5 * old["ess"], name
        assert both["std_error"] <= 1.02 * near["std_error"], name  # which is estimated, too
        assert both["n"] == near["n"] + old["n"], name


@pytest.mark.slow
def test_an_old_log_that_adds_next_to_nothing_is_left_out(db: str) -> None:
    """Its heavy weights would make the tail and the share of clusters that are effective look worse."""
    rows = [
        logs.judged(db, "target", estimators="ips,dr,wdr,rips", log=log, cluster="session")
        for log in (FIXED, "policy=near", "policy=old")
    ]
    for both, near, old in zip(*rows, strict=True):
        assert old["ess"] < 0.05 * min(old["clusters"], near["ess"])
        assert both["log"] == f"{FIXED},loggers=near@1"
        assert {each["version"]: each["weight"] for each in both["logger_weights"]} == {"near@1": 1.0, "old@1": 0.0}
        for name in ("n", "clusters", "ess", "std_error", "max_weight", "verdict", "reasons"):
            tolerance = {"std_error": 0.02, "ess": 1e-9}.get(name, 0)  # models of rewards are fitted to all rows
            expected = pytest.approx(near[name], rel=tolerance) if tolerance else near[name]
            assert both[name] == expected, (both["estimator"], name)
    words = ("--estimator", "dr", "--log", FIXED, "--cluster", "session")
    assert "than what near@1 logged" in runner(db)("evaluate", "target", *words).stdout.splitlines()[0]
    assert "than what was logged" in runner(db)("evaluate", "wide", *words).stdout.splitlines()[0]


@pytest.mark.slow
def test_the_row_says_how_much_each_logger_counts(db: str) -> None:
    row = judged(db, FIXED)
    weights = {each["version"]: each for each in row["logger_weights"]}
    assert weights.keys() == {"near@1", "old@1"}
    assert weights["near@1"]["weight"] > 4 * weights["old@1"]["weight"]
    assert sum(each["rows"] * each["weight"] for each in weights.values()) == pytest.approx(row["n"])
    table = runner(db)("evaluate", "wide", "--estimator", "snips", "--log", FIXED)
    assert "log of wide@1: rows count more where weights vary less: near@1 1." in table.stdout


@pytest.mark.slow
def test_the_report_takes_the_log_that_evaluate_takes(db: str) -> None:
    """Not all that is mature, in which the old log would count as much as the others."""
    run = runner(db)
    lines = run("evaluate", "target", "wide").stdout.splitlines()
    comparison = "`as served` differs, as targets are judged on different rows: neither values nor lifts compare them"
    assert f"{comparison}; --log all judges all on the same rows" in lines
    taken = [line for line in lines if line.startswith("log of ")]
    assert [line.split(":")[0] for line in taken] == ["log of target@1", "log of wide@1"]
    page = run("report", "-").stdout
    assert [line for line in taken if line not in page] == []


def test_loggers_that_learn_are_weighed_as_others_are(db: str) -> None:
    """The page `judging` says that an old log of heavy weights makes no estimate worse, whoever logged it."""
    joint = judged(db, None, cluster="session")
    alone = {name: judged(db, f"policy={name}", cluster="session") for name in ("near", "old", "bandit")}
    assert {each["version"] for each in joint["logger_weights"]} == {"near@1", "old@1", "bandit@1"}
    assert joint["ess"] == pytest.approx(sum(row["ess"] for row in alone.values()), rel=0.05)
    assert joint["std_error"] <= min(row["std_error"] for row in alone.values())
    assert joint["log"] == "loggers=near@1+old@1+bandit@1"


def test_all_pools_the_rows_of_all_loggers(db: str) -> None:
    """Each of them counts once: the old log ruins the estimate."""
    pooled, weighed = (judged(db, log, cluster="session") for log in ("all", None))
    assert (pooled["loggers"], pooled["logger_weights"], pooled["log"]) == (1, (), "all")
    assert pooled["n"] == weighed["n"]
    assert pooled["ess"] < 0.5 * weighed["ess"]


def test_a_row_names_the_log_that_it_is_from(db: str) -> None:
    row = judged(db, "until=2026-02-01T00:30:00Z")
    assert row["log"] == "until=2026-02-01T00:30:00Z,loggers=near@1+old@1"
    again = judged(db, row["log"])
    assert {name: row[name] for name in ("value", "std_error", "n", "log")} == {
        name: again[name] for name in ("value", "std_error", "n", "log")
    }
    assert judged(db, "policy=near")["log"] == "policy=near,loggers=near@1"


def test_a_filter_names_loggers_that_are_stored(db: str) -> None:
    assert judged(db, "version=1,loggers=near@1+old@1")["n"] == 4_000
    once = judged(db, "loggers=near@1+old@1,all")
    assert (once["n"], once["loggers"], once["log"]) == (4_000, 1, "loggers=near@1+old@1,all")
    for log, text in (
        ("loggers=nobody@1", "nobody"),
        ("loggers=near@7", "no version 7"),
        ("loggers=near@1,loggers=old@1", "twice"),
    ):
        with pytest.raises(InputError, match=text):
            judged(db, log)


def test_a_session_counts_as_the_logger_of_its_first_row() -> None:
    loggers = LoggingVersions(names={7: "a@1", 8: "b@1", 9: "c@1"})
    slots = {"version_id": np.array([7, 8, 8, 9, 7, 7]), "cluster": np.array([1, 1, 3, 3, 5, 5])}
    codes = loggers.stratum_codes(slots, np.arange(6), spans_batches=False, max_loggers=3)
    strata = loggers.strata(3)
    assert [strata[code].logger for code in codes] == ["a@1", "a@1", "b@1", "b@1", "a@1", "a@1"]


def test_rows_of_users_count_as_their_own_logger() -> None:
    """And the logger that is one too many to be weighed by itself as one of all others."""
    loggers = LoggingVersions(names={8: "b@1", 7: "a@1", 9: "c@1", 6: "d@1"})
    slots = {"version_id": np.array([7, 8, 9, 6]), "cluster": np.array([2, 2, 2, 2])}
    codes = loggers.stratum_codes(slots, np.arange(4), spans_batches=True, max_loggers=3)
    strata = loggers.strata(3)
    assert [strata[code].logger for code in codes] == ["a@1", "b@1", None, None]
    assert len({strata[code].half for code in codes}) == 1


def test_nothing_is_weighed_where_memory_allows_one_logger() -> None:
    loggers = LoggingVersions(names={7: "a@1", 8: "b@1"})
    slots = {"version_id": np.array([7, 8]), "cluster": np.array([1, 2])}
    assert loggers.strata(1) == [NO_LOGGER]
    assert not loggers.stratum_codes(slots, np.arange(2), spans_batches=False, max_loggers=1).any()
    fold = SessionFold(estimators=ope.parse("wdr").sessions, gamma=1.0, horizon=1_000, spans_batches=False)
    assert fold.max_loggers < 2


def test_a_logger_that_cannot_show_what_the_target_shows_is_left_out(db: str, tmp_path: Path) -> None:
    """Its rows have weights far below 1 alone: it would look precise, and its mean is that of other arms."""
    copy = str(tmp_path / "copy.db")
    Path(copy).write_bytes(Path(db).read_bytes())
    lines = [f"a{arm},{0.5 if arm < 2 else 0.0}\n" for arm in range(ARMS)]
    (tmp_path / "narrow.csv").write_text("arm,probability\n" + "".join(lines))
    logs.create(copy, "narrow", "fixed", minutes=4_000, probabilities=str(tmp_path / "narrow.csv"))
    logs.serve(copy, "narrow", pages=500, rates=RATES, together=1, start=5_000)
    before, row = judged(copy, "loggers=near@1+old@1+bandit@1"), judged(copy, None)
    assert row["log"] == before["log"]
    assert (row["value"], row["n"]) == (pytest.approx(before["value"]), before["n"])
    left_out = next(each for each in row["logger_weights"] if each["version"] == "narrow@1")
    assert (left_out["rows"], left_out["weight"]) == (500, 0.0)
    assert "unsupported" in judged(copy, "policy=narrow")["reasons"]


@pytest.mark.slow
def test_training_takes_the_log_that_evaluate_takes(sqlite_db: str, tmp_path: Path) -> None:
    """An old log of heavy weights beside one that supports the start: the tuning visits and the gate have the effective
    visits of the near one, and the start learns. Counted once, the old rows leave next to none, and it stays."""
    logs.catalogue(sqlite_db, 10)
    for name, shares in {"old": [0.91, *[0.01] * 9], "narrow": [0.5, 0.5, *[0.0] * 8]}.items():
        lines = [f"a{arm},{share}\n" for arm, share in enumerate(shares)]
        (tmp_path / f"{name}.csv").write_text("arm,probability\n" + "".join(lines))
        logs.create(sqlite_db, name, "fixed", probabilities=str(tmp_path / f"{name}.csv"))
    for name in ("near", "young"):
        logs.create(sqlite_db, name, "uniform")
    logs.create(sqlite_db, "pg", "gradient")
    rates = [0.1] * 9 + [0.6]
    for number, name in enumerate(("old", "narrow", "near")):
        logs.serve(sqlite_db, name, pages=1_200, rates=rates, seed=number + 1, start=20 * number + 1)
    options = ("train-pg", "pg", "--seed", "1", "--dry-run", "--epochs")
    run = runner(sqlite_db)
    weighed, pooled = (
        json.loads(run("--now", "2026-02-03T00:00:00Z", *options, "8", "--json", *log).stdout)
        for log in ((), ("--log", "all"))
    )
    taken = judged(sqlite_db, None, target="pg", estimators="snips")["log"]
    assert weighed["log"] == taken == "loggers=near@1+old@1"
    assert pooled["log"] == "all"
    assert weighed["tune_ess"] > weighed["ess_wanted"] > pooled["tune_ess"]
    assert weighed["tune_estimate"] > 0.1
    assert "narrow@1" not in logs.estimate(sqlite_db, "pg", "wdr", log="split=gate")["log"]
    logs.serve(sqlite_db, "young", pages=100, rates=rates, start=2_870)  # until February 2, 23:51
    progress = run("--now", "2026-02-03T00:00:00Z", *options, "1").stderr
    ending = "without rows that count, as their visits or rewards are not complete: young@1"
    assert f"left out, as they tell next to nothing of pg: narrow@1; {ending}; --log all" in progress


@pytest.mark.slow
def test_the_gate_of_training_weighs_loggers_as_evaluate_does(sqlite_db: str, tmp_path: Path) -> None:
    logs.catalogue(sqlite_db, 10)
    lines = [f"a{arm},{0.46 if arm == 0 else 0.06}\n" for arm in range(10)]
    (tmp_path / "old.csv").write_text("arm,probability\n" + "".join(lines))
    logs.create(sqlite_db, "near", "uniform")
    logs.create(sqlite_db, "old", "fixed", probabilities=str(tmp_path / "old.csv"))
    logs.create(sqlite_db, "pg", "gradient")
    logs.serve(sqlite_db, "old", pages=1_000, rates=RATES)
    logs.serve(sqlite_db, "near", pages=1_000, rates=RATES, seed=2, start=20)
    options = ("train-pg", "pg", "--epochs", "1", "--seed", "1", "--json")
    result = runner(sqlite_db)("--now", "2026-02-03T00:00:00Z", *options).done()
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
    logs.begin(sqlite_db, 10, "pg", "gradient")
    run = runner(sqlite_db)
    rates = [0.9, *[0.1] * 9]
    answers = list[dict[str, Any]]()
    for number, options in enumerate([("--lr", "0.1", "--promote", "always"), ("--lr", "1e-9", "--epochs", "1")]):
        logs.serve(sqlite_db, "pg", pages=1_500, rates=rates, seed=number, start=60 * number)
        result = run(
            "--now", f"2026-02-0{number + 2}T00:00:00Z", "train-pg", "pg", *options, "--seed", "1", "--json"
        ).done()
        answers.append(json.loads(result.stdout))
    assert answers[0]["best_epoch"] > 0
    # 20 % of the second log, less 3 standard deviations: the first one, of other weights, takes nothing from it
    visits = answers[1]["sessions"] - answers[0]["sessions"]
    assert answers[1]["tune_ess"] > 0.2 * visits - 3 * (0.16 * visits) ** 0.5


def test_two_loggers_at_different_levels_are_weak(sqlite_db: str, tmp_path: Path) -> None:
    """The second one served visitors who click half as often: each says something else about the same target."""
    logs.begin(sqlite_db, 3, "first", "uniform")
    logs.create(sqlite_db, "second", "uniform")
    (table := tmp_path / "table.csv").write_text("arm,probability\na0,0.5\na1,0.25\na2,0.25\n")
    logs.create(sqlite_db, "near", "fixed", probabilities=str(table))
    for name, level, start in (("first", 1.0, 1), ("second", 0.5, 10)):
        logs.serve(sqlite_db, name, pages=1_000, rates=[0.6 * level, 0.5 * level, 0.4 * level], start=start)
    (row,) = logs.judged(sqlite_db, "uniform", estimators="snips")
    alone = logs.estimate(sqlite_db, "uniform", "snips", log="policy=first")
    assert (row["verdict"], "unlike-loggers" in row["reasons"]) == ("weak", True)
    assert "unlike-loggers" not in alone["reasons"]
    lines = runner(sqlite_db)("evaluate", "near", "--cluster", "session").stdout.splitlines()
    (step,) = (line for line in lines if line.startswith("Next"))
    assert step.endswith("--log loggers=second@1`, by one logger alone, then by each other one (first@1)")


@pytest.mark.simulation
def test_the_usual_log_is_as_good_as_the_best_choice_of_its_loggers(tmp_path: Path) -> None:
    """Two of the stores of `tests/benchmarks/loggers.py`: an old imported log, an experiment and a holdout. Standard
    errors are estimates: the least of all choices is partly luck."""
    excess = []
    for seed in (1, 7):
        shop = Shop(tmp_path, seed=seed)
        excess += [shop.excess(target) for target in ("uniform", "shelf@ranking/now", "rival@ranking/new")]
    assert np.mean(excess) < 1.02
    assert max(excess) < 1.1


def judged_row(db: str, target: str, estimator: str, log: str) -> estimates.EstimateRow:
    with closing(logs.at(db, 1e6)) as store:
        (row,) = evaluate.evaluate(store, evaluate.Request(targets=[target], estimators=estimator, log=log))
    return row


def test_a_target_that_logged_itself_is_not_compared_with_itself(db: str) -> None:
    row = judged_row(db, "uniform", "wdr", "policy=old")
    assert row.claim.sentence == "uniform is the same policy as what was logged: no difference"
    assert (row.estimate.lift, row.estimate.lift_lower, row.estimate.lift_upper) == (0.0, 0.0, 0.0)


def test_a_log_that_is_nearly_all_the_targets_own_is_no_rival(db: str) -> None:
    """Else the sentence says how the rows of its loggers are weighed, since each does not count once."""
    row = judged_row(db, "uniform", "snips", FIXED)
    old, near = sorted(row.estimate.logger_weights, key=lambda logger: not logger.is_target)
    assert "than what was logged (weighed as 90 % old@1 and 10 % near@1), per impression" in row.claim.sentence
    hardly = (replace(old, weight=1e-4), near)  # a share that would read 0 %
    sentence = replace(row, estimate=replace(row.estimate, logger_weights=hardly)).claim.sentence
    assert "than what near@1 logged, per impression" in sentence
    weights = (old, replace(near, weight=0.05))
    weighed_row = replace(row, estimate=replace(row.estimate, logger_weights=weights, reasons=("low-ess",)))
    assert weighed_row.answer.answer == "same"
    assert weighed_row.claim.sentence.startswith("uniform is the same policy as old@1: others are compared with it by")
    weights = (replace(old, version="uniform"), replace(near, is_target=True))  # nothing is compared with itself
    served = replace(weighed_row, estimate=replace(weighed_row.estimate, logger_weights=weights))
    assert served.claim.sentence.startswith("uniform is the same policy as near@1: ")
