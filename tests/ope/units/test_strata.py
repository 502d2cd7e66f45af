"""Several loggers in one estimate: unbiased, as precise as they can be together, and honest about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlrec import ope
from rlrec.arrays import Array, Ids
from rlrec.ope.comparisons.comparison import compare
from rlrec.ope.sums.base import LogBatch
from rlrec.ope.units.estimate import Estimate, FinishOptions
from rlrec.ope.units.fold import ImpressionFold, RowSums
from rlrec.ope.units.strata import Stratum, Weighting, by_logger, disagreeing_estimators, halves, strata_left_out
from tests.benchmarks.loggers import learners

ARMS = 10
RATES = np.linspace(0.1, 0.5, ARMS)
NORMAL = FinishOptions(interval="normal")


def leaning(arm: int, share: float) -> Array:
    """Probabilities with this one for an arm, and equal ones for all others."""
    probability = np.full(ARMS, (1 - share) / (ARMS - 1))
    probability[arm] = share
    return probability


TARGET = leaning(9, 0.9)


def log(logger: Array, n: int, generator: np.random.Generator, cluster: Ids | None = None) -> LogBatch:
    arm = generator.choice(ARMS, n, p=logger)
    return LogBatch(
        reward=(generator.random(n) < RATES[arm]).astype(float), propensity=logger[arm], target=TARGET[arm],
        cluster=generator.integers(0, 2**62, n) if cluster is None else cluster,
    )  # fmt: skip


def fold_of(*names: str, spans_batches: bool = False) -> ImpressionFold:
    return ImpressionFold(estimators=ope.parse(",".join(names)).impressions, spans_batches=spans_batches)


def weighed(fold: ImpressionFold, batches: dict[str, LogBatch]) -> tuple[list[Estimate], Weighting]:
    partials = {
        Stratum(name, half): fold.row_sums(batch.take(halves(batch.cluster) == half))
        for name, batch in batches.items()
        for half in (0, 1)
    }
    weighting = Weighting.from_strata(fold, partials)
    return fold.finish(weighting.total(partials), NORMAL), weighting


def unlike_of(names: str, levels: list[float], seed: int, *, n: int = 2_000) -> frozenset[str]:
    """The estimators by which loggers differ whose rewards are those of the others times a level."""
    generator, fold, partials = np.random.default_rng(seed), fold_of(*names.split(",")), {}
    for number, level in enumerate(levels):
        batch = log(leaning(number, 0.3), n, generator)
        batch = replace(batch, reward=batch.reward * (generator.random(n) < level))
        for half in (0, 1):
            partials[Stratum(f"l{number}", half)] = fold.row_sums(batch.take(halves(batch.cluster) == half))
    return disagreeing_estimators(by_logger(fold, partials).values())


def test_loggers_at_different_levels_are_seen_in_every_log() -> None:
    assert all(unlike_of("ips,snips", [1.0, 0.5], seed, n=4_000) == {"ips", "snips"} for seed in range(30))


@pytest.mark.parametrize("loggers", [2, 6])
def test_loggers_of_the_same_rewards_are_alike(loggers: int) -> None:
    """At most 1 in 100 logs alarms: 3 of 60 in 2 % of all seeds."""
    assert sum(bool(unlike_of("ips,snips", [1.0] * loggers, seed)) for seed in range(60)) <= 2


def test_a_difference_that_decides_nothing_is_none() -> None:
    """A hundredth, by far more than chance."""
    generator, fold = np.random.default_rng(1), fold_of("snips")
    batches = [log(TARGET, 1_000, generator) for _ in range(2)]
    rewards = [0.9 + 0.001 * batch.reward for batch in batches]
    sides = [replace(batches[0], reward=rewards[0]), replace(batches[1], reward=1.01 * rewards[1])]
    partials = {Stratum(str(side), 0): fold.row_sums(batch) for side, batch in enumerate(sides)}
    assert not disagreeing_estimators(by_logger(fold, partials).values())


def test_effective_sample_sizes_of_loggers_add_up() -> None:
    generator, fold = np.random.default_rng(1), fold_of("snips")
    batches = {"near": log(leaning(9, 0.7), 10_000, generator), "old": log(leaning(0, 0.7), 10_000, generator)}
    near, old = (fold.finish(fold.row_sums(batch), NORMAL)[0].ess or 0.0 for batch in batches.values())
    ((both,), _) = weighed(fold, batches)
    assert both.ess == pytest.approx(near + old, rel=0.02)
    assert near > 10 * old


def test_weights_are_1_on_average_and_in_inverse_proportion_to_the_mean_square() -> None:
    generator, fold = np.random.default_rng(2), fold_of("ips")
    loggers = {"near": leaning(9, 0.7), "old": leaning(0, 0.7)}
    _, weighting = weighed(fold, {name: log(logger, 20_000, generator) for name, logger in loggers.items()})
    (table,) = weighting.table
    near, old = (float((TARGET**2 / logger).sum()) for logger in loggers.values())
    assert table[0].weight / table[1].weight == pytest.approx(old / near, rel=0.05)
    assert sum(each.rows * each.weight for each in table) == pytest.approx(40_000)


def test_the_sums_of_one_logger_stay_as_they_are() -> None:
    fold = fold_of("ips")
    partial = fold.row_sums(log(leaning(9, 0.7), 100, np.random.default_rng(3)))
    weighting = Weighting.from_strata(fold, {Stratum(): partial})
    assert weighting.total({Stratum(): partial}) is partial
    assert weighting.table == ()


def test_a_logger_without_its_heavy_weights_counts_no_more_than_others() -> None:
    """Of 60 rows none shows the arm that carries all weight: their mean square is far below 1."""
    generator, fold = np.random.default_rng(4), fold_of("ips")
    rare = log(leaning(0, 0.999), 60, generator)
    assert rare.weight.max() < 1
    ((estimate,), weighting) = weighed(fold, {"rare": rare, "old": log(leaning(0, 0.5), 5_000, generator)})
    of_old, of_rare = weighting.table[0]
    assert of_rare.weight <= of_old.weight * 1.01
    assert estimate.mean_weight == pytest.approx(1, abs=0.1)


def by_half(fold: ImpressionFold, batches: dict[str, LogBatch]) -> dict[Stratum, RowSums]:
    """The sums of each half of the clusters of each logger."""
    return {
        Stratum(name, half): fold.row_sums(batch.take(halves(batch.cluster) == half))
        for name, batch in batches.items() for half in (0, 1)
    }  # fmt: skip


@pytest.mark.parametrize(("missed", "expected"), [(60, set()), (400, {Stratum("near", 0), Stratum("near", 1)})])
def test_a_logger_that_missed_a_little_by_chance_counts(missed: int, expected: set[Stratum]) -> None:
    """It never showed the arm that weighs most in the first rows: 3 % of its mean weight are gone, or 17 %."""
    generator, fold = np.random.default_rng(8), fold_of("snips")
    near, old = log(TARGET, 2_000 + missed, generator), log(leaning(0, 0.5), 5_000, generator)
    near = replace(near, target=np.where(np.arange(len(near)) < missed, 0.0, near.target))
    assert strata_left_out(fold, by_half(fold, {"near": near, "old": old})) == expected


@pytest.mark.parametrize(("logger", "expected"), [("heavy", "near"), ("even", "far")])
def test_a_logger_that_missed_much_counts_where_the_others_tell_next_to_nothing(logger: str, expected: str) -> None:
    """It missed half of what weighs most; the log beside it did not, and has few heavy weights, or none."""
    generator, fold = np.random.default_rng(0), fold_of("snips")
    far = log(leaning(0, 0.6), 4_000, generator)
    near = log(TARGET if logger == "even" else leaning(0, 0.9), 300, generator)
    far = far.take((far.target < 0.5) | (generator.random(4_000) < 0.5))
    strata = {Stratum(expected, half) for half in (0, 1)}
    assert strata_left_out(fold, by_half(fold, {"far": far, "near": near})) == strata


@pytest.mark.parametrize("half", [0, 1])
def test_what_is_left_out_of_a_half_does_not_depend_on_its_weights(half: int) -> None:
    """Whatever these are: the other half of the old log has no heavy weight and counts, or is left out."""
    generator, fold, strata = np.random.default_rng(10), fold_of("snips"), set[bool]()
    near, old = log(leaning(9, 0.8), 1_000, generator), log(leaning(0, 0.999), 1_000, generator)
    for weight in (0.0, 0.999, 1.0):
        target = np.where(halves(old.cluster) == half, weight * old.propensity, old.target)
        out = strata_left_out(fold, by_half(fold, {"near": near, "old": replace(old, target=target)}))
        assert Stratum("old", half) in out
        strata.add(Stratum("old", 1 - half) in out)
    assert strata == {True, False}


def test_halves_count_by_their_rows_whatever_is_left_out_of_one() -> None:
    generator, fold = np.random.default_rng(11), fold_of("snips")
    sums = by_half(fold, {name: log(TARGET, 1_000, generator) for name in ("first", "second")})
    weighting = Weighting.from_strata(fold, sums, left_out=frozenset([Stratum("first", 0)]))
    rows = {stratum: partial.weights["weight"].rows for stratum, partial in sums.items()}
    counts = [sum(weighting.factors[Stratum(name, half)][0] * rows[Stratum(name, half)] for name in ("first", "second"))
              for half in (0, 1)]  # fmt: skip
    sizes = [rows[Stratum("first", half)] + rows[Stratum("second", half)] for half in (0, 1)]
    assert counts[0] / counts[1] == pytest.approx(sizes[0] / sizes[1])
    assert sum(counts) == pytest.approx(2_000 - rows[Stratum("first", 0)])
    assert not weighting.absent_loggers


def test_a_logger_whose_heavy_weights_did_not_occur_in_one_half_counts_little_in_the_other() -> None:
    """Of 2,000 rows none of one half shows the arm that weighs 900, and one of the other does."""
    generator, fold = np.random.default_rng(12), fold_of("snips")
    old = log(leaning(0, 0.991), 2_000, generator)
    heavy = np.flatnonzero(old.target > 0.5)[0]
    old = old.take((old.target < 0.5) | (np.arange(2_000) == heavy))
    _, weighting = weighed(fold, {"near": log(leaning(9, 0.5), 2_000, generator), "old": old})
    half = int(halves(old.cluster)[old.target > 0.5][0])
    assert weighting.factors[Stratum("old", half)][0] < 0.01


def test_nothing_that_does_not_weigh_is_weighed() -> None:
    generator, fold = np.random.default_rng(5), fold_of("ips", "dm")
    batches = {}
    for name, logger in (("near", leaning(9, 0.7)), ("old", leaning(0, 0.7))):
        batch = log(logger, 1_000, generator)
        predicted = np.full(1_000, 1.0 if name == "near" else 0.0)
        batches[name] = LogBatch(**{**batch.columns(), "predicted": predicted, "expected": predicted})
    (_, dm), _ = weighed(fold, batches)
    assert dm.value == 0.5


def test_errors_are_clustered_over_users_of_several_loggers() -> None:
    generator, fold = np.random.default_rng(6), fold_of("snips", spans_batches=True)
    users = generator.integers(0, 2**62, 300)
    batches = {
        name: log(logger, 3_000, generator, cluster=generator.choice(users, 3_000))
        for name, logger in (("near", leaning(9, 0.7)), ("old", leaning(0, 0.5)))
    }
    ((estimate,), weighting) = weighed(fold, batches)
    rows = []
    for name, batch in batches.items():
        factor = np.array([weighting.factors[Stratum(name, half)][0] for half in halves(batch.cluster).tolist()])
        rows.append((batch.cluster, factor * batch.weight, batch.reward))
    cluster, weight, reward = (np.concatenate(column) for column in zip(*rows, strict=True))
    value = (weight * reward).sum() / weight.sum()
    influence = np.bincount(np.unique(cluster, return_inverse=True)[1], weights=weight * (reward - value))
    assert estimate.clusters == 300
    assert estimate.value == pytest.approx(value)
    assert estimate.std_error == pytest.approx(np.sqrt((influence**2).sum() * 300 / 299) / weight.sum())


@pytest.mark.simulation
def test_estimates_over_many_loggers_are_unbiased_and_cover() -> None:
    """300 logs of 8 loggers; alarms falsely in fewer than 1 of 1,000 seeds. In the same rows, without halves, the bias
    is .3 standard errors."""
    generator, fold, truth = np.random.default_rng(7), fold_of("ips", "snips"), float(TARGET @ RATES)
    loggers = {f"l{number}": leaning(9 if number == 0 else 0, 0.7) for number in range(8)}
    estimates = [
        weighed(fold, {name: log(logger, 1_000, generator) for name, logger in loggers.items()})[0]
        for _ in range(300)
    ]  # fmt: skip
    for of_label in zip(*estimates, strict=True):
        values, errors = (np.array([getattr(each, name) for each in of_label]) for name in ("value", "std_error"))
        bias = (values.mean() - truth) / values.std()
        covered = np.mean(np.abs(values - truth) < 1.96 * errors)
        assert abs(bias) < 3.3 / np.sqrt(300)
        assert covered > 0.95 - 3.3 * np.sqrt(0.05 * 0.95 / 300)


@pytest.mark.slow
def test_loggers_that_learn_can_be_weighed() -> None:
    """300 logs of each pair of loggers: what their luck does to the weights is less than .4 standard errors, the error
    is less than that of rows that count once, and intervals cover. Alarms falsely in fewer than 1 of 1,000 seeds."""
    for label, bias, covered, ratio in learners((0.1, 0.1, 0.1), logs=300, seed=11):
        assert abs(bias) < 0.4 + 3.3 / np.sqrt(300), label
        assert covered > 0.9 - 3.3 * np.sqrt(0.9 * 0.1 / 300), label
        assert ratio < 1.05, label


def test_two_targets_that_are_compared_count_loggers_alike() -> None:
    generator, fold = np.random.default_rng(8), fold_of("ips")
    sides: list[dict[Stratum, RowSums]] = [{}, {}]
    for name, logger in (("near", leaning(9, 0.7)), ("old", leaning(0, 0.7))):
        batch = log(logger, 2_000, generator)
        other = LogBatch(**{**batch.columns(), "target": batch.propensity})
        for half in (0, 1):
            for side, of_side in zip(sides, (batch, other), strict=True):
                side[Stratum(name, half)] = fold.row_sums(of_side.take(halves(batch.cluster) == half))
    weighting = Weighting.from_strata(fold, *sides)
    ours, theirs = (fold.estimator_folds(weighting.total(side))[0] for side in sides)
    assert compare(ours, theirs).clusters == 4_000
    assert [each.rows for each in weighting.table[0]] == [2_000, 2_000]
