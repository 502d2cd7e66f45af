"""Outcomes of units: sums by hand, false alarms of equal variants, and what the past takes off the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from rlrec.arrays import Array, Ids, offsets
from rlrec.ope.comparisons import comparison, outcomes
from rlrec.ope.comparisons.comparison import MetricValue
from rlrec.ope.comparisons.outcomes import Outcomes
from rlrec.ope.sums.base import hash_bits
from rlrec.ope.sums.moments import N_BLOCKS
from rlrec.ope.sums.unit_visits import DAY_US, FAR_FUTURE, SAMPLED_FLAGS, ServedDecisions, Visits, unit_sums

HOUR = DAY_US // 24
NOW = 40 * DAY_US
METRICS = {metric.name: metric for metric in comparison.metrics(1)}


def visits(person: Sequence[int], started: Sequence[float], hours: float = 1, *, now: float = 100) -> Visits:
    """Visits of some hours each that begin at these days."""
    started_at = (np.array(started) * DAY_US).astype(np.int64)
    ended_at = started_at + round(hours * HOUR)
    unit = np.array(person, np.int64)
    return Visits(person=unit, unit=unit, started_at=started_at, ended_at=ended_at, is_over=ended_at < now * DAY_US)


def decision_each(of: Visits, group: Ids | None = None, reward: Array | None = None) -> ServedDecisions:
    """A decision at the begin of each visit."""
    n = len(of.person)
    return ServedDecisions(
        visit=np.arange(n), group=np.zeros(n, np.int64) if group is None else group, at=of.started_at,
        rewards=np.array([np.ones(n) if reward is None else reward]), is_mature=np.ones((1, n), np.bool_),
    )  # fmt: skip


# -- sums --


def test_a_return_begins_after_the_end_and_within_the_window() -> None:
    """One person: the second visit begins while the first goes on, the third a day after its end to the microsecond."""
    day = 1 + 1 / 24
    of = visits([5, 5, 5, 9], [0, 0.01, day, 0.5])
    assert of.next_start.tolist() == [round(day * DAY_US), round(day * DAY_US), FAR_FUTURE, FAR_FUTURE]
    assert unit_sums(of, decision_each(of), now=100 * DAY_US).columns["returned_1d"].tolist() == [2, 0]
    later = replace(of, started_at=of.started_at + np.array([0, 0, 1, 0]))
    assert unit_sums(later, decision_each(later), now=100 * DAY_US).columns["returned_1d"].tolist() == [1, 0]


def test_a_visit_is_at_risk_by_its_age_alone() -> None:
    of = visits([1, 1, 2], [0, 0.5, 0.9])
    sums = unit_sums(of, decision_each(of), now=round(1.6 * DAY_US))
    assert sums.columns["at_risk_1d"].tolist() == [2, 0]
    assert sums.columns["at_risk_7d"].tolist() == [0, 0]


def test_days_decisions_and_minutes_of_visits_that_are_over() -> None:
    of = visits([1, 1], [0.0, 3.98], hours=2, now=4)
    at = np.array([0, HOUR, round(3.98 * DAY_US), 4 * DAY_US + 60_000_000])
    decisions = ServedDecisions(
        visit=np.array([0, 0, 1, 1]), group=np.zeros(4, np.int64), at=at, rewards=np.array([[1.0, 2, 4, 8]]),
        is_mature=np.array([[True, True, True, False]]),
    )  # fmt: skip
    columns = {name: column.tolist() for name, column in unit_sums(of, decisions, now=4 * DAY_US).columns.items()}
    assert [columns[name] for name in ("visits", "active_days", "visits_over", "decisions", "minutes")] == [
        [2], [3], [1], [2], [60],
    ]  # fmt: skip
    assert [columns[f"{name}_0"] for name in ("reward", "mature_visits", "mature_decisions")] == [[7], [2], [3]]


def test_earlier_visits_are_those_of_the_person() -> None:
    of = replace(visits([1, 1, 2], [0, 5, 5]), unit=np.array([10, 11, 12]))
    assert of.count_begun(np.array([1, 2]), of.started_at[[1, 2]]).tolist() == [1, 0]


# -- logs that dropped decisions --


@pytest.mark.parametrize("visits_each", [1, 4])
def test_decisions_that_were_kept_at_several_rates_tell_what_all_of_them_earned(visits_each: int) -> None:
    """In 50 samples that keep one decision in five without a reward, and all others. Intervals of 95 % miss the figure
    of the complete log in nine of 50 once in 1,300 runs; without counts they do in all."""
    random, n = np.random.default_rng(31), 4_000
    of = visits(np.arange(n) // visits_each, np.arange(n) % visits_each * 2.0)
    liked = random.random(n // visits_each) < 0.5
    complete = decision_each(of, reward=(random.random(n) < 0.1 + 0.2 * liked[of.unit]).astype(np.float64))
    keep_probability = np.where(complete.rewards[0] > 0, 1.0, 0.2)
    # of units with several decisions it tells the reward of a decision alone
    names = ("per_visit", "per_decision") if visits_each > 1 else ("per_unit", "per_visit", "per_decision")
    every = {metric.name: metric for metric in (*comparison.metrics(1), *comparison.per_decision(0))}
    wanted = [every[f"reward_{name}"] for name in names]

    def covers(decisions: ServedDecisions) -> list[bool]:
        sums = outcomes.fold(unit_sums(of, decisions, now=NOW), wanted)
        values = [(metric, Outcomes(sums=sums, level=0.95).value(0, metric)) for metric in wanted]
        bounds = [metric.bounds(value, 0.95) for metric, value in values]
        expected = complete.rewards[0].sum() / [n // visits_each if name == "per_unit" else n for name in names]
        return [low <= value <= high for (low, high), value in zip(bounds, expected, strict=True)]

    samples = [random.random(n) < keep_probability for _ in range(50)]
    counted = np.sum(
        [covers(replace(complete, keep_probability=keep_probability).take(sample)) for sample in samples], axis=0
    )
    assert (counted > 41).all()
    assert not np.any([covers(complete.take(sample)) for sample in samples])


def test_units_that_may_lack_decisions_are_counted() -> None:
    """Of two visits, of a visit of two decisions, of a single decision."""
    of = visits([1, 1, 2, 3], [0, 2, 0, 0])
    visit = np.array([0, 1, 2, 2, 3])
    decisions = ServedDecisions(
        visit=visit, group=np.zeros(5, np.int64), at=of.started_at[visit], rewards=np.ones((1, 5)),
        is_mature=np.ones((1, 5), np.bool_), keep_probability=np.array([0.5, 0.5, 0.5, 0.5, 0.25]),
    )  # fmt: skip
    columns = {name: column.tolist() for name, column in unit_sums(of, decisions, now=NOW).columns.items()}
    assert [columns[name] for name in SAMPLED_FLAGS] == [[1, 1, 0], [0, 1, 0]]
    assert columns["units"] == pytest.approx([4 / 3, 4 / 3, 4])
    assert columns["visits"] == pytest.approx([4, 4 / 3, 4])
    assert columns["decisions"] == [4, 4, 4]


# -- equal variants --


class Shop(NamedTuple):
    """A simulated log; assigned: the variant of each user; entry: when each was assigned."""

    visits: Visits
    decisions: ServedDecisions
    past: ServedDecisions
    entry: Ids


def shop(rng: np.random.Generator, users: int = 240, *, more: float = 0.0) -> Shop:
    """Users who come back as often as they like to, before their assignment and after it. more: of visits, in `b`."""
    assigned, liking = rng.integers(0, 2, users), rng.beta(3, 2, users)
    before = rng.geometric(1 - 0.9 * liking) - 1
    after = rng.geometric(1 - np.minimum(0.9 * liking + more * assigned, 0.95))
    number, first = before + after, rng.integers(0, 20 * DAY_US, users)
    # visits lie apart by two days on average; the first one after the assignment is at `first`
    user, start = np.repeat(np.arange(users), number), offsets(number)[:-1]
    spent = np.cumsum(rng.exponential(2 * DAY_US, len(user)).astype(np.int64) + HOUR)
    at = spent - np.repeat(spent[start + before] - first, number)
    keys = hash_bits(user, salt=3).astype(np.int64)
    of = Visits(person=keys, unit=keys, started_at=at, ended_at=at + HOUR // 2, is_over=at + HOUR // 2 < NOW)
    # decisions, with the taste of their user
    length = rng.geometric(0.4, len(user))
    visit = np.repeat(np.arange(len(user)), length)
    minute = np.arange(len(visit)) - np.repeat(offsets(length)[:-1], length)
    when = at[visit] + minute * 60_000_000
    reward = (rng.random(len(visit)) < 0.1 + 0.5 * liking[user[visit]]).astype(np.float64)
    every = ServedDecisions(
        visit=visit, group=assigned[user[visit]], at=when, rewards=reward[None], is_mature=(when < NOW - DAY_US)[None]
    )
    served = at[visit] >= first[user[visit]]
    past = replace(every.take(~served), group=np.zeros(int((~served).sum()), np.int64))
    return Shop(of, every.take(served & (when < NOW)), past, first[user])


def compare(log: Shop, *, adjusted: bool = False) -> Outcomes:
    past = unit_sums(log.visits, log.past, now=log.entry) if adjusted else None
    sums = outcomes.fold(unit_sums(log.visits, log.decisions, now=NOW), [*METRICS.values()], past=past)
    return Outcomes(sums=sums, level=0.95, is_adjusted=adjusted)


def most(runs: int, level: float) -> float:
    """So many of these runs may alarm: at their level, and three standard errors."""
    return runs * level + 3 * np.sqrt(runs * level * (1 - level))


def alarms_of_equal_variants(runs: int, *, adjusted: bool) -> int:
    """Of the metric that alarms most often, at 5 %; the interval covers 0 where there is no alarm."""
    alarms = dict.fromkeys(METRICS, 0)
    for seed in range(runs):
        figures = compare(shop(np.random.default_rng((8, seed))), adjusted=adjusted)
        for name, metric in METRICS.items():
            row = figures.compare(1, metric)
            assert row.p_value is not None
            assert row.lower is not None
            assert row.upper is not None
            assert (
                (row.p_value < 0.05) == (row.lower > 0 or row.upper < 0) == (row.answer.answer in ("better", "worse"))
            )
            alarms[name] += row.p_value < 0.05
    return max(alarms.values())


def alarms_of_equal_numbers(runs: int) -> int:
    """Of different numbers of decisions, at 1e-3."""
    wanted = comparison.per_decision(0)
    alarms = 0
    for seed in range(runs):
        log = shop(np.random.default_rng((9, seed)), 100)
        sums = outcomes.fold(unit_sums(log.visits, log.decisions, now=NOW), wanted)
        alarms += Outcomes(sums=sums, level=0.95).differs_from_first(1, wanted[0])
    return alarms


@pytest.mark.simulation
@pytest.mark.parametrize("adjusted", [False, True])
def test_equal_variants_alarm_in_a_twentieth(adjusted: bool) -> None:
    """Three standard errors of 100 runs, seeded; of 400: `python -m tests.benchmarks -k alarms`."""
    assert alarms_of_equal_variants(100, adjusted=adjusted) <= most(100, 0.05)


@pytest.mark.slow
def test_different_numbers_of_decisions_alarm_in_a_thousandth() -> None:
    """200 runs at 1e-3, seeded: more than one alarms in one of 57; of 1,000: `python -m tests.benchmarks -k alarms`."""
    assert alarms_of_equal_numbers(200) <= 1


def halves(log: Shop) -> list[Outcomes]:
    """The figures of users assigned in the first ten days, and in the next ten."""
    units = unit_sums(log.visits, log.decisions, now=NOW)
    sides = [units.take(units.entry < 10 * DAY_US), units.take(units.entry >= 10 * DAY_US)]
    return [Outcomes(sums=outcomes.fold(side, [*METRICS.values()]), level=0.95) for side in sides]


def alarms_of_equal_ages(runs: int) -> int:
    """Of differences of two metrics that change with age, at 1e-3."""
    alarms = 0
    for seed in range(runs):
        older, younger = halves(shop(np.random.default_rng((11, seed)), 120))
        alarms += sum(
            outcomes.changes_with_age(older, younger, 1, METRICS[name]) for name in ("visits", "reward_per_unit")
        )
    return alarms


@pytest.mark.slow
def test_differences_that_do_not_change_with_age_alarm_in_a_thousandth() -> None:
    """2 metrics in 100 runs at 1e-3, seeded: more than one alarms in one of 57; of 500: `-k alarms`, as above."""
    assert alarms_of_equal_ages(100) <= 1


def test_a_difference_that_grows_with_the_age_of_units_is_noticed() -> None:
    """In `b` users come back twice as often, but the younger half had no time for that."""
    log = shop(np.random.default_rng(12), 1_500, more=0.3)
    late = log.decisions.at < 12 * DAY_US
    older, younger = halves(log._replace(decisions=log.decisions.take(late)))
    assert outcomes.changes_with_age(older, younger, 1, METRICS["visits"])


@pytest.mark.parametrize(("users", "changes"), [(2, False), (40, True)])
def test_a_difference_of_few_users_changes_with_age_by_chance(users: int, changes: bool) -> None:
    """By 7 standard errors: p is .02 by Student's t of two users in each half, and below 1e-8 of 40."""

    def half(gain: float) -> Any:
        sides = (MetricValue(units=900, value=1.0, error=1e-3), MetricValue(units=users, value=1 + gain, error=0.1))
        return SimpleNamespace(value=lambda group, metric: sides[group], level=0.95)

    assert outcomes.changes_with_age(half(1.0), half(0.0), 1, METRICS["visits"]) == changes


