"""This module computes scores from normal posteriors of arms, for Thompson sampling over a linear model."""

from __future__ import annotations

import math

import numpy as np

from rlrec.arrays import Array
from rlrec.policy.scores.panels import ALL_ROWS, LOG_ROOT_TAU, TAIL_DROP, Rows
from rlrec.policy.scores.scores import ExactScores, Order
from rlrec.policy.scores.sweep import ContinuousOrder, match_density
from rlrec.records import Record


class Gaussian(ExactScores, Record, kw_only=False, eq=False):
    """Gaussian scores are independent draws from the normal posterior of each arm.

    mean (m,), sd (m,): the mean and the standard deviation (above 0) of each arm, in the unit of the reward."""

    mean: Array
    sd: Array

    def order(self, positions: int, *, earlier_order: Order | None = None) -> ContinuousOrder:
        # Means are taken relative to the best one, so that nodes near it are exact, or to an earlier origin that is as
        # good.
        # A standard deviation too small for doubles is raised to one that they show, for draws and probabilities alike.
        best_mean, old_order = float(self.mean.max()), match_density(Normal, earlier_order)
        sd = np.maximum(self.sd, 1e-9 * np.abs(self.mean - best_mean))
        origin = old_order.origin if old_order and abs(best_mean - old_order.origin) <= 100 * sd.min() else best_mean
        mean = self.mean - origin
        return ContinuousOrder(Normal, mean, sd, positions=positions, origin=origin, earlier_order=earlier_order)

    def noise(self, shape: tuple[int, int], rng: np.random.Generator) -> Array:
        return self.mean + self.sd * rng.standard_normal(shape)


class Normal:
    """A Normal object is the density of normal scores, one density for each mean and standard deviation.

    mean, sd (g,): the parameters of each density."""

    tails = None

    def __init__(self, mean: Array, sd: Array) -> None:
        self.mode, self._sd = mean, sd[:, None]
        self.log_peak = -np.log(sd) - LOG_ROOT_TAU
        self.step = 2 * sd

    def log_drop(self, distance: Array, rows: Rows = ALL_ROWS) -> Array:
        return 0.5 * np.square(distance / self._sd[rows])

    def slope(self, distance: Array, rows: Rows = ALL_ROWS) -> Array:
        return distance / np.square(self._sd[rows])

    def tail_distances(self) -> tuple[Array, Array]:
        reach = math.sqrt(2 * TAIL_DROP) * self._sd[:, 0]
        return reach, reach
