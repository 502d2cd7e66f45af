"""The order of correlated scores: at every position an independent one of a decision's samples ranks the arms left."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.policy.scores import Sampled


@dataclass(frozen=True, eq=False)
class SampledOrder:
    """Shares of samples, exact for these samples; equal bests of a sample share it. Source: own derivation.

    Positions are independent given the arms left, so that no order of the whole page stands behind them."""

    scores: Sampled
    _known: dict[frozenset[int], Array] = field(default_factory=dict)

    def best(self) -> Array:
        return self._best(frozenset())

    def ranks(self, size: int) -> Array:
        """The first rank; NaN for deeper ones, which have no closed form."""
        found = np.full((size, len(self.scores)), np.nan)
        found[0] = self.best()
        return found

    def given(self, prefix: Index, *, floor: float) -> Array:
        return self._best(frozenset(prefix.tolist()))

    def shown(self, slates: Index, *, floor: float, least: bool) -> tuple[Array, Array]:
        chance, smallest = np.empty(slates.shape), np.zeros(slates.shape)
        for row, page in enumerate(slates.tolist()):
            for position, arm in enumerate(page):
                best = self._best(frozenset(page[:position]))
                chance[row, position] = best[arm]
                if least:
                    smallest[row, position] = np.delete(best, page[:position]).min()
        return chance, smallest

    def ranking(self, keys: Array, size: int) -> Index:
        raise NotImplementedError  # `slate.Pages` draws such pages position by position

    def _best(self, above: frozenset[int]) -> Array:
        """Share of the samples in which each arm is the best of those not above, (m,)."""
        if above not in self._known:
            values = self.scores.values
            if above:
                values = values.copy()
                values[:, list(above)] = -np.inf
            first = values == values.max(axis=1, keepdims=True)
            self._known[above] = (1 / first.sum(axis=1)) @ first / len(values)
        return self._known[above]
