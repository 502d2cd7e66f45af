"""The test of drift, on logs made in arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlrec.arrays import Array
from rlrec.ope.checks.times import N_PERIODS, DriftSums


def sums(rates: Array, *, seed: int, chance: Array | None = None, worth: float = 1.0) -> DriftSums:
    """The sums of a log of n clusters of one row, in order of time. rates (n, a): of the arms; chance (n, a): with
    which they are shown; None for all alike."""
    rng, (n, arms) = np.random.default_rng(seed), rates.shape
    shown_with = np.full((n, arms), 1 / arms) if chance is None else chance
    arm, row = (rng.random((n, 1)) > np.cumsum(shown_with, axis=1)).sum(axis=1).clip(0, arms - 1), np.arange(n)
    return DriftSums.from_rows(
        worth * (rng.random(n) < rates[row, arm]), propensity=shown_with[row, arm], arm=arm, arms=arms,
        period=row * N_PERIODS // n, cluster=rng.integers(0, 2**62, n),
    )  # fmt: skip


def changing(before: list[float], after: list[float], *, n: int, at: float = 0.5) -> Array:
    """Rates that change once."""
    return np.where(np.arange(n)[:, None] < at * n, np.array(before), np.array(after))


EVEN, HALVED = [0.5, 0.4, 0.3, 0.3, 0.3], [0.25, 0.2, 0.15, 0.15, 0.15]


@pytest.mark.parametrize("at", [0.3, 0.5, 0.8])
def test_rates_that_halve_are_found_whenever_they_do(at: float) -> None:
    assert all(sums(changing(EVEN, HALVED, n=3_000, at=at), seed=seed).raises_alarm for seed in range(20))


def test_rates_that_decline_by_and_by_are_found() -> None:
    rates = np.linspace(0.55, 0.2, 3_000)[:, None] * np.linspace(0.6, 1.4, 5)
    assert all(sums(rates, seed=seed).raises_alarm for seed in range(20))


def test_arms_that_reverse_are_found_though_the_mean_stays() -> None:
    rates = changing([0.4, 0.3, 0.2], [0.2, 0.3, 0.4], n=5_000)
    assert all(sums(rates, seed=seed).raises_alarm for seed in range(20))


@pytest.mark.parametrize(("arms", "rate"), [(5, 0.3), (45, 0.02), (300, 0.1)])
def test_rates_that_stay_raise_no_alarm(arms: int, rate: float) -> None:
    """At most two in a thousand logs do: in fifty, one or more in a tenth of the seeds, and two in a hundredth."""
    rates = np.linspace(0.5 * rate, 1.5 * rate, arms) * np.ones((1_500, 1))
    assert sum(sums(rates, seed=seed).raises_alarm for seed in range(50)) <= 1


def test_a_logger_that_learns_to_whom_to_show_an_arm_raises_no_alarm() -> None:
    """Each arm is liked by one of two segments, and shown to it more and more often: its plain mean doubles."""
    n, alarms = 3_000, 0
    for seed in range(30):
        segment = np.random.default_rng(seed).integers(2, size=n)
        liked = np.eye(2)[segment]
        learned = np.linspace(0.5, 0.95, n)[:, None]
        log = sums(0.1 + 0.4 * liked, seed=seed, chance=liked * learned + (1 - liked) * (1 - learned))
        alarms += log.raises_alarm
    assert alarms <= 1


def test_a_change_that_decides_nothing_is_none() -> None:
    """A hundredth of the mean, surely."""
    assert not sums(changing([0.9, 0.9], [0.909, 0.909], n=400_000), seed=1, worth=10.0).raises_alarm


def test_batches_add_up_to_the_same_figures() -> None:
    log = changing(EVEN, HALVED, n=900)
    parts: list[Any] = [sums(log[start::3], seed=start) for start in range(3)]
    assert ((parts[0] + parts[1]) + parts[2]).table == pytest.approx((parts[2] + (parts[1] + parts[0])).table)


def test_rare_rewards_raise_no_alarm_where_a_side_has_none_yet() -> None:
    """Of 60 clicks in all. At most 1 in 100 logs alarms: three of 100 in 8 % of all seeds, at most."""
    assert sum(sums(np.full((800, 3), 0.07), seed=seed).raises_alarm for seed in range(100)) <= 2


def test_too_few_clusters_tell_nothing() -> None:
    assert not sums(changing([1.0], [0.0], n=30), seed=1).raises_alarm
