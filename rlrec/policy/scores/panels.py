"""This module defines log-concave densities of scores, and places the panels on which the densities are integrated.

A panel is an interval with quadrature nodes. The panels extend from the highest score down to a point below which no
score is among the best.

A density is its peak times exp(-fall). The fall below the peak is computed from the distance to the mode, so that no
large logarithms cancel (the textbook form of a Beta density loses 8 digits at parameters of 1e7)."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.policy.scores.legendre import gauss
from rlrec.records import Record

Rows = slice | Index
ALL_ROWS = slice(None)

TAIL_DROP = 40.0
"""Where a score's density has fallen by exp(-40), 4e-18, its support ends for all that follows."""

MAX_DISTANCE = 600.0
"""Distance from the mode, in logits, beyond which exp would soon overflow; the fall is a straight line there."""
_MAX_LOG_DROP = 650.0  # logarithms below the peak: close to 0, but not a slow denormal number
LOG_ROOT_TAU = 0.5 * math.log(2 * math.pi)

_MAX_LOG_STEEPNESS = 10.0  # logarithms by which the probability of a slate may fall within a panel
_WIDTH_MARGIN = 1.5  # how much steeper a panel may be after it was narrowed
_MAX_PASSES = 16  # usually one; long slates may take more
_PANELS_PER_STEP = 16  # panels that are processed together
_N_OCTAVES = 160  # in quarters of an octave below the steepest rate; slower rates do not matter
_RARE_PROBABILITY = 1e-19  # probability of a score above its support
_GAUSS_NODES, _COARSE_WEIGHT = gauss(4)
_COARSE_NODES: Array = np.append(-1.0, _GAUSS_NODES)  # the left end of a panel, and nodes for a rough mass


class Tails(NamedTuple):
    """A Tails object describes the scores that have long, smooth tails.

    rows (t,): the rows of these scores. Left of the left knee (t,), log densities rise by left_rate (t,) per unit;
    right of the right knee (t,), log densities fall by right_rate (t,) per unit. Between lowest and highest, no
    panel may be wider than `Density.step` of any score."""

    rows: Index
    left_knee: Array
    right_knee: Array
    left_rate: Array
    right_rate: Array
    lowest: float
    highest: float


class Density(Protocol):
    """A Density object holds g log-concave densities, one in each row."""

    mode: Array
    log_peak: Array
    step: Array
    """Width of panels on which 16 nodes integrate each density to full precision, (g,)."""

    @property
    def tails(self) -> Tails | None:
        """Return the tails in which panels may be wider than `step`. The result is None if no score has such a tail."""

    def log_drop(self, distance: Array, rows: Rows = ALL_ROWS) -> Array:
        """Return the logarithm of peak / density at mode + distance, (rows, nodes), at least 0, as a new array."""

    def slope(self, distance: Array, rows: Rows = ALL_ROWS) -> Array:
        """Return the derivative, with respect to `distance`, of `log_drop`: how far the log density lies below its
        peak. The result has the shape of `log_drop`."""

    def tail_distances(self) -> tuple[Array, Array]:
        """Return two arrays (g,), the distances from the mode to the left and to the right at which the log density
        lies at least TAIL_DROP below its peak. Both are positive."""


def densities_at_nodes(density: Density, nodes: Array, rows: Rows = ALL_ROWS) -> Array:
    """Return the densities of these rows at the nodes, (rows, n).

    nodes (n,): the points at which the densities are computed."""
    log_drop = density.log_drop(nodes - density.mode[rows, None], rows)
    np.minimum(log_drop, _MAX_LOG_DROP, out=log_drop)
    np.subtract(density.log_peak[rows, None], log_drop, out=log_drop)
    return np.exp(log_drop, out=log_drop)


