"""Distribution functions of many scores on common nodes that follow where the best of them live."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.polynomial.legendre import leggauss, legvander

from rlrec.policy.density import TAIL, Density
from rlrec.policy.scores import Array, Index

ORDER = 16
"""Gauss-Legendre nodes of a panel."""

_FLOOR = -700.0  # logarithms of distribution functions end here: exp of the negative is still finite
_STEEPNESS = 10.0  # logarithms by which the chance of a page may fall in a panel
_GAUSS, _GAUSS_WEIGHT = leggauss(ORDER)
COEFFICIENT: Array = (np.arange(ORDER)[:, None] + 0.5) * legvander(_GAUSS, ORDER - 1).T * _GAUSS_WEIGHT
"""(ORDER, ORDER): values at the nodes to coefficients of a Legendre series."""
STOPS: Array = np.concatenate([[-1.0], _GAUSS, [1.0]])
"""(ORDER + 2,): the nodes of a panel between its ends, on [-1, 1]."""


def integrated(series: Array) -> Array:
    """Legendre series of the integral from -1 of Legendre series, (ORDER + 1, ...) from (ORDER, ...)."""
    integral = np.zeros((ORDER + 1, *series.shape[1:]))
    # the integral of P_k is (P_k+1 - P_k-1) / (2 k + 1), that of P_0 is P_1 + P_0
    scaled = series / (2 * np.arange(ORDER) + 1).reshape(-1, *[1] * (series.ndim - 1))
    integral[1:] = scaled
    integral[: ORDER - 1] -= scaled[1:]
    integral[0] += series[0]
    return integral


_FROM_LEFT: Array = legvander(_GAUSS, ORDER) @ integrated(COEFFICIENT)  # (to node, value at node)
_FROM_RIGHT: Array = _FROM_LEFT[::-1, ::-1]


@dataclass(frozen=True, eq=False)
class Table:
    """g scores on N = 16 P nodes, increasing. Row g, the last, stands for every score that never matters here.

    edges (P + 1,) of the panels; nodes and weights (N,) of the quadrature; count (g + 1,) equal arms a row stands
    for (0 in the last); pdf and log_cdf (g + 1, N); sf_edge (g + 1, P + 1), one minus the distribution function."""

    edges: Array
    nodes: Array
    weights: Array
    count: Array
    pdf: Array
    log_cdf: Array
    sf_edge: Array

    @cached_property
    def log_all(self) -> Array:
        """Log of the probability that every score is below the node, (N,)."""
        return np.asarray(self.count @ self.log_cdf)

    @cached_property
    def hazard(self) -> Array:
        """Density over distribution function, (g + 1, N)."""
        return self.pdf * np.exp(-self.log_cdf)

    def above(self, values: Array) -> Array:
        """Integrals of values (..., N) from each node to the highest edge, (..., N)."""
        panels = values.reshape(*values.shape[:-1], -1, ORDER)
        half = 0.5 * np.diff(self.edges)
        mass = (panels @ _GAUSS_WEIGHT) * half
        right = np.cumsum(mass[..., ::-1], axis=-1)[..., ::-1] - mass
        return (panels @ _FROM_RIGHT.T * half[:, None] + right[..., None]).reshape(values.shape)


def tabulate(
    density: Density, count: Array, *, ranks: int, together: int | None = None, refine: int = 1
) -> tuple[Table, Index]:
    """The table whose nodes decide who holds the best `ranks` ranks, and each score's row in it, (g,).

    count (g,) equal arms each score stands for. Fewer than `ranks` scores lie above the lowest edge with probability
    below 1e-16; a score that lies below it with that certainty has row -1. The panels can hold the product of as many
    densities as there are `ranks`, or `together`; `refine` divides them.
    Source: own derivation (nodes follow the best scores; running integrals by a Legendre integration matrix)."""
    left, right = density.reach()
    lower, upper = density.mode - left, density.mode + right
    lowest = _lowest(lower, count, ranks)
    # With this many scores expected above a point, fewer than `ranks` are above it with probability below 1e-17.
    enough = 42 + 6 * ranks**0.5 + 2 * ranks
    edges, parts = [float(upper.max())], list[_Panel]()
    sf, expected, widest = np.zeros(len(count)), 0.0, np.inf
    while edges[-1] > lowest and expected < enough:
        edge = max(_next_edge(density, edges[-1], lower, upper, refine), edges[-1] - widest / refine, lowest)
        edge = min(edge, float(np.nextafter(edges[-1], -np.inf)))  # progress, even if a score is all but a point
        parts.append(_tabulate_panel(density, edge, edges[-1], upper))
        active, pdf = parts[-1].active, parts[-1].pdf
        sf[active] += pdf @ _GAUSS_WEIGHT * (0.5 * (edges[-1] - edge))
        edges.append(edge)
        expected = float(count @ sf)
        widest = _even_width(pdf[:, 0], sf[active], count[active], (together or ranks) + 2)
    return _assemble(density, count, upper, left, np.array(edges[::-1]), parts[::-1])


def _lowest(lower: Array, count: Array, ranks: int) -> float:
    """The point that at least `ranks` scores (all of them, if there are fewer) exceed for certain."""
    order = np.argsort(-lower)
    held = np.cumsum(count[order])
    return float(lower[order[min(int(np.searchsorted(held, ranks)), len(order) - 1)]])


@dataclass(frozen=True, eq=False)
class _Panel:
    """The a scores that reach into a panel, and their densities at its nodes, (a, 16)."""

    active: Index
    pdf: Array


def _tabulate_panel(density: Density, low: float, high: float, upper: Array) -> _Panel:
    active = np.flatnonzero(upper > low)
    nodes, _ = _spread(np.array([low, high]))
    distance = nodes - density.mode[active, None]
    return _Panel(active, np.exp(density.log_peak[active, None] - density.fall(distance, active)))


def _even_width(pdf: Array, sf: Array, count: Array, ranks: int) -> float:
    """The widest panel left of u in which the chance of a page with all its arms above u changes by exp(10).

    In a steeper panel the small end of the integrals drowns in the rounding of the large one. The chance of i arms
    above u falls by the sum of their rates pdf / sf. Of the arms with rate r or more, `expected` are above u, and i of
    them with probability about expected^i: pages rarer than exp(-30) do not count. All arrays are (a,), at u."""
    held = count * sf
    present = np.flatnonzero(held > 1e-30)
    if not present.size:
        return np.inf
    octave = np.floor(4 * np.log2(np.maximum(pdf[present] / sf[present], 1e-300))).astype(np.intp)
    lowest = octave.min()
    expected = np.cumsum(np.bincount(octave - lowest, weights=held[present])[::-1])[::-1]
    at_once = 30 / np.maximum(-np.log(np.maximum(expected, 1e-300)), 30 / ranks)
    rates = 2.0 ** (0.25 * (np.arange(len(expected)) + lowest))
    return float(_STEEPNESS / (at_once * rates).max())


def _next_edge(density: Density, u: float, lower: Array, upper: Array, refine: int) -> float:
    """The lowest left edge that is right for every score below u: a panel's width, or where the score begins."""
    limit = np.minimum(u - density.width(u) / refine, upper)
    return float(limit[lower < u].max())


