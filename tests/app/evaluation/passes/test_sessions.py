"""Estimates per session through the store: visits, their propensities and their returns by hand."""

from __future__ import annotations

from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.log import ended_visits as visiting
from rlrec.app.log import partitions
from rlrec.app.policies import versions
from rlrec.app.requests import feedback, recommend
from rlrec.app.requests import session as sessions
from rlrec.errors import InputError
from rlrec.ope.checks import diagnostics
from rlrec.store import Store
from rlrec.store.log import reader
from rlrec.store.log.selected import Selection
from tests.app import logs, trained
from tests.app.evaluation.targets.test_state_probabilities import BIAS, LAST
from tests.app.judging.test_evaluate import multiply
from tests.conftest import ON_BOTH, Run, runner

RATES = (0.2, 0.7)
SHARES = (0.8, 0.2)
ALL = "session"  # every estimator of that unit


def fixed(db: str, tmp_path: Path, shares: Any = SHARES, *, size: int = 1, pages: int = 40, arms: int = 2) -> Any:
    """A uniform log of visits of two pages, and a target of fixed probabilities: arms and rewards, (visits, 2, k)."""
    logs.catalogue(db, arms)
    path = tmp_path / "shares.csv"
    path.write_text("arm,probability\n" + "".join(f"a{arm},{share}\n" for arm, share in enumerate(shares)))
    logs.create(db, "log", "uniform")
    logs.create(db, "rule", "fixed", probabilities=str(path))
    logs.serve(db, "log", pages=pages, rates=(*RATES, 0.5), size=size)
    return visits(db, size)


def visits(db: str, size: int = 1) -> Any:
    with closing(logs.at(db, 1e6)) as store, store.read() as unit:
        (batch,) = reader.batches(unit, Selection())
    arms = batch.slots["arm_id"] - batch.slots["arm_id"].min()
    clicked = set(zip(batch.events["decision_id"].tolist(), batch.events["position"].tolist(), strict=True))
    places = zip(batch.slots["decision_id"].tolist(), batch.slots["position"].tolist(), strict=True)
    reward = np.array([float(index in clicked) for index in places])
    return arms.reshape(-1, 2, size), reward.reshape(-1, 2, size)


def by_hand(ratio: Any, reward: Any, gamma: float = 1.0) -> Any:
    """tis, pdis and wis of visits of two pages, by their ratios and rewards (s, 2)."""
    weight = ratio.prod(axis=1)
    gained = reward @ [1, gamma]
    along = (np.cumprod(ratio, axis=1) * reward) @ [1, gamma]
    return [np.mean(weight * gained), np.mean(along), (weight * gained).sum() / weight.sum()]


def values(db: str, target: Any, estimators: str = "tis,pdis,wis", **options: Any) -> Any:
    return [row["value"] for row in logs.judged(db, target, estimators=estimators, interval="normal", **options)]


# -- exactness --


@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.0])
def test_the_weight_of_a_session_is_the_product_of_those_of_its_pages(db: str, tmp_path: Path, gamma: float) -> None:
    arms, reward = fixed(db, tmp_path)
    ratio = np.array(SHARES)[arms[..., 0]] / 0.5
    assert values(db, "rule", gamma=gamma) == pytest.approx(by_hand(ratio, reward[..., 0], gamma))


def test_a_page_is_weighed_as_a_whole(db: str, tmp_path: Path) -> None:
    """Page reward is the sum of its slots; a fixed target of three arms ranks by what is left of their shares."""
    shares = (0.5, 0.3, 0.2)
    arms, reward = fixed(db, tmp_path, shares, size=2, arms=3)
    joint = np.array([[trained.page(np.array(shares), page) for page in visit] for visit in arms.tolist()])
    assert values(db, "rule") == pytest.approx(by_hand(joint * 6, reward.sum(axis=2)))


@pytest.mark.slow
def test_a_target_that_reads_the_session_is_weighed_in_its_states(db: str) -> None:
    logs.begin(db, 3, "log", "uniform")
    logs.create(db, "home", "gradient", floor="0.1")
    trained.version(db, "home", bias=BIAS, last=LAST)
    logs.serve(db, "log", pages=60, rates=(0.2, 0.7, 0.5), start=3.0)
    arms, reward = visits(db)
    before = [[set(), {visit[0][0]}] for visit in arms.tolist()]
    chance = np.array([[trained.chances(BIAS, LAST, item, floor=0.1) for item in visit] for visit in before])
    ratio = 3 * np.take_along_axis(chance, arms, axis=2)[..., 0]
    assert values(db, "home") == pytest.approx(by_hand(ratio, reward[..., 0]))
    rows = logs.judged(db, "home", estimators=ALL, interval="normal")
    assert all("logging-states" not in row["reasons"] for row in rows)


