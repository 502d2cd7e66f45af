"""Tails of distributions without scipy, compared with it."""

from __future__ import annotations

import pytest
from scipy.special import chdtrc, fdtrc, stdtr, stdtrit

from rlrec.ope.intervals.tails import chi_square_above, hotelling_above, t_below, t_quantile


@pytest.mark.parametrize("df", [1, 2.5, 19, 63, 1_000, 50_000])
@pytest.mark.parametrize("value", [-40.0, -3.1, -0.01, 0.0, 0.5, 2.0, 60.0])
def test_students_t(value: float, df: float) -> None:
    assert t_below(value, df) == pytest.approx(stdtr(df, value), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("df", [1, 2.5, 19, 63, 999, 1_000, 50_000, 1e7])
@pytest.mark.parametrize("probability", [1e-6, 0.0006, 0.005, 0.025, 0.3, 0.5, 0.975])
def test_quantiles_of_students_t(probability: float, df: float) -> None:
    assert t_quantile(probability, df) == pytest.approx(stdtrit(df, probability), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("samples", [5, 20, 64])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("value", [1e-9, 0.3, 4.0, 14.0, 300.0, 1e6])
def test_hotellings_t(value: float, k: int, samples: int) -> None:
    expected = fdtrc(k, samples - k, value * (samples - k) / (k * (samples - 1)))
    assert hotelling_above(value, k, samples) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("df", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("value", [0.0, 1e-9, 0.7, 12.0, 90.0, 1_500.0])
def test_chi_square(value: float, df: int) -> None:
    assert chi_square_above(value, df) == pytest.approx(chdtrc(df, value), rel=1e-11, abs=1e-300)


def test_no_difference_and_an_endless_one() -> None:
    assert hotelling_above(-1e-17, 2, 64) == 1
    assert hotelling_above(float("inf"), 2, 64) == 0
