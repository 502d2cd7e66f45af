"""Log-concave densities of scores, as the quadrature reads them.

A density is its peak times exp(-fall), and the fall below the peak is computed from the distance to the mode, so that
no large logarithms cancel (the textbook form of a Beta loses 8 digits at 1e7)."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np

from rlrec.arrays import Array, Index

Rows = slice | Index
ALL_ROWS = slice(None)

TAIL = 40.0
"""Where a score's density has fallen by exp(-40), 4e-18, its support ends for all that follows."""

FARTHEST = 600.0
"""Distance from the mode, in logits, beyond which exp would soon overflow; the fall is a straight line there."""
_DEEP = 650.0  # logarithms below the peak: all but 0, yet no number that is slow to compute with
LOG_ROOT_TAU = 0.5 * math.log(2 * math.pi)


class Tails(NamedTuple):
    """The scores whose tails are long and smooth: their rows, (t,). Left of the left knee log densities rise by
    left_rate a unit, right of the right knee they fall by right_rate, (t,) each. Between two points no panel of any
    score may be wider than its step."""

    rows: Index
    left_knee: Array
    right_knee: Array
    left_rate: Array
    right_rate: Array
    lowest: float
    highest: float


class Density(Protocol):
    """One log-concave density a row, (g,) rows."""

    mode: Array
    log_peak: Array
    step: Array
    """Width of panels on which 16 nodes integrate each density to full precision, (g,)."""

    @property
    def tails(self) -> Tails | None:
        """Where panels may be wider than `step`; None where they may not."""

    def fall(self, distance: Array, rows: Rows = ALL_ROWS) -> Array:
        """Log of peak / density at mode + distance, (rows, nodes), at least 0; a new array."""

    def slope(self, distance: Array, rows: Rows = ALL_ROWS) -> Array:
        """Derivative of the fall, shapes as there."""

    def reach(self) -> tuple[Array, Array]:
        """Distances from the mode, both (g,) and positive, left and right, where the fall is at least TAIL."""


def at_nodes(density: Density, nodes: Array, rows: Rows = ALL_ROWS) -> Array:
    """The densities at nodes (n,), (rows, n)."""
    fall = density.fall(nodes - density.mode[rows, None], rows)
    np.minimum(fall, _DEEP, out=fall)
    np.subtract(density.log_peak[rows, None], fall, out=fall)
    return np.exp(fall, out=fall)
