"""Policies that see contexts as targets of an evaluation and as loggers: by hand, through the store, and audited."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.evaluation.rows.log_rows import decision_digests
from rlrec.app.evaluation.targets import targets
from rlrec.app.policies import policy, versions
from rlrec.app.upkeep import doctor
from rlrec.arrays import Array
from rlrec.policy.scores.families.correlated import Correlated, Sampled
from rlrec.policy.slates import slate, slate_draws
from rlrec.store import Unit
from rlrec.store.log import contents, reader
from rlrec.store.log.selected import Selection
from rlrec.store.policies import arms, policies
from tests.app import logs
from tests.conftest import filled

RATES = (0.1, 0.3, 0.5, 0.2)
DEVICES = ("pc", "phone", "tv")
READ = {"context": {"fields": {"hour": "number", "device": list(DEVICES)}}, "arm": {"fields": {"price": "number"}}}


def contexts(number: int, *, seed: int = 1) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [
        {"hour": float(hour), "device": str(device), "noise": index}
        for index, (hour, device) in enumerate(
            zip(generator.normal(size=number), generator.choice(DEVICES, number), strict=True)
        )
    ]


def describe(db: str, prices: list[float], *, minutes: float = 0) -> None:
    with closing(logs.at(db, minutes)) as store:
        result = {f"a{index}": json.dumps({"price": price}) for index, price in enumerate(prices)}
        store.write(lambda unit: arms.put(unit, result))


def create(db: str, name: str, kind: str, *, declared: bool = True, **parameters: str) -> None:
    features = READ if declared else None
    with closing(logs.at(db, 0)) as store:
        policy.create(store, policy.Request(name=name, kind=kind, parameters=parameters, features=features))


def prepared(db: str, kind: str, *, size: int = 1, pages: int = 150, **options: Any) -> None:
    """A log of `uniform`, and a policy `lin` that has learned from decisions of its own."""
    describe(db, [0.0, 0.5, 1.0, 2.0])
    logs.create(db, "log", "uniform")
    create(db, "lin", kind, **options)
    logs.serve(db, "lin", pages=60, rates=RATES, size=size, contexts=contexts(60, seed=2), group=20)
    logs.serve(db, "log", pages=pages, rates=RATES, size=size, contexts=contexts(pages), start=10)


def scores(unit: Unit, name: str, batch: reader.Batch) -> Any:
    """What a policy makes of each row of a log, one by one, with its floor."""
    answers = targets.resolve(unit, [name], reward=None, greedy=False)[0].serving
    bodies = contents.context_bodies(unit, set(batch.slots["context_id"].tolist()))
    arm_ids = np.array(sorted(arm.id for arm in arms.all_arms(unit)))
    keys = {arm.id: arm.key for arm in arms.all_arms(unit)}
    rows = zip(batch.slots["context_id"].tolist(), batch.slots["catalogue_revision"].tolist(), strict=True)
    result = [answers.case("all", arm_ids, json.loads(bodies[key]), keys=keys, revision=at).scores for key, at in rows]
    return result, arm_ids, answers.policy.exploration


def log_of(unit: Unit, name: str) -> reader.Batch:
    owner = policies.by_name(unit, name)
    (batch,) = reader.batches(unit, Selection(policy_ids=[owner.id]), columns=tuple(reader.COLUMNS))
    return batch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("softmax", {"model": "shared"}), ("plackett-luce", {"model": "features"}), ("linucb", {}),
        ("squarecb", {"declared": False}),
        ("linucb", {"model": "hybrid", "discount": "0.99"}), ("lin-thompson", {"window": "40"}),
    ],
)  # fmt: skip
def test_a_row_is_scored_in_its_own_context(sqlite_db: str, kind: str, options: dict[str, Any]) -> None:
    db = sqlite_db
    prepared(db, kind, floor="0.1", **options)
    with closing(logs.at(db, 1e6)) as store, store.read() as unit:
        batch = log_of(unit, "log")
        result, arm_ids, floor = scores(unit, "lin", batch)
    index = np.searchsorted(arm_ids, batch.slots["arm_id"])
    shares = np.array([slate.p_first(item, floor=floor)[at] for item, at in zip(result, index, strict=True)])
    clicked = np.isin(batch.slots["decision_id"], batch.events["decision_id"])
    estimate = logs.estimate(db, "lin", "ips", log="policy=log", interval="normal")
    assert estimate["value"] == pytest.approx((shares / 0.25 * clicked).mean(), rel=1e-9)
    assert estimate["max_weight"] == pytest.approx(4 * shares.max(), rel=1e-9)
    assert len(set(shares.round(12))) > 1


def test_values_that_no_encoder_expects_count_as_missing(sqlite_db: str) -> None:
    db = sqlite_db
    prepared(db, "softmax", pages=20)
    odd = [{"hour": "late", "device": 7}, {"hour": None, "device": ["tv"]}, {"hour": {"h": 1}}, {"else": [1, "a", {}]}]
    logs.serve(db, "log", pages=100, rates=RATES, contexts=odd, seed=5, start=30)
    logs.serve(db, "log", pages=100, rates=RATES, contexts=[{}], seed=6, start=40)
    rows = logs.judged(db, "lin", estimators="ips", by="hour", interval="normal")
    groups = {row["group"]: row["max_weight"] for row in rows if not isinstance(row["group"], float)}
    assert len(groups) == 3
    assert len(set(groups.values())) == 1


def correlated(db: str) -> None:
    """400 pages of two, and a shared model whose scores are correlated."""
    prepared(db, "lin-thompson", size=2, pages=400, model="shared", samples="200", floor="0.1")


@pytest.fixture
def shared(sqlite_db: str) -> str:
    filled(sqlite_db, correlated)
    return sqlite_db


@pytest.mark.slow
def test_correlated_scores_are_weighed_by_the_page_as_shown(shared: Any) -> None:
    """Samples by the digest of the decision, the page down to the row on both sides."""
    with closing(logs.at(shared, 1e6)) as store, store.read() as unit:
        batch = log_of(unit, "log")
        result, arm_ids, floor = scores(unit, "lin", batch)
        columns = ("session_digest", "visit", "step")
        (of_decisions,) = reader.batches(unit, Selection(), columns=(*columns, "policy_id"))
    digests = dict(zip(of_decisions.slots["decision_id"], decision_digests(of_decisions.slots), strict=True))
    pages = np.searchsorted(arm_ids, batch.slots["arm_id"]).reshape(-1, 2)
    decisions = batch.slots["decision_id"][::2].tolist()
    assert all(isinstance(row, Correlated) for row in result)
    drawn = [item.decision_scores(0, int(digests[key])) for item, key in zip(result[::2], decisions, strict=True)]
    steps = [slate.conditionals(item, page[None], floor=floor)[0] for item, page in zip(drawn, pages, strict=True)]
    weight = np.cumprod(steps, axis=1) / np.cumprod(batch.slots["propensity"].reshape(-1, 2), axis=1)
    estimate = logs.estimate(shared, "lin", "ips", log="policy=log", interval="normal", target_samples=0)
    assert (estimate["n"], estimate["left_out"]) == (800, 0)
    assert estimate["mean_weight"] == pytest.approx(weight.mean(), rel=1e-9)
    assert estimate["max_weight"] == pytest.approx(weight.max(), rel=1e-9)


@pytest.mark.slow
def test_the_model_of_rewards_counts_as_the_page_above_does(shared: Any) -> None:
    """Shares of a decision's own samples are given the slots above: so dr and snips mean the same."""
    options = {"log": "policy=log", "interval": "normal", "target_samples": 0}
    dr, snips = (logs.estimate(shared, "lin", name, **options) for name in ("dr", "snips"))
    assert abs(dr["value"] - snips["value"]) < dr["std_error"]
    assert "models-differ" not in dr["reasons"]


