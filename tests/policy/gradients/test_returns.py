"""What is subtracted from a return: by hand, and never anything that knows the return itself."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.policy.gradients import returns as baseline

RETURNS = np.array([1.0, 3.0, 8.0, 2.0, 6.0])
STEP = np.array([0, 1, 0, 0, 1])


def test_rloo_is_the_mean_of_the_other_visits_at_that_step() -> None:
    assert baseline.rloo(RETURNS, STEP).tolist() == [5.0, 6.0, 1.5, 4.5, 3.0]


def test_rloo_of_a_step_that_one_visit_reached_is_the_mean_of_all_others() -> None:
    result = baseline.rloo(np.array([1.0, 3.0, 8.0]), np.array([0, 0, 1]))
    assert result.tolist() == [3.0, 1.0, 2.0]


def test_rloo_of_one_decision_is_nothing() -> None:
    assert baseline.rloo(np.array([7.0]), np.array([0])).tolist() == [0.0]


def test_rloo_does_not_know_the_return_itself() -> None:
    changed = RETURNS + np.array([0, 0, 100.0, 0, 0])
    before, after = (baseline.rloo(item, STEP) for item in (RETURNS, changed))
    assert (before == after).tolist() == [False, True, True, False, True]


def ridge(x: np.ndarray, returns: np.ndarray) -> np.ndarray:
    """Coefficients with an intercept that is not pulled."""
    columns = np.column_stack([np.ones(len(x)), x])
    pull = np.diag([1e-9, *np.ones(x.shape[1])])
    result: np.ndarray = np.linalg.solve(columns.T @ columns + pull, columns.T @ returns)
    return result


def drawn(n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, 3))
    return x, 2 + x @ [1.0, -1.0, 0.5] + 0.1 * rng.normal(size=n), rng.integers(0, baseline.N_FOLDS, n)


def test_the_value_of_a_state_is_a_ridge_regression_on_the_other_half() -> None:
    x, returns, fold = drawn()
    values = baseline.values(x, fold, baseline.fit(baseline.value_sums(x, returns, fold)))
    for number in range(baseline.N_FOLDS):
        b = ridge(x[fold != number], returns[fold != number])
        assert values[fold == number] == pytest.approx(b[0] + x[fold == number] @ b[1:], abs=1e-9)
    assert np.corrcoef(values, returns)[0, 1] > 0.98


def test_no_state_is_valued_by_its_own_half() -> None:
    x, returns, fold = drawn()
    changed = np.where(fold == 0, returns + 50, returns)
    item, two = (
        baseline.values(x, fold, baseline.fit(baseline.value_sums(x, reported, fold)))
        for reported in (returns, changed)
    )
    assert item[fold == 0] == pytest.approx(two[fold == 0], abs=1e-9)
    assert (np.abs(item - two)[fold == 1] > 1).all()


def test_sums_of_batches_add_up() -> None:
    x, returns, fold = drawn()
    complete = baseline.value_sums(x, returns, fold)
    parts = baseline.value_sums(x[:20], returns[:20], fold[:20]) + baseline.value_sums(x[20:], returns[20:], fold[20:])
    assert parts.gram == pytest.approx(complete.gram, abs=1e-9)
    assert parts.xty == pytest.approx(complete.xty, abs=1e-9)


def test_a_half_without_visits_leaves_the_other_without_a_value() -> None:
    x, returns, _ = drawn()
    fold = np.zeros(len(x), np.int64)
    values = baseline.values(x, fold, baseline.fit(baseline.value_sums(x, returns, fold)))
    assert values == pytest.approx(np.zeros(len(x)))
