"""Scores that are correlated: samples of one decision, their shares, and the pages drawn from them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import special

from rlrec.arrays import Array
from rlrec.policy.scores.families.correlated import Correlated, Sampled
from rlrec.policy.scores.families.gaussian import Gaussian
from rlrec.policy.scores.sampler import normals, uniforms
from rlrec.policy.slates import slate, slate_draws

FACTOR = np.array([[0.5, 0.0], [0.3, 0.4], [0.0, 0.2], [0.3, 0.4]])
SCORES = Correlated(np.array([0.0, 0.1, 0.2, 0.1]), FACTOR, 500)
FALSE_ALARM = 1e-6  # of each statistical test; the draws are seeded


def counted(values: Array, left: list[int]) -> Array:
    """Shares of best arms among those left, sample by sample."""
    shares = np.zeros(values.shape[1])
    for sample in values:
        best = [arm for arm in left if sample[arm] == max(sample[left])]
        shares[best] += 1 / len(best)
    return shares / len(values)


def test_a_share_is_the_count_of_samples() -> None:
    samples = SCORES.decision_scores(7, 3)
    assert slate.p_first(samples, floor=0.0) == pytest.approx(counted(samples.values, [0, 1, 2, 3]), abs=1e-15)
    result = slate.remaining(samples, np.array([2, 1]), floor=0.1)
    assert result == pytest.approx([0.05, 0, 0, 0.05] + 0.9 * counted(samples.values, [0, 3]), abs=1e-15)


def test_equal_bests_share_a_sample() -> None:
    samples = Sampled(np.array([[1.0, 1.0, 0.0], [2.0, 0.0, 1.0]]), np.arange(3))
    assert slate.p_first(samples, floor=0.0).tolist() == [0.75, 0.25, 0.0]
    assert slate.conditionals(samples, np.array([[0, 1, 2]]), floor=0.0).tolist() == [[0.75, 0.5, 1.0]]


@pytest.mark.parametrize("m", [2, 7, 33])
def test_arms_of_equal_features_tie_in_every_sample(m: int) -> None:
    rng = np.random.default_rng(5)
    equal = Correlated(np.full(m, 0.3), np.tile(rng.normal(size=5), (m, 1)), 200)
    assert slate.p_first(equal.decision_scores(1, 1), floor=0.0) == pytest.approx(np.full(m, 1 / m), abs=1e-14)


def test_samples_have_the_covariance_of_their_factor() -> None:
    values = Correlated(SCORES.location, FACTOR, 100_000).decision_scores(1, 2).values
    assert values.mean(axis=0) == pytest.approx(SCORES.location, abs=5 * 0.5 / np.sqrt(1e5))
    assert np.cov(values.T) == pytest.approx(FACTOR @ FACTOR.T, abs=5 * np.sqrt(2) * 0.25 / np.sqrt(1e5))


def test_normals_are_normal_and_belong_to_their_decision() -> None:
    result = np.sort(normals(9, 4, start=1024, count=100_001))
    distance = np.abs(special.ndtr(result) - (np.arange(100_001) + 0.5) / 100_001).max()
    assert special.kolmogorov(np.sqrt(100_001) * distance) > FALSE_ALARM
    assert np.array_equal(normals(9, 4, start=1024, count=5), normals(9, 4, start=1024, count=6)[:5])
    assert not np.array_equal(normals(9, 4, start=1024, count=5), normals(9, 5, start=1024, count=5))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("floor", [0.01, 0.2])
def test_what_is_logged_is_exact_for_the_samples_of_the_decision(size: int, floor: float) -> None:
    seeds, decisions = np.full(50, 2**63 + 5, np.uint64), np.arange(50)
    drawn = slate_draws.draw(SCORES, size=size, floor=floor, seeds=seeds, decisions=decisions)
    for row in range(50):
        samples = SCORES.decision_scores(2**63 + 5, row)
        page = drawn.slates[row : row + 1]
        assert np.array_equal(slate.conditionals(samples, page, floor=floor), drawn.propensity[row : row + 1])
        for position in range(size):
            left = slate.remaining(samples, page[0, :position], floor=floor)
            assert np.delete(left, page[0, :position]).min() == drawn.minimum[row, position]


def test_a_position_is_the_inverse_of_what_remains_at_its_even_word() -> None:
    drawn = slate_draws.draw(SCORES, size=3, floor=0.1, seeds=np.full(9, 4, np.uint64), decisions=np.arange(9))
    words = uniforms(np.full(9, 4, np.uint64), np.arange(9), words=6)
    for row, page in enumerate(drawn.slates):
        for position in range(3):
            left = slate.remaining(SCORES.decision_scores(4, row), page[:position], floor=0.1)
            assert (np.cumsum(left) <= words[row, 2 * position]).sum() == page[position]


def test_marginals_beyond_the_first_position_have_no_closed_form() -> None:
    drawn = slate_draws.draw(SCORES, size=3, floor=0.1, seeds=np.full(9, 4, np.uint64), decisions=np.arange(9))
    assert np.array_equal(drawn.marginal[:, 0], drawn.propensity[:, 0])
    assert np.isnan(drawn.marginal[:, 1:]).all()
    assert not drawn.is_rounded.any()
    marginals = slate.marginals(SCORES.decision_scores(4, 0), size=2, floor=0.1)
    assert np.array_equal(marginals[0], slate.p_first(SCORES.decision_scores(4, 0), floor=0.1))
    assert np.isnan(marginals[1]).all()


def test_without_a_decision_the_samples_of_the_first_seed_stand() -> None:
    pages = slate_draws.SlateSampler(SCORES, size=2, floor=0.1)
    assert np.array_equal(pages.p_first, slate.p_first(SCORES.decision_scores(0, 0), floor=0.1))
    assert np.array_equal(slate.p_first(SCORES, floor=0.1), slate.p_first(SCORES.decision_scores(0, 0), floor=0.1))


@pytest.mark.slow
def test_pages_come_as_often_as_their_samples_say() -> None:
    """Chi-square of the pages drawn against the mean of what each decision's own samples give them."""
    n, few = 1000, Correlated(SCORES.location, FACTOR, 20)
    pages = np.array(list(itertools.permutations(range(4), 2)), np.intp)
    drawn = slate_draws.draw(few, size=2, floor=0.1, seeds=np.full(n, 11, np.uint64), decisions=np.arange(n))
    chances = [slate.conditionals(few.decision_scores(11, row), pages, floor=0.1).prod(axis=1) for row in range(n)]
    expected = np.sum(chances, axis=0)
    count = np.array([(drawn.slates == page).all(axis=1).sum() for page in pages])
    statistic = ((count - expected) ** 2 / expected).sum()
    assert special.chdtrc(len(pages) - 1, statistic) > FALSE_ALARM


