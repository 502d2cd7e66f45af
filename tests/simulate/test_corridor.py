from __future__ import annotations

import numpy as np
import pytest

from rlrec.errors import InputError
from rlrec.simulate.corridor import LEFT, RIGHT, Corridor


def test_the_best_policy_takes_11_66_steps_going_right_with_probability_59() -> None:
    value, shares = Corridor().best_context_free()
    assert (round(value, 2), round(float(shares[RIGHT]), 2)) == (-11.66, 0.59)
    assert all(Corridor().value(right) < value for right in np.linspace(0.05, 0.95, 19))
    assert Corridor().optimum() == value


def test_left_and_right_are_switched_in_the_middle() -> None:
    audience = Corridor()
    audience.reset(2, np.random.default_rng(1))
    ways = [(RIGHT, LEFT), (LEFT, RIGHT), (RIGHT, RIGHT)]
    ends = [audience.step(np.array(way))[2].tolist() for way in ways]
    assert ends == [[False, False], [False, False], [True, False]]


@pytest.mark.parametrize("right", [0.4, 0.59, 0.8])
def test_visits_cost_what_the_formula_says(right: float) -> None:
    """False-alarm rate 6e-5 each: four standard errors over 5,000 visits, seeded."""
    audience, rng, runs = Corridor(), np.random.default_rng(2), 5_000
    audience.reset(runs, np.random.default_rng(1))
    there, earned = np.ones(runs, np.bool_), np.zeros(runs)
    while there.any():
        _, reward, terminated, truncated, _ = audience.step((rng.random(runs) < right).astype(np.intp))
        earned += reward * there
        there &= ~(terminated | truncated)
    assert abs(earned.mean() - audience.value(right)) < 4 * earned.std() / runs**0.5


def test_a_visitor_who_never_gets_out_is_cut_off() -> None:
    audience = Corridor(cap=3)
    audience.reset(1, np.random.default_rng(1))
    result = [audience.step(np.array([LEFT]))[2:4] for _ in range(3)]
    assert [(bool(terminated[0]), bool(truncated[0])) for terminated, truncated in result] == [
        (False, False), (False, False), (False, True),
    ]  # fmt: skip


@pytest.mark.parametrize("cap", [2, 10_001])
def test_a_cap_that_lets_nobody_out_is_refused(cap: int) -> None:
    with pytest.raises(InputError, match="cap"):
        Corridor(cap=cap)
