"""This module applies the rules of a page to its arms, finds contradictions between rules, and checks whether the rules
leave enough arms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import cached_property

import numpy as np

from rlrec.arrays import Array, Flags, Index, distinct
from rlrec.errors import InputError, quantity
from rlrec.policy.slates.page_rules import EVERYWHERE, PageRules
from rlrec.records import Record

_MAX_STATES = 20_000  # ways to use up caps that are examined


class PageLayout(Record, kw_only=False, eq=False):
    """A PageLayout holds the rules of a page by the indices of m arms.

    A pin fixes the arm of a position. A cap limits the number of arms with the same value of a field. A least share
    is the smallest probability that some arms have together.

    pins: the arm of each pinned position, from 0. cell (m,): the cell of each arm; arms with equal values of all capped
    fields have the same cell. Each value of a capped field has a counter. cell_counters (cells, w): the counters that
    an arm of a cell raises, padded with the last counter, which has no limit. limit (c,): the limit of each counter;
    cap (c,): the number of the cap that the counter belongs to; is_of_request (c,): whether this cap is a rule of the
    request.

    least: for each least share its arms, and its probability by position, where the last probability holds for all
    lower positions. pinned_by_request: the positions that the request pins. names: the text of each counter's cap, for
    errors; pin_names: the text of each pin by position, for errors; last_named_position: the lowest position that a
    least share of the request names, and the text of this share."""

    pins: Mapping[int, int]
    cell: Index
    cell_counters: Index
    limit: Index
    cap: Index
    least: Sequence[tuple[Index, Array]]
    is_of_request: Flags
    pinned_by_request: frozenset[int]
    names: Sequence[str]
    pin_names: Mapping[int, str]
    last_named_position: tuple[int, str]

    @cached_property
    def pinned_arms(self) -> Index:
        """Return the arms that are pinned to a position, (p,)."""
        return np.array(list(self.pins.values()), np.intp)

    @cached_property
    def has_closed_form(self) -> bool:
        """Tell whether every marginal has a closed form. This is so without caps and least shares (smallest
        probabilities), where the arms without a pin compete as on a separate page."""
        return not self.has_caps and not self.least

    @property
    def has_caps(self) -> bool:
        return len(self.limit) > 1

    @cached_property
    def counts(self) -> Index:
        """Return the number of pinned arms that raise each counter, (c,)."""
        return np.bincount(self.cell_counters[self.cell[self.pinned_arms]].ravel(), minlength=len(self.limit))

    def sum_by_counter(self, by_cell: Array | Index) -> Array:
        """Return, for each counter, the sum of values over the cells that raise this counter, (c,).

        by_cell (cells,): the value of each cell."""
        weights = np.repeat(by_cell, self.cell_counters.shape[1])
        sums = np.zeros(len(self.limit))
        np.add.at(sums, self.cell_counters.ravel(), weights)
        return sums

    def find_open_cells(self, counts: Index, *, is_of_request: bool = False) -> Flags:
        """Tell, for each of u prefixes, which cells (sets of arms with equal values of all capped fields) have no
        counter at its limit, (u, cells).

        counts (u, c): the count of each counter; is_of_request: whether only caps of the request are considered."""
        is_full = counts >= self.limit
        if is_of_request:
            is_full &= self.is_of_request
        return np.logical_not(is_full[:, self.cell_counters].any(axis=2))

    def least_share_probabilities(self, position: int, is_allowed: Flags) -> tuple[Array, Array]:
        """Return the probability that the coin of a least share shows each arm, (u, m), and the probability that no
        coin shows an arm, (u,).

        position: the next position, from 0; is_allowed (u, m): whether each arm may be shown after each prefix."""
        probability, total = np.zeros(is_allowed.shape), np.zeros(len(is_allowed))
        for arms, by_position in self.least:
            n_allowed = np.count_nonzero(is_allowed[:, arms], axis=1)
            share = by_position[min(position, len(by_position) - 1)] * (n_allowed > 0)
            probability[:, arms] += is_allowed[:, arms] * (share / np.maximum(n_allowed, 1))[:, None]
            total += share
        return probability, 1.0 - total

    def check(self, size: int) -> None:
        """Raise InputError if a page with `size` positions cannot satisfy the rules.

        The error is raised in three cases: a pin, or a least share of the request, is below the end of the page; a
        cap may leave a position without an arm; or there are too many ways to fill the page, so that this cannot be
        decided."""
        for position, text in (*self.pin_names.items(), self.last_named_position):
            if position >= size:
                hint = "ask for a longer page, or leave it out"
                raise InputError(f"{text}, and the page has {quantity(size, 'position')}", hint=hint, field="page")
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
        """Return the number of positions, out of `size`, that certainly have an arm, whatever the arms above are.
        Return also whether this number is exact."""
        cell_sizes = np.bincount(np.delete(self.cell, self.pinned_arms), minlength=len(self.cell_counters))
        positions = [position for position in range(size) if position not in self.pins]
        total, caps = int(cell_sizes.sum()), self._strictest_caps
        if not positions or total - self._count_blocked(cell_sizes, len(positions) - 1) >= len(positions):
            return size, True
        if len(caps) == 1 and caps[0][1] == 1:
            return positions[total - self._count_blocked(cell_sizes, total)], True
        n_sure, is_exact = self._count_fillable(cell_sizes, positions)
        if not is_exact:
            bounds = (n for n in range(len(positions)) if total - self._count_blocked(cell_sizes, n) <= n)
            n_sure = max(n_sure, next(bounds))
        return [*positions, size][n_sure], is_exact

    @cached_property
    def _strictest_caps(self) -> list[tuple[Index, int]]:
        """Return, for each cap, its counters and the largest number of these counters that one arm raises.

        Of several caps with the same values, only the strictest cap is kept."""
        caps = dict[bytes, tuple[Index, int]]()
        for cap in np.unique(self.cap[:-1]):
            counters = np.flatnonzero(self.cap == cap)
            raised_counters = self.cell_counters - counters[0]
            raised_counters[(raised_counters < 0) | (raised_counters >= len(counters))] = -1
            raised_counters = raised_counters[:, (raised_counters >= 0).any(axis=0)]
            earlier_cap = caps.get(raised_counters.tobytes())
            if earlier_cap is None or self.limit[counters[0]] < self.limit[earlier_cap[0][0]]:
                caps[raised_counters.tobytes()] = counters, int((raised_counters >= 0).sum(axis=1).max(initial=0))
        return list(caps.values())

    def _count_blocked(self, cell_sizes: Index, n_taken: int) -> int:
        """Return an upper bound of the number of remaining arms that caps can forbid after `n_taken` arms have been
        taken.

        The bound is exact if a single cap applies to all arms and no arm has two of its values. cell_sizes (cells,):
        the number of arms of each cell that are not pinned."""
        n_blocked, sizes = 0, self.sum_by_counter(cell_sizes)
        for counters, width in self._strictest_caps:
            room = self.limit[counters] - self.counts[counters]
            left_sizes = np.maximum(sizes[counters] - room, 0)  # left once the limit of the value is reached
            open_values = left_sizes[room > 0]
            n_full = max(n_taken, 0) * width // int(room[room > 0].min(initial=self.limit[counters[0]]))
            n_blocked += int(
                left_sizes[room == 0].sum() + np.sort(open_values)[max(0, len(open_values) - n_full) :].sum()
            )
        return n_blocked

    def _count_fillable(self, cell_sizes: Index, positions: Sequence[int]) -> tuple[int, bool]:
        """Return the number of these positions that certainly have an arm, whatever the arms above, and whether this
        number is exact. All ways of showing arms of the cells are tried.

        The number is not exact if there are too many ways. cell_sizes (cells,): the number of arms of each cell that
        are not pinned; positions: the positions without a pin."""
        states = {(*self.counts.tolist(), *cell_sizes.tolist())}
        n_counters = len(self.limit)
        for n_taken in range(len(positions)):
            next_states = set[tuple[int, ...]]()
            for state in states:
                counts, left_by_cell = np.array(state[:n_counters]), np.array(state[n_counters:])
                open_cells = np.flatnonzero(self.find_open_cells(counts[None])[0] & (left_by_cell > 0))
                if not len(open_cells):
                    return n_taken, True
                if len(next_states) > _MAX_STATES:
                    return n_taken, False
                for cell in open_cells.tolist():
                    left_cells = left_by_cell.copy()
                    left_cells[cell] -= 1
                    raised_counts = counts + np.bincount(self.cell_counters[cell], minlength=n_counters)
                    next_states.add((*raised_counts.tolist(), *left_cells.tolist()))
            states = next_states
        return len(positions), True


def lay_out(
    rules: Sequence[PageRules], keys: Sequence[str], values: Callable[[str], Sequence[Hashable]],
    groups: Mapping[str, Collection[str]] | None = None,
) -> PageLayout:  # fmt: skip
    """Return the layout of the rules of a page. If two rules contradict each other, InputError is raised, which names
    both.

    rules: the rules of the request and of the policy; keys: the key of each arm; values: returns for a field the
    value of each arm, which is None if the arm does not have the field, and a tuple if the arm has several values;
    groups: the keys of the members of each group. A rule that names an arm which is not eligible has no effect."""
    groups = groups or {}
    named_keys = {key for page in rules for key in (*page.pin.values(), *page.least)}.union(*groups.values())
    arms = {key: index for index, key in enumerate(keys) if key in named_keys} if named_keys else {}
    pins: dict[int, tuple[str, str]] = {}
    for page in rules:
        for position, key in page.pin.items():
            if key not in arms:
                continue
            text = page.text("pin", position)
            for other_position, (other_key, other_text) in pins.items():
                if (position == other_position) != (key == other_key):
                    raise _contradiction(text, other_text)
            pins[position] = key, text
    members = {
        name: indices for page in rules for name in page.least
        if (indices := [arms[key] for key in groups.get(name, (name,)) if key in arms])
    }  # fmt: skip
    # single arms in their order, then groups, so that shares are summed in one order
    members = {name: members[name] for name in sorted(members, key=lambda name: (name in groups, members[name][:1]))}
    cell, cell_counters, limit, cap, is_of_request, names = _lay_out_caps(rules, keys, values)
    layout = PageLayout(
        pins={position - 1: arms[key] for position, (key, _) in pins.items()},
        pin_names={position - 1: text for position, (_, text) in pins.items()},
        pinned_by_request=frozenset(position - 1 for page in rules if page.is_request for position in page.pin),
        cell=cell, cell_counters=cell_counters, limit=limit, cap=cap, is_of_request=is_of_request, names=names,
        least=_lay_out_shares(rules, members), last_named_position=max((
            (position - 1, page.text("least", name)) for page in rules if page.is_request
            for name in page.least if name in members for position in page.least[name]
        ), default=(-1, "")),
    )  # fmt: skip
    exceeded_counters = np.flatnonzero(layout.counts > layout.limit)
    for counter in exceeded_counters[:1].tolist():
        texts = [
            text for _, (key, text) in sorted(pins.items()) if counter in layout.cell_counters[layout.cell[arms[key]]]
        ]
        raise _contradiction(
            " and ".join(texts), layout.names[counter], verb="contradict" if texts[1:] else "contradicts"
        )
    is_blocked = ~layout.find_open_cells(layout.counts[None])[0][layout.cell]
    pin_texts = {arms[key]: text for key, text in pins.values()}
    for text, sharing_arms, position in [
        (page.text("least", name), members[name], position) for page in rules for name in page.least if name in members
        for position in page.least[name]
    ]:  # fmt: skip
        free = [arm for arm in sharing_arms if arm not in pin_texts]
        if position in pins and arms[pins[position][0]] not in sharing_arms:
            raise _contradiction(text, pins[position][1])
        if position not in pins and position != EVERYWHERE and not free:
            raise _contradiction(text, pin_texts[sharing_arms[0]])
        if free and is_blocked[free].all():
            counter = next(
                row for row in layout.cell_counters[layout.cell[free[0]]] if layout.counts[row] >= layout.limit[row]
            )
            raise _contradiction(text, f"{layout.names[int(counter)]}, which pins use up")
    return layout


def _lay_out_shares(rules: Sequence[PageRules], members: Mapping[str, Sequence[int]]) -> list[tuple[Index, Array]]:
    """Return, for each least share of eligible arms, the arms and the probability by position. Raises InputError if the
    sum of the least shares at a position exceeds 1.

    members: the eligible arms of each name (an arm or a group)."""
    columns = dict[int, list[float]]()
    for position in {EVERYWHERE}.union(*(page.least[name] for page in rules for name in page.least if name in members)):
        share_texts, shares = dict[str, str](), dict.fromkeys(members, 0.0)
        for page in rules:
            for name in filter(members.__contains__, page.least):
                share = page.least[name].get(position, page.least[name].get(EVERYWHERE, 0.0))
                if share > shares[name]:
                    share_texts[name], shares[name] = page.text("least", name), share
        columns[position] = [*shares.values()]
        if (total := sum(columns[position])) > 1 + 1e-12:
            message = f"{' and '.join(share_texts.values())} add up to {total:g}"
            raise InputError(message, hint="they add up to 1 at most", field="page")
    by_position = [columns.get(position, columns[EVERYWHERE]) for position in [*range(1, max(columns) + 1), EVERYWHERE]]
    return list(zip(map(np.array, members.values()), np.array(by_position).T, strict=True))


def _lay_out_caps(
    rules: Sequence[PageRules], keys: Sequence[str], values: Callable[[str], Sequence[Hashable]]
) -> tuple[Index, Index, Index, Index, Flags, list[str]]:
    """Return the fields cell, cell_counters, limit, cap, is_of_request and names of a `PageLayout`.

    Raises InputError if a request caps a field that no arm has. rules: the rules of the request and of the policy;
    keys: the key of each arm; values: returns for a field the value of each arm."""
    caps = [(page, field, limit) for page in rules for field, limit in page.most.items()]
    cell, raised_by_cell = np.zeros(len(keys), np.intp), np.empty((1, 0), np.intp)  # -1: none
    columns: list[tuple[int, int]] = []  # the cap and the limit of each counter
    for number, (page, field, limit) in enumerate(caps):
        numbers: dict[Hashable, int] = {}
        value_codes = np.array([numbers.setdefault(value, len(numbers)) for value in values(field)], np.intp)
        groups = [value if isinstance(value, tuple) else () if value is None else (value,) for value in numbers]
        counters = {value: column for column, value in enumerate(dict.fromkeys(item for row in groups for item in row))}
        if page.is_request and not counters:
            hint = "arms have features: `rlrec arm list` shows them"
            raise InputError(f"{page.text('most', field)}: no eligible arm has {field!r}", hint=hint, field="page")
        raised_counters = np.full((len(groups), max(map(len, groups), default=0)), -1)
        for row, group in enumerate(groups):
            raised_counters[row, : len(group)] = [len(columns) + counters[value] for value in group]
        # the cells so far, refined by the values of this field
        first_arms, finer_cells = distinct(cell, value_codes)
        raised_by_cell = np.hstack([raised_by_cell[cell[first_arms]], raised_counters[value_codes[first_arms]]])
        cell = finer_cells
        columns += [(number, limit)] * len(counters)
    n_counters = len(columns)
    cell_counters = np.where(raised_by_cell < 0, n_counters, raised_by_cell)
    cap = np.array([*(number for number, _ in columns), -1], np.intp)
    names = [*(caps[number][0].text("most", caps[number][1]) for number, _ in columns), ""]
    is_of_request = np.array([*(caps[number][0].is_request for number, _ in columns), False], np.bool_)
    limits = np.array([*(limit for _, limit in columns), np.iinfo(np.intp).max], np.intp)
    return cell, cell_counters, limits, cap, is_of_request, names


def _contradiction(first_rule: str, second_rule: str, *, verb: str = "contradicts") -> InputError:
    return InputError(f"{first_rule} {verb} {second_rule}", hint="leave one of them out", field="page")
