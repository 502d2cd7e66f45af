"""Audiences of pages: their clicks, and their optimum against all pages there are."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest

from rlrec.errors import InputError
from rlrec.simulate.base import World
from rlrec.simulate.clicks import Cascade, Page, PositionBased

RATES = (0.5, 0.05, 0.4, 0.3, 0.2)
AUDIENCES = [
    PositionBased(rates=RATES),
    PositionBased(rates=RATES, power=0.3),
    Cascade(rates=RATES),
    Cascade(rates=RATES, resume=0.6),
    Page(rates=RATES, topics=2),
    Page(rates=RATES, topics=5),
]


def played(audience: World, slate: tuple[int, ...], runs: int, seed: int = 1) -> Any:
    audience.reset(runs, np.random.default_rng(seed))
    _, reward, _, _, info = audience.step(np.tile(slate, (runs, 1)))
    return reward, info


@pytest.mark.parametrize("audience", AUDIENCES, ids=repr)
@pytest.mark.parametrize("positions", [2, 3])
def test_no_page_is_better_than_the_optimum(audience: World, positions: int) -> None:
    values = [played(audience, slate, 1)[1]["expected"].sum() for slate in permutations(range(5), positions)]
    assert played(audience, tuple(range(positions)), 1)[1]["optimum"][0] == pytest.approx(max(values), abs=1e-12)


@pytest.mark.parametrize("audience", AUDIENCES, ids=repr)
def test_rewards_have_the_means_that_are_expected(audience: World) -> None:
    """Four standard errors of 20,000 visitors, of up to three means: a false alarm in 5,000 runs, seeded."""
    reward, info = played(audience, (2, 1, 0), 20_000)
    earned = info["page"][:, None] if "page" in info else reward
    expected = info["expected"][0]
    error = np.sqrt(expected * (1 - expected) / len(earned))
    assert (np.abs(earned.mean(axis=0) - expected) < 4 * error).all()


def test_a_position_is_looked_at_by_its_power() -> None:
    _, info = played(PositionBased(rates=RATES), (0, 2, 3), 1)
    assert info["expected"][0] == pytest.approx([0.5, 0.4 / 2, 0.3 / 3])


def test_a_cascade_ends_at_its_first_click() -> None:
    reward, info = played(Cascade(rates=RATES), (0, 2, 3), 2_000)
    assert reward.sum(axis=1).max() == 1
    assert info["expected"][0] == pytest.approx([0.5, 0.5 * 0.4, 0.5 * 0.6 * 0.3])


def test_a_cascade_that_resumes_reads_the_whole_page() -> None:
    _, info = played(Cascade(rates=RATES, resume=1.0), (0, 2, 3), 1)
    assert info["expected"][0] == pytest.approx([0.5, 0.4, 0.3])


def test_two_arms_of_a_topic_are_worth_less_than_two_topics() -> None:
    """Arms 0 and 2 share a topic, 0 and 3 do not: 1 - .5 x .6 of one topic against .5 and .3 of two, halved."""
    audience = Page(rates=RATES, topics=2)
    assert played(audience, (0, 2), 1)[1]["expected"][0] == pytest.approx((1 - 0.5 * 0.6) / 2)
    assert played(audience, (0, 3), 1)[1]["expected"][0] == pytest.approx((0.5 + 0.3) / 2)


def test_one_arm_is_rewarded_as_a_slot() -> None:
    for audience in AUDIENCES:
        audience.reset(3, np.random.default_rng(1))
        _, reward, *_, info = audience.step(np.array([0, 1, 2]))
        assert reward.shape == info["expected"].shape == (3,)
        assert "page" not in info


@pytest.mark.parametrize(
    ("audience", "parameters"),
    [(PositionBased, {"power": -1.0}), (Cascade, {"resume": 1.5}), (Page, {"topics": 0}), (Page, {"topics": 11})],
)
def test_impossible_parameters_are_refused(audience: Any, parameters: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        audience(**parameters)
