"""The test of young logs, on events made in arrays: rewards that come with delays of exponential lengths."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.ope.checks.times import ArrivalSums

WINDOW = 7.0  # days


def sums(*, seed: int, days: float, delay: float = 2.0, n: int = 4_000, watched: float = 0.0) -> ArrivalSums:
    """Sums of a log of so many days. delay: mean, in days; watched: days that it goes on after its last decision."""
    rng = np.random.default_rng(seed)
    at, age, has_event = rng.random(n) * days, rng.exponential(delay, n), rng.random(n) < 0.3
    event = np.flatnonzero(has_event & (age <= WINDOW) & (at + age <= days + watched))
    return ArrivalSums.from_rows(
        (at.max() - at) / WINDOW, cluster=rng.integers(0, 2**62, n), decision=event, age=age[event] / WINDOW,
        reward=np.ones(len(event)),
    )  # fmt: skip


@pytest.mark.parametrize("days", [2.0, 3.0, 7.0, 14.0])
def test_a_young_log_is_found(days: float) -> None:
    """Of its reward an eighth at least is on its way."""
    assert all(sums(seed=seed, days=days).raises_alarm for seed in range(8))


@pytest.mark.parametrize(
    ("days", "delay", "watched"), [(3.0, 0.01, 0.0), (1.0, 0.01, 0.0), (3.0, 2.0, 7.0), (90.0, 2.0, 0.0)]
)
def test_a_log_whose_rewards_are_there_raises_no_alarm(days: float, delay: float, watched: float) -> None:
    """Rewards come within minutes, or the log was watched for a whole window, or is so long that few are missing."""
    assert not any(sums(seed=seed, days=days, delay=delay, watched=watched).raises_alarm for seed in range(50))


def test_few_events_tell_nothing() -> None:
    assert not any(sums(seed=seed, days=3.0, n=100).raises_alarm for seed in range(50))


def test_batches_add_up_to_the_same_figures() -> None:
    parts = [sums(seed=seed, days=3.0, n=500) for seed in range(3)]
    left, right = (parts[0] + parts[1]) + parts[2], parts[2] + (parts[1] + parts[0])
    for name, value in vars(left).items():
        assert getattr(right, name) == pytest.approx(value), name
