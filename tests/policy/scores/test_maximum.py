"""Probability of being the best: exact cases, an independent path through scipy, and the promises of accuracy."""

from __future__ import annotations

import math
import time

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest

from rlrec.arrays import Array
from rlrec.policy.scores import maximum
from rlrec.policy.scores.families.beta import Beta, BetaLogit, stirling_error
from rlrec.policy.scores.families.gaussian import Gaussian
from rlrec.policy.scores.families.gumbel import Gumbel, continuous_order
from rlrec.policy.scores.table import tabulate
from rlrec.policy.slates.slate import marginals, p_first
from tests.policy import reference


def click_posteriors(arms: int, *, low: float, high: float, seed: int) -> Beta:
    """Beta posteriors of arms with a click rate of 5 % after 10^low to 10^high pulls."""
    rng = np.random.default_rng(seed)
    pulls: Array = np.floor(10.0 ** rng.uniform(low, high, arms))
    clicks: Array = rng.binomial(pulls.astype(np.int64), 0.05).astype(np.float64)
    return Beta(1.0 + clicks, 1.0 + pulls - clicks)


def broad_posteriors(arms: int, *, high: float, seed: int) -> Beta:
    """Both parameters log-uniform from 0.1 to 10^high."""
    rng = np.random.default_rng(seed)
    parameters: Array = 10.0 ** rng.uniform(-1, high, (2, arms))
    return Beta(parameters[0], parameters[1])


EXTREME = Beta(np.array([0.1, 0.1, 0.1, 1e7, 5.0]), np.array([0.1, 0.1, 1e7, 0.1, 0.1]))
MIXES = {
    "wide to 1e4": broad_posteriors(1000, high=4, seed=1),
    "wide to 1e7": broad_posteriors(1000, high=7, seed=2),
    "few clicks": click_posteriors(1000, low=1, high=3, seed=3),
    "many clicks": click_posteriors(1000, low=3, high=7, seed=4),
    "near ties": Beta(np.linspace(4.99e5, 5.01e5, 1000), np.linspace(9.501e6, 9.499e6, 1000)),
    "equal but one": Beta(np.append(np.ones(999), 2.0), np.ones(1000)),
    "extreme": EXTREME,
}


def exact_two(a: int, b: int, c: int, d: int) -> float:
    """P(Beta(c, d) > Beta(a, b)) for whole numbers, to 40 digits."""
    with mpmath.workdps(40):
        terms = (mpmath.beta(a + i, b + d) / ((d + i) * mpmath.beta(1 + i, d) * mpmath.beta(a, b)) for i in range(c))
        return float(mpmath.fsum(terms))


def refined(scores: Beta, *, refinement: int) -> Array:
    return reference.refined_order(scores, positions=1, refinement=refinement).p_best()


def test_second_of_two_small_posteriors_is_best_with_29_33rds() -> None:
    chance = p_first(Beta(np.array([3.0, 4.0]), np.array([5.0, 2.0])), floor=0.0)
    assert chance[1] == pytest.approx(29 / 33, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("case", [(3, 5, 4, 2), (100, 900, 120, 900), (2000, 98000, 2100, 98000), (1, 1, 1, 900)])
def test_two_posteriors_equal_the_closed_form(case: tuple[int, int, int, int]) -> None:
    a, b, c, d = case
    chance = p_first(Beta(np.array([a, c], float), np.array([b, d], float)), floor=0.0)
    assert chance[1] == pytest.approx(exact_two(a, b, c, d), abs=1e-13)


def test_known_digits_of_two_posteriors() -> None:
    chance = p_first(Beta(np.array([100.0, 120.0]), np.array([900.0, 900.0])), floor=0.0)
    assert chance[1] == pytest.approx(0.8991028701938407, abs=1e-13)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("high", [4, 7])
def test_equal_to_an_independent_path_through_scipy(high: int, seed: int) -> None:
    scores = broad_posteriors(6, high=high, seed=100 + seed)
    assert p_first(scores, floor=0.0) == pytest.approx(reference.beta_first(scores.alpha, scores.beta), abs=1e-11)


@pytest.mark.parametrize("pulls", [(1, 3), (3, 5), (5, 7)])
def test_click_rates_equal_the_independent_path(pulls: tuple[int, int]) -> None:
    scores = click_posteriors(8, low=pulls[0], high=pulls[1], seed=9)
    assert p_first(scores, floor=0.0) == pytest.approx(reference.beta_first(scores.alpha, scores.beta), abs=1e-11)


def test_parameters_from_a_tenth_to_ten_million_on_one_page() -> None:
    expected = reference.beta_first(EXTREME.alpha, EXTREME.beta)
    assert p_first(EXTREME, floor=0.0) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("mix", MIXES)
def test_probabilities_sum_to_one(mix: str) -> None:
    assert p_first(MIXES[mix], floor=0.0).sum() == pytest.approx(1, abs=1e-11)


@pytest.mark.parametrize("mix", MIXES)
def test_more_nodes_move_nothing(mix: str) -> None:
    once, twice = refined(MIXES[mix], refinement=1), refined(MIXES[mix], refinement=2)
    assert once == pytest.approx(twice, abs=1e-11)
    assert once[twice > 1e-6] == pytest.approx(twice[twice > 1e-6], rel=1e-9)


def test_ten_thousand_new_arms_share_evenly_and_at_once() -> None:
    start = time.process_time()
    chance = p_first(Beta(np.ones(10_000), np.ones(10_000)), floor=0.0)
    assert time.process_time() - start < 2
    assert chance == pytest.approx(1e-4, rel=1e-10)


def test_ten_thousand_posteriors_are_exact_and_fast() -> None:
    scores = click_posteriors(10_000, low=1, high=4, seed=5)
    start = time.process_time()
    once = p_first(scores, floor=0.0)
    assert time.process_time() - start < 5
    twice = refined(scores, refinement=2)
    assert once.sum() == pytest.approx(1, abs=1e-9)
    assert once == pytest.approx(twice, abs=1e-9)
    assert once[twice > 1e-6] == pytest.approx(twice[twice > 1e-6], rel=1e-6)


def test_parameters_near_zero_and_beyond_ten_million_stay_finite() -> None:
    scores = Beta(np.array([1e-3, 0.05, 1e12, 2.0]), np.array([1e-3, 2.0, 1e12, 1e-3]))
    chance = p_first(scores, floor=0.0)
    assert chance.sum() == pytest.approx(1, abs=1e-9)


def test_order_of_arms_does_not_matter() -> None:
    scores = broad_posteriors(40, high=5, seed=6)
    shuffle = np.random.default_rng(7).permutation(40)
    shuffled = p_first(Beta(scores.alpha[shuffle], scores.beta[shuffle]), floor=0.0)
    assert shuffled == pytest.approx(p_first(scores, floor=0.0)[shuffle], abs=1e-14)


@pytest.mark.parametrize("gap", [0.0, 0.3, 5.0])
def test_two_normals_equal_the_normal_integral(gap: float) -> None:
    chance = p_first(Gaussian(np.array([0.0, gap]), np.array([1.0, 0.2])), floor=0.0)
    assert chance[1] == pytest.approx(0.5 * math.erfc(-gap / math.sqrt(2 * 1.04)), abs=1e-14)


def test_normal_means_may_be_shifted_and_scaled() -> None:
    rng = np.random.default_rng(8)
    mean, sd = rng.normal(size=20), rng.uniform(0.1, 2, 20)
    scaled = p_first(Gaussian(1e3 * mean - 4e3, 1e3 * sd), floor=0.0)
    assert scaled == pytest.approx(p_first(Gaussian(mean, sd), floor=0.0), abs=1e-12)


def test_a_normal_narrower_than_rounding_ends() -> None:
    chance = p_first(Gaussian(np.array([1e8, 1e8, 1e8 - 1]), np.array([1e-12, 1e-12, 1.0])), floor=0.0)
    assert chance[0] == pytest.approx(chance[1], abs=1e-9)
    assert chance.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("arms", "size"), [(3, 3), (100, 100), (10_000, 10)])
