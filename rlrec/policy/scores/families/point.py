"""This module handles fixed scores without noise, for greedy policies and upper confidence bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.policy.scores.floors import Floor
from rlrec.policy.scores.scores import DrawnOrder, ExactScores, Order
from rlrec.records import Record


class Point(ExactScores, Record, kw_only=False, eq=False):
    """Point scores have no noise. Arms with equal scores stand in a random order.

    values (m,): the score of each arm, in any unit. +inf (an arm never tried) and -inf are allowed; NaN is not."""

    values: Array

    def order(self, positions: int, *, earlier_order: Order | None = None) -> PointOrder:
        return PointOrder(self.values)

    def noise(self, shape: tuple[int, int], rng: np.random.Generator) -> Array:
        return self.values


@dataclass(frozen=True, eq=False)
class PointOrder(DrawnOrder):
    """A PointOrder is the order of arms with fixed scores. Equal scores are shuffled once per slate, which gives the
    same distribution as shuffling at each position.

    values (m,): the score of each arm."""

    values: Array

    def ranks(self, size: int) -> Array:
        # equal scores share the ranks that they occupy together
        _, level_of_arm, count = np.unique(-self.values, return_inverse=True, return_counts=True)
        level_end = np.cumsum(count)
        rank = np.arange(size)[:, None]
        is_in_level = (rank >= (level_end - count)[level_of_arm]) & (rank < level_end[level_of_arm])
        return is_in_level / count[level_of_arm]

    def next_arms(self, prefixes: Index, *, floor: Floor) -> Array:
        is_left = np.ones((len(prefixes), len(self.values)), dtype=bool)
        is_left[np.arange(len(prefixes))[:, None], prefixes] = False
        is_best = is_left & (self.values == np.where(is_left, self.values, -np.inf).max(axis=1, keepdims=True))
        return is_best / is_best.sum(axis=1, keepdims=True)

    def conditionals(self, slates: Index, *, floor: Floor, with_minimum: bool) -> tuple[Array, Array]:
        # levels of equal scores, best first, and how many arms of each are left; k - 1 arms use up at most k - 1 levels
        _, level_of_arm, count = np.unique(-self.values, return_inverse=True, return_counts=True)
        n, k = slates.shape
        levels, n_left = level_of_arm[slates], np.tile(count[:k], (n, 1))
        probability, minimum, slate = np.empty((n, k)), np.zeros((n, k)), np.arange(n)
        for position in range(k):
            # the arms of the best level left share the position
            best_level = (n_left > 0).argmax(axis=1)
            n_tied = n_left[slate, best_level]
            probability[:, position] = np.where(levels[:, position] == best_level, 1 / n_tied, 0.0)
            minimum[:, position] = np.where(n_tied == len(self.values) - position, 1 / n_tied, 0.0)
            # the arm that is shown leaves its level
            is_counted = levels[:, position] < n_left.shape[1]
            n_left[slate[is_counted], levels[is_counted, position]] -= 1
        return probability, minimum

    def ranking(self, keys: Array, size: int) -> Index:
        values = self.values
        top_arms = np.flatnonzero(values >= np.partition(values, -size)[-size])
        order = np.lexsort((keys[:, top_arms], np.broadcast_to(-values[top_arms], (len(keys), len(top_arms)))), axis=-1)
        return top_arms[order[:, :size]]
