"""How a version of a contextual policy reads its log: features of contexts and arms, and where a model is expanded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from rlrec.arrays import Array
from rlrec.policy.encoder import Encoder


@dataclass(frozen=True, eq=False, kw_only=True)
class Design:
    """A part of a version, and as immutable.

    context, arm: encoders. anchor: arm id -> (q,) weights around which a logistic model is expanded; arms that are
    missing have the prior's."""

    context: Encoder = field(default_factory=Encoder.by_hash)
    arm: Encoder = field(default_factory=Encoder.by_hash)
    anchor: Mapping[int, Array] = field(default_factory=dict)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The design from what `to_json` gave."""
        import numpy as np

        anchor = {int(arm): np.array(weights, np.float64) for arm, weights in document.get("anchor", {}).items()}
        return cls(context=Encoder.of(document["context"]), arm=Encoder.of(document["arm"]), anchor=anchor)

    def to_json(self) -> dict[str, Any]:
        """The design as JSON."""
        anchor = {str(arm): weights.tolist() for arm, weights in sorted(self.anchor.items())}
        return {"context": self.context.spec(), "arm": self.arm.spec(), **({"anchor": anchor} if anchor else {})}
