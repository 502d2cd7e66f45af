"""This module simulates the short corridor with switched actions (Sutton & Barto 2018, example 13.1), in which a
visitor looks for the way out."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from rlrec.arrays import Array, Flags, Index
from rlrec.simulate.base import MAX_DECISIONS, Visitors, bounded_parameter

LEFT, RIGHT = 0, 1
SWITCHED_SQUARE = 1  # the square on which the arms are switched
GOAL_SQUARE = 3


@dataclass(kw_only=True, eq=False)
class Corridor(Visitors):
    """A Corridor has the squares 0, 1 and 2, and then the exit. A step to the left on square 0 stays on square 0; on
    square 1, left and right are switched. Every step costs 1. A visit begins on square 0, and is cut off after `cap`
    steps.

    A policy that only sees the context cannot tell the squares apart. The best policy of this sort goes right with
    probability .59, and takes 11.66 steps; its value is the optimum, as in the book. A policy that remembers what it
    has shown knows the square, and can do better: right, left, right."""

    cap: int = bounded_parameter(1_000, 3, MAX_DECISIONS)

    arms = 2
    names = ("left", "right")
    event = "reward"
    lowest_reward = -1.0

    def value(self, p_right: float) -> float:
        """Return the mean reward of a visit without a cap, under the policy that goes right with probability p =
        `right`, which is above 0 and below 1. The value is v0 of the equations v0 = -1 + p v1 + (1-p) v0, v1 = -1 + p
        v0 + (1-p) v2, v2 = -1 + (1-p) v1."""
        return (2 * p_right - 4) / (p_right * (1 - p_right))

    def optimum(self, positions: int = 1) -> float:
        """Return the mean reward of a visit under the best policy that cannot tell the squares apart. It is -(6 + 4
        sqrt 2), which is about -11.66."""
        return self.best_context_free()[0]

    def best_context_free(self) -> tuple[float, Array]:
        p_right = 2 - sqrt(2)
        return self.value(p_right), np.array([1 - p_right, p_right])

    def _serve_arms(self, actions: Index) -> tuple[Array, Array, Flags]:
        # the state is the square
        is_forward = (actions == RIGHT) != (self._state == SWITCHED_SQUARE)
        self._state = np.maximum(self._state + np.where(is_forward, 1, -1), 0)
        cost = np.full(len(actions), -1.0)
        return cost, cost.copy(), self._state == GOAL_SQUARE
