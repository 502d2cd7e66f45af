"""Upper confidence bounds by their formulas, and on many beliefs at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest

from rlrec import policy as kinds
from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.policy.beliefs.base import Belief
from rlrec.policy.kinds.bandits import kl_bound
from tests.policy.kinds.test_kinds import belief, reward, served

KINDS = ["ucb", "ucb-tuned", "kl-ucb"]


def index(kind: str, stored: Belief) -> Array:
    result = kinds.make(kind, {}).index(stored, context={})
    assert result is not None
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_an_arm_never_tried_comes_first(kind: str) -> None:
    assert served(kinds.make(kind, {}), belief([9, 0, 0], [9, 0, 0])).tolist() == [0, 0.5, 0.5]


@pytest.mark.parametrize("kind", KINDS)
def test_before_anything_was_drawn_the_prior_is_the_bound(kind: str) -> None:
    assert index(kind, belief([0, 0], [0, 0], prior=(1, 3))) == pytest.approx([0.25, 0.25], abs=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prior_counts_as_rewards_of_one_and_of_none(kind: str) -> None:
    prior = index(kind, belief([10, 4], [2, 1], prior=(1, 3), total=18))
    assert prior == pytest.approx(index(kind, belief([14, 8], [3, 2], total=18)), abs=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_many_beliefs_at_once_are_each_as_alone(kind: str) -> None:
    rng = np.random.default_rng(3)
    pulls = rng.integers(0, 50, (20, 5)).astype(float)
    clicks = rng.binomial(pulls.astype(int), 0.2).astype(float)
    many = replace(
        belief([0], [0]), pulls=pulls, reward_sum=clicks, reward_squares=clicks, alpha=0 * pulls, beta=0 * pulls,
        total=pulls.sum(axis=1, keepdims=True),
    )  # fmt: skip
    alone = [index(kind, belief(list(n), list(s))) for n, s in zip(pulls, clicks, strict=True)]
    assert index(kind, many).tolist() == np.array(alone).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_an_arm_that_is_nearly_forgotten_has_a_finite_bound(kind: str) -> None:
    result = index(kind, belief([5e-324, 20], [5e-324, 4], total=20))
    assert np.isfinite(result).all()
    assert result[0] >= 1


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("changed", [{"clip_low": None, "clip_high": None}, {"clip_high": 2.0}, {"default": -0.5}])
def test_bounds_of_rewards_in_the_unit_interval_take_no_other(kind: str, changed: dict[str, Any]) -> None:
    kinds.make(kind, {}).check(reward())
    with pytest.raises(InputError, match=rf"may leave \[0, 1\], and {kind}"):
        kinds.make(kind, {}).check(reward(**changed))


# -- ucb-tuned --


def test_a_quarter_bounds_the_variance() -> None:
    result = index("ucb-tuned", belief([16, 4, 1], [8, 1, 0]))
    assert result == pytest.approx(np.array([0.5, 0.25, 0]) + np.sqrt(np.log(22) / np.array([16, 4, 1]) / 4), abs=1e-14)


def test_rewards_that_vary_little_leave_less_doubt() -> None:
    stored = replace(belief([4000, 4000], [2000, 2000]), reward_squares=np.array([2000.0, 1000.0]))
    doubt = np.log(8001) / 4000
    least = 0.5 + np.sqrt(doubt * np.sqrt(2 * doubt))
    assert index("ucb-tuned", stored) == pytest.approx([0.5 + np.sqrt(doubt / 4), least], abs=1e-14)


# -- kl-ucb --


def test_an_arm_without_a_click_has_a_closed_form() -> None:
    pulls = np.array([1.0, 1, 7, 1e3, 1e6])
    assert index("kl-ucb", belief([1], [0])) == pytest.approx([0.5], abs=1e-12)
    result = index("kl-ucb", belief(list(pulls), [0] * 5, total=2e6))
    assert result == pytest.approx(-np.expm1(-np.log1p(2e6) / pulls), abs=1e-12)


def test_a_mean_of_one_is_its_own_bound() -> None:
    assert index("kl-ucb", belief([1, 50], [1, 50])).tolist() == [1, 1]


def least_above(mean: float, doubt: float) -> float:
    """Bisection in 30 digits."""
    with mpmath.workdps(30):
        m, low, high = mpmath.mpf(mean), mpmath.mpf(mean), mpmath.mpf(1)
        for _ in range(60):
            q = (low + high) / 2
            inside = m * mpmath.log(m / q) + (1 - m) * mpmath.log((1 - m) / (1 - q)) <= doubt
            low, high = (q, high) if inside else (low, q)
        return float(low)


def test_the_bound_is_where_the_divergence_reaches_its_doubt() -> None:
    rng = np.random.default_rng(8)
    rate = np.r_[rng.random(60), 10 ** rng.uniform(-8, 0, 60), 1 - 10 ** rng.uniform(-8, 0, 60)]
    doubt = 10 ** rng.uniform(-12, 2.5, 180)
    right = [least_above(*pair) for pair in zip(rate.tolist(), doubt.tolist(), strict=True)]
    assert kl_bound(rate, doubt) == pytest.approx(right, abs=1e-9)


@pytest.mark.slow
def test_the_bound_is_tighter_than_pinskers() -> None:
    rng = np.random.default_rng(9)
    rate, doubt = rng.random(500), 10 ** rng.uniform(-20, 300, 500)
    result = kl_bound(rate, doubt)
    assert (result >= rate).all()
    assert (result <= np.minimum(1, rate + np.sqrt(doubt / 2) + 1e-8)).all()
