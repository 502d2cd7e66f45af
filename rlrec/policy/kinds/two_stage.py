"""This module holds the two-stage policy, in which one kind draws an ordered list of candidates, and another kind ranks
the candidates into the slate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rlrec.errors import InputError
from rlrec.policy.beliefs.base import ALL_FIELDS, Belief, Policy, check_number, unchecked_copy
from rlrec.policy.beliefs.statistics import CountedSlot, Forgetting, SlotColumns
from rlrec.policy.scores.floors import MAX_POSITIONS, Floor
from rlrec.records import Reward

if TYPE_CHECKING:
    from rlrec.arrays import Array, Words
    from rlrec.policy.contexts.encoder import Design
    from rlrec.policy.scores.scores import Scores

SHARED_PARAMETERS = ("discount", "window", "position")  # parameters that each stage shares, where it has them
N_COUNT_COLUMNS = 3  # sums of a belief that both stages use
RANKING_KEY = 0x9E3779B97F4A7C15
"""The second stage of a decision draws with its seed XOR this: both stages number their uniforms from 0."""
KINDS_WITHOUT_STAGE = {
    "two-stage": "a stage draws by itself",
    "logged": "it cannot be drawn from",
    "gradient": "it is trained for slates that it drew from all arms",
    "exp3": "it divides rewards by the probability of the arm shown, which has no closed form over all lists",
}


class TwoStage(Policy):
    """Draw candidates by one kind, in order, and rank the slate from these by another kind.

    The first of the `stages` draws the list of candidates from all arms. The other methods of the policy are those
    of the second stage, for which the candidates are the eligible set. Both stages learn from the arms that were
    shown. The greedy version draws candidates as before, and ranks them without exploration.

    A stage is of any kind but exp3, gradient, logged and two-stage; the parameters of a stage are named `first.floor`
    and the like. Both stages have the same `discount`, `window` and `position`. A logistic model always takes its
    Newton step from the weights of its prior."""

    first: str = "plackett-luce"
    second: str = "thompson"
    candidates: float = 100.0
    discount: float = 1.0
    window: float = 0.0
    position: str = ""
    examination: tuple[float, ...] = ()
    stage_parameters: Mapping[str, Any] = field(default_factory=dict)
    design: Design = field(default=None, compare=False, repr=False)  # type: ignore[assignment]  # until it is needed

    purpose: ClassVar[str] = "thousands of arms: a cheap kind draws candidates, a careful one ranks them"
    expands_model: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("candidates", self.candidates)
        if self.candidates != int(self.candidates) or not 1 <= self.candidates <= MAX_POSITIONS:
            hint = f"it is a whole number from 1 to {MAX_POSITIONS}"
            raise InputError(f"candidates is {self.candidates:g}", hint=hint)
        check_number("discount", self.discount)
        check_number("window", self.window)
        _ = self.forgetting, self.stages  # raises for impossible values
        if self.is_contextual and not self.design:
            from rlrec.policy.contexts.encoder import Design

            object.__setattr__(self, "design", Design())

    @cached_property
    def stages(self) -> tuple[Policy, Policy]:  # type: ignore[override]  # of its parameters, as those below
        return self._stage("first"), self._stage("second")

    @property
    def n_candidates(self) -> int:  # type: ignore[override]
        return int(self.candidates)

    @property
    def definitions(self) -> tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]:
        """Return the kind and the parameters of each stage."""
        from rlrec import policy as kinds

        first_parameters, second_parameters = map(kinds.values, self.stages)
        return (self.first, first_parameters), (self.second, second_parameters)

    def _stage(self, stage: str) -> Policy:
        from rlrec import policy as kinds

        kind, prefix = getattr(self, stage), f"{stage}."
        kinds.load(kind)
        if kind in KINDS_WITHOUT_STAGE:
            raise InputError(f"kind {kind} cannot be the {stage} stage", hint=KINDS_WITHOUT_STAGE[kind])
        stage_parameters = self.stage_parameters.items()
        parameters = {name.removeprefix(prefix): value for name, value in stage_parameters if name.startswith(prefix)}
        shared_parameters = {name: getattr(self, name) for name in SHARED_PARAMETERS if name in kinds.parameters(kind)}
        if self.examination and "position" in shared_parameters:
            shared_parameters[kinds.CURVE] = self.examination
        try:
            return kinds.make(kind, {**parameters, **shared_parameters}, design=self.design)
        except InputError as error:
            raise InputError(f"{stage} stage: {error.message}", hint=error.hint) from None

    # -- what both stages need --

    @property
    def is_contextual(self) -> bool:  # type: ignore[override]
        return any(stage.is_contextual for stage in self.stages)

    @property
    def uses_arm_features(self) -> bool:
        """Tell whether the scores of either stage depend on features of arms."""
        return any(stage.is_contextual and getattr(stage, "uses_arm_features", False) for stage in self.stages)

    @property
    def needed_columns(self) -> frozenset[str]:
        return self.stages[0].needed_columns | self.stages[1].needed_columns

    @property
    def fields_read(self) -> tuple[str, ...]:
        field_names = dict.fromkeys(name for stage in self.stages for name in stage.fields_read)
        return ALL_FIELDS if ALL_FIELDS[0] in field_names else tuple(field_names)

    @property
    def forgetting(self) -> Forgetting:
        return Forgetting(self.discount, self.window)

    @property
    def width(self) -> int:
        return self.stages[0].width + self.stages[1].width - N_COUNT_COLUMNS

    @property
    def columns(self) -> tuple[list[int], list[int]]:
        """Return two lists of columns of the belief: the columns that the first stage reads, and the columns that the
        second stage reads."""
        count_columns, first_width = list(range(N_COUNT_COLUMNS)), self.stages[0].width
        return list(range(first_width)), count_columns + list(range(first_width, self.width))

    @property
    def _counting_stage(self) -> Policy:
        """Return the stage whose pulls and rewards are stored for both stages. This is a stage with a position curve,
        if either has a curve."""
        return next((stage for stage in self.stages if stage.examination), self.stages[0])

    def slot_statistics(self, slot: CountedSlot) -> tuple[float, ...]:
        stage_sums = (number for stage in self.stages for number in stage.slot_statistics(slot)[N_COUNT_COLUMNS:])
        return *self._counting_stage.slot_statistics(slot)[:N_COUNT_COLUMNS], *stage_sums

    def statistics(self, slots: SlotColumns) -> Array:
        import numpy as np

        stage_columns = [stage.statistics(slots)[:, N_COUNT_COLUMNS:] for stage in self.stages]
        return np.hstack([self._counting_stage.statistics(slots)[:, :N_COUNT_COLUMNS], *stage_columns])

    def check(self, reward: Reward) -> None:
        for stage in self.stages:
            stage.check(reward)

    # -- the second stage, over candidates --

    @property
    def floor(self) -> float:  # type: ignore[override]  # that of a stage
        return self.stages[1].floor

    @property
    def prior(self) -> tuple[float, float]:  # type: ignore[override]  # that of a stage
        return self.stages[1].prior

    @property
    def exploration(self) -> Floor:
        return self.stages[1].exploration

    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        return self.stages[1].scores(self._second_belief(belief), arms=arms, context=context)

    def index(self, belief: Belief, *, context: Mapping[str, Any] | None = None) -> Array | None:
        return self.stages[1].index(self._second_belief(belief), context=context)

    def _second_belief(self, belief: Belief) -> Belief:
        """Return the belief of the second stage."""
        if belief.extra is None:
            return belief
        return replace(belief, extra=belief.extra[..., self.stages[0].width - N_COUNT_COLUMNS :])

    def greedy(self) -> Self:
        policy = unchecked_copy(self)
        policy.__dict__["stages"] = self.stages[0], self.stages[1].greedy()
        return policy


def ranking_seeds(seeds: Words) -> Words:
    """Return a seed for the draws of the second stage of each decision, (n,), derived from the seed of the decision.

    seeds (n,): the seed of each decision."""
    import numpy as np

    return np.asarray(seeds, np.uint64) ^ np.uint64(RANKING_KEY)
