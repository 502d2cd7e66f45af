"""Bets against logged propensities: a false log is noticed, an honest one is not."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.ope.intervals.betting import BetSums, bet_sums, propensities_are_wrong


def sums(seed: int, *, true: list[float], logged: list[float], n: int) -> BetSums:
    rng, arms = np.random.default_rng(seed), len(true)
    arm = rng.choice(arms, n, p=true)
    return bet_sums(np.array(logged)[arm], arm, eligible=np.full(arms, float(n)))


def test_arms_shown_more_often_than_logged_are_noticed() -> None:
    assert propensities_are_wrong(sums(1, true=[0.7, 0.2, 0.1], logged=[1 / 3] * 3, n=200))


@pytest.mark.parametrize("logged", [[1 / 3] * 3, [0.7, 0.2, 0.1], [0.98, 0.01, 0.01]])
def test_an_honest_log_is_not_accused(logged: list[float]) -> None:
    """1,000 logs at a level of 1 in 1,000: more than 5 alarms come in 1 of 1,600 runs."""
    alarms = [propensities_are_wrong(sums(seed, true=logged, logged=logged, n=300)) for seed in range(1000)]
    assert sum(alarms) <= 5


def test_bets_of_batches_add_up() -> None:
    rng = np.random.default_rng(3)
    arm, p = rng.integers(0, 4, 600), rng.uniform(0.1, 0.9, 600)
    batches = [bet_sums(p[rows], arm[rows], eligible=np.full(4, 200.0)) for rows in np.split(np.arange(600), 3)]
    both = batches[0] + batches[1] + batches[2]
    assert both.log == pytest.approx(bet_sums(p, arm, eligible=np.full(4, 600.0)).log)


def test_an_empty_log_proves_nothing() -> None:
    assert not propensities_are_wrong(bet_sums(np.empty(0), np.empty(0, np.int64), eligible=np.zeros(3)))
    assert not propensities_are_wrong(bet_sums(np.empty(0), np.empty(0, np.int64), eligible=np.zeros(0)))
