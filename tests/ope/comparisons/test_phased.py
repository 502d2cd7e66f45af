"""Figures of strata, combined: no difference out of weights that changed, and errors that hold."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.arrays import Array, Ids
from rlrec.ope.comparisons import comparison, outcomes
from rlrec.ope.comparisons.outcomes import Outcomes, PhasedOutcomes, ramp_strata
from rlrec.ope.sums.unit_visits import UnitSums

METRICS = [row for row in comparison.metrics(1) if row.name == "reward_per_unit"]
METRIC = METRICS[0]


def sums(unit: Ids, group: Ids, reward: Array) -> UnitSums:
    nothing = np.zeros(len(unit), np.int64)
    columns = {"reward_0": reward.astype(np.float64), "mature_units_0": np.ones(len(unit))}
    return UnitSums(unit=unit, group=group, entry=nothing, visit=nothing, columns=columns)


def figures(units: UnitSums, stratum: Ids) -> tuple[Outcomes, PhasedOutcomes]:
    """The figures of all units together, and combined."""
    pooled = outcomes.fold(units, METRICS)
    parts = {
        number: Outcomes(sums=outcomes.fold(units.take(stratum == number), METRICS), level=0.95)
        for number in np.unique(stratum).tolist()
    }
    combined = PhasedOutcomes(sums=pooled, level=0.95, strata=parts, groups=2)
    return Outcomes(sums=pooled, level=0.95), combined


def drawn(rng: np.random.Generator, lift: float = 0.0) -> tuple[UnitSums, Ids]:
    """Units of three phases, whose shares and rates change."""
    phase = np.repeat([0, 1, 2], 300)
    group = (rng.random(900) < np.array([0.5, 0.9, 0.2])[phase]).astype(np.int64)
    reward = rng.poisson(np.array([1.0, 2.0, 0.5])[phase] + lift * group)
    return sums(rng.integers(0, 2**60, 900), group, reward), phase


def test_equal_groups_do_not_differ_where_weights_change_while_rates_drift() -> None:
    """False alarms at 5 %: more than 9 of 60 by chance once in 1,000."""
    rng, alarms = np.random.default_rng(3), np.zeros(2)
    for _ in range(60):
        p_values = [row.compare(1, METRIC).p_value for row in figures(*drawn(rng))]
        alarms += np.array(p_values, np.float64) < 0.05
    assert alarms[0] == 60
    assert alarms[1] <= 9


def test_a_true_difference_is_the_same_in_all_phases() -> None:
    rng = np.random.default_rng(4)
    rows = [figures(*drawn(rng, lift=0.4))[1].compare(1, METRIC) for _ in range(60)]
    assert np.mean([row.value for row in rows]) == pytest.approx(0.4, abs=0.05)
    assert sum(row.lower <= 0.4 <= row.upper for row in rows if row.lower and row.upper) >= 51


def test_a_stratum_counts_by_the_harmonic_mean_of_its_units() -> None:
    reward = np.array([1.0, 2, 3, 4, 10, 20, 30, 40, 50, 60])
    units = sums(np.arange(10), np.array([0, 0, 1, 1, 0, 0, 0, 0, 1, 1]), reward)
    result = figures(units, np.repeat([0, 1], [4, 6]))[1].compare(1, METRIC)
    shares = np.array([1, 4 / 3]) / (7 / 3)
    assert result.value == pytest.approx(shares @ [2.0, 30.0])
    assert result.std_error == pytest.approx(np.sqrt(shares**2 @ [0.25 + 0.25, 500 / 12 + 25]))


def test_one_unit_of_a_group_tells_nothing_of_its_phase() -> None:
    units = sums(np.arange(9), np.array([0, 0, 1, 1, 0, 0, 0, 0, 1]), np.array([1.0, 2, 3, 5, 9, 8, 7, 6, 99]))
    _, combined = figures(units, np.repeat([0, 1], [4, 5]))
    assert combined.compare(1, METRIC).value == pytest.approx(2.5)
    _, alone = figures(units.take(np.arange(9) > 3), np.ones(5, np.int64))
    assert (alone.compare(1, METRIC).value, alone.compare(1, METRIC).reasons) == (None, ("few-units",))


def ramp(rng: np.random.Generator) -> tuple[UnitSums, Ids]:
    """Users who come back in three steps of a ramp, at rates that drift; of those whom the candidate served, the half
    that earns less comes back less often."""
    unit, position, taste = rng.integers(0, 2**60, 800), rng.random(800), rng.gamma(1, 1, 800)
    is_driven, rows = np.zeros(800, np.bool_), []
    for phase, share in enumerate((0.2, 0.4, 0.6)):
        group = (position > 1 - share).astype(np.int64)
        came = np.flatnonzero(rng.random(800) < np.where(is_driven & (taste < 0.7), 0.1, 0.8))
        reward = rng.poisson(taste * (1, 4, 2)[phase])
        is_driven[came] |= group[came] > 0
        rows.append((unit[came], (phase * 2 + group)[came], reward[came]))
    return ramp_strata(sums(*(np.concatenate(column) for column in zip(*rows, strict=True))), 3, 2)


def test_a_ramp_that_drives_users_away_makes_no_difference_of_those_who_stay() -> None:
    """An error that is off by a third, or a mean by 4 standard errors: each once in 1,000."""
    rng = np.random.default_rng(7)
    rows = [figures(*ramp(rng))[1].compare(1, METRIC) for _ in range(60)]
    values = np.array([row.value for row in rows], np.float64)
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(60)
    assert values.std() == pytest.approx(np.mean([row.std_error for row in rows if row.std_error]), rel=0.34)


def test_a_unit_of_a_ramp_counts_until_it_has_moved() -> None:
    phase, group = np.array([0, 1, 2, 0, 2, 1, 2, 0, 1]), np.array([0, 0, 1, 1, 1, 0, 0, 0, 1])
    unit = np.array([7, 7, 7, 5, 5, 9, 9, 3, 3])
    rows, stratum = ramp_strata(sums(unit, phase * 2 + group, np.arange(9.0)), 3, 2)
    # 4 p + q + 1: phase p, and the one q before in which the unit was served
    assert [*zip(rows.unit.tolist(), rows.group.tolist(), stratum.tolist(), strict=True)] == [
        (3, 0, 0), (3, 1, 5), (5, 1, 0), (7, 0, 0), (7, 0, 5), (7, 1, 10), (9, 0, 4), (9, 0, 10),
    ]  # fmt: skip
