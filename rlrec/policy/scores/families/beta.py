"""This module computes scores from Beta posteriors of arms, for Thompson sampling with rewards in [0, 1].

The scores are computed on the logit scale, u = logit x, where the density is log-concave, nearly normal for large
parameters and never infinite."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from rlrec.arrays import Array
from rlrec.policy.scores.panels import ALL_ROWS, LOG_ROOT_TAU, MAX_DISTANCE, TAIL_DROP, Rows, Tails
from rlrec.policy.scores.scores import ExactScores, Order
from rlrec.policy.scores.sweep import ContinuousOrder
from rlrec.records import Record

_MIN_STIRLING = 10.0  # from here on the series is exact in doubles


class Beta(ExactScores, Record, kw_only=False, eq=False):
    """Beta scores are independent draws from the Beta posterior of each arm.

    alpha, beta (m,): the parameters of each arm, above 0; error bounds hold from 0.1 to 1e7."""

    alpha: Array
    beta: Array

    def order(self, positions: int, *, earlier_order: Order | None = None) -> ContinuousOrder:
        return ContinuousOrder(BetaLogit, self.alpha, self.beta, positions=positions, earlier_order=earlier_order)

    def noise(self, shape: tuple[int, int], rng: np.random.Generator) -> Array:
        with np.errstate(divide="ignore"):  # the odds order as the probabilities do
            return rng.standard_gamma(self.alpha, shape) / rng.standard_gamma(self.beta, shape)


class BetaLogit:
    """A BetaLogit object is the density of logit x for x ~ Beta(alpha, beta), one density for each pair of parameters.

    alpha, beta (g,): the parameters of each density. Source: own derivation; the peak is the saddle-point form with
    the Stirling errors of Loader 2000 (for the binomial)."""

    def __init__(self, alpha: Array, beta: Array) -> None:
        total, smaller_parameter = alpha + beta, np.minimum(alpha, beta)
        parameters = np.concatenate([alpha, beta, total]).reshape(3, -1)
        logs, errors = np.log(parameters), stirling_error(parameters)
        self.mode = logs[0] - logs[1]
        self.log_peak = 0.5 * (logs[0] + logs[1] - logs[2]) - LOG_ROOT_TAU + (errors[2] - errors[0] - errors[1])
        # Reflected where alpha is larger, so that the linear term that cancels is the smaller one.
        self._sign = np.where(alpha <= beta, 1.0, -1.0)[:, None]
        self._p, self._n = (smaller_parameter / total)[:, None], total[:, None]
        self._alpha, self._beta = alpha, beta
        self._needs_clip = bool(smaller_parameter.min(initial=np.inf) < 2 * TAIL_DROP / MAX_DISTANCE)
        self.step = 2 * np.minimum(np.sqrt(1 / alpha + 1 / beta), 0.8)

    def log_drop(self, distance: Array, rows: Rows = ALL_ROWS) -> Array:
        """Return by how much the log density at a distance d from the mode is below its maximum, (rows, nodes). This is
        n (ln(1 + p (e^d - 1)) - p d), where n = alpha + beta, and p is the smaller of alpha / n and beta / n. The sign
        of the distance is reversed where alpha is larger than beta."""
        p, d = self._p[rows], distance * self._sign[rows]
        clipped_d = np.clip(d, -MAX_DISTANCE, MAX_DISTANCE) if self._needs_clip else d
        log_drop = np.expm1(clipped_d)
        log_drop *= p
        np.log1p(log_drop, out=log_drop)
        if self._needs_clip:
            log_drop += np.maximum(d - clipped_d, 0) * (1 - p) + np.maximum(clipped_d - d, 0) * p
            d = clipped_d
        d *= p
        log_drop -= d
        log_drop *= self._n[rows]
        return log_drop

    def slope(self, distance: Array, rows: Rows = ALL_ROWS) -> Array:
        p, sign = self._p[rows], self._sign[rows]
        growth = p * np.expm1(np.clip(distance * sign, -MAX_DISTANCE, MAX_DISTANCE))
        # n (x - p), computed without the difference
        return sign * self._n[rows] * growth * (1 - p) / (1 + growth)

    def tail_distances(self) -> tuple[Array, Array]:
        # Both sides fall at least as fast as (e^-d + d - 1) / s^2, that is d^2 / (2 + d) / s^2, s^2 = 1/alpha + 1/beta.
        bound = TAIL_DROP * (1 / self._alpha + 1 / self._beta)
        outer_distance = 0.5 * (bound + np.sqrt(bound * (bound + 8)))
        if not self._needs_clip:
            outer_distance = np.minimum(outer_distance, MAX_DISTANCE)
        distance = outer_distance[:, None] * [-1.0, 1.0]
        # Newton's method on a convex function from outside the root comes closer and never crosses it.
        for _ in range(8):
            step = np.maximum(self.log_drop(distance) - TAIL_DROP, 0) / self.slope(distance)
            distance = distance - step
            if (np.abs(step) < 0.01 * np.abs(distance)).all():
                break
        return -distance[:, 0], distance[:, 1]

    @cached_property
    def tails(self) -> Tails:
        # Beyond the knees the density is exp(alpha u) or exp(-beta u): for parameters below 1 a long and smooth tail.
        # From 1.25 on no panel becomes wider than a step.
        rows = np.flatnonzero(np.minimum(self._alpha, self._beta) < 1.25)
        alpha, beta, step = self._alpha[rows], self._beta[rows], self.step[rows]
        left_knee, right_knee = -np.log(np.maximum(beta, 1)), np.log(np.maximum(alpha, 1))
        lowest = float((left_knee - 2 * step).max(initial=-np.inf))
        highest = float((right_knee + 2 * step).min(initial=np.inf))
        return Tails(rows, left_knee, right_knee, alpha, beta, lowest, highest)


def stirling_error(a: Array) -> Array:
    """Return ln Gamma(a) - ((a - 1/2) ln a - a + ln(2 pi) / 2), in the shape of a. All a are above 0.

    Source: the Stirling series; below 10 by the recurrence of the gamma function."""
    # up to 10 by the recurrence
    steps = a[..., None] + np.arange(_MIN_STIRLING)
    error = np.where(steps < _MIN_STIRLING, (steps + 0.5) * np.log1p(1 / steps) - 1, 0.0).sum(axis=-1)
    # from there the series
    a = a + np.ceil(np.maximum(_MIN_STIRLING - a, 0.0))
    r = 1 / np.square(a)
    series = 1 / 1680 - r * (1 / 1188 - r * (691 / 360360 - r / 156))
    return error + (1 / 12 - r * (1 / 360 - r * (1 / 1260 - r * series))) / a
