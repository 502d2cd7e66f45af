"""Means of arms in a log that was written by a learner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlrec.ope.sums import adaptive


def test_an_arm_of_three_rows_by_hand() -> None:
    """Weights 1, 2 and 4 of rewards 1, 0 and 1: 5/7; error sqrt(1 (2/7)^2 + 4 (5/7)^2 + 16 (2/7)^2) / 7."""
    sums = adaptive.terms(np.array([1.0, 0.0, 1.0]), np.array([1, 1 / 4, 1 / 16])).sum(axis=1, keepdims=True)
    mean, lower, upper = adaptive.means(sums)
    error = np.sqrt(4 + 4 * 25 + 16 * 4) / 49
    assert mean == pytest.approx(5 / 7)
    assert (lower[0], upper[0]) == pytest.approx((5 / 7 - 1.959964 * error, 5 / 7 + 1.959964 * error))


def test_equal_propensities_give_the_sample_mean() -> None:
    reward = np.random.default_rng(1).normal(size=50)
    mean, lower, upper = adaptive.means(adaptive.terms(reward, np.full(50, 1e-300)).sum(axis=1, keepdims=True))
    assert mean[0] == pytest.approx(reward.mean())
    assert upper[0] - lower[0] == pytest.approx(2 * 1.959964 * reward.std() / np.sqrt(50))


def test_unknown_figures_are_nan() -> None:
    """No row; rewards that are all alike."""
    equal = adaptive.terms(np.full(9, 0.1), np.linspace(0.1, 0.9, 9)).sum(axis=1)
    mean, lower, upper = adaptive.means(np.column_stack([np.zeros(5), equal]))
    assert np.isnan(mean[0])
    assert mean[1] == pytest.approx(0.1)
    assert np.isnan([*lower, *upper]).all()


def best(wins: Any, pulls: Any) -> Any:
    """About the probability that each arm is the best one under Beta(1, 1) priors, (runs, m): what is drawn from, and
    logged, so that it need not be exact."""
    x = ((np.arange(300) + 0.5) / 300) ** 2
    log_pdf = wins[..., None] * np.log(x) + (pulls - wins)[..., None] * np.log1p(-x)
    pdf = np.exp(log_pdf - log_pdf.max(axis=-1, keepdims=True)) * np.gradient(x)
    pdf /= pdf.sum(axis=-1, keepdims=True)
    log_cdf = np.log(np.maximum(pdf.cumsum(axis=-1) - pdf / 2, 1e-300))
    chance = (pdf * np.exp(log_cdf.sum(axis=1, keepdims=True) - log_cdf)).sum(axis=-1)
    return chance / chance.sum(axis=1, keepdims=True)


@pytest.mark.slow
def test_weighing_halves_the_bias_that_giving_up_brings() -> None:
    """Five equal arms at .05, 300 runs of 1,000 steps of Thompson sampling. Sample means: .043 on average, .021 for the
    least pulled arm; weighed: .046 and .025. Both differences are beyond 10 standard errors."""
    rng, run = np.random.default_rng(5), np.arange(300)
    pulls, wins, sums = np.zeros((300, 5)), np.zeros((300, 5)), np.zeros((adaptive.N_TERMS, 300, 5))
    chance = best(wins, pulls)
    for step in range(1_000):
        chance = chance if step % 20 else best(wins, pulls)
        arm = np.minimum((chance.cumsum(axis=1) < rng.random((300, 1))).sum(axis=1), 4)
        reward = (rng.random(300) < 0.05) * 1.0
        pulls[run, arm] += 1
        wins[run, arm] += reward
        sums[:, run, arm] += adaptive.terms(reward, chance[run, arm])
    plain, weighed = wins / pulls, adaptive.means(sums.reshape(adaptive.N_TERMS, -1))[0].reshape(300, 5)
    least = run, pulls.argmin(axis=1)
    assert 0.04 < plain.mean() < 0.044 < 0.045 < weighed.mean() < 0.05
    assert 0.018 < plain[least].mean() < weighed[least].mean() - 0.002
