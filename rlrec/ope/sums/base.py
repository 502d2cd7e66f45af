"""This module has the base class of estimators, and the batches of log rows that estimators read.

Every estimator of this package is a smooth function of sums over clusters. An estimator declares the columns that
are summed (`columns`), and how their sums make a value. All estimators share the code for clusters, standard errors,
intervals and diagnostics."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from rlrec.arrays import Array, Flags, Ids
from rlrec.errors import InputError
from rlrec.records import Record

# Probabilities come from quadrature: a sum may pass 1 by a rounding.
ROUNDING_ERROR = 1e-9
# The smallest stored propensity is 1e-300; with smaller ones, sums of weights would overflow.
_MAX_WEIGHT = 1e300
_DTYPE_BY_COLUMN = {"cluster": np.int64, "default": np.bool_}
NON_COLUMNS = ("start", "left_out")  # fields of batches that are not columns of rows
CORE_COLUMNS = ("rows", "earned", "weight", "weighted_reward")
# columns with a number for every position, or every arm
TABLE_COLUMNS = ("target_at", "logged_at", "exposure", "expectation", "change")


class ValueRange(Record, kw_only=False):
    """A ValueRange holds the smallest and the largest of a set of values. The sum of two ranges is the range of all
    values of the two sets."""

    least: float = np.inf
    largest: float = -np.inf

    @classmethod
    def from_values(cls, values: Array) -> ValueRange:
        return cls(float(values.min(initial=np.inf)), float(values.max(initial=-np.inf)))

    def __add__(self, other: ValueRange) -> ValueRange:
        return ValueRange(min(self.least, other.least), max(self.largest, other.largest))

    def scale(self, factor: float) -> ValueRange:
        """Return this range. The range of values does not depend on the `factor` by which their rows are counted."""
        return self


class RewardColumns(Record, eq=False):
    """RewardColumns holds the columns of a batch of rows, and checks the columns when built. A row is an impression, a
    slate or a visit. Each column is (n,), with a value for each row.

    reward: the reward of the row inside its window; cluster: the digest of the cluster, any signed or unsigned 64
    bits; predicted, expected: a reward model's value of what was shown, and the model's mean over what the target
    may show; largest: the largest weight that any choice could have had; NaN (or inf) if no bound is known;
    unsupported: the target's probability of choices to which the logger gave 0; NaN if that probability is unknown;
    default: whether the reward is the default; without this column, a reward of 0 counts as the default; count: how
    many rows each row stands for, 1 / the probability that the log kept the row; 1 without this column; left_out:
    the number of rows that could not be used and are not in the arrays.

    Raises InputError for a wrong shape or a value outside its range."""

    reward: Array
    cluster: Ids
    predicted: Array | None = None
    expected: Array | None = None
    largest: Array | None = None
    unsupported: Array | None = None
    default: Flags | None = None
    count: Array | None = None
    left_out: int = 0

    def __post_init__(self) -> None:
        for name, values in self.columns().items():
            column: Array = np.asarray(values, dtype=_DTYPE_BY_COLUMN.get(name, np.float64))
            object.__setattr__(self, name, column)
            if (*column.shape[:1], column.ndim) != (self.n_rows(name), 1 + (name in TABLE_COLUMNS)):
                raise InputError(f"{name} has shape {column.shape}, the batch has {self.n_rows(name)} rows of it")
        for name in ("reward", "predicted", "expected"):
            if (column := getattr(self, name)) is not None:
                require(name, column, np.isfinite(column), "a finite number")
        if self.unsupported is not None:
            require("unsupported", self.unsupported, ~(self.unsupported < -ROUNDING_ERROR), "0 or more")
        if self.count is not None:
            require("count", self.count, (self.count >= 1) & np.isfinite(self.count), "1 or more")

    def columns(self) -> dict[str, Any]:
        """Return the columns that the batch has, by name."""
        columns = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in NON_COLUMNS}
        return {name: column for name, column in columns.items() if column is not None}

    def n_rows(self, name: str) -> int:
        """Return the number of rows that the column with this name must have."""
        return len(self.reward)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.reward)

    def take(self, rows: Flags | Ids) -> Self:
        """Return a batch of the given rows (flags or indices), in this order. The `left_out` of the result is 0."""
        return type(self)(**{name: column[rows] for name, column in self.columns().items()})

    def with_counts(self, column: Array) -> Array:
        """Return a column, (n,) or (n, c), with each value multiplied by the count of its row."""
        return column if self.count is None else (column.T * self.count).T

    @cached_property
    def not_default(self) -> Flags:
        """Return (n,) flags, which are true for rewards that are not the default."""
        return ~self.default if self.default is not None else self.reward != 0


class LogBatch(RewardColumns, eq=False):
    """A LogBatch holds rows of the log, with the probabilities that one target gives to them. A row is an impression.

    propensity (n,): the logging policy's probability of this arm, either the marginal probability at the position or
    the probability of the slate down to the arm; NaN if no propensity was logged. Estimators with weights leave such
    a row out. target (n,): the target's probability of the same event; NaN if the target has none (such a row is
    left out as well). crammed (n,): the weights of the estimator `Cram`, of either sign; None for a target that has
    not learned from the rows."""

    propensity: Array
    target: Array
    crammed: Array | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require("propensity", self.propensity, ~(self.propensity <= 0), "above 0, or absent")
        require("propensity", self.propensity, ~(self.propensity > 1 + ROUNDING_ERROR), "at most 1")
        require("target", self.target, ~(self.target < 0), "0 or more")
        require("target", self.target, ~(self.target > 1 + ROUNDING_ERROR), "at most 1")

    @cached_property
    def is_usable(self) -> Flags:
        """Return (n,) flags, which are true for rows with both probabilities, so that they have a weight."""
        return ~(np.isnan(self.propensity) | np.isnan(self.target))

    @cached_property
    def weight(self) -> Array:
        """Return the importance weight target / propensity, (n,). The weight is 0 if either probability is missing."""
        weight = np.zeros(len(self))
        with np.errstate(over="ignore"):
            np.divide(self.target, self.propensity, out=weight, where=self.is_usable)
        return np.minimum(weight, _MAX_WEIGHT)

    @cached_property
    def core_columns(self) -> dict[str, Array]:
        """Return, by name, the columns that diagnostics, lifts and Cressie-Read need for any estimator. For each row,
        they are whether it has a weight, its reward if so, its weight, and the product of reward and weight."""
        rows = self.is_usable.astype(np.float64)
        columns = (rows, rows * self.reward, self.weight, self.weight * self.reward)
        return dict(zip(CORE_COLUMNS, columns, strict=True))


def require(name: str, column: Array, is_valid: Flags, requirement: str) -> None:
    """Raise InputError if a value of the column is not valid. It names the first such row, and the requirement."""
    if not is_valid.all():
        row = int(np.argmin(is_valid))
        raise InputError(f"{name} of row {row} of the batch is {column[row]}; it must be {requirement}")


class Statistic(Protocol):
    """A Statistic computes an estimate as a smooth function of mean terms, and the derivative of this function."""

    def value(self, mean: Array) -> Array:
        """Return the estimate, (...,), at the mean terms, (..., d)."""

    def gradient(self, mean: Array) -> Array:
        """Return the derivative of the estimate with respect to the mean terms, (..., d)."""


class Ratio:
    """A Ratio divides the first mean term by the second. Most estimates have this form."""

    def value(self, mean: Array) -> Array:
        return mean[..., 0] / mean[..., 1]

    def gradient(self, mean: Array) -> Array:
        numerator, denominator = mean[..., 0], mean[..., 1]
        return np.stack([np.ones_like(numerator), -numerator / denominator], axis=-1) / denominator[..., None]


@dataclass(frozen=True)
class Estimator(Ratio, ABC):
    """Estimator is the base of all estimators. An estimator is a ratio, unless it has its own `value` and `gradient`.
    The object holds parameters and no data. A new estimator needs a class (a dataclass, if it has parameters) and a
    name in the registry. The docstring of the class appears in the help of `evaluate`.

    `value` must not change when all columns are multiplied by one number (every estimate here is a ratio of sums).
    It therefore accepts means per cluster or per block, or plain sums, and the delta-method error needs no centring."""

    unit: ClassVar[str]  # one row of the estimate: impression, slate or session
    uses_weights: ClassVar[bool] = True  # importance weights; rows without a propensity are left out
    needs_model: ClassVar[bool] = False  # uses a reward model; the batch must have `predicted` and `expected`
    is_self_normalised: ClassVar[bool] = False  # stays within the reward's range, at which bounds are cut
    intervals: ClassVar[tuple[str, ...]] = ("normal", "bootstrap-t")  # valid for it; () if none is
    weight_column: ClassVar[str] = "weight"  # the column of the weights that it sums, with mean 1
    widens_interval: ClassVar[bool] = False  # with large weights, its interval is at least that of Cressie and Read
    has_independent_slots: ClassVar[bool] = False  # assumes that a slot's reward does not depend on the other slots
    is_biased: ClassVar[bool] = (
        False  # changes weights on purpose, by `distortion`; `enclosing_estimators` have its bounds
    )
    needs_all_rows: ClassVar[bool] = False  # has no estimate where some row cannot be weighed
    sees_visits: ClassVar[bool] = False  # counts what a page changes later in its visit
    lack_reason: ClassVar[str] = "no-propensity"  # the reason where rows that cannot be weighed are left out

    @property
    def name(self) -> str:
        """Return the name of the estimator's class in lower case, with hyphens, so that SwitchDr is switch-dr."""
        return re.sub(r"\B(?=[A-Z])", "-", type(self).__name__).lower()

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns that `value` takes. The first column is a cluster's contribution to the
        numerator; the second is the denominator, a number of rows or a weight. A name means the same column in all
        estimators."""

    @property
    def prefix(self) -> str:
        """Return the prefix of the estimator's column names in a fold whose estimators have different weights."""
        return ""

    def enclosing_estimators(self, least: float = 0.0, largest: float = 0.0) -> tuple[Any, ...]:
        """Return three estimators whose bounds enclose a biased estimate, or nothing if the estimate is not biased.
        They are the same estimator without the bias, with the smallest value that the log allows, and with the largest
        value.

        least, largest: the smallest and the largest reward; the columns do not depend on them."""
        return ()


