"""Histories of single decisions, by the ids of arms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlrec.policy.gradients import history
from rlrec.policy.gradients.history import ShownHistory

Entry = tuple[int, int, float]  # arm, ago, reward


def pack(gap_us: int, shown: int, reward: float, entries: Sequence[Entry]) -> bytes:
    """The bytes of one history."""
    named = tuple((str(arm), ago, earned) for arm, ago, earned in entries)
    return history.pack([ShownHistory(gap_us / 1e6, shown, reward, named)], {str(arm): arm for arm, *_ in entries})[0]


def entries(blob: bytes) -> list[Entry]:
    """The slots that one decision remembers, oldest first."""
    past = history.unpack([blob], np.ones(1, np.int64))
    return list(zip(past.arm.tolist(), past.ago.tolist(), past.slot_reward.tolist(), strict=True))