@pytest.mark.slow
def test_the_very_belief_that_drew_a_row_draws_it_again(shared: Any) -> None:
    """A frozen version on its own rows: each weight is 1, however its arms were described before and after."""
    describe(shared, [1.0, 0.0, 2.0, 0.5], minutes=999)
    with closing(logs.at(shared, 1000)) as store:
        versions.freeze(store, "lin")
        versions.promote(store, "lin@2")
    logs.serve(shared, "lin", pages=60, rates=RATES, size=2, contexts=contexts(60, seed=4), start=1001, seed=9)
    describe(shared, [2.0, 1.0, 0.5, 0.0], minutes=1100)
    (row,) = logs.judged(shared, "lin", estimators="ips", log="policy=lin,version=2", interval="normal")
    assert (row["n"], row["max_weight"], row["mean_weight"]) == (120, pytest.approx(1), pytest.approx(1))
    (other,) = logs.judged(shared, "lin@1", estimators="ips", log="policy=lin,version=2", interval="normal")
    assert other["max_weight"] > 1.01


def test_a_row_with_a_marginal_alone_says_nothing_of_correlated_scores(sqlite_db: str) -> None:
    prepared(sqlite_db, "lin-thompson", size=2, pages=50, model="shared", samples="50", floor="0.1")
    with closing(logs.at(sqlite_db, 100)) as store:
        store.write(
            lambda unit: unit.connection.exec_driver_sql(
                "UPDATE slot SET propensity = NULL, min_propensity = NULL WHERE position = 2"
            )
        )
    options = {"estimators": "ips,dr,dm", "log": "policy=log", "interval": "normal"}
    rows = logs.judged(sqlite_db, "lin", **options, target_samples=0)
    assert [(row["n"], row["left_out"]) for row in rows] == [(50, 50), (50, 50), (100, 0)]
    simulated = logs.judged(sqlite_db, "lin", **options)
    assert [(row["n"], row["left_out"]) for row in simulated] == [(100, 0)] * 3


