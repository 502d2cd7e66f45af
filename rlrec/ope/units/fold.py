"""The fold of the estimators of one unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from rlrec.ope.sums.base import Estimator
from rlrec.ope.units.estimate import Estimate, FinishOptions
from rlrec.ope.units.strata import StratifiedFold

Batch = TypeVar("Batch", contravariant=True)
P = TypeVar("P", bound=Any)  # sums over some batches of the log: they add up


class Fold(StratifiedFold[P], Protocol[Batch, P]):
    """Estimators of one unit, about one target: `impressions.ImpressionFold`, `sessions.SessionFold` and
    `slates.SlateFold`. A partial depends on the rows of its batches alone: not on their order, nor on how they were
    split, up to rounding."""

    @property
    def estimators(self) -> Mapping[str, Estimator]:
        """The estimators by their labels."""

    @property
    def most_loggers(self) -> int:
        """How many loggers can be weighed."""

    def partial(self, batch: Batch, /) -> P:
        """The sums of one batch; those of an empty batch are the zero of the sum."""

    def finish(self, partial: P, options: FinishOptions, /) -> list[Estimate]:
        """One estimate for each estimator, in their order."""
