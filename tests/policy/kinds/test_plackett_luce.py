"""The kind that learns odds, and draws Plackett-Luce slates by them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlrec import policy as kinds
from rlrec.policy.beliefs.base import Belief
from rlrec.policy.slates import slate

OFF = {"model": "features", "ridge": {"model": "features", "ridge": 100.0}}
IMPOSSIBLE: dict[str, list[Any]] = {"model": ["shared", "", 1.0, None]}


def belief(pulls: list[float], clicks: list[float]) -> Belief:
    ones = np.ones(len(pulls))
    return Belief(
        pulls=np.array(pulls), reward_sum=np.array(clicks), reward_squares=np.array(clicks), alpha=ones, beta=ones,
        total=sum(pulls),
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_arms_stand_in_proportion_to_the_power_of_their_odds(temperature: float) -> None:
    policy, p = kinds.make("plackett-luce", {"temperature": temperature}), np.array([0.25, 0.5, 0.75])
    scores = policy.scores(belief([2, 2, 2], [0, 1, 2]), arms=["a", "b", "c"], context={})
    weight = (p / (1 - p)) ** (1 / temperature)
    assert slate.p_first(scores, floor=0.0) == pytest.approx(weight / weight.sum(), abs=1e-15)
    greedy = policy.greedy().scores(belief([2, 2, 2], [0, 1, 2]), arms=["a", "b", "c"], context={})
    assert slate.p_first(greedy, floor=0.0).tolist() == [0, 0, 1]
