"""Rules of every registered audience, and of each alone."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec import simulate
from rlrec.errors import InputError
from rlrec.simulate.base import Visitors
from rlrec.simulate.clicks import Contextual, Delayed, Drift


@pytest.mark.parametrize("name", simulate.ENVIRONMENTS)
def test_rewards_have_the_mean_that_is_said(name: str) -> None:
    """False-alarm rate below 1e-4: four standard errors, seeded."""
    audience, rng = simulate.make_audience(name, {}), np.random.default_rng(1)
    observed = audience.reset(2_000, np.random.default_rng(2))
    gap = spread = 0.0
    for _ in range(10):
        actions = rng.integers(audience.arms, size=2_000)
        following, reward, terminated, truncated, info = audience.step(actions)
        assert observed.shape == following.shape == (2_000, audience.features)
        if not isinstance(audience, Visitors):
            assert not np.any(terminated | truncated)
            assert np.all(info["expected"] <= info["optimum"])
        gap += float((reward - info["expected"]).sum())
        spread += float(np.maximum(0, info["expected"] * (1 - info["expected"])).sum())
    assert abs(gap) <= 4 * spread**0.5


@pytest.mark.parametrize("name", simulate.ENVIRONMENTS)
def test_visits_that_end_are_known_to_be_worth_something(name: str) -> None:
    audience = simulate.make_audience(name, {})
    if isinstance(audience, Visitors):
        value, shares = audience.best_context_free()
        assert value <= audience.optimum()
        assert (len(shares), shares.sum()) == (audience.arms, pytest.approx(1))
        audience.reset(2, np.random.default_rng(1))
        if not audience.has_pages:
            with pytest.raises(InputError, match="one arm at a time"):
                audience.step(np.zeros((2, 2), np.intp))


@pytest.mark.parametrize("name", simulate.ENVIRONMENTS)
def test_one_seed_is_one_audience(name: str) -> None:
    def play() -> list[list[float]]:
        audience = simulate.make_audience(name, {})
        audience.reset(20, np.random.default_rng(5))
        return [audience.step(np.full(20, step % 2))[1].tolist() for step in range(5)]

    assert play() == play()


def test_an_unknown_name_is_answered_with_a_near_one() -> None:
    with pytest.raises(InputError, match="bernouli") as error:
        simulate.load_environment("bernouli")
    assert error.value.hint == "did you mean bernoulli?"
    with pytest.raises(InputError, match="rate") as error:
        simulate.make_audience("bernoulli", {"rate": (0.5, 0.4)})
    assert error.value.hint == "did you mean rates?"


def test_a_jump_lasts_from_its_start_to_before_its_end() -> None:
    audience = Drift(rates=(0.5, 0.4), jumps=((1, 0.9, 2, 4),))
    audience.reset(1, np.random.default_rng(1))
    result = [float(audience.step(np.array([1]))[4]["expected"][0]) for _ in range(6)]
    assert result == [0.4, 0.4, 0.9, 0.9, 0.4, 0.4]


def test_slow_change_swings_each_arm_around_its_rate() -> None:
    audience = Drift(rates=(0.5, 0.5), jumps=(), swing=0.2, period=4)
    audience.reset(1, np.random.default_rng(1))
    result = []
    for _ in range(4):
        result.append(audience.means()[0].tolist())
        audience.step(np.array([0]))
    assert np.allclose(result, [[0.5, 0.5], [0.7, 0.3], [0.5, 0.5], [0.3, 0.7]])


def test_visitors_of_one_world_come_one_after_another() -> None:
    audience = Drift(rates=(0.5, 0.4), jumps=((1, 0.9, 2, 4),))
    audience.reset(3, np.random.default_rng(1), first_time=1)
    result = [audience.step(np.array([1, 1, 1]))[4]["expected"].tolist() for _ in range(2)]
    assert result == [[0.4, 0.9, 0.9], [0.4, 0.4, 0.4]]


def test_delays_are_what_was_asked_for() -> None:
    """Exponential: mean of the floor is 1 / (exp(1 / delay) - 1); four standard errors, false-alarm rate 6e-5."""
    fixed, drawn = Delayed(delay=7, shape="fixed"), Delayed(delay=50)
    actions = np.zeros(40_000, np.intp)
    for audience in (fixed, drawn):
        audience.reset(len(actions), np.random.default_rng(3))
    assert set(fixed.step(actions)[4]["delay"].tolist()) == {7.0}
    delays = drawn.step(actions)[4]["delay"]
    assert abs(delays.mean() - 1 / np.expm1(1 / 50)) < 4 * 50 / len(actions) ** 0.5


@pytest.mark.parametrize("model", ["linear", "logistic"])
def test_contexts_decide_which_arm_is_best(model: str) -> None:
    audience = Contextual(model=model, arms=4, features=3)
    x = audience.reset(500, np.random.default_rng(1))
    means = audience.means()
    assert np.all((means >= 0) & (means <= 1))
    assert len(set(means.argmax(axis=1).tolist())) > 1
    score = means - 0.5 if model == "linear" else np.log(means / (1 - means))
    assert np.linalg.lstsq(x, score, rcond=None)[1].max() < 1e-20


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("drift", {"jumps": ((7, 0.5, 0, 1),)}),
        ("drift", {"jumps": ((1, 0.5, 5, 5),)}),
        ("drift", {"jumps": ((1, 1.5, 0, 5),)}),
        ("drift", {"swing": 2.0}),
        ("drift", {"period": 0.0}),
        ("delayed", {"shape": "normal"}),
        ("delayed", {"delay": -1.0}),
        ("contextual", {"model": "probit"}),
        ("contextual", {"arms": 1}),
        ("contextual", {"features": 0}),
        ("contextual", {"seed": -1}),
    ],
)
def test_what_cannot_be_is_refused(name: str, params: dict[str, object]) -> None:
    with pytest.raises(InputError):
        simulate.make_audience(name, params)