def test_a_decision_of_a_target_with_rules_is_drawn_once(sqlite_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither parts of simulated pages, of which rules leave none, nor estimators of pages draw its samples anew."""
    rules = {"most": "price=1", "samples": "50"}
    prepared(sqlite_db, "lin-thompson", size=2, pages=50, model="shared", floor="0.1", **rules)
    draws, draw = Counter[int](), Correlated.decision_scores

    def count(scores: Correlated, seed: int, decision: int) -> Sampled:
        draws[decision] += 1
        return draw(scores, seed, decision)

    monkeypatch.setattr(Correlated, "decision_scores", count)
    rows = logs.judged(sqlite_db, "lin", estimators="ips,sips,rips", log="policy=log", interval="normal")
    assert [(row["n"], row["left_out"]) for row in rows] == [(100, 0), (50, 0), (50, 0)]
    assert [*draws.values()] == [1] * 50


@pytest.mark.simulation
def test_a_correlated_target_is_judged_right(shared: Any) -> None:
    """Seeded. A right estimate is outside four standard errors in 6 of 100,000 runs."""
    with closing(logs.at(shared, 1e6)) as store, store.read() as unit:
        result, arm_ids, floor = scores(unit, "lin", log_of(unit, "log"))
        keys = {arm.id: arm.key for arm in arms.all_arms(unit)}
    rates = np.array([RATES[int(keys[arm][1:])] for arm in arm_ids.tolist()])
    numbers, seeds = np.arange(1, 5), np.full(4, 77, np.uint64)
    pages = [slate_draws.draw(row, size=2, floor=floor, seeds=seeds, decisions=numbers).slates for row in result[::2]]
    for estimate in logs.judged(shared, "lin", estimators="ips,snips,dr", log="policy=log", interval="normal"):
        assert abs(estimate["value"] - rates[np.array(pages)].mean()) < 4 * estimate["std_error"]
        assert estimate["unsupported"] == 0.0


@pytest.mark.slow
def test_another_seed_simulates_other_pages(shared: Any) -> None:
    requests = {"estimator": "ips", "log": "policy=log,split=gate", "interval": "normal"}
    once, again, other, more = (
        logs.estimate(shared, "lin", **requests, **options)["value"]
        for options in ({}, {}, {"seed": 1}, {"target_samples": 4_000})
    )
    assert once == again != other
    assert more == pytest.approx(once, rel=0.05)


@pytest.mark.simulation
def test_intervals_hold_the_error_of_simulated_pages(shared: Any) -> None:
    """Seeded. The variance over 24 seeds on a fifth of the log, against what few pages add to the squared error: right
    ones are more than a factor of 3 apart in fewer than 1 of 1,000 runs."""
    options = {"estimator": "ips", "log": "policy=log,split=gate", "interval": "normal"}
    many = logs.estimate(shared, "lin", **options, target_samples=1_000)
    few = [logs.estimate(shared, "lin", **options, target_samples=16, seed=seed) for seed in range(24)]
    spread = np.var([row["value"] for row in few], ddof=1)
    added = np.mean([row["std_error"] ** 2 - many["std_error"] ** 2 for row in few])
    assert 1 / 3 < added / spread < 3
    for row in few:
        assert row["lower"] < row["value"] < row["upper"]


@pytest.fixture(scope="module")
def broad_logs(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> tuple[str, Array]:
    """Six logs of uniform pages of 5 of 50 for 400 users each, a day apart, and a shared model that has learned
    from 20 pages of its own; the arms' rates."""
    path = str(tmp_path_factory.mktemp("wide") / "wide.db")
    Path(path).write_bytes(sqlite_template.read_bytes())
    features = np.random.default_rng(5).normal(size=(50, 3))
    rates = 1 / (1 + np.exp(2.5 - features @ [0.8, -0.5, 0.3]))
    described = {f"a{arm}": json.dumps(dict(zip("xyz", row, strict=True))) for arm, row in enumerate(features.tolist())}
    with closing(logs.at(path, 0)) as store:
        store.write(lambda unit: arms.put(unit, described))
    logs.create(path, "log", "uniform")
    logs.create(path, "lin", "lin-thompson", model="shared", samples="100")
    logs.serve(path, "lin", pages=20, rates=rates.tolist(), size=5)
    for day in range(6):
        options = {"size": 5, "users": 400, "together": 1, "start": 1440.0 * (day + 1), "seed": day}
        logs.serve(path, "log", pages=400, rates=rates.tolist(), **options)
    return path, rates


@pytest.mark.simulation
def test_pages_of_many_arms_can_judge_a_shared_model(broad_logs: tuple[str, Array]) -> None:
    """Seeded: six logs at 95 %, fewer than 4 intervals with the truth in 1 of 400 runs."""
    path, rates = broad_logs
    with closing(logs.at(path, 1e6)) as store, store.read() as unit:
        (item, *_), arm_ids, floor = scores(unit, "lin", log_of(unit, "lin"))
        keys = {arm.id: arm.key for arm in arms.all_arms(unit)}
    of_arms = rates[[int(keys[arm][1:]) for arm in arm_ids.tolist()]]
    rng = np.random.default_rng(8)
    truth = float((slate.simulated_marginals(item, size=5, floor=floor, runs=50_000, rng=rng) @ of_arms).sum())
    rows = logs.judged(path, "lin", estimators="iips,sn-iips", by="day", log="policy=log")
    for estimator in ("iips", "sn-iips"):
        days = [row for row in rows if row["estimator"] == estimator]
        assert len(days) == 6
        assert min(row["ess"] for row in days) > 100
        assert sum(row["lower"] < truth < row["upper"] for row in days) >= 4
    three_days = "policy=log,until=2026-02-05"
    by_prefix = logs.judged(path, "lin", estimators="ips", by="day", log=three_days, target_samples=0)
    assert max(row["ess"] for row in by_prefix) < 30


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "model"), [("linucb", "disjoint"), ("lin-thompson", "shared")])
def test_an_audit_derives_decisions_in_contexts_again(db: str, kind: str, model: str) -> None:
    prepared(db, kind, size=2, pages=10, model=model, floor="0.1")
    describe(db, [2.0, 1.0, 0.5, 0.0], minutes=20)
    logs.serve(db, "lin", pages=40, rates=RATES, size=2, contexts=contexts(40, seed=8), group=20, seed=3, start=30)
    with closing(logs.at(db, 1e6)) as store:
        result = doctor.doctor(store, doctor.Request())
    assert (result.ok, result.findings) == (True, [])


def test_what_a_logger_could_not_show_is_told_in_its_context(sqlite_db: str) -> None:
    """Two pairs of arms that look alike: without exploration a page is one of these."""
    db = sqlite_db
    describe(db, [0.0, 0.0, 9.0, 9.0])
    create(db, "lin", "linucb", model="shared")
    logs.serve(db, "lin", pages=40, rates=RATES, size=2, contexts=contexts(40), group=20)
    describe(db, [0.0, 9.0, 0.0, 9.0], minutes=20)
    assert logs.estimate(db, "uniform", "snips")["unsupported"] == pytest.approx(0.5)
