"""Means of an experiment's variants, their differences, and the split of units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlrec.arrays import Array, Ids
from rlrec.ope.comparisons import comparison
from rlrec.ope.comparisons.comparison import MetricValue, fold
from rlrec.ope.intervals.sequences import LookSequence


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
    of_three = mean(np.array([0.0, -1.0, -1.0, 0.0]), np.array([5, 5, 7, 9]))
    low, high = of_three.bounds(0.95)
    assert [-0.5 - low, high + 0.5] == pytest.approx([4.30265273 * of_three.error] * 2, rel=1e-9)


def test_one_unit_is_few_and_two_that_are_alike_do_not_vary() -> None:
    (metric, *_) = comparison.metrics(1)
    units = [MetricValue(units=number, value=1.0) for number in (0, 1, 2)]
    reasons = [metric.reasons(value, units[2], has_bounds=False) for value in units]
    assert reasons[1:] == [("few-units",), ("no-variation",)]
    assert reasons[0][0] in ("no-units", "none-at-risk")
    assert metric.reasons(*units[1:], has_bounds=True) == ()


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


@pytest.mark.simulation
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


def ratio(*looks: list[int], weight: float = 0.5) -> tuple[float, float]:
    """The sample ratio of two variants of this weight each."""
    return comparison.sample_ratio([((weight, weight), looks)])


def test_every_phase_of_a_split_counts_against_its_own_weights() -> None:
    fair = comparison.sample_ratio([((1.0, 1.0), [[5_000, 5_010]]), ((1.0, 3.0), [[1_000, 3_010]])])
    assert (fair[0] < 1, fair[1]) == (True, 1.0)
    assert comparison.is_unlikely(comparison.sample_ratio([((1.0, 1.0), [[5_000, 5_010]]), ((1.0, 3.0), [[300, 300]])]))
    halves = comparison.sample_ratio([((1.0, 1.0), [[5_150, 4_850]])] * 2)
    assert halves[1] < ratio([5_150, 4_850])[1]


def test_sample_ratio_has_the_chi_square_of_units_and_a_p_value_for_every_look() -> None:
    chi2, p_value = ratio([5075, 4925])
    assert (chi2, p_value) == (pytest.approx(2.25), 1.0)
    for c, published in ((1, 0.02184), (100, 0.00183), (1_200, 0.00086), (10_000, 0.00429)):
        assert np.exp(-comparison.log_bayes_factor([10_300, 9_700], [0.5, 0.5], c)) == pytest.approx(
            published, abs=6e-6
        )
    wrong = ratio([10_300, 9_700], weight=2.0)
    assert wrong[1] == pytest.approx(0.0015, abs=5e-5)
    # what was odd once stays odd, and a few units tell a split that is far off
    assert ratio([10_300, 9_700], [20_000, 20_000])[1] == wrong[1]
    assert comparison.is_unlikely(ratio([60, 20]))


def test_holm_corrects_several_tests() -> None:
    """The values of R's p.adjust; the level of an interval excludes 0 where the corrected p-value is small enough."""
    adjusted, levels = comparison.holm((0.01, 0.04, 0.03, 0.005, 0.55, 0.6), 0.05)
    assert adjusted == pytest.approx([0.05, 0.12, 0.12, 0.03, 1.0, 1.0])
    assert levels == pytest.approx([0.05 / 5, 0.05 / 4, 0.05 / 4, 0.05 / 6, 0.05 / 4, 0.05 / 4])
    assert comparison.holm([], 0.05) == ([], [])


def test_sample_ratio_of_no_unit_is_nan() -> None:
    assert np.isnan(ratio()).all()
    assert np.isnan(comparison.sample_ratio([])).all()


def test_reasons_lower_the_verdict_and_doubt_takes_the_answer() -> None:
    gain = comparison.difference(*(mean(np.random.default_rng(seed).random(400) + seed) for seed in (1, 0)), level=0.95)
    assert (gain.answer, gain.verdict) == (("better", None), "ok")
    assert gain.relative == pytest.approx((gain.value or 0.0) / (gain.base or 0.0))
    young = gain.with_reasons("young-units")
    assert (young.answer, young.verdict, young.reasons) == (("unknown", None), "weak", ("young-units",))
    assert gain.with_reasons("partial-week").answer == gain.answer
    assert young.to_json()["value"] == gain.value


