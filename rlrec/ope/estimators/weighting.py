"""Estimators that reweigh the logged rewards: inverse propensity, self-normalised, clipped."""

from __future__ import annotations

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
class ClippedIps(ImpressionEstimator):
    """Mean of min(weight, clip) x reward: less variance for a bias that bias_bound limits.

    clip: the largest weight used, above 0"""

    biased: ClassVar[bool] = True
    clip: float = 20.0

    def __post_init__(self) -> None:
        require_positive("clip of clipped-ips", self.clip, example="clipped-ips:20")

    @property
    def columns(self) -> tuple[str, ...]:
        return (f"clipped_reward:{self.clip!r}", "rows")

    def terms(self, batch: LogBatch) -> Array:
        return np.column_stack([np.minimum(batch.weight, self.clip) * batch.reward, batch.usable])

    def distortion(self, batch: LogBatch) -> Array:
        return np.maximum(batch.weight - self.clip, 0.0)
