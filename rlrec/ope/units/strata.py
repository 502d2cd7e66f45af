"""This module combines the rows of several loggers in one estimate. The rows of a logger count the less, the more their
importance weights vary.

The mean over the rows of any logger is unbiased, and its variance grows with the mean square of its weights. Rows
therefore count in inverse proportion to this mean square: effective sample sizes add up, and an old log with weights
far from 1 cannot outweigh a new one. Source: Agarwal, Basu, Schnabel, Joachims 2017 (weighted IPS), with four
changes.
- For each half of the clusters, the other half decides how much a logger's rows count, and whether they are left out.
  From the same rows, a logger whose heavy weights did not occur would look precise, and count most where its mean is
  too low.
- A mean square is at least 1 and is computed per row: 1 plus the spread of sums of clusters beyond their sizes. Else
  long sessions would count next to nothing beside an imported log of single rows.
- A logger with fewer than 50 effective rows in both halves counts in proportion to them, since its spread is hardly
  known.
- A logger that could not show what the target shows is left out if other loggers could and have more effective rows,
  since its mean estimates something else. So are loggers with heavy weights that together add next to nothing: their
  rows would only spoil shares and tails.
The spread of a logger that learns depends on the rewards that it is to weight. For arms with equal rates, where that
matters most, estimates are off by up to a third of a standard error (`tests/benchmarks/loggers.py`). If each row
counted once they would be unbiased, but with errors up to twice as large and intervals that cover less."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field
from functools import reduce
from itertools import product
from operator import add
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.ope.checks.dependence import is_rejected
from rlrec.ope.checks.reasons import ESS_SHARE, LEAST_ESS
from rlrec.ope.checks.times import MATERIAL_SHARE
from rlrec.ope.intervals.tails import chi_square_above
from rlrec.ope.sums.base import hash_bits
from rlrec.ope.units.estimate import COMPARED_ESS, NEGLIGIBLE_SHARE, EstimatorFold, LoggerWeight
from rlrec.ope.units.fold import Fold, RowSums, WeightSpread
from rlrec.records import Record, add_each

MIN_TARGET_SHARE = 0.5  # share of a target that a logger shows at least to count beside others that tell less
_SALT = 6


class Stratum(NamedTuple):
    """A Stratum names the rows of one logger in one half of the clusters.

    logger: the version of the logger, or None for all loggers without a weight of their own; half: the half of the
    clusters, 0 or 1, or None if all rows count once."""

    logger: str | None = None
    half: int | None = None


NO_LOGGER = Stratum()


def halves(cluster: Ids) -> Ids:
    """Return the half that each cluster is in, 0 or 1."""
    return (hash_bits(cluster, salt=_SALT) & np.uint64(1)).astype(np.int64)


P = TypeVar("P", bound=Any)  # sums that can be multiplied, such as `RowSums`


class Weighting(Record, kw_only=False, eq=False):
    """A Weighting says how much the rows of each stratum count. A stratum is one logger in one half of the clusters.

    factors: the weight of a row of each stratum, (g,) for g estimators with different weights; empty if there are
    fewer than two loggers, so that all rows count once; table: for each of the g estimators, the mean weight of each
    logger; left_out: the strata whose rows do not count; loggers: for each logger, the estimates from its rows
    alone, as returned by `by_logger`."""

    fold: Fold
    factors: Mapping[Stratum, Array] = field(default_factory=dict)
    table: Sequence[Sequence[LoggerWeight]] = ()
    left_out: frozenset[Stratum] = frozenset()
    loggers: Mapping[str | None, Sequence[EstimatorFold]] = field(default_factory=dict)

    @property
    def absent_loggers(self) -> frozenset[str | None]:
        """Return the loggers whose rows are all left out."""
        return frozenset(stratum.logger for stratum in self.left_out) - {
            stratum.logger for stratum in self.factors.keys() - self.left_out
        }

    @classmethod
    def from_strata(
        cls, fold: Fold, *targets: Mapping[Stratum, RowSums], left_out: frozenset[Stratum] = frozenset()
    ) -> Self:
        """Return the weighting that follows from the sums of each stratum (a logger in one half of the clusters). The
        weights in each half are computed from the other half. If several targets are compared on the same rows, they
        get one weighting, from the spread of all their weights.

        targets: for each target, the sums of each stratum; left_out: strata to leave out; they count if their half
        has no other strata."""
        loggers = {stratum.logger for stratum_sums in targets for stratum in stratum_sums if stratum.half is not None}
        if len(loggers) < 2:
            return cls(fold)
        left_out = uncounted_strata({stratum for stratum_sums in targets for stratum in stratum_sums}, left_out)
        spread: dict[Stratum, WeightSpread] = {}
        for stratum_sums, half in product(targets, (0, 1)):
            strata = [stratum for stratum in stratum_sums if stratum.half == half]
            spreads = fold.spreads([stratum_sums[stratum] for stratum in strata]) if strata else []
            spread = add_each(spread, dict(zip(strata, spreads, strict=True)))
        factors = stratum_factors(spread, left_out)
        # the mean weight of the rows of a logger
        table = list[list[LoggerWeight]]()
        logger_names = sorted(loggers, key=_order)
        for weighting_number in range(len(next(iter(factors.values())))):
            rows = {stratum: float(sums.rows[weighting_number]) / len(targets) for stratum, sums in spread.items()}
            counts = {stratum: float(factors[stratum][weighting_number]) * number for stratum, number in rows.items()}
            totals = (
                [sum(logger_sizes.get(Stratum(name, half), 0.0) for half in (0, 1)) for logger_sizes in (rows, counts)]
                for name in logger_names
            )
            table.append([
                LoggerWeight(version=name, rows=int(number), weight=count / number)
                for name, (number, count) in zip(logger_names, totals, strict=True) if number
            ])  # fmt: skip
        return cls(fold, factors, table, left_out)

    def total(self, stratum_sums: Mapping[Stratum, P]) -> P:
        """Return the weighted sum over the strata, added in a fixed order."""
        strata = sorted(stratum_sums.items(), key=lambda item: (item[0].logger or "", item[0].half or 0))
        weighed_sums = (
            sums.scale(self.fold.factors(self.factors[stratum])) if stratum in self.factors else sums
            for stratum, sums in strata if stratum not in self.left_out
        )  # fmt: skip
        return reduce(add, weighed_sums)


def by_logger(fold: Fold, stratum_sums: Mapping[Stratum, RowSums]) -> dict[str | None, list[EstimatorFold]]:
    """Return, for each logger, the objects that compute the estimates from its rows alone. The result is {} if there is
    only one logger. A stratum of `stratum_sums` is a logger in one half of the clusters."""
    sums: dict[str | None, RowSums] = {}
    for (logger, _), row_sums in stratum_sums.items():
        sums = add_each(sums, {logger: row_sums})
    if len(sums) < 2:
        return {}
    return {logger: fold.estimator_folds(row_sums) for logger, row_sums in sums.items()}


def strata_left_out(fold: Fold, *targets: Mapping[Stratum, RowSums]) -> frozenset[Stratum]:
    """Return the strata whose rows should not count. A stratum is one logger in one half of the clusters; each half
    decides which loggers are left out of the other half. Several targets are compared on the same rows."""
    strata = set[Stratum]()
    for half in (0, 1):
        loggers = [
            by_logger(fold, {stratum: sums for stratum, sums in target.items() if stratum.half == half})
            for target in targets
        ]
        strata |= {Stratum(logger, 1 - half) for logger in _left_out(fold, loggers)}
    return frozenset(strata)


def uncounted_strata(strata: Collection[Stratum], excluded_strata: Collection[Stratum]) -> frozenset[Stratum]:
    """Return the strata that do not count. These are the strata to leave out, but not in a half of the clusters in
    which no stratum would be left.

    strata: all strata; excluded_strata: the strata to leave out, as returned by `strata_left_out`."""
    by_half = ({stratum for stratum in strata if stratum.half == half} for half in (0, 1))
    return frozenset(stratum for half in by_half if half - {*excluded_strata} for stratum in half & {*excluded_strata})


def _left_out(fold: Fold, targets: Sequence[Mapping[str | None, Sequence[EstimatorFold]]]) -> frozenset[str | None]:
    """Return the loggers whose rows should not count: loggers that surely could not show a share of 1 - MATERIAL_SHARE
    of what a target shows, and loggers that add next to nothing. If the loggers that could show this share add next to
    nothing, loggers that could show at least half of the target count as well."""
    unsupported_loggers, negligible_sets = set[str | None](), list[set[str | None]]()
    for loggers in targets:
        weighed_loggers = {
            logger: {
                estimator_fold.label: estimator_fold for estimator_fold in estimator_folds if estimator_fold.has_weights
            }
            for logger, estimator_folds in loggers.items()
        }
        supporters, candidates = (
            {
                logger: estimator_folds for logger, estimator_folds in weighed_loggers.items()
                if not estimator_folds
                or any(logger_fold.diagnosis.reaches_mean_weight(limit) for logger_fold in estimator_folds.values())
            }
            for limit in (1 - MATERIAL_SHARE, MIN_TARGET_SHARE)
        )  # fmt: skip
        logger_sizes, all_sizes = (_logger_sizes(fold, group) for group in (supporters, candidates))
        # those that could show it take no precedence where they add next to nothing to those that could show most of it
        if supporters and all(
            _ess(size) <= NEGLIGIBLE_SHARE * _ess(all_sizes[label]) for label, size in logger_sizes.items()
        ):
            supporters, logger_sizes = candidates, all_sizes
        unsupported_loggers |= weighed_loggers.keys() - supporters.keys()
        negligible_sets += map(negligible_loggers, logger_sizes.values())
    return frozenset(unsupported_loggers | (set.intersection(*negligible_sets) if negligible_sets else set()))


def _logger_sizes(
    fold: Fold, loggers: Mapping[str | None, Mapping[str, EstimatorFold]]
) -> dict[str, dict[str | None, tuple[float, int]]]:
    """Return the effective sample size and the number of clusters of each logger, for each label of an estimator.

    loggers: for each logger, the objects that compute its estimates, by label."""
    logger_sizes = {
        label: {
            logger: (estimator_folds[label].diagnosis.ess or 0.0, estimator_folds[label].clusters)
            for logger, estimator_folds in loggers.items() if label in estimator_folds
        }
        for label in fold.estimators
    }  # fmt: skip
    return {label: size for label, size in logger_sizes.items() if size}


def _ess(logger_sizes: Mapping[str | None, tuple[float, int]]) -> float:
    return sum(ess for ess, _ in logger_sizes.values())


def disagreeing_estimators(loggers: Iterable[Sequence[EstimatorFold]]) -> frozenset[str]:
    """Return the labels of the estimators whose estimates differ between loggers, by more than chance and by an amount
    that matters.

    loggers: for each logger that counts, the objects that compute its estimates, as returned by `by_logger`."""
    labels = set[str]()
    for estimator_folds in zip(*loggers, strict=True):
        is_comparable = estimator_folds[0].estimator.intervals
        reliable_values = [
            estimator_fold.value_and_error for estimator_fold in estimator_folds
            if is_comparable and estimator_fold.has_weights and (estimator_fold.diagnosis.ess or 0.0) >= COMPARED_ESS
            and estimator_fold.diagnosis.is_supported
        ]  # fmt: skip
        reliable_values = [(value, error) for value, error in reliable_values if error and np.isfinite(error)]
        if len(reliable_values) < 2:
            continue
        value, weight = np.array([(value, 1 / error**2) for value, error in reliable_values]).T
        # the variance between loggers beyond chance
        mean = float(value @ weight / weight.sum())
        spread, degrees_of_freedom = float(weight @ (value - mean) ** 2), len(reliable_values) - 1
        variance = (spread - degrees_of_freedom) / float(weight.sum() - weight @ weight / weight.sum())
        if is_rejected(chi_square_above(spread, degrees_of_freedom)) and variance > (MATERIAL_SHARE * mean) ** 2:
            labels.add(estimator_folds[0].label)
    return frozenset(labels)


def negligible_loggers(logger_sizes: Mapping[str | None, tuple[float, int]]) -> set[str | None]:
    """Return loggers with few effective rows, which together add little to the other loggers.

    logger_sizes: the effective sample size and the number of clusters of each logger."""
    total, logger_names = sum(ess for ess, _ in logger_sizes.values()), set[str | None]()
    remaining_ess = total
    for name, (ess, n_clusters) in sorted(logger_sizes.items(), key=lambda item: item[1][0] / item[1][1]):
        remaining_ess -= ess
        if ess >= ESS_SHARE * n_clusters or total - remaining_ess > NEGLIGIBLE_SHARE * remaining_ess:
            break
        logger_names.add(name)
    return logger_names


def _order(logger: str | None) -> tuple[bool, str]:
    """Return the sort key of a logger. None (all loggers without a weight of their own) comes last."""
    return logger is None, logger or ""


def stratum_factors(
    spread: Mapping[Stratum, WeightSpread], left_out: frozenset[Stratum] = frozenset()
) -> dict[Stratum, Array]:
    """Return the weight of a row of each stratum (a logger in one half of the clusters), (g,) for g weightings. The
    weights are 1 on average over the rows that count.

    The weights of each half are computed from the other half. The total weight of a half is in proportion to its
    rows of all loggers that count in either half, since which loggers a half leaves out depends on the weights of
    the other half.

    spread: how much the weights of each stratum vary; left_out: the strata whose rows have weight 0."""
    example_columns = vars(next(iter(spread.values())))
    zero_spread = WeightSpread(**{name: np.zeros_like(column) for name, column in example_columns.items()})
    logger_names = sorted({logger for logger, _ in spread}, key=_order)
    strata = [[Stratum(name, half) for name in logger_names] for half in (0, 1)]
    sums = WeightSpread(**{
        column: np.array([[vars(spread.get(stratum, zero_spread))[column] for stratum in half] for half in strata])
        for column in example_columns
    })  # fmt: skip
    is_counted = np.array([[[stratum not in left_out] for stratum in half] for half in strata])
    rows, all_rows = sums.rows * is_counted, sums.rows * is_counted.any(axis=0)
    total = all_rows.sum(axis=1) * (rows.sum(axis=(0, 1)) / all_rows.sum(axis=(0, 1)))
    precise_factors, equal_factors = (
        is_counted * _factors(precision, rows, total[:, None])
        for precision in (_precision(sums)[::-1], np.ones_like(rows))
    )
    # halves with few clusters say little about each other: use no weights that leave fewer effective rows than without
    ess, equal_ess = (
        (factors * sums.weight).sum(axis=(0, 1)) ** 2 / (factors**2 * _squares_of_rows(sums)).sum(axis=(0, 1))
        for factors in (precise_factors, equal_factors)
    )
    factors = np.where(ess >= equal_ess, precise_factors, equal_factors)
    return {stratum: factors[stratum.half or 0, logger_names.index(stratum.logger)] for stratum in spread}


def _squares_of_rows(spread: WeightSpread) -> Array:
    """Return the sum of squared weights as if rows were independent, at least the sum for weights of 1. It is the
    number of rows, plus the excess of squared weights of clusters over the squared sizes of the clusters."""
    return spread.rows + np.maximum(spread.squares, spread.least) - spread.least


def _precision(spread: WeightSpread) -> Array:
    """Return the precision of a row of each of l loggers in each half, (2, l, g). If the weights sum to less than the
    number of rows, the missing weight counts as the weight of one row that did not occur in the log.

    spread: sums of the weights, with columns (2, l, g)."""
    square = np.maximum(np.maximum(spread.squares, spread.least), np.maximum(spread.rows - spread.weight, 0.0) ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        trust = np.minimum(1.0, spread.weight**2 / square / (LEAST_ESS / 2))
        return np.nan_to_num(spread.rows / (spread.rows + square - spread.least) * trust)


def _factors(precision: Array, rows: Array, total: Array) -> Array:
    """Return the weight of a row of each of l loggers in each half, (2, l, g), in proportion to its precision. The
    weights are equal in a half in which no logger has a precision above 0.

    precision (2, l, g): the precision of a row; rows (2, l, g): the numbers of rows; total (2, 1, g): the sum of the
    weights of these rows."""
    with np.errstate(divide="ignore", invalid="ignore"):
        factor, equal_factors = (
            share * total / (share * rows).sum(axis=1, keepdims=True) for share in (precision, np.ones_like(rows))
        )
    return np.where(np.isfinite(factor).all(axis=1, keepdims=True), factor, np.nan_to_num(equal_factors))
