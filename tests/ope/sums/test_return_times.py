"""The share of returns that has come by an age, against what was drawn."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.ope.sums.unit_visits import N_AGES, ReturnTimes


def test_of_visits_that_were_watched_to_the_end_it_is_the_share() -> None:
    gap = np.array([0.1, 0.2, 0.2, 0.6, 0.9, np.inf, 1.4])
    shares = ReturnTimes.from_visits(watched_time=np.full(7, 2.0), gap=gap).shares
    assert shares[[0, N_AGES // 2, N_AGES]] == pytest.approx([0.0, 3 / 5, 1.0])


def test_young_visits_tell_how_early_returns_come() -> None:
    """20,000 visits watched for 0 to 1.2 horizons, whose returns come exponentially fast and do not depend on that."""
    rng = np.random.default_rng(0)
    watched, gap = rng.uniform(0, 1.2, 20_000), rng.exponential(0.4, 20_000)
    gap[rng.random(20_000) < 0.5] = np.inf
    observed = np.where(gap <= watched, gap, np.inf)
    halves = [
        ReturnTimes.from_visits(watched_time=watched[rows], gap=observed[rows])
        for rows in (slice(5_000), slice(5_000, None))
    ]
    shares = (halves[0] + halves[1]).shares
    ages = np.linspace(0, 1, N_AGES + 1)
    assert shares == pytest.approx((1 - np.exp(-ages / 0.4)) / (1 - np.exp(-1 / 0.4)), abs=0.03)


def test_where_nobody_came_back_every_return_is_as_early() -> None:
    shares = ReturnTimes.from_visits(watched_time=np.ones(3), gap=np.full(3, np.inf)).shares
    assert shares[1:].tolist() == [1.0] * N_AGES
