"""This module defines policies and beliefs. A policy object holds parameters and a belief holds what was learned. A
policy and a belief together give a distribution of scores.

This module imports no numpy, and neither do the kinds that read no context. A single `feedback` command calls only
the method `slot_statistics` of such a kind, which needs no numpy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import field, fields, replace
from functools import cached_property
from math import inf, isfinite, prod
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, dataclass_transform

from rlrec.errors import InputError
from rlrec.policy.beliefs.reward import bounds, within_unit_hint
from rlrec.policy.beliefs.statistics import POSITION, CountedSlot, Forgetting, SlotColumns, count_slots
from rlrec.policy.scores.floors import Floor, parse_positions
from rlrec.records import Record, Reward

if TYPE_CHECKING:
    from rlrec.arrays import Array, Ids, Index
    from rlrec.policy.beliefs.budget import Budget
    from rlrec.policy.beliefs.solving import ArmMoments
    from rlrec.policy.scores.scores import Scores


class Belief(Record, eq=False, repr=False):
    """A Belief holds sums for each of m arms, in the order of the arms of a request. The arrays have the shape (...,
    m). If one object holds several beliefs, the arrays have further axes in front.

    pulls, reward_sum, reward_squares: the sums over the counted slots, without the prior. alpha, beta: the prior as
    pseudo-counts of reward and of missing reward (0 without a prior). total: the pulls of all arms of the belief, a
    number or (..., 1). extra (..., m, w): w further sums, which only this kind of policy has. moments: the unpacked
    moments, for kinds that read the context. read_column_sums: for kinds that read sparse contexts, a function that
    takes c columns and returns an array (c, m, 4): three sums for each column, and the weight of the anchor (a model
    fitted to a log). parameters: the parameters of a trained kind for these arms, and the features of the arms, (m,
    p). cost (m,): the expected cost of showing each arm, if the policy has a budget."""

    pulls: Array
    reward_sum: Array
    reward_squares: Array
    alpha: Array
    beta: Array
    total: float | Array
    extra: Array | None = None
    moments: ArmMoments | None = None
    read_column_sums: Callable[[Index], Array] | None = None
    parameters: tuple[dict[str, Array], Array] | None = None
    cost: Array | None = None

    @property
    def weight(self) -> Array:
        """Return the pulls of each arm plus the pseudo-counts of the prior, (..., m)."""
        return self.pulls + self.alpha + self.beta

    def mean(self, *, default: float = 0.0) -> Array:
        """Return the posterior mean reward of each arm, (..., m). The mean is `default` for an arm with neither pulls
        nor a prior."""
        import numpy as np

        weight = self.weight
        mean = np.full(weight.shape, default, np.float64)
        return np.divide(self.reward_sum + self.alpha, weight, out=mean, where=weight > 0)


def bounded_parameter(default: float, low: float, high: float) -> Any:
    """Return a dataclass field for a parameter of a kind, which must be a number from `low` to `high`."""
    return field(default=default, metadata={"bounds": (low, high)})


ALL_FIELDS = ("*",)
PRICE = "@price"  # the field of a context with the price of cost with which its decision was drawn
_NO_PRIOR = 1e-9  # pseudo-counts in place of none, where the result is not used


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class Policy(ABC):
    """A Policy is a kind with its parameters. A policy scores arms but never draws.

    By default a policy counts every slot, forgets nothing, reads no context, and learns from any reward. A subclass
    becomes a frozen dataclass; the options of its class statement are options of the dataclass.

    The belief of every kind sums pulls, reward and squared reward. A kind with further sums overrides `statistics` and
    `width` (the further columns follow the three), `needed_columns` (the fields of a slot that the kind uses besides
    arm and reward) and `slot_statistics`. The ledger discounts the rows of `statistics` by age and sums them by arm."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    floor: float
    purpose: ClassVar[str]  # when to use it, in one line
    compares_arms: ClassVar[bool] = False  # whether the score of an arm depends on which others are eligible
    prior: ClassVar[tuple[float, float]] = (0.0, 0.0)  # alpha and beta of an arm without a prior of its own
    why_no_prior: ClassVar[str] = ""  # why a prior would have no effect, where it has none
    why_unit_rewards: ClassVar[str] = ""  # why every reward must lie in [0, 1], where it must
    exploration_parameters: ClassVar[tuple[str, ...]] = ("floor",)  # parameters that are 0 where it does not explore
    can_serve: ClassVar[bool] = True  # whether it can be drawn from
    learns_online: ClassVar[bool] = (
        True  # whether its belief learns from every decision; otherwise a version does not change
    )
    examination: tuple[float, ...] = ()  # the pulls that a slot counts as, by position; () for one at every position
    takes_scores: ClassVar[bool] = False  # whether it ranks by scores that requests state (`request_scores`)
    # whether two rankers take turns, so that probabilities are known only given their coins
    is_draft: ClassVar[bool] = False
    # whether it reads the session state, so that each decision has its own distribution
    is_stateful: ClassVar[bool] = False
    is_contextual: ClassVar[bool] = False  # whether it reads contexts through its `design`: encoders, moments
    # the policies that draw candidates and rank them, where it consists of two
    stages: ClassVar[tuple[Policy, ...]] = ()
    n_candidates: ClassVar[int] = 0  # the number of candidates that its first stage draws
    rules: Mapping[str, str] = {}  # rules for its requests and pages, by the name of their parameter
    budget: str = ""  # as it was typed, where it has one
    parsed_budget: ClassVar[Budget | None] = None  # the parsed budget

    if TYPE_CHECKING:

        def __init_subclass__(cls, **options: bool) -> None: ...

    else:  # a record, although its own annotations are no fields
        __init_subclass__ = vars(Record)["__init_subclass__"]

    @property
    def needed_columns(self) -> frozenset[str]:
        """Return the names of the fields of a slot that `statistics` uses besides arm and reward."""
        return frozenset()

    @property
    def width(self) -> int:
        """Return the number of columns of `statistics`."""
        return 3

    def slot_statistics(self, slot: CountedSlot) -> tuple[float, ...]:
        """Return the row that one slot adds to `statistics`, computed in plain Python. Only kinds that read no context
        have this method."""
        return 1.0, slot.reward, slot.reward * slot.reward

    def statistics(self, slots: SlotColumns) -> Array:
        """Return the columns that each slot adds to the sums of its arm, (n, width): pulls, reward, squared reward, and
        the columns that only this kind has."""
        return count_slots(slots)

    @property
    def forgetting(self) -> Forgetting:
        """Return how the belief of this policy forgets old decisions."""
        return Forgetting()

    @property
    def exploration(self) -> Floor:
        """Return the floor, which is the probability of a uniform pick, in [0, 1]. The result is one number for all
        positions, or a number for each position."""
        return self.floor

    @property
    def fields_read(self) -> tuple[str, ...]:
        """Return the names of the context fields that the distribution of this policy depends on. ALL_FIELDS stands for
        all fields."""
        return (PRICE,) if self.budget else ()

    @abstractmethod
    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        """Return the distribution of the noisy score of each arm, (m,), by which a slate is ranked.

        belief: the sums of the eligible arms; arms: the keys of these arms, in the order of their ids, as in
        `belief`; context: the context of the request."""

    def index(self, belief: Belief, *, context: Mapping[str, Any] | None = None) -> Array | None:
        """Return the noiseless score of each arm, (m,), which is a mean or an index. The result is None if the kind has
        no such score.

        context: the context of the request (None for an empty context)."""
        return None

    def beta_posterior(self, belief: Belief) -> tuple[Array, Array]:
        """Return alpha and beta of the Beta posterior of each arm's mean reward, as two arrays (..., m)."""
        import numpy as np

        return belief.alpha + belief.reward_sum, belief.beta + np.maximum(belief.pulls - belief.reward_sum, 0.0)

    def mean(self, belief: Belief, *, default: float = 0.0) -> Array:
        """Return the posterior mean reward of each arm, (..., m). The mean is `default` for an arm with neither pulls
        nor a prior."""
        return belief.mean(default=default)

    def local_belief(self, belief: Belief, context: Mapping[str, Any]) -> Belief:
        """Return the belief that applies in a context. Kinds that hold a belief for each value of a context field
        override this method."""
        return belief

    def score_deviation(self, belief: Belief) -> Array | None:
        """Return the standard deviation of the noisy score of each arm, (m,), for kinds with a budget. The result is
        None if scores have no noise."""
        return None

    def deviation(self, belief: Belief) -> Array | None:
        """Return the standard deviation of the posterior of each arm, (..., m). The result is None if the posterior is
        not normal."""
        return None

    def greedy(self) -> Self:
        """Return the same policy without the floor and without exploration."""
        return unchecked_copy(self, **dict.fromkeys(self.exploration_parameters, 0.0))

    @classmethod
    def implied_defaults(cls, typed_parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the defaults that follow from the parameters that a user typed, by name."""
        return {}

    def rewards_and_pulls(self, reward: Array, position: Ids | None) -> tuple[Array, Array]:
        """Return two arrays (n,): the reward that each slot adds to a belief, and the number of pulls that the slot
        counts as.

        reward (n,): the reward of each slot; position (n,): the position of each slot, which may be None if the
        policy has no position curve."""
        return rewards_and_pulls(reward, position, self.examination)

    def check(self, reward: Reward) -> None:
        """Raise InputError if the kind cannot learn from this reward."""
        limits = bounds(reward)
        if self.why_unit_rewards and (limits is None or limits[0] < 0 or limits[1] > 1):
            hint = within_unit_hint(reward)
            raise InputError(f"reward {reward.name!r} may leave [0, 1], and {self.why_unit_rewards}", hint=hint)


def rewards_and_pulls(reward: Array, position: Ids | None, examination: tuple[float, ...]) -> tuple[Array, Array]:
    """Return two arrays (n,): the reward that each slot adds to a belief, and the number of pulls that the slot counts
    as.

    A slot below the end of the position curve has no pulls and no reward. reward, position (n,): the reward and the
    position of each slot; examination: the position curve, which holds the number of pulls for a slot at each
    position (if empty, every slot counts as one pull)."""
    import numpy as np

    if not examination:
        return reward, np.ones(len(reward))
    assert position is not None
    curve = np.append(examination, 0.0)
    pulls = curve[np.minimum(position, len(curve)) - 1]
    return np.where(pulls > 0, reward, 0.0), pulls


class FlooredPolicy(Policy, init=False, eq=False, repr=False):
    """FlooredPolicy is the base class of kinds with a floor, which is the probability of a uniform pick. The floor
    holds at every position, or at the positions that `explore_slots` lists."""

    floor: float = bounded_parameter(0.0, 0, 1)
    explore_slots: str = ""

    uniform_rate_parameters: ClassVar[tuple[str, ...]] = ()  # further probabilities of a uniform arm, at every position

    def __post_init__(self) -> None:
        for parameter in fields(self):
            if "bounds" in parameter.metadata:
                check_number(parameter.name, getattr(self, parameter.name), *parameter.metadata["bounds"])
        if self.explore_slots and not self.floor:
            hint = "give the floor that it limits, too"
            raise InputError(f"explore_slots is {self.explore_slots!r}, and the floor is 0", hint=hint)
        if self.explore_slots != "":
            parse_positions(self.explore_slots)  # raises for an empty or invalid list

    @property
    def exploration(self) -> Floor:
        """Return the probability of a uniform pick: the floor at the positions where it applies, combined with the
        parameters named in `uniform_rate_parameters`, which apply everywhere. The result is one number, or a number for
        each position."""
        rates = [getattr(self, name) for name in self.uniform_rate_parameters]
        floored_rate = probability_of_any(*rates, self.floor) if rates else self.floor
        if self.explore_slots == "":
            return floored_rate
        other_rate, positions = probability_of_any(*rates), parse_positions(self.explore_slots)
        if floored_rate == other_rate:
            return floored_rate
        return *(
            floored_rate if number in positions else other_rate for number in range(1, max(positions) + 1)
        ), other_rate


class CurvePolicy(FlooredPolicy, init=False, eq=False, repr=False):
    """CurvePolicy is the base class of kinds that may have a position curve, which says how many pulls a slot at each
    position counts as. `position` is the name of the curve, and `examination` holds its values.

    A slot at position k counts as examination[k - 1] pulls, with its full reward; a slot below the end of the curve
    adds nothing. Kinds that read no context have further statistics: for each position of the curve, the sum of 1 -
    reward over the slots at this position."""

    position: str = ""
    examination: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.position, str) or bool(self.position) != bool(self.examination):
            hint = "`rlrec position fit` makes one, `rlrec position list` shows them"
            raise InputError(f"position is {self.position!r}, which is no curve of the store", hint=hint)

    @property
    def needed_columns(self) -> frozenset[str]:
        return frozenset({POSITION}) if self.examination else frozenset()

    @property
    def width(self) -> int:
        return 3 + len(self.examination)

    def slot_statistics(self, slot: CountedSlot) -> tuple[float, ...]:
        if not self.examination:
            return super().slot_statistics(slot)
        missed_rewards, row = [0.0] * len(self.examination), slot.position - 1
        if row >= len(missed_rewards) or not self.examination[row]:
            return 0.0, 0.0, 0.0, *missed_rewards
        missed_rewards[row] = 1.0 - slot.reward
        return self.examination[row], slot.reward, slot.reward * slot.reward, *missed_rewards

    def statistics(self, slots: SlotColumns) -> Array:
        import numpy as np

        if not self.examination:
            return super().statistics(slots)
        reward, pulls = self.rewards_and_pulls(slots.reward, slots.position)
        missed_rewards, rows = np.zeros((len(slots), len(self.examination))), np.flatnonzero(pulls)
        if len(rows):
            assert slots.position is not None
            missed_rewards[rows, slots.position[rows] - 1] = 1 - reward[rows]
        return count_slots(replace(slots, reward=reward), missed_rewards, pulls=pulls)

    def missed_rewards(self, belief: Belief) -> Array | None:
        """Return the sum of 1 - reward over the slots of each arm at each of the k positions of the curve, (..., m, k).
        The result is None without a position curve."""
        if not self.examination or self.is_contextual or belief.extra is None:
            return None
        return belief.extra[..., -len(self.examination) :]

    def beta_posterior(self, belief: Belief) -> tuple[Array, Array]:
        missed_rewards = self.missed_rewards(belief)
        if missed_rewards is None:
            return super().beta_posterior(belief)
        import numpy as np

        from rlrec.policy.beliefs import examination

        prior = np.maximum(belief.beta, _NO_PRIOR)
        return examination.posterior(
            belief.alpha + belief.reward_sum, prior, missed_rewards, np.array(self.examination)
        )


class OnlineLearner(CurvePolicy, init=False, eq=False, repr=False):
    """OnlineLearner is the base class of kinds that learn. These kinds have a floor of uniform exploration, can forget
    by a discount or a window, and can have a position curve."""

    discount: float = 1.0
    window: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("discount", self.discount)
        check_number("window", self.window)
        _ = self.forgetting  # raises for impossible values
        if self.budget:
            _ = self.parsed_budget

    @cached_property
    def forgetting(self) -> Forgetting:
        return Forgetting(self.discount, self.window)

    @cached_property
    def parsed_budget(self) -> Budget | None:  # type: ignore[override]  # of its parameter
        """Return the parsed budget, EVENT:AMOUNT/PERIOD. The result is None if the policy has no budget.

        The score of an arm is reduced by the expected cost of the arm times a price, which is in the context of the
        decision."""
        if not self.budget:
            return None
        from rlrec.policy.beliefs.budget import Budget

        return Budget.parse(self.budget)

    def index(self, belief: Belief, *, context: Mapping[str, Any] | None = None) -> Array:
        return self.subtract_cost(self.mean(belief), belief, context)

    def subtract_cost(self, score: Array, belief: Belief, context: Mapping[str, Any] | None) -> Array:
        """Return the score of each arm minus price x expected cost of the arm, (m,). The context holds the price."""
        return score if belief.cost is None else score - ((context or {}).get(PRICE) or 0.0) * belief.cost


class BetaLearner(OnlineLearner, init=False, eq=False, repr=False):
    """BetaLearner is the base class of kinds that learn from rewards in [0, 1] and have a prior. The mean of an arm is
    the mean of its Beta posterior."""

    def mean(self, belief: Belief, *, default: float = 0.0) -> Array:
        if self.missed_rewards(belief) is None:
            return belief.mean(default=default)
        alpha, beta = self.beta_posterior(belief)
        return alpha / (alpha + beta)


P = TypeVar("P")


def unchecked_copy(policy: P, **parameters: Any) -> P:
    """Return a copy of the policy with other parameters, which the constructor might refuse and which are not checked.

    The copy is never stored and logs nothing."""
    clone = copy(policy)
    for name, value in parameters.items():
        object.__setattr__(clone, name, value)
    return clone


def check_number(name: str, value: float, low: float = -inf, high: float = inf) -> None:
    """Raise InputError unless a parameter is a finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise InputError(f"{name} is {value!r}", hint="give a finite number")
    if not low <= value <= high:
        raise InputError(f"{name} is {value:g}", hint=f"it lies between {low:g} and {high:g}")


def sum_tolerance(n: int) -> float:
    """Return how far the sum of n probabilities may be from 1, if each probability was rounded to six decimals."""
    return max(1e-6, n * 0.5e-6) + 1e-12


def probability_of_any(*probabilities: float) -> float:
    """Return the probability that at least one of several independent explorations takes place, 1 - prod(1 - p)."""
    return 1.0 - prod(1.0 - probability for probability in probabilities)
