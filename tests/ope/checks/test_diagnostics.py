"""Verdicts, and the figures they are made from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rlrec.ope.checks.diagnostics import N_LARGEST, k_hat, weights
from rlrec.ope.checks.reasons import REASONS
from rlrec.ope.checks.verdicts import Diagnosis, decide_verdict, explain_reasons
from rlrec.ope.sums.base import LogBatch
from tests.ope import obd
from tests.ope.cases import HAND, drawn, judged

GOOD = Diagnosis(
    uses_weights=True,
    n=10_000,
    clusters=4000,
    ess=2000.0,
    nonzero=300,
    reward_share=0.05,
    k_hat=None,
    unsupported=0.0,
    cluster_share=0.02,
    mean_weight_z=0.5,
)


def test_a_sound_estimate_is_ok_without_reasons() -> None:
    assert decide_verdict(GOOD) == ("ok", ())


@pytest.mark.parametrize(
    ("changed", "judged", "reason"),
    [
        ({"ess": 49.9}, "insufficient", "low-ess"),
        ({"ess": None}, "insufficient", "low-ess"),
        ({"nonzero": 4}, "insufficient", "few-rewards"),
        ({"reward_share": 0.00099}, "insufficient", "few-rewards"),
        ({"k_hat": 0.71}, "insufficient", "heavy-tail"),
        ({"unsupported": 0.011}, "insufficient", "unsupported"),
        ({"mean_weight_upper": 0.98}, "insufficient", "mean-weight"),
        ({"has_short_horizon": True}, "insufficient", "short-horizon"),
        ({"n": 0, "ess": None, "nonzero": 0}, "insufficient", "no-rows"),
        ({"ess": 999.0}, "weak", "low-ess"),
        ({"clusters": 40_001}, "weak", "low-ess"),
        ({"reward_share": 0.0149}, "weak", "few-rewards"),
        ({"cluster_share": 0.21}, "weak", "one-cluster"),
        ({"mean_weight_z": -3.1}, "weak", "mean-weight"),
        ({"mean_weight_z": np.inf}, "weak", "mean-weight"),
    ],
)
def test_each_limit_has_its_verdict_and_reason(changed: dict[str, float], judged: str, reason: str) -> None:
    word, reasons = decide_verdict(replace(GOOD, **changed))
    assert word == judged
    assert reason in reasons


@pytest.mark.parametrize(
    "changed",
    [
        {"ess": 1000.0},
        {"nonzero": 5},
        {"k_hat": 0.7},
        {"unsupported": 0.01},
        {"unsupported": None},
        {"reward_share": 0.015},
        {"cluster_share": 0.2},
        {"mean_weight_z": 3.0},
        {"clusters": 40_000},
    ],
)
def test_a_limit_itself_is_allowed(changed: dict[str, float]) -> None:
    assert decide_verdict(replace(GOOD, **changed)) == ("ok", ())


def test_what_the_caller_knows_is_added() -> None:
    assert decide_verdict(GOOD, extra_reasons=("in-sample",)) == ("weak", ("in-sample",))
    assert decide_verdict(GOOD, extra_reasons=("logging-states", "no-propensity")) == (
        "ok",
        ("no-propensity", "logging-states"),
    )
    assert decide_verdict(replace(GOOD, ess=3.0), extra_reasons=("in-sample",)) == (
        "insufficient",
        ("low-ess", "few-rewards", "in-sample"),
    )


def test_no_reason_is_explained_by_another() -> None:
    """A reader takes a reason that is named for one that was found."""
    named = {name: [other for other in REASONS if f"`{other}`" in reason.text] for name, reason in REASONS.items()}
    assert not any(named.values()), named


def test_reasons_are_stable_words() -> None:
    assert all(word == word.lower() and word.replace("-", "").isalpha() for word in REASONS)


@pytest.mark.parametrize(("shape", "expected"), [(0.2, 0.227), (0.5, 0.503), (0.9, 0.858)])
def test_k_hat_finds_the_shape_of_a_pareto_tail(shape: float, expected: float) -> None:
    runs = [(np.random.default_rng(seed).random(10_000)) ** -shape for seed in range(40)]
    estimate = [k_hat(weight, len(weight)) or 0.0 for weight in runs]
    assert np.mean(estimate) == pytest.approx(shape, abs=0.04)
    assert abs(np.mean(estimate) - expected) < 2.5 * np.std(estimate)


def test_k_hat_needs_fifty_distinct_values() -> None:
    generator = np.random.default_rng(0)
    assert k_hat(generator.choice(np.arange(1, 40.0), 10_000), 10_000) is None
    assert k_hat(generator.random(100), 100) is None


def test_a_provable_bound_makes_the_tail_irrelevant() -> None:
    tail = np.random.default_rng(0).random(5000) ** -1.2
    weight = tail / tail.max()
    batch = LogBatch(
        reward=np.ones(5000),
        propensity=np.full(5000, weight.mean()),
        target=weight,
        cluster=np.arange(5000),
        largest=np.full(5000, 1 / weight.mean()),
    )
    unbounded = replace(batch, largest=np.where(np.arange(5000) == 7, np.nan, 1 / weight.mean()))
    assert (weights(unbounded).k_hat or 0) > 0.7
    assert weights(batch).k_hat is None


def test_ess_is_over_clusters() -> None:
    (estimate,) = judged(HAND, "ips", interval="normal")
    assert estimate.ess == pytest.approx(4.0**2 / (2.5**2 + 1.5**2))


def test_top_percent_is_rounded_up() -> None:
    reward = np.arange(1.0, 151.0)
    flat = np.full(150, 0.5)
    estimate = weights(LogBatch(reward=reward, propensity=flat, target=flat, cluster=np.arange(150)))
    assert estimate.top1_share == pytest.approx((150 + 149) / reward.sum())


def test_the_largest_weights_add_up() -> None:
    flat, cluster = np.full(N_LARGEST, 0.5), np.arange(N_LARGEST)
    low, high = (
        weights(LogBatch(reward=np.full(N_LARGEST, reward), propensity=flat, target=flat, cluster=cluster))
        for reward in (1.0, 2.0)
    )
    both = low + high
    assert len(both.top_rewards) == N_LARGEST
    assert both.top1_share == pytest.approx(2000 * 2 / (N_LARGEST * 3))


def test_unsupported_mass_is_the_mean_of_rows_that_have_it() -> None:
    batch = replace(HAND, unsupported=np.array([0.0, 0.04, np.nan, np.nan]))
    (estimate,) = judged(batch, "ips", interval="normal")
    assert estimate.unsupported == pytest.approx(0.02)
    assert "unsupported" in estimate.reasons
    assert judged(HAND, "ips", interval="normal")[0].unsupported is None


def test_wrong_propensities_show_in_the_mean_weight() -> None:
    batch = drawn(0)[0]
    (estimate,) = judged(replace(batch, propensity=batch.propensity / 2), "ips", interval="normal")
    assert "mean-weight" in estimate.reasons
    doubled = replace(batch, target=np.full(len(batch), 0.4))
    assert "mean-weight" in judged(doubled, "ips", interval="normal")[0].reasons


@pytest.mark.parametrize(("off", "reported"), [(5e-5, False), (5e-4, True)])
def test_a_mean_weight_that_is_nearly_1_is_no_news(off: float, reported: bool) -> None:
    """However many standard errors it is away: a target that is the logger has weights of 1, but for rounding."""
    batch = drawn(0)[0]
    target = batch.propensity * (1 + off + 1e-7 * np.arange(len(batch)) / len(batch))
    (estimate,) = judged(replace(batch, target=target), "ips", interval="normal")
    assert ("mean-weight" in estimate.reasons) is reported


def test_a_default_that_is_not_zero_is_no_news() -> None:
    batch, _ = drawn(0, sessions=2000)
    content = replace(batch, reward=np.ones(len(batch)), default=np.arange(len(batch)) > 10)
    (estimate,) = judged(content, "snips", interval="normal", reward_range=(0.0, 1.0))
    assert estimate.nonzero == len(batch)
    assert (estimate.verdict, estimate.reasons) == ("weak", ("few-rewards", "no-variation"))


@pytest.mark.slow
def test_uniform_from_a_peaked_logger_is_not_called_ok() -> None:
    uniform = np.full((obd.POSITIONS, obd.ARMS), 1 / obd.ARMS)
    for estimate in judged(obd.batch("bts_all", uniform), "ips,snips", reward_range=(0.0, 1.0)):
        assert estimate.verdict != "ok"
        assert estimate.ess == pytest.approx(340, abs=1)
        assert "low-ess" in estimate.reasons
        assert (estimate.lower or 0) < 0.0038 < (estimate.upper or 1)


def test_a_reason_is_explained_by_the_cause_that_occurred() -> None:
    thick: dict[str, Any] = {
        "ess": 79.0,
        "clusters": 300,
        "nonzero": 38,
        "reward_share": 0.1,
        "lower": 0.0,
        "upper": 1.0,
    }
    thick["reasons"] = ["low-ess", "few-rewards"]
    thin = thick | {"ess": 2000.0, "clusters": 90_000, "reasons": ["low-ess"]}
    assert explain_reasons([thick, thin]) == [
        "low-ess: effective sample size 79, below 1,000 (weak); "
        "effective sample size 2,000, below 5 % of the clusters (weak)",
        "few-rewards: 38 non-zero weighted rewards; "
        "ESS x weighted share of rewards that are not the default is 7.9, below 30 (weak)",
    ]
    assert explain_reasons([thick | {"nonzero": 3, "ess": 2.0, "reasons": ["low-ess"]}]) == [
        "low-ess: effective sample size 2, below 50 (insufficient)"
    ]
    dm: dict[str, Any] = {"ess": None, "nonzero": 2, "reward_share": None, "lower": None, "upper": None}
    dm["reasons"] = ["few-rewards", "no-interval"]
    assert explain_reasons([dm])[0] == "few-rewards: 2 non-zero weighted rewards, fewer than 5 (insufficient)"


def test_what_served_is_the_mean_of_logged_rewards_as_often_as_rows_count() -> None:
    some, others = HAND.take(np.arange(2)), HAND.take(np.arange(2, len(HAND)))
    assert (weights(some) + weights(others)).logged_mean == pytest.approx(HAND.reward[HAND.is_usable].mean())
    heavier = weights(some).scale(3.0) + weights(others)
    counted = np.r_[np.repeat(some.reward[some.is_usable], 3), others.reward[others.is_usable]]
    assert heavier.logged_mean == pytest.approx(counted.mean())
    assert weights(HAND.take(np.arange(0))).logged_mean is None
