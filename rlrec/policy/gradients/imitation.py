"""This module fits the parameters of a trained kind so that it draws slates as another policy does.

The trained kind draws by the Plackett-Luce model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec.arrays import Array
from rlrec.policy.gradients import reinforce
from rlrec.policy.gradients.gradient import ARM_PARAMETERS, BILINEAR, Gradient, Parameters, score_states
from rlrec.policy.gradients.reinforce import LoggedSlates, Objective
from rlrec.policy.scores.floors import at_positions
from rlrec.policy.slates import plackett_luce

RIDGE = 1e-6  # keeps scores finite where an arm is never shown, or is always above the others
# the ridge for pages: with scores so far apart that only the floor changes the upper positions, the policy could not
# learn from its rewards; this costs a few percent of the copied order
PAGE_RIDGE = 2e-3
MAX_STEPS = 200  # of the fit, at most
TOLERANCE = 1e-8  # relative change of the loss at which the fit stops
MAX_LOG_RATIO = 30.0  # log of a ratio of probabilities at which it is cut
MIN_PROBABILITY = 1e-12  # smallest probability that an arm counts with


def scores(probability: Array, policy: Gradient) -> Array:
    """Return noiseless scores of m arms, (m,), with which the policy draws the arms at position 1 with the given
    probabilities. The probabilities include the floor.

    The scores are shifted so that the mean of exp(score / temperature) is 1, as for an arm with score 0, which an
    unknown arm has. probability (m,): the probability of each arm."""
    floor = at_positions(policy.exploration, 1).item()
    best_probability = np.maximum(probability - floor / len(probability), 0.0) + MIN_PROBABILITY * (1 - floor)
    return policy.temperature * np.log(best_probability / best_probability.mean())


def fit(policy: Gradient, start: Parameters, slates: Sequence[LoggedSlates], *, is_contextual: bool) -> Parameters:
    """Return the parameters that minimise the divergence KL(served || policy), where `served` is the distribution from
    which the slates were drawn.

    start: the parameters with which the fit begins; slates: drawn slates with the logarithm of the probability of
    every slot, weighted by their `gain`; is_contextual: whether weights on contexts are fitted, not only biases.

    The loss of a slot is w - 1 - ln w, where w is the probability of the slot over the logged probability. The mean
    loss is the divergence, and has no noise where the policy can match. Source: Plackett-Luce with a floor by L-BFGS,
    own derivation; the estimate of the divergence by Schulman 2020 (Approximating KL Divergence)."""
    from scipy.optimize import minimize

    # biases and weights on context features are free, weights on session features are not
    free_masks = {"bias": np.ones(start["bias"].shape, np.bool_)}
    if is_contextual:
        name = "cross" if policy.model == BILINEAR else "linear"
        free_masks[name] = np.zeros(start[name].shape, np.bool_)
        free_masks[name][:, policy.context_columns] = True
    total, objective = sum(float(batch.gain.sum()) for batch in slates), Objective(uses_weights=False, is_by_slot=True)
    ridge = PAGE_RIDGE if any(batch.shown_arms.shape[1] > 1 for batch in slates) else RIDGE

    def loss(values: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        parameters = _insert_free_values(start, free_masks, values)
        log_ratios = [_log_ratio(policy, parameters, batch) for batch in slates]
        weighted_slates = [
            replace(batch, gain=-batch.gain[:, None] * np.expm1(log_ratio))
            for batch, log_ratio in zip(slates, log_ratios, strict=True)
        ]
        losses = [np.expm1(log_ratio) - log_ratio for log_ratio in log_ratios]
        gradient = reinforce.sums(policy, parameters, weighted_slates, objective).gradient
        slope = np.concatenate([gradient[name][free_masks[name]] for name in free_masks])
        return ridge * float(values @ values) + _mean_loss(slates, losses), 2 * ridge * values - slope / total

    start_values = np.concatenate([start[name][free_masks[name]] for name in free_masks])
    limits: Any = {"maxiter": MAX_STEPS, "ftol": TOLERANCE}
    optimum = minimize(loss, start_values, jac=True, method="L-BFGS-B", options=limits)
    return _insert_free_values(start, free_masks, optimum.x)


def divergence(policy: Gradient, parameters: Parameters, slates: Sequence[LoggedSlates]) -> float:
    """Return the mean divergence KL(served || policy) of a slate, in nats, where `served` is the distribution from
    which the slates were drawn.

    slates: drawn slates with the logarithm of the probability of every slot, weighted by their `gain`."""
    losses = [-_log_ratio(policy, parameters, batch) for batch in slates]
    return max(0.0, _mean_loss(slates, losses))


def _mean_loss(slates: Sequence[LoggedSlates], losses: Sequence[Array]) -> float:
    """Return the mean, over slates weighted by their `gain`, of the sum of the losses of their slots.

    losses: for each batch of slates the loss of each slot, (n, k)."""
    total = sum(float(batch.gain @ loss.sum(axis=1)) for batch, loss in zip(slates, losses, strict=True))
    return total / sum(float(batch.gain.sum()) for batch in slates)


def _log_ratio(policy: Gradient, parameters: Parameters, slates: LoggedSlates) -> Array:
    """Return the logarithm of a ratio for every slot, (n, k). The ratio is the policy's probability of the slot, given
    the slots above, over the logged probability."""
    arm_parameters = {name: parameters[name][slates.arms] for name in ARM_PARAMETERS}
    score = score_states(policy.arm_weights({**parameters, **arm_parameters}, slates.arm_features), slates.state)
    temperature, floor = policy.temperature, policy.exploration
    log_slots = plackett_luce.log_conditionals(
        score, slates.shown_arms, slates.eligible, temperature=temperature, floor=floor
    )
    return np.minimum(log_slots - slates.log_propensity, MAX_LOG_RATIO)


def _insert_free_values(
    start: Parameters, free_masks: dict[str, npt.NDArray[np.bool_]], values: npt.NDArray[np.float64]
) -> Parameters:
    """Return the start parameters, in which the parameters that are fitted are replaced by `values`.

    free_masks: which numbers of each parameter are fitted; values: all fitted numbers, one parameter after another."""
    parameters = dict(start)
    for name, is_free in free_masks.items():
        n_free = int(is_free.sum())
        parameters[name] = start[name].copy()
        parameters[name][is_free], values = values[:n_free], values[n_free:]
    return parameters
