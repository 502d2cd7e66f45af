"""This module holds Thompson sampling without contexts. Most stores use this kind, so it has a module without any other
kind, which a single command would have to load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from rlrec.policy.beliefs.base import Belief, BetaLearner

if TYPE_CHECKING:
    from rlrec.arrays import Array
    from rlrec.policy.scores.scores import Scores


class Thompson(BetaLearner):
    """Show each arm with the probability that it is the best one, given a Beta posterior per arm.

    A reward in [0, 1] counts fractionally: alpha grows by the reward, beta by 1 minus the reward. With a budget the
    posterior of an arm is the normal distribution with the same mean and variance, since Beta variables minus
    different costs have no common scale."""

    budget: str = ""

    purpose: ClassVar[str] = "explores an arm as often as it may be the best; the default choice for clicks"
    prior: ClassVar[tuple[float, float]] = (1.0, 1.0)
    why_unit_rewards: ClassVar[str] = "thompson counts it fractionally"

    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        if self.budget:
            from rlrec.policy.scores.families.gaussian import Gaussian

            return Gaussian(self.subtract_cost(self.mean(belief), belief, context), self.score_deviation(belief))
        from rlrec.policy.scores.families.beta import Beta

        return Beta(*self.beta_posterior(belief))

    def score_deviation(self, belief: Belief) -> Array:
        alpha, beta = self.beta_posterior(belief)
        total = alpha + beta
        return (alpha * beta / (total + 1)) ** 0.5 / total
