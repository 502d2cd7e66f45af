"""An audience that looks at the top of a page more than at its end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array
from rlrec.simulate.base import highest, require_between
from rlrec.simulate.bernoulli import Bernoulli

RATES = (0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05)


@dataclass(kw_only=True, eq=False)
class PositionBased(Bernoulli):
    """rates: probability of a click for each arm that is looked at, in [0, 1]. Position k is looked at with probability
    k^-power, whatever stands there. Source: the position-based click model, Craswell, Zoeter, Taylor and Ramsey 2008.
    """

    rates: tuple[float, ...] = RATES
    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("power", self.power, 0, 10)

    def respond(self, attraction: Array) -> tuple[Array, Array]:
        positions = 1 if attraction.ndim == 1 else attraction.shape[1]
        return super().respond(attraction * self.examination(positions))

    def best(self, means: Array, positions: int) -> Array:
        return highest(means, positions) @ self.examination(positions)

    def examination(self, positions: int) -> Array:
        """Probability that each position is looked at, (positions,)."""
        return np.arange(1, positions + 1, dtype=np.float64) ** -self.power
