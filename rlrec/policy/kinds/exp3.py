"""Exp3: exponential weights of estimated gains, for rewards that need not be random."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rlrec.errors import InputError
from rlrec.policy.beliefs.base import Belief, Learner, bounded
from rlrec.policy.beliefs.statistics import PROPENSITY, CountedSlot, SlotColumns
from rlrec.policy.scores.floors import Floor

if TYPE_CHECKING:
    from rlrec.arrays import Array
    from rlrec.policy.scores.scores import Scores


@dataclass(frozen=True, kw_only=True)
class Exp3(Learner):
    """A uniform arm with probability gamma, else arms in proportion to exp(eta x estimated gain).

    The estimated gain of an arm sums reward / propensity over the slots that showed it: an unbiased estimate of what
    it would have earned in all of them, however the rewards came about; of pages, too, whatever the positions of the
    arms. eta 0 stands for gamma / K, K the eligible arms. Give `discount` or `window` where the best arm changes.
    Source: Auer, Cesa-Bianchi, Freund and Schapire 2002, section 3 (Exp3); Lattimore and Szepesvari 2020, algorithm 9.
    """

    gamma: float = bounded(0.1, 0, 1)
    eta: float = bounded(0.0, 0, 1e9)

    purpose: ClassVar[str] = "rewards that change, or that someone may set against you; with discount, it follows them"
    no_prior: ClassVar[str] = "it weighs gains, which all begin at 0"
    unit_rewards: ClassVar[str] = "exp3 weighs gains of at most 1"
    explores_by: ClassVar[tuple[str, ...]] = ("floor", "gamma")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma:
            raise InputError("gamma is 0", hint="it lies above 0: gains are divided by the propensity of every arm")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {PROPENSITY}

    @property
    def exploration(self) -> Floor:
        return self._combine_exploration(self.gamma)

    @property
    def width(self) -> int:
        return super().width + 1

    def entry(self, slot: CountedSlot) -> tuple[float, ...]:
        counts = super().entry(slot)
        return *counts[:3], counts[1] / slot.propensity, *counts[3:]

    def statistics(self, slots: SlotColumns) -> Array:
        import numpy as np

        columns = super().statistics(slots)
        assert slots.propensity is not None
        return np.insert(columns, 3, columns[:, 1] / slots.propensity, axis=1)

    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        from rlrec.policy.scores.families.gumbel import Gumbel
        from rlrec.policy.scores.families.point import Point

        gain = self.index(belief)
        if not self.gamma:  # greedy
            return Point(gain)
        return Gumbel((self.eta or self.gamma / gain.shape[-1]) * gain)

    def index(self, belief: Belief, *, context: Mapping[str, Any] | None = None) -> Array:
        """The estimated gain of each arm, (..., m), in the unit of the reward."""
        return 0.0 * belief.pulls if belief.extra is None else belief.extra[..., 0]
