"""This module keeps the score table of many arms, and updates the table row by row as the distributions of arms
change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rlrec.arrays import Array, Index, run_starts
from rlrec.policy.scores import maximum
from rlrec.policy.scores.panels import ALL_ROWS, Density, sufficient_count, widest_even_panels, widths
from rlrec.policy.scores.table import N_NODES, tabulate

DensityFactory = Callable[[Array, Array], Density]
"""The densities of a family, from its two parameters."""

Pair = tuple[float, float]

# fall in logarithms at which the support of a changed score counts as ended, and above which it is certainly larger
_END_LOG_DROP = 34.0
_WIDTH_MARGIN = 1.1  # factor by which a panel may exceed the width for a changed score
_STEEPNESS_MARGIN = 1.6  # factor by which a panel may exceed that of an even one
_MAX_LOST_PROBABILITY = 3e-12  # probability that may be lost


class Tabulation:
    """A Tabulation holds the scores of m arms on a table. Equal arms share a row, and row -1 stands for arms whose
    scores are too low to matter.

    density: makes the densities of the scores from two parameters of each arm; first, second (m,): these parameters;
    positions: the lowest position whose probabilities are needed; n_densities: the number of densities whose product
    the panels must represent; refinement: the number by which the widths of panels are divided."""

    def __init__(
        self, density: DensityFactory, first: Array, second: Array, *, positions: int, n_densities: int,
        refinement: int = 1,
    ) -> None:  # fmt: skip
        self._density, self._first, self._second = density, first, second
        self._positions, self._n_densities = positions, n_densities
        # equal arms share a row, so a cold start costs one arm; often most arms are equal, and these are not sorted
        sorted_arms = np.append(np.flatnonzero((first != first[-1]) | (second != second[-1])), len(first) - 1)
        order = sorted_arms[np.lexsort((second[sorted_arms], first[sorted_arms]))]
        starts = run_starts(first[order], second[order])
        arms, number = order[starts], np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
        group, count = np.full(len(first), number[order == len(first) - 1]), np.bincount(number).astype(float)
        count[group[-1]] += len(first) - len(order)
        group[order] = number
        scores, n_spare = density(first[arms], second[arms]), min(16 + len(arms) // 8, len(first) - len(arms))
        self.table, row = tabulate(
            scores, count, ranks=positions, n_densities=n_densities, refinement=refinement, n_spare=n_spare
        )
        self.row = row[group]
        self._row_of: dict[Pair, int] = {}
        self._p_best: Array | None = None

    def p_best(self) -> Array:
        """Return the probability that each arm is the best, (m,)."""
        if self._p_best is None:
            self._p_best = maximum.p_best(self.table)
        return self._p_best[self.row]

    def update(self, first: Array, second: Array) -> bool:
        """Rewrite the rows of arms whose parameters changed, and tell whether that worked. The result is False if the
        nodes may not be right for the new parameters.

        After False the table is unusable; after True the table is as exact as a table with new nodes.

        first, second (m,): the new parameters of each arm."""
        arms = ((first != self._first) | (second != self._second)).nonzero()[0]
        if 2 * len(arms) > len(first):
            return False
        if not self._row_of:
            self._row_of = dict(zip(_parameter_pairs(self._first, self._second), self.row.tolist(), strict=True))
        old_pairs = set(_parameter_pairs(self._first[arms], self._second[arms]))
        self._first, self._second, self._p_best = first, second, None
        return not arms.size or (self._move_arms(arms, old_pairs) and self._nodes_suffice())

    def _move_arms(self, arms: Index, old_pairs: set[Pair]) -> bool:
        """Point arms to the rows of their new parameters, and free the rows that lost their last arm. Returns False if
        a row cannot be written.

        arms (a,): the arms whose parameters changed; old_pairs: the parameters that these arms had before."""
        pairs, row_of, table = _parameter_pairs(self._first[arms], self._second[arms]), self._row_of, self.table
        # arms whose parameters have a row, and rows without any arm
        self.row[arms] = [row_of.get(pair, -1) for pair in pairs]
        self._count_arms()
        for pair in old_pairs:
            if not table.count[row_of.get(pair, -1)]:
                row_of.pop(pair, None)
        new_pairs = [pair for pair in dict.fromkeys(pairs) if pair not in row_of]
        if not new_pairs:
            return True
        # new parameters: a free row for each that ends above the lowest edge
        density = self._density(*np.array(new_pairs).T.copy())
        ends = self._count_panels(density)
        tabled_pairs, free_rows = ends.nonzero()[0], (table.count[:-1] == 0).nonzero()[0]
        if ends.min() < 0 or len(free_rows) < len(tabled_pairs):
            return False
        rows = np.full(len(new_pairs), -1)
        rows[tabled_pairs] = free_rows[: len(tabled_pairs)]
        if tabled_pairs.size:
            table.put_scores(rows[tabled_pairs], density, tabled_pairs, panels=int(ends.max()))
        row_of.update(zip(new_pairs, rows.tolist(), strict=True))
        self.row[arms] = [row_of[pair] for pair in pairs]
        self._count_arms()
        return True

    def _count_arms(self) -> None:
        count = np.bincount(self.row % len(self.table.count), minlength=len(self.table.count))
        self.table.count[:-1] = count[:-1]

    def _count_panels(self, density: Density) -> Index:
        """Return the number of panels from the lowest edge to the upper end of each score, (c,). The number is -1 if a
        panel is too wide for the score."""
        edges, mode = self.table.edges, density.mode[:, None]
        # panels that contain a part of the score
        has_dropped = density.log_drop(edges - mode) >= _END_LOG_DROP
        is_below = has_dropped & (mode <= edges)  # the score is below the edge
        holds_score = ~(is_below[:, :-1] | (has_dropped & (mode >= edges))[:, 1:])
        # the panels among these that are too wide, for the narrowest width or for the width at their end
        width = (edges[1:] - edges[:-1]) / _WIDTH_MARGIN
        is_oversized = holds_score & (width > density.step[:, None])
        for panel in np.flatnonzero(is_oversized.any(axis=0)):
            is_oversized[:, panel] &= width[panel] > widths(density, edges[panel + 1])
        return np.where(is_oversized.any(axis=1) | ~is_below[:, -1], -1, is_below.argmax(axis=1))

    def _nodes_suffice(self) -> bool:
        """Tell whether the nodes still decide which arms are among the best, and whether no probability is lost between
        the nodes."""
        table, count = self.table, self.table.count
        # enough scores lie above the lowest edge
        is_above = np.minimum(table.log_low / -_END_LOG_DROP, 1.0)
        if self._positions > 1:
            is_above = np.floor(is_above)
        if count @ is_above < self._positions and count @ table.sf_edge[:, 0] < sufficient_count(self._positions):
            return False
        # no panel is too steep for products of densities
        if self._n_densities > 1:
            pdf, sf = table.pdf(ALL_ROWS, slice(N_NODES, None, N_NODES)), table.sf_edge[:, 1:-1]
            even_width = widest_even_panels(pdf, sf, count[:, None], self._n_densities)
            if (np.diff(table.edges)[:-1] > _STEEPNESS_MARGIN * even_width).any():
                return False
        # for the best arm alone, a loss in a steep panel shows in the sum of probabilities
        self._p_best = maximum.p_best(table)
        return bool(abs(count @ self._p_best + np.exp(count @ table.log_low) - 1) < _MAX_LOST_PROBABILITY)


def _parameter_pairs(first: Array, second: Array) -> list[Pair]:
    return list(zip(first.tolist(), second.tolist(), strict=True))
