"""Wrong propensities give themselves away, if not over the whole log then within contexts, or at the value of a cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlrec.app.evaluation.checks import ClippedPropensities, WrongPropensities
from rlrec.ope.intervals.betting import propensities_are_wrong
from tests.app.evaluation import worlds

CHECK = WrongPropensities()


@pytest.mark.parametrize("shape", worlds.SHAPES)
def test_a_rule_by_segment_is_seen_in_every_log(shape: str) -> None:
    assert all(CHECK.fails(CHECK.sums(worlds.checked_rows(worlds.rule_by_segment(shape, seed)))) for seed in range(20))


@pytest.mark.parametrize("shape", worlds.SHAPES)
def test_honest_logs_pass(shape: str) -> None:
    """Each fails in 1 of 1,000 logs at most: one of 60 alarms in 6 % of all seeds, at most."""
    assert not any(worlds.fails(CHECK, worlds.honest(shape, seed, decisions=800)) for seed in range(60))


def test_a_rule_by_segment_is_right_on_average() -> None:
    sums = CHECK.sums(worlds.checked_rows(worlds.rule_by_segment("impressions", 3)))
    assert not propensities_are_wrong(sums.arms)
    assert propensities_are_wrong(sums.cells)


def test_a_rule_by_two_fields_is_seen_where_contexts_repeat() -> None:
    """Arm 0 is shown where both fields agree: no field alone says so."""
    world, rng = worlds.honest("impressions", 4), np.random.default_rng(4)
    left, right = rng.integers(2, size=(2, 1_500))
    contexts = [{"left": f"l{x}", "right": f"r{y}"} for x in (0, 1) for y in (0, 1)]
    world = replace(world, context=2 * left + right, contexts=contexts)
    chance = np.where((left == right)[:, None], [0.6, 0.1, 0.1, 0.1, 0.1], [0.1, 0.6, 0.1, 0.1, 0.1])
    assert worlds.fails(CHECK, worlds.logged_as_shares(world, chance, rng))


def test_a_number_of_the_context_may_be_what_the_rule_reads() -> None:
    world, rng = worlds.honest("impressions", 5), np.random.default_rng(5)
    world = replace(world, contexts=[{"price": float(price)} for price in rng.normal(size=1_500)])
    is_dear = np.array([context["price"] > 0 for context in world.contexts])
    chance = np.where(is_dear[:, None], [0.6, 0.1, 0.1, 0.1, 0.1], [0.1, 0.6, 0.1, 0.1, 0.1])
    assert worlds.fails(CHECK, worlds.logged_as_shares(world, chance, rng))


@pytest.mark.parametrize("batches", [2, 7])
def test_batches_add_up_to_the_log(batches: int) -> None:
    world = worlds.rule_by_segment("visits", 2, decisions=600)
    parts = [world.take(world.session % batches == number) for number in range(batches)]
    first, *others = [CHECK.sums(worlds.checked_rows(batch)) for batch in parts]
    total, log = sum(others, first), CHECK.sums(worlds.checked_rows(world))
    assert total.arms.log == pytest.approx(log.arms.log)
    assert total.cells.log == pytest.approx(log.cells.log)


def test_a_long_log_is_looked_at_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    world = worlds.rule_by_segment("impressions", 6, decisions=3_000)
    all_cells = CHECK.sums(worlds.checked_rows(world)).cells
    monkeypatch.setattr("rlrec.app.evaluation.checks.SAMPLE_SIZE", 1_000)
    cells = CHECK.sums(worlds.checked_rows(world)).cells
    assert 0.2 < cells.log[0].min() / all_cells.log[0].min() < 0.5
    assert propensities_are_wrong(cells)


@pytest.mark.parametrize("logs_least", [False, True])
def test_propensities_that_were_cut_are_seen(logs_least: bool) -> None:
    logs = (worlds.clipped("pages", seed, logs_least=logs_least) for seed in range(10))
    assert all(worlds.fails(ClippedPropensities(), log, batches=3) for log in logs)


@pytest.mark.parametrize("shape", worlds.SHAPES)
def test_a_floor_is_no_cut(shape: str) -> None:
    """Half of these loggers are greedy above a floor, which most of their arms have exactly."""
    assert not any(worlds.fails(ClippedPropensities(), worlds.honest(shape, seed)) for seed in range(40))


def test_a_floor_for_some_of_the_arms_is_no_cut() -> None:
    """Two of five arms are never shown, and the log does not say so."""
    for seed in range(20):
        world, rng = worlds.honest("impressions", seed), np.random.default_rng(seed)
        best = rng.integers(3, size=(1_500, 1))
        chance = np.where(np.arange(5) < 3, 0.05 + 0.85 * (np.arange(5) == best), 1e-12)
        arm, p = worlds.drawn_slates(chance, 1, rng)
        log = replace(world, arm=arm, p=p, chance=chance, min_propensity=np.full(1_500, np.nan))
        assert not worlds.fails(ClippedPropensities(), log)
