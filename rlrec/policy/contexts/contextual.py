"""Kinds that read contexts, and how a version of theirs reads its log."""

from __future__ import annotations

from abc import abstractmethod
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from rlrec.arrays import Array, Ids, Index
from rlrec.policy.beliefs.base import EVERYTHING, Belief, Policy
from rlrec.policy.contexts.encoder import Encoded, Encoder
from rlrec.policy.contexts.statements import ARM_FEATURES
from rlrec.policy.scores.scores import Scores


@dataclass(frozen=True, eq=False, kw_only=True)
class Design:
    """How a version reads features of contexts and arms, and where its model is expanded: a part of the version, and as
    immutable.

    context, arm: encoders. anchor: arm id -> (q,) weights around which a logistic model is expanded; arms that are
    missing have the prior's. columns: those of sparse contexts that a trained model weighs, ascending.
    learns_stated: whether a belief learns by features that requests and imported lines state of arms, where they do."""

    context: Encoder = field(default_factory=Encoder.by_hash)
    arm: Encoder = field(default_factory=Encoder.by_hash)
    anchor: Mapping[int, Array] = field(default_factory=dict)
    columns: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    learns_stated: bool = False

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The design from what `to_json` gave."""
        anchor = {int(arm): np.array(weights, np.float64) for arm, weights in document.get("anchor", {}).items()}
        columns = np.frombuffer(b64decode(document.get("columns", "")), "<i4").astype(np.int64)
        context, arm = Encoder.parse(document["context"]), Encoder.parse(document["arm"])
        return cls(
            context=context, arm=arm, anchor=anchor, columns=columns, learns_stated=document.get("learns_stated", False)
        )

    def to_json(self) -> dict[str, Any]:
        """The design as JSON."""
        anchor = {str(arm): weights.tolist() for arm, weights in sorted(self.anchor.items())}
        columns = b64encode(self.columns.astype("<i4").tobytes()).decode()
        fitted = {"anchor": anchor, "columns": columns, "learns_stated": self.learns_stated}
        return {"context": self.context.spec(), "arm": self.arm.spec()} | {k: v for k, v in fitted.items() if v}


@dataclass(frozen=True, kw_only=True)
class ContextualPolicy(Policy):
    """Base of kinds whose scores depend on the encoded context x, (q,); x (..., q) stands for many, one for each
    belief. Wide contexts are `Sparse`."""

    design: Design = field(default_factory=Design, compare=False, repr=False)

    contextual: ClassVar[bool] = True
    takes_sparse: ClassVar[bool] = False  # whether its contexts may have more columns than a belief holds squares of
    expands: ClassVar[bool] = False  # whether its model is expanded around the anchor of its design

    @property
    def reads(self) -> tuple[str, ...]:
        reads = self.design.context.reads
        return reads if reads == EVERYTHING or not self.uses_arm_features else (*reads, ARM_FEATURES)

    @property
    @abstractmethod
    def uses_arm_features(self) -> bool:
        """Whether its scores depend on features of arms."""

    @property
    @abstractmethod
    def features(self) -> tuple[str, ...]:
        """Names of the columns of `weights`."""

    @property
    def is_sparse(self) -> bool:
        """Whether contexts are encoded without their zeros."""
        return self.design.context.is_sparse

    def encode(self, context: Mapping[str, Any] | None) -> Encoded:
        """Features of a context, (q,)."""
        return self.design.context.rows([context or {}])[0]

    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        return self.scores_at(belief, self.encode(context))

    def index(self, belief: Belief, *, context: Mapping[str, Any] | None = None) -> Array:
        return self.index_at(belief, self.encode(context))

    @abstractmethod
    def scores_at(self, belief: Belief, x: Encoded) -> Scores:
        """`scores` in encoded contexts x (..., q), one for each of the leading axes of the belief; arrays (..., m)."""

    @abstractmethod
    def index_at(self, belief: Belief, x: Encoded) -> Array:
        """`index` in encoded contexts x (..., q), (..., m)."""

    @abstractmethod
    def weights(self, belief: Belief) -> Array:
        """The weight of each feature in the score of each arm, (..., m, features)."""

    def column_weights(self, belief: Belief, columns: Index) -> Array:
        """Weights of some columns of sparse contexts, (c, m), of kinds that take these."""
        raise NotImplementedError

    @abstractmethod
    def interval(self, belief: Belief, *, context: Mapping[str, Any], z: float) -> tuple[Array, Array, Array]:
        """Mean reward of each arm in a context, and z standard deviations to either side, (m,) each; NaN where its
        scores are no rewards."""
