"""The bar: what an exact value is, and that the guests behave as the chain says."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.arrays import Array, Index
from rlrec.errors import InputError
from rlrec.simulate.barista import Barista
from tests.simulate import bars

SMALL = Barista(rates=(0.9, 0.5), fade=0.25, patience=3, cap=6)


def enumerated(bar: Barista, level: tuple[int, ...] = (0, 0), boredom: int = 0, step: int = 0) -> float:
    """The best that any sequence of items earns from here on, by trying them all."""
    if step == bar.cap or boredom >= bar.patience:
        return 0.0
    result = []
    for item, rate in enumerate(bar.rates):
        after = tuple(min(3, each + 2) if index == item else max(0, each - 1) for index, each in enumerate(level))
        bored = boredom + level[item] if level[item] else max(0, boredom - 1)
        result.append(rate * (1 - bar.fade * level[item]) + enumerated(bar, after, bored, step + 1))
    return max(result)


def recency(items: Index, *, arms: int) -> Array:
    """Of each item, the sum over its showings of 0.7 to the power of how many decisions ago, (h, arms)."""
    weights = 0.7 ** np.arange(items.shape[1], 0, -1.0)
    return np.stack([((items == arm) * weights).sum(axis=1) for arm in range(arms)], axis=1)


def test_the_optimum_is_the_best_of_all_sequences() -> None:
    assert SMALL.optimum() == pytest.approx(enumerated(SMALL), abs=1e-12)


def test_the_best_context_free_policy_earns_less_than_80_percent_and_so_does_the_greedy_one() -> None:
    bar = Barista()
    best = np.eye(bar.arms)[bar.chain.mean_rewards.argmax(axis=1)]
    assert bar.optimum() == pytest.approx(6.12)
    assert 0.6 < bar.best_context_free()[0] / bar.optimum() < 0.8
    assert bars.value(bar, best) / bar.optimum() < 0.7


def test_no_fixed_distribution_is_better_than_the_best_one() -> None:
    bar, rng = Barista(), np.random.default_rng(1)
    value, shares = bar.best_context_free()
    near = rng.dirichlet(np.ones(4), 100).tolist() + rng.dirichlet(2_000 * shares, 100).tolist()
    assert all(bars.value(bar, np.tile(item, (len(bar.chain.states), 1))) <= value + 1e-9 for item in near)
    assert bars.value(bar, np.tile(shares, (len(bar.chain.states), 1))) == pytest.approx(value)
    assert shares.sum() == pytest.approx(1)


def test_a_score_that_falls_with_recent_showings_is_nearly_optimal() -> None:
    bar = Barista()

    def policy(items: Index) -> Array:
        score = 1 - 0.04 * np.arange(4) - 0.3 * recency(items, arms=4)
        return np.eye(4)[score.argmax(axis=1)]

    assert bars.value_of(bar, policy) > 0.97 * bar.optimum()


def test_a_policy_of_histories_is_worth_what_its_states_say() -> None:
    probabilities = np.random.default_rng(1).dirichlet([1.0, 1.0], len(SMALL.chain.states))
    assert bars.value_of(SMALL, lambda items: probabilities[bars.state(SMALL, items)]) == pytest.approx(
        bars.value(SMALL, probabilities)
    )


def test_a_sequence_of_items_leads_to_its_state() -> None:
    state = bars.state(SMALL, np.array([[0, 1, 0], [0, 0, 0]]))
    assert SMALL.chain.states[state].tolist()[0] == [3, 1, 1, 3]  # satiation of each item, boredom, step
    assert bars.state(SMALL, np.array([[0, 0, 0, 0]])).tolist() == [-1]


def test_guests_tip_and_stay_as_the_chain_says() -> None:
    """False-alarm rate about 1e-4: four standard errors of two means over 20,000 visits, seeded."""
    bar, rng, guests = Barista(), np.random.default_rng(2), 20_000
    bar.reset(guests, np.random.default_rng(1))
    there, earned, length = np.ones(guests, np.bool_), np.zeros(guests), np.zeros(guests)
    while there.any():
        _, reward, terminated, truncated, _ = bar.step(rng.integers(4, size=guests))
        earned, length = earned + reward * there, length + there
        there &= ~(terminated | truncated)
    uniform = np.full(bar.chain.mean_rewards.shape, 0.25)
    for result, exact in ((earned, bars.value(bar, uniform)), (length, bars.length(bar, uniform))):
        assert abs(result.mean() - exact) < 4 * result.std() / guests**0.5


def test_a_bored_guest_leaves_and_any_visit_is_cut_off_at_its_cap() -> None:
    bar = Barista(rates=(0.5, 0.5, 0.5), patience=4, cap=5)
    bar.reset(2, np.random.default_rng(1))
    turns = [bar.step(np.array([0, turn % 3]))[2:4] for turn in range(5)]
    assert [terminated.tolist() for terminated, _ in turns[:3]] == [[False, False], [False, False], [True, False]]
    assert [truncated.tolist() for _, truncated in turns[-2:]] == [[False, False], [False, True]]


def test_a_new_guest_finds_every_item_fresh() -> None:
    bar = Barista()
    bar.reset(2, np.random.default_rng(1))
    bar.step(np.array([0, 0]))
    bar.admit(np.array([1]), np.array([2]))
    assert bar.step(np.array([0, 0]))[4]["expected"].tolist() == pytest.approx([0.8 * 0.9, 0.8])


def test_a_bar_without_tips_has_values_too() -> None:
    assert (Barista(rates=(0, 0)).optimum(), Barista(rates=(0, 0)).best_context_free()[0]) == (0, 0)


@pytest.mark.parametrize("params", [{"rates": (0.5,) * 7}, {"fade": 1.5}, {"patience": 0}, {"cap": 0}, {"cap": 21}])
def test_what_cannot_be_is_refused(params: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Barista(**params)
