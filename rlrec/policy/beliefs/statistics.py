"""This module computes the statistics that slots add to a belief, and defines how a belief forgets old slots.

One slot is handled in plain Python, and many slots in arrays, which load numpy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from rlrec.errors import InputError
from rlrec.records import Record

if TYPE_CHECKING:
    from rlrec.arrays import Array, Flags, Ids, Index

ORDINAL, CONTEXT, POSITION, PROPENSITY = "ordinal", "context", "position", "propensity"
MIN_PROPENSITY = 1e-300  # smaller propensities are rounded to this
N_BUCKETS = 32  # in a window
MAX_WINDOW = 10**12  # decisions of a window


class CountedSlot(NamedTuple):
    """A CountedSlot is a slot with its reward. Fields that the policy kind does not need may be 0.

    ordinal: the number of the decision among the decisions of its policy; context_id: the id of the stored context;
    position: the position on the page, from 1; propensity: the marginal probability of the arm at this position or,
    if the marginal is not known, the probability of all arms of the slate down to this position."""

    arm_id: int
    ordinal: int
    context_id: int
    position: int
    propensity: float
    reward: float


def slate_propensities(slots: Iterable[tuple[int, float | None, float | None]]) -> dict[int, float]:
    """Return the propensity by which each slot of a slate is weighted, by position. Slots with an unknown propensity
    are left out.

    The propensity is the marginal probability of the arm at its position. If the marginal is not known, it is the
    probability of all arms of the slate down to this position. slots: the position, the propensity and the marginal
    of each slot, in the order of positions."""
    by_position: dict[int, float] = {}
    joint: float | None = 1.0
    for index, (position, propensity, marginal) in enumerate(slots, 1):
        if joint is not None:
            joint = None if propensity is None or position != index else max(joint * propensity, MIN_PROPENSITY)
        if (slot_propensity := joint if marginal is None else marginal) is not None:
            by_position[position] = slot_propensity
    return by_position


class SlotColumns(Record, eq=False, repr=False):
    """A SlotColumns object holds n slots with their rewards, one array (n,) for each field. An array is None if the
    policy kind does not need the field.

    context (n, q): the features of the context, encoded by the design of the policy; prediction (n,): for a policy
    that reads sparse contexts, the reward that its anchor (a model fitted to a log) predicts; the other columns are
    the fields of `CountedSlot`."""

    arm_id: Ids
    reward: Array
    ordinal: Ids | None = None
    position: Ids | None = None
    propensity: Array | None = None
    context: Array | None = None
    prediction: Array | None = None

    def __len__(self) -> int:
        return len(self.reward)

    def take(self, rows: Index | Flags | slice) -> SlotColumns:
        """Return the selected slots.

        rows: the indices, a mask or a slice of the slots."""
        return SlotColumns(**{name: column[rows] for name, column in vars(self).items() if column is not None})


def count_slots(slots: SlotColumns, further_columns: Array | None = None, *, pulls: Array | float = 1.0) -> Array:
    """Return the pulls, the reward and the squared reward of each slot, followed by `further_columns`, (n, 3 + w).

    further_columns (n, w): more statistics of each slot; pulls: the number of pulls that each slot counts as, (n,)
    or one number."""
    import numpy as np

    counts = np.empty((3, len(slots)))
    counts[0] = pulls
    counts[1] = slots.reward
    np.multiply(slots.reward, slots.reward, out=counts[2])
    return counts.T if further_columns is None else np.hstack([counts.T, further_columns])


class Forgetting(Record, kw_only=False):
    """A Forgetting object defines how the weight of an old decision falls as the policy makes more decisions.

    discount: a number in (0, 1], where 1 forgets nothing; window: a number of decisions, 0 for no window.

    The ordinal t numbers the decisions of a policy from 1. When the policy has made T decisions, decision t has weight
    discount^(T - t). With a window, decisions are grouped into buckets of consecutive ordinals, and the weight is 0
    once the newest ordinal of the bucket is T - window or older. Source: Garivier & Moulines 2011 (discounted and
    sliding-window UCB); the buckets are our addition."""

    discount: float = 1.0
    window: float = 0
    forgets: bool = field(init=False, repr=False, compare=False)  # whether it forgets at all

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1:
            raise InputError(f"discount is {self.discount:g}", hint="it is above 0; 1 forgets nothing")
        if not 0 <= self.window <= MAX_WINDOW or self.window != int(self.window):
            raise InputError(f"window is {self.window:g}", hint="it is a whole number of decisions; 0 forgets nothing")
        if self.discount < 1 and self.window:
            raise InputError("discount and window are both given", hint="a belief forgets by one of them")
        object.__setattr__(self, "forgets", self.discount < 1 or self.window > 0)

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> Self:
        """Return the forgetting that the parameters of a policy define."""
        return cls(float(parameters.get("discount", 1.0)), float(parameters.get("window", 0)))

    @property
    def width(self) -> int:
        """Return the number of ordinals in a bucket."""
        return max(1, int(self.window) // N_BUCKETS)

    def bucket(self, ordinal: int) -> int:
        return ordinal // self.width if self.window else 0

    def oldest_bucket(self, ordinal: int) -> int:
        """Return the first bucket that counts when the policy has made `ordinal` decisions."""
        return (ordinal - int(self.window) + 1) // self.width if self.window else 0
