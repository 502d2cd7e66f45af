"""The rules of every registered slate estimator: a new one is tested here without a line added."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlrec import ope
from rlrec.arrays import Array
from rlrec.ope.units.estimate import FinishOptions
from rlrec.ope.units.slates import SlateEstimator
from tests.ope.paging import by_position, complete, fold, judged, truth, value

LABELS = [*ope.GROUPS["slate"], *(f"{name}:home" for name in ope.NEED_CURVE), "interpol", "sn-interpol:1:home"]


@pytest.fixture(params=LABELS)
def label(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def estimator(label: str) -> SlateEstimator:
    return fold(label).estimators[label]


def total(label: str, estimator: SlateEstimator) -> Array:
    """Sums of the estimator's columns over a log."""
    partial = fold(label).row_sums(complete(by_position))
    summary = partial.moments.summary().with_prefix(f"{estimator.weighing} ")
    return np.asarray(summary.total[[summary.columns[name] for name in estimator.columns]])


def test_exact_on_the_complete_log(label: str, estimator: SlateEstimator) -> None:
    (estimate,) = judged(complete(by_position), label, interval="normal")
    assert estimate.mean_weight == pytest.approx(1, abs=1e-12)
    if estimator.shape is None or estimator.shape.name:  # not on a curve that is wrong here
        assert estimate.value == pytest.approx(truth(by_position), abs=1e-12)


def test_rows_say_their_unit(label: str) -> None:
    (estimate,) = judged(complete(by_position), label, replicates=199)
    assert (estimate.unit, estimate.n, estimate.clusters) == ("slate", 5040, 1680)
    assert estimate.estimand == "mean reward per slate, as served, logging states"
    assert None not in (estimate.lower, estimate.upper, estimate.ess)


def test_scale_of_the_terms_does_not_matter(label: str, estimator: SlateEstimator) -> None:
    sums = total(label, estimator)
    assert float(estimator.value(7 * sums)) == pytest.approx(float(estimator.value(sums)), rel=1e-13)
    assert float(estimator.gradient(sums) @ sums) == pytest.approx(0.0, abs=1e-12)


def test_gradient_is_the_derivative(label: str, estimator: SlateEstimator) -> None:
    sums = total(label, estimator)
    for column, slope in enumerate(estimator.gradient(sums)):
        step = 1e-3 * np.eye(len(sums))[column]
        difference = float(estimator.value(sums + step) - estimator.value(sums - step)) / 2e-3
        assert slope == pytest.approx(difference, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("spans_batches", [True, False])
@pytest.mark.parametrize("interval", ["bootstrap-t", "normal"])
def test_any_split_gives_the_same_estimate(label: str, spans_batches: bool, interval: str) -> None:
    batch, of_label = complete(by_position), fold(label, spans_batches=spans_batches)
    which = (batch.cluster * 7 + 3) % 4  # never splits a cluster
    pieces = [of_label.row_sums(batch.take(which == piece)) for piece in (2, 0, 3, 1)]
    direct, added = (
        of_label.finish(partial, FinishOptions(interval=interval, replicates=199))[0]
        for partial in (of_label.row_sums(batch), (pieces[0] + pieces[1]) + (pieces[2] + pieces[3]))
    )
    assert (direct.verdict, direct.reasons) == (added.verdict, added.reasons)
    for name in ("value", "std_error", "lower", "upper", "ess", "mean_weight", "cluster_share", "max_weight"):
        assert getattr(added, name) == pytest.approx(getattr(direct, name), rel=1e-11, abs=1e-13)


def test_an_empty_batch_is_the_zero_of_the_sum(label: str) -> None:
    batch, of_label = complete(by_position), fold(label)
    nothing = of_label.row_sums(batch.take(np.empty(0, np.int64)))
    both = of_label.finish(nothing + of_label.row_sums(batch), FinishOptions(interval="normal"))
    assert both[0].value == pytest.approx(value(batch, label), rel=1e-12)
    (empty,) = of_label.finish(nothing)
    assert (empty.value, empty.n, empty.verdict) == (None, 0, "insufficient")


def test_a_slate_the_target_never_shows_has_no_weight(label: str) -> None:
    batch = complete(by_position)
    zero = {name: np.zeros_like(getattr(batch, name)) for name in ("marginal_ratio", "target_at", "additive")}
    (estimate,) = judged(replace(batch, log_ratio=np.full(len(batch.reward), -np.inf), **zero), label, replicates=199)
    assert (estimate.ess, estimate.verdict) == (None, "insufficient")
