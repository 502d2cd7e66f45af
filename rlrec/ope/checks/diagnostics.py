"""This module computes diagnostics of importance weights: their sum, the largest weights, the shape of their tail, and
the choices of the target that the log lacks."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cached_property
from operator import add
from typing import Any

import numpy as np

from rlrec.arrays import Array, Flags
from rlrec.ope.sums.base import LogBatch, RewardColumns
from rlrec.records import Record

# The number of the largest weights and weighted rewards that the sums keep: enough for the top 1 % of ten million
# rows, and for the tail of k-hat for a billion.
N_LARGEST = 100_000

_ROW_COUNTS = ("rows", "left_out", "rewards", "weighted_rewards")


class Weights(Record, eq=False):
    """A Weights object holds diagnostics of the importance weights of many rows. `weights(batch_1) + weights(batch_2)`
    are the diagnostics of two batches.

    rows, left_out: the number of rows with a weight, and of rows without one; rewards, weighted_rewards: the number
    of rows whose reward, and whose weight x reward, is not 0; weight, not_default: the sum of weights, and the sum
    of the weights of rows whose reward is not the default; largest, bound: the largest weight, and the largest
    provable weight (inf if any row has no bound); unsupported_mass, n_unsupported: the sum of the target's
    probabilities of choices that the logger never makes, and the number of rows where these are known; reward_size:
    the sum of |weight x reward|; reward_sum, total_count: the sum of the logged rewards, and the number of rows,
    each multiplied by the row's `count`; top_weights, top_rewards: the largest 100,000 weights, and the largest
    100,000 values of |weight x reward|."""

    rows: int
    left_out: int
    rewards: int
    weighted_rewards: int
    weight: float
    not_default: float
    largest: float
    bound: float
    unsupported_mass: float
    n_unsupported: float
    reward_size: float
    reward_sum: float
    total_count: float
    top_weights: Array
    top_rewards: Array

    def __add__(self, other: Weights) -> Weights:
        combiners: dict[str, Any] = {
            "largest": max,
            "bound": max,
            "top_weights": _largest_values,
            "top_rewards": _largest_values,
        }
        value_pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return Weights(**{name: combiners.get(name, add)(*pair) for name, pair in value_pairs.items()})

    def scale(self, factor: float) -> Weights:
        """Return the diagnostics with weights and counts multiplied by a factor. The numbers of rows do not change."""
        scaled_fields = [field.name for field in fields(self) if field.name not in _ROW_COUNTS]
        return replace(self, **{name: getattr(self, name) * factor for name in scaled_fields})

    @property
    def logged_mean(self) -> float | None:
        """Return the mean of the logged rewards, or None without rows."""
        return self.reward_sum / self.total_count if self.total_count else None

    @cached_property
    def top1_share(self) -> float | None:
        """Return the share of the top 1 % of rows in the sum of |weight x reward|. With more than ten million rows the
        result is the share of the top 100,000 rows."""
        if not self.reward_size:
            return None
        count = -(-self.rows // 100)
        return min(1.0, float(np.sort(self.top_rewards)[::-1][:count].sum()) / self.reward_size)

    @cached_property
    def k_hat(self) -> float | None:
        """Return the shape of the tail of the weights. The result is None if a largest weight is provable, or if the
        tail has too few values."""
        return None if np.isfinite(self.bound) else k_hat(self.top_weights, self.rows)


def weights(batch: LogBatch) -> Weights:
    """Return the diagnostics of the importance weights of one batch."""
    diagnostics = weight_diagnostics(
        batch, batch.weight, weighted_reward=batch.core_columns["weighted_reward"], reward=batch.reward,
        not_default=batch.not_default, rows=batch.is_usable,
        bound=np.full(len(batch), np.inf) if batch.largest is None else batch.largest,
    )  # fmt: skip
    return replace(diagnostics, rewards=int(np.count_nonzero(batch.reward)))


def weight_diagnostics(
    batch: RewardColumns, weight: Array, *, weighted_reward: Array, reward: Array, not_default: Flags, bound: Array,
    rows: Flags | None = None, largest: Array | None = None,
) -> Weights:  # fmt: skip
    """Return the diagnostics of the weights of a batch of n rows. All arrays are (n,).

    not_default: whether the reward is not the default; bound: the largest weight that each row could have had, inf
    or NaN if it is not known; rows: the rows that have a weight, or None for all rows; largest: the largest weight
    of each row, or None if each row has only one weight."""
    count, left_out = batch.count, batch.left_out
    if rows is not None:
        left_out += int((~rows).sum())
        weight, weighted_reward, reward = weight[rows], weighted_reward[rows], reward[rows]
        not_default, bound, count = not_default[rows], bound[rows], None if count is None else count[rows]
    largest = weight if largest is None else largest
    largest_weight, bound = float(largest.max(initial=0.0)), np.nan_to_num(bound, nan=np.inf, posinf=np.inf)
    if count is not None:
        weight, weighted_reward, reward = weight * count, weighted_reward * count, reward * count
    reward_size, nonzero = np.abs(weighted_reward), int(np.count_nonzero(weighted_reward))
    unsupported_mass = batch.unsupported if batch.unsupported is not None else np.empty(0)
    return Weights(
        rows=len(weight), left_out=left_out, rewards=nonzero, weighted_rewards=nonzero, weight=float(weight.sum()),
        not_default=float(weight[not_default].sum()), largest=largest_weight, bound=float(bound.max(initial=0.0)),
        unsupported_mass=float(np.nansum(unsupported_mass)), n_unsupported=int((~np.isnan(unsupported_mass)).sum()),
        reward_size=float(reward_size.sum()), reward_sum=float(reward.sum()),
        total_count=float(len(weight) if count is None else count.sum()),
        top_weights=_largest_values(weight), top_rewards=_largest_values(reward_size[reward_size > 0]),
    )  # fmt: skip


def _largest_values(*columns: Array) -> Array:
    values = np.concatenate(columns)
    return values if len(values) <= N_LARGEST else np.partition(values, len(values) - N_LARGEST)[-N_LARGEST:]


def k_hat(top: Array, rows: int) -> float | None:
    """Return the shape of the generalised Pareto tail of `rows` weights. If it is above 0.7, the mean of the weights is
    unreliable. The result is None if the tail has fewer than 50 distinct values.

    The shape is fitted to the top min(rows / 5, 3 sqrt(rows)) weights, with a prior of ten observations at 1/2.
    Source: stan-dev/loo, R/gpdfit.R (after Zhang & Stephens 2009), with 30 + sqrt(n) points on the grid.

    top: the largest of the weights."""
    length = min(int(np.ceil(min(0.2 * rows, 3 * np.sqrt(rows)))), len(top) - 1)
    if length < 50:
        return None
    tail = np.sort(top)[-length - 1 :]
    excess = tail[1:] - tail[0]
    excess = excess[excess > 0]
    if len(np.unique(excess)) < 50:
        return None
    return _pareto_shape(excess / excess[-1])


def _pareto_shape(excess: Array) -> float:
    """Return the posterior mean of the shape of a Pareto tail.

    excess (n,): the excess over the threshold, ascending and above 0, in any scale."""
    n = len(excess)
    # grid of b = -shape / scale
    n_points = 30 + int(np.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    grid = 1 / excess[-1] + (1 - np.sqrt(n_points / (np.arange(n_points) + 0.5))) / (3 * quartile)
    # profile likelihood of each b
    shape = np.array([np.log1p(-b * excess).mean() for b in grid])
    likelihood = n * (np.log(-grid / shape) - shape - 1)
    posterior = np.exp(likelihood - likelihood.max())
    # the shape at the posterior mean of b, and its prior
    fitted_shape = float(np.log1p(-(grid @ posterior / posterior.sum()) * excess).mean())
    return (n * fitted_shape + 10 * 0.5) / (n + 10)
