"""This module computes the probabilities of slates that are ranked by independent continuous scores (Thompson
sampling). One sweep over the nodes of a table gives the probabilities of all positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from rlrec.arrays import Array, Flags, Index
from rlrec.policy.scores import maximum
from rlrec.policy.scores.floors import Floor, at_positions
from rlrec.policy.scores.legendre import evaluate
from rlrec.policy.scores.scores import DrawnOrder, Order, find_top
from rlrec.policy.scores.table import COEFFICIENTS, N_NODES, NODE_STOPS, ScoreTable, integrate
from rlrec.policy.scores.tabulated import DensityFactory, Tabulation

_MAX_ENTRIES = 1 << 16  # numbers in a working array
_MAX_SLATES_WITHOUT_TABLE = 4  # slates
_MAX_CACHED_SCORES = 1 << 12  # scores that are looked up at a time
_LEAST_MASS = 1e-13  # a probability that the nodes cannot tell from 0, with a margin
_MAX_CAP = 1e300  # far below the caps that matter, their density times almost 0 might overflow


class ContinuousOrder(DrawnOrder):
    """A ContinuousOrder is the order of the independent scores of m arms. Its probabilities are computed on a table.

    density: the densities of the scores, made from two parameters of each arm; first, second (m,): these parameters;
    origin: the point from which normal means are measured; positions: the lowest position whose probabilities are
    needed; refinement: the number by which the widths of panels are divided; earlier_order: an order whose table is
    updated and reused if its nodes suit these scores."""

    is_continuous = True

    def __init__(
        self, density: DensityFactory, first: Array, second: Array, *, positions: int, refinement: int = 1,
        origin: float = 0.0, earlier_order: Order | None = None,
    ) -> None:  # fmt: skip
        self.density, self.origin = density, origin
        self.first, self.second = first, second  # scores are never written to
        self._positions, self._refine = positions, refinement
        # everything, except the parameters, that a table depends on
        self._layout = origin, len(first), positions, refinement
        self._cache: Tabulation | None = None
        # the earlier order computes another table if it needs one
        if (earlier := match_density(density, earlier_order)) is not None:
            cache, earlier._cache = earlier._cache, None
            if cache is not None and self._layout == earlier._layout and cache.update(self.first, self.second):
                self._cache = cache

    @property
    def tabulation(self) -> Tabulation:
        if self._cache is None:
            self._cache = self._tabulate(self._positions)
        return self._cache

    def _tabulate(self, n_densities: int) -> Tabulation:
        return Tabulation(
            self.density, self.first, self.second,
            positions=self._positions, n_densities=n_densities, refinement=self._refine,
        )  # fmt: skip

    def p_best(self) -> Array:
        return self.tabulation.p_best()

    def ranks(self, size: int) -> Array:
        ranks, column = self.shared_ranks(size)
        return ranks.take(column, axis=1)

    def shared_ranks(self, size: int) -> tuple[Array, Index]:
        """Return the probability of each rank for distinct arms, (size, g + 1), and the column of each arm in this
        array, (m,). Equal arms share a column."""
        # Summed over the arms that may stand above, the density of a rank is as wide as that of sqrt(size) arms on a
        # slate.
        n_densities = min(size, math.ceil(4 * math.sqrt(size)))
        tabulation = self.tabulation if n_densities >= self._positions else self._tabulate(n_densities)
        # copied, since a later belief moves arms to other rows
        return maximum.ranks(tabulation.table, size), tabulation.row.copy()

    def next_arms(self, prefixes: Index, *, floor: Floor) -> Array:
        return np.array([self._next_arm(prefix, at_positions(floor, len(prefix))) for prefix in prefixes])

    def _next_arm(self, prefix: Index, floors: Array) -> Array:
        """Return the probability that each arm is the best of the arms left after a prefix, given this prefix, (m,).

        prefix (k,): the arms of the prefix; floors (k,): the floor at each position of the prefix."""
        table, row = self.tabulation.table, self.tabulation.row
        sweep = Sweep(table, table.log_all_below()[None])
        for position, (arm, floor) in enumerate(zip(prefix, floors, strict=True)):
            p_pick, p_best = floor / (len(row) - position), 1 - floor
            sweep.take(np.zeros(1, np.intp), row[arm : arm + 1], p_pick=p_pick, p_best=p_best)
        probability = (sweep.weight() @ table.hazard.T)[0, row]
        probability[prefix] = 0.0
        return probability / probability.sum()  # normalised, since a rare prefix loses some mass below the nodes

    def conditionals(self, slates: Index, *, floor: Floor, with_minimum: bool) -> tuple[Array, Array]:
        table, row = self.tabulation.table, self.tabulation.row
        n, k = slates.shape
        order = np.lexsort(slates.T[::-1])
        sorted_slates = slates[order]
        probability, minimum = np.empty((n, k)), np.zeros((n, k))
        # where more arms have probability 0 than a slate can hold, the smallest probability of an arm left is 0
        with_minimum = with_minimum and np.count_nonzero(row < 0) < k
        step = max(1, _MAX_ENTRIES // (len(table.nodes) + len(table.count)))
        for start in range(0, n, step):
            rows = order[start : start + step]
            chunk = sorted_slates[start : start + step]
            probability[rows], minimum[rows] = self._sweep_conditionals(chunk, at_positions(floor, k), with_minimum)
        return probability, minimum

    def _sweep_conditionals(self, slates: Index, floors: Array, with_minimum: bool) -> tuple[Array, Array]:
        """Return the two arrays (n, k) of `conditionals` for sorted slates.

        floors (k,): the floor at each position."""
        table, row = self.tabulation.table, self.tabulation.row
        n, k = slates.shape
        probability, minimum = np.empty((n, k)), np.zeros((n, k))
        n_left = np.append(table.count[:-1], len(row) - table.count.sum())[None]
        for position, (weight, prefix, is_new) in enumerate(self._sweep_slates(slates, floors)):
            # the probability of the arm shown, and of the least likely arm left
            parent, rows = _prefix_indices(prefix[is_new], len(weight)), row[slates[is_new, position]]
            probability[:, position] = np.einsum("nx,nx->n", weight[parent], table.hazard[rows])[np.cumsum(is_new) - 1]
            if with_minimum:
                minimum[:, position] = np.where(n_left > 0, weight @ table.hazard.T, np.inf).min(axis=1)[prefix]
                n_left = n_left[parent]
                n_left[np.arange(len(rows)), rows] -= 1
        return probability, minimum

    def each_position(self, slates: Index, *, floor: Floor) -> Iterator[tuple[Array, Index]]:
        table, row = self.tabulation.table, self.tabulation.row
        first_slates = np.zeros(1, np.intp)  # one slate for each distinct prefix
        floors = at_positions(floor, slates.shape[1])
        for position, (weight, prefix, is_new) in enumerate(self._sweep_slates(slates, floors)):
            probability = (weight @ table.hazard.T)[:, row]
            probability[np.arange(len(first_slates))[:, None], slates[first_slates, :position]] = 0.0
            yield probability / probability.sum(axis=1, keepdims=True), prefix  # normalised as in `_next_arm`
            first_slates = np.flatnonzero(is_new)

    def _sweep_slates(self, slates: Index, floors: Array) -> Iterator[tuple[Array, Index, Flags]]:
        """Yield the arrays of `sweep_slates` at each position of sorted slates.

        floors (k,): the floor at each position."""
        table, row = self.tabulation.table, self.tabulation.row
        log_cdf, prefix = table.log_all_below()[None], np.zeros(len(slates), np.intp)
        return sweep_slates(
            table, log_cdf, arms=len(row), slates=slates, rows=row[slates], prefix=prefix, floors=floors
        )

    def ranking(self, keys: Array, size: int) -> Index:
        table, row = self.tabulation.table, self.tabulation.row
        exceedance, tabled_arms = 1 - keys, np.flatnonzero(row >= 0)
        targets, tabled_rows = exceedance.take(tabled_arms, axis=1), row[tabled_arms]
        if uses_table := len(keys) > _MAX_SLATES_WITHOUT_TABLE:
            sf_edge = table.sf_edge[tabled_rows].T.copy()

        def is_above(edge: Index) -> Flags:
            """Tell whether each score lies above the edge of the score's slate, (n, a).

            edge (n,): the index of an edge for each slate."""
            # a table of all arms pays off only for many slates
            return (sf_edge[edge] if uses_table else table.sf_edge.T[edge].take(tabled_rows, axis=1)) > targets

        # the highest edge of each slate that `size` scores exceed
        last_edge = table.sf_edge.shape[1] - 1
        edge = _largest_true(lambda edge: np.count_nonzero(is_above(edge), axis=1) >= size, len(keys), last_edge)
        # Scores below an edge that enough others exceed are not among the first, so their order does not matter.
        scores = keys + (table.edges[0] - 2)
        slate, arm = np.nonzero(is_above(edge))
        arm = tabled_arms[arm]
        for start in range(0, len(slate), _MAX_CACHED_SCORES):
            entries = slate[start : start + _MAX_CACHED_SCORES], arm[start : start + _MAX_CACHED_SCORES]
            scores[entries] = quantiles(table, row[entries[1]], exceedance[entries])
        return find_top(scores, size)


def match_density(density: DensityFactory, order: Order | None) -> ContinuousOrder | None:
    """Return the order if it is continuous and its scores have this density, else return None."""
    return order if isinstance(order, ContinuousOrder) and order.density is density else None


def sweep_slates(
    table: ScoreTable, log_left: Array, *, arms: int, slates: Index, rows: Index, prefix: Index, floors: Array
) -> Iterator[tuple[Array, Index, Flags]]:
    """Yield three arrays at each position of n slates: the weights (see `Sweep.weight`) for the distinct prefixes above
    the position, (u, N); the index of each slate's prefix, (n,); and whether a slate is the first whose arms down to
    this position differ from those of the slate before, (n,).

    Slates share the computation of every prefix that they have in common.

    log_left (u, N): the logarithm of the product of the distribution functions of all arms that a slate may show; arms:
    the number of these arms; prefix (n,): the row of `log_left` for each slate. slates (n, k): the arms, sorted by
    prefix and then by arm; rows (n, k): the row of each arm in the table; floors (k,): the floor at each position."""
    is_new_prefix = np.ones(len(slates), np.bool_)
    is_new_prefix[1:] = prefix[1:] != prefix[:-1]
    sweep = Sweep(table, log_left)
    for position, floor in enumerate(floors):
        is_new_prefix[1:] |= slates[1:, position] != slates[:-1, position]
        weight = sweep.weight()
        yield weight, prefix, is_new_prefix
        if position < len(floors) - 1:
            prefixes, p_pick = _prefix_indices(prefix[is_new_prefix], len(weight)), floor / (arms - position)
            sweep.take(prefixes, rows[is_new_prefix, position], p_pick=p_pick, p_best=1 - floor)
            prefix = np.cumsum(is_new_prefix) - 1


def _prefix_indices(prefixes: Index, number: int) -> Index | slice:
    """Return an index with which numpy selects prefixes. If no prefix is repeated, this is a slice, with which numpy
    copies nothing.

    prefixes: ascending indices, among which each of the `number` prefixes occurs at least once."""
    return slice(None) if len(prefixes) == number else prefixes


class Sweep:
    """A Sweep holds the prefixes of slates while the slates are filled from the top, on the nodes of a table. At first
    the prefixes are empty.

    The arm that was last taken as the best of the arms left had some score x, and every arm left has a score below
    x. A prefix is stored as a density over this cap x, plus the probability (the atom) that all arms so far were
    uniform picks, so that the cap is infinite. An arm that is shown is divided out of the product of the
    distribution functions of the arms left. If it was the best, its score is the new cap. If it was picked
    uniformly, its score is anywhere below the cap, which stays. This is the transpose of the backward sweep over the
    joint probability, and also gives every prefix of a slate. Source: own derivation.

    log_cdf_left (n, N): the logarithm of the product of the distribution functions of all arms, for each prefix."""

    def __init__(self, table: ScoreTable, log_cdf_left: Array) -> None:
        self._table = table
        self._atom, self._cap = np.ones(len(log_cdf_left)), np.zeros(log_cdf_left.shape)
        self._log_cdf_left = log_cdf_left  # log of the product of F over the arms left
        self._normalize()

    def weight(self) -> Array:
        """Return weights of the nodes, (n, N). For an arm left, the sum of weight times hazard is the probability that
        the arm is the best of the arms left."""
        weight = self._mass_above * self._weight_left
        weight /= self._mass[:, None]
        return weight

    def take(
        self,
        prefixes: Index | slice,
        rows: Index,
        *,
        p_pick: Array | np.float64,
        p_best: Array | np.float64,
        log_lost: Array | None = None,
    ) -> None:
        """Append one arm to each prefix.

        prefixes: the indices of the prefixes; rows (n,): the row of each arm in the table; p_pick, p_best: the
        probability that a coin picks the arm uniformly, and that the arm is taken as the best, (n,) or one number;
        log_lost (n, N): the logarithm of the product of the distribution functions of arms that are no longer
        allowed, whose scores lie below the cap and which leave the product of the arms left."""
        log_cdf, prefix_mass = self._table.log_cdf[rows], self._mass[prefixes]
        # the arm is the best left and its score the new cap, or it was picked and lies below the cap, which stays
        cap = self._table.hazard[rows]
        cap *= self._mass_above[prefixes]
        cap *= (p_best / prefix_mass)[:, None]
        if p_pick.any():
            cap += (p_pick / prefix_mass)[:, None] * self._cap[prefixes]
        if log_lost is not None:
            log_cdf = log_cdf + log_lost
        cap *= np.exp(log_cdf)
        self._cap = np.minimum(cap, _MAX_CAP, out=cap)
        self._atom = p_pick * self._atom[prefixes] / prefix_mass
        # divide the arm out of the product
        self._log_cdf_left = self._log_cdf_left[prefixes] - log_cdf
        self._normalize()

    def _normalize(self) -> None:
        """Compute the probability that the cap is above each node, and the probability of the last arm given the arms
        above it.

        If the policy cannot take the last arm there, the prefix has probability 0 and the nodes do not cover its
        cap. The sweep then starts again with the arms left."""
        self._weight_left = np.exp(self._log_cdf_left)
        self._weight_left *= self._table.weights
        self._mass = self._atom + np.einsum("nx,nx->n", self._cap, self._weight_left)
        self._mass_above = self._table.integrate_right(self._cap, tail=self._atom)
        is_lost = ~(self._mass > _LEAST_MASS)
        if is_lost.any():
            self._atom[is_lost], self._cap[is_lost], self._mass_above[is_lost], self._mass[is_lost] = 1.0, 0.0, 1.0, 1.0


def quantiles(table: ScoreTable, rows: Index, exceedance: Array) -> Array:
    """Return, for each of these rows, the value that the score of the row exceeds with the given probability, (q,).

    rows (q,): rows of the table; exceedance (q,): the probabilities. Every value must lie above the table's lowest
    edge. The error of the probability is below 1e-13. Source: own derivation."""
    # the last panel with more than `exceedance` to the right of its left edge
    panel = _largest_true(lambda panel: table.sf_edge[rows, panel] > exceedance, len(rows), len(table.edges) - 1)
    half_width = 0.5 * (table.edges[panel + 1] - table.edges[panel])
    # the node
    columns = panel[:, None] * N_NODES + np.arange(N_NODES)
    n_before = np.count_nonzero(-np.expm1(table.log_cdf[rows[:, None], columns]) > exceedance[:, None], axis=1)
    target = (table.sf_edge[rows, panel] - exceedance) / half_width
    # the root of the panel's polynomial; einsum, not @, since a score must not depend on how many others are computed
    series = np.einsum("kx,qx->kq", COEFFICIENTS, table.pdf(rows[:, None], columns))
    panel_points = _solve_integrals(series, target, NODE_STOPS[n_before], NODE_STOPS[n_before + 1])
    return table.edges[panel] + half_width * (1 + panel_points)


def _largest_true(condition: Callable[[Index], Flags], n: int, end: int) -> Index:
    """Return the largest number below `end` for which a condition holds, for each of n searches, (n,). The result is 0
    if the condition holds for no number.

    condition: takes a number for each search, and tells whether the condition holds, (n,). If the condition holds for a
    number, it must hold for all smaller numbers."""
    low, high = np.zeros(n, np.intp), np.full(n, end)
    while (high - low > 1).any():
        middle = (low + high) // 2
        is_true = condition(middle)
        low, high = np.where(is_true, middle, low), np.where(is_true, high, middle)
    return low


def _solve_integrals(series: Array, target: Array, low: Array, high: Array) -> Array:
    """Return, for each Legendre series, the point s in [low, high] where the integral from -1 to s is `target`, (q,).

    series (N_NODES, q): the coefficients; target, low, high (q,): the integral and the bounds of each series. Newton's
    method is used; between neighbouring nodes a density changes too little to mislead the method."""
    integral, roots = integrate(series), 0.5 * (low + high)
    open_roots = np.arange(len(roots))
    for _ in range(20):
        points = roots[open_roots]
        excess = evaluate(points, integral[:, open_roots]) - target[open_roots]
        newton_step = excess / np.maximum(evaluate(points, series[:, open_roots]), 1e-300)
        roots[open_roots] = np.clip(points - newton_step, low[open_roots], high[open_roots])
        open_roots = open_roots[np.abs(roots[open_roots] - points) > 1e-11]
        if not open_roots.size:
            break
    return roots
