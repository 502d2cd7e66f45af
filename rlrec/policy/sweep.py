"""The order of independent continuous scores (Thompson sampling): pages by one sweep over the nodes of a table."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array, Flags, Index
from rlrec.policy import maximum
from rlrec.policy.legendre import at
from rlrec.policy.scores import Order, top
from rlrec.policy.table import COEFFICIENT, ORDER, STOPS, Table, integrated
from rlrec.policy.tabulated import DensityOf, Tabulated

_ENTRIES = 1 << 17  # numbers in a working array
_CACHED = 1 << 12  # scores found at a time
_NEVER = 1e-13  # what the nodes cannot tell from 0, with a margin
_HUGE = 1e300  # far below the caps that matter their density, times what is almost 0, may outgrow the numbers


class ContinuousOrder:
    """m independent scores on a table; `positions` is the deepest position asked about, `refine` divides its panels.

    density of the scores and its parameters first, second (m,), the mean of normal ones less `origin`; before: an
    earlier order, whose table is brought up to date where its nodes are right for these scores."""

    def __init__(
        self,
        density: DensityOf,
        first: Array,
        second: Array,
        *,
        positions: int,
        refine: int = 1,
        origin: float = 0.0,
        before: Order | None = None,
    ) -> None:
        self.density, self.origin = density, origin
        self._first, self._second = first.copy(), second.copy()  # whoever changes them in place is noticed
        self._positions, self._refine = positions, refine
        self._cached = self._take_over(before)

    def _take_over(self, before: Order | None) -> Tabulated | None:
        """The table of an earlier order, which loses it and computes another one if it is asked again."""
        earlier = of_density(self.density, before)
        if earlier is None:
            return None
        tabulated, earlier._cached = earlier._cached, None
        if tabulated is None or self._layout != earlier._layout:
            return None
        return tabulated if tabulated.changed(self._first, self._second) else None

    @property
    def _layout(self) -> tuple[float, int, int, int]:
        """What a table depends on beside the parameters."""
        return self.origin, len(self._first), self._positions, self._refine

    @property
    def _tabulated(self) -> Tabulated:
        if self._cached is None:
            self._cached = self._tabulate(self._positions)
        return self._cached

    def _tabulate(self, together: int) -> Tabulated:
        return Tabulated(
            self.density, self._first, self._second,
            positions=self._positions, together=together, refine=self._refine,
        )  # fmt: skip

    def best(self) -> Array:
        return self._tabulated.best()

    def ranks(self, size: int) -> Array:
        together = maximum.together(size)
        tabulated = self._tabulated if together >= self._positions else self._tabulate(together)
        return maximum.ranks(tabulated.table, size)[:, tabulated.row]

    def next_arm(self, prefix: Index, *, floor: float) -> Array:
        table, row = self._tabulated.table, self._tabulated.row
        sweep = _Sweep(table, len(row))
        for arm in prefix:
            sweep.show(np.zeros(1, np.intp), row[arm : arm + 1], floor)
        chance = np.asarray((sweep.weight() @ table.hazard.T)[0, row])
        chance[prefix] = 0.0
        return np.asarray(chance / chance.sum())  # 1, but for what a page that hardly occurs loses below the nodes

    def conditionals(self, slates: Index, *, floor: float, least: bool) -> tuple[Array, Array]:
        table, row = self._tabulated.table, self._tabulated.row
        n, k = slates.shape
        order = np.lexsort(slates.T[::-1])
        pages = slates[order]
        chance, smallest = np.empty((n, k)), np.zeros((n, k))
        # where more arms than one page can show have no chance, some arm left has none
        least = least and np.count_nonzero(row < 0) < k
        step = max(1, _ENTRIES // (len(table.nodes) + len(table.count)))
        for start in range(0, n, step):
            part = order[start : start + step]
            chance[part], smallest[part] = self._shown(pages[start : start + step], floor, least)
        return chance, smallest

    def _shown(self, pages: Index, floor: float, least: bool) -> tuple[Array, Array]:
        """The same of sorted pages: what stands below the same arms comes from one sweep."""
        table, row = self._tabulated.table, self._tabulated.row
        n, k = pages.shape
        chance, smallest = np.empty((n, k)), np.zeros((n, k))
        left = np.bincount(row % len(table.count), minlength=len(table.count))[None]
        begins = np.zeros(n, dtype=bool)  # a prefix that the page above does not have
        begins[0], above, sweep = True, np.zeros(n, np.intp), _Sweep(table, len(row))
        for position in range(k):
            begins[1:] |= pages[1:, position] != pages[:-1, position]
            parent, shown = above[begins], row[pages[begins, position]]
            weight, prefix = sweep.weight(), np.cumsum(begins) - 1
            chance[:, position] = np.einsum("nx,nx->n", weight[parent], table.hazard[shown])[prefix]
            if least:
                smallest[:, position] = np.where(left > 0, weight @ table.hazard.T, np.inf).min(axis=1)[above]
                left = left[parent]
                left[np.arange(len(shown)), shown] -= 1
            if position < k - 1:
                sweep.show(parent, shown, floor)
                above = prefix
        return chance, smallest

    def ranking(self, keys: Array, size: int) -> Index:
        table, row = self._tabulated.table, self._tabulated.row
        above, some = 1 - keys, np.flatnonzero(row >= 0)
        reach = _Reach(table.sf_edge[row[some]].T.copy(), above[:, some])
        # Scores below an edge that enough others exceed are not among the first: any order will do for them.
        scores = keys + (table.edges[0] - 2)
        page, arm = np.nonzero(reach.exceed(reach.edge_below(size)))
        arm = some[arm]
        for start in range(0, len(page), _CACHED):
            few = page[start : start + _CACHED], arm[start : start + _CACHED]
            scores[few] = quantiles(table, row[few[1]], above[few])
        return top(scores, size)


def of_density(density: DensityOf, order: Order | None) -> ContinuousOrder | None:
    """The order, if it is one of scores with such a density."""
    return order if isinstance(order, ContinuousOrder) and order.density is density else None


class _Sweep:
    """Pages while they are filled from the top, on the nodes of a table; one, still empty, to begin with.

    The last arm that was taken for being the best left had some score x; every arm left is below it. A page is a
    density over that cap x, and an atom for pages filled by uniform picks alone, whose cap is infinite. An arm that
    is shown leaves the product of distribution functions of the arms left: at its own score as the new cap, or, picked
    uniformly, anywhere below the cap that stays. It is the transpose of the backward sweep over the joint
    probability, and gives every prefix of a page on the way. Source: own derivation."""

    def __init__(self, table: Table, m: int) -> None:
        self._table, self._left = table, m
        self._atom, self._cap = np.ones(1), np.zeros((1, len(table.nodes)))
        self._log_rest = table.log_all()[None]  # log of the product over the arms left
        self._close()

    def weight(self) -> Array:
        """Weights (n, N): their product with the hazard of an arm left is its chance of being the best left."""
        return np.asarray(self._below * self._rest / self._mass[:, None])

    def show(self, pages: Index, rows: Index, floor: float) -> None:
        """Go on with some of the pages (n,), each as often as wanted: the table's rows (n,) at the next position."""
        log_cdf, uniform, mass = self._table.log_cdf[rows], floor / self._left, self._mass[pages]
        cap = (1 - floor) * self._table.hazard[rows] * self._below[pages]
        if floor > 0:
            cap += uniform * self._cap[pages]
        cap *= np.exp(log_cdf)
        cap /= mass[:, None]
        self._cap = np.minimum(cap, _HUGE, out=cap)
        self._atom = uniform * self._atom[pages] / mass
        self._log_rest = self._log_rest[pages] - log_cdf
        self._left -= 1
        self._close()

    def _close(self) -> None:
        """Probability that the cap is above each node, and of the last arm given the page above it.

        An arm that this policy does not take there leaves caps that the nodes do not follow, and a page without
        probability: it starts anew with the arms left."""
        self._rest = np.exp(self._log_rest) * self._table.weights
        self._mass = self._atom + np.einsum("nx,nx->n", self._cap, self._rest)
        self._below = self._atom[:, None] + self._table.above(self._cap)
        never = ~(self._mass > _NEVER)
        if never.any():
            self._atom[never], self._cap[never], self._below[never], self._mass[never] = 1.0, 0.0, 1.0, 1.0


