from __future__ import annotations

import numpy as np
import pytest

from rlrec.errors import InputError
from rlrec.simulate.choc_kale import ChocKale

CHOCOLATE, KALE = 0, 1


def per_visit(audience: ChocKale, *, kale: float, visitors: int) -> tuple[float, float]:
    """Reward a visit of visitors who come until they come no more, and its standard error over visitors."""
    rng = np.random.default_rng(2)
    audience.reset(visitors, np.random.default_rng(1))
    there, earned, visits = np.ones(visitors, np.bool_), np.zeros(visitors), np.zeros(visitors)
    while there.any():
        _, reward, terminated, truncated, info = audience.step((rng.random(visitors) < kale).astype(np.intp))
        ended = there & (terminated | truncated)
        earned, visits = earned + reward * there, visits + ended
        there &= ~ended | (info["again"] > 0)
    ratio = earned.mean() / visits.mean()
    return float(ratio), float((earned - ratio * visits).std() / visits.mean() / visitors**0.5)


def test_chocolate_takes_a_step_off_the_trait_and_kale_adds_one() -> None:
    audience = ChocKale(levels=4, low=1.0, high=1.0)
    audience.reset(2, np.random.default_rng(1))
    shown = [np.array(item) for item in ([CHOCOLATE, KALE], [CHOCOLATE, KALE], [CHOCOLATE, KALE], [KALE, CHOCOLATE])]
    expected = [audience.step(slot)[4]["expected"].tolist() for slot in shown]
    chocolate, kale = 0.8 / 2, 0.3 / 2  # times 1 + w; w goes from 1/2 down to 0, and from 1/2 up to 1
    assert np.allclose(
        expected,
        [[chocolate * 1.5, kale * 1.5], [chocolate * 1.25, kale * 1.75], [chocolate, kale * 2], [kale, chocolate * 2]],
    )


def test_a_visitor_comes_again_as_they_were_and_another_one_is_new() -> None:
    audience = ChocKale(levels=4, low=1.0, high=1.0)
    audience.reset(2, np.random.default_rng(1))
    audience.step(np.array([KALE, KALE]))
    audience.admit(np.array([0, 1]), np.array([1, 2]))  # visitor 1 in the place of 0, and 2 for the first time
    assert np.allclose(audience.step(np.array([KALE, KALE]))[4]["expected"], [0.15 * 1.75, 0.15 * 1.5])


def test_who_is_well_stays_and_comes_again() -> None:
    """Far apart: a visitor who is not well never comes again, and stays half as long."""
    audience, runs = ChocKale(levels=2), 5_000
    audience.reset(runs, np.random.default_rng(1))
    _, _, left, _, info = audience.step(np.where(np.arange(runs) < 2_500, CHOCOLATE, KALE))
    assert left[:2_500].mean() > 0.4 > 0.1 > left[2_500:].mean()
    assert info["again"][:2_500].sum() == 0 < info["again"][2_500:].sum()
    assert not np.any(info["again"][~left])


@pytest.mark.slow
def test_what_a_visit_is_worth_is_what_visitors_give() -> None:
    """False-alarm rate 6e-5: four standard errors over 20,000 visitors, seeded."""
    audience = ChocKale()
    value, shares = audience.best_context_free()
    result, error = per_visit(audience, kale=float(shares[KALE]), visitors=20_000)
    assert abs(result - value) < 4 * error


def test_the_best_policy_mixes_by_the_trait_and_beats_every_fixed_one() -> None:
    audience = ChocKale()
    assert audience.best_context_free()[0] < 0.8 * audience.optimum()
    assert ChocKale(chocolate=0.0).optimum() == pytest.approx(ChocKale(chocolate=0.0).best_context_free()[0])


@pytest.mark.parametrize("params", [{"kale": 1.5}, {"loyalty": 1.0}, {"levels": 1}, {"away": -1}, {"cap": 0}])
def test_what_cannot_be_is_refused(params: dict[str, float]) -> None:
    with pytest.raises(InputError):
        ChocKale(**params)
