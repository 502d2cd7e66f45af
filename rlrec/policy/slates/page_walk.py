"""Prefixes of the slates of a page with rules, filled from the top: the arms that may come next, and their
probabilities.

At a position without a pin, the coin of a least share shows its arm, or one of its arms, as long as some are left and
allowed. Otherwise the floor picks uniformly among the allowed arms left, or the best of these in the one vector of
noisy scores is taken.
An arm that a cap removes has lost to the last arm that was taken as the best, whose score is the cap of all arms that
competed with it. In the sweep over prefixes (`policy/scores/sweep.py`) the removed arm leaves the product of the arms
left, and its distribution function at the cap joins the density of the prefix. Source: own derivation, checked against
enumeration."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from rlrec.arrays import Array, Flags, Index, distinct
from rlrec.policy.scores.floors import Floor, at_positions
from rlrec.policy.scores.scores import Order
from rlrec.policy.scores.sweep import Sweep
from rlrec.policy.scores.tabulated import Tabulated
from rlrec.policy.slates.page_layout import PageLayout
from rlrec.policy.slates.plackett_luce import softmax

_CELLS = 64  # cells whose values are cached


class BestLeft(Protocol):
    """The best one of the allowed arms, below some prefixes."""

    def probability(self, allowed: Flags) -> Array:
        """The probability that each arm is the best of the allowed ones, (u, m), given the prefix; rows sum to 1."""

    def show(self, prefixes: Index, arms: Index, picked: Array, best: Array, closed: Flags) -> None:
        """Lengthen prefixes (n,) by one arm each, -1 for one that did not compete. picked, best (n,): probability that
        a coin shows it, and that it is taken as the best; closed (n, cells): cells that are no longer allowed."""


class FreshBest:
    """Orders in which a prefix only determines which arms are left: softmax, fixed scores, samples."""

    def __init__(self, order: Order) -> None:
        self._order = order

    def probability(self, allowed: Flags) -> Array:
        rows = [
            self._order.next_arms(np.flatnonzero(~row)[None], floor=0.0)[0] if row.any() else np.zeros(len(row))
            for row in allowed
        ]
        return np.array(rows)

    def show(self, prefixes: Index, arms: Index, picked: Array, best: Array, closed: Flags) -> None:
        pass


class LogitsBest:
    """Softmax where every prefix has its own logits, (u, m). temperature: that divides them, see `softmax`."""

    def __init__(self, logits: Array, *, temperature: float = 1.0) -> None:
        self._logits, self._temperature = logits, temperature

    def probability(self, allowed: Flags) -> Array:
        usable = allowed | ~allowed.any(axis=1, keepdims=True)
        logits = np.where(usable, self._logits, -np.inf)
        return np.where(allowed, softmax(logits, temperature=self._temperature), 0.0)

    def show(self, prefixes: Index, arms: Index, picked: Array, best: Array, closed: Flags) -> None:
        self._logits = self._logits[prefixes]


class SweptBest:
    """Independent continuous scores: one vector ranks the whole page, so a prefix has information about the arms
    left."""

    def __init__(self, tabulated: Tabulated, layout: PageLayout) -> None:
        self._table, self._row, self._layout = tabulated.table, tabulated.row, layout
        self._cell_logs: dict[int, Array] = {}
        closed = ~layout.open_cells(layout.counts[None])
        log_left = self._table.log_all() - self._table.log_cdf[self._row[layout.pinned]].sum(axis=0)
        if closed.any():
            log_left = log_left - self._log_cells(closed)[0]
        self._sweep = Sweep(self._table, log_left[None])
        self._shown = np.empty((1, 0), np.intp)  # the arms of each prefix that competed, -1 for others

    def probability(self, allowed: Flags) -> Array:
        probability = (self._sweep.weight() @ self._table.hazard.T).take(self._row, axis=1)
        probability *= allowed
        total = probability.sum(axis=1, keepdims=True)
        # normalised as in `ContinuousOrder.next_arms`
        return np.divide(probability, total, out=probability, where=total > 0)

    def show(self, prefixes: Index, arms: Index, picked: Array, best: Array, closed: Flags) -> None:
        rows = np.where(arms >= 0, self._row[arms], -1)
        self._shown = np.column_stack([self._shown[prefixes], arms])
        lost = None
        if closed.any():
            # all arms of these cells, except those that were shown
            lost = self._log_cells(closed)
            for shown in self._shown.T:
                is_in = (shown >= 0) & closed[np.arange(len(shown)), self._layout.cell[shown]]
                lost[is_in] -= self._table.log_cdf[self._row[shown[is_in]]]
        self._sweep.take(prefixes, rows, picked=picked, best=best, lost=lost)

    def _log_cells(self, cells: Flags) -> Array:
        """Log of the product of the distribution functions of the arms of cells (n, cells) that are not pinned,
        (n, N)."""
        used = np.flatnonzero(cells.any(axis=0)).tolist()
        if len(used) > _CELLS:
            free = self._row >= 0
            free[self._layout.pinned] = False
            return np.array([self._log_arms(free & row[self._layout.cell]) for row in cells])
        for cell in used:
            if cell not in self._cell_logs:
                arms = self._layout.cell == cell
                arms[self._layout.pinned] = False
                self._cell_logs[cell] = self._log_arms(arms)
        return cells[:, used].astype(float) @ np.array([self._cell_logs[cell] for cell in used])

    def _log_arms(self, arms: Flags) -> Array:
        """The log of the product of the distribution functions of some arms, (N,)."""
        rows, count = np.unique(self._row[arms], return_counts=True)
        return count.astype(float) @ self._table.log_cdf[rows]


class SlateWalk:
    """Distinct prefixes of slates, all of one length, while they are filled from the top."""

    def __init__(self, layout: PageLayout, floor: Floor, best: BestLeft, *, prefixes: int) -> None:
        m = len(layout.cell)
        self._layout, self._floors, self._best = layout, at_positions(floor, m), best
        self._position, self._left = 0, np.ones((prefixes, m), np.bool_)
        self._counts = np.tile(layout.counts, (prefixes, 1))
        self._is_of_request = bool(layout.by_request[:-1].all()) and layout.pins.keys() == layout.pinned_by_request
        self._allowed = self._find_allowed()

    def probability(self) -> Array:
        """The probability of each arm at the next position, given the prefix, (u, m); all 0 where none is allowed."""
        allowed = self._allowed
        if self._position in self._layout.pins:
            return allowed.astype(np.float64)
        each, best, shares = self._coins()
        probability = best[:, None] * self._best.probability(allowed)
        if each.any():
            probability += each[:, None] * allowed
        if self._layout.least:
            probability += shares
        return probability

    def minimum(self, probability: Array) -> Array:
        """The smallest probability of any arm that is left and that the request allows, (u,)."""
        by_request = self._allowed if self._is_of_request else self._find_allowed(by_request=True)
        return np.where(by_request, probability, 1.0).min(axis=1)

    def show(self, prefix: Index, arms: Index) -> Index:
        """Lengthen the prefixes of slates (n,) by one arm each, (n,); returns the new prefix of each slate, (n,)."""
        first, code = distinct(prefix, arms)
        parent, shown, row = prefix[first], arms[first], np.arange(len(first))
        layout = self._layout
        is_pinned = self._position in layout.pins
        competed = self._allowed[parent, shown] & (not is_pinned)
        if is_pinned:
            picked, best = np.ones(len(first)), np.zeros(len(first))
        else:
            each, undecided, shares = self._coins()
            picked = np.where(competed, each[parent] + shares[parent, shown], 1.0)
            best = np.where(competed, undecided[parent], 0.0)
        was_open = layout.open_cells(self._counts)[parent]
        self._counts, self._left = self._counts[parent], self._left[parent]
        np.add.at(self._counts, (row[competed, None], layout.uses[layout.cell[shown[competed]]]), 1)
        self._left[row, shown] = False
        closed = was_open & ~layout.open_cells(self._counts)
        self._best.show(parent, np.where(competed, shown, -1), picked, best, closed)
        self._position += 1
        self._allowed = self._find_allowed()
        return code

    def _coins(self) -> tuple[Array, Array, Array]:
        """Probability that the floor shows any one of the allowed arms, and that no coin decides, (u,) each; that the
        coin of a least share shows each arm, (u, m)."""
        shares, undecided = self._layout.coins(self._position, self._allowed)
        uniform = self._floors[self._position]
        each = undecided * uniform / np.maximum(np.count_nonzero(self._allowed, axis=1), 1)
        return each, undecided * (1.0 - uniform), shares

    def _find_allowed(self, *, by_request: bool = False) -> Flags:
        """Which arms may stand at the next position, (u, m). by_request: under the rules of the request only."""
        layout, position = self._layout, self._position
        if position in layout.pins and (not by_request or position in layout.pinned_by_request):
            return np.broadcast_to(np.arange(self._left.shape[1]) == layout.pins[position], self._left.shape)
        allowed = self._left.copy()
        pins = layout.pins.items()
        allowed[:, [arm for at, arm in pins if not by_request or at in layout.pinned_by_request]] = False
        if layout.has_caps:
            allowed &= layout.open_cells(self._counts, by_request=by_request)[:, layout.cell]
        return allowed
