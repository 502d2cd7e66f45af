"""The last slots that a visit has shown, packed as bytes.

A visit keeps 12 bytes for each of them, so that its row stays on one page of SQLite: decision (40 bits), position (17
bits; larger ones are stored as the largest) and step modulo 128, then the arm (32 bits). Rewards are not stored: they
follow from the events that had been received when a group began."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlrec.policy.gradients.history import REMEMBERED, Ints

POSITION, STEP = 17, 7  # bits
LAST_POSITION, LAST_STEP = (1 << POSITION) - 1, (1 << STEP) - 1
_ROW = struct.Struct("<QI")
_DTYPE = np.dtype([("slot", "<u8"), ("arm", "<u4")])
SLOT_BYTES = _ROW.size
LIMIT = REMEMBERED * SLOT_BYTES


def pack_slot(decision: int, step: int, position: int, arm: int) -> bytes:
    """The bytes of one slot."""
    return _ROW.pack((decision << POSITION | min(position, LAST_POSITION)) << STEP | step & LAST_STEP, arm)


def pack(decision: Ints, step: Ints, position: Ints, arm: Ints) -> npt.NDArray[np.void]:
    """The bytes of many slots, (n,) rows of them."""
    rows = np.empty(len(arm), _DTYPE)
    rows["slot"] = (decision << POSITION | np.minimum(position, LAST_POSITION)) << STEP | step & LAST_STEP
    rows["arm"] = arm
    return rows


def append_slate(packed: bytes, decision: int, step: int, arms: Sequence[int]) -> bytes:
    """The bytes of a visit after one more decision."""
    first = max(0, len(arms) - REMEMBERED)
    for position, arm in enumerate(arms[first:], first + 1):
        packed += pack_slot(decision, step, position, arm)
    return packed if len(packed) <= LIMIT else packed[-LIMIT:]


@dataclass(frozen=True, eq=False)
class RecentSlots:
    """The recent slots of several visits, end to end; (slots,) each."""

    decision: Ints
    position: Ints
    step: Ints
    arm: Ints

    @classmethod
    def unpack(cls, packed: Sequence[bytes]) -> RecentSlots:
        """The slots of visits from their bytes."""
        rows = np.frombuffer(b"".join(packed), _DTYPE)
        slot = rows["slot"]
        fields = slot >> (POSITION + STEP), (slot >> STEP) & LAST_POSITION, slot & LAST_STEP, rows["arm"]
        return cls(*(field.astype(np.int64) for field in fields))
