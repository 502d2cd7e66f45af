"""Pages that keep up with a belief: after any walk of changes the same as computed anew, and as an independent path."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.arrays import Array
from rlrec.policy.scores.families.beta import Beta
from rlrec.policy.scores.families.gaussian import Gaussian
from rlrec.policy.scores.families.gumbel import Gumbel
from rlrec.policy.scores.families.point import Point
from rlrec.policy.scores.scores import Scores
from rlrec.policy.slates.slate import marginals, p_first
from rlrec.policy.slates.slate_draws import SlateSampler
from tests.policy import reference

Generator = np.random.Generator


def renew(pages: SlateSampler, scores: Scores) -> SlateSampler:
    return SlateSampler(scores, size=pages._size, floor=pages._floor, earlier_sampler=pages)


def cold(rng: Generator, arms: int) -> tuple[Array, Array]:
    return np.ones(arms), np.ones(arms)


def broad(rng: Generator, arms: int) -> tuple[Array, Array]:
    parameters: Array = 10.0 ** rng.uniform(-1, rng.uniform(1, 6), (2, arms))
    return parameters[0], parameters[1]


def clicks(rng: Generator, arms: int) -> tuple[Array, Array]:
    pulls: Array = np.floor(10.0 ** rng.uniform(0, rng.uniform(1, 5), arms))
    hits = rng.binomial(pulls.astype(np.int64), rng.uniform(0.01, 0.1, arms)).astype(np.float64)
    return 1.0 + hits, 1.0 + pulls - hits


STARTS = {"cold": cold, "wide": broad, "clicks": clicks}


def pulled(rng: Generator, alpha: Array, beta: Array, *, most: float) -> tuple[Array, Array]:
    """The same posteriors after 1 to 10^most pulls of 1 to 10 arms."""
    alpha, beta = alpha.copy(), beta.copy()
    arms = rng.choice(len(alpha), rng.integers(1, min(10, len(alpha)) + 1), replace=False)
    pulls: Array = np.floor(10.0 ** rng.uniform(0, most, len(arms)))
    hits = rng.binomial(pulls.astype(np.int64), rng.uniform(0.01, 0.3, len(arms)))
    alpha[arms] += hits
    beta[arms] += pulls - hits
    return alpha, beta


@pytest.mark.slow
@pytest.mark.parametrize("most", [0.0, 3.0])
@pytest.mark.parametrize("arms", [2, 10, 40, 1000])
@pytest.mark.parametrize("start", STARTS)
def test_a_walk_of_small_changes_equals_a_fresh_computation(start: str, arms: int, most: float) -> None:
    rng = np.random.default_rng(arms)
    alpha, beta = STARTS[start](rng, arms)
    pages = SlateSampler(Beta(alpha, beta), size=1, floor=0.0)
    for _ in range(8 if arms < 1000 else 4):
        alpha, beta = pulled(rng, alpha, beta, most=most)
        pages = renew(pages, Beta(alpha, beta))
        result, fresh = pages.p_first, p_first(Beta(alpha, beta), floor=0.0)
        assert result == pytest.approx(fresh, abs=1e-12)
        assert result[fresh > 1e-6] == pytest.approx(fresh[fresh > 1e-6], rel=1e-8)
        assert result.sum() == pytest.approx(1, abs=1e-11)


@pytest.mark.slow
def test_a_long_walk_ends_where_an_independent_path_does() -> None:
    rng = np.random.default_rng(1)
    alpha, beta = clicks(rng, 12)
    pages = SlateSampler(Beta(alpha, beta), size=1, floor=0.0)
    for step in range(500):
        alpha, beta = pulled(rng, alpha, beta, most=1.0)
        pages = renew(pages, Beta(alpha, beta))
        if step % 250 == 249:
            assert pages.p_first == pytest.approx(reference.beta_first(alpha, beta), abs=1e-11)


def test_few_pulls_leave_the_nodes_in_place() -> None:
    rng = np.random.default_rng(2)
    alpha, beta = clicks(rng, 100)
    pages, retained = SlateSampler(Beta(alpha, beta), size=1, floor=0.0), 0
    for _ in range(100):
        _ = pages.p_first
        nodes = pages._order.tabulation.table  # type: ignore[attr-defined]
        alpha, beta = pulled(rng, alpha, beta, most=0.0)
        pages = renew(pages, Beta(alpha, beta))
        retained += pages._order.tabulation.table is nodes  # type: ignore[attr-defined]
    assert retained >= 90


def test_an_arm_that_could_not_win_comes_back() -> None:
    alpha, beta = np.array([9e4, 9e4, 1e3, 2e3]), np.array([1e4, 1e4, 9e4, 9e4])
    pages = SlateSampler(Beta(alpha, beta), size=1, floor=0.0)
    assert pages.p_first[2] == 0
    alpha = np.array([9e4, 9e4, 8.1e5, 2e3])
    assert renew(pages, Beta(alpha, beta)).p_first == pytest.approx(reference.beta_first(alpha, beta), abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.3, 3.0])
def test_arms_that_gather_stay_exact(weight: float) -> None:
    """Where many come to compete, the chance of being the best turns steep in panels that were broad enough before."""
    rng = np.random.default_rng(5)
    pulls: Array = 10.0 ** rng.uniform(0, 3, 300)
    alpha, beta = 1 + pulls * rng.uniform(0.01, 0.06, 300), 1 + pulls
    pages = SlateSampler(Beta(alpha, beta), size=1, floor=0.0)
    for start in range(0, 300, 6):
        alpha, beta = alpha.copy(), beta.copy()
        alpha[start : start + 6] = 50 * weight + rng.uniform(0, 1e-3, 6)
        beta[start : start + 6] = 950 * weight
        pages = renew(pages, Beta(alpha, beta))
        fresh = p_first(Beta(alpha, beta), floor=0.0)
        assert pages.p_first == pytest.approx(fresh, rel=1e-8, abs=1e-12)


def test_equal_arms_part_and_meet_again() -> None:
    ones = np.ones(50)
    pages = SlateSampler(Beta(ones, ones), size=1, floor=0.0)
    for alpha in (np.append(ones[1:], 2.0), np.append(ones[2:], [2.0, 2.0]), ones):
        pages = renew(pages, Beta(alpha, ones))
        assert pages.p_first == pytest.approx(p_first(Beta(alpha, ones), floor=0.0), rel=1e-10)


def test_pages_stay_right_after_they_were_changed() -> None:
    rng = np.random.default_rng(3)
    alpha, beta = clicks(rng, 20)
    for early in (False, True):
        pages = SlateSampler(Beta(alpha, beta), size=2, floor=0.1)
        if early:
            _ = pages.p_first
        _ = renew(pages, Beta(*pulled(rng, alpha, beta, most=2.0))).p_first
        assert pages.p_first == pytest.approx(p_first(Beta(alpha, beta), floor=0.1), abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 8])
def test_longer_pages_keep_up_too(size: int) -> None:
    rng = np.random.default_rng(size)
    alpha, beta = clicks(rng, 30)
    seeds, decisions = np.full(50, 7, np.uint64), np.arange(50)
    pages = SlateSampler(Beta(alpha, beta), size=size, floor=0.05)
    for _ in range(12):
        alpha, beta = pulled(rng, alpha, beta, most=1.0)
        pages = renew(pages, Beta(alpha, beta))
        result = pages.draw(seeds=seeds, decisions=decisions)
        fresh = SlateSampler(Beta(alpha, beta), size=size, floor=0.05).draw(seeds=seeds, decisions=decisions)
        assert np.array_equal(result.slates, fresh.slates)
        assert result.propensity == pytest.approx(fresh.propensity, rel=1e-8, abs=1e-12)
        assert result.marginal == pytest.approx(fresh.marginal, rel=1e-8, abs=1e-12)
        assert result.minimum == pytest.approx(fresh.minimum, rel=1e-6, abs=1e-12)


def test_normal_scores_keep_up_while_the_best_mean_moves() -> None:
    rng = np.random.default_rng(4)
    mean, sd = rng.normal(1e3, 1, 40), rng.uniform(0.1, 1, 40)
    pages = SlateSampler(Gaussian(mean, sd), size=1, floor=0.0)
    for step in range(60):
        mean, sd, arms = mean.copy(), sd.copy(), rng.choice(40, 5, replace=False)
        mean[arms] += rng.normal(0, 0.2, 5) + 500 * (step == 30)
        sd[arms] *= rng.uniform(0.8, 1.0, 5)
        pages = renew(pages, Gaussian(mean, sd))
        assert pages.p_first == pytest.approx(p_first(Gaussian(mean, sd), floor=0.0), abs=1e-12)


@pytest.mark.parametrize(
    "scores",
    [
        Point(np.array([1.0, 2.0, 0.0, 2.0])),
        Gumbel(np.array([1.0, 2.0, 0.0, -np.inf])),
        Gaussian(np.array([1.0, 2.0, 0.0, 2.0]), np.ones(4)),
        Beta(np.array([1.0, 2.0, 3.0]), np.ones(3)),
    ],
)
def test_scores_of_another_family_or_of_more_arms_are_computed_anew(scores: Scores) -> None:
    pages = SlateSampler(Beta(np.ones(4), np.ones(4)), size=2, floor=0.1)
    _ = pages.p_first
    for other in (renew(pages, scores), renew(SlateSampler(scores, size=2, floor=0.1), scores)):
        assert other.p_first == pytest.approx(marginals(scores, size=2, floor=0.1)[0], abs=1e-12)
