"""Estimates of differences, smooth functions of the sums of both sides, which lie side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array
from rlrec.ope.sums.base import Smooth

EARNED = 2  # columns of what served: the rewards that were logged, and the rows


@dataclass(frozen=True)
class Minus:
    """An estimate of one target minus a baseline, whose columns follow. baseline: the logged average, from the `EARNED`
    columns; None: another target, estimated as the first."""

    estimator: Smooth
    baseline: Smooth | None = None

    def sides(self, mean: Array) -> tuple[Array, Array]:
        """The columns of the target and of the baseline."""
        cut = mean.shape[-1] // 2 if self.baseline is None else -EARNED
        return mean[..., :cut], mean[..., cut:]

    def unit(self, mean: Array) -> Array:
        """A reward of this size is a difference of 1."""
        return np.ones(mean.shape[:-1])

    def value(self, mean: Array) -> Array:
        ours, theirs = self.sides(mean)
        return self.estimator.value(ours) - (self.baseline or self.estimator).value(theirs)

    def gradient(self, mean: Array) -> Array:
        ours, theirs = self.sides(mean)
        by_theirs = (self.baseline or self.estimator).gradient(theirs)
        return np.concatenate([self.estimator.gradient(ours), -by_theirs], axis=-1)


@dataclass(frozen=True)
class Relative(Minus):
    """The difference as a share of the size of the baseline."""

    def value(self, mean: Array) -> Array:
        return super().value(mean) / self.unit(mean)

    def gradient(self, mean: Array) -> Array:
        ours, theirs = self.sides(mean)
        baseline, size = self.baseline or self.estimator, self.unit(mean)[..., None]
        ratio = (self.estimator.value(ours) / baseline.value(theirs))[..., None]
        return np.concatenate([self.estimator.gradient(ours), -ratio * baseline.gradient(theirs)], axis=-1) / size

    def unit(self, mean: Array) -> Array:
        return np.abs((self.baseline or self.estimator).value(self.sides(mean)[1]))
