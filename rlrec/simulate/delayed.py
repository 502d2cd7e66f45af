"""An audience whose clicks come late."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Index
from rlrec.errors import InputError
from rlrec.simulate.base import Step, require_between
from rlrec.simulate.bernoulli import Bernoulli

SHAPES = ("exponential", "fixed")


@dataclass(kw_only=True, eq=False)
class Delayed(Bernoulli):
    """rates: probability of a click for each arm. delay: decisions until it comes; of `shape` exponential that is the
    mean, rounded down for each click, of `fixed` it is every click's."""

    delay: float = 100.0
    shape: str = "exponential"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape not in SHAPES:
            raise InputError(f"shape is {self.shape!r}", hint=f"it is {' or '.join(SHAPES)}")
        require_between("delay", self.delay, 0, 1e6)

    def step(self, actions: Index) -> Step:
        observation, reward, terminated, truncated, info = super().step(actions)
        fixed = self.shape == "fixed"
        delays = np.full(actions.shape, self.delay) if fixed else self._rng.exponential(self.delay, actions.shape)
        info["delay"] = np.floor(delays)
        return observation, reward, terminated, truncated, info