def panels(
    density: Density, count: Array, lower: Array, upper: Array, *, ranks: int, n_densities: int, refinement: int = 1
) -> Array:
    """Return the increasing edges, (P + 1,), of the panels that decide which scores hold the best `ranks` ranks.

    count (g,): the number of equal arms of each score; lower, upper (g,): the ends of the support of each score. The
    probability that fewer than `ranks` scores lie above the lowest edge is below 1e-16. A panel can represent the
    product of `n_densities` densities; `refinement` divides the width of the panels. Source: own derivation (nodes
    follow the best scores)."""
    # from the highest score down, until enough scores are expected above
    order = np.argsort(-lower)
    decisive_score = order[min(int(np.searchsorted(np.cumsum(count[order]), ranks)), len(order) - 1)]
    # at least `ranks` scores (or all, if there are fewer) certainly exceed the lowest edge
    lowest = float(min(lower[decisive_score], np.nextafter(upper.max(), -np.inf)))
    panel_walk = _PanelWalk(density, lower, upper, lowest, refinement)
    edges, limits = np.array([upper.max()]), list[Array]()
    pdf, sf, expected_above = np.zeros(len(count)), np.zeros(len(count)), 0.0
    while edges[-1] > panel_walk.lowest and expected_above < sufficient_count(ranks):
        steps = panel_walk.descend(float(edges[-1]))
        active_arms = np.flatnonzero(upper > steps[-1])
        profile = _density_profile(density, steps, active_arms, pdf[active_arms], sf[active_arms])
        n_above = count[active_arms] @ profile[1]
        last_step = min(int(np.searchsorted(n_above, sufficient_count(ranks))), len(n_above) - 1)
        limits.append(_width_limits(profile[:, :, : last_step + 1], count[active_arms], n_densities))
        edges, expected_above = np.append(edges, steps[1 : last_step + 1]), float(n_above[last_step])
        pdf[active_arms], sf[active_arms] = profile[:, :, last_step]
    # narrow panels that are too steep for products of densities
    active_arms, limit = np.flatnonzero(upper > edges[-1]), np.concatenate(limits, axis=1)
    zeros = np.zeros(len(active_arms))
    for _ in range(_MAX_PASSES):
        if (edges[:-1] - edges[1:] <= _WIDTH_MARGIN * limit[0] / refinement).all():
            break
        edges = panel_walk.narrow(edges, limit / refinement)
        limit = _width_limits(
            _density_profile(density, edges, active_arms, zeros, zeros), count[active_arms], n_densities
        )
    return edges[::-1]


def sufficient_count(ranks: int) -> float:
    """Return a number of scores. If this many scores are expected above a point, the probability that fewer than
    `ranks` scores lie above the point is below 1e-17."""
    return 42 + 6 * math.sqrt(ranks) + 2 * ranks


def widest_even_panels(pdf: Array, sf: Array, count: Array, n_densities: int) -> Array:
    """Return the width of the widest panel left of each of p points, (p,), within which the probability of a slate
    above the panel changes by a factor of at most exp(10).

    In a steeper panel the small end of the integrals is lost in the rounding of the large end. The probability that
    i arms lie above a point u falls at the sum of their rates pdf / sf. Of the arms with rate r or more, `n_expected`
    arms lie above u, and i of these arms lie above u with probability about n_expected^i. Slates rarer than exp(-30)
    do not count.

    pdf, sf, count (a, p): the density of each score at each point, one minus its distribution function, and its number
    of equal arms; n_densities: the largest number of arms on the slate."""
    n_above = count * sf
    arm, point = np.nonzero(n_above > _RARE_PROBABILITY)
    if not arm.size:
        return np.full(pdf.shape[1], np.inf)
    # arms by the octave of their rate, and the expected number with this rate or a higher one above each point
    octave = np.floor(4 * np.log2(np.maximum(pdf[arm, point] / sf[arm, point], 1e-300)))
    top_octave = octave.max()
    octave_index = np.minimum(top_octave - octave, _N_OCTAVES).astype(np.intp)
    shape = (int(octave_index.max()) + 1, pdf.shape[1])
    bins = np.bincount(octave_index * shape[1] + point, weights=n_above[arm, point], minlength=shape[0] * shape[1])
    n_expected = np.cumsum(bins.reshape(shape), axis=0)
    # the number of them that a slate can have at once, and how fast its probability falls
    n_at_once = 30 / np.maximum(-np.log(np.maximum(n_expected, _RARE_PROBABILITY)), 30 / (n_densities + 2))
    rates = 2.0 ** (0.25 * (top_octave - np.arange(shape[0])))[:, None]
    with np.errstate(divide="ignore"):
        return _MAX_LOG_STEEPNESS / (n_at_once * rates).max(axis=0, initial=0.0, where=n_expected > 0)