def test_independent_scores_as_samples_are_near_their_closed_form() -> None:
    mean, sd = np.array([0.0, 0.2, 0.1]), np.array([0.5, 0.3, 1.0])
    result = slate.p_first(Correlated(mean, np.diag(sd), 50_000).decision_scores(3, 1), floor=0.0)
    assert result == pytest.approx(slate.p_first(Gaussian(mean, sd), floor=0.0), abs=5 * 0.5 / np.sqrt(50_000))


@pytest.mark.parametrize("floor", [0.0, 0.3, (0.0, 0.5)])
def test_simulated_marginals_of_one_sample_are_those_of_independent_scores(floor: float | tuple[float, ...]) -> None:
    """Seeded. Pages that one sample ranks have a closed form; false alarms: 12 shares beyond 5 sigma, 1 in 100,000."""
    location, spread, runs = np.array([0.3, 0.0, -0.2, 0.5]), np.array([1.0, 0.5, 2.0, 0.1]), 40_000
    scores, rng = Correlated(location, np.diag(spread), samples=1), np.random.default_rng(3)
    simulated = slate.simulated_marginals(scores, size=3, floor=floor, runs=runs, rng=rng)
    exact = slate.marginals(Gaussian(location, spread), size=3, floor=floor)
    np.testing.assert_allclose(simulated.sum(axis=1), 1, atol=1e-12)
    assert (np.abs(simulated - exact) < 5 * np.sqrt(exact * (1 - exact) / runs)).all()


