"""Estimates per slate, from logs in a store."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from rlrec import ope
from rlrec.app.judging import evaluate
from rlrec.app.policies import versions
from rlrec.app.requests import feedback
from rlrec.app.setup import reward
from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.store.policies import curves
from tests.app import logs
from tests.app.learned import trained
from tests.conftest import filled, runner

RATES = (0.1, 0.2, 0.3, 0.4, 0.5)
SLATE = ("sips", "iips", "rips", "pi", "cascade-dr", "interpol", "pbm:home")


def curve(db: str, *examination: float) -> None:
    """A stored curve `home`."""
    positions = json.dumps([{"position": at, "examination": each} for at, each in enumerate(examination, 1)])
    with closing(logs.at(db, 0)) as store:
        store.write(
            lambda unit: curves.add(
                unit, name="home", number=1, reward_id=1, model="pbm", method="overlap", options="{}",
                positions=positions, report="{}",
            )
        )  # fmt: skip


def served(db: str) -> None:
    """Pages of two of five arms, served by a policy that learns."""
    logs.begin(db, 5, "log", "thompson", floor="0.2")
    curve(db, 1.0, 0.5)
    logs.serve(db, "log", pages=200, rates=RATES, size=2, users=40, group=20, together=1)


@pytest.fixture
def pages(sqlite_db: str) -> str:
    filled(sqlite_db, served)
    return sqlite_db


def slots(db: str) -> dict[str, Array]:
    """Propensity, marginal and reward of the slots of every page, (pages, 2) each."""
    query = """SELECT s.propensity, s.marginal, EXISTS (
        SELECT 1 FROM event e WHERE e.decision_id = s.decision_id AND e.position = s.position)
        FROM slot s ORDER BY s.decision_id, s.position"""
    with closing(sqlite3.connect(db)) as connection:
        columns = np.array(connection.execute(query).fetchall(), np.float64).T
    return dict(zip(("propensity", "marginal", "reward"), columns.reshape(3, -1, 2), strict=True))


def value(db: str, target: str, estimator: str, **options: Any) -> float:
    answer = logs.estimate(db, target, estimator, interval="normal", **options)
    assert answer["unit"] == "slate"
    return float(answer["value"])


def test_figures_are_those_of_the_stored_slots(pages: str) -> None:
    """The target `uniform` gives 1/5 and 1/4 to the arms left, and 1/5 to every arm at every position."""
    stored = slots(pages)
    ratio = np.cumprod(np.array([1 / 5, 1 / 4]) / stored["propensity"], axis=1)
    by_hand = {
        "sips": ratio[:, 1] * stored["reward"].sum(axis=1),
        "rips": (ratio * stored["reward"]).sum(axis=1),
        "iips": (1 / 5 / stored["marginal"] * stored["reward"]).sum(axis=1),
    }
    for name, terms in by_hand.items():
        assert value(pages, "uniform", name) == pytest.approx(terms.mean(), rel=1e-9), name


def test_the_policy_itself_has_weights_of_1(sqlite_db: str) -> None:
    """A frozen belief judged on its own pages: every probability of the target is the one that was logged."""
    logs.begin(sqlite_db, 5, "log", "thompson", floor="0.2")
    curve(sqlite_db, 1.0, 0.5)
    logs.serve(sqlite_db, "log", pages=60, rates=RATES, size=2, group=20)
    with closing(logs.at(sqlite_db, 100)) as store:
        versions.freeze(store, "log")
        versions.promote(store, "log@2")
    logs.serve(sqlite_db, "log", pages=60, rates=RATES, size=2, seed=2, start=101)
    reward = slots(sqlite_db)["reward"][60:].sum(axis=1).mean()
    for row in logs.judged(sqlite_db, "log@2", estimators=",".join(SLATE), log="version=2"):
        weights = (row["mean_weight"], row["max_weight"], row["ess"], row["left_out"])
        assert weights == (pytest.approx(1, abs=1e-9), pytest.approx(1, abs=1e-9), pytest.approx(30, rel=1e-9), 0)
        if row["estimator"] != "cascade-dr":
            assert row["value"] == pytest.approx(reward, abs=1e-9), row["estimator"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["epsilon-greedy", "thompson", "lin-thompson", "softmax", "gradient"])
def test_sips_is_tis_where_a_visit_is_a_page(pages: str, kind: str) -> None:
    logs.create(
        pages, "other", kind, minutes=100, **({"model": "shared", "samples": "100"} if kind == "lin-thompson" else {})
    )
    if kind == "gradient":
        with closing(logs.at(pages, 101)) as store:
            trained(store, "other")
    sips, rips, corrected, tis = logs.judged(pages, "other", estimators="sips,rips,cascade-dr,tis")
    for name in ("value", "std_error", "ess", "max_weight", "n"):
        assert sips[name] == pytest.approx(tis[name], rel=1e-9), name
    assert rips["mean_weight"] == pytest.approx(1, abs=0.5)
    assert corrected["value"] == pytest.approx(rips["value"], abs=4 * rips["std_error"])


@pytest.mark.slow
def test_a_target_that_reads_the_session_is_judged_by_position(pages: str) -> None:
    """Seeded. Its marginals are simulated, decision by decision."""
    logs.create(pages, "grad", "gradient", minutes=100)
    with closing(logs.at(pages, 101)) as store:
        trained(store, "grad")
    rips, iips, pbm = logs.judged(pages, "grad", estimators="rips,iips,pbm:home")
    for row in (iips, pbm):
        assert row["left_out"] == 0
        assert row["mean_weight"] == pytest.approx(1, abs=4 / np.sqrt(row["ess"]))
        assert abs(row["value"] - rips["value"]) < 4 * (row["std_error"] + rips["std_error"])
    assert iips["ess"] > rips["ess"]
    unknown = logs.estimate(pages, "grad", "iips", target_samples=0)
    assert (unknown["left_out"], "no-marginal" in unknown["reasons"]) == (200, True)


def test_bounds_of_a_page_are_cut_at_no_limit_of_a_slot(sqlite_db: str) -> None:
    """Each of 3 slots earns 0 or 1, mostly 1, by a definition with that clip; the target's pages are simulated."""
    logs.begin(sqlite_db, 5, "home", "uniform")
    logs.serve(sqlite_db, "home", pages=200, rates=[0.9] * 5, size=3)
    words = ("--kind", "lin-thompson", "--param", "model=shared", "--param", "samples=100", "--from-log", "all")
    runner(sqlite_db)("--now", "2026-02-01T00:50:00Z", "--allow-future", "policy", "create", "aim", *words).done()
    with closing(logs.at(sqlite_db, 60)) as store:
        reward.define(store, reward.Request(name="unit", weights="click=1", clip=(0.0, 1.0)))
    for row in logs.judged(sqlite_db, "aim", estimators="sn-rips,sn-sips,sn-iips", reward="unit"):
        assert 2 < row["lower"] < row["value"] < row["upper"] < 3


