"""This module holds the kind that draws Plackett-Luce slates by the odds of arms. The odds are learned per arm or from
features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

from rlrec.errors import InputError
from rlrec.policy.beliefs.base import Belief, BetaLearner, bounded_parameter
from rlrec.policy.beliefs.statistics import CONTEXT, SlotColumns

if TYPE_CHECKING:
    from rlrec.arrays import Array
    from rlrec.policy.contexts.encoder import Design
    from rlrec.policy.kinds.linear import LogisticThompson
    from rlrec.policy.scores.scores import Scores

ARM, FEATURES = "arm", "features"


class PlackettLuce(BetaLearner):
    """Show arms in proportion to their odds to the power 1 / temperature, at every position among the arms that are
    left.

    Odds are p / (1 - p). model arm: p is the posterior mean of each arm, and no context is read. model features:
    logit p is linear in the products of features of the context and of the arm, with prior precision `ridge`, so
    that a new arm starts from similar arms. Prefer plackett-luce to `softmax` where rewards are clicks. It compares
    rates by their ratio, so that 1 % against 2 % matters as much as 10 % against 20 %, and no temperature has to fit
    their size. Source: Plackett 1975, Luce 1959 (the distribution over slates); Beta and Laplace posteriors as in
    `thompson` and `logistic-thompson`."""

    model: str = ARM
    temperature: float = bounded_parameter(1.0, 1e-9, 1e9)
    ridge: float = bounded_parameter(1.0, 1e-9, 1e9)
    design: Design = field(default=None, compare=False, repr=False)  # type: ignore[assignment]  # until it is needed

    purpose: ClassVar[str] = "ranks pages or candidates by click rate; propensities are exact, cheap and never 0"
    prior: ClassVar[tuple[float, float]] = (1.0, 1.0)
    why_unit_rewards: ClassVar[str] = "plackett-luce takes it for a probability"
    exploration_parameters: ClassVar[tuple[str, ...]] = ("floor", "temperature")
    expands_model: ClassVar[bool] = True
    uses_arm_features: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model not in (ARM, FEATURES):
            raise InputError(f"model is {self.model!r}", hint=f"it is {ARM} or {FEATURES}")
        if self.is_contextual:
            from rlrec.policy.contexts.encoder import Design

            object.__setattr__(self, "design", self.design or Design())
            _ = self._logistic  # raises for more features than a model can hold

    # -- scores --

    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        if self.is_contextual:
            return self.scores_at(belief, self.encode(context))
        import numpy as np

        alpha, beta = self.beta_posterior(belief)
        return self._distribution(np.log(alpha) - np.log(beta))

    def index(self, belief: Belief, *, context: Mapping[str, Any] | None = None) -> Array:
        """Return the click rate of each arm, (..., m)."""
        return self.index_at(belief, self.encode(context)) if self.is_contextual else self.mean(belief)

    def _distribution(self, logit: Array) -> Scores:
        from rlrec.policy.scores.families.gumbel import Gumbel
        from rlrec.policy.scores.families.point import Point

        return Gumbel(logit / self.temperature) if self.temperature else Point(logit)

    # -- model features: the logistic model of `logistic-thompson`, shared by all arms (see `ContextualPolicy`) --

    @property
    def is_contextual(self) -> bool:  # type: ignore[override]  # of its parameters
        return self.model == FEATURES

    @property
    def _logistic(self) -> LogisticThompson:
        from rlrec.policy.kinds.linear import DEFAULT_FLOOR, SHARED, LogisticThompson

        return LogisticThompson(
            model=SHARED, floor=DEFAULT_FLOOR, ridge=self.ridge, design=self.design, position=self.position,
            examination=self.examination,
        )  # fmt: skip

    @property
    def needed_columns(self) -> frozenset[str]:
        return super().needed_columns | {CONTEXT} if self.is_contextual else super().needed_columns

    @property
    def fields_read(self) -> tuple[str, ...]:
        return self._logistic.fields_read if self.is_contextual else ()

    @property
    def width(self) -> int:
        return self._logistic.width if self.is_contextual else super().width

    def statistics(self, slots: SlotColumns) -> Array:
        return self._logistic.statistics(slots) if self.is_contextual else super().statistics(slots)

    @property
    def features(self) -> tuple[str, ...]:
        return self._logistic.features

    def encode(self, context: Mapping[str, Any] | None) -> Array:
        return self._logistic.encode(context)

    def scores_at(self, belief: Belief, x: Array) -> Scores:
        return self._distribution(self._logistic.posterior(belief).mean(x))

    def index_at(self, belief: Belief, x: Array) -> Array:
        return self._logistic.index_at(belief, x)

    def weights(self, belief: Belief) -> Array:
        return self._logistic.weights(belief)

    def interval(self, belief: Belief, *, context: Mapping[str, Any], z: float) -> tuple[Array, Array, Array]:
        return self._logistic.interval(belief, context=context, z=z)
