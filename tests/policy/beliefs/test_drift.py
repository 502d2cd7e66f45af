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
FADING = {"min_instances": 30, "delta": 0.005, "threshold": 50.0, "alpha": 0.9999}
STEP = np.r_[np.zeros(500), np.ones(500)]


def clicks(rate: Any, n: int, *, seed: int) -> Array:
    return (np.random.default_rng(seed).random(n) < rate).astype(np.float64)


def detect(rewards: Array, *, method: str = "adwin", **parameters: Any) -> list[Change]:
    return detector(method, **parameters).take(rewards)


def test_adwin_notices_a_step_at_the_next_tick() -> None:
    assert detect(STEP) == [Change(start=500, alarm=511, mean_before=0.0, mean_after=1.0)]


def test_page_hinkley_notices_a_step_where_river_does() -> None:
    assert detect(STEP, method="page-hinkley", **FADING) == [
        Change(start=500, alarm=553, mean_before=0.0, mean_after=1.0)
    ]


def in_a_loop(rewards: list[float], *, min_instances: int, delta: float, threshold: float, alpha: float) -> list[int]:
    """Page-Hinkley as it is defined, both directions."""
    alarms, n = [], 0
    total = up = down = least_up = least_down = 0.0
    for at, reward in enumerate(rewards):
        n, total = n + 1, total + reward
        excess = reward - total / n
        up, down = alpha * up + excess - delta, alpha * down - excess - delta
        least_up, least_down = (up, down) if n == 1 else (min(least_up, up), min(least_down, down))
        if n >= min_instances and max(up - least_up, down - least_down) > threshold:
            alarms.append(at)
            n, total, up, down = 0, 0.0, 0.0, 0.0
    return alarms


@pytest.mark.parametrize("alpha", [1.0, 0.9999, 0.99])
def test_page_hinkley_in_arrays_is_page_hinkley_in_a_loop(alpha: float) -> None:
    scale = np.repeat([1.0, 3.0, 0.5, 2.0, 0.1, 4.0, 1.0], 2500)
    rewards = np.random.default_rng(5).random(len(scale)) * scale
    options = FADING | {"alpha": alpha, "threshold": 20.0}
    result = [item.alarm for item in detect(rewards, method="page-hinkley", **options)]
    assert len(result) > 3
    assert result == in_a_loop(rewards.tolist(), **options)


@pytest.mark.parametrize(("direction", "alarms"), [("up", 1), ("down", 1), ("both", 2)])
def test_page_hinkley_looks_where_it_is_told(direction: str, alarms: int) -> None:
    rewards = np.r_[STEP, STEP[::-1]]
    assert len(detect(rewards, method="page-hinkley", direction=direction)) == alarms


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
        adwin.take(clicks(0.1, 33_333, seed=seed))
    sizes = np.diff(adwin._sums[0])
    assert sizes.sum() == 5 * 33_333 // 32 * 32
    assert sorted(sizes, reverse=True) == sizes.tolist()
    assert np.bincount(np.log2(sizes).astype(int)).max() <= 5


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("adwim", {}), ("adwin", {"delta": 2}), ("adwin", {"clock": 0}), ("page-hinkley", {"alpha": 0.5}),
        ("page-hinkley", {"direction": "sideways"}), ("page-hinkley", {"threshold": float("nan")}),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(method: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        detect(STEP, method=method, **options)
