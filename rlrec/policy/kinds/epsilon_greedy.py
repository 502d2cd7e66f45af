"""Epsilon-greedy: the best mean, and now and then any arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rlrec.policy.beliefs.base import Belief, Learner, bounded
from rlrec.policy.scores.floors import Floor

if TYPE_CHECKING:
    from rlrec.policy.scores.scores import Scores


@dataclass(frozen=True, kw_only=True)
class EpsilonGreedy(Learner):
    """A uniform eligible arm with probability epsilon, else the best mean; equal bests share.

    An arm without pulls has mean 0 unless a prior says more.
    """

    epsilon: float = bounded(0.1, 0, 1)

    purpose: ClassVar[str] = "a fixed rate of exploration, simple to explain"
    explores_by: ClassVar[tuple[str, ...]] = ("floor", "epsilon")

    @property
    def exploration(self) -> Floor:
        return self._combine_exploration(self.epsilon)

    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        from rlrec.policy.scores.families.point import Point

        return Point(belief.mean())
