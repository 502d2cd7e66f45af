"""Rules of a page: pins, caps and least shares, and the exact distribution of the slates that they leave.

A pinned position shows its arm for certain, and the other positions are a page of the other arms. A cap lets at most n
arms with the same value of a field onto the page, pinned ones included: what would be one too many stops being allowed.
At every other position a least share shows its arm by a coin, as long as that is left and allowed; else the floor picks
uniformly among the allowed arms left, or the best of these in the one vector of noisy scores is taken.

So an arm that a cap takes out has lost to the last arm that was taken for being the best: that one's score is the cap
of all who competed with it. In the sweep over prefixes (`policy/scores/sweep.py`) it leaves the product of the arms
left, and its distribution function at the cap joins the density of the prefix. Source: own derivation, checked against
enumeration."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np

from rlrec.arrays import Array, Flags, Ids, Index, Words, distinct
from rlrec.errors import InputError
from rlrec.policy.scores.floors import Floor, at_positions
from rlrec.policy.scores.sampler import uniforms
from rlrec.policy.scores.scores import ExactOrder, Order, Scores, subset
from rlrec.policy.scores.sweep import ContinuousOrder, Sweep
from rlrec.policy.scores.tabulated import Tabulated
from rlrec.policy.slates.page_rules import PageRules
from rlrec.policy.slates.plackett_luce import softmax
from rlrec.policy.slates.slate import invert_rows, to_positions
from rlrec.policy.slates.slate_draws import Draw, SlateSampler, first_alone, to_log

_ENTRIES = 1 << 20  # numbers in a working array
_PREFIXES = 20_000  # ways to use up caps that are looked at
_LOWER = 4  # factor by which more ranks are tabulated where the arms left may lie below the nodes
_POSITIONS = 8  # a table is right for a multiple of so many
_CELLS = 64  # of which each is remembered
_CERTAIN = 34.0  # logarithms below 0 of the probability that an arm lies below the nodes


@dataclass(frozen=True, eq=False)
class PageLayout:
    """Rules by the indices of m arms.

    pins: the arm of a position from 0. cell (m,): arms with equal values of all capped fields share one. uses (cells,
    w): the counters that an arm of a cell raises, the last one where these are fewer; limit (c,): of each, and none of
    the last; cap (c,): the number of its cap. least (m,): the
    share of each arm. by_request: whether each counter (c,) is of a cap of the request; pinned_by_request: positions.
    names: of the caps of counters, pin_names: of pins by position, as errors call them."""

    pins: Mapping[int, int]
    cell: Index
    uses: Index
    limit: Index
    cap: Index
    least: Array
    by_request: Flags
    pinned_by_request: frozenset[int]
    names: Sequence[str]
    pin_names: Mapping[int, str]

    @cached_property
    def pinned(self) -> Index:
        """The arms that are pinned, (p,)."""
        return np.array(list(self.pins.values()), np.intp)

    @cached_property
    def is_closed(self) -> bool:
        """Whether every marginal has a closed form: the other arms compete as on a page of their own."""
        return not self.has_caps and not self.least.any()

    @property
    def has_caps(self) -> bool:
        return len(self.limit) > 1

    @cached_property
    def counts(self) -> Index:
        """How often pinned arms raise each counter, (c,)."""
        return np.bincount(self.uses[self.cell[self.pinned]].ravel(), minlength=len(self.limit))

    def by_counter(self, by_cell: Array | Index) -> Array:
        """Sums of values of cells, (cells,), over the cells that raise each counter, (c,)."""
        weights = np.repeat(by_cell, self.uses.shape[1])
        sums = np.zeros(len(self.limit))
        np.add.at(sums, self.uses.ravel(), weights)
        return sums

    def open_cells(self, counts: Index, *, by_request: bool = False) -> Flags:
        """Which cells have no counter at its limit, (u, cells), by counts (u, c). by_request: go by its caps alone."""
        is_full = counts >= self.limit
        if by_request:
            is_full &= self.by_request
        return np.logical_not(is_full[:, self.uses].any(axis=2))

    def check(self, size: int) -> None:
        """Raises InputError where a page of so many positions cannot keep the rules."""
        for position in self.pins:
            if position >= size:
                raise InputError(
                    f"{self.pin_names[position]}, and the page has {size} positions",
                    hint="ask for a longer page, or leave out the pin", field="page",
                )  # fmt: skip
        self.check_room(size)

    def check_room(self, size: int) -> None:
        """Raises InputError where a cap may leave no arm for one of so many positions, or where that is not known."""
        if not self.has_caps:
            return
        n_sure, is_exact = self._count_sure(size)
        if n_sure < size:
            rules = " and ".join(dict.fromkeys(self.names[:-1]))
            message = f"{rules} may leave no arm for position {n_sure + 1} of {size}"
            if not is_exact:
                message = f"{rules} leave an arm for {n_sure} positions; whether for all {size} is not known"
            hint = "ask for fewer positions, allow more arms, or raise a cap"
            raise InputError(message, hint=hint, field="page")

    def _count_sure(self, size: int) -> tuple[int, bool]:
        """How many positions of so many find an arm whatever stands above them, and whether it is known that the next
        one may find none."""
        members = np.bincount(np.delete(self.cell, self.pinned), minlength=len(self.uses))
        positions = [position for position in range(size) if position not in self.pins]
        total, caps = int(members.sum()), self._strictest_caps
        if not positions or total - self._count_blocked(members, len(positions) - 1) >= len(positions):
            return size, True
        if len(caps) == 1 and caps[0][1] == 1:
            return positions[total - self._count_blocked(members, total)], True
        n_sure, is_exact = self._search(members, positions)
        if not is_exact:
            bounds = (n for n in range(len(positions)) if total - self._count_blocked(members, n) <= n)
            n_sure = max(n_sure, next(bounds))
        return [*positions, size][n_sure], is_exact

    @cached_property
    def _strictest_caps(self) -> list[tuple[Index, int]]:
        """The counters of each cap, and how many of them an arm raises at most. Of caps of the same values, the
        strictest one alone is left."""
        strictest = dict[bytes, tuple[Index, int]]()
        for cap in np.unique(self.cap[:-1]):
            counters = np.flatnonzero(self.cap == cap)
            raised = self.uses - counters[0]
            raised[(raised < 0) | (raised >= len(counters))] = -1
            raised = raised[:, (raised >= 0).any(axis=0)]
            other = strictest.get(raised.tobytes())
            if other is None or self.limit[counters[0]] < self.limit[other[0][0]]:
                strictest[raised.tobytes()] = counters, int((raised >= 0).sum(axis=1).max(initial=0))
        return list(strictest.values())

    def _count_blocked(self, members: Index, taken: int) -> int:
        """At most how many of the arms left are not allowed once so many have been taken; exact for all arms under one
        cap whose values share no arm. members (cells,): arms that are not pinned."""
        blocked, sizes = 0, self.by_counter(members)
        for counters, width in self._strictest_caps:
            needed = self.limit[counters] - self.counts[counters]
            left = np.maximum(sizes[counters] - needed, 0)  # once the value is used up
            open_values = left[needed > 0]
            n_full = max(taken, 0) * width // int(needed[needed > 0].min(initial=self.limit[counters[0]]))
            blocked += int(left[needed == 0].sum() + np.sort(open_values)[max(0, len(open_values) - n_full) :].sum())
        return blocked

    def _search(self, members: Index, positions: Sequence[int]) -> tuple[int, bool]:
        """How many of these positions find an arm in all ways in which cells can be used up, and whether the next one
        finds none in one of them: not where the ways are too many."""
        states = {(*self.counts.tolist(), *members.tolist())}
        c = len(self.limit)
        for taken in range(len(positions)):
            lengthened = set[tuple[int, ...]]()
            for state in states:
                counts, left = np.array(state[:c]), np.array(state[c:])
                cells = np.flatnonzero(self.open_cells(counts[None])[0] & (left > 0))
                if not len(cells):
                    return taken, True
                if len(lengthened) > _PREFIXES:
                    return taken, False
                for cell in cells.tolist():
                    lessened = left.copy()
                    lessened[cell] -= 1
                    raised = counts + np.bincount(self.uses[cell], minlength=c)
                    lengthened.add((*raised.tolist(), *lessened.tolist()))
            states = lengthened
        return len(positions), True


def lay_out(rules: Sequence[PageRules], keys: Sequence[str], values: Callable[[str], Sequence[Hashable]]) -> PageLayout:
    """The rules of a page for arms, by their keys. values: of a field, one an arm: None where it has none, a tuple
    where it has several.

    A rule that names an arm which is not eligible rests. Raises InputError where rules contradict each other: it names
    both."""
    arms = {key: index for index, key in enumerate(keys)}
    pins: dict[int, tuple[str, str]] = {}
    for page in rules:
        for position, key in page.pin.items():
            if key not in arms:
                continue
            text = page.text("pin", position)
            for other_position, (other, other_text) in pins.items():
                if (position == other_position) != (key == other):
                    raise _contradiction(text, other_text)
            pins[position] = key, text
    least, shares = np.zeros(len(keys)), dict[str, str]()
    for page in rules:
        for key, share in page.least.items():
            if key in arms and share > least[arms[key]]:
                least[arms[key]], shares[key] = share, page.text("least", key)
    if least.sum() > 1 + 1e-12:
        raise InputError(f"{' and '.join(shares.values())} add up to {least.sum():g}", hint="they add up to 1 at most",
                         field="page")  # fmt: skip
    layout = _with_caps(rules, keys, values, {position - 1: arms[key] for position, (key, _) in pins.items()}, least)
    layout = replace(
        layout,
        pinned_by_request=frozenset(position - 1 for page in rules if page.is_request for position in page.pin),
        pin_names={position - 1: text for position, (_, text) in pins.items()},
    )
    over = np.flatnonzero(layout.counts > layout.limit)
    for counter in over[:1].tolist():
        texts = [text for _, (key, text) in sorted(pins.items()) if counter in layout.uses[layout.cell[arms[key]]]]
        raise _contradiction(
            " and ".join(texts), layout.names[counter], verb="contradict" if texts[1:] else "contradicts"
        )
    blocked = ~layout.open_cells(layout.counts[None])[0][layout.cell]
    blocked[layout.pinned] = False
    for arm in np.flatnonzero(blocked & (least > 0))[:1].tolist():
        counter = int(next(row for row in layout.uses[layout.cell[arm]] if layout.counts[row] >= layout.limit[row]))
        raise _contradiction(shares[keys[arm]], f"{layout.names[counter]}, which pins use up")
    return layout


def _with_caps(
    rules: Sequence[PageRules], keys: Sequence[str], values: Callable[[str], Sequence[Hashable]],
    pins: Mapping[int, int], least: Array,
) -> PageLayout:  # fmt: skip
    """A layout with the caps of the rules. Raises InputError where no arm has a field that a request caps."""
    caps = [(page, field, limit) for page in rules for field, limit in page.most.items()]
    cell, raised_by_cell = np.zeros(len(keys), np.intp), np.empty((1, 0), np.intp)  # -1: none
    columns: list[tuple[int, int]] = []  # the cap and the limit of each counter
    for number, (page, field, limit) in enumerate(caps):
        numbers: dict[Hashable, int] = {}
        code = np.array([numbers.setdefault(value, len(numbers)) for value in values(field)], np.intp)
        groups = [value if isinstance(value, tuple) else () if value is None else (value,) for value in numbers]
        counters = {value: column for column, value in enumerate(dict.fromkeys(item for row in groups for item in row))}
        if page.is_request and not counters:
            hint = "arms have features: `rlrec arm list` shows them"
            raise InputError(f"{page.text('most', field)}: no eligible arm has {field!r}", hint=hint, field="page")
        raised = np.full((len(groups), max(map(len, groups), default=0)), -1)
        for row, group in enumerate(groups):
            raised[row, : len(group)] = [len(columns) + counters[value] for value in group]
        # cells so far, by the values of this field
        first, finer = distinct(cell, code)
        raised_by_cell = np.hstack([raised_by_cell[cell[first]], raised[code[first]]])
        cell = finer
        columns += [(number, limit)] * len(counters)
    c = len(columns)
    uses = np.where(raised_by_cell < 0, c, raised_by_cell)
    cap = np.array([*(number for number, _ in columns), -1], np.intp)
    names = [*(caps[number][0].text("most", caps[number][1]) for number, _ in columns), ""]
    by_request = np.array([*(caps[number][0].is_request for number, _ in columns), False], np.bool_)
    limits = np.array([*(limit for _, limit in columns), np.iinfo(np.intp).max], np.intp)
    return PageLayout(pins, cell, uses, limits, cap, least, by_request, frozenset(), names, {})


def _contradiction(first: str, second: str, *, verb: str = "contradicts") -> InputError:
    return InputError(f"{first} {verb} {second}", hint="leave one of them out", field="page")


@dataclass(frozen=True, eq=False)
class RuledScores:
    """Scores of m arms on a page with rules. The floor is part of them: whoever asks mixes in none."""

    scores: Scores
    layout: PageLayout
    floor: Floor

    @property
    def samples(self) -> int:
        return self.scores.samples

    def __len__(self) -> int:
        return len(self.scores)

    def order(self, positions: int, *, earlier_order: Order | None = None) -> RuledOrder:
        if earlier_order is not None:
            return RuledOrder(self, positions, earlier_order=earlier_order)
        # questions about the same page follow each other, and differ in how far down they go
        return _order(self, min(len(self), -(-positions // _POSITIONS) * _POSITIONS))

    def noise(self, shape: tuple[int, int], rng: np.random.Generator) -> Array:
        return self.scores.noise(shape, rng)

    def decision_scores(self, seed: int, decision: int) -> RuledScores:
        if not self.samples:
            return self
        return replace(self, scores=self.scores.decision_scores(seed, decision))


@lru_cache(maxsize=8)
def _order(ruled: RuledScores, positions: int) -> RuledOrder:
    return RuledOrder(ruled, positions)


class RuledOrder(ExactOrder):
    """The slates of a page with rules, for questions down to so many positions. What is asked about comes with the
    floor and the least shares mixed in."""

    def __init__(self, ruled: RuledScores, positions: int, *, earlier_order: Order | None = None) -> None:
        self._ruled, self._positions = ruled, positions
        self._earlier: Order | None = None
        self._ranks = 0  # that the table of the scores decides
        if isinstance(earlier_order, RuledOrder):
            self._earlier, self._ranks = earlier_order._order, earlier_order._ranks

    @cached_property
    def _order(self) -> Order:
        """The order of the scores, whose table reaches down to the arms that caps can leave."""
        scores, layout, size = self._ruled.scores, self._ruled.layout, self._positions
        ranks = self._ranks or (2 * size if layout.has_caps else size)
        while True:
            ranks = min(ranks, len(scores))
            order = scores.order(ranks, earlier_order=self._earlier)
            if not isinstance(order, ContinuousOrder) or ranks == len(scores) or not layout.has_caps:
                break
            if _reaches(order.tabulated, layout, size):
                break
            ranks, self._earlier = _LOWER * ranks, None
        self._ranks, self._earlier = ranks, None
        return order

    def walk(self) -> SlateWalk:
        """The empty prefix."""
        order, layout = self._order, self._ruled.layout
        best = SweptBest(order.tabulated, layout) if isinstance(order, ContinuousOrder) else FreshBest(order)
        return SlateWalk(layout, self._ruled.floor, best, prefixes=1)

    def best(self) -> Array:
        return self.walk().probability()[0]

    def next_arms(self, prefixes: Index, *, floor: Floor) -> Array:
        walk, prefix = self.walk(), np.zeros(len(prefixes), np.intp)
        for shown in prefixes.T:
            prefix = walk.show(prefix, shown)
        return walk.probability()[prefix]

    def conditionals(self, slates: Index, *, floor: Floor, least: bool) -> tuple[Array, Array]:
        probability, minimum = np.empty(slates.shape), np.zeros(slates.shape)
        for start in range(0, len(slates), step := max(1, _ENTRIES // len(self._ruled))):
            rows, walk = slice(start, start + step), self.walk()
            prefix = np.zeros(len(slates[rows]), np.intp)
            for position, shown in enumerate(slates[rows].T):
                by_prefix = walk.probability()
                probability[rows, position] = by_prefix[prefix, shown]
                if least:
                    minimum[rows, position] = walk.minimum(by_prefix)[prefix]
                prefix = walk.show(prefix, shown)
        return probability, minimum

    def steps(self, slates: Index, *, size: int) -> Array:
        """Probability of each arm at positions 1 to `size` given slates (n, k) above, (n, size, m). Below the
        position behind the slate it is not known: the one there stands for all."""
        shares, walk = np.empty((len(slates), size, len(self._ruled))), self.walk()
        prefix = np.zeros(len(slates), np.intp)
        for position in range(min(slates.shape[1] + 1, size)):
            shares[:, position:] = walk.probability()[prefix][:, None]
            if position < slates.shape[1]:
                prefix = walk.show(prefix, slates[:, position])
        return shares

    def ranks(self, size: int) -> Array:
        """Probability that each arm stands at each position, (size, m); NaN where it has no closed form."""
        layout, m = self._ruled.layout, len(self._ruled)
        marginals = np.full((size, m), np.nan)
        pinned = [position for position in layout.pins if position < size]
        for position in pinned:
            marginals[position] = np.arange(m) == layout.pins[position]
        open_positions = np.setdiff1d(np.arange(size), pinned)
        if layout.is_closed and len(open_positions) > 1 and not self._ruled.samples:
            free = np.setdiff1d(np.arange(m), layout.pinned)
            floors = tuple(at_positions(self._ruled.floor, size)[open_positions].tolist())
            ranks = subset(self._ruled.scores, free).order(len(open_positions)).ranks(len(open_positions))
            marginals[open_positions] = 0.0
            marginals[np.ix_(open_positions, free)] = to_positions(ranks, floors)
        elif len(open_positions):
            first, walk, prefix = int(open_positions[0]), self.walk(), np.zeros(1, np.intp)
            for position in range(first):
                prefix = walk.show(prefix, np.array([layout.pins[position]]))
            marginals[first] = walk.probability()[0]
        return marginals


def _reaches(tabulated: Tabulated, layout: PageLayout, size: int) -> bool:
    """Whether enough arms lie above the lowest node, whichever values a page uses up."""
    from rlrec.policy.scores.panels import sufficient_count

    table, row = tabulated.table, tabulated.row
    certain = np.where(table.count > 0, table.log_low <= -_CERTAIN, False)[row]
    for above, needed in ((certain.astype(float), float(size)), (table.sf_edge[row, 0], sufficient_count(size))):
        by_cell = np.bincount(layout.cell, weights=above, minlength=len(layout.uses))
        by_counter, lost = layout.by_counter(by_cell), 0.0
        for cap in np.unique(layout.cap[:-1]):
            counters = np.flatnonzero(layout.cap == cap)
            used_up = size // int(layout.limit[counters[0]])
            lost += float(np.sort(by_counter[counters])[-used_up:].sum()) if used_up else 0.0
        if above.sum() - lost >= needed:
            return True
    return False


class BestLeft(Protocol):
    """Who is the best of the arms that are allowed, below some prefixes."""

    def probability(self, allowed: Flags) -> Array:
        """Probability that each arm is the best of the allowed ones, (u, m), given the prefix; rows sum to 1."""

    def show(self, prefixes: Index, arms: Index, picked: Array, best: Array, closed: Flags) -> None:
        """Lengthen prefixes (n,) by an arm each, -1 for one that did not compete. picked, best (n,): probability of a
        coin that shows it, and of taking the best; closed (n, cells): that are allowed no more."""


class FreshBest:
    """Orders in which a prefix says no more than which arms are left: softmax, fixed scores, samples."""

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
    """Softmax where every prefix has logits of its own, (u, m)."""

    def __init__(self, logits: Array) -> None:
        self._logits = logits

    def probability(self, allowed: Flags) -> Array:
        usable = allowed | ~allowed.any(axis=1, keepdims=True)
        return np.where(allowed, softmax(np.where(usable, self._logits, -np.inf)), 0.0)

    def show(self, prefixes: Index, arms: Index, picked: Array, best: Array, closed: Flags) -> None:
        self._logits = self._logits[prefixes]


class SweptBest:
    """Independent continuous scores: one vector ranks the whole page, so that a prefix tells of the arms left."""

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
        probability = (self._sweep.weight() @ self._table.hazard.T)[:, self._row]
        probability *= allowed
        total = probability.sum(axis=1, keepdims=True)
        return np.divide(probability, total, out=probability, where=total > 0)  # as in `ContinuousOrder.next_arms`

    def show(self, prefixes: Index, arms: Index, picked: Array, best: Array, closed: Flags) -> None:
        rows = np.where(arms >= 0, self._row[arms], -1)
        self._shown = np.column_stack([self._shown[prefixes], arms])
        lost = None
        if closed.any():
            # all arms of these cells, less those that were shown
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
        """Log of the product of the distribution functions of some arms, (N,)."""
        rows, count = np.unique(self._row[arms], return_counts=True)
        return count.astype(float) @ self._table.log_cdf[rows]


class SlateWalk:
    """Distinct prefixes of slates, all of one length, while they are filled from the top."""

    def __init__(self, layout: PageLayout, floor: Floor, best: BestLeft, *, prefixes: int) -> None:
        m = len(layout.cell)
        self._layout, self._floors, self._best = layout, at_positions(floor, m), best
        self._position, self._left = 0, np.ones((prefixes, m), np.bool_)
        self._counts = np.tile(layout.counts, (prefixes, 1))
        self._shared_arms = np.flatnonzero(layout.least)
        self._is_of_request = bool(layout.by_request[:-1].all()) and layout.pins.keys() == layout.pinned_by_request
        self._allowed = self._find_allowed()

    def probability(self) -> Array:
        """Probability of each arm at the next position, given the prefix, (u, m); all 0 where none is allowed."""
        allowed = self._allowed
        if self._position in self._layout.pins:
            return allowed.astype(np.float64)
        each, best = self._coins()
        probability = best[:, None] * self._best.probability(allowed)
        if each.any():
            probability += each[:, None] * allowed
        probability[:, self._shared_arms] += self._shares()
        return probability

    def minimum(self, probability: Array) -> Array:
        """The smallest probability of any arm that is left and that the request allows, (u,)."""
        by_request = self._allowed if self._is_of_request else self._find_allowed(by_request=True)
        return probability.min(axis=1, initial=1.0, where=by_request)

    def show(self, prefix: Index, arms: Index) -> Index:
        """Lengthen the prefixes of slates (n,) by an arm each, (n,): the new prefix of each slate, (n,)."""
        first, code = distinct(prefix, arms)
        parent, shown, row = prefix[first], arms[first], np.arange(len(first))
        layout = self._layout
        is_pinned = self._position in layout.pins
        competed = self._allowed[parent, shown] & (not is_pinned)
        if is_pinned:
            picked, best = np.ones(len(first)), np.zeros(len(first))
        else:
            each, undecided = self._coins()
            picked = np.where(competed, each[parent] + layout.least[shown], 1.0)
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

    def _shares(self) -> Array:
        """The least shares of the allowed arms that have one, (u, arms)."""
        return self._allowed[:, self._shared_arms] * self._layout.least[self._shared_arms]

    def _coins(self) -> tuple[Array, Array]:
        """Probability that the floor shows any one of the allowed arms, and that no coin decides, (u,) each."""
        uniform, undecided = self._floors[self._position], 1.0 - self._shares().sum(axis=1)
        each = undecided * uniform / np.maximum(np.count_nonzero(self._allowed, axis=1), 1)
        return each, undecided * (1.0 - uniform)

    def _find_allowed(self, *, by_request: bool = False) -> Flags:
        """Which arms may stand at the next position, (u, m). by_request: go by its rules alone."""
        layout, position = self._layout, self._position
        if position in layout.pins and (not by_request or position in layout.pinned_by_request):
            return np.broadcast_to(np.arange(self._left.shape[1]) == layout.pins[position], self._left.shape)
        allowed = self._left.copy()
        pins = layout.pins.items()
        allowed[:, [arm for at, arm in pins if not by_request or at in layout.pinned_by_request]] = False
        if layout.has_caps:
            allowed &= layout.open_cells(self._counts, by_request=by_request)[:, layout.cell]
        return allowed


class RuledSampler(SlateSampler):
    """Draws the slates of a page with rules, position by position: word 2p of a decision is the pick of position p from
    0."""

    def prepare(self) -> None:
        if not self._scores.samples:
            _ = self.marginals

    def draw(self, *, seeds: Words, decisions: Ids, lists: bool = False) -> Draw:
        uniform = uniforms(seeds, decisions, words=2 * self._size - 1)[:, ::2]
        draws = list[tuple[Any, ...]]()
        if not self._scores.samples:
            step = max(1, _ENTRIES // self._arms)
            for start in range(0, len(uniform), step):
                rows = uniform[start : start + step]
                draws.append(_draw(self._walk(self._order), np.zeros(len(rows), np.intp), rows))
            slates, propensity, minimum = map(np.vstack, zip(*draws, strict=True))
            return to_log(slates, propensity, self.marginals[np.arange(self._size), slates], minimum)
        for row, (seed, decision) in enumerate(zip(seeds.tolist(), decisions.tolist(), strict=True)):
            order = self._scores.decision_scores(seed, decision).order(self._size)
            slate = _draw(self._walk(order), np.zeros(1, np.intp), uniform[row : row + 1])
            draws.append((*slate, order.ranks(self._size)[np.arange(self._size), slate[0]]))
        slates, propensity, minimum, marginal = map(np.vstack, zip(*draws, strict=True))
        return to_log(slates, propensity, marginal, minimum)

    def _walk(self, order: Order) -> SlateWalk:
        assert isinstance(order, RuledOrder)
        return order.walk()


def draw_rows(logits: Array, layout: PageLayout, *, floor: Floor, seeds: Words, decisions: Ids, size: int) -> Draw:
    """Slates of n decisions, each with logits of its own, (n, m). Marginals below the first position are NaN."""
    walk = SlateWalk(layout, floor, LogitsBest(logits), prefixes=len(logits))
    uniform = uniforms(seeds, decisions, words=2 * size - 1)[:, ::2]
    slates, propensity, minimum = _draw(walk, np.arange(len(logits)), uniform)
    return to_log(slates, propensity, first_alone(propensity), minimum)


def log_rows(logits: Array, layout: PageLayout, slates: Index, *, floor: Floor) -> Draw:
    """Slates (n, k) with the probabilities that `draw_rows` logs for them."""
    walk, prefix = SlateWalk(layout, floor, LogitsBest(logits), prefixes=len(logits)), np.arange(len(logits))
    propensity, minimum = np.empty(slates.shape), np.empty(slates.shape)
    for position, shown in enumerate(slates.T):
        probability = walk.probability()
        propensity[:, position] = probability[prefix, shown]
        minimum[:, position] = walk.minimum(probability)[prefix]
        prefix = walk.show(prefix, shown)
    return to_log(slates, propensity, first_alone(propensity), minimum)


def _draw(walk: SlateWalk, prefix: Index, uniform: Array) -> tuple[Index, Array, Array]:
    """Slates by uniforms (n, k): their arms, propensities and smallest propensities, (n, k) each. prefix (n,): where
    each begins."""
    slates, propensity, minimum = np.empty(uniform.shape, np.intp), np.empty(uniform.shape), np.empty(uniform.shape)
    for position in range(uniform.shape[1]):
        probability = walk.probability()
        slates[:, position] = invert_rows(probability[prefix], uniform[:, position])
        propensity[:, position] = probability[prefix, slates[:, position]]
        minimum[:, position] = walk.minimum(probability)[prefix]
        prefix = walk.show(prefix, slates[:, position])
    return slates, propensity, minimum
