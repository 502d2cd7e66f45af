"""Bets against a logger: nothing is won from an honest one on average, and much from a wrong one."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest

from rlrec.ope.intervals import betting


def chances(path: tuple[int, ...]) -> Any:
    """Propensities of three arms after a path: an arm that was shown becomes likelier, as with a learner."""
    weight = 1.0 + 2.0 * np.bincount(path, minlength=3)
    return weight / weight.sum()


def bets(path: tuple[int, ...], arm: int, *, share_after: int) -> Any:
    """Log wealth of all bets on an arm, (BETS, 1), after the draws of a path."""
    log = np.zeros((betting.BETS, 1))
    for step, shown in enumerate(path):
        log = betting.spread_wealth(log) if step == share_after else log
        p = chances(path[:step])
        least = np.array([p.min()])
        log += betting.log_factors_shown(p[[arm]], least) if shown == arm else betting.log_factors_not_shown(least)
    return log


@pytest.mark.parametrize("arm", [0, 1, 2])
def test_mean_wealth_over_all_honest_paths_is_1(arm: int) -> None:
    paths = list(product(range(3), repeat=5))
    chance = [prod(chances(path[:step])[shown] for step, shown in enumerate(path)) for path in paths]
    wealth = [np.exp(bets(path, arm, share_after=3)) for path in paths]
    assert np.average(wealth, axis=0, weights=chance) == pytest.approx(1, abs=1e-12)


def test_no_bet_loses_more_than_there_is() -> None:
    p = np.array([1e-300, 1e-6, 0.2, 1.0])
    for least in (np.zeros(4), p, np.nextafter(p, 1)):  # the last one: as far above p as rounding goes
        assert np.isfinite(betting.log_factors_shown(p, least)).all()
        assert np.isfinite(betting.log_factors_not_shown(least)).all()


def test_sharing_changes_no_total() -> None:
    log = np.random.default_rng(3).normal(scale=200, size=(betting.BETS, 4))
    assert betting.log_wealth(betting.spread_wealth(log)) == pytest.approx(betting.log_wealth(log))


def test_an_arm_shown_too_rarely_is_as_suspicious_as_an_arm_shown_too_often() -> None:
    """200 draws at 1/2: 50 and 150 of them are equally far from honest."""
    half = np.full(200, 0.5)
    hit, missed = betting.log_factors_shown(half, half), betting.log_factors_not_shown(half)
    rare, often = (hit[:, :n].sum(axis=1) + missed[:, n:].sum(axis=1) for n in (50, 150))
    won = betting.log_wealth(np.column_stack([rare, often]))
    assert won.min() > np.log(1e6)
    assert abs(won[0] - won[1]) < 1