def test_units_that_came_late_have_visits_to_come() -> None:
    """Ten units make a visit each, and those five that have been long enough another one: 1.5 of 2 so far."""
    assert outcomes.share_of_visits(np.array([10.0, 5.0]), np.array([5.0, 5.0])) == 0.75
    assert outcomes.share_of_visits(np.array([10.0, 10.0]), np.array([0.0, 10.0])) == 1
    assert np.isnan(outcomes.share_of_visits(np.zeros(2), np.zeros(2)))


def test_units_that_are_all_alike_in_each_variant_differ_where_they_are_seven() -> None:
    metric = METRICS["visits"]
    for users, differ in ((6, False), (7, True)):
        of = visits([*range(2 * users), *range(users)], [1.0] * 2 * users + [3.0] * users)
        sums = outcomes.fold(unit_sums(of, decision_each(of, (of.unit < users).astype(np.int64)), now=NOW), [metric])
        figures = Outcomes(sums=sums, level=0.95)
        assert figures.differs_from_first(1, metric) is differ
        assert (figures.compare(1, metric).value, figures.compare(1, metric).p_value) == (1.0, None)


def test_an_interval_per_unit_is_students_of_the_units_figures() -> None:
    """Four users with 1, 2, 3 and 6 visits: mean 3, standard error sqrt(14 / 12), 97.5 % quantile of t at 3: 3.1824."""
    of = visits(np.repeat([1, 2, 3, 4], [1, 2, 3, 6]).tolist(), np.arange(12).tolist())
    sums = outcomes.fold(unit_sums(of, decision_each(of), now=NOW), [METRICS["visits"], METRICS["returned_1d"]])
    visits_per_unit = Outcomes(sums=sums, level=0.95).value(0, METRICS["visits"])
    reach = 3.18244630 * np.sqrt(14 / 12)
    assert (visits_per_unit.value, visits_per_unit.units) == (3.0, 4)
    bounds = METRICS["visits"].bounds(visits_per_unit, 0.95)
    assert bounds == pytest.approx((max(0.0, 3 - reach), 3 + reach), rel=1e-8)


