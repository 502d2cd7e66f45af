"""One fold for estimates of every unit: `partial(batch)`, `+`, `finish(partial)`.

`impressions.ImpressionFold` and `sessions.SessionFold` are such folds. A partial depends on the rows of its batches
alone: not on their order, nor on how they were split, up to rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self, TypeVar

from rlrec.ope.base import Estimator
from rlrec.ope.estimate import Estimate, FinishOptions


class Partial(Protocol):
    """Sums over some batches of the log: they add up."""

    def __add__(self, other: Self, /) -> Self: ...


Batch = TypeVar("Batch", contravariant=True)
P = TypeVar("P", bound=Partial)


class Fold(Protocol[Batch, P]):
    """Estimators of one unit, about one target."""

    @property
    def estimators(self) -> Mapping[str, Estimator]:
        """The estimators by their labels."""

    def partial(self, batch: Batch, /) -> P:
        """The sums of one batch; those of an empty batch are the zero of the sum."""

    def finish(self, partial: P, options: FinishOptions, /) -> list[Estimate]:
        """One estimate for each estimator, in their order."""