def test_a_page_of_two_is_weighed_by_its_joint_probability_in_its_state(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 3, "log", "uniform")
    logs.create(sqlite_db, "home", "gradient")
    trained.version(sqlite_db, "home", bias=BIAS, last=LAST)
    logs.serve(sqlite_db, "log", pages=60, rates=(0.2, 0.7, 0.5), start=3.0, size=2)
    arms, reward = visits(sqlite_db, 2)
    joint = [
        [trained.page(trained.chances(BIAS, LAST, set(before)), page) for before, page in pairwise([[], *visit])]
        for visit in arms.tolist()
    ]
    assert values(sqlite_db, "home") == pytest.approx(by_hand(6 * np.array(joint), reward.sum(axis=2)))


@pytest.mark.slow
def test_a_target_with_samples_is_judged_by_those_of_each_decision(sqlite_db: str) -> None:
    """On the log that this very belief served, every weight is 1: pages are scored by the samples they were drawn
    from."""
    logs.begin(sqlite_db, 3, "lin", "lin-thompson", model="shared", samples="50")
    logs.serve(sqlite_db, "lin", pages=20, rates=(0.2, 0.7, 0.5), size=2)
    with closing(logs.at(sqlite_db, 2)) as store:
        versions.freeze(store, "lin")
    logs.serve(sqlite_db, "lin@2", pages=20, rates=(0.2, 0.7, 0.5), size=2, start=60, seed=2)
    row = logs.estimate(sqlite_db, "lin@2", "tis", log="version=2", interval="normal")
    assert (row["n"], row["max_weight"], row["mean_weight"]) == (10, pytest.approx(1), pytest.approx(1))


@pytest.mark.slow
def test_a_model_of_returns_brings_no_bias_in(db: str, tmp_path: Path) -> None:
    """Seeded: on 300 visits, robust and plain estimates of one truth are within their errors of each other."""
    fixed(db, tmp_path, pages=600)
    truth = 2 * np.dot(SHARES, RATES)
    for row in logs.judged(db, "rule", estimators=ALL, interval="normal"):
        assert abs(row["value"] - truth) < 4 * row["std_error"], row["estimator"]
        assert (row["unit"], row["n"], row["unsupported"]) == ("session", 300, 0.0)
    plain, robust = (logs.estimate(db, "rule", name, interval="normal") for name in ("pdis", "dr-rl"))
    assert robust["std_error"] < plain["std_error"]


