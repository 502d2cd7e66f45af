"""Exposure of a catalogue: its spread against published figures, rates against closed forms and coverage."""

import numpy as np
import pytest

from rlrec.arrays import Array, Ids
from rlrec.ope.checks.exposure import RateSums, rates, spread


def test_the_spread_of_ten_to_forty() -> None:
    """Gini .25, entropy 1.279854 nats, and the number of equally exposed arms that it stands for."""
    figures = spread(np.array([10.0, 20, 30, 40]))
    assert figures["gini"] == pytest.approx(0.25, abs=1e-12)
    assert figures["entropy"] == pytest.approx(1.2798542258336674, abs=1e-12)
    assert figures["effective_arms"] == pytest.approx(np.exp(1.2798542258336674), abs=1e-12)
    assert figures["coverage"] == 1.0


def test_arms_without_exposure_count() -> None:
    assert spread(np.array([0.0, 0, 0, 8])) == pytest.approx(spread(np.array([8.0, 0, 0, 0])))
    assert spread(np.array([0.0, 0, 0, 8]))["gini"] == pytest.approx(0.75)
    assert spread(np.array([0.0, 0, 0, 8]))["coverage"] == 0.25
    assert spread(np.full(5, 3.0))["gini"] == pytest.approx(0.0, abs=1e-12)


def test_nothing_exposed_has_no_spread() -> None:
    assert spread(np.zeros(3))["gini"] is None


def sums(arm: Ids, cluster: Ids, reward: Array, *, examined: Array | None = None, arms: int) -> RateSums:
    examined = np.ones(len(arm)) if examined is None else examined
    return RateSums.from_slots(arm=arm, cluster=cluster, examination=examined, reward=reward, arms=arms)


def test_sums_of_two_halves_are_those_of_both() -> None:
    rng = np.random.default_rng(1)
    arm, cluster, reward = rng.integers(3, size=200), rng.integers(40, size=200), rng.random(200)
    half = slice(0, 100), slice(100, 200)
    parts = [sums(arm[rows], cluster[rows], reward[rows], arms=3) for rows in half]
    both, added = sums(arm, cluster, reward, arms=3), parts[0] + parts[1]
    np.testing.assert_allclose(added.reward, both.reward, rtol=1e-12)
    np.testing.assert_allclose(added.looks, both.looks, rtol=1e-12)


def test_an_examined_pull_counts_by_its_examination() -> None:
    """60 clicks of 200 slots at examination 1/2: a rate of .6, whose standard error is sqrt(200 x .3 x .7) / 100."""
    arm, examined = np.zeros(200, np.int64), np.full(200, 0.5)
    reward = np.r_[np.ones(60), np.zeros(140)]
    rate, lower, upper = rates(sums(arm, np.arange(200), reward, examined=examined, arms=1), is_bounded=True)
    assert rate[0] == pytest.approx(0.6)
    error = np.sqrt(200 * 0.3 * 0.7) / 100
    assert lower[0] == pytest.approx(0.6 - 1.96 * error, abs=0.03)
    assert upper[0] == pytest.approx(0.6 + 1.96 * error, abs=0.03)


def test_an_arm_without_pulls_has_no_rate() -> None:
    rate, lower, upper = rates(sums(np.array([0]), np.array([1]), np.array([1.0]), arms=2), is_bounded=True)
    assert np.isnan([rate[1], lower[1], upper[1]]).all()


def test_a_doubtful_examination_is_told_by_arm() -> None:
    """Of three pulls at a certain position and one at a doubtful one, a quarter of the doubt is left."""
    doubt = np.array([0.0, 0, 0, 0.8])
    of_arm = RateSums.from_slots(
        arm=np.zeros(4, np.int64), cluster=np.arange(4), examination=np.ones(4), reward=np.ones(4), arms=2, doubt=doubt
    )
    assert of_arm.error.tolist() == [0.2, 0.0]


@pytest.mark.slow
@pytest.mark.parametrize("bounded", [True, False])
def test_intervals_cover_where_users_differ(bounded: bool) -> None:
    """Users of ten slots with click rates of their own: 95 % intervals hold the rate in 1,000 logs. A binomial count
    of a 95 % interval leaves 930..970 once in 300."""
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(1_000):
        user = np.repeat(np.arange(80), 10)
        reward = (rng.random(800) < rng.beta(2, 6, size=80)[user]).astype(float)
        digests = rng.integers(2**62, size=80)[user]
        _, lower, upper = rates(sums(np.zeros(800, np.int64), digests, reward, arms=1), is_bounded=bounded)
        covered += int(lower[0] <= 0.25 <= upper[0])
    assert 925 <= covered <= 985
