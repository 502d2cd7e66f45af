"""Thompson sampling with Beta posteriors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rlrec.policy.beliefs.base import Belief, BetaLearner

if TYPE_CHECKING:
    from rlrec.policy.scores.scores import Scores


@dataclass(frozen=True, kw_only=True)
class Thompson(BetaLearner):
    """Each arm with the probability that it is the best one, given a Beta posterior per arm.

    A reward in [0, 1] counts fractionally: alpha grows by it, beta by what it lacks to 1.
    """

    purpose: ClassVar[str] = "explores as much as it is in doubt; the default choice for clicks"
    prior: ClassVar[tuple[float, float]] = (1.0, 1.0)
    unit_rewards: ClassVar[str] = "thompson counts it fractionally"

    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        from rlrec.policy.scores.families.beta import Beta

        return Beta(*self.beta_posterior(belief))
