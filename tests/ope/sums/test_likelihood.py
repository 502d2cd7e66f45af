"""Bounds of means whose terms rare losses skew: exact where a count says all, and never beyond its level."""

from __future__ import annotations

from math import exp, lgamma, log
from statistics import NormalDist

import numpy as np
import pytest

from rlrec.ope.comparisons.comparison import lower_bound

N, COUNTS = 1_000, 60


def most_losses(count: int, reach: float) -> float:
    """The most losses of 1 that N terms are worth by the bound, where so many came."""
    terms = np.zeros(N)
    terms[:count] = -1
    return -lower_bound(terms, loss=1.0, radius=reach) * N


def test_without_a_loss_the_bound_is_where_the_likelihood_ratio_says() -> None:
    p, reach = most_losses(0, 2.0) / N, 2.0
    assert -2 * (N * log((1 - p) * (N + 1) / N) + log(p * (N + 1))) == pytest.approx(reach**2, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0304, 0.0076, 0.0012])
def test_counts_of_rare_losses_are_above_the_bound_as_seldom_as_it_says(alpha: float) -> None:
    """Poisson counts around every mean, enumerated."""
    most = np.array([most_losses(count, -NormalDist().inv_cdf(alpha)) for count in range(COUNTS)])
    for mean in np.arange(0.2, 25, 0.2):
        chance = np.exp([count * log(mean) - mean - lgamma(count + 1) for count in range(COUNTS)])
        assert chance[most < mean].sum() < alpha
    assert exp(-most[0]) > alpha / 3  # and no farther than it must be


def test_many_terms_without_skew_have_the_normal_bound() -> None:
    terms = np.random.default_rng(1).normal(size=4_000)
    normal = terms.mean() - 1.9 * terms.std() / np.sqrt(len(terms))
    assert lower_bound(terms, loss=0.0, radius=1.9) == pytest.approx(normal, abs=2e-4)


def test_terms_without_variation_lose_no_more_than_the_loss() -> None:
    assert lower_bound(np.full(10, 3.0), loss=0.0, radius=2.0) == 3
    assert 2 < lower_bound(np.full(10, 3.0), loss=1.0, radius=9.0) < 3