# -- the past --


def test_the_past_narrows_what_it_predicts() -> None:
    """Users who came often before come often after: this explains a share of the deviation."""
    log = shop(np.random.default_rng(4), 4_000, more=0.1)
    plain, adjusted = (compare(log, adjusted=by).compare(1, METRICS["visits"]) for by in (False, True))
    assert plain.lower is not None
    assert adjusted.lower is not None
    assert adjusted.narrowed is not None
    assert 0 < plain.lower < adjusted.lower
    assert 0.02 < adjusted.narrowed < 0.5


def test_theta_is_the_slope_over_all_units() -> None:
    log = shop(np.random.default_rng(5))
    units, past = unit_sums(log.visits, log.decisions, now=NOW), unit_sums(log.visits, log.past, now=log.entry)
    of_past = dict(zip(past.unit.tolist(), past.columns["visits"].tolist(), strict=True))
    before, after = np.array([of_past.get(unit, 0.0) for unit in units.unit.tolist()]), units.columns["visits"]
    means = [[column[units.group == group].mean() for group in (0, 1)] for column in (before, after)]
    centred = [column - np.array(of)[units.group] for column, of in zip((before, after), means, strict=True)]
    theta = (centred[0] @ centred[1]) / (centred[0] @ centred[0])
    row = compare(log, adjusted=True).compare(1, METRICS["visits"])
    assert row.theta == pytest.approx(theta, rel=1e-9)
    assert row.value == pytest.approx(means[1][1] - means[1][0] - theta * (means[0][1] - means[0][0]), rel=1e-9)


