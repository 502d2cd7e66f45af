"""Tables of sums by arm, as distributions read them: of stored rows, brought forward, in the order of some arms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.policy.beliefs.forgetting import Forgetting
from rlrec.store.database.unit import Row, damaged
from rlrec.store.policies.beliefs import BeliefRow

_NEGLIGIBLE = 1e-9  # pulls: what is left of less is rounding


def replaced(arms: Ids, sums: Array, changed: Ids, of_changed: Array) -> tuple[Ids, Array]:
    """Sums of arms (m, width), ascending, with those of changed arms in their place."""
    if not len(changed):
        return arms, sums
    if not len(arms):
        return changed, of_changed
    index = np.searchsorted(arms, changed)
    stored = arms[np.minimum(index, len(arms) - 1)] == changed
    sums = sums.copy()
    sums[index[stored]] = of_changed[stored]
    if stored.all():
        return arms, sums
    new = ~stored
    return np.insert(arms, index[new], changed[new]), np.insert(sums, index[new], of_changed[new], axis=0)


def table(rows: Sequence[Row], width: int) -> tuple[Ids, Array]:
    """Arms, and the columns behind them, (n, width)."""
    values = np.array(rows, np.float64).reshape(len(rows), 1 + width)
    return values[:, 0].astype(np.int64), values[:, 1:]


def faded(rows: Sequence[BeliefRow], forgetting: Forgetting, ordinal: int) -> tuple[Ids, Array]:
    """Rows of `beliefs.rows` brought forward to the policy's ordinal, and their buckets added up: arms, sums."""
    oldest = forgetting.oldest(ordinal)
    rows = [row for row in rows if row.bucket >= oldest]
    if not rows:
        return np.empty(0, np.int64), np.zeros((0, 3))
    sums = np.array([(row.pulls, row.reward_sum, row.reward_squares) for row in rows])
    if rows[0].extra is not None:
        extras = [row.extra or b"" for row in rows]
        if len(extras[0]) % 8 or len(set(map(len, extras))) > 1:
            raise damaged("the sums of a belief are not as long as each other")
        sums = np.hstack([sums, np.array([np.frombuffer(extra, "<f8") for extra in extras])])
    sums = sums * (forgetting.discount ** (ordinal - np.array([row.ordinal for row in rows], np.float64)))[:, None]
    arms, index = np.unique(np.array([row.arm_id for row in rows], np.int64), return_inverse=True)
    total = np.zeros((len(arms), sums.shape[1]))
    np.add.at(total, index.reshape(-1), sums)
    total[np.abs(total[:, 0]) < _NEGLIGIBLE] = 0.0
    return arms, total


def aligned(stored: Ids, values: Array, arms: Ids, default: tuple[float, ...]) -> Array:
    """The values of arms, (m, width), from those of the stored ones; the default where an arm is not stored."""
    if not len(stored):
        return np.tile(np.array(default), (len(arms), 1))
    if np.array_equal(stored, arms):
        return values
    index = np.minimum(np.searchsorted(stored, arms), len(stored) - 1)
    return np.where((stored[index] == arms)[:, None], values[index], np.array(default))
