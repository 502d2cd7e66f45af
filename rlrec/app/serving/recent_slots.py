"""The last slots that a visit has shown, as bytes.

A visit keeps 12 bytes for each of them, so that its row stays on one page of SQLite: decision (40 bits), position (17
bits; those beyond are not told apart) and step modulo 128, then the arm (32 bits). Rewards are not kept: they are read
from the events that had been received when the group began."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlrec.policy.history import REMEMBERED, Ints

POSITION, STEP = 17, 7  # bits
LAST_POSITION, LAST_STEP = (1 << POSITION) - 1, (1 << STEP) - 1
_ROW = struct.Struct("<QI")
_KIND = np.dtype([("slot", "<u8"), ("arm", "<u4")])
WIDE = _ROW.size
LIMIT = REMEMBERED * WIDE


def row(decision: int, step: int, position: int, arm: int) -> bytes:
    """One slot of a memory."""
    return _ROW.pack((decision << POSITION | min(position, LAST_POSITION)) << STEP | step & LAST_STEP, arm)


def moved(memory: bytes, decision: int, step: int, arms: Sequence[int]) -> bytes:
    """A visit's memory after one decision more."""
    first = max(0, len(arms) - REMEMBERED)
    for position, arm in enumerate(arms[first:], first + 1):
        memory += row(decision, step, position, arm)
    return memory if len(memory) <= LIMIT else memory[-LIMIT:]


@dataclass(frozen=True, eq=False)
class Slots:
    """The memories of visits, end to end; (slots,) each."""

    decision: Ints
    position: Ints
    step: Ints
    arm: Ints

    @classmethod
    def of(cls, memories: Sequence[bytes]) -> Slots:
        rows = np.frombuffer(b"".join(memories), _KIND)
        slot = rows["slot"]
        parts = slot >> (POSITION + STEP), (slot >> STEP) & LAST_POSITION, slot & LAST_STEP, rows["arm"]
        return cls(*(part.astype(np.int64) for part in parts))
