"""The policy gradient theorem, on visits that can all be counted: what a climb goes up is the expected return."""

from __future__ import annotations

from functools import reduce
from itertools import product

import numpy as np
import pytest

from rlrec.arrays import Array
from rlrec.policy.contexts.encoder import Design, Encoder
from rlrec.policy.contexts.features import Vector
from rlrec.policy.gradients import reinforce, returns
from rlrec.policy.gradients.gradient import Gradient, Parameters
from rlrec.policy.gradients.reinforce import GradientSums, LoggedSlates, Objective
from tests.benchmarks.spools import NOBODY, Server

STEPS, ARMS = 3, 3
DESIGN = Design(context=NOBODY, arm=Encoder([Vector("taste", 2)]))
RNG = np.random.default_rng(1)
DESCRIBED = np.column_stack([np.ones(ARMS), RNG.normal(size=(ARMS, 2))])
EARNED = RNG.normal(
    size=(STEPS, ARMS, ARMS)
)  # at a step, by an arm after another: what is shown now changes what comes
SHOWN = np.array(list(product(range(ARMS), repeat=STEPS)))  # every visit there can be
BEFORE = np.roll(SHOWN, 1, axis=1)
REWARDS = EARNED[np.arange(STEPS), SHOWN, BEFORE * (np.arange(STEPS) > 0)]


def chances(kind: Gradient, parameters: Parameters) -> Array:
    """Probability of every arm shown, (visits, steps)."""
    server = Server(parameters=parameters, kind=kind, described=DESCRIBED)
    rows = np.arange(len(SHOWN))
    return np.column_stack([
        server.chances(SHOWN[:, :step], REWARDS[:, :step])[rows, SHOWN[:, step]] for step in range(STEPS)
    ])  # fmt: skip


def value(kind: Gradient, parameters: Parameters, gamma: float) -> float:
    """Expected return, exactly."""
    return float(chances(kind, parameters).prod(axis=1) @ (REWARDS @ gamma ** np.arange(STEPS)))


def climbed(kind: Gradient, parameters: Parameters, gamma: float) -> Parameters:
    """What the fold says of all visits, each as often as the policy itself brings it about."""
    server, chance = Server(parameters=parameters, kind=kind, described=DESCRIBED), chances(kind, parameters)
    start = np.arange(len(SHOWN) + 1) * STEPS
    gain = returns.discount_rewards(REWARDS.ravel(), start, gamma=gamma).reshape(REWARDS.shape)
    lesson = [
        LoggedSlates(
            state=server.state(SHOWN[:, :step], REWARDS[:, :step]), arms=np.arange(ARMS), arm_features=DESCRIBED,
            shown_arms=SHOWN[:, [step]], log_propensity=np.log(chance[:, step]), gain=gain[:, step],
            returns=gain[:, step], scale=chance.prod(axis=1) * gamma**step,
        )
        for step in range(STEPS)
    ]  # fmt: skip
    steps = [reinforce.sums(kind, parameters, [pages], Objective()) for pages in lesson]
    return reduce(GradientSums.__add__, steps).gradient


@pytest.mark.parametrize("gamma", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("model", ["linear", "bilinear"])
def test_the_gradient_is_that_of_the_expected_return(model: str, gamma: float) -> None:
    """With gamma^t before the gradient of step t, by finite differences of every parameter."""
    kind = Gradient(design=DESIGN, model=model, floor=0.1, temperature=0.8)
    rng = np.random.default_rng(2)
    parameters = {name: rng.normal(scale=0.4, size=values.shape) for name, values in kind.zero_parameters(ARMS).items()}
    result = climbed(kind, parameters, gamma)
    for name, values in parameters.items():
        slope = np.zeros_like(values)
        for cell in np.ndindex(values.shape):
            aside = np.zeros_like(values)
            aside[cell] = 1e-5
            up, down = (value(kind, {**parameters, name: values + sign * aside}, gamma) for sign in (1, -1))
            slope[cell] = (up - down) / 2e-5
        assert result[name] == pytest.approx(slope, rel=1e-6, abs=1e-8), name
    assert max(np.abs(values).max(initial=0) for values in result.values()) > 0.01
