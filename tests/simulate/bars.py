"""Exact values of visits to a coffee bar, under any policy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.simulate.barista import Barista

Histories = Callable[[Index], Array]  # items served so far, (h, t), to probabilities of the next one, (h, arms)


def state(bar: Barista, items: Index) -> Index:
    """The state after these items of a visit, (h,), or -1 where it has ended. items: (h, t)."""
    state = np.zeros(len(items), np.intp)
    for item in items.T:
        state = np.where(state >= 0, bar.chain.next_states[state, item], -1)
    return state


def value(bar: Barista, probabilities: Array) -> float:
    """Mean reward of a visit. probabilities: of each item in each state of the chain, (n, arms)."""
    return float(bar._values(lambda of_items, layer: (probabilities[layer] * of_items).sum(axis=1))[0][0])


def length(bar: Barista, probabilities: Array) -> float:
    """Mean decisions of a visit. probabilities: as in `value`."""
    return float(bar._reach_probabilities(probabilities).sum())


def value_of(bar: Barista, policy: Histories) -> float:
    """Mean reward of a visit under a policy that sees all items served so far, summed over all histories.

    policy: from the items served so far, (h, t), oldest first, to probabilities, (h, arms). It is called once for
    each step t = 0, 1, ...; there are at most arms^t histories."""
    items, state, reached = np.empty((1, 0), np.intp), np.zeros(1, np.intp), np.ones(1)
    total = 0.0
    while len(state):
        shares = reached[:, None] * policy(items)
        total += float((shares * bar.chain.mean_rewards[state]).sum())
        following = bar.chain.next_states[state]
        row, item = np.nonzero((following >= 0) & (shares > 0))
        items = np.column_stack([items[row], item])
        state, reached = following[row, item], shares[row, item]
    return total
