"""Protocols of kinds that read contexts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol, TypeGuard

from rlrec.arrays import Array
from rlrec.policy.base import Belief, Policy
from rlrec.policy.design import Design
from rlrec.policy.scores import Scores


class ContextualPolicy(Policy, Protocol):
    """A kind whose scores depend on the encoded context x, (q,); x (..., q) stands for many, one for each belief."""

    expands: ClassVar[bool]  # whether its model is expanded around the anchor of its design

    @property
    def design(self) -> Design:
        """How it encodes contexts and arms."""

    @property
    def uses_arm_features(self) -> bool:
        """Whether its scores depend on features of arms."""

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the columns of `weights`."""

    def encode(self, context: Mapping[str, object] | None) -> Array:
        """Features of a context, (q,)."""

    def scores_at(self, belief: Belief, x: Array) -> Scores:
        """`scores` in encoded contexts x (..., q), one for each of the leading axes of the belief; arrays (..., m)."""

    def index_at(self, belief: Belief, x: Array) -> Array:
        """`index` in encoded contexts x (..., q), (..., m)."""

    def weights(self, belief: Belief) -> Array:
        """The weight of each feature in the score of each arm, (..., m, features)."""

    def interval(self, belief: Belief, *, context: Mapping[str, object], z: float) -> tuple[Array, Array, Array]:
        """Mean reward of each arm in a context, and z standard deviations to either side, (m,) each; NaN where its
        scores are no rewards."""


def is_contextual(policy: Policy) -> TypeGuard[ContextualPolicy]:
    """Whether a policy reads contexts through a design."""
    return policy.contextual


def learns_from_contexts(policy: Policy) -> TypeGuard[ContextualPolicy]:
    """Whether the belief of a policy is made of moments of contexts."""
    return policy.contextual and policy.online
