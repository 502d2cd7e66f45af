"""The rules of every registered estimator of impressions: a new one is tested here without a line added."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest

from rlrec import ope
from rlrec.arrays import Array
from rlrec.ope.sums.base import ImpressionEstimator, LogBatch
from rlrec.ope.units.estimate import FinishOptions
from rlrec.ope.units.fold import ImpressionFold

NAMES = ope.GROUPS["impression"]
# Every parameter off its default, where it changes weights of the logs below.
OTHER = {name: f"{name}:0.75" for name in NAMES if fields(ope.estimator(name))}
LABELS = [*NAMES, *OTHER.values()]

# Two contexts, three arms: what the logger did, what the target does, and what an arm is worth.
LOGGER = np.array([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]])
TARGET = np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])
WORTH = np.array([[0.25, 0.5, 0.75], [0.5, 0.25, 0.75]])
TRUTH = float((TARGET * WORTH).sum(axis=1).mean())


def complete(model: Array = WORTH) -> LogBatch:
    """The log in which everything that can happen stands as often as it is likely: 16 of each context."""
    rows = [
        (context, arm, reward)
        for context, arm in product(range(2), range(3))
        for reward in (0, 1)
        for _ in range(round(16 * LOGGER[context, arm] * (WORTH[context, arm] if reward else 1 - WORTH[context, arm])))
    ]
    context, arm, reward = np.array(rows).T
    return LogBatch(
        reward=reward,
        propensity=LOGGER[context, arm],
        target=TARGET[context, arm],
        cluster=np.arange(len(rows)) // 3,
        predicted=model[context, arm],
        expected=(TARGET * model).sum(axis=1)[context],
        largest=(TARGET / LOGGER).max(axis=1)[context],
    )


def unbiased(estimator: ImpressionEstimator) -> bool:
    """Whether it weighs all rows by their own weights, and divides by nothing random."""
    return estimator.uses_weights and not estimator.is_biased and "weight" not in estimator.columns


def total(estimator: ImpressionEstimator, batch: LogBatch) -> Array:
    return np.asarray(estimator.terms(batch).sum(axis=0))


@pytest.fixture(params=LABELS)
def label(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def estimator(label: str) -> ImpressionEstimator:
    return ope.parse(label).impressions[label]


def test_every_parameter_is_tried_off_its_default() -> None:
    assert OTHER
    assert all(ope.estimator(other) != ope.estimator(name) for name, other in OTHER.items())


def test_exact_on_the_complete_log(label: str, estimator: ImpressionEstimator) -> None:
    batch = complete()
    bias = float(estimator.distortion(batch).mean())
    assert len(batch) == 32
    assert abs(float(estimator.value(total(estimator, batch))) - TRUTH) <= bias + 1e-12
    assert estimator.is_biased or bias == 0
    assert bias > 0 or label not in OTHER.values()


def test_a_wrong_model_misleads_only_who_trusts_it(estimator: ImpressionEstimator) -> None:
    batch = complete(model=1 - WORTH)
    if not estimator.uses_weights:
        assert float(estimator.value(total(estimator, batch))) != pytest.approx(TRUTH)
    elif not estimator.distortion(batch).any():
        assert float(estimator.value(total(estimator, batch))) == pytest.approx(TRUTH, abs=1e-12)


def test_unbiased_over_all_logs_of_two_rows() -> None:
    """Enumeration of the logger: every pair of (arm, reward) in context 0, weighed by its probability."""
    outcomes = [(arm, reward) for arm in range(3) for reward in (0, 1)]
    chance = [LOGGER[0, a] * (WORTH[0, a] if r else 1 - WORTH[0, a]) for a, r in outcomes]
    wrong = np.array([0.9, 0.1, 0.2])
    for estimator in filter(unbiased, ope.parse("impression").impressions.values()):
        mean = 0.0
        for (first, p), (second, q) in product(zip(outcomes, chance, strict=True), repeat=2):
            arm, reward = np.array([first, second]).T
            batch = LogBatch(
                reward=reward,
                propensity=LOGGER[0, arm],
                target=TARGET[0, arm],
                cluster=np.arange(2),
                predicted=wrong[arm],
                expected=np.full(2, TARGET[0] @ wrong),
            )
            mean += p * q * float(estimator.value(total(estimator, batch)))
        assert mean == pytest.approx(TARGET[0] @ WORTH[0], abs=1e-12)


def test_terms_have_the_columns_that_are_declared(estimator: ImpressionEstimator) -> None:
    batch = complete()
    assert estimator.terms(batch).shape == (len(batch), len(estimator.columns))
    assert estimator.distortion(batch).shape == (len(batch),)
    assert (estimator.distortion(batch) >= 0).all()


def test_scale_of_the_terms_does_not_matter(estimator: ImpressionEstimator) -> None:
    sums = total(estimator, complete())
    assert float(estimator.value(7 * sums)) == pytest.approx(float(estimator.value(sums)), rel=1e-14)
    assert float(estimator.gradient(sums) @ sums) == pytest.approx(0.0, abs=1e-12)


def test_gradient_is_the_derivative(estimator: ImpressionEstimator) -> None:
    sums = total(estimator, complete())
    for column, slope in enumerate(estimator.gradient(sums)):
        step = 1e-5 * np.eye(len(sums))[column]
        difference = float(estimator.value(sums + step) - estimator.value(sums - step)) / 2e-5
        assert slope == pytest.approx(difference, rel=1e-6, abs=1e-9)


def test_many_means_are_answered_at_once(estimator: ImpressionEstimator) -> None:
    sums = total(estimator, complete()) * np.array([1.0, 2.0, 0.5])[:, None] + 1
    assert estimator.value(sums).tolist() == [float(estimator.value(mean)) for mean in sums]
    assert estimator.gradient(sums).tolist() == [estimator.gradient(mean).tolist() for mean in sums]


@pytest.mark.parametrize("spans_batches", [True, False])
@pytest.mark.parametrize("interval", ["bootstrap-t", "normal"])
def test_any_split_gives_the_same_estimate(label: str, spans_batches: bool, interval: str) -> None:
    fold = ImpressionFold(estimators=ope.parse(label).impressions, spans_batches=spans_batches)
    batch = complete()
    which = (batch.cluster * 7 + 3) % 4  # never splits a cluster
    pieces = [fold.row_sums(batch.take(which == piece)) for piece in (2, 0, 3, 1)]
    direct, added = (
        fold.finish(partial, FinishOptions(interval=interval, reward_range=(0.0, 1.0), replicates=199))[0]
        for partial in (fold.row_sums(batch), (pieces[0] + pieces[1]) + (pieces[2] + pieces[3]))
    )
    assert direct.verdict == added.verdict
    for name in ("value", "std_error", "lower", "upper", "ess", "mean_weight", "cluster_share", "bias_bound"):
        figure, expected = getattr(added, name), getattr(direct, name)
        assert figure == (expected if expected is None else pytest.approx(expected, rel=1e-12, abs=1e-15))


def test_rows_that_cannot_be_weighed_count_only_for_those_who_do_not_weigh(estimator: ImpressionEstimator) -> None:
    batch = complete()
    holed = replace(batch, propensity=np.where(np.arange(32) < 8, np.nan, batch.propensity))
    weighable = batch.take(np.arange(32) >= 8)
    used = total(estimator, weighable if estimator.uses_weights else batch)
    np.testing.assert_allclose(total(estimator, holed), used, rtol=1e-14)


def test_the_other_value_of_a_parameter_changes_the_estimate() -> None:
    batch = complete(model=1 - WORTH)
    for name, other in OTHER.items():
        values = [
            float(estimator.value(total(estimator, batch)))
            for estimator in ope.parse(f"{name},{other}").impressions.values()
        ]
        assert values[0] != pytest.approx(values[1])
