"""This module has the estimators that reweigh the logged rewards: inverse propensity, self-normalised, clipped."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rlrec.arrays import Array, Flags
from rlrec.ope.sums.base import ImpressionEstimator, LogBatch, require_positive

_MAX_WEIGHT = 1e100  # largest weight whose square is summed


class Reweighing(ImpressionEstimator):
    """Reweighing is the base of the estimators that weight rewards, without a model."""

    intervals: ClassVar[tuple[str, ...]] = ("normal", "bootstrap-t", "cressie-read")
    widens_interval: ClassVar[bool] = True


class Ips(Reweighing):
    """Average weight x reward, which is unbiased if the logger could show everything that the target shows."""

    columns: ClassVar[tuple[str, ...]] = ("weighted_reward", "rows")


class Snips(Reweighing):
    """Divide ips by the mean weight. The result is slightly biased in small logs, but it varies less, and stays within
    the reward's range."""

    columns: ClassVar[tuple[str, ...]] = ("weighted_reward", "weight")
    is_self_normalised: ClassVar[bool] = True


class BetaIps(Reweighing):
    """Average weight x (reward - b), and add b, with the b that gives the least variance. The result varies less than
    ips and snips.

    b is the mean reward under the weight w^2 - w; 0 where these add up to no more than 0, as in a log that lacks
    what the target shows. Source: Gupta et al. 2024, Optimal Baseline Corrections for Off-Policy Contextual Bandits."""

    columns: ClassVar[tuple[str, ...]] = ("weighted_reward", "rows", "weight", "baseline_reward", "baseline_weight")

    def terms(self, batch: LogBatch) -> Array:
        weight, reward, capped_weight = batch.weight, batch.reward, np.minimum(batch.weight, _MAX_WEIGHT)
        squares = capped_weight * (capped_weight - 1) * batch.is_usable
        return np.column_stack([weight * reward, batch.is_usable, weight, squares * reward, squares])

    def value(self, mean: Array) -> Array:
        rewards, rows, weight = np.moveaxis(mean[..., :3], -1, 0)
        return (rewards - self.baseline(mean) * (weight - rows)) / rows

    def gradient(self, mean: Array) -> Array:
        rewards, rows, weight, _, squares = np.moveaxis(mean, -1, 0)
        baseline, excess_weight = self.baseline(mean), weight - rows
        by_baseline_reward = np.where(squares > 0, -excess_weight / (rows * squares), 0.0)
        by_rows = (baseline * weight - rewards) / rows**2
        columns = (1 / rows, by_rows, -baseline / rows, by_baseline_reward, -baseline * by_baseline_reward)
        return np.stack(columns, axis=-1)

    def baseline(self, mean: Array) -> Array:
        """Return b, (...,), at the mean terms, (..., d)."""
        return np.divide(mean[..., 3], mean[..., 4], out=np.zeros(mean.shape[:-1]), where=mean[..., 4] > 0)


class Cram(ImpressionEstimator):
    """Estimate the mean reward of a policy that learned while it served. Each step of its learning is judged by later
    rows only.

    The estimate divides by the sum of the weights, as snips does; these may be negative. Source: Jia, Imai & Li
    2024, The Cram Method for Efficient Simultaneous Learning and Evaluation."""

    columns: ClassVar[tuple[str, ...]] = ("crammed_reward", "crammed_weight")
    weight_column: ClassVar[str] = "crammed_weight"

    def terms(self, batch: LogBatch) -> Array:
        weight = batch.weight if batch.crammed is None else batch.crammed
        return np.column_stack([weight * batch.reward, weight])


def crammed_weights(weights: Iterable[Array], later_flags: Iterable[Flags], counts: Iterable[float]) -> Array:
    """Return the weights of `Cram`, (n,). At each learning step, the target's weight of a row changes. The weight of a
    row in `Cram` is the sum of these changes over the steps before the row, each multiplied by the count of the step.

    weights, later_flags: for each step, two arrays (n,), the target's weights after the step, and whether the row is
    later than the step; counts: for each step, the number of all rows over the number of later rows."""
    previous_weight, crammed_sum = np.zeros(()), np.zeros(())
    for weight, is_later, count in zip(weights, later_flags, counts, strict=True):
        crammed_sum = crammed_sum + np.where(is_later, count * (weight - previous_weight), 0.0)
        previous_weight = weight
    return crammed_sum


@dataclass(frozen=True, kw_only=True)
class ExtremeEstimator(ImpressionEstimator):
    """Average weight used x reward, where the weight that was cut gets one reward: the smallest, or the largest,
    possible value, as the mean weight is 1. The weights used are bounded, so its own bounds are valid.

    estimator: the estimator that changes weights; reward: the smallest or the largest one."""

    estimator: ChangedWeights
    reward: float = 0.0

    @property
    def columns(self) -> tuple[str, ...]:
        return (f"rewards of {self.estimator!r}", "rows", f"weights of {self.estimator!r}")

    def terms(self, batch: LogBatch) -> Array:
        used_weight = self.estimator.weight_used(batch.weight)
        return np.column_stack([used_weight * batch.reward, batch.is_usable, used_weight])

    def value(self, mean: Array) -> Array:
        rewards, rows, weight = np.moveaxis(mean, -1, 0)
        return (rewards - self.reward * weight) / rows + self.reward

    def gradient(self, mean: Array) -> Array:
        rewards, rows, weight = np.moveaxis(mean, -1, 0)
        by_rows = (self.reward * weight - rewards) / rows**2
        return np.stack([1 / rows, by_rows, -self.reward / rows], axis=-1)


class ChangedWeights(ImpressionEstimator):
    """ChangedWeights is the base of the estimators that change weights on purpose."""

    is_biased: ClassVar[bool] = True
    unbiased_type: ClassVar[type[ImpressionEstimator]]  # the same estimator without the change

    @abstractmethod
    def weight_used(self, weight: Array) -> Array:
        """Return the weights that the estimator uses in place of the given weights, (n,)."""

    def distortion(self, batch: LogBatch) -> Array:
        return np.abs(batch.weight - self.weight_used(batch.weight))

    def enclosing_estimators(self, least: float = 0.0, largest: float = 0.0) -> tuple[ImpressionEstimator, ...]:
        return (self.unbiased_type(), *(ExtremeEstimator(estimator=self, reward=reward) for reward in (least, largest)))


@dataclass(frozen=True, kw_only=True)
class ClippedIps(ChangedWeights):
    """Average min(weight, clip) x reward. The result varies less than ips but is biased; its interval includes the
    bias.

    clip: the largest weight used, above 0."""

    unbiased_type: ClassVar[type[ImpressionEstimator]] = Ips
    clip: float = 20.0

    def __post_init__(self) -> None:
        require_positive("clip of clipped-ips", self.clip, example="clipped-ips:20")

    @property
    def columns(self) -> tuple[str, ...]:
        return (f"rewards of {self!r}", "rows")

    def weight_used(self, weight: Array) -> Array:
        return np.minimum(weight, self.clip)

    def terms(self, batch: LogBatch) -> Array:
        return np.column_stack([self.weight_used(batch.weight) * batch.reward, batch.is_usable])
