"""Decisions that can be worked out together: pages of one length, among arms that one catalogue described.

Requests that name their candidates have an eligible set each. Their union is taken then, and a mask says who may show
what: a product of matrices over arms that do not count costs less than a call for every decision."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlrec.app.training.dataset import Case, Rows
from rlrec.arrays import Array, Flags, Ids, Index, distinct
from rlrec.policy.gradient import State

CALL = 100_000  # scores that take as long as what comes with every call
MASK = 8_000_000  # cells of the mask of a block


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """n decisions. rows (n,): which of the rows they are, ascending; places (m,): of the arms among those that are
    trained, ascending; described (m, p): their features. shown (n, k) and the arms of `state` are places among the m.
    eligible (n, m): which arms each may show; None: all of them."""

    rows: Ids
    places: Index
    described: Array
    state: State
    shown: Ids
    eligible: Flags | None

    def between(self, start: int, end: int) -> Block:
        """Those from `start` to before `end`."""
        part = slice(start, end)
        return Block(
            rows=self.rows[part], places=self.places, described=self.described, state=self.state.between(start, end),
            shown=self.shown[part], eligible=None if self.eligible is None else self.eligible[part],
        )  # fmt: skip


def blocks(rows: Rows) -> Iterator[Block]:
    """All decisions, by the sizes of their pages and the numbers of their cases."""
    first, which = distinct(rows.size, rows.case)
    sizes, counts = rows.size[first].tolist(), np.bincount(which).tolist()
    cases = [rows.cases[number] for number in rows.case[first].tolist()]
    alike = defaultdict[tuple[int, bytes], list[int]](list)
    for kind, case in enumerate(cases):
        alike[sizes[kind], case.catalogue.name].append(kind)
    state = rows.state()
    for kinds in alike.values():
        step = _together([cases[kind] for kind in kinds], [counts[kind] for kind in kinds])
        for start in range(0, len(kinds), step):
            some = kinds[start : start + step]
            local = np.full(len(first), -1)
            local[some] = np.arange(len(some))
            yield _block(rows, state, [cases[kind] for kind in some], local[which])


def _together(cases: Sequence[Case], counts: Sequence[int]) -> int:
    """How many eligible sets to work out at a time: the union of more has more arms that do not count, and takes fewer
    calls. What it has is reckoned for sets that are drawn by chance."""
    if len(cases) == 1:
        return 1
    sizes, arms, n = np.array([len(case.places) for case in cases]), len(_union(cases)), sum(counts)
    share = float(np.average(sizes, weights=counts)) / arms
    some = np.unique(np.minimum(1 << np.arange(len(cases).bit_length() + 1), len(cases)))
    union = arms * -np.expm1(some * np.log1p(-min(share, 1 - 1e-9)))
    takes = n * union + CALL * len(cases) / some
    takes[(some > 1) & (n / len(cases) * some * union > MASK)] = np.inf
    return int(some[np.argmin(takes)])


def _union(cases: Sequence[Case]) -> Ids:
    found = np.zeros(len(cases[0].catalogue.features), np.bool_)
    for case in cases:
        found[case.places] = True
    return np.flatnonzero(found)


def _block(rows: Rows, state: State, cases: Sequence[Case], local: Ids) -> Block:
    """Decisions of some cases. local (all rows,): which of these each has; -1: it is not among them."""
    mine = np.flatnonzero(local >= 0)
    if len(mine) < len(local):
        state, local = state.take(mine), local[mine]
    shown = rows.shown[rows.first[mine][:, None] + np.arange(int(rows.size[mine[0]]))]
    places, eligible = cases[0].places, None
    if len(cases) > 1:
        places, lengths = _union(cases), np.array([len(case.places) for case in cases])
        table = np.searchsorted(places, np.concatenate([case.places for case in cases]))
        base = (np.cumsum(lengths) - lengths)[local]
        mask = np.zeros((len(cases), len(places)), np.bool_)
        mask[np.repeat(np.arange(len(cases)), lengths), table] = True
        shown, eligible = table[base[:, None] + shown], mask[local]
        state = State(state.x, state.row, table[base[state.row] + state.arm], state.own)
    described = cases[0].catalogue.features[places]
    return Block(rows=mine, places=places, described=described, state=state, shown=shown, eligible=eligible)
