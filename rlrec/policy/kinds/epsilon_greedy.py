"""Epsilon-greedy: the best mean, and now and then any arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rlrec.policy.beliefs.base import Belief, Learner, check_between
from rlrec.policy.scores.floors import Floor

if TYPE_CHECKING:
    from rlrec.policy.scores.scores import Scores


@dataclass(frozen=True, kw_only=True)
class EpsilonGreedy(Learner):
    """A uniform eligible arm with probability epsilon, else the best mean; equal bests share.

    An arm without pulls has mean 0 unless a prior says more.
    """

    epsilon: float = 0.1

    purpose: ClassVar[str] = "a fixed rate of exploration, simple to explain"
    explores_by: ClassVar[tuple[str, ...]] = ("floor", "epsilon")

    def __post_init__(self) -> None:
        check_between("epsilon", self.epsilon, 0, 1)
        super().__post_init__()

    @property
    def exploration(self) -> Floor:
        return self._combine_exploration(self.epsilon)

    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        from rlrec.policy.scores.families.point import Point

        return Point(belief.mean())
