"""Means of an experiment's variants, their differences, and the split of units."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.arrays import Array, Ids
from rlrec.ope.comparisons import comparison
from rlrec.ope.comparisons.comparison import MetricValue, fold


def mean(reward: Array, unit: Ids | None = None, *, spans_batches: bool = True) -> MetricValue:
    """The mean of one batch; every decision is its own unit unless they are given."""
    units = np.arange(len(reward)) if unit is None else unit
    return MetricValue.from_sums(fold(reward, units, spans_batches=spans_batches))


def clicks(rng: np.random.Generator, users: int) -> tuple[Array, Ids]:
    """Clicks of users who return geometrically often, each with a taste of its own, and the user of every click."""
    user = np.repeat(np.arange(users), rng.geometric(0.15, users))
    return (rng.random(len(user)) < rng.beta(1, 9, users)[user]).astype(np.float64), user


def equal_variants(seed: int, users: int) -> tuple[float, bool]:
    """p-value of two equal variants, each folded in two batches, and whether they answer neither better nor worse."""
    rng = np.random.default_rng((users, seed))
    click, user = clicks(rng, users)
    first_batch, assigned = np.arange(len(user)) % 2 == 0, rng.integers(0, 2, users)
    means = []
    for side in (0, 1):
        batches = [(assigned[user] == side) & batch for batch in (first_batch, ~first_batch)]
        first, second = (fold(click[rows], user[rows], spans_batches=True) for rows in batches)
        means.append(MetricValue.from_sums(first + second))
    gain = comparison.difference(*means, level=0.95)
    p_value = 1.0 if gain.p_value is None else gain.p_value  # nobody clicked
    return p_value, gain.answer.answer not in ("better", "worse")


def test_mean_and_error_by_hand() -> None:
    """Units of 2, 1 and 1 decisions: leaving each out moves the mean 1/2 to 1/2, 1/3 and 2/3."""
    of_three = mean(np.array([0.0, 1.0, 1.0, 0.0]), np.array([5, 5, 7, 9]))
    assert (of_three.units, of_three.denominator, of_three.numerator, of_three.value) == (3, 4.0, 2.0, 0.5)
    assert of_three.per_unit == pytest.approx(2 / 3)
    assert of_three.error == pytest.approx(np.sqrt(2 / 3 * 2 / 36), rel=1e-12)


def test_bounds_of_a_mean_are_students() -> None:
    """Three units leave two degrees of freedom: the 97.5 % quantile of Student's t is 4.3027."""
    of_three = mean(np.array([0.0, 1.0, 1.0, 0.0]), np.array([5, 5, 7, 9]))
    low, high = of_three.bounds(0.95)
    assert [0.5 - low, high - 0.5] == pytest.approx([4.30265273 * of_three.error] * 2, rel=1e-9)


@pytest.mark.parametrize("reward", [[], [1.0], [1.0, 1.0]])
def test_without_variation_nothing_is_certain(reward: list[float]) -> None:
    assert mean(np.array(reward)).bounds(0.95) == (-np.inf, np.inf)


def test_no_decision_is_the_zero_of_the_sum() -> None:
    sums = fold(np.array([0.0, 1.0, 1.0]), np.array([1, 2, 2]), spans_batches=True)
    empty = fold(np.empty(0), np.empty(0, np.int64), spans_batches=True)
    assert MetricValue.from_sums(empty + sums) == MetricValue.from_sums(sums)
    nothing = MetricValue.from_sums(empty)
    assert (nothing.units, nothing.denominator, nothing.numerator) == (0, 0.0, 0.0)
    assert np.isnan([nothing.value, nothing.error, nothing.per_unit]).all()


@pytest.mark.slow
@pytest.mark.parametrize("users", [20, 400])
def test_equal_variants_differ_in_five_percent_of_runs(users: int) -> None:
    """1,000 seeded runs. False alarm of the test: a rate of 5 % leaves 3 to 7 % for 3 in 1,000 choices of seeds."""
    runs = [equal_variants(seed, users) for seed in range(1000)]
    alarms = sum(p_value < 0.05 for p_value, _ in runs) / len(runs)
    assert 0.03 <= alarms <= 0.07
    assert alarms == pytest.approx(sum(not covers for _, covers in runs) / len(runs))


def test_rows_as_units_would_alarm_three_times_as_often() -> None:
    """The same runs with every decision its own unit: why intervals are clustered."""

    def alarm(seed: int) -> bool:
        click, user = clicks(np.random.default_rng(seed), 200)
        means = [mean(click[user % 2 == side]) for side in (0, 1)]
        return (comparison.difference(*means, level=0.95).p_value or 0.0) < 0.05

    assert sum(map(alarm, range(300))) / 300 > 0.1


def test_a_side_without_variation_borrows_the_others() -> None:
    some, none = mean(np.repeat([0.0, 1.0], 20), spans_batches=False), mean(np.zeros(40), spans_batches=False)
    gain = comparison.difference(some, none, level=0.95)
    assert gain.width == pytest.approx(2 * 2.02 * np.sqrt(2) * some.error, rel=0.03)
    assert comparison.difference(none, none, level=0.95).p_value is None


def test_a_difference_turns_its_sign_with_its_sides() -> None:
    first, second = (mean(np.random.default_rng(seed).random(30)) for seed in (1, 2))
    gain, loss = (comparison.difference(*sides, level=0.9) for sides in ((first, second), (second, first)))
    assert (gain.value, gain.lower, gain.upper) == pytest.approx(
        [-(figure or np.nan) for figure in (loss.value, loss.upper, loss.lower)]
    )
    assert gain.p_value == pytest.approx(loss.p_value)


def test_sample_ratio_is_the_chi_square_of_units() -> None:
    chi2, p_value = comparison.sample_ratio([5075, 4925], [0.5, 0.5])
    assert (chi2, p_value) == (pytest.approx(2.25), pytest.approx(0.1336, abs=1e-4))
    assert comparison.sample_ratio([10_300, 9_700], [2.0, 2.0])[1] == pytest.approx(2.2e-5, rel=0.02)


def test_sample_ratio_of_no_unit_is_nan() -> None:
    assert np.isnan(comparison.sample_ratio([0, 0], [1, 1])).all()


def test_reasons_lower_the_verdict_and_doubt_takes_the_answer() -> None:
    gain = comparison.difference(*(mean(np.random.default_rng(seed).random(400) + seed) for seed in (1, 0)), level=0.95)
    assert (gain.answer, gain.verdict) == (("better", None), "ok")
    assert gain.relative == pytest.approx((gain.value or 0.0) / (gain.base or 0.0))
    young = gain.because("young-units")
    assert (young.answer, young.verdict, young.reasons) == (("unknown", None), "weak", ("young-units",))
    assert gain.because("partial-week").answer == gain.answer
    assert young.to_json()["value"] == gain.value


def test_a_comparison_of_nothing_answers_nothing() -> None:
    nothing = comparison.difference(MetricValue(), MetricValue(), level=0.95)
    assert (nothing.value, nothing.base, nothing.relative, nothing.lower, nothing.width) == (None,) * 5
    assert nothing.because("no-units").answer == ("unknown", None)