def _spread(edges: Array) -> tuple[Array, Array]:
    """Nodes and weights, (16 p,) each, of Gauss-Legendre on every panel."""
    half, middle = 0.5 * np.diff(edges), 0.5 * (edges[1:] + edges[:-1])
    return (middle[:, None] + half[:, None] * _GAUSS).ravel(), (half[:, None] * _GAUSS_WEIGHT).ravel()


def _assemble(
    density: Density, count: Array, upper: Array, left: Array, edges: Array, panels: list[_Panel]
) -> tuple[Table, Index]:
    kept = np.flatnonzero(upper > edges[0])
    row = np.full(len(count), -1, dtype=np.intp)
    row[kept] = np.arange(len(kept))
    nodes, weights = _spread(edges)
    pdf = np.zeros((len(kept) + 1, len(nodes)))
    for i, panel in enumerate(panels):
        pdf[row[panel.active], ORDER * i : ORDER * (i + 1)] = panel.pdf
    log_cdf_low = np.append(_log_cdf_low(density, edges[0], kept, left[kept], pdf[:-1] @ weights), 0.0)
    log_cdf, sf_edge = _distribution(edges, pdf, log_cdf_low)
    table = Table(
        edges=edges,
        nodes=nodes,
        weights=weights,
        count=np.append(count[kept], 0.0),
        pdf=pdf,
        log_cdf=log_cdf,
        sf_edge=sf_edge,
    )
    return table, row


def _distribution(edges: Array, pdf: Array, log_cdf_low: Array) -> tuple[Array, Array]:
    """log F at the nodes and 1 - F at the edges, each tail integrated from its own end, where it is small."""
    half = 0.5 * np.diff(edges)[:, None]
    panels = pdf.reshape(len(pdf), -1, ORDER)
    mass = panels @ _GAUSS_WEIGHT * half[:, 0]
    sf_edge = np.zeros((len(pdf), len(edges)))
    sf_edge[:, :-1] = np.cumsum(mass[:, ::-1], axis=1)[:, ::-1]
    cdf_edge = np.exp(log_cdf_low)[:, None] + np.cumsum(mass, axis=1) - mass
    sf = panels @ _FROM_RIGHT.T * half + sf_edge[:, 1:, None]
    cdf = panels @ _FROM_LEFT.T * half + cdf_edge[:, :, None]
    low = sf > 0.5
    log_cdf = np.log1p(-np.clip(sf, 0, 0.5))  # a polynomial may dip below 0 in the last panel
    log_cdf[low] = np.maximum(np.log(np.maximum(cdf[low], 1e-307)), _FLOOR)
    return log_cdf.reshape(pdf.shape), sf_edge


def _log_cdf_low(density: Density, edge: float, rows: Index, left: Array, sf: Array) -> Array:
    """log F of the scores `rows` at the lowest edge, (a,); sf (a,) is what lies above it.

    Below the mode the density falls ever faster to the left, so panels that double in width from the edge are right."""
    log_cdf = np.log1p(-np.minimum(sf, 0.9999))
    tail = np.flatnonzero(edge < density.mode[rows])
    if not tail.size:
        return log_cdf
    rows = rows[tail]
    start = (edge - density.mode[rows])[:, None]
    fall = density.fall(start, rows)
    # the fall is convex: it grows by its slope at least, and by what it grows from the mode
    steepness = np.abs(density.slope(start, rows))
    with np.errstate(divide="ignore"):
        length = np.minimum(TAIL / steepness, left[tail, None])
    at, weight = _spread(np.append(0.0, 2.0 ** np.arange(-7, 1)))
    below = np.exp(fall - density.fall(start - length * at, rows))
    log_cdf[tail] = density.log_peak[rows] - fall[:, 0] + np.log(length[:, 0] * (below @ weight))
    return log_cdf
