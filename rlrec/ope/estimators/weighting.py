"""Estimators that reweigh the logged rewards: inverse propensity, self-normalised, clipped."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rlrec.arrays import Array
from rlrec.ope.sums.base import ImpressionEstimator, LogBatch, require_positive


class Ips(ImpressionEstimator):
    """Mean of weight x reward: unbiased where the logger could show all that the target shows."""

    columns: ClassVar[tuple[str, ...]] = ("weighted_reward", "rows")
    intervals: ClassVar[tuple[str, ...]] = ("normal", "bootstrap-t", "cressie-read")
    widens: ClassVar[bool] = True

    def terms(self, batch: LogBatch) -> Array:
        return np.column_stack([batch.weight * batch.reward, batch.usable])


class Snips(ImpressionEstimator):
    """Weighted mean of the rewards: slightly biased in small logs, steadier, and always inside the reward's range."""

    columns: ClassVar[tuple[str, ...]] = ("weighted_reward", "weight")
    self_normalised: ClassVar[bool] = True
    intervals: ClassVar[tuple[str, ...]] = ("normal", "bootstrap-t", "cressie-read")
    widens: ClassVar[bool] = True

    def terms(self, batch: LogBatch) -> Array:
        return np.column_stack([batch.weight * batch.reward, batch.weight])


@dataclass(frozen=True, kw_only=True)
class Extreme(ImpressionEstimator):
    """Mean of weight used x reward, and of one reward for the weight that was cut: the least, or the largest, value
    that is possible, as the mean weight is 1. Weights that are used are bounded, so that its own bounds hold.

    changed: the estimator that changes weights; reward: the least or the largest one"""

    changed: ChangedWeights
    reward: float = 0.0

    @property
    def columns(self) -> tuple[str, ...]:
        return (f"rewards of {self.changed!r}", "rows", f"weights of {self.changed!r}")

    def terms(self, batch: LogBatch) -> Array:
        used = self.changed.weight_used(batch.weight)
        return np.column_stack([used * batch.reward, batch.usable, used])

    def value(self, mean: Array) -> Array:
        rewards, rows, weight = np.moveaxis(mean, -1, 0)
        return (rewards - self.reward * weight) / rows + self.reward

    def gradient(self, mean: Array) -> Array:
        rewards, rows, weight = np.moveaxis(mean, -1, 0)
        by_rows = (self.reward * weight - rewards) / rows**2
        return np.stack([1 / rows, by_rows, -self.reward / rows], axis=-1)


class ChangedWeights(ImpressionEstimator):
    """Base of the estimators that change weights on purpose."""

    biased: ClassVar[bool] = True
    unbiased: ClassVar[type[ImpressionEstimator]]  # the same one without the change

    @abstractmethod
    def weight_used(self, weight: Array) -> Array:
        """The weight that is used in place of each, (n,)."""

    def distortion(self, batch: LogBatch) -> Array:
        return np.abs(batch.weight - self.weight_used(batch.weight))

    def bracket(self, least: float = 0.0, largest: float = 0.0) -> tuple[ImpressionEstimator, ...]:
        return (self.unbiased(), *(Extreme(changed=self, reward=reward) for reward in (least, largest)))


@dataclass(frozen=True, kw_only=True)
class ClippedIps(ChangedWeights):
    """Mean of min(weight, clip) x reward: less variance for a bias that its interval holds.

    clip: the largest weight used, above 0"""

    unbiased: ClassVar[type[ImpressionEstimator]] = Ips
    clip: float = 20.0

    def __post_init__(self) -> None:
        require_positive("clip of clipped-ips", self.clip, example="clipped-ips:20")

    @property
    def columns(self) -> tuple[str, ...]:
        return (f"rewards of {self!r}", "rows")

    def weight_used(self, weight: Array) -> Array:
        return np.minimum(weight, self.clip)

    def terms(self, batch: LogBatch) -> Array:
        return np.column_stack([self.weight_used(batch.weight) * batch.reward, batch.usable])
