"""Decisions that can be worked out together: pages of one length, among arms that one catalogue described.

Requests that name their candidates have an eligible set each. Their union is taken then, and a mask says who may show
what: a product of matrices over arms that do not count costs less than a call for every decision."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlrec.app.designs import Ids
from rlrec.app.evidence import Flags
from rlrec.app.training.spool import Case, Rows
from rlrec.ope.base import distinct
from rlrec.policy.gradient import State
from rlrec.policy.scores import Array, Index

CALL = 100_000  # scores that take as long as what comes with every call


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
        together = _worthwhile([cases[kind] for kind in kinds], [counts[kind] for kind in kinds])
        for some in [kinds] if together else [[kind] for kind in kinds]:
            local = np.full(len(first), -1)
            local[some] = np.arange(len(some))
            yield _block(rows, state, [cases[kind] for kind in some], local[which])


def _worthwhile(cases: Sequence[Case], counts: Sequence[int]) -> bool:
    """Whether the union of several eligible sets costs less than each for itself."""
    if len(cases) == 1:
        return True
    alone = sum(count * len(case.places) for case, count in zip(cases, counts, strict=True)) + CALL * len(cases)
    return sum(counts) * len(_union(cases)) <= alone


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
