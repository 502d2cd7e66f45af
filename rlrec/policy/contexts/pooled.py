"""This module computes the probabilities of the rankings of many cases at once. Each case has the same number of
independent continuous scores, and all scores are tabulated on the same nodes.

If lists of candidates differ between decisions and the belief does not, the same scores occur in other combinations.
They are then tabulated only once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rlrec.arrays import Array, Index, distinct_rows
from rlrec.policy.scores import maximum
from rlrec.policy.scores.families import gumbel
from rlrec.policy.scores.scores import Order
from rlrec.policy.scores.sweep import ContinuousOrder, sweep_slates
from rlrec.policy.scores.table import tabulate

_MIN_CASES = 4  # cases from which on one table pays off
_MAX_NODES = 4_000  # of a table for all cases
_MAX_ENTRIES = 1 << 18  # numbers in a working array


class PooledOrders:
    """A PooledOrders object holds the random rankings of u cases, each of which ranks s arms by noisy scores.

    rows (u, s): the row of each score in the table that all cases share."""

    def __init__(self, orders: Sequence[ContinuousOrder], *, positions: int) -> None:
        origin = max(order.origin for order in orders)
        first_parameters = np.array([order.first + (order.origin - origin) for order in orders])
        pairs, pair_index = distinct_rows(
            np.column_stack([first_parameters.ravel(), np.ravel([order.second for order in orders])])
        )
        # every score may be the best one of some case
        density, count = orders[0].density(*pairs.T.copy()), np.ones(len(pairs))
        self.table, row = tabulate(density, count, ranks=len(pairs), n_densities=positions)
        self.rows: Index = row[pair_index].reshape(first_parameters.shape)

    def ranks(self, size: int) -> Array:
        """Return the probability that each arm has rank 1, ..., `size` in the ranking of its case, (u, size, s)."""
        table, (u, s) = self.table, self.rows.shape
        ranks = np.empty((u, size, s))
        step = max(1, _MAX_ENTRIES // (s * size * len(table.nodes)))
        for start in range(0, u, step):
            rows = self.rows[start : start + step].T
            p_larger = maximum.probability_of_others_above(table.log_cdf[rows].reshape(s, -1), size)
            density = table.pdf(rows) * table.weights
            ranks[start : start + step] = np.einsum("rsux,sux->urs", p_larger.reshape(-1, *density.shape), density)
        return ranks

    def each_position(self, case: Index, slates: Index, *, floors: Array) -> Iterator[tuple[Array, Index]]:
        """Yield two arrays at each position of n slates: the probability of each next arm after each of the p distinct
        prefixes, (p, s), and the index of each slate's prefix, (n,). A prefix is the list of arms above the position.

        case (n,): the case of each slate; slates (n, k): the arms, as indices 0..s - 1, sorted by case and then by
        arm; floors (k,): the floor at each position."""
        table, row_numbers, is_new_prefix = self.table, np.arange(len(case)), np.ones(len(case), np.bool_)
        is_new_prefix[1:] = case[1:] != case[:-1]
        prefix_rows, first_rows = self.rows[case[is_new_prefix]], row_numbers[is_new_prefix]
        weights = sweep_slates(
            table, table.log_cdf[prefix_rows].sum(axis=1), arms=self.rows.shape[1], slates=slates,
            rows=self.rows[case[:, None], slates], prefix=np.cumsum(is_new_prefix) - 1, floors=floors,
        )  # fmt: skip
        for position, (weight, prefix, is_new_prefix) in enumerate(weights):
            probability = np.einsum("ux,usx->us", weight, table.hazard[prefix_rows])
            probability[np.arange(len(first_rows))[:, None], slates[first_rows, :position]] = 0.0
            yield probability / probability.sum(axis=1, keepdims=True), prefix
            first_rows = row_numbers[is_new_prefix]
            prefix_rows = self.rows[case[first_rows]]


def pool_orders(orders: Sequence[Order], *, positions: int) -> PooledOrders | None:
    """Return the rankings of all cases on one table. The result is None if scores are not continuous, or if a table for
    each case is faster.

    orders: the distribution of the ranking of each case, with the same number of scores; positions: the lowest
    position whose probabilities are needed."""
    continuous_orders = [order for order in map(_to_continuous, orders) if order is not None]
    if len(continuous_orders) < max(len(orders), _MIN_CASES) or len({order.density for order in continuous_orders}) > 1:
        return None
    pooled_orders = PooledOrders(continuous_orders, positions=positions)
    return pooled_orders if len(pooled_orders.table.nodes) <= _MAX_NODES else None


def _to_continuous(order: Order) -> ContinuousOrder | None:
    if isinstance(order, gumbel.PlackettLuceOrder) and np.isfinite(order.logits).all():
        return gumbel.continuous_order(order.logits, positions=1)
    return order if isinstance(order, ContinuousOrder) else None