def test_simulated_pages_widen_no_interval_below_the_least_reward(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 5, "home", "uniform")
    logs.serve(sqlite_db, "home", pages=60, rates=[0.05, 0.0, 0.0, 0.0, 0.0], size=3)
    words = ("--kind", "lin-thompson", "--param", "model=shared", "--param", "samples=100", "--from-log", "all")
    runner(sqlite_db)("--now", "2026-02-01T00:50:00Z", "--allow-future", "policy", "create", "aim", *words).done()
    (row,) = logs.judged(sqlite_db, "aim", estimators="sn-iips", interval="normal")
    assert row["lower"] == 0.0


def test_a_slate_of_one_slot_is_an_impression(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 5, "log", "thompson", floor="0.2")
    logs.serve(sqlite_db, "log", pages=100, rates=RATES, group=20)
    ips, *others = logs.judged(sqlite_db, "uniform", estimators="ips,sips,iips,rips,pi,interpol")
    for row in others:
        assert [row[name] for name in ("value", "lower", "ess")] == pytest.approx(
            [ips[name] for name in ("value", "lower", "ess")], rel=1e-9
        )


def test_pi_lists_the_slates_of_a_learning_logger(pages: str) -> None:
    """Against the pseudo-inverse of what the logger's belief at each page says, for a page reward that is a sum."""
    row = logs.estimate(pages, "uniform", "pi")
    assert row["mean_weight"] == pytest.approx(1, abs=4 / np.sqrt(row["ess"]))
    assert row["left_out"] == 0


