"""An audience that reads a page from the top, and mostly leaves it at its first click."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array, Flags
from rlrec.simulate.base import highest, require_between
from rlrec.simulate.bernoulli import Bernoulli
from rlrec.simulate.pbm import RATES


@dataclass(kw_only=True, eq=False)
class Cascade(Bernoulli):
    """rates: probability of a click for each arm that is looked at, in [0, 1]. A visitor reads from the top; after a
    click they read on with probability `resume`. Source: the cascade model of Craswell, Zoeter, Taylor and Ramsey 2008
    (resume 0), and the dependent click model of Guo, Liu and Wang 2009."""

    rates: tuple[float, ...] = RATES
    resume: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("resume", self.resume, 0, 1)

    def respond(self, attraction: Array) -> tuple[Array, Array]:
        if attraction.ndim == 1:
            return super().respond(attraction)
        # attracted where they look; a click stops the reading unless it is resumed
        attracted = self._rng.random(attraction.shape) < attraction
        stops = attracted & (self._rng.random(attraction.shape) >= self.resume)
        reads: Flags = np.cumsum(stops, axis=1) - stops == 0
        return (attracted & reads).astype(np.float64), self._clicks(attraction)

    def best(self, means: Array, positions: int) -> Array:
        # the best arms, best first: to exchange neighbours in any other order does not make the sum smaller
        return self._clicks(highest(means, positions)).sum(axis=1)

    def _clicks(self, attraction: Array) -> Array:
        """Probability of a click at each position of pages, (n, positions)."""
        passes = np.cumprod(1 - attraction * (1 - self.resume), axis=1)
        return attraction * np.column_stack([np.ones(len(attraction)), passes[:, :-1]])
