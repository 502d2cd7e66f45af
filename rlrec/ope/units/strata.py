"""Several loggers in one estimate: each is weighted by the spread of its weights.

The mean over the rows of any logger is unbiased, and its variance grows with the mean square of its weights. Rows
therefore count in inverse proportion to that: effective sample sizes add up, and an old log with weights far from 1
cannot outweigh a new one. Source: Agarwal, Basu, Schnabel, Joachims 2017 (weighted IPS), with four changes.
- The weight of each half of the clusters is computed from the other half. From the same rows, a logger whose heavy
  weights did not occur would look precise, and count most where its mean is too low.
- A mean square is at least 1 and is computed per row: 1 plus the spread of sums of clusters beyond their sizes. Else
  long sessions would count next to nothing beside an imported log of single rows.
- A logger with fewer than 50 effective rows in both halves counts in proportion to them, since its spread is hardly
  known.
- A logger that could not show what the target shows is left out where others could and tell more, since its mean
  estimates something else. So are loggers with heavy weights that together add next to nothing: their rows would only
  spoil shares and tails.
The spread of a logger that learns depends on the rewards that it is to weight. For arms with equal rates, where that
matters most, estimates are off by up to a third of a standard error (`tests/benchmarks/loggers.py`). If each row
counted once they would be unbiased, but with errors up to twice as large and intervals that cover less."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import product
from operator import add
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.ope.checks.dependence import alarms
from rlrec.ope.checks.reasons import ESS_SHARE, LEAST_ESS
from rlrec.ope.checks.times import MATERIAL
from rlrec.ope.checks.verdicts import LEAST_MEAN_WEIGHT
from rlrec.ope.intervals.tails import chi_square_above
from rlrec.ope.sums.base import hash_bits
from rlrec.ope.units.estimate import COMPARED_ESS, EstimatorFold, LoggerWeight
from rlrec.ope.units.fold import Fold, RowSums, WeightSpread
from rlrec.records import add_each

MOST_OF_TARGET = 0.5  # share of a target that a logger shows at least to count beside others that tell less
NEGLIGIBLE_SHARE = 0.05  # of the effective sample size of the other loggers
_SALT = 6


class Stratum(NamedTuple):
    """A logger (None: all loggers without a weight of their own) and the half of the clusters (None where all rows
    count once)."""

    logger: str | None = None
    half: int | None = None


NO_LOGGER = Stratum()


def halves(cluster: Ids) -> Ids:
    """The half of each cluster, 0 or 1."""
    return (hash_bits(cluster, salt=_SALT) & np.uint64(1)).astype(np.int64)


P = TypeVar("P", bound=Any)  # sums that can be `scaled`, such as `RowSums`


@dataclass(frozen=True, eq=False)
class Weighting:
    """The weight of the rows of each stratum, (g,) for g weightings; no factors where fewer than two loggers can be
    weighted: then all rows count once. table: the same by logger, for each weighting. left_out: loggers whose rows do
    not count; loggers: each alone, as returned by `by_logger`."""

    fold: Fold
    factors: Mapping[Stratum, Array] = field(default_factory=dict)
    table: Sequence[Sequence[LoggerWeight]] = ()
    left_out: frozenset[str | None] = frozenset()
    loggers: Mapping[str | None, Sequence[EstimatorFold]] = field(default_factory=dict)

    @classmethod
    def from_strata(
        cls, fold: Fold, *targets: Mapping[Stratum, RowSums], left_out: frozenset[str | None] = frozenset()
    ) -> Self:
        """The weighting of these strata, each half computed from the other one; several targets that are compared on
        the same rows get one weighting, from the spreads of all their weights. left_out: loggers without support; they
        count where there are no others."""
        loggers = {stratum.logger for partials in targets for stratum in partials if stratum.half is not None}
        if len(loggers) < 2:
            return cls(fold)
        left_out = left_out & loggers if loggers - left_out else frozenset()
        spread: dict[Stratum, WeightSpread] = {}
        for partials, half in product(targets, (0, 1)):
            strata = [stratum for stratum in partials if stratum.half == half]
            spreads = fold.spreads([partials[stratum] for stratum in strata]) if strata else []
            spread = add_each(spread, dict(zip(strata, spreads, strict=True)))
        factors = stratum_factors(spread, left_out)
        # the mean weight of the rows of a logger
        table = list[list[LoggerWeight]]()
        names = sorted(loggers, key=_order)
        for way in range(len(next(iter(factors.values())))):
            rows = {stratum: float(sums.rows[way]) / len(targets) for stratum, sums in spread.items()}
            counts = {stratum: float(factors[stratum][way]) * number for stratum, number in rows.items()}
            totals = (
                [sum(sizes.get(Stratum(name, half), 0.0) for half in (0, 1)) for sizes in (rows, counts)]
                for name in names
            )
            table.append([
                LoggerWeight(version=name, rows=int(number), weight=count / number)
                for name, (number, count) in zip(names, totals, strict=True) if number
            ])  # fmt: skip
        return cls(fold, factors, table, left_out)

    def total(self, partials: Mapping[Stratum, P]) -> P:
        """The weighted sum over the strata, in a fixed order."""
        strata = sorted(partials.items(), key=lambda item: (item[0].logger or "", item[0].half or 0))
        weighed_sums = (
            sums.scaled(self.fold.factors(self.factors[stratum])) if stratum in self.factors else sums
            for stratum, sums in strata if stratum.logger not in self.left_out
        )  # fmt: skip
        return reduce(add, weighed_sums)


def by_logger(fold: Fold, partials: Mapping[Stratum, RowSums]) -> dict[str | None, list[EstimatorFold]]:
    """The estimators at the end of each logger's rows; {} where there is only one logger."""
    sums: dict[str | None, RowSums] = {}
    for (logger, _), partial in partials.items():
        sums = add_each(sums, {logger: partial})
    if len(sums) < 2:
        return {}
    return {logger: fold.at_ends(partial) for logger, partial in sums.items()}


