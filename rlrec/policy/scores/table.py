"""This module tabulates the distribution functions of many scores on common nodes, which are placed where the best
scores lie."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.policy.scores.legendre import gauss, polynomials
from rlrec.policy.scores.panels import ALL_ROWS, TAIL_DROP, Density, Rows, densities_at_nodes, panels

N_NODES = 16
"""Gauss-Legendre nodes of a panel."""

_MIN_LOG_CDF = -700.0  # smallest logarithm of a distribution function, so that exp of the negative is finite
_MAX_ENTRIES = 1 << 15
_GAUSS, _GAUSS_WEIGHT = gauss(N_NODES)
COEFFICIENTS: Array = (np.arange(N_NODES)[:, None] + 0.5) * polynomials(_GAUSS, N_NODES - 1).T * _GAUSS_WEIGHT
"""(N_NODES, N_NODES): values at the nodes to coefficients of a Legendre series."""
NODE_STOPS: Array = np.concatenate([[-1.0], _GAUSS, [1.0]])
"""(N_NODES + 2,): the nodes of a panel between its ends, on [-1, 1]."""


def integrate(series: Array) -> Array:
    """Return the coefficients of the integral from -1 of each Legendre series, (N_NODES + 1, ...).

    series (N_NODES, ...): the coefficients of each series."""
    integral = np.zeros((N_NODES + 1, *series.shape[1:]))
    # the integral of P_k is (P_k+1 - P_k-1) / (2 k + 1), that of P_0 is P_1 + P_0
    quotients = series / (2 * np.arange(N_NODES) + 1).reshape(-1, *[1] * (series.ndim - 1))
    integral[1:] = quotients
    integral[: N_NODES - 1] -= quotients[1:]
    integral[0] += series[0]
    return integral


_FROM_LEFT: Array = polynomials(_GAUSS, N_NODES) @ integrate(COEFFICIENTS)  # (to node, value at node)
_FROM_RIGHT: Array = _FROM_LEFT[::-1, ::-1]


class ScoreTable:
    """A ScoreTable holds g scores on N = 16 P increasing nodes, with one row for each score. The last row, g, stands
    for all scores that are too low to matter.

    edges (P + 1,): the edges of the panels; nodes, weights (N,): the nodes and weights of the quadrature; count (g +
    1,): the number of equal arms of each row (0 in the last row and in spare rows); log_cdf (g + 1, N): the
    logarithm of the distribution function; hazard (g + 1, N): the density over the distribution function; sf_edge (g
    + 1, P + 1): one minus the distribution function at the edges; log_low (g + 1,): the logarithm of the
    distribution function at edges[0]."""

    def __init__(self, edges: Array, rows: int) -> None:
        self.edges = edges
        self.nodes, self.weights = spread(edges)
        self._half_widths = 0.5 * np.diff(edges)
        self.count, self.log_low = np.zeros((2, rows + 1))
        self.log_cdf, self.hazard = np.zeros((2, rows + 1, len(self.nodes)))
        self.sf_edge = np.zeros((rows + 1, len(edges)))

    def pdf(self, rows: Rows, nodes: Rows = ALL_ROWS) -> Array:
        """Return the densities of these rows at these nodes. The two indices are combined as numpy combines indices."""
        return self.hazard[rows, nodes] * np.exp(self.log_cdf[rows, nodes])

    def log_all_below(self) -> Array:
        """Return the logarithm of the probability that every score is below each node, (N,)."""
        return self.count @ self.log_cdf

    def integrate_right(self, values: Array, *, tail: Array) -> Array:
        """Return the integral of `values` from each node to the highest edge, plus the tail beyond the highest edge,
        (n, N).

        values (n, N): the integrand at the nodes; tail (n,): the integral beyond the highest edge."""
        flat_values = values.reshape(-1, N_NODES)
        # whole panels to the right, and the remainder of the node's panel
        integral = (flat_values @ _GAUSS_WEIGHT).reshape(*values.shape[:-1], -1) * self._half_widths
        integral = np.cumsum(integral[..., ::-1], axis=-1)[..., ::-1] - integral + tail[:, None]
        node_integral = (flat_values @ _FROM_RIGHT.T).reshape(*integral.shape, N_NODES)
        node_integral *= self._half_widths[:, None]
        node_integral += integral[..., None]
        return node_integral.reshape(values.shape)

    def put_scores(self, rows: Index, density: Density, scores: Rows = ALL_ROWS, *, panels: int) -> None:
        """Write the distribution functions of these scores of a density into the rows of the table.

        rows (a,): the row of each score; scores (a,): the index of each score in `density`. All of the scores end
        within the first `panels` panels. Each tail is integrated from its own end, where it is small."""
        n, half_width = N_NODES * panels, self._half_widths[:panels, None]
        # density at the nodes, mass of each panel
        pdf = densities_at_nodes(density, self.nodes[:n], scores)
        flat_pdf, shape = pdf.reshape(-1, N_NODES), (len(rows), panels, N_NODES)
        panel_mass = (flat_pdf @ _GAUSS_WEIGHT).reshape(shape[:2]) * half_width[:, 0]
        # probability above and below each edge
        sf_edge = np.zeros((len(rows), panels + 1))
        panel_mass[:, ::-1].cumsum(axis=1, out=sf_edge[:, -2::-1])
        log_low = _log_cdf_low(density, float(self.edges[0]), scores, sf_edge[:, 0])
        cdf_edge = np.exp(log_low)[:, None] + panel_mass.cumsum(axis=1) - panel_mass
        # probability above and below each node
        sf, cdf = (flat_pdf @ _FROM_RIGHT.T).reshape(shape), (flat_pdf @ _FROM_LEFT.T).reshape(shape)
        sf *= half_width
        cdf *= half_width
        sf += sf_edge[:, 1:, None]
        cdf += cdf_edge[:, :, None]
        # hazard, and zeros beyond the last of these panels
        log_cdf = _log_cdf(sf, cdf).reshape(pdf.shape)
        pdf *= np.exp(-log_cdf)
        self.log_cdf[rows, :n], self.hazard[rows, :n] = log_cdf, pdf
        self.sf_edge[rows, : panels + 1] = sf_edge
        if n < len(self.nodes):
            self.log_cdf[rows, n:] = self.hazard[rows, n:] = 0.0
            self.sf_edge[rows, panels + 1 :] = 0.0
        self.log_low[rows] = log_low


def tabulate(
    density: Density, count: Array, *, ranks: int, n_densities: int | None = None, refinement: int = 1, n_spare: int = 0
) -> tuple[ScoreTable, Index]:
    """Return a table of the scores with nodes where the best `ranks` ranks are decided, and the row of each score in
    the table, (g,). A score that certainly lies below the lowest edge of the table has row -1.

    The probability that fewer than `ranks` scores lie above the lowest edge is below 1e-16. Source: own derivation
    (running integrals by a Legendre integration matrix).

    count (g,): the number of equal arms of each score; n_densities: the number of densities whose product the panels
    can represent (None: `ranks`); refinement: the number by which the widths of panels are divided; n_spare: the number
    of empty rows that are added."""
    left_reach, right_reach = density.tail_distances()
    lower, upper = density.mode - left_reach, density.mode + right_reach
    edges = panels(density, count, lower, upper, ranks=ranks, n_densities=n_densities or ranks, refinement=refinement)
    # a row for each score that reaches the panels, sorted by its upper end
    reaching_scores = np.flatnonzero(upper > edges[0])
    reaching_scores = reaching_scores[np.argsort(upper[reaching_scores], kind="stable")]
    row = np.full(len(count), -1, dtype=np.intp)
    row[reaching_scores] = np.arange(len(reaching_scores))
    table = ScoreTable(edges, len(reaching_scores) + n_spare)
    table.count[: len(reaching_scores)] = count[reaching_scores]
    # their distribution functions, in portions
    ends = np.searchsorted(edges[1:-1], upper[reaching_scores]) + 1
    step = max(1, _MAX_ENTRIES // len(table.nodes))
    for start in range(0, len(reaching_scores), step):
        scores = reaching_scores[start : start + step]
        table.put_scores(row[scores], density, scores, panels=int(ends[start : start + step][-1]))
    return table, row


def spread(edges: Array) -> tuple[Array, Array]:
    """Return two arrays (16 p,): the Gauss-Legendre nodes and weights of all p panels.

    edges (p + 1,): the edges of the panels."""
    half_width, middle = 0.5 * np.diff(edges), 0.5 * (edges[1:] + edges[:-1])
    return (middle[:, None] + half_width[:, None] * _GAUSS).ravel(), (half_width[:, None] * _GAUSS_WEIGHT).ravel()


def _log_cdf(sf: Array, cdf: Array) -> Array:
    """Return the logarithm of the distribution function, in the shape of cdf, computed from the smaller of sf and cdf.

    sf, cdf: the probability above and below each node; both arrays are overwritten."""
    is_low = sf > 0.5
    np.maximum(cdf, 1e-307, out=cdf)
    np.maximum(np.log(cdf, out=cdf), _MIN_LOG_CDF, out=cdf)
    np.negative(sf, out=sf)
    np.minimum(np.maximum(sf, -0.5, out=sf), 0.0, out=sf)  # a polynomial may fall below 0 in the last panel
    return np.where(is_low, cdf, np.log1p(sf, out=sf))


# below the lowest edge, which is the first point, with weight 0
_TAIL_NODES, _TAIL_WEIGHT = (np.append(0.0, values) for values in spread(np.append(0.0, 2.0 ** np.arange(-7, 1))))


def _log_cdf_low(density: Density, edge: float, scores: Rows, sf: Array) -> Array:
    """Return the logarithm of each distribution function at the lowest edge, (a,), with relative precision where the
    function is small.

    edge: the lowest edge; scores: the indices of the scores in `density`; sf (a,): the probability above the edge.
    The density falls ever faster to the left, so panels that double in width from the edge suffice."""
    log_cdf = np.log1p(-np.minimum(sf, 1 - 1e-16))
    distance = edge - density.mode[scores]
    tail_scores = ((sf > 0.99) & (distance < 0)).nonzero()[0]
    if not tail_scores.size:
        return log_cdf
    rows = np.arange(len(density.mode))[scores][tail_scores]
    # the integral over a stretch at whose end the density vanishes
    start = distance[tail_scores, None]
    # the fall is convex, so it grows at least by its slope, which is steep where F is below a percent
    length = TAIL_DROP / np.abs(density.slope(start, rows))
    log_drop = density.log_drop(start - length * _TAIL_NODES, rows)
    mass_below = np.exp(log_drop[:, :1] - log_drop) @ _TAIL_WEIGHT
    log_cdf[tail_scores] = density.log_peak[rows] - log_drop[:, 0] + np.log(length[:, 0] * mass_below)
    return log_cdf
