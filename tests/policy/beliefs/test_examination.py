"""The Beta that stands for the posterior of an arm which is looked at only sometimes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from rlrec.policy.beliefs import examination

CURVE = np.array([1.0, 0.5, 0.2])


def log_density(odds: float, alpha: float, beta: float, missed: np.ndarray) -> float:
    q = expit(odds)
    return float(alpha * np.log(q) + beta * np.log1p(-q) + missed @ np.log1p(-CURVE * q))


@pytest.mark.parametrize("seed", range(20))
def test_mode_and_curvature_are_those_of_the_posterior(seed: int) -> None:
    rng = np.random.default_rng(seed)
    alpha, beta = rng.uniform(0.1, 300), rng.uniform(0.1, 5)
    missed = rng.integers(0, 400, 3).astype(float)
    a, b = (each.item() for each in examination.posterior(np.array([alpha]), np.array([beta]), missed[None], CURVE))
    mode, h = logit(a / (a + b)), 1e-3
    at = [log_density(mode + step, alpha, beta, missed) for step in (-h, 0.0, h)]
    curvature = -(at[0] - 2 * at[1] + at[2]) / h**2
    assert abs(at[2] - at[0]) / (2 * h) < 1e-3 * curvature
    assert a * b / (a + b) == pytest.approx(curvature, rel=1e-3)


def test_where_every_position_is_examined_it_is_the_posterior() -> None:
    missed = np.array([[3.0, 4.0], [0.0, 0.0]])
    a, b = examination.posterior(np.array([2.5, 1.0]), np.ones(2), missed, np.ones(2))
    np.testing.assert_allclose([a, b], [[2.5, 1.0], [8.0, 1.0]], rtol=1e-12)


def test_an_arm_is_answered_the_same_whatever_others_are_asked() -> None:
    rng = np.random.default_rng(3)
    alpha, missed = rng.uniform(1, 500, 40), rng.integers(0, 3_000, (40, 3)).astype(float)
    together = examination.posterior(alpha, np.ones(40), missed, CURVE)
    alone = [examination.posterior(alpha[[arm]], np.ones(1), missed[[arm]], CURVE) for arm in range(40)]
    assert np.array_equal(together, np.concatenate(alone, axis=1))


def test_a_miss_that_was_hardly_looked_at_counts_little_beside_many_clicks() -> None:
    """An arm with attraction .9: a miss at examination .5 says a thirtieth of one at the top."""
    a, b = examination.posterior(np.array([90.0]), np.ones(1), np.array([[9.0, 0.0, 0.0]]), CURVE)
    _, more = examination.posterior(np.array([90.0]), np.ones(1), np.array([[9.0, 1.0, 0.0]]), CURVE)
    assert (a / (a + b)).item() == pytest.approx(0.9)
    assert (more - b).item() < 0.1
