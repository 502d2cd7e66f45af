"""An audience that clicks each arm at a rate of its own, wherever it stands on the slate."""

from __future__ import annotations

from dataclasses import dataclass

from rlrec.arrays import Array
from rlrec.simulate.base import World, checked


@dataclass(kw_only=True, eq=False)
class Bernoulli(World):
    """rates: probability of a click for each arm, in [0, 1]."""

    rates: tuple[float, ...] = (0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4)

    def __post_init__(self) -> None:
        self._means = checked(self.rates)
        self.arms = len(self.rates)

    def means(self) -> Array:
        return self._means
