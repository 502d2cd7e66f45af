"""This module makes visits of the log the input of session estimators, and computes the columns that these estimators
sum.

A "session" of an estimate is one visit. Visits differ in length. After its end a visit keeps its last weight, with
rewards and values of 0; without it, the later steps would represent only the longer visits."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from rlrec.arrays import Array, Flags, Ids, numbers_in_runs, offsets, piece_rows
from rlrec.errors import InputError
from rlrec.ope.sums.base import RewardColumns, require
from rlrec.records import Record

# Weights are cut here, far beyond any that give a usable estimate, so that sums of their squares stay finite.
MAX_WEIGHT = 1e100


class VisitBatch(RewardColumns, eq=False):
    """A VisitBatch holds s visits of the log, n decisions in all, with the ratios of one target's probabilities to the
    logged ones.

    start (s + 1,): the decisions of visit i are rows start[i] to start[i + 1] - 1, in order of step, at least one.
    log_ratio (n,): the logarithm of the ratio of the target's probability of the slate to the logging policy's
    probability; -inf if the target would never show the slate. Of the other columns, `cluster` and `count` are (s,);
    reward (of the page), predicted (the discounted return from that step on) and largest (the logarithm of a weight)
    are (n,)."""

    visit_columns: ClassVar[tuple[str, ...]] = ("cluster", "count")  # the columns that are (s,)
    start: Ids
    log_ratio: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", np.asarray(self.start, np.int64))
        if self.start.ndim != 1 or not len(self.start) or self.start[0] != 0:
            raise InputError("start of the batch of visits must be a list that begins with 0")
        if (is_empty := np.diff(self.start) < 1).any():
            raise InputError(f"visit {int(np.argmax(is_empty))} of the batch has no decision")
        if (self.predicted is None) != (self.expected is None):
            raise InputError("predicted and expected come together or not at all")
        super().__post_init__()
        require("log_ratio", self.log_ratio, self._is_ratio(self.log_ratio), "a finite number or -inf")
        if self.largest is not None:
            require("largest", self.largest, self.largest != -np.inf, "above -inf, or absent")

    def _is_ratio(self, log_ratio: Array) -> Flags:
        return log_ratio < np.inf

    def n_rows(self, name: str) -> int:
        return len(self) if name in self.visit_columns else int(self.start[-1])

    def __len__(self) -> int:
        """Return the number of visits."""
        return len(self.start) - 1

    @cached_property
    def length(self) -> Ids:
        """Return the number of decisions of every visit, (s,)."""
        return np.diff(self.start)

    def take(self, visits: Flags | Ids) -> Self:
        """Return a batch of the given visits (flags or indices), in this order. The `left_out` of the result is 0."""
        index = np.arange(len(self))[visits]
        # the decisions of the visits, visit by visit
        length = self.length[index]
        rows = piece_rows(self.start[index], length)
        # every column, at these visits or at their decisions
        selected_columns = {
            name: column[index if name in self.visit_columns else rows] for name, column in self.columns().items()
        }
        return type(self)(start=offsets(length), **selected_columns)


class Course(Record, kw_only=False, eq=False):
    """A Course computes columns of one batch of visits, which estimators name and sum. A column is (s,) with a value
    per visit, or (n,) with a value per decision.

    gamma: the discount per step, in [0, 1]."""

    batch: VisitBatch
    gamma: float

    # -- per decision --

    @cached_property
    def step(self) -> Ids:
        """Return the step of every decision in its visit, from 0."""
        return numbers_in_runs(self.batch.start[:-1], len(self.batch.reward))

    @cached_property
    def discount(self) -> Array:
        """Return gamma to the power of the step."""
        return np.power(self.gamma, self.step.astype(np.float64))

    @cached_property
    def ratio(self) -> Array:
        """Return w_t, the product of the ratios of all steps of the visit up to step t, (n,)."""
        log_ratios, start = self.batch.log_ratio.copy(), self.batch.start[:-1]
        # sorted by length, the visits with at least so many steps come first
        longest_first = start[np.argsort(-self.batch.length, kind="stable")]
        visits_at_step = np.cumsum(np.bincount(self.batch.length)[::-1])[::-1]
        # add the log of the previous step
        for step in range(1, len(visits_at_step) - 1):
            rows = longest_first[: visits_at_step[step + 1]] + step
            log_ratios[rows] += log_ratios[rows - 1]
        return np.exp(np.minimum(log_ratios, np.log(MAX_WEIGHT)))

    @cached_property
    def stepwise_reward(self) -> Array:
        """Return gamma^t w_t r_t, the discounted and weighted reward of each step."""
        return self.discount * self.ratio * self.batch.reward

    @cached_property
    def correction(self) -> Array:
        """Return gamma^t w_t (r_t + gamma V_{t+1} - Q_t), the discounted and weighted error of the model's value Q_t.
        After the last step of a visit, V is `value_at_end`."""
        prediction, expectation = self._model
        next_value = np.zeros(len(expectation))
        next_value[:-1] = expectation[1:]
        next_value[self.batch.start[1:] - 1] = self.value_at_end
        return self.discount * self.ratio * (self.batch.reward + self.gamma * next_value - prediction)

    @property
    def value_at_end(self) -> Array | float:
        """Return V after a visit's last step."""
        return 0.0

    @property
    def _model(self) -> tuple[Array, Array]:
        if self.batch.predicted is None or self.batch.expected is None:
            raise InputError("dr-rl and wdr need a reward model", hint="give one, or use pdis or wpdis")
        return self.batch.predicted, self.batch.expected

    # -- per visit --

    @cached_property
    def rows(self) -> Array:
        """Return 1 for every visit."""
        return np.ones(len(self.batch))

    @cached_property
    def weight(self) -> Array:
        """Return w, the product of the ratios of all steps of the visit."""
        return self.ratio[self.batch.start[1:] - 1]

    @cached_property
    def mean_weight(self) -> Array:
        """Return the discounted mean of w_t over the visit's steps, which is the mean weight of its rewards."""
        return self.sum(self.discount * self.ratio) / self.sum(self.discount)

    @cached_property
    def weighted_return(self) -> Array:
        """Return w of the whole visit times the visit's discounted return."""
        return self.weight * self.earned

    @cached_property
    def earned(self) -> Array:
        """Return the discounted return of the visit as it was logged, without weights."""
        return self.sum(self.discount * self.batch.reward)

    @cached_property
    def stepwise_return(self) -> Array:
        """Return sum_t gamma^t w_t r_t, the discounted and weighted return of the visit."""
        return self.sum(self.stepwise_reward)

    @cached_property
    def first_value(self) -> Array:
        """Return V_0, the model's value of the target at the start of the visit."""
        return self._model[1][self.batch.start[:-1]]

    @cached_property
    def robust_return(self) -> Array:
        """Return V_0 + sum_t gamma^t w_t (r_t + gamma V_{t+1} - Q_t). It equals the backward recursion v <- V_t + rho_t
        (r_t + gamma v - Q_t), where rho_t is the ratio of step t."""
        return self.first_value + self.sum(self.correction)

    @cached_property
    def has_reward(self) -> Flags:
        """Return flags, which are true for visits with a reward that is not the default."""
        return self.sum(self.batch.not_default.astype(np.float64)) > 0

    @cached_property
    def bound(self) -> Array:
        """Return the largest weight that the visit could have had. The result is inf if no bound is known, or if the
        bound is 1e100 or more."""
        if self.batch.largest is None:
            return np.full(len(self.batch), np.inf)
        log_bounds = self.sum(np.nan_to_num(self.batch.largest, nan=np.inf, posinf=np.inf))
        return np.exp(np.where(log_bounds < np.log(MAX_WEIGHT), log_bounds, np.inf))

    @cached_property
    def max_weight(self) -> Array:
        """Return the largest w_t of the visit."""
        return np.maximum.reduceat(self.ratio, self.batch.start[:-1]) if len(self.batch) else np.empty(0)

    def sum(self, column: Array) -> Array:
        """Return the sums of a column over the decisions of each visit, (s,)."""
        return np.add.reduceat(column, self.batch.start[:-1]) if len(self.batch) else np.empty(0)