class ImpressionEstimator(Estimator):
    """ImpressionEstimator is the base of the estimators whose rows are impressions."""

    unit: ClassVar[str] = "impression"
    has_independent_slots: ClassVar[bool] = True

    def terms(self, batch: LogBatch) -> Array:
        """Return the terms of every row, (n, d), in the order of `columns`, to be summed per cluster."""
        return np.column_stack([batch.core_columns[name] for name in self.columns])

    def distortion(self, batch: LogBatch) -> Array:
        """Return |unchanged weight - weight used| of every row, (n,), which is 0 if the estimator changes no
        weights."""
        return np.zeros(len(batch))


def hash_bits(ids: Ids, *, salt: int) -> npt.NDArray[np.uint64]:
    """Return 64 well-mixed bits for every id or digest, (n,), which are the same on every machine. Different salts give
    unrelated bits. The bits define blocks and cross-fitting folds. Source: the finaliser of SplitMix64."""
    mixed_bits = ids.astype(np.int64).view(np.uint64) + np.uint64((salt + 1) * 0x9E3779B97F4A7C15 % 2**64)
    mixed_bits = (mixed_bits ^ (mixed_bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed_bits = (mixed_bits ^ (mixed_bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed_bits ^ (mixed_bits >> np.uint64(31))


def require_positive(label: str, value: float, *, example: str) -> None:
    """Raise InputError, with `example` in its hint, unless the parameter `label` is a finite number above 0."""
    if not 0 < value < np.inf:
        raise InputError(f"{label} is {value}", hint=f"give a finite number above 0, as {example}")


def predictions_of(batch: LogBatch, name: str) -> tuple[Array, Array]:
    """Return `predicted` and `expected` of the batch. Raises InputError if it has no reward model. `name` is the
    estimator."""
    if batch.predicted is None or batch.expected is None:
        raise InputError(f"{name} needs a reward model", hint="give one, or use ips or snips")
    return batch.predicted, batch.expected