def _density_profile(density: Density, steps: Array, rows: Index, pdf: Array, sf: Array) -> Array:
    """Return the density of each score, and approximately one minus its distribution function, at decreasing points,
    (2, a, p + 1).

    steps (p + 1,): the points; rows (a,): the rows of the scores; pdf, sf (a,): the results at the first point."""
    half_width = 0.5 * (steps[:-1] - steps[1:])
    nodes = (steps[1:, None] + half_width[:, None] * (1 + _COARSE_NODES)).ravel()
    node_densities = densities_at_nodes(density, nodes, rows).reshape(len(rows), -1, len(_COARSE_NODES))
    profile = np.empty((2, len(rows), len(steps)))
    profile[0, :, 0], profile[0, :, 1:] = pdf, node_densities[:, :, 0]
    profile[1, :, 0], profile[1, :, 1:] = sf, node_densities[:, :, 1:] @ _COARSE_WEIGHT * half_width
    np.cumsum(profile[1], axis=1, out=profile[1])
    return profile


def _width_limits(profile: Array, count: Array, n_densities: int) -> Array:
    """Return the width of the widest even panel (see `widest_even_panels`) at the right and at the left end of each
    panel, (2, p).

    profile (2, a, p + 1): the result of `_density_profile` at the ends of the panels; count (a,): the number of
    equal arms of each score. An arm whose support begins inside a panel does not make the panel narrower, since the
    panel ends there or has the arm's width."""
    pdf, sf = profile
    n = pdf.shape[1] - 1
    points = np.append(np.arange(n), np.arange(1, n + 1))
    counts = np.tile(count[:, None], 2 * n)
    counts[:, n:][count[:, None] * sf[:, :n] <= _RARE_PROBABILITY] = 0.0
    return widest_even_panels(pdf[:, points], sf[:, points], counts, n_densities).reshape(2, n)


class _PanelWalk(Record, kw_only=False, eq=False):
    """A _PanelWalk object places panels from the highest edge to the lowest. Each panel is as wide as all scores in it
    allow.

    lower, upper (g,): the ends of the support of each score; lowest: the point at which the walk ends; refinement: the
    number by which widths are divided."""

    density: Density
    lower: Array
    upper: Array
    lowest: float
    refinement: int

    def descend(self, u: float) -> Array:
        """Return u and the next lower edges, in decreasing order."""
        edges = [u]
        while len(edges) <= _PANELS_PER_STEP and edges[-1] > self.lowest:
            edges.append(self._next_edge(edges[-1], np.inf, self.lowest))
        return np.array(edges)

    def narrow(self, edges: Array, limits: Array) -> Array:
        """Return new edges in decreasing order, between which no panel is wider than the limits.

        edges (p + 1,): the old edges; limits (2, p): the largest width at the right and at the left end of each old
        panel."""
        panel = int((edges[:-1] - edges[1:] > limits[0]).argmax())
        new_edges, rate = edges[: panel + 1].tolist(), 1 / limits
        while new_edges[-1] > edges[-1]:
            u = new_edges[-1]
            while u <= edges[panel + 1]:
                panel += 1
            fraction = (edges[panel] - u) / (edges[panel] - edges[panel + 1])
            inverse_width = (1 - fraction) * rate[0, panel] + fraction * rate[1, panel]
            new_edges.append(self._next_edge(u, 1 / max(float(inverse_width), 1e-300), float(edges[-1])))
        return np.array(new_edges)

    def _next_edge(self, u: float, limit: float, lowest_edge: float) -> float:
        """Return the left edge of the widest panel below u on which every score can be integrated. A score limits the
        panel by the width that the score allows, or by the upper end of its support if the support lies below u.

        limit: the largest width of the panel; lowest_edge: the lowest edge that may be returned."""
        edge = np.minimum(u - widths(self.density, u) / self.refinement, self.upper)
        left_edge = max(float(edge.max(initial=-np.inf, where=self.lower < u)), u - limit, lowest_edge)
        return min(left_edge, math.nextafter(u, -math.inf))  # makes progress, even if a score is almost a point


def widths(density: Density, u: float) -> Array:
    """Return, for each density, the width of the widest panel that ends at u and on which 16 nodes integrate the
    density to full precision, (g,)."""
    if (tails := density.tails) is None or tails.lowest <= u <= tails.highest:
        return density.step
    # in a tail, the width of panels may grow with the distance to the knee
    to_left, to_right = tails.left_knee - u, u - tails.right_knee
    widest_panels = np.minimum(
        2 / np.where(to_left > 0, tails.left_rate, tails.right_rate), 0.5 * np.maximum(to_left, to_right)
    )
    width = density.step.copy()
    width[tails.rows] = np.maximum(width[tails.rows], widest_panels)
    return width