def test_ranks_of_equal_arms_are_even(arms: int, size: int) -> None:
    order = Gaussian(np.zeros(arms), np.ones(arms)).order(size)
    assert order.ranks(size) == pytest.approx(1 / arms, rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("mix", ["few clicks", "wide to 1e7", "extreme", "near ties"])
def test_more_nodes_move_no_rank(mix: str) -> None:
    size = min(10, len(MIXES[mix]))
    if mix == "extreme":
        size = 3
    once, twice = (reference.refined_order(MIXES[mix], positions=size, refinement=r).ranks(size) for r in (1, 2))
    assert once == pytest.approx(twice, abs=1e-11)
    assert once[twice > 1e-6] == pytest.approx(twice[twice > 1e-6], rel=1e-8)


def test_first_rank_is_being_best() -> None:
    order = MIXES["few clicks"].order(4)
    assert order.ranks(4)[0] == pytest.approx(order.p_best(), abs=1e-14)


def test_ranks_count_equal_arms_one_by_one() -> None:
    """The same posteriors with and without collapsing them into one row."""
    scores = Beta(np.array([2.0, 2.0, 2.0, 5.0, 1.0, 1.0]), np.array([3.0, 3.0, 3.0, 2.0, 1.0, 1.0]))
    collapsed = scores.order(4)
    table, row = tabulate(BetaLogit(scores.alpha, scores.beta), np.ones(6), ranks=4)
    assert collapsed.ranks(4) == pytest.approx(maximum.ranks(table, 4)[:, row], abs=1e-13)


@pytest.mark.parametrize("spread", [0.1, 3.0, 100.0])
def test_gumbel_first_rank_is_the_softmax(spread: float) -> None:
    logits = np.random.default_rng(10).normal(size=30) * spread
    scores = Gumbel(logits)
    assert marginals(scores, size=5, floor=0.0)[0] == pytest.approx(p_first(scores, floor=0.0), abs=1e-12)


def test_stirling_error_equals_the_log_gamma_function() -> None:
    a = np.array([1e-3, 0.1, 0.5, 1, 7.3, 15.99, 16, 300, 1e7])
    with mpmath.workdps(40):
        exact = [
            mpmath.loggamma(x) - (x - 0.5) * mpmath.log(x) + x - mpmath.log(2 * mpmath.pi) / 2
            for x in map(mpmath.mpf, a)
        ]
    assert stirling_error(a) == pytest.approx(np.array(exact, float), rel=1e-13, abs=3e-15)


@pytest.mark.parametrize(("size", "spread"), [(2, 8.0), (3, 0.3), (12, 2.0)])
def test_ranks_of_many_gumbel_scores_are_those_of_their_table(size: int, spread: float) -> None:
    logits = np.random.default_rng(size).normal(0, spread, 1000)
    ranks = maximum.ranks_of_arrivals(logits, size)
    assert ranks == pytest.approx(continuous_order(logits, positions=size).ranks(size), abs=1e-12)
    assert ranks.sum(axis=1) == pytest.approx(np.ones(size), abs=1e-13)
    served = Gumbel(np.append(logits, -np.inf)).order(size).ranks(size)
    assert served[:, :-1] == pytest.approx(ranks, abs=1e-15)
    assert not served[:, -1].any()
