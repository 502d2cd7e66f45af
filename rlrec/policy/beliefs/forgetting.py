"""How a belief forgets: by the ordinal of decisions, never by the time of feedback. Plain Python: no numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from rlrec.errors import InputError

BUCKETS = 32  # that a window is cut into
LONGEST = 10**12  # decisions of a window


@dataclass(frozen=True)
class Forgetting:
    """The weight of a decision with ordinal t when the policy has made T: discount^(T - t), and with a window nothing
    once the newest ordinal of its bucket is T - window or older. Ordinals count the decisions of a policy from 1.

    discount in (0, 1], 1 forgets nothing; window in decisions, 0 for none. Source: Garivier & Moulines 2011
    (discounted and sliding-window UCB); the buckets are our addition."""

    discount: float = 1.0
    window: float = 0
    forgets: bool = field(init=False, repr=False, compare=False)  # whether it is not for ever

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1:
            raise InputError(f"discount is {self.discount:g}", hint="it lies above 0, and 1 forgets nothing")
        if not 0 <= self.window <= LONGEST or self.window != int(self.window):
            raise InputError(f"window is {self.window:g}", hint="it is a whole number of decisions; 0 forgets nothing")
        if self.discount < 1 and self.window:
            raise InputError("discount and window are both given", hint="a belief forgets by one of them")
        object.__setattr__(self, "forgets", self.discount < 1 or self.window > 0)

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> Self:
        """The forgetting that the parameters of a policy ask for."""
        return cls(float(parameters.get("discount", 1.0)), float(parameters.get("window", 0)))

    @property
    def width(self) -> int:
        """Ordinals of a bucket."""
        return max(1, int(self.window) // BUCKETS)

    def bucket(self, ordinal: int) -> int:
        return ordinal // self.width if self.window else 0

    def oldest(self, ordinal: int) -> int:
        """The first bucket that counts when the policy has made so many decisions."""
        return (ordinal - int(self.window) + 1) // self.width if self.window else 0