def test_pi_refuses_slates_that_are_too_many(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 30, "log", "thompson", floor="0.2")
    logs.create(sqlite_db, "even", "uniform")
    logs.serve(sqlite_db, "log", pages=40, rates=[0.3] * 30, size=4, group=20)
    logs.serve(sqlite_db, "even", pages=20, rates=[0.3] * 30, size=4, start=50)
    with pytest.raises(InputError, match="pi cannot weigh decision 21: its logger was not uniform") as refused:
        logs.estimate(sqlite_db, "uniform", "pi")
    assert "iips" in str(refused.value.hint)
    (closed,) = logs.judged(sqlite_db, "uniform", estimators="pi", log="policy=even")
    assert closed["mean_weight"] == pytest.approx(1, abs=1e-12)
    in_groups = logs.judged(sqlite_db, "uniform", estimators="slate", cluster="session")
    (in_group,) = (row for row in in_groups if row["estimator"] == "pi")
    assert (in_group["value"], in_group["left_out"], in_group["reasons"]) == (None, 20, ["no-pairs"])


def test_a_page_earns_its_events_too(pages: str) -> None:
    before = {name: value(pages, "uniform", name) for name in ("sips", "iips", "rips", "pi")}
    with closing(logs.at(pages, 11)) as store:
        feedback.feedback_stream(
            store,
            lambda: [[feedback.Line(decision_id=181, position=None, events={"click": 2.0})]],
            quarantine=False,
            reject=print,
        )
    ratio = (np.array([1 / 5, 1 / 4]) / slots(pages)["propensity"]).prod(axis=1)[180]
    for name in ("sips", "iips", "rips"):
        assert value(pages, "uniform", name) - before[name] == pytest.approx(2 * ratio / 200, rel=1e-6), name


@pytest.mark.parametrize("clicks", [1.0, 50.0])
def test_slots_say_what_they_see_of_a_reward_that_lies_on_pages_too(pages: str, clicks: float) -> None:
    """Below nine tenths of it they judge nothing, whatever their weights do to it."""
    in_slots = float(slots(pages)["reward"].sum())
    with closing(logs.at(pages, 11)) as store:
        line = feedback.Line(decision_id=181, position=None, events={"click": clicks})
        feedback.feedback_stream(store, lambda: [[line]], quarantine=False, reject=print)
    rows = logs.judged(pages, "uniform", estimators="snips,rips")
    assert [row["reward_seen"] for row in rows] == pytest.approx([in_slots / (in_slots + clicks), 1])
    assert ["reward-unseen" in row["reasons"] for row in rows] == [clicks > in_slots / 9, False]


