"""Inverse propensity, self-normalised and clipped estimates, reckoned by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import sqrt

import numpy as np
import pytest

from rlrec import ope
from rlrec.ope.estimators.weighting import BetaIps, ClippedIps, ExtremeEstimator, crammed_weights
from rlrec.ope.units.estimate import FinishOptions
from rlrec.ope.units.fold import ImpressionFold
from tests.ope import obd
from tests.ope.cases import HAND, TEN, drawn, judged

# weight, reward of the rows of the hand-made log
ROWS = [(Fraction(2), 1), (Fraction(1, 2), 1), (Fraction(3, 2), 0), (Fraction(0), 3)]
UNIT = Fraction(1)


def test_ips_is_the_mean_of_weight_times_reward() -> None:
    (estimate,) = judged(HAND, "ips", interval="normal")
    assert estimate.value == sum(w * r for w, r in ROWS) / 4 == 0.625


def test_snips_is_the_weighted_mean() -> None:
    (estimate,) = judged(HAND, "snips", interval="normal")
    assert estimate.value == sum(w * r for w, r in ROWS) / sum(w for w, _ in ROWS) == 0.625


def test_beta_ips_takes_the_baseline_off_rewards() -> None:
    (estimate,) = judged(TEN, "beta-ips", interval="normal")
    w, r = TEN.weight, TEN.reward
    b = (r * (w**2 - w)).sum() / (w**2 - w).sum()
    assert b == pytest.approx(0.7395019531, abs=1e-10)
    assert (
        estimate.value == pytest.approx(((r - b) * w).mean() + b, rel=1e-14) == pytest.approx(0.5332763672, abs=1e-10)
    )


def test_the_error_of_beta_ips_counts_that_of_the_baseline() -> None:
    """It is that of leaving clusters out, the baseline fitted anew each time, to the order of 1 / clusters."""
    batch, _ = drawn(3, sessions=400)
    fold = ImpressionFold(estimators=ope.parse("beta-ips").impressions, spans_batches=False)
    options = FinishOptions(interval="normal")
    ids = np.unique(batch.cluster)
    left = [fold.finish(fold.row_sums(batch.take(batch.cluster != cluster)), options)[0].value for cluster in ids]
    (estimate,) = fold.finish(fold.row_sums(batch), options)
    jackknife = np.sqrt((len(ids) - 1) * np.var(np.array(left, dtype=np.float64)))
    assert estimate.std_error == pytest.approx(jackknife, rel=0.02)
    fixed, mean = estimate.value or 0.0, BetaIps().terms(batch).mean(axis=0)
    slopes = [(BetaIps().value(mean + step) - BetaIps().value(mean - step)) / 2e-6 for step in 1e-6 * np.eye(5)]
    assert BetaIps().gradient(mean) == pytest.approx(slopes, rel=1e-6)
    assert BetaIps().gradient(mean) @ mean == pytest.approx(0.0, abs=1e-12 * fixed)


@pytest.mark.parametrize("reward", [0.0, 1.0, -2.5])
def test_the_slope_of_a_bound_by_rewards_of_cut_weights_is_that_of_its_value(reward: float) -> None:
    bound, mean = ExtremeEstimator(estimator=ClippedIps(clip=5.0), reward=reward), np.array([0.3, 0.8, 0.7])
    slopes = [(bound.value(mean + step) - bound.value(mean - step)) / 2e-6 for step in 1e-6 * np.eye(3)]
    assert bound.gradient(mean) == pytest.approx(slopes, rel=1e-6)


def test_beta_ips_of_what_served_is_the_logged_mean_and_needs_no_weight_above_1() -> None:
    batch = type(TEN)(reward=TEN.reward, propensity=TEN.propensity, target=TEN.propensity, cluster=TEN.cluster)
    (estimate,) = judged(batch, "beta-ips", interval="normal")
    assert estimate.value == 0.5
    # what the log shows the target hardly shows: no baseline, as ips
    light = type(TEN)(reward=TEN.reward, propensity=TEN.propensity, target=TEN.propensity / 4, cluster=TEN.cluster)
    ips, beta = judged(light, "ips,beta-ips", interval="normal")
    assert (beta.value, beta.std_error) == (ips.value, ips.std_error)


def test_crammed_weights_count_the_changes_of_a_target_in_later_rows() -> None:
    """Three rows in two halves: the second target is judged by the last two of them, which count 3 / 2 times."""
    weights = [np.array([1.0, 2.0, 0.5]), np.array([4.0, 1.0, 1.0])]
    later = [np.array([True, True, True]), np.array([False, True, True])]
    assert crammed_weights(weights, later, [1.0, 1.5]).tolist() == [1.0, 2.0 + 1.5 * -1.0, 0.5 + 1.5 * 0.5]
    batch = replace(TEN, crammed=np.linspace(-1, 3, 10))
    (estimate,) = judged(batch, "cram", interval="normal")
    assert estimate.value == pytest.approx(batch.crammed @ TEN.reward / 10, rel=1e-14)
    assert estimate.ess == pytest.approx(10**2 / (batch.crammed**2).sum())


def test_clipped_ips_cuts_weights_and_bounds_the_bias() -> None:
    (estimate,) = judged(HAND, "clipped-ips:1", interval="normal", reward_range=(0.0, 3.0))
    assert estimate.value == sum(min(w, UNIT) * r for w, r in ROWS) / 4 == 0.375
    assert estimate.bias_bound == sum(max(w - UNIT, Fraction(0)) for w, _ in ROWS) / 4 * 3 == 1.125
    assert estimate.safe_lower == (estimate.lower or 0.0) - 1.125
    assert "clipping-bias" in estimate.reasons


def test_a_clip_that_never_binds_is_ips_without_bias() -> None:
    ips, clipped = judged(HAND, "ips,clipped-ips:2", interval="normal")
    assert (clipped.value, clipped.std_error, clipped.bias_bound) == (ips.value, ips.std_error, 0.0)


def test_without_a_range_of_rewards_the_bias_has_no_bound() -> None:
    (estimate,) = judged(HAND, "clipped-ips:1", interval="normal")
    assert estimate.bias_bound is None
    assert "clipping-bias" in estimate.reasons


def test_error_is_clustered_with_n_minus_1() -> None:
    (estimate,) = judged(HAND, "ips", interval="normal")
    sums = [(2.5, 2), (0.0, 1), (0.0, 1)]  # per cluster: weighted rewards, rows
    influence = [(a - 0.625 * n) / (4 / 3) for a, n in sums]
    assert estimate.std_error == pytest.approx(sqrt(sum(x * x for x in influence) / (3 * 2)), rel=1e-14)
    assert (estimate.n, estimate.clusters) == (4, 3)


def test_rows_without_propensity_are_left_out_and_counted() -> None:
    holed = np.array([0.25, np.nan, 0.5, 0.5])
    batch = type(HAND)(reward=HAND.reward, propensity=holed, target=HAND.target, cluster=HAND.cluster)
    (estimate,) = judged(batch, "ips", interval="normal")
    assert estimate.value == 2 / 3
    assert (estimate.n, estimate.left_out) == (3, 1)
    assert "no-propensity" in estimate.reasons


@pytest.mark.slow
def test_figures_of_the_open_bandit_sample() -> None:
    batch = obd.batch("random_all", obd.thompson_page())
    ips, snips = judged(batch, "ips,snips", interval="normal", reward_range=(0.0, 1.0))
    assert ips.value == pytest.approx(0.0045627409, abs=1e-8)
    assert ips.std_error == pytest.approx(0.0020918784, abs=1e-8)
    assert snips.value == pytest.approx(0.0047860253, abs=1e-8)
    assert ips.ess == pytest.approx(1643.239, abs=1e-3)
    assert ips.max_weight == pytest.approx(19.605877, abs=1e-6)
    assert ips.mean_weight == pytest.approx(0.953347, abs=1e-6)
    assert ips.mean_weight_z == pytest.approx(-2.17, abs=0.01)
    assert ips.cluster_share == pytest.approx(0.43, abs=0.005)
    assert [snips.lower, snips.upper] == pytest.approx([0.0005, 0.0091], abs=5e-5)
