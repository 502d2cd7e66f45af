"""Draws: pages by the ten thousand against the logged probabilities, determinism, and speed."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from scipy import special

from rlrec.arrays import Array
from rlrec.policy.scores.families.beta import Beta
from rlrec.policy.scores.families.gaussian import Gaussian
from rlrec.policy.scores.families.gumbel import Gumbel
from rlrec.policy.scores.families.point import Point
from rlrec.policy.scores.sampler import uniforms
from rlrec.policy.scores.scores import Scores
from rlrec.policy.scores.sweep import quantiles
from rlrec.policy.slates.slate import conditionals, p_first
from rlrec.policy.slates.slate_draws import draw

FAMILIES: dict[str, Scores] = {
    "point": Point(np.array([1.0, 2.0, 2.0, 1.0, 1.0, 0.0])),
    "beta": Beta(np.array([1.0, 2, 2, 20, 0.5, 60]), np.array([1.0, 2, 2, 30, 0.5, 60])),
    "gaussian": Gaussian(np.array([0.0, 0.3, -0.5, 0.5, 0.4, 0.0]), np.array([1.0, 0.4, 2.0, 0.3, 0.5, 1.0])),
    "gumbel": Gumbel(np.array([0.0, 1.0, -1.0, 0.5, 0.5, 2.0])),
}
ALARM = 1e-6  # of a false alarm, in each test of frequencies
DRAWS = 40_000  # the quantiles behind them are compared exactly below


def assert_frequencies(counts: Array, expected: Array) -> None:
    """Chi-square, the cells with fewer than 20 expected taken together; what must not happen did not."""
    assert not counts[expected == 0].any()
    usual = expected >= 20
    counts, expected = (np.append(cells[usual], cells[~usual].sum()) for cells in (counts, expected))
    statistic = ((counts - expected) ** 2 / np.maximum(expected, 1)).sum()
    assert special.chdtrc(len(counts) - 1, statistic) > ALARM


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_pages_come_as_often_as_logged(family: str, floor: float) -> None:
    slates = np.array(list(itertools.permutations(range(6), 3)))
    seeds, decisions, digits = np.full(DRAWS, 77, np.uint64), np.arange(DRAWS), np.array([36, 6, 1])
    drawn = draw(FAMILIES[family], size=3, floor=floor, seeds=seeds, decisions=decisions)
    counts = np.bincount(drawn.slates @ digits, minlength=216)[slates @ digits]
    joint = conditionals(FAMILIES[family], slates, floor=floor).prod(axis=1)
    assert_frequencies(counts.astype(float), DRAWS * joint)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_single_arms_come_as_often_as_logged(family: str, floor: float) -> None:
    seeds, decisions = np.full(DRAWS, 78, np.uint64), np.arange(DRAWS)
    drawn = draw(FAMILIES[family], size=1, floor=floor, seeds=seeds, decisions=decisions)
    counts = np.bincount(drawn.slates[:, 0], minlength=6)
    assert_frequencies(counts.astype(float), DRAWS * p_first(FAMILIES[family], floor=floor))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 3])
def test_a_page_depends_on_its_seed_and_decision_alone(family: str, size: int) -> None:
    seeds, decisions = np.arange(40, dtype=np.uint64) * 2**55, np.arange(40) * 10**15
    together = draw(FAMILIES[family], size=size, floor=0.2, seeds=seeds, decisions=decisions)
    for i in (0, 17, 39):
        alone = draw(FAMILIES[family], size=size, floor=0.2, seeds=seeds[[i]], decisions=decisions[[i]])
        assert np.array_equal(alone.slates[0], together.slates[i])
        assert np.array_equal(alone.propensity[0], together.propensity[i])


def test_one_position_is_the_inverse_of_first_at_word_0() -> None:
    seeds, decisions = np.full(1000, 5, np.uint64), np.arange(1000)
    drawn = draw(FAMILIES["beta"], size=1, floor=0.1, seeds=seeds, decisions=decisions)
    cumulative = np.cumsum(p_first(FAMILIES["beta"], floor=0.1))
    word = uniforms(seeds, decisions, words=1)
    assert np.array_equal(drawn.slates, (cumulative <= word).sum(axis=1)[:, None])


def test_scores_are_drawn_by_inverse_distribution() -> None:
    """The Beta quantiles that rank a page equal scipy's, and those of a scaled uniform its own."""
    alpha, beta = np.array([0.5, 3.0, 200.0]), np.array([0.5, 9.0, 100.0])
    order = Beta(alpha, beta).order(3)
    table, row = order.tabulation.table, order.tabulation.row
    keys = np.random.default_rng(3).uniform(1e-6, 1, (3, 500))
    logit = quantiles(table, np.repeat(row, 500), 1 - keys.ravel()).reshape(3, 500)
    result = special.betainc(alpha[:, None], beta[:, None], special.expit(logit))
    assert result == pytest.approx(keys, abs=1e-12)


def test_forty_thousand_single_arms_a_second() -> None:
    rng = np.random.default_rng(4)
    scores = Beta(rng.uniform(1, 50, 100), rng.uniform(50, 900, 100))
    start = time.process_time()
    draw(scores, size=1, floor=0.05, seeds=np.arange(40_000, dtype=np.uint64), decisions=np.arange(40_000))
    assert time.process_time() - start < 1


def test_a_cold_start_draws_pages_of_ten_thousand_arms_at_once() -> None:
    scores = Beta(np.ones(10_000), np.ones(10_000))
    start = time.process_time()
    drawn = draw(scores, size=10, floor=0.1, seeds=np.arange(50, dtype=np.uint64), decisions=np.arange(50))
    assert time.process_time() - start < 2
    assert drawn.propensity == pytest.approx(np.tile(1 / (10_000 - np.arange(10)), (50, 1)), rel=1e-10)
    assert drawn.marginal == pytest.approx(1e-4, rel=1e-10)
    assert drawn.minimum == pytest.approx(drawn.propensity, rel=1e-10)
