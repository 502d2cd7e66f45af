"""Confidence sequences, with the figures of their papers and of GrowthBook."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.ope.intervals.sequences import LookSequence

TUNED = LookSequence.tightest(1_000, 0.05)


def test_published_half_widths() -> None:
    assert TUNED.half_width(1.0, 1_000) == pytest.approx(0.0959817, abs=5e-8)
    assert LookSequence.tightest(1_000, 0.05, n_sides=1).half_width(1.0, 1_000) == pytest.approx(0.0878827, abs=5e-8)


def test_the_relative_difference_of_gbstats() -> None:
    counts, totals = np.array([3_000, 3_461]), np.array([1_396.87, 2_422.7])
    squares = np.array([52_377.9767, 134_698.29])
    means = totals / counts
    squared_errors = (squares - counts * means**2) / (counts - 1) / counts
    # the delta method for the ratio of means
    squared_error = squared_errors[1] / means[0] ** 2 + squared_errors[0] * means[1] ** 2 / means[0] ** 4
    reach = TUNED.half_width(squared_error * counts.sum(), counts.sum())
    relative = means[1] / means[0] - 1
    assert [relative, relative - reach, relative + reach] == pytest.approx([0.50336, -0.55844, 1.56516], abs=5e-6)


def test_a_sequence_is_tightest_in_errors_where_it_was_tuned() -> None:
    n = np.arange(1, 20_000)
    errors = TUNED.half_width(1.0, n) * np.sqrt(n)
    assert 900 < n[np.argmin(errors)] < 1_100
    assert errors.min() == pytest.approx(3.03, abs=0.01)  # a fixed interval has 1.96


def test_the_p_value_is_the_level_whose_interval_ends_at_zero() -> None:
    variance, n, sequence = 2.0, np.array([150.0, 1_000.0, 40_000.0]), LookSequence.tightest(5_000, 0.05)
    for alpha in (0.3, 0.05, 0.001):
        reach = sequence._replace(alpha=alpha).half_width(variance, n)
        assert sequence.p_value(-reach, variance, n) == pytest.approx(alpha, rel=1e-12)
    assert sequence.p_value(0.0, 1.0, 500) == 1.0


def test_nothing_is_excluded_without_a_cluster() -> None:
    assert TUNED.half_width(1.0, np.array([0, 1])).tolist()[0] == np.inf
    assert TUNED._replace(n_sides=1).half_width(1.0, 0) == np.inf


def test_growth_is_what_the_narrower_sequence_needs() -> None:
    sequence = LookSequence.tightest(5_000, 0.05)
    for n, ratio in ((200, 1.3), (5_000, 3.0), (1e6, 10.0)):
        times = sequence.growth_factor(ratio, n)
        before, after = sequence.half_width(1.0, np.array([n, n * times]))
        assert before / after == pytest.approx(ratio, rel=0.01)
    # a young sequence narrows faster than the root of its clusters, an old one more slowly
    assert sequence.growth_factor(2.0, 100) < 4 < sequence.growth_factor(2.0, 1e6)
    assert sequence.growth_factor(0.5, 100) == 1
