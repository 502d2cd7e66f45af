"""Checks of logged propensities: whether arms were shown as often as they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlrec.app.evaluation.checks.base import Check, CheckedRows
from rlrec.app.evaluation.rows.log_rows import arms_of_sets
from rlrec.arrays import Array, Flags, Ids, Index, distinct, piece_rows, run_starts
from rlrec.ope.checks.clipping import ClippingSums, clipping_sums, propensities_are_clipped
from rlrec.ope.checks.context_cells import context_cells
from rlrec.ope.intervals.betting import BET_ALPHA, BetSums, bet_sums, propensities_are_wrong
from rlrec.ope.sums.base import hash_bits
from rlrec.records import Sums

SAMPLED = 200_000  # decisions that are looked at in more than passing, about
CELLS, ARMS, PAIRS = 256, 4_096, 1 << 14  # of contexts, arms within them, and pairs of both, at most
_SETS = 512  # eligible sets at a time
_SALT = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class PropensityBets(Sums):
    """Bets on each arm, and on each arm within each cell of contexts."""

    arms: BetSums
    cells: BetSums


class WrongPropensities(Check):
    """Bets against the propensities of the arms at position 1: on each arm, and on each arm within the values of every
    field of the context, and within contexts that repeat."""

    reason = "wrong-propensities"
    encodes = True

    def sums(self, checked: CheckedRows) -> PropensityBets:
        top, p = top_slots(checked)
        slots, arms, contexts = checked.logged.log.slots, checked.arms, checked.logged.contexts
        rank = arms.rank[arms.index(slots["arm_id"][top])]
        first, set_index = distinct(slots["eligible_id"][top])
        members = [
            arms.rank[arms.index(checked.logged.eligible[key])] for key in slots["eligible_id"][top[first]].tolist()
        ]
        eligible = _eligible_in(np.zeros(len(top), np.int64), set_index, members, cells=1, arms=len(arms))
        of_arms = bet_sums(p, rank, eligible=eligible)
        # a sample of the rows, each in every cell of its context
        number = min(len(arms), ARMS)
        cells = max(2, min(CELLS, PAIRS // max(number, 1)))
        sampled = np.flatnonzero(in_sample(slots["session_digest"][top], checked))
        context, cell = context_cells(*contexts.entries, contexts=contexts.size, cells=cells)
        begin, length = np.searchsorted(context, [code := slots["context"][top[sampled]], code + 1])
        length -= begin
        row, cell = np.repeat(sampled, length), cell[piece_rows(begin, length)]
        eligible = _eligible_in(cell, set_index[row], members, cells=cells, arms=number)
        inside = rank[row] < number
        row, cell = row[inside], cell[inside]
        return PropensityBets(arms=of_arms, cells=bet_sums(p[row], cell * number + rank[row], eligible=eligible))

    def fails(self, sums: PropensityBets) -> bool:
        return any(propensities_are_wrong(bets, alpha=BET_ALPHA / 2) for bets in (sums.arms, sums.cells))


class ClippedPropensities(Check):
    """Whether propensities were cut from below at a value."""

    reason = "clipped-propensities"

    def sums(self, checked: CheckedRows) -> ClippingSums:
        top, p = top_slots(checked)
        slots = checked.logged.log.slots
        rows = in_sample(slots["session_digest"][top], checked)
        top, p = top[rows], p[rows]
        arms = arms_of_sets(slots["eligible_id"][top], checked.logged.eligible)
        return clipping_sums(p, arms, least=slots["min_propensity"][top])

    def fails(self, sums: ClippingSums) -> bool:
        return propensities_are_clipped(sums)


def in_sample(digest: Ids, checked: CheckedRows) -> Flags:
    """The rows that are in a sample of about SAMPLED decisions of the log, (n,), by digests of what stays together."""
    return hash_bits(digest, salt=_SALT) / 2.0**64 < SAMPLED / max(checked.extent.decisions, 1)


def top_slots(checked: CheckedRows) -> tuple[Index, Array]:
    """The slots of a batch at position 1 that were drawn among the eligible arms, and their propensities, (n,) each."""
    slots = checked.logged.log.slots
    top = run_starts(slots["decision_id"])
    p = np.where(np.isnan(slots["propensity"]), slots["marginal"], slots["propensity"])[top]
    usable = (slots["position"][top] == 1) & (p > 0) & ~slots["subsampled"][top]
    if "slot_set" in slots:  # these do not choose among the eligible arms
        usable &= slots["slot_set"][top] == 0
    return top[usable], p[usable]


def _eligible_in(cell: Ids, set_index: Ids, members: Sequence[Ids], *, cells: int, arms: int) -> Array:
    """In how many rows of each cell each of the first arms was eligible, (cells * arms,). cell, set_index (n,): of each
    row; members: ranks of the arms of each set."""
    total = np.zeros((cells, arms))
    for start in range(0, len(members), _SETS):
        portion = members[start : start + _SETS]
        rows = (set_index >= start) & (set_index < start + _SETS)
        code = cell[rows] * len(portion) + set_index[rows] - start
        counts = np.bincount(code, minlength=cells * len(portion)).reshape(cells, len(portion))
        of_set = np.zeros((len(portion), arms))
        ranks = np.concatenate(portion)
        number = np.repeat(np.arange(len(portion)), [len(ranks_of_set) for ranks_of_set in portion])
        of_set[number[ranks < arms], ranks[ranks < arms]] = 1
        total += counts @ of_set
    return total.ravel()
