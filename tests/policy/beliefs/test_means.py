"""What a belief says of each arm's mean: posterior, Wilson, or normal bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import betainc, betaincinv

from rlrec.policy.beliefs import means
from rlrec.policy.beliefs.base import Belief
from rlrec.policy.kinds.bandits import EpsilonGreedy
from rlrec.policy.kinds.thompson import Thompson


def belief(pulls: float, reward: float, squares: float | None = None, *, prior: tuple[float, float] = (0, 0)) -> Belief:
    item = np.ones(1)
    return Belief(
        pulls=item * pulls,
        reward_sum=item * reward,
        reward_squares=item * (reward if squares is None else squares),
        alpha=item * prior[0],
        beta=item * prior[1],
        total=pulls,
    )


def bounds(stored: Belief, level: float = 0.95) -> tuple[float, float]:
    lower, upper = means.intervals(Thompson(), stored, level=level)
    return float(lower[0]), float(upper[0])


def test_with_a_prior_the_bounds_are_the_posteriors() -> None:
    assert bounds(belief(1, 1, prior=(1, 1))) == pytest.approx((0.025**0.5, 0.975**0.5), abs=1e-12)  # Beta(2, 1)
    lower, upper = bounds(belief(100, 9, prior=(1, 1)), level=0.8)
    assert betainc(10, 92, [lower, upper]) == pytest.approx([0.1, 0.9], abs=1e-12)


@pytest.mark.parametrize("tail", [0.1, 0.025, 0.0005])
def test_beta_bounds_are_quantiles_to_the_last_digits(tail: float) -> None:
    alpha, beta = 10 ** np.random.default_rng(7).uniform(-1, 7, (2, 300))
    lower, upper = means.beta_bounds(alpha, beta, tail)
    assert lower == pytest.approx(betaincinv(alpha, beta, tail), rel=5e-12)
    assert upper == pytest.approx(betaincinv(alpha, beta, 1 - tail), rel=5e-12)


def test_equal_arms_have_equal_bounds_whatever_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    alpha, beta = np.array([[1.0, 3.0, 1.0], [2.0, 3.0, 1.0]]), np.array([[1.0, 9.0, 1.0], [5.0, 8.0, 1.0]])
    expected = betaincinv(alpha, beta, np.array([0.05, 0.95])[:, None, None])
    for pairs in (10_000, 2, 1):
        monkeypatch.setattr(means, "MAX_PAIRS", pairs)
        assert np.stack(means.beta_bounds(alpha, beta, 0.05)) == pytest.approx(expected, rel=1e-11)
    assert [len(bounds) for bounds in means.beta_bounds(alpha[:0, 0], beta[:0, 0], 0.05)] == [0, 0]


def test_without_a_prior_wilson_bounds_a_share() -> None:
    for p in bounds(belief(10, 8)):  # where the test of a share would just reject 0.8
        assert abs(0.8 - p) == pytest.approx(1.959963984540054 * (p * (1 - p) / 10) ** 0.5, abs=1e-12)
    assert bounds(belief(1, 0))[0] == pytest.approx(0, abs=1e-12)
    assert bounds(belief(1, 1))[1] == pytest.approx(1, abs=1e-12)


def test_rewards_beyond_one_have_normal_bounds() -> None:
    rewards = np.array([3.0, 5.0, 7.0, 1.0])
    half = 1.959963984540054 * rewards.std(ddof=1) / 2
    assert bounds(belief(4, 16, (rewards**2).sum())) == pytest.approx((4 - half, 4 + half), abs=1e-12)


def test_what_nothing_is_known_of_has_no_bounds() -> None:
    assert np.isnan(bounds(belief(0, 0))).all()
    assert np.isnan(bounds(belief(1, 5, 25))).all()  # one pull does not tell its spread


def test_a_mean_takes_the_prior_in() -> None:
    stored = belief(8, 1, prior=(1, 1))
    assert (stored.mean()[0], stored.weight[0]) == (0.2, 10)
    assert np.isnan(belief(0, 0).mean(default=np.nan)).all()


def test_by_a_curve_an_arm_without_a_click_may_be_worth_nothing() -> None:
    curved = Thompson(position="home@1", examination=(1.0, 0.5))
    stored = replace(belief(5, 0, prior=(1, 1)), extra=np.array([[5.0, 0.0]]))
    clicked = replace(belief(5, 1, prior=(1, 1)), extra=np.array([[4.0, 0.0]]))
    (lower,), (upper,) = means.intervals(curved, stored)
    assert (lower, upper) == (0.0, pytest.approx(bounds(stored)[1]))
    assert means.intervals(curved, clicked)[0][0] == pytest.approx(bounds(clicked)[0])


def test_rewards_beyond_1_have_no_beta_interval() -> None:
    """Four rewards of 4 to 6, whose mean no interval inside [0, 1] holds."""
    lower, upper = bounds(belief(4, 20, 102, prior=(1, 1)))
    assert 1 < lower < 5 < upper


def test_only_kinds_that_take_rewards_for_probabilities_have_means_within_them() -> None:
    """Under a curve a reward of 10 at examination .5 is one of 20 a pull."""
    stored = replace(belief(0.5, 10, 100, prior=(1, 1)), extra=np.array([[0.0, -9.0]]))
    greedy = EpsilonGreedy(position="home@1", examination=(1.0, 0.5))
    assert greedy.index(stored) == pytest.approx(11 / 2.5)
    assert Thompson(position="home@1", examination=(1.0, 0.5)).mean(stored) <= 1


def test_rounding_leaves_the_bounds_of_a_rate_in_its_range() -> None:
    pulls = np.arange(1.0, 400.0)
    for share in (0.0, 1.0):
        earned, none = share * pulls, np.zeros_like(pulls)
        stored = Belief(pulls=pulls, reward_sum=earned, reward_squares=earned, alpha=none, beta=none, total=1.0)
        lower, upper = means.intervals(EpsilonGreedy(), stored)
        assert (lower.min() >= 0, upper.max() <= 1) == (True, True)
