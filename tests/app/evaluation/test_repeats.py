"""Logs that were imported twice give themselves away, and honest ones with coarse times do not look like them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlrec.app.evaluation.checks import RepeatedRows
from tests.app.evaluation import worlds

CHECK = RepeatedRows()


@pytest.mark.parametrize("resolution", worlds.RESOLUTIONS)
@pytest.mark.parametrize("shape", worlds.SHAPES)
def test_a_log_that_is_there_twice_is_seen_however_coarse_its_times_are(shape: str, resolution: int) -> None:
    logs = (worlds.twice(shape, seed, decisions=600, resolution=resolution) for seed in range(5))
    assert all(worlds.fails(CHECK, log, batches=3) for log in logs)


@pytest.mark.parametrize("shape", worlds.SHAPES)
def test_a_tenth_of_a_log_is_enough_where_times_are_in_seconds(shape: str) -> None:
    logs = (worlds.twice(shape, seed, share=0.1, resolution=worlds.SECOND) for seed in range(5))
    assert all(worlds.fails(CHECK, log, batches=3) for log in logs)


@pytest.mark.parametrize("resolution", worlds.RESOLUTIONS)
def test_chance_repeats_rows_too(resolution: int) -> None:
    """Three contexts and coarse times, so that most rows are equal to others: 1 of 1,000 logs fails at most."""
    for seed in range(20):
        world = worlds.honest("impressions", seed, decisions=800, resolution=resolution)
        contexts = [{"segment": f"s{number}"} for number in range(worlds.SEGMENTS)]
        segment = np.array([int(context["segment"][1:]) for context in world.contexts])
        assert not worlds.fails(CHECK, replace(world, context=segment[world.context], contexts=contexts))


def test_batches_add_up_to_the_log() -> None:
    world = worlds.twice("visits", 2)
    log_sums, *batches = [
        CHECK.sums(worlds.checked_rows(log))
        for log in (world, *(world.take(world.session % 3 == number) for number in (2, 0, 1)))
    ]
    total = batches[0] + (batches[1] + batches[2])
    assert np.array_equal(total.draws.order, log_sums.draws.order)
    assert np.array_equal(total.draws.p, log_sums.draws.p)
    assert np.array_equal(total.kinds.count, log_sums.kinds.count)


def test_a_long_log_is_looked_at_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies stay together in a tenth of it."""
    monkeypatch.setattr("rlrec.app.evaluation.checks.SAMPLE_SIZE", 300)
    assert worlds.fails(CHECK, worlds.twice("visits", 3, decisions=1_500, resolution=1))
