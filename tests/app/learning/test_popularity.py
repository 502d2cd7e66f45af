"""Priors from a log: shrunk means, worth so many pulls, and known to have been taught by it."""

import re
from contextlib import closing
from typing import Any

import pytest

from rlrec.app.policies import policy, versions
from rlrec.app.setup import reward
from rlrec.errors import Conflict, InputError
from rlrec.store import Store
from rlrec.store.policies import arms, beliefs, policies
from tests.app import logs

RATES = (0.9, 0.1, 0.5)


@pytest.fixture
def log(sqlite_db: str) -> Any:
    """Three arms that 60 mature pages of `u` showed, and a fourth one that came later."""
    logs.begin(sqlite_db, 3, "u", "uniform")
    logs.serve(sqlite_db, "u", pages=60, rates=RATES)
    with closing(logs.at(sqlite_db, 2)) as store:
        store.write(lambda unit: arms.put(unit, {"a3": "{}"}))
    return sqlite_db


def make(db: str, name: str = "p", kind: str = "thompson", *, minutes: int = 100, **options: Any) -> Any:
    with closing(logs.at(db, minutes)) as store:
        return policy.create(store, policy.Request(name=name, kind=kind, **options))


def prior(db: str, name: str = "p") -> Any:
    """{arm: (alpha, beta)} of a policy, and what it learned from."""
    with closing(Store(db)) as store, store.read() as unit:
        version, _ = policies.live(unit, [name])[name]
        return {f"a{row[0] - 1}": row[1:] for row in beliefs.prior(unit, version.id)}, version.learned_from


def earned(db: str) -> Any:
    """(pulls, reward) of each arm, from a belief that the log taught."""
    make(db, "taught", "epsilon-greedy", from_log="policy=u")
    with closing(Store(db)) as store, store.read() as unit:
        version, _ = policies.live(unit, ["taught"])["taught"]
        return {f"a{row[0] - 1}": row[1:3] for row in beliefs.sums(unit, version.id)}


def test_an_arm_starts_from_its_mean_shrunk_to_that_of_all(log: Any) -> None:
    answers = make(log, prior_from="policy=u", prior_weight=4.0)
    assert answers["created"]
    sums = earned(log)
    overall = sum(reward for _, reward in sums.values()) / 60
    for arm, (alpha, beta) in prior(log)[0].items():
        pulls, reward = sums.get(arm, (0, 0))
        assert alpha + beta == pytest.approx(4)
        assert alpha / 4 == pytest.approx((reward + 4 * overall) / (pulls + 4))
    assert set(prior(log)[0]) == {"a0", "a1", "a2", "a3"}  # the last one was never shown


def test_an_arm_that_never_earned_is_not_impossible(sqlite_db: str) -> None:
    logs.begin(sqlite_db, 2, "u", "uniform")
    logs.serve(sqlite_db, "u", pages=20, rates=(0.0, 0.0))
    make(sqlite_db, prior_from="")
    assert all(alpha > 0 and beta == pytest.approx(10) for alpha, beta in prior(sqlite_db)[0].values())


def test_what_a_prior_was_learned_from_is_known_beside_what_taught_the_belief(log: Any) -> None:
    make(log, prior_from="policy=u", from_log="policy=u")
    record = prior(log)[1]
    assert (record["filter"], record["prior"]["filter"]) == ("policy=u", "policy=u")
    assert (record["prior"]["slots"], record["prior"]["last_id"]) == (60, 60)


def test_an_estimate_on_the_log_of_its_prior_is_in_sample(log: Any) -> None:
    make(log, prior_from="policy=u")
    make(log, "fresh")
    assert "in-sample" in logs.estimate(log, "p", "snips", log="policy=u")["reasons"]
    assert "in-sample" not in logs.estimate(log, "fresh", "snips", log="policy=u")["reasons"]
    logs.serve(log, "u", pages=60, rates=(*RATES, 0.5), start=200, seed=2)
    later = "policy=u,since=2026-02-01T02:00:00Z"
    assert "in-sample" not in logs.estimate(log, "p", "snips", log=later)["reasons"]


def test_a_copy_remembers_what_its_prior_was_learned_from(log: Any) -> None:
    make(log, prior_from="policy=u")
    with closing(logs.at(log, 101)) as store:
        versions.freeze(store, "p")
    assert "in-sample" in logs.estimate(log, "p@2", "snips", log="policy=u")["reasons"]


def test_the_same_again_is_fine_and_another_weight_a_conflict(log: Any) -> None:
    make(log, prior_from="policy=u")
    assert not make(log, prior_from="policy=u", prior_weight=10.0)["created"]
    with pytest.raises(Conflict):
        make(log, prior_from="policy=u", prior_weight=11.0)
    with pytest.raises(Conflict):
        make(log)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"prior_weight": 3.0}, "needs a log"),
        ({"prior_from": "", "prior": "prior.csv"}, "do not go together"),
        ({"prior_from": "", "prior_weight": 0.0}, "--prior-weight is 0"),
        ({"prior_from": "", "prior_weight": 1e10}, "--prior-weight is 1e+10"),
        ({"prior_from": "policy=x"}, "unknown policy 'x'"),
        ({"prior_from": "until=2020-01-01"}, "no mature decision for a prior"),
        ({"prior_from": "", "kind": "ucb", "reward": "open"}, "may leave [0, 1]"),
    ],
)
def test_what_makes_no_prior_is_refused(log: Any, options: dict[str, Any], what: str) -> None:
    with closing(logs.at(log, 100)) as store:
        reward.define(store, reward.Request(name="open", weights="dwell_s=1"))
    with pytest.raises(InputError, match=re.escape(what)):
        make(log, **options)