def test_without_a_past_nothing_is_adjusted() -> None:
    log = shop(np.random.default_rng(6))
    log = log._replace(past=ServedDecisions.empty(1))
    row, plain = (compare(log, adjusted=by).compare(1, METRICS["visits"]) for by in (True, False))
    assert (row.value, row.lower, row.theta, row.narrowed) == (plain.value, plain.lower, None, 0.0)
    assert row.reasons == ("no-past",)


# -- units of several groups --


def alarms_of_shared_units(runs: int) -> int:
    """In logs whose decisions are in either group by a coin: most users are in both, with the same taste. Of the metric
    that alarms most often, at 5 %."""
    alarms = dict.fromkeys(("reward_per_visit", "visits", "reward_per_unit"), 0)
    for seed in range(runs):
        rng = np.random.default_rng((10, seed))
        log = shop(rng, 120)
        decisions = replace(log.decisions, group=rng.integers(0, 2, len(log.visits.unit))[log.decisions.visit])
        units = unit_sums(log.visits, decisions, now=NOW)
        sums = outcomes.fold(units, [METRICS[name] for name in alarms], overlap=True)
        figures = Outcomes(sums=sums, level=0.95)
        for name in alarms:
            p_value = figures.compare(1, METRICS[name]).p_value
            assert p_value is not None
            alarms[name] += p_value < 0.05
    return max(alarms.values())