def test_a_comparison_of_nothing_answers_nothing() -> None:
    nothing = comparison.difference(MetricValue(), MetricValue(), level=0.95)
    assert (nothing.value, nothing.base, nothing.relative, nothing.lower, nothing.width) == (None,) * 5
    assert nothing.with_reasons("no-units").answer == ("unknown", None)


# -- looks --


def rates(clicks: tuple[int, int], units: tuple[int, int]) -> comparison.Comparison:
    """Two click rates, the second less the first."""
    values = []
    for won, n in zip(clicks, units, strict=True):
        share = won / n
        error = float(np.sqrt(share * (1 - share) / (n - 1)))
        values.append(MetricValue(units=n, n_rewarded=won, numerator=won, denominator=n, value=share, error=error))
    return comparison.difference(values[1], values[0], level=0.95)


LOOK = LookSequence.tightest(5_000, 0.05)


def test_bounds_at_every_look_are_wider_and_answer_as_their_p_value() -> None:
    for clicks in ((100, 130), (100, 200)):
        fixed = rates(clicks, (1_000, 1_000))
        every = fixed.at_every_look(LOOK)
        assert (every.value, every.base) == (fixed.value, fixed.base)
        assert (every.width or 0) > 1.4 * (fixed.width or 0)
        assert every.is_off_zero == ((every.p_value or 0) < 0.05)
        assert every.at_this_look(0.05).lower == pytest.approx(fixed.lower, rel=1e-12)
    assert rates((100, 130), (1_000, 1_000)).p_value == pytest.approx(0.035, abs=0.002)  # which a look would find
    assert not rates((100, 130), (1_000, 1_000)).at_every_look(LOOK).is_off_zero


def test_a_guard_has_a_bound_on_either_side_at_the_full_level() -> None:
    fixed = rates((100, 130), (1_000, 1_000))
    sequence = LookSequence.tightest(5_000, 0.05, n_sides=1)
    assert (fixed.at_every_look(sequence).width or 0) < (fixed.at_every_look(LOOK).width or 0)


@pytest.mark.parametrize(
    ("clicks", "units", "reason"),
    [((9, 9), (60, 60), "few-rewards"), ((30, 15), (500, 49), "few-clusters"), ((3, 500), (60, 60_000), "few-rewards")],
)
def test_nothing_is_said_before_there_is_enough(clicks: Any, units: Any, reason: str) -> None:
    early = rates(clicks, units).at_every_look(LOOK)
    assert (early.lower, early.upper, early.p_value, early.reasons) == (None, None, None, (reason,))
    answer, needed = early.answer
    assert answer == "unknown"
    assert needed is not None
    assert 0 < needed < 20 * sum(units)


def test_what_is_needed_for_an_answer_at_every_look_is_enough() -> None:
    early = rates((100, 120), (1_000, 1_000)).at_every_look(LOOK)
    answer, needed = early.answer
    assert answer == "unknown"
    assert needed is not None
    times = 1 + needed / 2_000
    later = rates((round(100 * times), round(120 * times)), (round(1_000 * times),) * 2).at_every_look(LOOK)
    assert abs((later.lower or 0.0) / (later.value or 1.0)) < 0.02  # an even chance: the bound is at 0
    assert needed > (rates((100, 120), (1_000, 1_000)).answer.needed or 0) > 0


def test_a_few_units_that_are_alike_are_not_sure() -> None:
    """None of 60 units has a reward where a tenth should: their variance is not 0."""
    nobody = rates((600, 0), (6_000, 60))
    assert nobody.std_error == pytest.approx(0.0033 * 10.05, rel=0.2)  # a side without variation borrows
    lucky = rates((600, 1), (6_000, 60))
    assert lucky.careful_error == pytest.approx(np.sqrt(0.09 / 6_000 + 0.09 / 60), rel=0.03)
    assert (lucky.careful_error or 0.0) > 2 * (lucky.std_error or 0.0)
    even = rates((600, 500), (6_000, 6_000))
    assert even.careful_error == pytest.approx(even.std_error, rel=0.03)


@pytest.mark.parametrize(("least", "is_cut"), [(0.0, True), (-0.1, False)])
def test_a_mean_of_rewards_that_are_never_negative_has_no_bound_below_0(least: float, is_cut: bool) -> None:
    low, high = mean(np.array([least, 0.0, 0.0, 0.0, 1.0])).bounds(0.95)
    assert ((low == 0.0) == is_cut, low <= 0 < high) == (True, True)
