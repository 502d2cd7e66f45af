"""Log-concave densities of scores: what the quadrature needs to know about a Beta, a normal, a Gumbel.

Beta scores live on the logit scale, u = logit x, where the density is log-concave, nearly normal for large parameters
and never infinite. A density is its peak times exp(-fall), and the fall below the peak is computed from the distance
to the mode, so that no large logarithms cancel (the textbook form loses 8 digits at 1e7)."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from rlrec.policy.scores import Array, Index

Rows = slice | Index
ALL = slice(None)

TAIL = 40.0
"""Where a score's density has fallen by exp(-40), 4e-18, its support ends for all that follows."""

_LINEAR = 600.0  # logits; farther from the mode a Beta's fall is a straight line, and exp would soon overflow
_LOG_ROOT_TAU = 0.5 * math.log(2 * math.pi)


class Density(Protocol):
    """One log-concave density a row, (g,) rows."""

    mode: Array
    log_peak: Array

    def fall(self, distance: Array, rows: Rows = ALL) -> Array:
        """Log of peak / density at mode + distance, (rows, nodes), at least 0."""

    def slope(self, distance: Array, rows: Rows = ALL) -> Array:
        """Derivative of the fall, shapes as there."""

    def reach(self) -> tuple[Array, Array]:
        """Distances from the mode, both (g,) and positive, left and right, where the fall is at least TAIL."""

    def width(self, u: float) -> Array:
        """Widest panel that ends at u on which 16 nodes integrate the density to full precision, (g,)."""


class BetaLogit:
    """Density of logit x for x ~ Beta(alpha, beta).

    Source: own derivation; the peak is the saddle-point form with Stirling errors of Loader 2000 (for the binomial)."""

    def __init__(self, alpha: Array, beta: Array) -> None:
        total = alpha + beta
        self.mode = np.log(alpha) - np.log(beta)
        self.log_peak = (
            0.5 * (np.log(alpha) + np.log(beta) - np.log(total))
            - _LOG_ROOT_TAU
            + (stirling_error(total) - stirling_error(alpha) - stirling_error(beta))
        )
        # Reflected, where alpha is the larger one: the linear term that cancels is then the smaller of the two.
        self._sign = np.where(alpha <= beta, 1.0, -1.0)[:, None]
        self._share = (np.minimum(alpha, beta) / total)[:, None]
        self._total = total[:, None]
        self._alpha, self._beta = alpha, beta
        self._far = bool(len(alpha)) and min(alpha.min(), beta.min()) < 2 * TAIL / _LINEAR
        self._step = 2 * np.minimum(np.sqrt(1 / alpha + 1 / beta), 0.8)
        self._left_knee, self._right_knee = -np.log(np.maximum(beta, 1)), np.log(np.maximum(alpha, 1))

    def fall(self, distance: Array, rows: Rows = ALL) -> Array:
        """n (log(1 + p (e^d - 1)) - p d) for distance d, p the smaller of alpha/n and beta/n."""
        share, d = self._share[rows], distance * self._sign[rows]
        near = np.clip(d, -_LINEAR, _LINEAR) if self._far else d
        fall = np.log1p(share * np.expm1(near)) - share * near
        if self._far:
            fall += np.maximum(d - near, 0) * (1 - share) + np.maximum(near - d, 0) * share
        return self._total[rows] * fall

    def slope(self, distance: Array, rows: Rows = ALL) -> Array:
        share, sign = self._share[rows], self._sign[rows]
        growth = share * np.expm1(np.clip(distance * sign, -_LINEAR, _LINEAR))
        # n (x - p) without the difference
        return np.asarray(sign * self._total[rows] * growth * (1 - share) / (1 + growth))

    def reach(self) -> tuple[Array, Array]:
        # Both sides fall at least as fast as (e^-d + d - 1) / s^2, that is d^2 / (2 + d) / s^2, s^2 = 1/alpha + 1/beta.
        bound = TAIL * (1 / self._alpha + 1 / self._beta)
        outer = 0.5 * (bound + np.sqrt(bound * (bound + 8)))
        if not self._far:
            outer = np.minimum(outer, _LINEAR)
        return self._tighten(outer, sign=-1), self._tighten(outer, sign=1)

    def _tighten(self, outer: Array, *, sign: int) -> Array:
        """Newton on a convex function from outside: it comes nearer and never crosses."""
        distance = outer[:, None]
        for _ in range(8):
            excess = self.fall(sign * distance) - TAIL
            distance = distance - np.maximum(excess, 0) / np.abs(self.slope(sign * distance))
        return distance[:, 0]

    def width(self, u: float) -> Array:
        # Beyond the knees the density is exp(alpha u) or exp(-beta u): for parameters below 1 a long and smooth tail,
        # where panels may grow with the distance to the knee.
        left, right = self._left_knee - u, u - self._right_knee
        tail = np.where(left > 0, self._alpha, self._beta)
        return np.asarray(np.maximum(self._step, np.minimum(2 / tail, 0.5 * np.maximum(left, right))))


class Normal:
    """Density of a normal score, mean and sd (g,)."""

    def __init__(self, mean: Array, sd: Array) -> None:
        self.mode, self._sd = mean, sd[:, None]
        self.log_peak = -np.log(sd) - _LOG_ROOT_TAU

    def fall(self, distance: Array, rows: Rows = ALL) -> Array:
        return 0.5 * np.square(distance / self._sd[rows])

    def slope(self, distance: Array, rows: Rows = ALL) -> Array:
        return distance / np.square(self._sd[rows])

    def reach(self) -> tuple[Array, Array]:
        reach = math.sqrt(2 * TAIL) * self._sd[:, 0]
        return reach, reach

    def width(self, u: float) -> Array:
        return 2 * self._sd[:, 0]


class GumbelLogit:
    """Density of logit + standard Gumbel noise, logits (g,)."""

    def __init__(self, logits: Array) -> None:
        self.mode, self.log_peak = logits, np.full(len(logits), -1.0)

    def fall(self, distance: Array, rows: Rows = ALL) -> Array:
        return distance + np.expm1(np.minimum(-distance, _LINEAR))

    def slope(self, distance: Array, rows: Rows = ALL) -> Array:
        return -np.expm1(np.minimum(-distance, _LINEAR))

    def reach(self) -> tuple[Array, Array]:
        ones = np.ones(len(self.mode))
        return math.log(TAIL + 6) * ones, (TAIL + 1) * ones

    def width(self, u: float) -> Array:
        return np.full(len(self.mode), 1.25)


def stirling_error(a: Array) -> Array:
    """log Gamma(a) - ((a - 1/2) log a - a + log(2 pi) / 2), the same shape, for a > 0.

    Source: the Stirling series; below 16 by the recurrence of the gamma function."""
    error, a = np.zeros(a.shape), a.copy()
    small = np.flatnonzero(a < 16)
    while small.size:
        x = a[small]
        error[small] += (x + 0.5) * np.log1p(1 / x) - 1
        a[small] += 1
        small = small[a[small] < 16]
    r = 1 / np.square(a)
    return error + (1 / 12 - r * (1 / 360 - r * (1 / 1260 - r * (1 / 1680 - r * (1 / 1188 - r * 691 / 360360))))) / a