@pytest.mark.slow
def test_groups_that_share_units_alarm_in_a_twentieth() -> None:
    """Three standard errors of 100 runs, seeded; of 400: `python -m tests.benchmarks -k alarms`."""
    assert alarms_of_shared_units(100) <= most(100, 0.05)


# -- batches --


@pytest.mark.parametrize("users", [60, pytest.param(N_BLOCKS * 3, marks=pytest.mark.slow)])
def test_batches_of_whole_persons_add_up(users: int) -> None:
    log = shop(np.random.default_rng(7), users)
    parts, past = [], unit_sums(log.visits, log.past, now=log.entry)
    piece = hash_bits(log.visits.person, salt=1) % np.uint64(3)
    for number in (2, 0, 1):
        units = unit_sums(log.visits, log.decisions.take(piece[log.decisions.visit] == number), now=NOW)
        parts.append(outcomes.fold(units, [*METRICS.values()], past=past, overlap=True))
    added = Outcomes(sums=reduce(add, parts), level=0.95, is_adjusted=True)
    every = outcomes.fold(
        unit_sums(log.visits, log.decisions, now=NOW), [*METRICS.values()], past=past, overlap=True
    )  # fmt: skip
    complete = Outcomes(sums=every, level=0.95, is_adjusted=True)
    for metric in METRICS.values():
        first, second = added.compare(1, metric), complete.compare(1, metric)
        for name in ("value", "lower", "upper", "p_value", "theta", "narrowed"):
            figure = getattr(second, name)
            assert getattr(first, name) == (figure and pytest.approx(figure, rel=1e-8, abs=1e-12))
        assert added.value(1, metric).value == pytest.approx(complete.value(1, metric).value, rel=1e-12)
