"""Estimators that correct a reward model by the weighted errors it makes on the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rlrec.arrays import Array
from rlrec.ope.sums.base import ImpressionEstimator, LogBatch, model_of, require_positive


class Dr(ImpressionEstimator):
    """Mean of E_target q + weight x (reward - q): unbiased if the propensities are right, whatever the model q, as
    long as q was not fitted on the same cluster; a good model leaves small errors to weigh."""

    modelled: ClassVar[bool] = True
    widens: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[str, ...]:
        return (repr(self), "rows")

    def weight_used(self, weight: Array) -> Array:
        """The weight that is used in place of each, (n,)."""
        return weight

    def terms(self, batch: LogBatch) -> Array:
        predicted, expected = model_of(batch, self.name)
        robust = expected + self.weight_used(batch.weight) * (batch.reward - predicted)
        return np.column_stack([np.where(batch.usable, robust, 0.0), batch.usable])

    def distortion(self, batch: LogBatch) -> Array:
        return np.abs(batch.weight - self.weight_used(batch.weight))


@dataclass(frozen=True, kw_only=True)
class SwitchDr(Dr):
    """dr where weights are at most tau, the reward model alone where they are larger: less variance for a bias that
    bias_bound limits.

    tau: the largest weight used, above 0
    Source: SWITCH of Wang, Agarwal & Dudik 2017, in the form of Open Bandit Pipeline's documentation of estimators."""

    biased: ClassVar[bool] = True
    tau: float = 20.0

    def __post_init__(self) -> None:
        require_positive("tau of switch-dr", self.tau, example="switch-dr:20")

    def weight_used(self, weight: Array) -> Array:
        return np.where(weight <= self.tau, weight, 0.0)


@dataclass(frozen=True, kw_only=True)
class Dros(Dr):
    """dr with weights w shrunk to lambda w / (w^2 + lambda), none above sqrt(lambda) / 2: less variance for a bias that
    bias_bound limits.

    shrinkage: lambda, above 0; a weight of its square root is halved
    Source: optimistic shrinkage of Su, Dimakopoulou, Krishnamurthy & Dudik 2020, in the form of Open Bandit Pipeline's
    documentation of estimators."""

    biased: ClassVar[bool] = True
    shrinkage: float = 400.0

    def __post_init__(self) -> None:
        require_positive("lambda of dros", self.shrinkage, example="dros:400")

    def weight_used(self, weight: Array) -> Array:
        with np.errstate(over="ignore"):  # a weight of 1e300 is used as 0
            return weight / (1 + weight * (weight / self.shrinkage))


class Sndr(ImpressionEstimator):
    """dr with its weighted errors divided by the sum of the weights: slightly biased in small logs, and steadier where
    few weights are large.

    Mean of E_target q + sum of weight x (reward - q) over the sum of weights. A bad model can take it out of the
    reward's range: its bounds are not cut there. Source: the division by the sum of weights is that of Swaminathan &
    Joachims 2015, applied to the errors."""

    columns: ClassVar[tuple[str, ...]] = (repr(Dr()), "rows", "weighable_expected", "weighted_error", "weight")
    modelled: ClassVar[bool] = True
    widens: ClassVar[bool] = True

    def terms(self, batch: LogBatch) -> Array:
        predicted, expected = model_of(batch, self.name)
        expected, error = np.where(batch.usable, expected, 0.0), batch.weight * (batch.reward - predicted)
        return np.column_stack([expected + error, batch.usable, expected, error, batch.weight])

    def value(self, mean: Array) -> Array:
        _, rows, expected, error, weight = np.moveaxis(mean, -1, 0)
        return expected / rows + error / weight

    def gradient(self, mean: Array) -> Array:
        _, rows, expected, error, weight = np.moveaxis(mean, -1, 0)
        by_column = [0.0 * rows, -expected / rows**2, 1 / rows, 1 / weight, -error / weight**2]
        return np.stack(by_column, axis=-1)