@pytest.mark.slow
def test_neither_batches_nor_their_size_change_an_estimate(
    sqlite_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed(sqlite_db, tmp_path, pages=200)
    rows = logs.judged(sqlite_db, "rule", estimators=ALL)
    logs.in_batches(monkeypatch, 33)
    for item, other in zip(rows, logs.judged(sqlite_db, "rule", estimators=ALL), strict=True):
        for key, value in item.items():
            close = isinstance(value, float | tuple)
            assert other[key] == (pytest.approx(value, rel=1e-9) if close else value), key


@pytest.mark.slow
def test_memory_is_bounded_by_the_batch(sqlite_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak over four times the log, in batches of 100 pages, is that over the log itself, but for a fifth."""
    fixed(sqlite_db, tmp_path, pages=400)
    monkeypatch.setattr(diagnostics, "N_LARGEST", 133)
    logs.in_batches(monkeypatch, 100)
    monkeypatch.setattr(partitions, "BUCKETS", 2)  # of several batches each, once or four times the log

    def judge() -> object:
        return logs.judged(sqlite_db, "rule", estimators="tis,wpdis,dr-rl", interval="normal")

    def peak() -> int:
        return logs.traced_peak(judge)

    judge()  # imports
    once = peak()
    multiply(sqlite_db, 4)
    assert logs.estimate(sqlite_db, "rule", "tis", interval="normal")["n"] == 800
    assert peak() < 1.2 * once


# -- what is asked --


@pytest.mark.slow
def test_units_may_be_mixed_and_answers_come_in_the_order_asked(sqlite_db: str, tmp_path: Path) -> None:
    fixed(sqlite_db, tmp_path)
    rows = logs.judged(sqlite_db, "rule", "uniform", estimators="wdr,ips,pdis,dr", interval="normal")
    assert [row["estimator"] for row in rows] == ["wdr", "ips", "pdis", "dr"] * 2
    assert [(row["unit"], row["n"]) for row in rows][:2] == [("session", 20), ("impression", 40)]
    assert rows[0]["estimand"] == "mean return per session, as served, gamma 1"
    assert (len(rows[0]["ess_by_step"]), rows[1]["ess_by_step"]) == (2, None)


@pytest.mark.parametrize(
    ("options", "result"),
    [
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"gamma": float("nan")}, "gamma"),
        ({"by": "position"}, "no one position"),
        ({"by": "arm"}, "no one arm"),
        ({"cluster": "row"}, "cluster row"),
        ({"interval": "cressie-read"}, "does not exist for wdr"),
        ({"log": "until=2020-01-01"}, "empty log: no session is selected"),
    ],
)
def test_what_cannot_be_asked_of_a_session_is_refused(
    sqlite_db: str, tmp_path: Path, options: dict[str, Any], result: str
) -> None:
    fixed(sqlite_db, tmp_path)
    with pytest.raises(InputError, match=result):
        logs.judged(sqlite_db, "rule", estimators="wdr", **options)


@ON_BOTH
def test_groups_are_those_where_a_session_begins(db: str, tmp_path: Path) -> None:
    logs.begin(db, 2, "log", "uniform")
    logs.create(db, "other", "uniform")
    logs.serve(db, "log", pages=40, rates=RATES, contexts=[{"device": "phone"}, {"device": "tv"}])
    logs.serve(db, "other", pages=20, rates=RATES, start=3000)
    count = {
        by: [(row["group"], row["n"]) for row in logs.judged(db, "uniform", estimators="tis", by=by)]
        for by in ("device", "policy", "day")
    }
    assert count["device"] == [("phone", 20), (None, 10)]
    assert count["policy"] == [("log", 20), ("other", 10)]
    assert count["day"] == [("2026-02-01", 20), ("2026-02-03", 10)]


@pytest.mark.slow
def test_clusters_are_users_where_they_are_known(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 2, "log", "uniform")
    logs.serve(sqlite_db, "log", pages=80, rates=RATES, users=10)
    by_user, by_session = (logs.estimate(sqlite_db, "uniform", "wdr", cluster=by) for by in (None, "session"))
    assert [(item["cluster"], item["clusters"]) for item in (by_user, by_session)] == [("user", 10), ("session", 40)]


def test_a_session_that_is_too_long_is_refused_unless_the_filter_leaves_it_out(
    sqlite_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed(sqlite_db, tmp_path)
    monkeypatch.setattr(visiting, "MAX_VISIT_DECISIONS", 2)
    assert logs.estimate(sqlite_db, "rule", "tis")["n"] == 20
    with closing(logs.at(sqlite_db, 5)) as store:
        serve_visit(store, "long", pages=3)
    with pytest.raises(InputError, match="a session of 3 decisions is longer than the 2"):
        logs.estimate(sqlite_db, "rule", "tis")
    assert logs.estimate(sqlite_db, "rule", "tis", log="until=2026-02-01T00:03:00Z")["n"] == 20


def test_a_filter_that_cuts_sessions_leaves_them_out(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 2, "log", "uniform")
    with closing(logs.at(sqlite_db, 0)) as store:
        serve_visit(store, "cut", pages=1)
    with closing(logs.at(sqlite_db, 5)) as store:
        serve_visit(store, "cut", pages=1)
        serve_visit(store, "whole")
    row = logs.estimate(sqlite_db, "uniform", "tis", log="since=2026-02-01T00:03:00Z")
    assert (row["n"], row["left_out"]) == (1, 1)


# -- which visits --


def serve_visit(store: Store, name: str = "s", *, pages: int = 2) -> Any:
    answers = [recommend.recommend(store, recommend.Request(policy="log", session=name)) for _ in range(pages)]
    return [answer["decision_id"] for answer in answers]


def test_visits_wait_until_they_are_over_and_so_are_their_windows(db: str) -> None:
    logs.begin(db, 2, "log", "uniform")
    with closing(logs.at(db, 0)) as store:
        serve_visit(store, "ended")
        sessions.end(store, "ended")
    with closing(logs.at(db, 5)) as store:
        serve_visit(store, "open")
    with pytest.raises(InputError, match="of 2 sessions selected, none is over") as caught:
        logs.judged(db, "uniform", estimators="tis", minutes=20)
    assert "30 minutes" in str(caught.value.hint)
    assert [logs.estimate(db, "uniform", "tis", minutes=minutes)["n"] for minutes in (34, 36)] == [1, 2]


def test_visits_that_a_filter_cuts_are_not_said_to_wait(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 2, "log", "uniform")
    for minutes, name in ((0, "s"), (1, "t"), (2, "s"), (2, "t"), (50, "young")):
        with closing(logs.at(sqlite_db, minutes)) as store:
            serve_visit(store, name, pages=1)
    with pytest.raises(InputError, match="of 2 sessions selected, none is whole: --log cuts them"):
        logs.judged(sqlite_db, "uniform", estimators="tis", minutes=55, log="since=2026-02-01T00:01:30Z")


@ON_BOTH
def test_a_censored_slot_leaves_its_session_out(db: str, tmp_path: Path) -> None:
    fixed(db, tmp_path)
    with closing(logs.at(db, 5)) as store:
        feedback.feedback(store, feedback.Line(decision_id=3, events={}, censor=True))
    row = logs.estimate(db, "rule", "tis")
    assert (row["n"], row["left_out"], "no-propensity" in row["reasons"]) == (19, 1, True)


@pytest.mark.slow
def test_a_session_without_its_states_is_left_out_of_targets_that_read_them(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 3, "log", "uniform")
    logs.create(sqlite_db, "home", "gradient")
    logs.serve(sqlite_db, "log", pages=40, rates=(0.2, 0.7, 0.5), start=3.0)
    with closing(logs.at(sqlite_db, 5)) as store:
        store.write(lambda unit: unit.tell("UPDATE decision SET history = NULL WHERE id = 4"))
    home, uniform = logs.judged(sqlite_db, "home", "uniform", estimators="wdr")
    assert (home["n"], home["left_out"], "no-state" in home["reasons"]) == (19, 1, True)
    assert (uniform["n"], uniform["left_out"], "no-state" in uniform["reasons"]) == (20, 0, False)


def test_a_session_is_in_sample_only_in_a_split_that_taught(db: str) -> None:
    logs.begin(db, 2, "log", "uniform")
    logs.create(db, "home", "gradient")
    logs.serve(db, "log", pages=100, rates=RATES, start=3.0)
    trained.version(db, "home", bias=[0.1, 0], minutes=200, selection={}, last_id=10**6, now=10**18, splits=[0, 1])
    result = [
        "in-sample" in logs.estimate(db, "home", "tis", log=f"split={name}")["reasons"]
        for name in ("train", "tune", "gate")
    ]
    assert result == [True, True, False]


def test_greedy_is_the_best_arm_of_every_state(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 3, "log", "uniform")
    logs.create(sqlite_db, "home", "gradient", floor="0.2")
    trained.version(sqlite_db, "home", bias=BIAS, last=LAST)
    logs.serve(sqlite_db, "log", pages=200, rates=(0.2, 0.7, 0.5), start=3.0)
    arms, reward = visits(sqlite_db)
    best = [[0, int(np.argmax(trained.chances(BIAS, LAST, {visit[0][0]})))] for visit in arms.tolist()]
    rows = logs.judged(sqlite_db, "home", estimators="tis", greedy=True, interval="normal")[0]
    assert rows["value"] == pytest.approx(by_hand(3.0 * (arms[..., 0] == best), reward[..., 0])[0])
    assert rows["estimand"] == "mean return per session, greedy, gamma 1"


# -- imports --


@pytest.mark.slow
def test_the_policy_of_an_imported_log_is_judged_by_its_own_sessions(
    sqlite_db: str, tmp_path: Path, run_sqlite: Run
) -> None:
    _, reward = fixed(sqlite_db, tmp_path)
    path = tmp_path / "log.jsonl"
    assert run_sqlite("--now", "2026-03-01", "export-log", str(path)).exit_code == 0
    other = tmp_path / "other.db"
    run = runner(str(other))
    run("init")
    run("--now", "2026-03-01", "import-log", str(path), "--layout", "jsonl", "--policy", "old").done()
    old = run("--now", "2026-03-02", "evaluate", "old", "--estimator", ALL, "--json").json
    uniform = run("--now", "2026-03-02", "evaluate", "uniform", "--estimator", "tis,wpdis", "--json").json
    assert [item["n"] for item in old + uniform] == [20] * 8
    assert [item["value"] for item in old + uniform] == pytest.approx([reward.sum() / 20] * 8)


def test_sessions_without_propensities_are_counted(sqlite_db: str, tmp_path: Path) -> None:
    fixed(sqlite_db, tmp_path)
    with closing(logs.at(sqlite_db, 5)) as store:
        store.write(lambda unit: unit.tell("UPDATE decision SET imported = 1, log_propensity = NULL WHERE id <= 2"))
    assert logs.estimate(sqlite_db, "rule", "tis")["left_out"] == 1
    with closing(logs.at(sqlite_db, 5)) as store:
        store.write(lambda unit: unit.tell("UPDATE decision SET imported = 1, log_propensity = NULL"))
    with pytest.raises(InputError, match="of 20 sessions selected, none has propensities"):
        logs.estimate(sqlite_db, "rule", "tis")
