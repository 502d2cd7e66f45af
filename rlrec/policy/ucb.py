"""Upper confidence bound: optimism about what is uncertain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rlrec.errors import InputError
from rlrec.policy.base import Belief, Learner, number
from rlrec.policy.reward import LIMIT
from rlrec.policy.scores import Array, Point, Scores


@dataclass(frozen=True, kw_only=True)
class Ucb(Learner):
    """The arm with the largest mean + c sqrt(ln t / n), t = 1 + the pulls of all arms; equal bests share.

    c = sqrt(2) is UCB1. An arm without pulls comes first. With floor 0 the log can judge no other policy.
    Source: Auer, Cesa-Bianchi and Fischer 2002, UCB1, for rewards in [0, 1].
    """

    c: float = 1.4142135623730951

    purpose: ClassVar[str] = "optimism without randomness; give it a floor, or its log judges nothing else"

    def __post_init__(self) -> None:
        number("c", self.c)
        if not 0 <= self.c <= LIMIT:
            raise InputError(f"c is {self.c:g}", hint=f"it is 0 or more, and at most {LIMIT:g}")
        super().__post_init__()

    def _indices(self, belief: Belief) -> Array:
        weight = belief.weight
        known = weight > 0
        bonus = self.c * np.sqrt(np.log1p(belief.total) / np.where(known, weight, 1.0))
        return np.where(known, belief.mean() + bonus, np.inf)

    def scores(self, belief: Belief, *, arms: Sequence[str], context: Mapping[str, Any]) -> Scores:
        return Point(self._indices(belief))

    def index(self, belief: Belief) -> Array | None:
        return self._indices(belief)