def left_out(
    fold: Fold,
    targets: Sequence[Mapping[Stratum, RowSums]],
    loggers: Sequence[Mapping[str | None, Sequence[EstimatorFold]]],
) -> frozenset[str | None]:
    """The loggers that do not count for several targets that are compared on the same rows. loggers: the estimators of
    each target, as returned by `by_logger`. A logger that may have missed what weighs most by chance, which matters
    little, counts as long as the loggers together are supported."""
    strict, lenient = (_left_out(fold, loggers, share) for share in (LEAST_MEAN_WEIGHT, 1 - MATERIAL))
    if strict == lenient:
        return strict
    weighting = Weighting.from_strata(fold, *targets, left_out=lenient)
    at_ends = [at_end for target in targets for at_end in fold.at_ends(weighting.total(target)) if at_end.has_weights]
    return lenient if all(at_end.diagnosis.is_supported for at_end in at_ends) else strict


def _left_out(
    fold: Fold, targets: Sequence[Mapping[str | None, Sequence[EstimatorFold]]], share: float
) -> frozenset[str | None]:
    """The loggers that surely could not show this share of what a target shows, and those that add next to nothing. Of
    the former those that show most of it count where the others add next to nothing to them."""
    unsupported, negligible = set[str | None](), list[set[str | None]]()
    for loggers in targets:
        weighed = {
            logger: {at_end.label: at_end for at_end in at_ends if at_end.has_weights}
            for logger, at_ends in loggers.items()
        }
        supported, candidates = (
            {
                logger: at_ends for logger, at_ends in weighed.items()
                if not at_ends or any(at_end.diagnosis.reaches(limit) for at_end in at_ends.values())
            }
            for limit in (share, MOST_OF_TARGET)
        )  # fmt: skip
        sizes, all_sizes = (_sizes(fold, group) for group in (supported, candidates))
        # those that could show it take no precedence where they add next to nothing to those that could show most of it
        if supported and all(_ess(size) <= NEGLIGIBLE_SHARE * _ess(all_sizes[label]) for label, size in sizes.items()):
            supported, sizes = candidates, all_sizes
        unsupported |= weighed.keys() - supported.keys()
        negligible += map(negligible_loggers, sizes.values())
    return frozenset(unsupported | (set.intersection(*negligible) if negligible else set()))


def _sizes(
    fold: Fold, loggers: Mapping[str | None, Mapping[str, EstimatorFold]]
) -> dict[str, dict[str | None, tuple[float, int]]]:
    """The effective sample size and the clusters of each logger, by the label of the estimator. loggers: the estimators
    of each, by label."""
    sizes = {
        label: {
            logger: (at_ends[label].diagnosis.ess or 0.0, at_ends[label].clusters)
            for logger, at_ends in loggers.items() if label in at_ends
        }
        for label in fold.estimators
    }  # fmt: skip
    return {label: size for label, size in sizes.items() if size}


def _ess(sizes: Mapping[str | None, tuple[float, int]]) -> float:
    return sum(ess for ess, _ in sizes.values())


