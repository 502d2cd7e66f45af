from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest

from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.simulate.shop import Shop
from tests.simulate import shops

EVERY = np.arange(50)


def mean(of_arms: Array) -> Array:
    """The value of every state under a uniform policy."""
    return of_arms.mean(axis=1)


@cache
def played(policy: shops.Pages, positions: int) -> shops.Played:
    """What visitors of a shop do, of whom two tests tell."""
    return shops.play(Shop(), policy, positions=positions)


def standard_error(values: Array) -> float:
    return float(values.std(ddof=1)) / len(values) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("positions", [1, 5])
def test_clickbait_earns_more_per_decision_and_less_per_visitor(positions: int) -> None:
    """Seeded; the differences are 8 standard errors and more of 5,000 fresh visitors."""
    bait, good = (played(policy, positions) for policy in (shops.myopic, shops.honest))
    assert bait.clicks.sum() / bait.decisions.sum() > 1.3 * good.clicks.sum() / good.decisions.sum()
    assert bait.clicks.mean() < 0.85 * good.clicks.mean()
    assert bait.durable.mean() < 0.4 * good.durable.mean()
    assert bait.visits.mean() < 0.6 * good.visits.mean()


@pytest.mark.simulation
def test_the_value_of_the_uniform_policy_is_what_visitors_give() -> None:
    """Four standard errors of 10,000 visitors for clicks and what lasts: false-alarm rate 6e-5 each, seeded."""
    played = shops.play(Shop(), shops.uniform, positions=1, visitors=10_000)
    for weights, earned in (({"click": 1.0}, played.clicks), (shops.DURABLE, played.durable)):
        value = Shop().value_per_visitor(EVERY, mean, weights=weights)
        assert abs(earned.mean() - value) < 4 * standard_error(earned)


@pytest.mark.slow
def test_the_best_myopic_policy_is_valued_exactly() -> None:
    """Four standard errors of 10,000 visitors: false-alarm rate 6e-5, seeded."""
    shop = Shop()
    clicks = shop.attraction[:, None] * shop._freshness[shop._looks[shop._category]]  # (arms, n)
    best, states = clicks.argmax(axis=0), np.arange(clicks.shape[1])
    value = shop.value_per_visitor(EVERY, lambda of_arms: of_arms[:, best, states])
    earned = shops.play(shop, shops.myopic, positions=1, visitors=10_000).clicks
    assert abs(earned.mean() - value) < 4 * standard_error(earned)
    assert value < 0.85 * shop.optimum_per_visitor()


@pytest.mark.simulation
@pytest.mark.parametrize("positions", [1, 5])
def test_no_policy_beats_the_optimum_and_one_comes_near(positions: int) -> None:
    """Honest pages earn at least 93 % of the bound, three standard errors allowed for."""
    family = (shops.uniform, shops.myopic, shops.clickbait, shops.honest, shops.favourite)
    earned = [played(policy, positions).clicks for policy in family]
    best, bound = max(earned, key=np.mean), Shop().optimum_per_visitor(positions)
    assert 0.93 * bound < best.mean() + 3 * standard_error(best)
    assert best.mean() - 3 * standard_error(best) < bound


def test_the_optimum_of_a_visit_is_that_of_an_enumeration() -> None:
    """Two categories, three decisions, no clickbait better than honest items: every sequence of arms."""
    shop = Shop(arms=4, categories=2, bait=2, cap=3, stay=0.5, fade=1 / 3)
    values = []
    for items in product(range(4), repeat=3):
        looks, value = np.zeros(2), 0.0
        for step, item in enumerate(items):
            value += 0.5**step * shop.attraction[item] * (1 - looks[item % 2] / 3)
            looks[item % 2] += 1
        values.append(value)
    assert shop.optimum() == pytest.approx(max(values))


def test_the_best_distribution_is_that_of_a_grid() -> None:
    shop = Shop(arms=4, categories=2, bait=2)
    value, distribution = shop.best_context_free()
    shares = np.linspace(0, 1, 101)
    grid = shop.attraction[2] * shares * shop._mean_freshness(shares)
    grid += (shop.attraction[3] * shares * shop._mean_freshness(shares))[::-1]
    assert value == pytest.approx(grid.max())
    assert distribution[2] == shares[grid.argmax()]


def test_a_category_that_was_looked_at_is_less_attractive_within_the_visit() -> None:
    shop = Shop(stay=1.0, cap=3)
    shop.reset(2, np.random.default_rng(1))
    expected = [shop.step(np.array([0, step % 2]))[4]["expected"] / shop.attraction[[0, step % 2]] for step in range(4)]
    assert np.allclose(expected, [[1, 1], [0.7, 1], [0.4, 0.7], [1, 1]])


def test_a_page_is_read_from_the_top() -> None:
    shop = Shop(power=0.0)
    shop.reset(1, np.random.default_rng(1))
    expected = shop.step(np.array([[0, 5, 1]]))[4]["expected"][0] / shop.attraction[[0, 5, 1]]
    assert np.allclose(expected, [1, 0.7, 1])


def test_clickbait_costs_trust_and_a_purchase_raises_it() -> None:
    shop = Shop(rate=1.0, lure=1.0, purchase=1.0)
    shop.reset(2, np.random.default_rng(1))
    *_, info = shop.step(np.array([0, 40]))
    assert (shop.traits - shop.start).tolist() == [1, -1]
    assert info["purchase"].tolist() == [1, 0]


def test_a_visitor_comes_again_half_a_day_later_or_whole_days_after_that() -> None:
    """Two days on average; four standard errors, seeded: false-alarm rate 6e-5."""
    shop = Shop(stay=0.0, loyalty=0.99)
    shop.reset(20_000, np.random.default_rng(1))
    days = shop.step(np.zeros(20_000, np.intp))[4]["again"]
    came = days[days > 0]
    assert set((came % 1).tolist()) == {0.5}
    assert abs(came.mean() - 2) < 4 * standard_error(came)
    assert abs(len(came) / 20_000 - shop._return_probabilities[shop.traits].mean()) < 4 * 0.5 / 20_000**0.5


@pytest.mark.parametrize(
    "parameters", [{"bait": 4}, {"categories": 6}, {"arms": 9}, {"rate": 1.5}, {"fade": 0.5}, {"away": 0.0}, {"cap": 0}]
)
def test_an_impossible_shop_is_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Shop(**parameters)
