"""This module computes scores under the rules of a page, and the exact distribution of the slates under these rules.

A pinned position certainly shows its arm, and the other positions form a page of the other arms. A cap allows at
most n arms with the same value of a field, including pinned arms. Once n arms are shown, further arms with this
value are no longer allowed. `page_layout.py` has the rules by arm.

Slates of a page with rules are filled from the top. For each prefix, which is the arms so far, the functions give the
arms that may come next, and their probabilities.

At a position without a pin, a coin may show an arm of a least share (a smallest probability that some arms have
together), as long as such an arm is left and allowed. If no coin does, the floor picks uniformly among the allowed arms
left. Otherwise the best of these arms is taken, by one vector of noisy scores for the whole slate. An arm that a cap
removes is known to have a lower score than the last arm that was taken as the best. The sweep over prefixes
(`policy/scores/sweep.py`) therefore multiplies the density of this last score by the distribution function of the
removed arm, and divides the removed arm out of the arms left. Source: own derivation, checked against enumeration."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Protocol, cast

import numpy as np

from rlrec.arrays import Array, Flags, Ids, Index, Words, distinct
from rlrec.policy.scores.floors import Floor, at_positions
from rlrec.policy.scores.sampler import uniforms
from rlrec.policy.scores.scores import ExactOrder, Order, Scores, subset
from rlrec.policy.scores.sweep import ContinuousOrder, Sweep
from rlrec.policy.scores.tabulated import Tabulation
from rlrec.policy.slates.page_layout import PageLayout
from rlrec.policy.slates.plackett_luce import softmax
from rlrec.policy.slates.slate import invert_rows, to_positions
from rlrec.policy.slates.slate_draws import Draw, SlateSampler, first_position_marginals, logged_draw
from rlrec.records import Record

_CACHED_CELLS = 64  # cells whose values are cached
_MAX_ENTRIES = 1 << 20  # numbers in a working array
_MORE_RANKS = 4  # factor by which more ranks are tabulated where the arms left may lie below the nodes
_POSITIONS_STEP = 8  # a table is made for a multiple of so many positions
_CERTAIN_LOG = 34.0  # minus the log of the probability that an arm lies below the nodes


class BestLeft(Protocol):
    """A BestLeft object computes, for each of u prefixes of slates, the probability that an allowed arm is the best
    one."""

    def probability(self, is_allowed: Flags) -> Array:
        """Return the probability that each arm is the best of the allowed arms, given the prefix, (u, m). Rows sum to
        1.

        is_allowed (u, m): whether each arm may come next."""

    def show(self, prefixes: Index, arms: Index, p_pick: Array, p_best: Array, closed_cells: Flags) -> None:
        """Append one arm to each prefix.

        prefixes (n,): the index of each prefix that is made longer; arms (n,): the arm that is appended, or -1 if
        this arm did not compete with the others (it was pinned, say); p_pick (n,): the probability that a coin shows
        the arm; p_best (n,): the probability that the arm is taken as the best; closed_cells (n, cells): which cells
        of arms are no longer allowed."""


class FreshBest:
    """A FreshBest object handles orders in which a prefix only determines which arms are left, such as softmax, fixed
    scores and samples."""

    def __init__(self, order: Order) -> None:
        self._order = order

    def probability(self, is_allowed: Flags) -> Array:
        probability_rows = [
            self._order.next_arms(np.flatnonzero(~row)[None], floor=0.0)[0] if row.any() else np.zeros(len(row))
            for row in is_allowed
        ]
        return np.array(probability_rows)

    def show(self, prefixes: Index, arms: Index, p_pick: Array, p_best: Array, closed_cells: Flags) -> None:
        pass


class LogitsBest:
    """A LogitsBest object draws by softmax where every prefix has separate logits.

    logits (u, m): the logits of the arms for each prefix; temperature: the number by which logits are divided, as in
    `softmax`."""

    def __init__(self, logits: Array, *, temperature: float = 1.0) -> None:
        self._logits, self._temperature = logits, temperature

    def probability(self, is_allowed: Flags) -> Array:
        is_usable = is_allowed | ~is_allowed.any(axis=1, keepdims=True)
        logits = np.where(is_usable, self._logits, -np.inf)
        return np.where(is_allowed, softmax(logits, temperature=self._temperature), 0.0)

    def show(self, prefixes: Index, arms: Index, p_pick: Array, p_best: Array, closed_cells: Flags) -> None:
        self._logits = self._logits[prefixes]


class SweptBest:
    """A SweptBest object finds the best arm left for independent continuous scores.

    One vector of scores ranks the whole page, so the arms shown tell something about the scores of the arms left."""

    def __init__(self, tabulation: Tabulation, layout: PageLayout) -> None:
        self._table, self._row, self._layout = tabulation.table, tabulation.row, layout
        self._cell_logs: dict[int, Array] = {}
        closed_cells = ~layout.find_open_cells(layout.counts[None])
        log_left = self._table.log_all_below() - self._table.log_cdf[self._row[layout.pinned_arms]].sum(axis=0)
        if closed_cells.any():
            log_left = log_left - self._log_cells(closed_cells)[0]
        self._sweep = Sweep(self._table, log_left[None])
        self._shown_arms = np.empty((1, 0), np.intp)  # the arms of each prefix that competed, -1 for others

    def probability(self, is_allowed: Flags) -> Array:
        probability = (self._sweep.weight() @ self._table.hazard.T).take(self._row, axis=1)
        probability *= is_allowed
        total = probability.sum(axis=1, keepdims=True)
        # normalised as in `ContinuousOrder.next_arms`
        return np.divide(probability, total, out=probability, where=total > 0)

    def show(self, prefixes: Index, arms: Index, p_pick: Array, p_best: Array, closed_cells: Flags) -> None:
        rows = np.where(arms >= 0, self._row[arms], -1)
        self._shown_arms = np.column_stack([self._shown_arms[prefixes], arms])
        log_lost = None
        if closed_cells.any():
            # all arms of these cells, except those that were shown
            log_lost = self._log_cells(closed_cells)
            for column in self._shown_arms.T:
                is_in = (column >= 0) & closed_cells[np.arange(len(column)), self._layout.cell[column]]
                log_lost[is_in] -= self._table.log_cdf[self._row[column[is_in]]]
        self._sweep.take(prefixes, rows, p_pick=p_pick, p_best=p_best, log_lost=log_lost)

    def _log_cells(self, cells: Flags) -> Array:
        """Return the logarithm of the product of the distribution functions of all arms in the given cells that are not
        pinned, (n, N), at the N nodes of the table.

        cells (n, cells): the cells of each row."""
        used_cells = np.flatnonzero(cells.any(axis=0)).tolist()
        if len(used_cells) > _CACHED_CELLS:
            is_free = self._row >= 0
            is_free[self._layout.pinned_arms] = False
            return np.array([self._log_arms(is_free & row[self._layout.cell]) for row in cells])
        for cell in used_cells:
            if cell not in self._cell_logs:
                arms = self._layout.cell == cell
                arms[self._layout.pinned_arms] = False
                self._cell_logs[cell] = self._log_arms(arms)
        return cells[:, used_cells].astype(float) @ np.array([self._cell_logs[cell] for cell in used_cells])

    def _log_arms(self, arms: Flags) -> Array:
        """Return the logarithm of the product of the distribution functions of these arms, (N,), at the N nodes of the
        table.

        arms (m,): whether each arm is included."""
        rows, count = np.unique(self._row[arms], return_counts=True)
        return count.astype(float) @ self._table.log_cdf[rows]


class SlateWalk:
    """A SlateWalk holds distinct prefixes of slates while the slates are filled from the top. All prefixes have the
    same length.

    prefixes: the number of prefixes at the beginning, all of which are empty."""

    def __init__(self, layout: PageLayout, floor: Floor, best_left: BestLeft, *, prefixes: int) -> None:
        m = len(layout.cell)
        self._layout, self._floors, self._best_left = layout, at_positions(floor, m), best_left
        self._position, self._is_left = 0, np.ones((prefixes, m), np.bool_)
        self._counts = np.tile(layout.counts, (prefixes, 1))
        self._is_of_request = bool(layout.is_of_request[:-1].all()) and layout.pins.keys() == layout.pinned_by_request
        self._is_allowed = self._find_allowed()

    def probability(self) -> Array:
        """Return the probability of each arm at the next position, given the prefix, (u, m). A row is all 0 if no arm
        is allowed."""
        is_allowed = self._is_allowed
        if self._position in self._layout.pins:
            return is_allowed.astype(np.float64)
        floor_probability, best_share, shares = self._coin_probabilities()
        probability = best_share[:, None] * self._best_left.probability(is_allowed)
        if floor_probability.any():
            probability += floor_probability[:, None] * is_allowed
        if self._layout.least:
            probability += shares
        return probability

    def minimum(self, probability: Array) -> Array:
        """Return the smallest probability of any arm that is left and that the request allows, for each prefix, (u,).

        probability (u, m): the result of `SlateWalk.probability`."""
        is_of_request = self._is_allowed if self._is_of_request else self._find_allowed(is_of_request=True)
        return np.where(is_of_request, probability, 1.0).min(axis=1)

    def show(self, prefix: Index, arms: Index) -> Index:
        """Append one arm to the prefix of each slate, and return the index of each slate's new prefix, (n,).

        prefix (n,): the index of each slate's prefix; arms (n,): the arm that is appended."""
        first_slates, new_prefixes = distinct(prefix, arms)
        parent_prefix, shown_arms, row = prefix[first_slates], arms[first_slates], np.arange(len(first_slates))
        layout = self._layout
        is_pinned = self._position in layout.pins
        is_rival = self._is_allowed[parent_prefix, shown_arms] & (not is_pinned)
        if is_pinned:
            p_pick, p_best = np.ones(len(first_slates)), np.zeros(len(first_slates))
        else:
            floor_probability, p_undecided, shares = self._coin_probabilities()
            p_pick = np.where(is_rival, floor_probability[parent_prefix] + shares[parent_prefix, shown_arms], 1.0)
            p_best = np.where(is_rival, p_undecided[parent_prefix], 0.0)
        was_open = layout.find_open_cells(self._counts)[parent_prefix]
        self._counts, self._is_left = self._counts[parent_prefix], self._is_left[parent_prefix]
        np.add.at(self._counts, (row[is_rival, None], layout.cell_counters[layout.cell[shown_arms[is_rival]]]), 1)
        self._is_left[row, shown_arms] = False
        closed_cells = was_open & ~layout.find_open_cells(self._counts)
        self._best_left.show(parent_prefix, np.where(is_rival, shown_arms, -1), p_pick, p_best, closed_cells)
        self._position += 1
        self._is_allowed = self._find_allowed()
        return new_prefixes

    def _coin_probabilities(self) -> tuple[Array, Array, Array]:
        """Return three probabilities of the coins at the next position: that the floor shows a given allowed arm, (u,);
        that no coin decides, (u,); and that the coin of a least share shows each arm, (u, m)."""
        shares, p_undecided = self._layout.least_share_probabilities(self._position, self._is_allowed)
        uniform_share = self._floors[self._position]
        floor_probability = p_undecided * uniform_share / np.maximum(np.count_nonzero(self._is_allowed, axis=1), 1)
        return floor_probability, p_undecided * (1.0 - uniform_share), shares

    def _find_allowed(self, *, is_of_request: bool = False) -> Flags:
        """Tell which arms may stand at the next position, (u, m).

        is_of_request: whether only the rules of the request are considered."""
        layout, position = self._layout, self._position
        if position in layout.pins and (not is_of_request or position in layout.pinned_by_request):
            return np.broadcast_to(np.arange(self._is_left.shape[1]) == layout.pins[position], self._is_left.shape)
        is_allowed = self._is_left.copy()
        pins = layout.pins.items()
        is_allowed[:, [arm for at, arm in pins if not is_of_request or at in layout.pinned_by_request]] = False
        if layout.has_caps:
            is_allowed &= layout.find_open_cells(self._counts, is_of_request=is_of_request)[:, layout.cell]
        return is_allowed


