"""A policy for the long run: each arm with the probability that showing it is worth most, now and later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rlrec.policy.beliefs.base import Belief, Floored, bounded

if TYPE_CHECKING:
    from rlrec.arrays import Array
    from rlrec.policy.scores.scores import Scores

HIGHEST = 1e15


@dataclass(frozen=True, kw_only=True)
class LongTerm(Floored):
    """Each arm with the probability that showing it is worth most, by normal posteriors of the effects of arms: what a
    full look at one adds to the reward of the page, to the rest of the visit, and by coming back.

    `policy rebuild` learns it from the log of any policy. A belief counts an effect of mean b and standard error s as
    1 / s^2 pulls that earned b / s^2; an arm that it does not know has the prior of `prior_mean` and `prior_sd`, which
    are those of the arms of its log. Until it has learned, all arms are equal.
    """

    floor: float = bounded(0.05, 0, 1)
    prior_mean: float = bounded(0.0, -HIGHEST, HIGHEST)
    prior_sd: float = bounded(1.0, 1e-12, HIGHEST)

    purpose: ClassVar[str] = "what a showing is worth in the long run, learned from the log of any policy"
    no_prior: ClassVar[str] = "the arms of its log say how arms differ"
    online: ClassVar[bool] = False

    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        from rlrec.policy.scores.families.gaussian import Gaussian

        return Gaussian(self.index(belief), self.deviation(belief))

    def index(self, belief: Belief, *, context: Mapping[str, Any] | None = None) -> Array:
        return self.mean(belief)

    def mean(self, belief: Belief, *, unknown: float = 0.0) -> Array:
        prior_pulls = self.prior_sd**-2
        mean: Array = (belief.reward_sum + prior_pulls * self.prior_mean) / (belief.pulls + prior_pulls)
        return mean

    def deviation(self, belief: Belief) -> Array:
        deviation: Array = (belief.pulls + self.prior_sd**-2) ** -0.5
        return deviation

    @staticmethod
    def statistics_of(mean: float, sd: float, *, prior_mean: float, prior_sd: float) -> tuple[float, float]:
        """The pulls, and what they earned, by which a belief has this posterior; nothing where it is the prior."""
        pulls, prior_pulls = sd**-2, prior_sd**-2
        if pulls <= prior_pulls * (1 + 1e-9):
            return 0.0, 0.0
        return pulls - prior_pulls, pulls * mean - prior_pulls * prior_mean
