"""This module holds the bandits that read no context, which are epsilon-greedy, upper confidence bounds and Exp3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from rlrec.errors import InputError
from rlrec.policy.beliefs.base import Belief, OnlineLearner, bounded_parameter
from rlrec.policy.beliefs.reward import LIMIT
from rlrec.policy.beliefs.statistics import PROPENSITY, CountedSlot, SlotColumns

if TYPE_CHECKING:
    from rlrec.arrays import Array
    from rlrec.policy.scores.scores import Scores

MIN_WEIGHT = 1e-300  # smallest weight of an arm, so that quotients stay finite
MIN_DISTANCE = 1e-15  # smallest distance of a mean from 0 and 1 in logarithms
CERTAIN_DOUBT = 1e3  # at this exploration term the bound is 1 in doubles
N_STEPS = 6  # of Newton's method, enough for an error of 1e-9


class _BestIndexPolicy(OnlineLearner):
    """Show the arm with the largest index. Arms with equal indices are equally likely."""

    budget: str = ""

    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        from rlrec.policy.scores.families.point import Point

        return Point(self.index(belief, context=context))


class EpsilonGreedy(_BestIndexPolicy):
    """Show an eligible arm at random with probability epsilon, else the arm with the best mean. Arms with equal best
    means are equally likely.

    An arm without pulls has mean 0 unless a prior says more."""

    epsilon: float = bounded_parameter(0.1, 0, 1)

    purpose: ClassVar[str] = "a fixed rate of exploration, simple to explain"
    uniform_rate_parameters: ClassVar[tuple[str, ...]] = ("epsilon",)
    exploration_parameters: ClassVar[tuple[str, ...]] = ("floor", "epsilon")


class _UpperBoundPolicy(_BestIndexPolicy):
    """Show the arm with the largest upper confidence bound, at time t = 1 + the pulls of all arms. An arm without pulls
    comes first."""

    def _upper_bound(self, belief: Belief, weight: Array, log_t: float | Array) -> Array:
        """Return the upper confidence bound of each arm, (..., m).

        weight: the pulls of each arm, including those of the prior, above 0; log_t: ln t, where t = 1 + the pulls of
        all arms."""
        raise NotImplementedError

    def index(self, belief: Belief, *, context: Mapping[str, Any] | None = None) -> Array:
        import numpy as np

        bound = self._upper_bound(belief, np.maximum(belief.weight, MIN_WEIGHT), np.log1p(belief.total))
        return self.subtract_cost(np.where(belief.weight > 0, bound, np.inf), belief, context)


class Ucb(_UpperBoundPolicy):
    """Show the arm with the largest mean + c sqrt(ln t / n), where n is the pulls of the arm and t = 1 + the pulls of
    all arms. Arms with equal bounds are equally likely.

    c = sqrt(2) is UCB1. An arm without pulls comes first. With floor 0 the log can judge no other policy. Source:
    Auer, Cesa-Bianchi and Fischer 2002, UCB1, for rewards in [0, 1]."""

    c: float = bounded_parameter(1.4142135623730951, 0, LIMIT)

    purpose: ClassVar[str] = "tries uncertain arms without randomness; without a floor, its log cannot evaluate others"

    def _upper_bound(self, belief: Belief, weight: Array, log_t: float | Array) -> Array:
        import numpy as np

        return belief.mean() + self.c * np.sqrt(log_t / weight)


class UcbTuned(_UpperBoundPolicy):
    """Show the arm with the largest mean + sqrt(ln t / n * min(1/4, V)), where V = variance + sqrt(2 ln t / n).

    n is the pulls of the arm, and t = 1 + the pulls of all arms. The variance is that of the arm's rewards; a prior
    counts as rewards of 1 and 0. An arm without pulls comes first. Source: Auer, Cesa-Bianchi and Fischer 2002,
    UCB1-tuned, for rewards in [0, 1]."""

    purpose: ClassVar[str] = "like ucb, but explores less where rewards vary little, as clicks do; give it a floor"
    why_unit_rewards: ClassVar[str] = "ucb-tuned bounds no other"

    def _upper_bound(self, belief: Belief, weight: Array, log_t: float | Array) -> Array:
        import numpy as np

        mean, exploration_term = belief.mean(), log_t / weight
        variance = np.maximum((belief.reward_squares + belief.alpha) / weight - mean**2, 0.0)
        return mean + np.sqrt(exploration_term * np.minimum(0.25, variance + np.sqrt(2 * exploration_term)))


class KlUcb(_UpperBoundPolicy):
    """Show the arm with the largest q in [mean, 1] for which n kl(mean, q) <= ln t, where kl is the divergence between
    Bernoulli distributions.

    n is the pulls of the arm, and t = 1 + the pulls of all arms. An arm without pulls comes first. Source: Garivier
    and Cappe 2011, KL-UCB with c = 0, for rewards in [0, 1]."""

    purpose: ClassVar[str] = "like ucb, with tighter bounds for clicks, above all for rare ones; give it a floor"
    why_unit_rewards: ClassVar[str] = "kl-ucb bounds no other"

    def _upper_bound(self, belief: Belief, weight: Array, log_t: float | Array) -> Array:
        return kl_bound(belief.mean(), log_t / weight)


def kl_bound(mean: Array, doubt: Array) -> Array:
    """Return the largest q in [mean, 1] for which kl(mean, q) <= doubt, (..., m). The error is below 1e-9 (below 1e-8
    where doubt is below 1e-12).

    mean (..., m): means in [0, 1]; doubt (..., m): largest divergences, 0 or more.

    Newton's method in u = -ln(1 - q), in which kl is convex and finally linear, is started above the root, so that u
    decreases towards the root. The start is the smallest of three bounds, since kl is at least (q-m)^2 / 2(1-m),
    (q-m)^2 / 2q and (1-m) u - H(m), where m is the mean and H the entropy. Source: own derivation."""
    import numpy as np

    m, d = np.clip(mean, MIN_DISTANCE, 1 - MIN_DISTANCE), np.minimum(doubt, CERTAIN_DOUBT)
    entropy = -m * np.log(m) - (1 - m) * np.log1p(-m)
    upper_bound = np.minimum(m + np.sqrt(2 * (1 - m) * d), m + d + np.sqrt(d * d + 2 * m * d))
    smallest_u = -np.log1p(-m)
    u = np.minimum(-np.log1p(-np.minimum(upper_bound, 1 - MIN_DISTANCE)), (d + entropy) / (1 - m))
    for _ in range(N_STEPS):
        q = -np.expm1(-u)
        kl_excess = (1 - m) * u - m * np.log(q) - entropy - d
        u = np.maximum(u - kl_excess * q / np.maximum(q - m, MIN_DISTANCE), smallest_u)
    return np.clip(-np.expm1(-u), mean, np.maximum(np.minimum(upper_bound, 1.0), mean))


class Exp3(OnlineLearner):
    """Show an arm at random with probability gamma, else arms in proportion to exp(eta x estimated gain).

    The estimated gain of an arm is the sum of reward / propensity over the slots that showed the arm. This sum is an
    unbiased estimate of what the arm would have earned in all slots, whatever produced the rewards. On pages, the
    estimate is unbiased whatever the positions of the arms. eta 0 stands for gamma / K, where K is the number of
    eligible arms. Give `discount` or `window` where the best arm changes. Source: Auer, Cesa-Bianchi, Freund and
    Schapire 2002, section 3 (Exp3); Lattimore and Szepesvari 2020, algorithm 9."""

    gamma: float = bounded_parameter(0.1, 0, 1)
    eta: float = bounded_parameter(0.0, 0, 1e9)

    purpose: ClassVar[str] = "for rewards that are manipulated or change unpredictably; with discount, it follows them"
    why_no_prior: ClassVar[str] = "it weighs gains, which all begin at 0"
    why_unit_rewards: ClassVar[str] = "exp3 weighs gains of at most 1"
    uniform_rate_parameters: ClassVar[tuple[str, ...]] = ("gamma",)
    exploration_parameters: ClassVar[tuple[str, ...]] = ("floor", "gamma")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma:
            raise InputError("gamma is 0", hint="it lies above 0: it divides gains by the propensity of every arm")

    @property
    def needed_columns(self) -> frozenset[str]:
        return super().needed_columns | {PROPENSITY}

    @property
    def width(self) -> int:
        return super().width + 1

    def slot_statistics(self, slot: CountedSlot) -> tuple[float, ...]:
        counts = super().slot_statistics(slot)
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
        """Return the estimated gain of each arm, (..., m), in the unit of the reward."""
        return 0.0 * belief.pulls if belief.extra is None else belief.extra[..., 0]