class RuledScores(Record, kw_only=False, eq=False):
    """A RuledScores object holds the scores of m arms on a page with rules. Probabilities from these scores already
    include the floor, so callers must not add the floor again.

    scores: the scores without rules; layout: the rules; floor: the probability of a uniform pick."""

    scores: Scores
    layout: PageLayout
    floor: Floor
    is_ruled: ClassVar[bool] = True

    @property
    def samples(self) -> int:
        return self.scores.samples

    def __len__(self) -> int:
        return len(self.scores)

    def order(self, positions: int, *, earlier_order: Order | None = None) -> RuledOrder:
        if earlier_order is not None:
            return RuledOrder(self, positions, earlier_order=earlier_order)
        # successive requests for the same page differ in how far down they go
        return _order(self, min(len(self), -(-positions // _POSITIONS_STEP) * _POSITIONS_STEP))

    def noise(self, shape: tuple[int, int], rng: np.random.Generator) -> Array:
        return self.scores.noise(shape, rng)

    def decision_scores(self, seed: int, decision: int) -> RuledScores:
        if not self.samples:
            return self
        return replace(self, scores=self.scores.decision_scores(seed, decision))


@lru_cache(maxsize=8)
def _order(ruled_scores: RuledScores, positions: int) -> RuledOrder:
    return RuledOrder(ruled_scores, positions)


class RuledOrder(ExactOrder):
    """A RuledOrder computes the probabilities of arms at positions 1 to `positions` of a page with rules. All
    probabilities include the floor, and the least share (smallest probability) of each group of arms."""

    def __init__(self, ruled_scores: RuledScores, positions: int, *, earlier_order: Order | None = None) -> None:
        self._ruled_scores, self._positions = ruled_scores, positions
        self._earlier_order: Order | None = None
        self._ranks = 0  # which the table of the scores decides
        if isinstance(earlier_order, RuledOrder):
            self._earlier_order, self._ranks = earlier_order._order, earlier_order._ranks

    @cached_property
    def _order(self) -> Order:
        """Return the order of the scores without rules. Its table includes enough arms for all positions, even if caps
        remove the best arms."""
        scores, layout, size = self._ruled_scores.scores, self._ruled_scores.layout, self._positions
        n_ranks = self._ranks or (2 * size if layout.has_caps else size)
        while True:
            n_ranks = min(n_ranks, len(scores))
            order = scores.order(n_ranks, earlier_order=self._earlier_order)
            if not isinstance(order, ContinuousOrder) or n_ranks == len(scores) or not layout.has_caps:
                break
            if _reaches_enough_arms(order.tabulation, layout, size):
                break
            n_ranks, self._earlier_order = _MORE_RANKS * n_ranks, None
        self._ranks, self._earlier_order = n_ranks, None
        return order

    def walk(self) -> SlateWalk:
        """Return a `SlateWalk` with one prefix, which is empty."""
        order, layout = self._order, self._ruled_scores.layout
        best_left = SweptBest(order.tabulation, layout) if isinstance(order, ContinuousOrder) else FreshBest(order)
        return SlateWalk(layout, self._ruled_scores.floor, best_left, prefixes=1)

    def next_arms(self, prefixes: Index, *, floor: Floor) -> Array:
        walk, prefix = self.walk(), np.zeros(len(prefixes), np.intp)
        for arms_shown in prefixes.T:
            prefix = walk.show(prefix, arms_shown)
        return walk.probability()[prefix]

    def conditionals(self, slates: Index, *, floor: Floor, with_minimum: bool) -> tuple[Array, Array]:
        probability, minimum = np.empty(slates.shape), np.zeros(slates.shape)
        step = max(1, _MAX_ENTRIES // len(self._ruled_scores))
        for start in range(0, len(slates), step):
            rows = slice(start, start + step)
            prefix = np.zeros(len(slates[rows]), np.intp)
            results = _follow_slates(self.walk(), prefix, slates[rows], with_minimum=with_minimum)
            probability[rows], minimum[rows] = results
        return probability, minimum

    def steps(self, slates: Index, *, size: int) -> Array:
        """Return the probability of each arm at positions 1 to `size` of each slate, given the arms above, (n, size,
        m).

        slates (n, k): the arms at the first k positions. Below position k + 1 the probabilities are not known, and
        the probabilities at position k + 1 are repeated."""
        shares, walk = np.empty((len(slates), size, len(self._ruled_scores))), self.walk()
        prefix = np.zeros(len(slates), np.intp)
        for position in range(min(slates.shape[1] + 1, size)):
            shares[:, position:] = walk.probability()[prefix][:, None]
            if position < slates.shape[1]:
                prefix = walk.show(prefix, slates[:, position])
        return shares

    def ranks(self, size: int) -> Array:
        """Return the probability that each arm stands at each position, (size, m). The result is NaN at positions
        without a closed form."""
        layout, m = self._ruled_scores.layout, len(self._ruled_scores)
        marginals = np.full((size, m), np.nan)
        pinned_positions = [position for position in layout.pins if position < size]
        for position in pinned_positions:
            marginals[position] = np.arange(m) == layout.pins[position]
        open_positions = np.setdiff1d(np.arange(size), pinned_positions)
        if layout.has_closed_form and len(open_positions) > 1 and not self._ruled_scores.samples:
            free_arms = np.setdiff1d(np.arange(m), layout.pinned_arms)
            floors = tuple(at_positions(self._ruled_scores.floor, size)[open_positions].tolist())
            ranks = subset(self._ruled_scores.scores, free_arms).order(len(open_positions)).ranks(len(open_positions))
            marginals[open_positions] = 0.0
            marginals[np.ix_(open_positions, free_arms)] = to_positions(ranks, floors)
        elif len(open_positions):
            first_open = int(open_positions[0])
            prefix = np.array([[layout.pins[position] for position in range(first_open)]], np.intp)
            marginals[first_open] = self.next_arms(prefix, floor=0.0)[0]
        return marginals


def _reaches_enough_arms(tabulation: Tabulation, layout: PageLayout, size: int) -> bool:
    """Tell whether enough arms lie above the lowest node of the table, even if caps remove the arms of the most likely
    values.

    size: the number of positions of the page."""
    from rlrec.policy.scores.panels import sufficient_count

    table, row = tabulation.table, tabulation.row
    is_certain = np.where(table.count > 0, table.log_low <= -_CERTAIN_LOG, False)[row]
    for p_above, n_needed in ((is_certain.astype(float), float(size)), (table.sf_edge[row, 0], sufficient_count(size))):
        by_cell = np.bincount(layout.cell, weights=p_above, minlength=len(layout.cell_counters))
        by_counter, n_lost = layout.sum_by_counter(by_cell), 0.0
        for cap in np.unique(layout.cap[:-1]):
            counters = np.flatnonzero(layout.cap == cap)
            n_used = size // int(layout.limit[counters[0]])
            n_lost += float(np.sort(by_counter[counters])[-n_used:].sum()) if n_used else 0.0
        if p_above.sum() - n_lost >= n_needed:
            return True
    return False


class RuledSampler(SlateSampler):
    """A RuledSampler draws the slates of a page with rules, position by position. Uniform number 2p of a decision draws
    the arm of position p, from 0."""

    def prepare(self) -> None:
        if not self._scores.samples:
            _ = self.marginals

    def draw(self, *, seeds: Words, decisions: Ids, with_marginals: bool = True) -> Draw:
        uniform = uniforms(seeds, decisions, words=2 * self._size - 1)[:, ::2]
        draws = list[tuple[Any, ...]]()
        if not self._scores.samples:
            step = max(1, _MAX_ENTRIES // self._arms)
            for start in range(0, len(uniform), step):
                rows = uniform[start : start + step]
                draws.append(_draw_from_walk(cast(RuledOrder, self._order).walk(), np.zeros(len(rows), np.intp), rows))
            slates, propensity, minimum = map(np.vstack, zip(*draws, strict=True))
            return logged_draw(slates, propensity, self.marginals[np.arange(self._size), slates], minimum)
        for row, (seed, decision) in enumerate(zip(seeds.tolist(), decisions.tolist(), strict=True)):
            order = self._scores.decision_scores(seed, decision).order(self._size)
            drawn_slate = _draw_from_walk(cast(RuledOrder, order).walk(), np.zeros(1, np.intp), uniform[row : row + 1])
            draws.append((*drawn_slate, order.ranks(self._size)[np.arange(self._size), drawn_slate[0]]))
        slates, propensity, minimum, marginal = map(np.vstack, zip(*draws, strict=True))
        return logged_draw(slates, propensity, marginal, minimum)


def draw_rows(logits: Array, layout: PageLayout, *, floor: Floor, seeds: Words, decisions: Ids, size: int) -> Draw:
    """Return slates of n decisions, drawn with separate logits for each decision. Marginals below the first position
    are NaN.

    logits (n, m): the logits of each decision; seeds (n,), decisions (n,): the seed and the id of each decision."""
    walk = SlateWalk(layout, floor, LogitsBest(logits), prefixes=len(logits))
    uniform = uniforms(seeds, decisions, words=2 * size - 1)[:, ::2]
    slates, propensity, minimum = _draw_from_walk(walk, np.arange(len(logits)), uniform)
    return logged_draw(slates, propensity, first_position_marginals(propensity), minimum)


def log_rows(logits: Array, layout: PageLayout, slates: Index, *, floor: Floor) -> Draw:
    """Return slates with the probabilities that `draw_rows` gives them.

    logits (n, m): the logits of each slate; slates (n, k): the arms."""
    walk = SlateWalk(layout, floor, LogitsBest(logits), prefixes=len(logits))
    propensity, minimum = _follow_slates(walk, np.arange(len(logits)), slates)
    return logged_draw(slates, propensity, first_position_marginals(propensity), minimum)


def log_conditionals(score: Array, layout: PageLayout, slates: Index, *, temperature: float, floor: Floor) -> Array:
    """Return the logarithm of the probability of each slot given the slots above, (n, k).

    score (n, m): the scores of each slate; slates (n, k): the arms."""
    walk = _walk_by_scores(score, layout, temperature=temperature, floor=floor)
    with np.errstate(divide="ignore"):
        return np.log(_follow_slates(walk, np.arange(len(score)), slates, with_minimum=False)[0])


def next_arms(score: Array, layout: PageLayout, slates: Index, *, temperature: float, floor: Floor) -> Array:
    """Return the probability of each arm at the position below each slate, (n, m).

    score (n, m): the scores of each slate; slates (n, k): the arms above."""
    walk, prefix = _walk_by_scores(score, layout, temperature=temperature, floor=floor), np.arange(len(score))
    for arms_shown in slates.T:
        prefix = walk.show(prefix, arms_shown)
    return walk.probability()[prefix]


def _walk_by_scores(score: Array, layout: PageLayout, *, temperature: float, floor: Floor) -> SlateWalk:
    return SlateWalk(layout, floor, LogitsBest(score, temperature=temperature), prefixes=len(score))


def _follow_slates(walk: SlateWalk, prefix: Index, slates: Index, *, with_minimum: bool = True) -> tuple[Array, Array]:
    """Return the propensity of each slot of the slates, (n, k), and the smallest propensity of any arm at the slot, (n,
    k). The second array is 0 unless `with_minimum`.

    prefix (n,): the index of the prefix of `walk` from which each slate starts; slates (n, k): the arms."""
    propensity, minimum = np.empty(slates.shape), np.zeros(slates.shape)
    for position, arms_shown in enumerate(slates.T):
        probability = walk.probability()
        propensity[:, position] = probability[prefix, arms_shown]
        if with_minimum:
            minimum[:, position] = walk.minimum(probability)[prefix]
        prefix = walk.show(prefix, arms_shown)
    return propensity, minimum


def _draw_from_walk(walk: SlateWalk, prefix: Index, uniform: Array) -> tuple[Index, Array, Array]:
    """Return three arrays (n, k): the arms of slates that are drawn from uniforms, their propensities, and the smallest
    propensity of any arm at each slot.

    prefix (n,): the index of the prefix of `walk` from which each slate starts; uniform (n, k): a uniform for each
    slot."""
    slates, propensity, minimum = np.empty(uniform.shape, np.intp), np.empty(uniform.shape), np.empty(uniform.shape)
    for position in range(uniform.shape[1]):
        probability = walk.probability()
        slates[:, position] = invert_rows(probability[prefix], uniform[:, position])
        propensity[:, position] = probability[prefix, slates[:, position]]
        minimum[:, position] = walk.minimum(probability)[prefix]
        prefix = walk.show(prefix, slates[:, position])
    return slates, propensity, minimum
