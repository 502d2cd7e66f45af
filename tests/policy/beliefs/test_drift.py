"""Detectors of drift: what they notice, how late, how often for nothing, and chunk after chunk."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.policy.beliefs.drift import Adwin, Change, detector

METHODS = ["adwin", "page-hinkley"]
STEP = np.r_[np.zeros(500), np.ones(500)]


def clicks(rate: Any, n: int, *, seed: int) -> Array:
    return (np.random.default_rng(seed).random(n) < rate).astype(np.float64)


def detect(rewards: Array, *, method: str = "adwin") -> list[Change]:
    return detector(method).take(rewards, marks=np.arange(len(rewards)))


def test_adwin_notices_a_step_at_the_next_tick() -> None:
    assert detect(STEP) == [Change(start=500, alarm=511, mean_before=0.0, mean_after=1.0)]


def test_page_hinkley_notices_a_step_up_and_a_step_down() -> None:
    rewards = np.r_[STEP, STEP[::-1]]
    assert [(item.start, item.mean_before, item.mean_after) for item in detect(rewards, method="page-hinkley")] == [
        (500, 0.0, 1.0), (1500, 1.0, 0.0),
    ]  # fmt: skip


def in_a_loop(rewards: list[float]) -> list[int]:
    """Page-Hinkley as it is defined, both directions."""
    alarms, n = [], 0
    total = up = down = least_up = least_down = 0.0
    for at, reward in enumerate(rewards):
        n, total = n + 1, total + reward
        excess = reward - total / n
        up, down = up + excess - 0.01, down - excess - 0.01
        least_up, least_down = (up, down) if n == 1 else (min(least_up, up), min(least_down, down))
        if n >= 30 and max(up - least_up, down - least_down) > 50.0:
            alarms.append(at)
            n, total, up, down = 0, 0.0, 0.0, 0.0
    return alarms


def test_page_hinkley_in_arrays_is_page_hinkley_in_a_loop() -> None:
    scale = np.repeat([1.0, 3.0, 0.5, 2.0, 0.1, 4.0, 1.0], 2500)
    rewards = np.random.default_rng(5).random(len(scale)) * scale
    result = [item.alarm for item in detect(rewards, method="page-hinkley")]
    assert len(result) > 3
    assert result == in_a_loop(rewards.tolist())


@pytest.mark.parametrize("method", METHODS)
def test_a_stream_in_chunks_is_the_same_stream(method: str) -> None:
    rewards = clicks(np.repeat([0.05, 0.3, 0.1, 0.8], 3000), 12_000, seed=7)
    marks = np.arange(12_000) * 3 + 1
    ends = [0, 1, 31, 32, 700, 705, 5000, 12_000]
    piece = detector(method)
    result = [item for a, b in pairwise(ends) for item in piece.take(rewards[a:b], marks=marks[a:b])]
    complete = detect(rewards, method=method)
    assert len(complete) == 3
    assert [(row.start, row.alarm) for row in result] == [(3 * item.start + 1, 3 * item.alarm + 1) for item in complete]
    assert [row.mean_before for row in result] == pytest.approx([item.mean_before for item in complete], abs=1e-12)
    assert [row.mean_after for row in result] == pytest.approx([item.mean_after for item in complete], abs=1e-12)


@pytest.mark.parametrize(("method", "latest"), [("adwin", 300), ("page-hinkley", 700)])
def test_a_click_rate_that_trebles_is_noticed_and_nothing_before(method: str, latest: float) -> None:
    """40 seeded streams: both raised no false alarm in 200 others of 2,000 rewards, so one here is below 1 in 5."""
    rate = np.repeat([0.05, 0.15], 2000)
    result = [detect(clicks(rate, 4000, seed=1000 + seed), method=method) for seed in range(40)]
    assert [change for changes in result for change in changes if change.alarm < 2000] == []
    assert np.median([changes[0].alarm - 2000 for changes in result]) < latest
    assert all(abs(changes[0].mean_before - 0.05) < 0.03 < changes[0].mean_after - 0.05 for changes in result)


def test_adwin_is_silent_where_nothing_changes() -> None:
    """None of 60 such streams, of rates 0.01, 0.05 and 0.3, had an alarm."""
    assert detect(clicks(0.05, 100_000, seed=11)) == []


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_never_drifts(method: str) -> None:
    assert detect(np.full(20_000, 0.1), method=method) == []


def test_adwin_fits_rewards_of_any_scale() -> None:
    rewards = clicks(np.repeat([0.05, 0.3], 2000), 4000, seed=3)
    result = [(item.start, item.alarm) for item in detect(rewards)]
    assert len(result) == 1
    assert [(item.start, item.alarm) for item in detect(1e6 * rewards - 3e5)] == result


def test_a_window_holds_five_buckets_of_each_size() -> None:
    adwin = Adwin()
    for seed in range(5):
        adwin.take(clicks(0.1, 33_333, seed=seed), marks=np.arange(33_333))
    sizes = np.diff(adwin._sums[0])
    assert sizes.sum() == 5 * 33_333 // 32 * 32
    assert sorted(sizes, reverse=True) == sizes.tolist()
    assert np.bincount(np.log2(sizes).astype(int)).max() <= 5


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(InputError, match="unknown method 'adwim'"):
        detector("adwim")
    with pytest.raises(InputError):
        Adwin(delta=2)
