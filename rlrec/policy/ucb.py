"""Upper confidence bound: optimism about what is uncertain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from rlrec.errors import InputError
from rlrec.policy.base import Belief, fraction, number
from rlrec.policy.reward import LIMIT
from rlrec.policy.scores import Array, Point, Scores
from rlrec.records import Reward


@dataclass(frozen=True, kw_only=True)
class Ucb:
    """The arm with the largest mean + c sqrt(ln t / n), t = 1 + the pulls of all arms; equal bests share.

    c = sqrt(2) is UCB1. An arm without pulls comes first. With floor 0 the log can judge no other policy.
    Source: Auer, Cesa-Bianchi and Fischer 2002, UCB1, for rewards in [0, 1].
    """

    c: float = 1.4142135623730951
    floor: float = 0.0

    purpose: ClassVar[str] = "optimism without randomness; give it a floor, or its log judges nothing else"
    prior: ClassVar[tuple[float, float]] = (0.0, 0.0)
    served: ClassVar[bool] = True
    reads: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        number("c", self.c)
        if not 0 <= self.c <= LIMIT:
            raise InputError(f"c is {self.c:g}", hint=f"it is 0 or more, and at most {LIMIT:g}")
        fraction("floor", self.floor)

    @property
    def exploration(self) -> float:
        return self.floor

    def _indices(self, belief: Belief) -> Array:
        weight = belief.weight
        known = weight > 0
        bonus = self.c * np.sqrt(np.log1p(belief.total) / np.where(known, weight, 1.0))
        return np.where(known, belief.mean() + bonus, np.inf)

    def scores(self, belief: Belief, *, arms: Sequence[str], context: Mapping[str, Any]) -> Scores:
        return Point(self._indices(belief))

    def index(self, belief: Belief) -> Array | None:
        return self._indices(belief)

    def greedy(self) -> Ucb:
        return replace(self, floor=0.0)

    def check(self, reward: Reward) -> None:
        """Any reward will do; the bound is made for rewards in [0, 1]."""
