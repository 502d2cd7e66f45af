"""Units that tell a difference."""

import numpy as np
import pytest

from rlrec.ope.intervals import sequences

HALVES = (0.5, 0.5)


def units_a_variant(rate: float, lift: float, *, comparisons: int = 1, power: float = 0.8) -> float:
    lifted = rate * (1 + lift)
    variance = sequences.variance_of_difference(rate * (1 - rate), lifted * (1 - lifted), HALVES)
    limits = {"alpha": 0.05 / comparisons, "power": power}
    return sequences.fixed_sample_size(variance, rate * lift, **limits) / 2


def test_fixed_sample_sizes_are_the_published_ones() -> None:
    units = units_a_variant(0.05, 0.1), units_a_variant(0.01, 0.05), units_a_variant(0.05, 0.1, comparisons=3)
    assert [*map(round, units)] == [31_231, 637_007, 41_657]


def test_even_odds_need_the_width_of_the_interval_alone() -> None:
    units = sequences.fixed_sample_size(4.0, 0.2, alpha=0.05, power=0.5)
    assert 1.959964 * (4.0 / units) ** 0.5 == pytest.approx(0.2)


def test_the_smallest_variant_decides() -> None:
    equal, uneven = (sequences.variance_of_difference(1.0, 1.0, shares) for shares in (HALVES, (0.9, 0.1)))
    assert (equal, uneven) == (4.0, pytest.approx(1 / 0.9 + 10))
    assert sequences.variance_of_difference(1.0, 1.0, (0.5, 0.3, 0.2)) == pytest.approx(2 + 5)


@pytest.mark.parametrize("best_n", [None, 500, 50_000])
def test_a_sequence_tells_with_the_power_that_was_planned(best_n: int | None) -> None:
    """Of 1,000 experiments looked at 250 times, the share that tells is within 4 standard errors of the power: a false
    alarm in 16,000."""
    variance, difference = 4.0, 0.1
    fixed = sequences.fixed_sample_size(variance, difference, alpha=0.05, power=0.8)
    units = sequences.sequential_units(variance, difference, alpha=0.05, power=0.8, best_n=best_n)
    looks = np.linspace(units / 250, units, 250)
    noise = np.random.default_rng(1).normal(0.0, (variance * units / 250) ** 0.5, (1_000, 250)).cumsum(axis=1)
    sequence = sequences.LookSequence.tightest(best_n or units, 0.05)
    lower = difference + noise / looks - sequence.half_width(variance, looks)
    assert (lower > 0).any(axis=1).mean() == pytest.approx(0.8, abs=0.05)
    assert 1.5 < units / fixed < (1.9 if best_n is None else 2.5)