@pytest.mark.parametrize("floor", [0.0, 0.1, (0.3, 0.0, 1.0, 0.2)])
def test_simulated_pages_are_drawn_as_from_the_probability_of_every_arm(floor: float | tuple[float, ...]) -> None:
    """The same random words, with the probability of each arm at each position written out; three equal arms tie."""
    rng, m, runs = np.random.default_rng(8), 5, 400
    location, factor = rng.normal(size=m) / 3, rng.normal(size=(m, 2)) / 2
    location[2:4], factor[2:4] = location[1], factor[1]
    scores, size = Correlated(location, factor, samples=30), 4
    simulated = slate.simulated_marginals(scores, size=size, floor=floor, runs=runs, rng=np.random.default_rng(5))
    words, total = np.random.default_rng(5), np.zeros((size, m))
    left = np.ones((runs, m), np.bool_)
    for position, values in enumerate(scores.simulate_pages(runs, size, words)):
        values[~left] = -np.inf
        best = values == values.max(axis=1, keepdims=True)
        explored = np.broadcast_to(floor, size)[position]
        probability = left * (explored / (m - position) + (1 - explored) * best / best.sum(axis=1, keepdims=True))
        total[position] += probability.sum(axis=0)
        left[np.arange(runs), slate.invert_rows(probability, words.random(runs))] = False
    np.testing.assert_allclose(simulated, total / runs, rtol=0, atol=1e-13)


@pytest.mark.simulation
def test_simulated_marginals_are_how_often_arms_are_drawn() -> None:
    """Seeded; equal arms share. False alarms: 12 shares beyond 5 sigma, 1 in 100,000."""
    factor = np.array([[1.0, 0.2], [0.5, -0.4], [0.5, -0.4], [0.0, 0.9]])
    scores, n = Correlated(np.array([0.1, 0.2, 0.2, 0.0]), factor, samples=3), 4_000
    simulated = slate.simulated_marginals(scores, size=3, floor=0.1, runs=200_000, rng=np.random.default_rng(1))
    drawn = slate_draws.draw(scores, size=3, floor=0.1, seeds=np.full(n, 5, np.uint64), decisions=np.arange(n)).slates
    often = np.array([np.bincount(column, minlength=4) for column in drawn.T]) / n
    assert (np.abs(often - simulated) < 5 * np.sqrt(simulated * (1 - simulated) / n) * np.sqrt(1.1)).all()
    assert simulated[:, 1] == pytest.approx(simulated[:, 2], abs=0.01)


def test_a_sampler_whose_decisions_draw_their_own_samples_none_for_itself() -> None:
    calls = list[int]()

    class CountedScores(Correlated):
        def decision_scores(self, seed: int, decision: int) -> Sampled:
            calls.append(decision)
            return super().decision_scores(seed, decision)

    seeds, decisions = np.arange(4, dtype=np.uint64), np.arange(1, 5)
    scores = CountedScores(SCORES.location, SCORES.factor, SCORES.samples)
    drawn = slate_draws.draw(scores, size=2, floor=0.0, seeds=seeds, decisions=decisions)
    assert calls == [1, 2, 3, 4]
    plain = slate_draws.draw(SCORES, size=2, floor=0.0, seeds=seeds, decisions=decisions)
    np.testing.assert_array_equal(drawn.slates, plain.slates)
