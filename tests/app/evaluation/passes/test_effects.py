"""Estimates from effects of arms, from logs in a store."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import numpy as np
import pytest

from rlrec.app.distributions import exact
from rlrec.app.evaluation.passes.arm_effects import shared_surfaces
from rlrec.app.inputs import filters, lookup
from rlrec.app.policies import versions
from rlrec.app.requests import feedback
from rlrec.arrays import Array, Ids
from rlrec.errors import InputError
from rlrec.store import Store
from rlrec.store.log.selected import Selection
from rlrec.store.policies import arms
from tests.app import logs
from tests.app.learned import trained
from tests.conftest import filled, runner

RATES = (0.1, 0.2, 0.3, 0.4, 0.5)


def served(db: str) -> None:
    """Visits of three pages of two of five arms by a uniform policy, and the belief `other@2`."""
    logs.begin(db, 5, "log", "uniform")
    logs.create(db, "other", "thompson", floor="0.2")
    options = {"rates": RATES, "size": 2, "users": 40, "curve": (1.0, 0.5)}
    logs.serve(db, "log", pages=300, group=60, together=3, **options)
    logs.serve(db, "other", pages=60, group=20, start=10, **options)
    with closing(logs.at(db, 13)) as store:
        versions.freeze(store, "other")


@pytest.fixture
def visits(sqlite_db: str) -> str:
    filled(sqlite_db, served)
    return sqlite_db


def shown(db: str) -> tuple[Ids, Ids, Array]:
    """Of the pages of `log`: the session of each, its arms, and the clicks on each position."""
    query = """SELECT d.session_id, s.arm_id, EXISTS (SELECT 1 FROM event e WHERE e.decision_id = s.decision_id
        AND e.position = s.position) FROM slot s JOIN decision d ON d.id = s.decision_id WHERE d.policy_id = 1
        ORDER BY s.decision_id, s.position"""
    with closing(sqlite3.connect(db)) as connection:
        session, arm, clicks = np.array(connection.execute(query).fetchall()).T.reshape(3, -1, 2)
    return session[:, 0], arm - 1, clicks.astype(np.float64)


def shares(db: str, reference: str) -> Array:
    """The probability of each arm at positions 1 and 2, (2, 5)."""
    with closing(logs.at(db, 101)) as store, store.read() as unit:
        version, _ = lookup.version(unit, reference)
        keys = {arm.id: arm.key for arm in arms.all_arms(unit)}
        return exact.load(unit, version).case(0, np.arange(1, 6), {}, keys=keys).slate_sampler(2).marginals


def test_figures_are_those_of_the_regression_by_hand(visits: str) -> None:
    """Positions are examined as clicks at either say, since a uniform logger puts every arm at both alike; what is
    explained is what the page and the later ones of its visit earn."""
    session, arm, clicks = shown(visits)
    examination = np.array([1.0, clicks[:, 1].sum() / clicks[:, 0].sum()])
    exposure = np.zeros((300, 5))
    for position in (0, 1):
        exposure[np.arange(300), arm[:, position]] += examination[position]
    exposure -= examination.sum() / 5
    page = clicks.sum(axis=1)
    remaining = np.array([page[at:][session[at:] == session[at]].sum() for at in range(300)])
    coefficient = np.linalg.pinv(exposure.T @ exposure, rcond=1e-9) @ (exposure.T @ (remaining - remaining.mean()))
    change = examination @ shares(visits, "other@2") - examination.sum() / 5
    row = logs.estimate(visits, "other@2", "effects", log="policy=log")
    assert row["value"] == pytest.approx(page.mean() + change @ coefficient, rel=1e-9)
    assert (row["n"], row["served"], row["unit"]) == (300, pytest.approx(page.mean()), "slate")
    assert {"first-order", "carry-over", "in-sample"} & {*row["reasons"]} == {"first-order"}


def test_an_event_of_the_last_page_counts_for_all_pages_of_its_visit(visits: str) -> None:
    """A return that credits the last page is what an earlier one caused, too."""
    before = logs.estimate(visits, "other@2", "effects", log="policy=log")
    _, arm, _ = shown(visits)
    with closing(logs.at(visits, 14)) as store:
        lines = [  # where the first page of three showed the last arm
            feedback.Line(decision_id=page + 3, position=None, events={"click": 3.0})
            for page in range(0, 300, 3)
            if 4 in arm[page]
        ]
        feedback.feedback_stream(store, lambda: [lines], quarantine=False, reject=print)
    after = logs.estimate(visits, "other@2", "effects", log="policy=log")
    favours = bool(shares(visits, "other@2")[:, 4].sum() > 0.4)
    assert len(lines) > 20
    assert (after["value"] - after["served"] > before["value"] - before["served"]) == favours


def test_batches_add_up_to_the_same_figures(visits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = logs.judged(visits, "uniform", "other@2", estimators="effects,sn-sips")
    logs.in_batches(monkeypatch, 31)
    for row, added in zip(direct, logs.judged(visits, "uniform", "other@2", estimators="effects,sn-sips"), strict=True):
        for name in ("value", "lower", "upper", "ess", "served", "lift"):
            assert added[name] == pytest.approx(row[name], rel=1e-9), name


def test_what_served_the_log_earned_what_it_earned(visits: str) -> None:
    row = logs.estimate(visits, "uniform", "effects", log="policy=log")
    assert (row["value"], row["lift"]) == (pytest.approx(row["served"], rel=1e-12), 0)


def test_a_loggers_marginals_that_nobody_can_derive_leave_its_pages_out(visits: str) -> None:
    logs.create(visits, "reads", "gradient", minutes=102)
    with closing(logs.at(visits, 103)) as store:
        trained(store, "reads")
    row = logs.estimate(visits, "reads@2", "effects", log="policy=log")
    assert (row["n"], row["left_out"], row["value"], row["verdict"]) == (0, 300, None, "insufficient")
    assert {"no-marginal", "no-rows"} <= {*row["reasons"]}


@pytest.mark.parametrize("options", [{"by": "day"}, {"cluster": "row"}])
def test_effects_of_a_part_of_the_log_are_refused(visits: str, options: dict[str, str]) -> None:
    with pytest.raises(InputError, match="effects"):
        logs.estimate(visits, "uniform", "effects", **options)


def test_where_none_is_asked_for_the_estimator_that_assumes_least_answers(visits: str) -> None:
    """About pages whose rewards lie on slots: the usual rows stand behind it."""
    usual = ["ips", "snips", "dr"]
    first, *others = logs.judged(visits, "other@2", log="policy=log", cluster="session")
    assert (first["estimator"], first["unit"], [row["estimator"] for row in others]) == ("sn-sips", "slate", usual)
    assert first["verdict"] != "insufficient"
    users, *others = logs.judged(visits, "other@2", log="policy=log")  # too few of them for any
    assert (users["estimator"], users["verdict"]) == ("sn-iips", "insufficient")
    by_position = logs.judged(visits, "other@2", log="policy=log", by="position")
    assert {row["unit"] for row in by_position} == {"impression"}


def test_a_reward_of_pages_is_answered_by_pages_alone(visits: str) -> None:
    """Slots see too little of it: of 200 clicks on pages, the estimators per impression miss two thirds."""
    with closing(logs.at(visits, 14)) as store:
        lines = [feedback.Line(decision_id=page, position=None, events={"click": 1.0}) for page in range(1, 201)]
        feedback.feedback_stream(store, lambda: [lines], quarantine=False, reject=print)
    rows = logs.judged(visits, "other@2", log="policy=log", cluster="session")
    assert rows[0]["estimator"] in ("sn-sips", "effects")
    assert all(row["reward_seen"] < 0.5 and row["verdict"] == "insufficient" for row in rows[1:])
    (by_name,) = logs.judged(visits, "other@2", estimators=rows[0]["estimator"], log="policy=log", cluster="session")
    assert by_name == rows[0]


def test_surfaces_that_serve_the_same_users_at_the_same_time_are_named(sqlite_db: str) -> None:
    """What served before another surface, or other users, is none."""
    run = runner(sqlite_db)
    run("arm", "add", "a", "b").done()
    for name in ("home", "mail", "desk", "old"):
        run("policy", "create", name, "--kind", "uniform").done()
    run("experiment", "create", "ab", "--variant", "a=home", "--variant", "b=home").done()

    def serve(name: str, group: str) -> None:
        surface = {"experiment": name} if name == "ab" else {"policy": name}
        lines = [{**surface, "session": f"{name}{group}{n}", "user": f"{group}{n}"} for n in range(5)]
        run("recommend", "--input", "-", stdin=lines).done()

    for name, group in [("old", "u"), *[("ab", "u"), ("mail", "u"), ("desk", "v")] * 2]:
        serve(name, group)
    with closing(Store(sqlite_db)) as store, store.read() as unit:
        assert shared_surfaces(unit, Selection()) == ["experiment=ab", "policy=mail"]
        assert shared_surfaces(unit, filters.selection(unit, "experiment=ab")) == []
