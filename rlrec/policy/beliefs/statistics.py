"""Statistics that slots add to a belief: of one slot in plain Python, of many in arrays, for which numpy loads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rlrec.arrays import Array, Flags, Ids, Index

ORDINAL, CONTEXT, POSITION, PROPENSITY = "ordinal", "context", "position", "propensity"
LEAST = 1e-300  # what a propensity is rounded to


class CountedSlot(NamedTuple):
    """A slot with its reward. Fields that its kind does not need may be 0.

    position: from 1; propensity: the marginal of the arm at its position, or the probability of the slate down to it
    where the marginal is not known; ordinal: of the decision in its policy; context_id: of its stored context."""

    arm_id: int
    ordinal: int
    context_id: int
    position: int
    propensity: float
    reward: float


def slate_propensities(slots: Iterable[tuple[int, float | None, float | None]]) -> dict[int, float]:
    """The propensity that weighs each slot, by position; slots without one are left out. It is the marginal at the
    position, else the probability of the slate down to it. slots: position, propensity and marginal, in order."""
    by_position: dict[int, float] = {}
    prefix: float | None = 1.0
    for index, (position, propensity, marginal) in enumerate(slots, 1):
        if prefix is not None:
            prefix = None if propensity is None or position != index else max(prefix * propensity, LEAST)
        if (value := prefix if marginal is None else marginal) is not None:
            by_position[position] = value
    return by_position


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SlotColumns:
    """Slots with their rewards as columns, (n,) each; None for those that their kind does not need.

    context (n, q): encoded by the design of the policy; anchored (n,): what the anchor of a policy that reads sparse
    contexts predicts; the others are as in `CountedSlot`."""

    arm_id: Ids
    reward: Array
    ordinal: Ids | None = None
    position: Ids | None = None
    propensity: Array | None = None
    context: Array | None = None
    anchored: Array | None = None

    def __len__(self) -> int:
        return len(self.reward)

    def take(self, rows: Index | Flags | slice) -> SlotColumns:
        """Some of the slots."""
        return SlotColumns(**{name: column[rows] for name, column in vars(self).items() if column is not None})


class Counts:
    """The statistics of most kinds: pulls, summed reward and summed squares of each arm.

    A kind that counts otherwise overrides `statistics` and `width` (more columns behind the three), `needs` (the
    fields of a slot beside arm and reward that it looks at) and `entry`. Statistics add up over slots; fading by age
    and the sums by arm are the ledger's."""

    @property
    def needs(self) -> frozenset[str]:
        """Fields of a slot that `statistics` depends on, beside arm and reward."""
        return frozenset()

    @property
    def width(self) -> int:
        """Columns of `statistics`."""
        return 3

    def entry(self, slot: CountedSlot) -> tuple[float, ...]:
        """One row of `statistics`, in plain Python; of kinds that read no context."""
        return 1.0, slot.reward, slot.reward * slot.reward

    def statistics(self, slots: SlotColumns) -> Array:
        """Columns that each slot adds to the sums of its arm, (n, width): pulls, reward, squared reward, and the kind's
        own."""
        return count_slots(slots)


def count_slots(slots: SlotColumns, further: Array | None = None, *, pulls: Array | float = 1.0) -> Array:
    """Pulls, reward and squared reward of each slot, and `further` columns (n, w) behind them, (n, 3 + w).

    pulls: of each slot, (n,), where it is not 1."""
    import numpy as np

    counts = np.empty((3, len(slots)))
    counts[0] = pulls
    counts[1] = slots.reward
    np.multiply(slots.reward, slots.reward, out=counts[2])
    return counts.T if further is None else np.hstack([counts.T, further])
