"""Natural steps: against their closed form, and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.arrays import Array
from rlrec.policy.gradient import Parameters
from rlrec.policy.natural import GradientMoments, NaturalSteps, centred

BATCHES, DECISIONS, SLOTS = 40, 400.0, 1_000.0
NO_STATE = np.zeros(0)


def moments(batches: Array, fisher: Array) -> GradientMoments:
    """Moments of gradients by the bias, (batches, arms), and none by weights of states."""
    nothing: Parameters = {"linear": np.zeros((batches.shape[1], 0))}
    return GradientMoments(
        {"bias": batches.sum(axis=0)} | nothing, {"bias": (batches**2).sum(axis=0)} | nothing,
        {"bias": fisher} | nothing,
    )  # fmt: skip


def steps(gradients: Array, fisher: Array) -> NaturalSteps:
    counts = {"batches": BATCHES, "decisions": DECISIONS, "slots": SLOTS}
    return NaturalSteps.of(moments(gradients, fisher), NO_STATE, **counts)


def test_gradients_without_noise_make_steps_of_the_gradient_over_the_fisher_matrix() -> None:
    gradients, fisher = np.tile([3.0, 1.0, 2.0], (BATCHES, 1)), np.array([6.0, 1.0, 8.0])
    sizes = steps(gradients, fisher).sizes["bias"]
    np.testing.assert_allclose(sizes / sizes[0], fisher[0] / fisher, rtol=1e-9)


def test_noise_shrinks_steps_of_what_was_seldom_tried_most() -> None:
    rng, fisher = np.random.default_rng(3), np.array([100.0, 1.0])
    gradients = rng.normal([0.5, 0.005], np.sqrt(fisher / BATCHES), (BATCHES, 2))
    sizes = steps(gradients, fisher).sizes["bias"]
    assert 1 < sizes[1] / sizes[0] < fisher[0] / fisher[1]


def test_a_group_whose_batches_do_not_agree_stays() -> None:
    gradients = np.tile([[1.0, -2.0], [-1.0, 2.0]], (BATCHES // 2, 1))
    assert not steps(gradients, np.ones(2)).sizes["bias"].any()


def test_a_pass_changes_log_probabilities_by_the_rate_times_its_batches() -> None:
    rng, fisher, rate = np.random.default_rng(1), np.array([50.0, 20.0, 5.0]), 0.01
    gradients = rng.normal(1.0, 0.3, (BATCHES, 3))
    optimizer, parameters = steps(gradients, fisher), {"bias": np.zeros(3), "linear": np.zeros((3, 0))}
    for gradient in gradients:
        mean = {"bias": gradient / (DECISIONS / BATCHES), "linear": np.zeros((3, 0))}
        parameters, optimizer = optimizer.step(parameters, mean, rate=rate)
    change = np.sqrt((fisher * parameters["bias"] ** 2).sum() / SLOTS)
    assert change == pytest.approx(rate * BATCHES)


def test_weights_of_states_leave_what_the_bias_explains_to_the_bias() -> None:
    rng = np.random.default_rng(2)
    by_score, x = rng.normal(size=(30, 4)), rng.normal(2.0, 1.0, (30, 2))
    gradient, mean_state = {"bias": by_score.sum(axis=0), "linear": by_score.T @ x}, x.mean(axis=0)
    apart = centred(gradient, mean_state)
    np.testing.assert_allclose(apart["linear"], by_score.T @ (x - mean_state), atol=1e-12)
    optimizer = NaturalSteps({"bias": np.zeros(4), "linear": np.ones((4, 2))}, mean_state)
    moved, _ = optimizer.step({"bias": np.zeros(4), "linear": np.zeros((4, 2))}, gradient, rate=0.1)
    np.testing.assert_allclose(moved["bias"] + moved["linear"] @ mean_state, 0.0, atol=1e-12)
