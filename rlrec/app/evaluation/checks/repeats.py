"""Checks of rows that are in a log more than once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np

from rlrec.app.evaluation.checks.base import Check, CheckedRows
from rlrec.app.evaluation.checks.propensities import in_sample, top_slots
from rlrec.app.evaluation.rows.log_rows import decision_digests
from rlrec.arrays import Index, Words, distinct, look_up, run_starts
from rlrec.ope.checks.context_cells import context_digests
from rlrec.ope.checks.repeats import Draws, Kinds
from rlrec.ope.sums.base import hash_bits
from rlrec.records import Sums
from rlrec.store.log.reader import Batch

_SALT = 13


@dataclass(frozen=True, eq=False)
class RepeatSums(Sums):
    """Samples of draws at the same time in the same context, and of sessions that are alike."""

    draws: Draws
    kinds: Kinds


class RepeatedRows(Check):
    """Whether decisions are in the log more than once, under other keys."""

    reason = "repeated-rows"
    encodes = True

    def sums(self, checked: CheckedRows) -> RepeatSums:
        log, contexts = checked.logged.log, checked.logged.contexts
        digest = context_digests(*contexts.entries, contexts=contexts.size)
        # a sample by how sessions begin, so that copies stay together
        begins = run_starts(log.slots["session_id"])
        start = digest[log.slots["context"][begins]] + log.slots["at"][begins]
        is_sampled = np.repeat(in_sample(start, checked), np.diff(begins, append=len(log)))
        log = log.select_rows(np.flatnonzero(is_sampled))
        checked, slots = replace(checked, logged=replace(checked.logged, log=log)), log.slots
        moment = hash_bits(digest[slots["context"]] + slots["at"], salt=_SALT)
        (top, p), rank = top_slots(checked), checked.arms.rank[checked.arms.index(slots["arm_id"])]
        order = hash_bits(decision_digests(slots)[top], salt=_SALT)
        # all that a session has, whatever its keys
        shown = rank * 1_000_003 + slots["position"] * 1_009 + slots["step"]
        row_bits = hash_bits(moment.view(np.int64) + shown, salt=_SALT)
        first, session = distinct(slots["session_id"])
        content = np.zeros(len(first), np.uint64)
        np.add.at(content, session, row_bits)
        row, event_bits = _events(log)
        np.add.at(content, session[row], hash_bits((row_bits[row] + event_bits).view(np.int64), salt=_SALT))
        kinds = Kinds.sample(content, np.ones(len(content), np.int64))
        return RepeatSums(Draws.sample(moment[top], order, rank[top], p), kinds)

    def fails(self, sums: RepeatSums) -> bool:
        return sums.draws.are_repeated or sums.kinds.are_repeated


def _events(log: Batch) -> tuple[Index, Words]:
    """The first row of the decision of each event, and bits of what happened."""
    first, events = run_starts(log.slots["decision_id"]), log.events
    order = np.argsort(log.slots["decision_id"][first])
    index, is_there = look_up(log.slots["decision_id"][first][order], events["decision_id"])
    kinds, kind = np.unique(events["kind"][is_there].astype(str), return_inverse=True)
    codes = np.array([crc32(name.encode()) for name in kinds.tolist()], np.int64)
    what = events["age_us"][is_there] * 1_009 + events["position"][is_there] + (codes[kind.ravel()] << 24)
    value = events["value"][is_there].astype(np.float64).view(np.int64)
    return first[order[index[is_there]]], hash_bits(what, salt=_SALT) + hash_bits(value, salt=_SALT)
