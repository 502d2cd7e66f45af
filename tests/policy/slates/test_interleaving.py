"""Team draft: slates of two rankers, their propensities against enumeration, closed forms and draws."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from scipy.stats import chisquare

from rlrec.arrays import Array
from rlrec.policy.scores.families.beta import Beta
from rlrec.policy.scores.families.gumbel import Gumbel
from rlrec.policy.scores.families.point import Point
from rlrec.policy.scores.scores import Scores
from rlrec.policy.slates.interleaving import Ranker, TeamDraftSampler, teams_of
from rlrec.policy.slates.slate_draws import Draw


def drawn(sampler: TeamDraftSampler, n: int, seed: int = 3) -> Draw:
    return sampler.draw(seeds=np.full(n, seed, np.uint64), decisions=np.arange(n))


def test_two_lists_make_two_slates_half_each() -> None:
    """Lists (1, 2) and (3, 4): only (1, 3) and (3, 1). 4,000 fair coins stay within 4 standard deviations, but once in
    16,000 seeds."""
    first, second = Point(np.array([4.0, 3, 2, 1])), Point(np.array([2.0, 1, 4, 3]))
    draw = drawn(TeamDraftSampler((Ranker(first, 0.0), Ranker(second, 0.0)), 2), 4_000)
    slates = {tuple(row) for row in draw.slates.tolist()}
    assert slates == {(0, 2), (2, 0)}
    assert abs((draw.slates[:, 0] == 0).sum() - 2_000) < 4 * np.sqrt(1_000)
    assert draw.propensity.tolist() == [[1.0, 1.0]] * 4_000


def test_equal_lists_make_that_list() -> None:
    scores = Point(np.array([1.0, 3, 2]))
    draw = drawn(TeamDraftSampler((Ranker(scores, 0.0), Ranker(scores, 0.0)), 3), 50)
    assert draw.slates.tolist() == [[1, 2, 0]] * 50


def plackett_luce(weights: Array, floor: float, slate: tuple[int, ...], teams: tuple[int, ...], team: int) -> float:
    """Probability of the picks of one team: by Plackett-Luce, the best of those left is independent of all above."""
    left, probability = list(range(len(weights))), 1.0
    for arm, of in zip(slate, teams, strict=True):
        if of == team:
            probability *= floor / len(left) + (1 - floor) * weights[arm] / weights[left].sum()
        left.remove(arm)
    return probability


def test_noisy_rankings_agree_with_a_closed_form() -> None:
    """Two Plackett-Luce rankers with floors, 5 arms, all slates of 3 under all coins."""
    weights = np.array([4.0, 3, 2, 1, 0.5]), np.array([1.0, 1, 5, 1, 2])
    floors = 0.2, 0.05
    rankers = [Ranker(Gumbel(np.log(each)), floor) for each, floor in zip(weights, floors, strict=True)]
    sampler = TeamDraftSampler((rankers[0], rankers[1]), 3)
    slates = np.array(list(permutations(range(5), 3)))
    for coins in product([False, True], repeat=2):
        teams = teams_of(np.array([coins]), 3)
        joint = sampler.conditionals(slates, np.repeat(teams, len(slates), axis=0)).prod(axis=1)
        expected = [
            plackett_luce(weights[0], floors[0], tuple(slate), tuple(teams[0]), 0)
            * plackett_luce(weights[1], floors[1], tuple(slate), tuple(teams[0]), 1)
            for slate in slates.tolist()
        ]
        np.testing.assert_allclose(joint, expected, rtol=1e-9)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_propensities_of_thompson_are_those_of_rankings(floor: float) -> None:
    """Rankings of two Beta posteriors drawn 160,000 times, and drafted in plain arrays: for every coin the slates
    have the shares that are derived, up to 4.5 standard errors of 60 shares (a false alarm in 2,500 runs, seeded)."""
    rng, n = np.random.default_rng(5), 40_000
    alpha, beta = np.array([3.0, 2, 4, 1]), np.array([4.0, 2, 9, 3])
    other = np.array([1.0, 6, 2, 2]), np.array([2.0, 9, 3, 2])
    sampler = TeamDraftSampler((Ranker(Beta(alpha, beta), floor), Ranker(Beta(*other), floor)), 3)
    values = [rng.beta(alpha, beta, (n, 4)), rng.beta(*other, (n, 4))]
    for coins in product([False, True], repeat=2):
        teams = teams_of(np.array([coins]), 3)[0]
        gone, slates = np.zeros((n, 4), bool), np.empty((n, 3), int)
        for position, team in enumerate(teams.tolist()):
            best = np.where(gone, -np.inf, values[team]).argmax(axis=1)
            uniform = np.where(gone, -1.0, rng.random((n, 4))).argmax(axis=1)
            slates[:, position] = np.where(rng.random(n) < floor, uniform, best)
            gone[np.arange(n), slates[:, position]] = True
        every = np.array(list(permutations(range(4), 3)))
        share = np.array([(slates == slate).all(axis=1).mean() for slate in every])
        joint = sampler.conditionals(every, np.tile(teams, (len(every), 1))).prod(axis=1)
        assert joint.sum() == pytest.approx(1.0, abs=1e-9)
        assert (np.abs(share - joint) <= 4.5 * np.sqrt(joint * (1 - joint) / n) + 1e-12).all()


@pytest.mark.parametrize("scores", [Point(np.array([2.0, 2, 1, 0])), Gumbel(np.array([1.0, 0, 0.5, -1]))], ids=repr)
def test_draws_have_the_propensities_that_are_logged(scores: Scores) -> None:
    """Chi-square of 20,000 draws over coins and slates, at 1 in 10,000."""
    sampler = TeamDraftSampler((Ranker(scores, 0.1), Ranker(Gumbel(np.zeros(4)), 0.0)), 2)
    draw = drawn(sampler, 20_000)
    every = np.array(list(permutations(range(4), 2)))
    expected, counts = [], []
    for coin in (0, 1):
        teams = np.tile([coin, 1 - coin], (len(every), 1))
        expected += (sampler.conditionals(every, teams).prod(axis=1) * 10_000).tolist()
        counts += [int(((draw.slates == pair).all(axis=1) & (draw.teams[:, 0] == coin)).sum()) for pair in every]
    assert chisquare(counts, np.array(expected) * sum(counts) / sum(expected)).pvalue > 1e-4


def test_what_is_logged_is_the_conditional_given_the_coins() -> None:
    sampler = TeamDraftSampler((Ranker(Gumbel(np.array([1.0, 0, 0.5])), 0.1), Ranker(Gumbel(np.zeros(3)), 0.3)), 2)
    draw = drawn(sampler, 30)
    np.testing.assert_allclose(draw.propensity, sampler.conditionals(draw.slates, draw.teams), rtol=1e-12)
    assert (draw.minimum <= draw.propensity).all()
    assert np.isnan(draw.marginal).all()
    again = drawn(sampler, 30)
    np.testing.assert_array_equal(draw.slates, again.slates)
