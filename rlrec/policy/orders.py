"""The random order in which a vector of noisy scores stands: what every family of scores can say exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.policy.scores import Point


class Order(Protocol):
    """Random order of m scores. `floor` is the share of uniform picks, `slates` (n, k) arms from the first position."""

    def best(self) -> Array:
        """Probability that each arm is first, (m,)."""

    def ranks(self, size: int) -> Array:
        """Probability that each arm stands at rank 1..size of the vector, (size, m)."""

    def given(self, prefix: Index, *, floor: float) -> Array:
        """Probability that each arm is the best of those not in prefix (k,), given that page so far, (m,)."""

    def shown(self, slates: Index, *, floor: float, least: bool) -> tuple[Array, Array]:
        """Probability that the arm at each position is the best of those left, given the page above it, (n, k).

        Second, the smallest such probability of any arm left there, (n, k); zeros unless `least`."""

    def ranking(self, keys: Array, size: int) -> Index:
        """The first `size` arms of the order that uniforms keys (n, m) draw, (n, size)."""


@dataclass(frozen=True, eq=False)
class PointOrder:
    """Fixed scores; equal ones in an order drawn once a page, which is the same as anew at every position."""

    scores: Point

    def best(self) -> Array:
        return self.given(np.empty(0, np.intp), floor=0.0)

    def ranks(self, size: int) -> Array:
        # equal scores share the ranks they take together
        _, level, count = np.unique(-self.scores.values, return_inverse=True, return_counts=True)
        end = np.cumsum(count)
        rank = np.arange(size)[:, None]
        inside = (rank >= (end - count)[level]) & (rank < end[level])
        return inside / count[level]

    def given(self, prefix: Index, *, floor: float) -> Array:
        left = np.ones(len(self.scores), dtype=bool)
        left[prefix] = False
        values = self.scores.values
        top = left & (values == values[left].max())
        return np.asarray(top / top.sum())

    def shown(self, slates: Index, *, floor: float, least: bool) -> tuple[Array, Array]:
        _, level, count = np.unique(-self.scores.values, return_inverse=True, return_counts=True)
        n, k = slates.shape
        at = level[slates]
        # k - 1 arms can use up no more than k - 1 levels
        left = np.tile(count[:k], (n, 1))
        chance, smallest, page = np.empty((n, k)), np.zeros((n, k)), np.arange(n)
        for position in range(k):
            top = (left > 0).argmax(axis=1)
            tied = left[page, top]
            chance[:, position] = np.where(at[:, position] == top, 1 / tied, 0.0)
            smallest[:, position] = np.where(tied == len(self.scores) - position, 1 / tied, 0.0)
            taken = at[:, position] < left.shape[1]
            left[page[taken], at[taken, position]] -= 1
        return chance, smallest

    def ranking(self, keys: Array, size: int) -> Index:
        values = self.scores.values
        near = np.flatnonzero(values >= np.partition(values, -size)[-size])
        order = np.lexsort((keys[:, near], np.broadcast_to(-values[near], (len(keys), len(near)))), axis=-1)
        return near[order[:, :size]]


def top(scores: Array, size: int) -> Index:
    """The columns of the `size` largest of each row, largest first, (n, size)."""
    m = scores.shape[1]
    if size < m:
        chosen = np.argpartition(scores, m - size, axis=1)[:, m - size :]
    else:
        chosen = np.broadcast_to(np.arange(m), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1)
