"""What a policy has spent, what it will be asked for, and the price at which it spends what is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from rlrec.arrays import Array
from rlrec.policy.beliefs.budget import N_SLICES, US_BY_PERIOD, Budget
from rlrec.policy.beliefs.spend import Spend, best_arm_probabilities, solve_price
from rlrec.policy.scores.families.gaussian import Gaussian

DAY, HOUR = US_BY_PERIOD["day"], US_BY_PERIOD["hour"]
BUDGET = Budget("cost", 10.0, "day")
TODAY = 20_000 * DAY


def spend_of(*rows: tuple[float, int, float, float, float], budget: Budget = BUDGET) -> Spend:
    """rows: hours after the beginning of today, arm, slots, cost, known."""
    return Spend(budget, [(TODAY // HOUR + hour, arm, *sums) for hour, arm, *sums in rows])


def expected_cost(price: float, mean: Array, sd: Array | None, cost: Array, uniform: float) -> float:
    share = best_arm_probabilities(mean - price * cost, sd)
    return float((1 - uniform) * share @ cost + uniform * cost.mean())


# -- costs --


def test_the_cost_of_an_arm_is_its_mean_drawn_to_that_of_all_by_one_showing() -> None:
    spend = spend_of((1, 7, 4, 8.0, 3), (2, 7, 2, 1.0, 1), (2, 9, 1, 0.5, 1))
    mean = 9.5 / 5
    assert spend.costs(np.array([7, 8, 9])) == pytest.approx([(9 + mean) / 5, mean, (0.5 + mean) / 2])


def test_a_slot_without_a_cost_counts_what_its_arm_is_expected_to_cost() -> None:
    spend = spend_of((1, 7, 4, 8.0, 3))
    assert spend.spent_in_period(TODAY + 2 * HOUR) == pytest.approx(8.0 + (8 + 8 / 3) / 4)


def test_spend_counts_in_the_period_of_its_decision() -> None:
    spend = spend_of((-1, 7, 2, 6.0, 2), (0, 7, 1, 0.5, 1))
    assert spend.spent_in_period(TODAY) == pytest.approx(0.5)
    assert spend.spent_in_period(TODAY + DAY) == 0


def test_what_lies_eight_periods_back_counts_no_more() -> None:
    old = (-N_SLICES * 7 - 1, 9, 100, 900.0, 100)
    assert spend_of((0, 7, 2, 6.0, 2), old).arms.tolist() == [7]
    assert spend_of((-1, 7, 2, 6.0, 2), old).arms.tolist() == [7, 9]


def test_refunds_never_make_a_cost_negative() -> None:
    assert spend_of((0, 7, 2, -6.0, 2), (0, 8, 2, 1.0, 2)).cost.min() == 0


# -- how many requests are left --


def test_the_first_period_goes_on_as_it_began() -> None:
    rows = [(hour, 7, 20.0, 0.0, 0) for hour in (6, 7, 8)]
    assert spend_of(*rows).forecast_slots(TODAY + 9 * HOUR) == pytest.approx(20 * 15)
    assert spend_of((9, 7, 5.0, 0.0, 0)).forecast_slots(TODAY + 19 * HOUR // 2) == pytest.approx(10 * 14.5)


def test_a_daily_rhythm_is_expected_again() -> None:
    rows = [(hour - DAY // HOUR * day, 7, 10.0 + hour, 0.0, 0) for day in (1, 2, 3) for hour in range(24)]
    today = [(hour, 7, 10.0 + hour, 0.0, 0) for hour in range(12)]
    left = spend_of(*rows, *today).forecast_slots(TODAY + 12 * HOUR)
    assert left == pytest.approx(sum(10.0 + hour for hour in range(12, 24)))


def test_a_busy_morning_raises_what_is_expected_of_the_evening() -> None:
    rows = [(hour - 24 * day, 7, 100.0, 0.0, 0) for day in (1, 2, 3) for hour in range(24)]
    busy = [(hour, 7, 200.0, 0.0, 0) for hour in range(12)]
    assert 1.6 < spend_of(*rows, *busy).forecast_slots(TODAY + 12 * HOUR) / 1200 < 2
    assert spend_of(*rows).forecast_slots(TODAY) == pytest.approx(2400)


def test_after_a_pause_the_days_before_it_tell() -> None:
    rows = [(hour - 24 * 90, 7, 100.0, 0.0, 0) for hour in range(24)]
    assert spend_of(*rows).forecast_slots(TODAY) == pytest.approx(2400)


def test_a_week_back_counts_and_what_others_show_after_midnight_does_not() -> None:
    rows = [(hour - 24 * day, 7, 50.0 + 50 * (day == 8), 0.0, 0) for day in range(1, 9) for hour in range(24)]
    assert spend_of(*rows).forecast_slots(TODAY) == pytest.approx(1200)
    late = spend_of(*rows[:-24], (24, 7, 9.0, 90.0, 9))
    assert late.forecast_slots(TODAY + 23 * HOUR) < 60
    assert late.spent_in_period(TODAY) == 0


def test_at_the_end_of_a_period_nothing_is_left() -> None:
    rows = [(hour - 24, 7, 100.0, 0.0, 0) for hour in range(48)]
    assert spend_of(*rows).forecast_slots(TODAY + DAY - 1) == pytest.approx(0, abs=1e-4)


def test_a_usual_period_is_the_mean_of_those_that_are_over() -> None:
    assert spend_of((9, 7, 40.0, 0.0, 0), (15, 7, 20.0, 0.0, 0)).slots_of_period() == 60
    rows = [(9 - 48, 7, 80.0, 0.0, 0), (9 - 24, 7, 100.0, 0.0, 0), (1, 7, 3.0, 0.0, 0)]
    assert spend_of(*rows).slots_of_period() == 90


# -- the price --


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("uniform", [0.0, 0.1])
def test_a_normal_score_costs_what_the_price_was_solved_for(seed: int, uniform: float) -> None:
    rng = np.random.default_rng(seed)
    mean, sd, cost = rng.random(6), rng.uniform(0.01, 0.1, 6), rng.uniform(0.1, 20, 6)
    low = (1 - uniform) * cost.min() + uniform * cost.mean()
    target = low + 0.4 * (expected_cost(0.0, mean, sd, cost, uniform) - low)
    price = solve_price(mean, sd, cost, p_uniform=uniform, max_cost=target)
    exact = Gaussian(mean - price * cost, sd).order(1).p_best()
    assert (1 - uniform) * exact @ cost + uniform * cost.mean() == pytest.approx(target, rel=0.1)


@pytest.mark.parametrize("seed", range(8))
def test_without_noise_the_price_is_the_multiplier_of_the_linear_program(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mean, cost = np.sort(rng.random(6)), np.sort(rng.uniform(0.1, 20, 6))
    target = cost.min() + 0.5 * (cost[mean.argmax()] - cost.min())
    program: Any = linprog(-mean, A_ub=[cost], b_ub=[target], A_eq=np.ones((1, 6)), b_eq=[1])
    multiplier = -float(program.ineqlin.marginals[0])
    assert solve_price(mean, None, cost, p_uniform=0.0, max_cost=target) == pytest.approx(multiplier, rel=1e-4)


def test_what_is_cheap_enough_has_no_price() -> None:
    mean, cost = np.array([0.2, 0.9]), np.array([1.0, 5.0])
    assert solve_price(mean, None, cost, p_uniform=0.0, max_cost=5.0) == 0
    assert solve_price(mean, None, np.array([3.0, 3.0]), p_uniform=0.0, max_cost=1.0) == 0  # nothing could be saved


def test_when_the_budget_is_spent_the_cheapest_arm_is_served() -> None:
    mean, cost, sd = np.array([0.2, 0.9, 0.5]), np.array([1.0, 5.0, 3.0]), np.full(3, 0.1)
    for deviation in (None, sd):
        price = solve_price(mean, deviation, cost, p_uniform=0.0, max_cost=-2.0)
        assert best_arm_probabilities(mean - price * cost, deviation)[0] > 1 - 1e-5


def test_an_arm_that_was_never_tried_has_no_part_in_the_price() -> None:
    mean, cost = np.array([0.2, 0.9, np.inf]), np.array([1.0, 5.0, 3.0])
    assert solve_price(mean, None, cost, p_uniform=0.0, max_cost=2.0) == solve_price(
        mean[:2], None, cost[:2], p_uniform=0.0, max_cost=2.0
    )


def test_before_anything_is_known_cost_has_no_price() -> None:
    spend = spend_of((0, 7, 5, 0.0, 0))
    arms = np.array([7, 8])
    assert spend.price(np.array([0.2, 0.9]), None, spend.costs(arms), p_uniform=0.0, at=TODAY + HOUR) == 0
    nothing = Spend(BUDGET, [])
    assert nothing.price(np.array([0.2, 0.9]), None, nothing.costs(arms), p_uniform=0.0) == 0


def test_the_price_rises_when_more_was_spent_than_there_was_time_for() -> None:
    past = [(hour - 24, arm, 10.0, 10.0 * arm / 10, 10.0) for hour in range(24) for arm in (1, 9)]
    prices = [
        spend_of(*past, (11, 9, 100, spent, 100)).price(
            np.array([0.5, 0.8]), np.array([0.1, 0.1]), np.array([0.01, 0.09]), p_uniform=0.0, at=TODAY + 12 * HOUR
        )
        for spent in (2.0, 6.0, 9.9, 12.0)
    ]
    assert prices == sorted(prices)
    assert prices[0] < prices[2]


def test_shares_of_the_best_are_about_those_of_the_exact_order() -> None:
    rng = np.random.default_rng(4)
    for _ in range(10):
        mean, sd = rng.random(5), rng.uniform(0.02, 0.4, 5)
        assert best_arm_probabilities(mean, sd) == pytest.approx(Gaussian(mean, sd).order(1).p_best(), abs=0.05)


def test_of_a_thousand_arms_64_at_most_have_a_share() -> None:
    rng = np.random.default_rng(4)
    share = best_arm_probabilities(rng.random(1000), np.full(1000, 0.01))
    assert share.sum() == pytest.approx(1)
    assert (share > 0).sum() <= 64