class _Reach:
    """Which of a scores of n pages exceed an edge: those with more than above (n, a) beyond it, sf_edge (P + 1, a)."""

    def __init__(self, sf_edge: Array, above: Array) -> None:
        self._sf_edge, self._above = sf_edge, above

    def exceed(self, edge: Index) -> Flags:
        """Of edges (n,), (n, a)."""
        return self._sf_edge[edge] > self._above

    def edge_below(self, size: int) -> Index:
        """The highest edge that `size` scores of each page exceed, or the lowest edge, (n,)."""
        low, high = np.zeros(len(self._above), np.intp), np.full(len(self._above), len(self._sf_edge) - 1)
        while (high - low > 1).any():
            middle = (low + high) // 2
            enough = np.count_nonzero(self.exceed(middle), axis=1) >= size
            low, high = np.where(enough, middle, low), np.where(enough, high, middle)
        return low


def quantiles(table: Table, rows: Index, above: Array) -> Array:
    """The scores that rows (q,) exceed with probabilities above (q,), on the table's scale; all above its low edge.

    By the panel, the node, and Newton on the panel's polynomial. The probability there differs from the one asked
    for by less than 1e-13. Source: own derivation."""
    panel = _last_above(table.sf_edge, rows, above)
    half = 0.5 * (table.edges[panel + 1] - table.edges[panel])
    columns = panel[:, None] * ORDER + np.arange(ORDER)
    before = np.count_nonzero(-np.expm1(table.log_cdf[rows[:, None], columns]) > above[:, None], axis=1)
    target = (table.sf_edge[rows, panel] - above) / half
    # einsum, not @: a score must not depend on how many others are looked up with it
    series = np.einsum("kx,qx->kq", COEFFICIENT, table.pdf(rows[:, None], columns))
    s = _solve(series, target, STOPS[before], STOPS[before + 1])
    return np.asarray(table.edges[panel] + half * (1 + s))


def _last_above(sf_edge: Array, rows: Index, above: Array) -> Index:
    """The last panel whose left edge still has more than `above` to its right, (q,)."""
    low, high = np.zeros(len(rows), np.intp), np.full(len(rows), sf_edge.shape[1] - 1)
    while (high - low > 1).any():
        middle = (low + high) // 2
        right = sf_edge[rows, middle] > above
        low, high = np.where(right, middle, low), np.where(right, high, middle)
    return low


def _solve(series: Array, target: Array, low: Array, high: Array) -> Array:
    """s in [low, high] where the integral from -1 of each Legendre series (ORDER, q) is target (q,).

    Newton; from one node to the next a density changes too little to mislead it."""
    integral, s = integrated(series), 0.5 * (low + high)
    open_ = np.arange(len(s))
    for _ in range(20):
        x = s[open_]
        excess = at(x, integral[:, open_]) - target[open_]
        step = excess / np.maximum(at(x, series[:, open_]), 1e-300)
        s[open_] = np.clip(x - step, low[open_], high[open_])
        open_ = open_[np.abs(s[open_] - x) > 1e-11]
        if not open_.size:
            break
    return s
