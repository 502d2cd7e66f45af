"""The rules of every registered session estimator: a new one is tested here without a line added."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from rlrec import ope
from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.ope.sums.visits import Course
from rlrec.ope.units.estimate import FinishOptions
from rlrec.ope.units.sessions import SessionEstimator, SessionFold
from tests.ope.visiting import complete, folded, judged, ragged, value

LABELS = ope.GROUPS["session"]


@pytest.fixture(params=LABELS)
def label(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def estimator(label: str) -> SessionEstimator:
    return ope.parse(label).sessions[label]


def total(label: str, estimator: SessionEstimator) -> Array:
    """Sums of the estimator's columns over a ragged log."""
    fold, partial = folded(ragged(1), label)
    return np.asarray(fold.estimator_folds(partial)[0].units.sum(axis=0))


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
def test_exact_on_the_complete_log(label: str, gamma: float) -> None:
    (estimate,) = judged(complete(), label, gamma=gamma, interval="normal")
    assert estimate.value == pytest.approx(value(gamma), abs=1e-9)
    assert estimate.mean_weight == pytest.approx(1, abs=1e-12)


def test_a_model_is_needed_where_it_is_declared(label: str, estimator: SessionEstimator) -> None:
    if not estimator.needs_model:
        assert judged(complete(model=False), label, gamma=0.7, interval="normal")[0].value == pytest.approx(value(0.7))
    else:
        with pytest.raises(InputError, match="need a reward model"):
            judged(complete(model=False), label)


def test_columns_are_those_of_a_course(estimator: SessionEstimator) -> None:
    batch = ragged(2)
    course = Course(batch, 0.9)
    assert all(getattr(course, name).shape == (len(batch),) for name in (*estimator.columns, estimator.weight_column))
    assert estimator.step_column is None or getattr(course, estimator.step_column).shape == batch.reward.shape
    assert not fields(estimator)


def test_scale_of_the_terms_does_not_matter(label: str, estimator: SessionEstimator) -> None:
    sums = total(label, estimator)
    assert float(estimator.value(7 * sums)) == pytest.approx(float(estimator.value(sums)), rel=1e-13)
    assert float(estimator.gradient(sums) @ sums) == pytest.approx(0.0, abs=1e-12)


def test_gradient_is_the_derivative(label: str, estimator: SessionEstimator) -> None:
    sums = total(label, estimator)
    for column, slope in enumerate(estimator.gradient(sums)):
        step = 1e-5 * np.eye(len(sums))[column]
        difference = float(estimator.value(sums + step) - estimator.value(sums - step)) / 2e-5
        assert slope == pytest.approx(difference, rel=1e-6, abs=1e-9)


def test_many_means_are_answered_at_once(label: str, estimator: SessionEstimator) -> None:
    sums = total(label, estimator) * np.array([1.0, 2.0, 0.5])[:, None] + 1
    assert estimator.value(sums).tolist() == [float(estimator.value(mean)) for mean in sums]
    assert estimator.gradient(sums).tolist() == [estimator.gradient(mean).tolist() for mean in sums]


@pytest.mark.parametrize("interval", ["bootstrap-t", "normal"])
def test_any_split_gives_the_same_estimate(label: str, interval: str) -> None:
    batch = ragged(4)
    fold, undivided = folded(batch, label)
    which = np.random.default_rng(0).integers(0, 4, len(batch))
    pieces = [fold.row_sums(batch.take(which == piece)) for piece in (2, 0, 3, 1)]
    direct, added = (
        fold.finish(partial, FinishOptions(interval=interval, replicates=199))[0]
        for partial in (undivided, (pieces[0] + pieces[1]) + (pieces[2] + pieces[3]))
    )
    assert (direct.verdict, direct.horizon) == (added.verdict, added.horizon)
    for name in ("value", "std_error", "lower", "upper", "ess", "mean_weight", "cluster_share", "ess_by_step"):
        assert getattr(added, name) == pytest.approx(getattr(direct, name), rel=1e-11, abs=1e-13)


def test_memory_of_a_cluster_that_spans_batches() -> None:
    fold = SessionFold(estimators=ope.parse("session").sessions, gamma=0.9, horizon=3, spans_batches=True)
    assert 8 + 8 * len(fold.columns) <= 72


def test_a_visit_the_target_never_makes_has_no_weight(label: str) -> None:
    batch = ragged(5)
    never = replace(batch, log_ratio=np.full(len(batch.reward), -np.inf))
    (estimate,) = judged(never, label)
    assert (estimate.ess, estimate.verdict) == (None, "insufficient")
    assert estimate.ess_by_step == (0.0,) * 7
    assert estimate.horizon == 0