def test_a_page_with_a_censored_slot_is_left_out(pages: str) -> None:
    run = runner(pages)
    assert run("feedback", 7, "--censor", "--position", 2).exit_code == 0
    row = logs.estimate(pages, "uniform", "rips")
    assert (row["n"], row["left_out"]) == (199, 1)
    assert "no-propensity" in row["reasons"]
    lines = [json.dumps({"decision_id": number, "censor": True}) + "\n" for number in range(1, 201)]
    run("feedback", "--input", "-", stdin="".join(lines[::10]))
    selective = logs.estimate(pages, "uniform", "rips")
    assert selective["left_out"] == 21
    assert selective["answer"] == "unknown"
    assert ("censored-pages" in selective["reasons"], "no-propensity" in selective["reasons"]) == (True, False)
    run("feedback", "--input", "-", stdin="".join(lines))
    with pytest.raises(evaluate.EmptyLog, match="of 200 pages selected, each has a censored slot"):
        logs.estimate(pages, "uniform", "rips")


PARTIAL = {
    "session": "s", "slate": [{"arm": "a1", "position": 2, "marginal": 0.5}], "eligible": ["a1", "a2"], "reward": 1,
}  # fmt: skip


def test_partial_pages_are_refused(pages: str) -> None:
    run = runner(pages)
    assert (
        run("import-log", "-", "--layout", "jsonl", "--policy", "old", stdin=json.dumps(PARTIAL) + "\n").exit_code == 0
    )
    refused = run("evaluate", "uniform", "--estimator", "rips")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "slate estimators need complete pages" in refused.stderr
    units = [row["unit"] for row in logs.judged(pages, "uniform", estimators="all", interval="normal")]
    assert set(units) == {"impression", "session"}
    assert value(pages, "uniform", "rips", log="policy=log") > 0


@pytest.mark.slow
def test_all_has_slates_where_pages_are_longer_than_one_slot(pages: str) -> None:
    rows = logs.judged(pages, "uniform", estimators="all")
    assert [row["estimator"] for row in rows] == list(ope.GROUPS["all"])
    single = logs.judged(pages, "uniform", estimators="all", log="policy=log", by="day")
    assert {row["by"] for row in single} == {"day"}


@pytest.mark.slow
def test_all_has_no_slates_of_single_slots(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 3, "log", "thompson", floor="0.2")
    logs.serve(sqlite_db, "log", pages=30, rates=RATES)
    assert {row["unit"] for row in logs.judged(sqlite_db, "uniform", estimators="all")} == {"impression", "session"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimators": "pbm"}, "pbm needs a position curve"),
        ({"estimators": "pbm:hom"}, "unknown position curve 'hom'"),
        ({"estimators": "pbm:home@7"}, "unknown position curve 'home@7'"),
        ({"estimators": "interpol:1:hom"}, "unknown position curve"),
        ({"estimators": "interpol:0.5"}, "not a whole number"),
        ({"estimators": "rips", "by": "position"}, "judges slates, which have no one position"),
        ({"estimators": "rips", "by": "arm"}, "judges slates, which have no one arm"),
        ({"estimators": "rips", "interval": "cressie-read"}, "does not exist for rips"),
    ],
)
def test_bad_input_is_refused(pages: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        logs.judged(pages, "uniform", **options)


def test_a_curve_that_is_too_short_is_refused(pages: str) -> None:
    logs.serve(pages, "log", pages=1, rates=RATES, size=3, seed=9, start=50)
    with pytest.raises(InputError, match="curve home@1 ends at position 2, and slates have 3"):
        logs.estimate(pages, "uniform", "pbm:home")


def test_a_row_says_its_curve_and_its_age(pages: str) -> None:
    row = logs.estimate(pages, "uniform", "pbm:home", minutes=3 * 24 * 60)
    assert (row["curve"], row["curve_age_days"]) == ("home@1", pytest.approx(3.0))
    assert "position-model" in row["reasons"]


def test_rows_as_clusters_are_slates(pages: str) -> None:
    row = logs.estimate(pages, "uniform", "rips", cluster="row")
    assert (row["cluster"], row["clusters"], row["n"]) == ("row", 200, 200)


def test_a_target_that_learned_from_the_pages_is_said_to_have(pages: str) -> None:
    assert "in-sample" in logs.estimate(pages, "log", "rips")["reasons"]
