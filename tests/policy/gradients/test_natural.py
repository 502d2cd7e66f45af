"""Natural steps: against their closed form, and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.arrays import Array
from rlrec.policy.gradients.gradient import Parameters
from rlrec.policy.gradients.natural import FoldGradients, MeanFeatures, NaturalSteps

BATCHES, DECISIONS, SLOTS = 40, 400.0, 1_000.0


def with_bias(values: Array, *, linear: int = 0) -> Parameters:
    """Parameters of biases alone: all others are 0. linear: how many weights of states an arm has."""
    m = len(values)
    return {
        "bias": values, "linear": np.zeros((m, linear)), "own": np.zeros((m, 4)), "history": np.zeros(4),
    }  # fmt: skip


def no_features(arms: int) -> MeanFeatures:
    return MeanFeatures(np.zeros(0), np.zeros((arms, 4)))


def folds(gradients: Array) -> FoldGradients:
    """Folds of gradients by the bias, (batches, arms)."""
    return FoldGradients(map(with_bias, gradients))


def steps(gradients: Array, fisher: Array) -> NaturalSteps:
    means = no_features(len(fisher))
    return NaturalSteps.from_gradients(folds(gradients), with_bias(fisher), means, decisions=DECISIONS, slots=SLOTS)


def test_gradients_without_noise_make_steps_of_the_gradient_over_the_fisher_matrix() -> None:
    gradients, fisher = np.tile([3.0, 1.0, 2.0], (BATCHES, 1)), np.array([6.0, 1.0, 8.0])
    sizes = steps(gradients, fisher).sizes["bias"]
    np.testing.assert_allclose(sizes / sizes[0], fisher[0] / fisher, rtol=1e-9)


def test_noise_shrinks_steps_of_what_was_seldom_tried_most() -> None:
    rng, fisher = np.random.default_rng(3), np.array([100.0, 1.0])
    gradients = rng.normal([1.0, 0.01], np.sqrt(fisher / BATCHES), (BATCHES, 2))
    sizes = steps(gradients, fisher).sizes["bias"]
    assert 1 < sizes[1] / sizes[0] < fisher[0] / fisher[1]


def test_an_arm_that_was_hardly_shown_follows_what_the_others_gain() -> None:
    """Gains by arm, as gradient over Fisher: the first was shown most and loses, the others win, the last of them was
    shown next to never. Its own gradient tells nothing; the mean of the arms does."""
    fisher = np.array([400.0, 30.0, 40.0, 20.0, 1e-9])
    gradient = np.append(np.array([-0.1, 0.9, 1.1, 1.0]) * fisher[:-1], 0.0)
    noise = np.random.default_rng(4).normal(0.0, np.sqrt(fisher), (BATCHES, 5))
    optimizer = steps(gradient / BATCHES + noise / BATCHES, fisher)
    moved = optimizer.step(with_bias(np.zeros(5)), with_bias(gradient), rate=1.0)
    change = moved["bias"]
    assert change[0] < 0 < change[4] < change[1:4].max()
    # the closed form: the posterior mean under a normal prior around the mean of the arms
    prior = folds(gradient / BATCHES + noise / BATCHES)
    of_prior = prior.noise("bias") / fisher.sum() * (fisher**2).sum() / prior.signal("bias")
    mean = (gradient / (fisher + of_prior)).sum() / (fisher / (fisher + of_prior)).sum()
    posterior = (gradient + of_prior * mean) / (fisher + of_prior)
    np.testing.assert_allclose(change / change[1], posterior / posterior[1], rtol=1e-9)


def test_signal_is_told_from_noise() -> None:
    """Of 400 draws without signal, fewer than 60 show some: 8 % are expected, standard error 1.4 %."""
    rng = np.random.default_rng(5)
    assert sum(folds(rng.normal(size=(BATCHES, 6))).signal("bias") > 0 for _ in range(400)) < 60
    signal, noise = np.full(6, 0.7), rng.normal(size=(BATCHES, 6))
    measured = folds(signal + noise).signal("bias")
    assert 0.5 < measured / ((BATCHES * signal) ** 2).sum() < 1.1
    assert folds(signal + noise).noise("bias") == pytest.approx(BATCHES * 6, rel=0.4)


def test_a_single_batch_tells_no_signal() -> None:
    alone = folds(np.ones((1, 3)))
    assert (alone.signal("bias"), alone.noise("bias")) == (0.0, 0.0)
    assert FoldGradients([]).total == {}


def test_a_group_whose_batches_do_not_agree_stays() -> None:
    gradients = np.tile([[1.0, -2.0], [-1.0, 2.0]], (BATCHES // 2, 1))
    assert not steps(gradients, np.ones(2)).sizes["bias"].any()


def test_a_group_whose_gradient_is_rounding_stays() -> None:
    """Batches agree on a sum that is 0 but for its last digits: a step by its own size would lead anywhere."""
    gradients = (with_bias(np.array([1.0, -1.0])) | {"history": np.full(4, 1e-16)} for _ in range(BATCHES))
    fisher = with_bias(np.ones(2)) | {"history": np.full(4, 1e-32)}
    folded = FoldGradients(gradients)
    optimizer = NaturalSteps.from_gradients(folded, fisher, no_features(2), decisions=DECISIONS, slots=SLOTS)
    assert optimizer.sizes["bias"].all()
    assert not optimizer.sizes["history"].any()


def test_a_pass_changes_log_probabilities_by_the_rate_times_its_batches() -> None:
    rng, fisher, rate = np.random.default_rng(1), np.array([50.0, 20.0, 5.0]), 0.01
    gradients = rng.normal(1.0, 0.3, (BATCHES, 3))
    optimizer, parameters = steps(gradients, fisher), with_bias(np.zeros(3))
    for gradient in gradients:
        parameters = optimizer.step(parameters, with_bias(gradient / (DECISIONS / BATCHES)), rate=rate)
    change = np.sqrt((fisher * parameters["bias"] ** 2).sum() / SLOTS)
    assert change == pytest.approx(rate * BATCHES)


def test_weights_of_features_leave_what_the_bias_explains_to_the_bias() -> None:
    """By scores of 30 decisions among 4 arms, with two features each, and what each remembers of every arm."""
    rng = np.random.default_rng(2)
    by_score, x, memory = rng.normal(size=(30, 4)), rng.normal(2.0, 1.0, (30, 2)), rng.random((30, 4, 4))
    of_memory = np.einsum("na,nah->ah", by_score, memory)
    gradient = {
        "bias": by_score.sum(axis=0),
        "linear": by_score.T @ x,
        "own": of_memory,
        "history": of_memory.sum(axis=0),
    }
    means = MeanFeatures(x.mean(axis=0), memory.mean(axis=0))
    apart = means.centre_gradient(gradient)
    np.testing.assert_allclose(apart["linear"], by_score.T @ (x - means.state), atol=1e-12)
    np.testing.assert_allclose(apart["own"], np.einsum("na,nah->ah", by_score, memory - means.memory), atol=1e-12)
    np.testing.assert_allclose(apart["history"], apart["own"].sum(axis=0), atol=1e-12)
    # a step of these weights moves no mean score
    sizes = {
        **with_bias(np.zeros(4), linear=2),
        "linear": np.ones((4, 2)),
        "own": np.ones((4, 4)),
        "history": np.ones(4),
    }
    optimizer = NaturalSteps(sizes, means, common_step=np.zeros(4), shares=np.zeros(4))
    moved = optimizer.step(with_bias(np.zeros(4), linear=2), gradient, rate=0.1)
    mean_memory = (means.memory * (moved["own"] + moved["history"])).sum(axis=1)
    np.testing.assert_allclose(moved["bias"] + moved["linear"] @ means.state + mean_memory, 0.0, atol=1e-12)
