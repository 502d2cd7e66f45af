"""An audience in which every visitor wants something else, and says so in the context."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.simulate.base import World, require_between

MODELS = ("linear", "logistic")
SPAN = 0.45  # that a linear mean goes up and down from 1/2: it never leaves [0, 1], so that the model is right
STEEPNESS = 2.0  # sd of a logistic arm's weights


@dataclass(kw_only=True, eq=False)
class Contextual(World):
    """Context x, uniform in [-1, 1]^features, new for every decision. The mean reward of arm a is 1/2 + w_a x, or
    sigmoid(w_a x). The weights of the arms are drawn by `seed`, and belong to the world, not to a run of it."""

    model: str = "linear"
    arms: int = 5
    features: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise InputError(f"model is {self.model!r}", hint=f"it is {' or '.join(MODELS)}")
        require_between("arms", self.arms, 2, 10_000)
        require_between("features", self.features, 1, 100)
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}", hint="it is 0 or more")
        weights = np.random.default_rng(self.seed).standard_normal((self.arms, self.features))
        linear = self.model == "linear"
        self._weights = weights * (SPAN / np.abs(weights).sum(axis=1, keepdims=True) if linear else STEEPNESS)

    def observe(self) -> Array:
        self._x = self._rng.uniform(-1, 1, (self._runs, self.features))
        return self._x

    def means(self) -> Array:
        score: Array = self._x @ self._weights.T
        return 0.5 + score if self.model == "linear" else 1 / (1 + np.exp(-score))
