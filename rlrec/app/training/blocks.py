"""Decisions that can be processed together: slates of one length, with arms described by one catalogue.

Requests that name their candidates have separate eligible sets. A block takes the union of several sets, with a mask of
the arms that each decision may show: matrix products over arms that do not count cost less than a call for every
decision."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlrec.app.training.dataset import EligibleSet, VisitRows
from rlrec.arrays import Array, Flags, Ids, Index, distinct
from rlrec.policy.gradients.gradient import State

CALL = 100_000  # scores that take as long as the fixed cost of a call
MASK = 8_000_000  # most cells in the mask of a block


@dataclass(frozen=True, kw_only=True, eq=False)
class DecisionBlock:
    """n decisions with m arms. rows (n,): their indices, ascending; arms (m,): indices of the arms among those that are
    trained, ascending; described (m, p): their features. shown (n, k) and the arms of `state` are indices among the m.
    eligible (n, m): the arms that each decision may show; None: all of them."""

    rows: Ids
    arms: Index
    described: Array
    state: State
    shown: Ids
    eligible: Flags | None

    def slice_rows(self, start: int, end: int) -> DecisionBlock:
        """The decisions from `start` to before `end`."""
        rows = slice(start, end)
        return DecisionBlock(
            rows=self.rows[rows], arms=self.arms, described=self.described, state=self.state.slice_rows(start, end),
            shown=self.shown[rows], eligible=None if self.eligible is None else self.eligible[rows],
        )  # fmt: skip


def blocks(rows: VisitRows) -> Iterator[DecisionBlock]:
    """The decisions without page rules in blocks, ordered by slate size and number of the eligible set."""
    # groups of decisions with the same size and eligible set
    first, group_index = distinct(rows.size, rows.eligible, rows.ruled)
    sizes, counts = rows.size[first].tolist(), np.bincount(group_index).tolist()
    sets = [rows.eligible_sets[number] for number in rows.eligible[first].tolist()]
    # groups that may share a block
    by_kind = defaultdict[tuple[int, bytes], list[int]](list)
    for group, eligible in enumerate(sets):
        if rows.ruled[first[group]]:
            continue
        by_kind[sizes[group], eligible.catalogue.digest].append(group)
    state = rows.state()
    for groups in by_kind.values():
        step = _sets_at_a_time([sets[group] for group in groups], [counts[group] for group in groups])
        for start in range(0, len(groups), step):
            members = groups[start : start + step]
            local = np.full(len(first), -1)
            local[members] = np.arange(len(members))
            yield _block(rows, state, [sets[group] for group in members], local[group_index])


def _sets_at_a_time(sets: Sequence[EligibleSet], counts: Sequence[int]) -> int:
    """The number of eligible sets to process together: a larger union has more arms that do not count, but takes fewer
    calls. The size of the union is estimated as if the sets were random."""
    if len(sets) == 1:
        return 1
    sizes, n_arms, n = np.array([len(eligible.arms) for eligible in sets]), len(_union(sets)), sum(counts)
    inclusion = float(np.average(sizes, weights=counts)) / n_arms
    steps = np.unique(np.minimum(1 << np.arange(len(sets).bit_length() + 1), len(sets)))
    union = n_arms * -np.expm1(steps * np.log1p(-min(inclusion, 1 - 1e-9)))
    cost = n * union + CALL * len(sets) / steps
    cost[(steps > 1) & (n / len(sets) * steps * union > MASK)] = np.inf
    return int(steps[np.argmin(cost)])


def _union(sets: Sequence[EligibleSet]) -> Ids:
    in_any = np.zeros(len(sets[0].catalogue.features), np.bool_)
    for eligible in sets:
        in_any[eligible.arms] = True
    return np.flatnonzero(in_any)


def _block(rows: VisitRows, state: State, sets: Sequence[EligibleSet], local: Ids) -> DecisionBlock:
    """The decisions of some eligible sets. local (all rows,): the index of each decision's set; -1: not among them."""
    members = np.flatnonzero(local >= 0)
    if len(members) < len(local):
        state, local = state.take(members), local[members]
    shown = rows.shown[rows.first[members][:, None] + np.arange(int(rows.size[members[0]]))]
    # the arms of the block, and their indices in it
    features = sets[0].catalogue.features
    arms, index, eligible = sets[0].arms if len(sets) == 1 else _union(sets), np.zeros(len(features), np.int64), None
    index[arms] = np.arange(len(arms))
    if len(sets) > 1:  # the arms that each decision may show
        mask, lengths = np.zeros((len(sets), len(arms)), np.bool_), [len(eligible_set.arms) for eligible_set in sets]
        members_of = index[np.concatenate([eligible_set.arms for eligible_set in sets])]
        mask[np.repeat(np.arange(len(sets)), lengths), members_of] = True
        eligible = mask[local]
    return DecisionBlock(
        rows=members, arms=arms, described=features[arms], shown=index[shown], eligible=eligible,
        state=State(state.x, state.row, index[state.arm], state.memory, state.words),
    )  # fmt: skip
