"""Several loggers in one estimate: each is weighed by the spread of its weights.

The mean over the rows of a logger is unbiased whoever it is, and its variance grows with the mean square of its
weights. So rows count in inverse proportion to that: effective sample sizes add up, and an old log of weights far from
1 cannot outweigh a new one. Source: Agarwal, Basu, Schnabel, Joachims 2017 (weighted IPS), with four changes.

- Each half of the clusters is weighed by the other half. In the same rows a logger whose heavy weights did not occur
  would look precise, and count most where its mean is too low.
- A mean square is at least 1, and that of rows: it is 1 and what sums of clusters spread beyond their sizes. Else long
  sessions would count next to nothing beside an imported log of single rows.
- A logger with fewer than 50 effective rows in both halves counts in proportion to them: its spread is hardly known.
- A logger that could not show what the target shows is left out where others could: its mean is of something else.
  So are those of heavy weights that together add next to nothing: their rows would only spoil shares and tails.

The spread of a logger that learns depends on the rewards that it is to weigh: of arms with equal rates, where that
matters most, estimates are up to a third of a standard error off (`tests/benchmarks/loggers.py`). Rows that count once
are not, and err by up to twice as much, with intervals that cover less."""

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
from rlrec.ope.intervals.tails import chi_square_above
from rlrec.ope.sums.base import hash_bits
from rlrec.ope.units.estimate import COMPARED_ESS, EstimatorFold, LoggerWeight
from rlrec.ope.units.fold import Fold, RowSums, WeightSpread
from rlrec.records import add_each

NEGLIGIBLE_SHARE = 0.05  # of the effective sample size of the other loggers
_SALT = 6


class Stratum(NamedTuple):
    """A logger, None for all of those that are not weighed by themselves, and the half that a cluster lies in, None
    where rows count once, whoever logged them."""

    logger: str | None = None
    half: int | None = None


NO_LOGGER = Stratum()


def halves(cluster: Ids) -> Ids:
    """The half that each cluster lies in, 0 or 1."""
    return (hash_bits(cluster, salt=_SALT) & np.uint64(1)).astype(np.int64)


P = TypeVar("P", bound=Any)  # sums that can be `scaled`, as `RowSums`


@dataclass(frozen=True, eq=False)
class Weighting:
    """How much the rows of each stratum count, (g,) for g ways to weigh; no factors where fewer than two loggers can be
    weighed: then all rows count once. table: the same by logger, for each way to weigh. left_out: loggers whose rows do
    not count; loggers: each by itself, as of `by_logger`."""

    fold: Fold
    factors: Mapping[Stratum, Array] = field(default_factory=dict)
    table: Sequence[Sequence[LoggerWeight]] = ()
    left_out: frozenset[str | None] = frozenset()
    loggers: Mapping[str | None, Sequence[EstimatorFold]] = field(default_factory=dict)

    @classmethod
    def from_strata(
        cls, fold: Fold, *targets: Mapping[Stratum, RowSums], left_out: frozenset[str | None] = frozenset()
    ) -> Self:
        """The weighting of these strata, each half of them by the other one; of several targets that are compared on
        the same rows one weighting, by the spreads of all their weights. left_out: loggers without support; they count
        where there is no other one."""
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
        # how much the rows of a logger count on average
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
        """The sum over the strata that count, in an order of their own."""
        strata = sorted(partials.items(), key=lambda item: (item[0].logger or "", item[0].half or 0))
        weighed_sums = (
            sums.scaled(self.fold.factors(self.factors[stratum])) if stratum in self.factors else sums
            for stratum, sums in strata if stratum.logger not in self.left_out
        )  # fmt: skip
        return reduce(add, weighed_sums)


def by_logger(fold: Fold, partials: Mapping[Stratum, RowSums]) -> dict[str | None, list[EstimatorFold]]:
    """The estimators at the end of the rows of each logger; {} where there is one alone."""
    sums: dict[str | None, RowSums] = {}
    for (logger, _), partial in partials.items():
        sums = add_each(sums, {logger: partial})
    if len(sums) < 2:
        return {}
    return {logger: fold.at_ends(partial) for logger, partial in sums.items()}


def left_out(fold: Fold, *targets: Mapping[str | None, Sequence[EstimatorFold]]) -> frozenset[str | None]:
    """The loggers that do not count for several targets that are compared on the same rows. targets: their estimators
    `by_logger`."""
    unsupported, negligible = set[str | None](), list[set[str | None]]()
    for loggers in targets:
        weighed = {
            logger: {at_end.label: at_end for at_end in at_ends if at_end.has_weights}
            for logger, at_ends in loggers.items()
        }
        supported = {
            logger: at_ends for logger, at_ends in weighed.items()
            if not at_ends or any(at_end.diagnosis.is_supported for at_end in at_ends.values())
        }  # fmt: skip
        unsupported |= weighed.keys() - supported.keys()
        for label in fold.estimators:
            sizes = {
                logger: (at_ends[label].diagnosis.ess or 0.0, at_ends[label].clusters)
                for logger, at_ends in supported.items() if label in at_ends
            }  # fmt: skip
            if sizes:
                negligible.append(negligible_loggers(sizes))
    return frozenset(unsupported | (set.intersection(*negligible) if negligible else set()))


def unlike(loggers: Iterable[Sequence[EstimatorFold]]) -> frozenset[str]:
    """The labels of the estimators by which loggers say different things about one target: more than chance allows, and
    by more than decides nothing. loggers: those that count, as of `by_logger`."""
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
        # the variance between loggers, beyond that of chance
        mean = float(value @ weight / weight.sum())
        spread, freedom = float(weight @ (value - mean) ** 2), len(reliable) - 1
        variance = (spread - freedom) / float(weight.sum() - weight @ weight / weight.sum())
        if alarms(chi_square_above(spread, freedom)) and variance > (MATERIAL * mean) ** 2:
            labels.add(at_ends[0].label)
    return frozenset(labels)


def negligible_loggers(sizes: Mapping[str | None, tuple[float, int]]) -> set[str | None]:
    """The loggers of which few rows are effective, as long as all of them add little to the others. sizes: effective
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
    """The place of a logger among others: the one of all others is the last."""
    return logger is None, logger or ""


def stratum_factors(
    spread: Mapping[Stratum, WeightSpread], left_out: frozenset[str | None] = frozenset()
) -> dict[Stratum, Array]:
    """How much a row of each stratum counts, (g,), each half weighed by the other one. spread: of the weights in each;
    left_out: loggers whose rows count 0."""
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
    # halves of few clusters say little of each other: no weights that leave fewer effective rows than none
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
    """The sum of squares of the weights of rows, as sums over clusters spread beyond the sizes of these."""
    return spread.rows + np.maximum(spread.squares, spread.least) - spread.least


def _factors(spread: WeightSpread, rows: Array) -> Array:
    """How much a row of each logger counts, (l, g), 1 on average over these rows (l, g). spread: of other rows of each,
    (l, g) a column."""
    # the mean square of the weights, at least that of weights of 1
    square = np.maximum(spread.squares, spread.least)
    with np.errstate(divide="ignore", invalid="ignore"):
        trust = np.minimum(1.0, spread.weight**2 / square / (LEAST_ESS / 2))
        precision = np.nan_to_num(spread.rows / _squares_of_rows(spread) * trust)
        factor = precision * rows.sum(axis=0) / (precision * rows).sum(axis=0)
    return np.where(np.isfinite(factor).all(axis=0), factor, 1.0)
