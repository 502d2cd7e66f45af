"""How a version of a contextual policy reads its log: features of contexts and arms, and where a model is expanded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from rlrec.arrays import Array
from rlrec.policy.encoder import Encoder


@dataclass(frozen=True, eq=False, kw_only=True)
class Design:
    """Part of a version, and immutable as that is.

    context, arm: encoders. anchor: arm id -> (q,) weights around which a logistic model is expanded; arms that are
    missing have the prior's."""

    context: Encoder = field(default_factory=Encoder.hashed)
    arm: Encoder = field(default_factory=Encoder.hashed)
    anchor: Mapping[int, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Self:
        """The design that was `written`."""
        import numpy as np

        anchor = {int(arm): np.array(weights, np.float64) for arm, weights in written.get("anchor", {}).items()}
        return cls(context=Encoder.of(written["context"]), arm=Encoder.of(written["arm"]), anchor=anchor)

    def written(self) -> dict[str, Any]:
        """As JSON."""
        anchor = {str(arm): weights.tolist() for arm, weights in sorted(self.anchor.items())}
        return {"context": self.context.spec(), "arm": self.arm.spec(), **({"anchor": anchor} if anchor else {})}
