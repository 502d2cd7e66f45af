"""Bets against a logger: nothing is won from an honest one on average, and much from a wrong one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest

from rlrec import ope
from rlrec.ope.intervals import betting
from rlrec.ope.sums.moments import BET_SHARES
from rlrec.ope.units.fold import ImpressionFold
from tests.ope.cases import TEN, drawn


def chances(path: tuple[int, ...]) -> Any:
    """Propensities of three arms after a path: an arm that was shown becomes likelier, as with a learner."""
    weight = 1.0 + 2.0 * np.bincount(path, minlength=3)
    return weight / weight.sum()


def bets(path: tuple[int, ...], arm: int, *, share_after: int) -> Any:
    """Log wealth of all bets on an arm, (N_BETS, 1), after the draws of a path."""
    log = np.zeros((betting.N_BETS, 1))
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
    log = np.random.default_rng(3).normal(scale=200, size=(betting.N_BETS, 4))
    assert betting.log_wealth(betting.spread_wealth(log)) == pytest.approx(betting.log_wealth(log))


def test_bets_on_ten_rows_by_hand() -> None:
    growth = np.log1p(TEN.weight * TEN.reward).sum()
    assert growth / 10 == pytest.approx(0.3660308497, abs=1e-10)
    lower = betting.mean_bound(np.array([growth]), 10, alpha=0.05, bet_shares=np.array([1.0]))
    assert lower == pytest.approx(0.0687156735, abs=1e-10)
    assert lower == pytest.approx(np.exp(growth / 10 - np.log(20) / 10) - 1, abs=1e-12)


@pytest.mark.simulation
def test_the_lower_bound_of_bets_holds_at_every_look() -> None:
    """Weights to 100, looked at 40 times: at 5 % more than 15 of 100 logs alarm falsely once in 27,000 times."""
    rng, looks = np.random.default_rng(4), np.unique(np.geomspace(20, 5_000, 40).astype(int))
    missed, last = 0, []
    for _ in range(100):
        x = 100.0 * (rng.random(5_000) < 0.01) * (rng.random(5_000) < 0.3)
        growth = np.cumsum(np.log1p(BET_SHARES[:, None] * x), axis=1)
        bounds = [betting.mean_bound(growth[:, n - 1], n, alpha=0.05) for n in looks.tolist()]
        missed += max(bounds) > 0.3
        last.append(bounds[-1])
    assert missed <= 15
    assert np.median(last) > 0.1


def test_the_bound_of_ips_is_that_of_its_clusters_in_any_order_and_in_blocks() -> None:
    batch, _ = drawn(1, sessions=6_000)  # more than have sums of their own
    fold = ImpressionFold(estimators=ope.parse("ips,snips").impressions, spans_batches=False)
    ips, snips = fold.finish(fold.row_sums(batch))
    earned = np.bincount(batch.cluster, batch.weight * batch.reward)
    growth = np.array([np.log1p(stake * earned).sum() for stake in BET_SHARES])
    assert ips.always_lower == pytest.approx(betting.mean_bound(growth, len(batch), alpha=0.05), rel=1e-9)
    assert (snips.always_lower, 0 < (ips.always_lower or 0) < (ips.lower or 0)) == (None, True)
    half = batch.cluster < 3_000
    parts = fold.row_sums(batch.take(~half)) + fold.row_sums(batch.take(half))
    assert fold.finish(parts)[0].always_lower == pytest.approx(ips.always_lower, rel=1e-12)
    # where rewards are below 0, or loggers count more or less, nothing is said
    costs = replace(batch, reward=batch.reward - 0.5)
    for sums in (fold.row_sums(costs), fold.row_sums(batch).scale(dict.fromkeys(fold.columns, 0.5))):
        assert fold.finish(sums)[0].always_lower is None


def test_an_arm_shown_too_rarely_is_as_suspicious_as_an_arm_shown_too_often() -> None:
    """200 draws at 1/2: 50 and 150 of them are equally far from honest."""
    half = np.full(200, 0.5)
    hit, missed = betting.log_factors_shown(half, half), betting.log_factors_not_shown(half)
    rare, often = (hit[:, :n].sum(axis=1) + missed[:, n:].sum(axis=1) for n in (50, 150))
    won = betting.log_wealth(np.column_stack([rare, often]))
    assert won.min() > np.log(1e6)
    assert abs(won[0] - won[1]) < 1