def unlike(loggers: Iterable[Sequence[EstimatorFold]]) -> frozenset[str]:
    """The labels of the estimators for which loggers disagree about one target: by more than chance, and by an amount
    that matters. loggers: those that count, as returned by `by_logger`."""
    labels = set[str]()
    for at_ends in zip(*loggers, strict=True):
        is_comparable = at_ends[0].estimator.intervals
        reliable = [
            at_end.value_and_error for at_end in at_ends
            if is_comparable and at_end.has_weights and (at_end.diagnosis.ess or 0.0) >= COMPARED_ESS
            and at_end.diagnosis.is_supported
        ]  # fmt: skip
        reliable = [(value, error) for value, error in reliable if error and np.isfinite(error)]
        if len(reliable) < 2:
            continue
        value, weight = np.array([(value, 1 / error**2) for value, error in reliable]).T
        # the variance between loggers beyond chance
        mean = float(value @ weight / weight.sum())
        spread, freedom = float(weight @ (value - mean) ** 2), len(reliable) - 1
        variance = (spread - freedom) / float(weight.sum() - weight @ weight / weight.sum())
        if alarms(chi_square_above(spread, freedom)) and variance > (MATERIAL * mean) ** 2:
            labels.add(at_ends[0].label)
    return frozenset(labels)


def negligible_loggers(sizes: Mapping[str | None, tuple[float, int]]) -> set[str | None]:
    """The loggers with few effective rows, as long as all of them together add little to the others. sizes: effective
    sample size and clusters of each."""
    total, names = sum(ess for ess, _ in sizes.values()), set[str | None]()
    left = total
    for name, (ess, clusters) in sorted(sizes.items(), key=lambda item: item[1][0] / item[1][1]):
        left -= ess
        if ess >= ESS_SHARE * clusters or total - left > NEGLIGIBLE_SHARE * left:
            break
        names.add(name)
    return names


def _order(logger: str | None) -> tuple[bool, str]:
    """The sort key of a logger; the one that stands for all others comes last."""
    return logger is None, logger or ""


def stratum_factors(
    spread: Mapping[Stratum, WeightSpread], left_out: frozenset[str | None] = frozenset()
) -> dict[Stratum, Array]:
    """The weight of a row of each stratum, (g,), each half computed from the other one. spread: of the weights in each;
    left_out: loggers whose rows have weight 0."""
    some = vars(next(iter(spread.values())))
    zero = WeightSpread(**{name: np.zeros_like(column) for name, column in some.items()})
    names = sorted({logger for logger, _ in spread} - left_out, key=_order)
    by_half = []
    for half in (0, 1):
        rows = [vars(spread.get(Stratum(name, half), zero)) for name in names]
        by_half.append(WeightSpread(**{column: np.array([row[column] for row in rows]) for column in some}))
    factors = {stratum: np.zeros_like(zero.rows) for stratum in spread}
    for half in (0, 1):
        half_factors = _factors(by_half[1 - half], by_half[half].rows)
        factors |= {Stratum(name, half): factor for name, factor in zip(names, half_factors, strict=True)}
    # halves with few clusters say little about each other: use no weights that leave fewer effective rows than without
    weighed, once = (np.zeros((2, *zero.rows.shape)) for _ in range(2))
    for stratum, sums in spread.items():
        if stratum.logger not in left_out:
            total = np.array([sums.weight, _squares_of_rows(sums)])
            once += total
            weighed += total * [factors[stratum], factors[stratum] ** 2]
    is_better = weighed[0] ** 2 * once[1] >= once[0] ** 2 * weighed[1]
    return {
        stratum: np.where(is_better | (stratum.logger in left_out), factor, 1.0) for stratum, factor in factors.items()
    }


def _squares_of_rows(spread: WeightSpread) -> Array:
    """The sum of squared weights per row: the number of rows, plus the spread of sums over clusters beyond what their
    sizes explain."""
    return spread.rows + np.maximum(spread.squares, spread.least) - spread.least


def _factors(spread: WeightSpread, rows: Array) -> Array:
    """The weight of a row of each logger, (l, g), 1 on average over the numbers of rows (l, g). spread: of other rows
    of each logger, (l, g) per column."""
    # the mean square of the weights, at least that of weights of 1
    square = np.maximum(spread.squares, spread.least)
    with np.errstate(divide="ignore", invalid="ignore"):
        trust = np.minimum(1.0, spread.weight**2 / square / (LEAST_ESS / 2))
        precision = np.nan_to_num(spread.rows / _squares_of_rows(spread) * trust)
        factor = precision * rows.sum(axis=0) / (precision * rows).sum(axis=0)
    return np.where(np.isfinite(factor).all(axis=0), factor, 1.0)
