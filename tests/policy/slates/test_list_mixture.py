"""Slates of rankers of drawn lists, against sums over all lists."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from rlrec.arrays import Array, Index
from rlrec.policy.scores.families.beta import Beta
from rlrec.policy.scores.families.correlated import Correlated
from rlrec.policy.scores.families.gumbel import Gumbel
from rlrec.policy.scores.families.point import Point
from rlrec.policy.scores.scores import subset
from rlrec.policy.slates import list_mixture, slate, slate_draws
from rlrec.policy.slates.list_mixture import ListMixture, SampledLists

ARMS, LISTED, PAGE, FLOOR = 6, 4, 3, 0.1
SLATES = np.array(list(permutations(range(ARMS), PAGE)))


def drawn_lists(n: int, *, seed: int = 1) -> Index:
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(ARMS)[:LISTED] for _ in range(n)])


def means(scores: Beta | Gumbel | Point, lists: Index) -> Array:
    """The mean over lists of the probability of all slates down to each position, (n, k)."""
    total = np.zeros(SLATES.shape)
    for listed in lists.tolist():
        rows = [row for row, arms in enumerate(SLATES.tolist()) if set(arms) <= set(listed)]
        at = np.array([[listed.index(arm) for arm in SLATES[row].tolist()] for row in rows])
        of_slates = slate.conditionals(subset(scores, np.array(listed)), at, floor=FLOOR).prod(axis=1)
        total[rows] += np.repeat(of_slates[:, None], PAGE, axis=1)
    # down to a position: the sum over what may stand below
    for depth in range(PAGE - 1):
        _, which = np.unique(SLATES[:, : depth + 1], axis=0, return_inverse=True)
        total[:, depth] = np.bincount(which.ravel(), weights=total[:, -1])[which.ravel()]
    return total / len(lists)


def joint(mixture: ListMixture, weight: Array) -> Array:
    """The probability of all slates down to each position, (n, k)."""
    steps = np.ones(SLATES.shape)
    for rows, position, below, above in mixture.each_position(SLATES, weight):
        steps[rows, position] = below[above, SLATES[rows, position]]
    assert mixture.joint_probabilities(SLATES, weight) == pytest.approx(steps.cumprod(axis=1), abs=1e-14)
    return mixture.joint_probabilities(SLATES, weight)


@pytest.mark.parametrize("family", ["beta", "gumbel", "point"])
def test_slates_are_means_over_the_lists(family: str) -> None:
    rng = np.random.default_rng(2)
    families: dict[str, Beta | Gumbel | Point] = {
        "beta": Beta(rng.uniform(1, 9, ARMS), rng.uniform(1, 9, ARMS)),
        "gumbel": Gumbel(rng.normal(size=ARMS)),
        "point": Point(np.array([0.1, 0.2, 0.2, 0.4, 0.5, 0.6])),
    }
    scores = families[family]
    draws = drawn_lists(24)
    lists, weight = list_mixture.distinct_lists(draws, np.arange(24) % 8, 8)
    mixture = ListMixture(ARMS, lists, weight, list_mixture.scores_of_lists(scores, lists), FLOOR)
    of_slates = joint(mixture, weight.mean(axis=0))
    assert of_slates == pytest.approx(means(scores, draws), abs=1e-9)
    marginals = mixture.marginals(PAGE).mean(axis=0)
    for position in range(PAGE):
        by_arm = np.bincount(SLATES[:, position], weights=of_slates[:, -1])
        assert marginals[position] == pytest.approx(by_arm, abs=1e-9)


def test_each_replica_is_a_distribution_of_its_own() -> None:
    draws, scores = drawn_lists(16), Gumbel(np.arange(ARMS) / 3.0)
    lists, weight = list_mixture.distinct_lists(draws, np.arange(16) % 8, 8)
    mixture = ListMixture(ARMS, lists, weight, list_mixture.scores_of_lists(scores, lists), FLOOR)
    assert joint(mixture, weight[3]) == pytest.approx(means(scores, draws[3::8]), abs=1e-12)


@pytest.mark.simulation
def test_samples_of_lists_average_to_what_decisions_draw() -> None:
    """Seeded. Against slates that decisions drew from lists of their own, within 4.5 standard errors of 120 cells."""
    rng, n = np.random.default_rng(3), 600
    scores = Correlated(rng.normal(size=ARMS), rng.normal(size=(ARMS, 2)), 20)
    lists = np.sort(drawn_lists(n, seed=4), axis=1)
    mixture = ListMixture(ARMS, lists, np.full((1, n), 1 / n), SampledLists(scores, lists, seed=5), FLOOR)
    of_slates = joint(mixture, mixture.weight[0])[:, -1]
    assert of_slates.sum() == pytest.approx(1, abs=1e-9)
    counts = np.zeros(len(SLATES))
    number = {tuple(arms): row for row, arms in enumerate(SLATES.tolist())}
    for decision, listed in enumerate(np.sort(drawn_lists(n, seed=6), axis=1)):
        seeds, ids = np.array([7], np.uint64), np.array([decision])
        drawn = slate_draws.draw(subset(scores, listed), size=PAGE, floor=FLOOR, seeds=seeds, decisions=ids)
        counts[number[tuple(listed[drawn.slates[0]].tolist())]] += 1
    error = np.sqrt(2 * of_slates / n)
    assert (np.abs(counts / n - of_slates) < 4.5 * error + 1e-3).all()
    assert mixture.marginals(PAGE)[0, 1] == pytest.approx(np.bincount(SLATES[:, 1], weights=of_slates), abs=0.05)
