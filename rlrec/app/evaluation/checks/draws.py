"""Checks of what was drawn: arms as often as their propensities say, and each decision once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np

from rlrec.app.evaluation.checks.base import Check, CheckedLog
from rlrec.app.evaluation.rows.log_rows import arms_of_sets, decision_digests
from rlrec.arrays import Array, Flags, Ids, Index, Words, distinct, look_up, piece_rows, run_starts
from rlrec.ope.checks.draws import GROUPS, ClippingSums, Draws, FirstCounts, RepeatSums, context_cells, context_digests
from rlrec.ope.intervals.betting import BET_ALPHA, BetSums, bet_sums, propensities_are_wrong
from rlrec.ope.sums.base import hash_bits
from rlrec.records import Sums
from rlrec.store.log.reader import Batch

SAMPLED = 200_000  # decisions that are looked at in more than passing, about
CELLS, ARMS, PAIRS = 256, 4_096, 1 << 14  # of contexts, arms within them, and pairs of both, at most
_SETS = 512  # eligible sets at a time
_SALT, _REPEATS_SALT = 12, 13


@dataclass(frozen=True, kw_only=True, eq=False)
class PropensityBets(Sums):
    """Bets on each arm, and on each arm within each cell of contexts."""

    arms: BetSums
    cells: BetSums

    @property
    def alarms(self) -> bool:
        """Whether some arm was shown more often than its propensities allow."""
        return any(propensities_are_wrong(bets, alpha=BET_ALPHA / 2) for bets in (self.arms, self.cells))


class WrongPropensities(Check):
    """Bets against the propensities of the arms at position 1: on each arm, and on each arm within the values of every
    field of the context, and within contexts that repeat."""

    reason = "wrong-propensities"
    encodes = True

    def sums(self, checked: CheckedLog) -> PropensityBets:
        top, p = top_slots(checked)
        slots, arms, contexts = checked.logged.log.slots, checked.arms, checked.logged.contexts
        rank = arms.ranks(slots["arm_id"][top])
        first, set_index = distinct(slots["eligible_id"][top])
        members = [arms.ranks(checked.logged.eligible[key]) for key in slots["eligible_id"][top[first]].tolist()]
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


class ClippedPropensities(Check):
    """Whether propensities were cut from below at a value."""

    reason = "clipped-propensities"

    def sums(self, checked: CheckedLog) -> ClippingSums:
        top, p = top_slots(checked)
        slots = checked.logged.log.slots
        rows = in_sample(slots["session_digest"][top], checked)
        top, p = top[rows], p[rows]
        arms = arms_of_sets(slots["eligible_id"][top], checked.logged.eligible)
        # under rules of the page not every eligible arm has a chance
        has_rules = checked.logged.contexts.have_rules[slots["context"][top]]
        return ClippingSums.from_rows(p, arms, least=np.where(has_rules, 0.0, slots["min_propensity"][top]))


class RepeatedRows(Check):
    """Whether decisions are in the log more than once, under other keys."""

    reason = "repeated-rows"
    encodes = True

    def sums(self, checked: CheckedLog) -> RepeatSums:
        log, contexts = checked.logged.log, checked.logged.contexts
        digest = context_digests(*contexts.entries, contexts=contexts.size)
        # a sample by how sessions begin, so that copies stay together
        begins = run_starts(log.slots["session_id"])
        start = digest[log.slots["context"][begins]] + log.slots["at"][begins]
        is_sampled = np.repeat(in_sample(start, checked), np.diff(begins, append=len(log)))
        log = log.select_rows(np.flatnonzero(is_sampled))
        checked, slots = replace(checked, logged=replace(checked.logged, log=log)), log.slots
        moment = hash_bits(digest[slots["context"]] + slots["at"], salt=_REPEATS_SALT)
        (top, p), rank = top_slots(checked), checked.arms.ranks(slots["arm_id"])
        order = hash_bits(decision_digests(slots)[top], salt=_REPEATS_SALT)
        # all that a session has, whatever its keys
        shown = rank * 1_000_003 + slots["position"] * 1_009 + slots["step"]
        row_bits = hash_bits(moment.view(np.int64) + shown, salt=_REPEATS_SALT)
        first, session = distinct(slots["session_id"])
        content = np.zeros(len(first), np.uint64)
        np.add.at(content, session, row_bits)
        row, event_bits = _events(log)
        np.add.at(content, session[row], hash_bits((row_bits[row] + event_bits).view(np.int64), salt=_REPEATS_SALT))
        kinds = FirstCounts.count_rows(content, GROUPS)
        return RepeatSums(Draws.sample(moment[top], order, rank[top], p), kinds)


def in_sample(digest: Ids, checked: CheckedLog) -> Flags:
    """The rows that are in a sample of about SAMPLED decisions of the log, (n,), by digests of what stays together."""
    return hash_bits(digest, salt=_SALT) / 2.0**64 < SAMPLED / max(checked.extent.decisions, 1)


def top_slots(checked: CheckedLog) -> tuple[Index, Array]:
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


def _events(log: Batch) -> tuple[Index, Words]:
    """The first row of the decision of each event, and bits of what happened."""
    first, events = run_starts(log.slots["decision_id"]), log.events
    order = np.argsort(log.slots["decision_id"][first])
    index, is_there = look_up(log.slots["decision_id"][first][order], events["decision_id"])
    kinds, kind = np.unique(events["kind"][is_there].astype(str), return_inverse=True)
    codes = np.array([crc32(name.encode()) for name in kinds.tolist()], np.int64)
    what = events["age_us"][is_there] * 1_009 + events["position"][is_there] + (codes[kind.ravel()] << 24)
    value = events["value"][is_there].astype(np.float64).view(np.int64)
    return first[order[index[is_there]]], hash_bits(what, salt=_REPEATS_SALT) + hash_bits(value, salt=_REPEATS_SALT)
