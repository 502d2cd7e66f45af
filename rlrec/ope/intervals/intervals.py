"""Functions here compute standard errors and intervals over clusters: normal, bootstrap-t, Cressie-Read.

An unknown bound is infinite here; `estimate.py` reports it as null."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from rlrec.arrays import Array
from rlrec.errors import InputError, suggest
from rlrec.ope.intervals.tails import t_quantile
from rlrec.ope.sums.base import Estimator, Statistic
from rlrec.records import Record

INTERVALS = ("bootstrap-t", "normal", "cressie-read")
REPLICATES = 2000

Bounds = tuple[float, float]
UNKNOWN: Bounds = (-np.inf, np.inf)

# A variance this small, relative to the terms whose difference it is, counts as zero.
_NEGLIGIBLE_SHARE = 1e-12
_MAX_SQUARE_SUM = 1e100  # above it, products in Cressie-Read overflow and there are no bounds


def check_interval(interval: str, level: float, *, estimators: Mapping[str, Estimator]) -> None:
    """Raise InputError for an unknown interval, a level outside (0, 1), or an estimator that lacks this interval.

    An estimator without any valid interval (dm) is accepted, and its bounds are null. But Cressie-Read is refused
    for all estimators except ips and snips."""
    if interval not in INTERVALS:
        hint = suggest(interval, list(INTERVALS)) or f"known: {', '.join(INTERVALS)}"
        raise InputError(f"unknown interval {interval!r}", hint=hint)
    check_level(level)
    if names_without_interval := [
        name for name, kind in estimators.items() if interval not in (kind.intervals or INTERVALS[:2])
    ]:
        message = f"interval {interval} does not exist for {', '.join(names_without_interval)}"
        raise InputError(message, hint="use --interval bootstrap-t")


def check_level(level: float) -> None:
    """Raise InputError unless a level is between 0 and 1."""
    if not 0 < level < 1:
        raise InputError(f"level {level:g} is not between 0 and 1", hint="0.95 is usual")


def value_and_error(estimator: Statistic, total: Array, moment: Array, n: int) -> tuple[Array, Array]:
    """Return the value and the standard error of an estimate, two arrays (...,), from sums over n clusters. The error
    is by the delta method with n - 1.

    total (..., d): the sums of the terms; moment (..., d, d): the sums of the outer products of a cluster's terms.
    An estimate does not change with the scale of its terms, so it is evaluated at the sums; since gradient x total =
    0 (Euler), the moment needs no centring."""
    with np.errstate(all="ignore"):
        # gradient' moment gradient, product by product
        gradient = estimator.gradient(total)
        products = gradient[..., :, None] * moment * gradient[..., None, :]
        raw_variance, gross_variance = products.sum(axis=(-2, -1)), np.abs(products).sum(axis=(-2, -1))
        # a rounding error of 0 counts as 0; overflow stays NaN
        variance = np.where(raw_variance > _NEGLIGIBLE_SHARE * gross_variance, raw_variance, 0.0 * raw_variance) * (
            n / (n - 1) if n > 1 else np.nan
        )
        return estimator.value(total), np.sqrt(variance)


def normal_bounds(value: float, error: float, level: float) -> Bounds:
    """Return value -+ z x error. If the error is 0 the bounds are unknown, since a log without variation does not prove
    certainty."""
    half_width = -NormalDist().inv_cdf((1 - level) / 2) * error
    return (value - half_width, value + half_width) if error > 0 else UNKNOWN


def _draws(seed: int, n_replicates: int, m: int) -> Iterator[npt.NDArray[np.uint16]]:
    """Yield tables (replicates, m), which say how often each of m clusters or blocks is drawn in a replicate of the
    bootstrap. A table has a portion of the replicates."""
    generator, portion = np.random.default_rng(np.random.SeedSequence(seed)), max(1, 2**18 // m)
    for start in range(0, n_replicates, portion):
        size = min(portion, n_replicates - start)
        cells = generator.integers(0, m, size=(size, m)) + np.arange(size)[:, None] * m
        yield np.bincount(cells.ravel(), minlength=size * m).reshape(size, m).astype(np.uint16)


@lru_cache(maxsize=1)
def _usual_draws(seed: int, m: int) -> Sequence[npt.NDArray[np.uint16]]:
    """Return the tables of `REPLICATES` replicates. They are cached, since all estimates from one log share them."""
    return tuple(_draws(seed, REPLICATES, m))


def joint_quantiles(t: Sequence[Array], level: float) -> Bounds:
    """Return two quantiles that bound several statistics t together: the quantile of the smallest t of each replicate,
    and the quantile of the largest. The result is (inf, -inf) without any t.

    t: for each statistic, its value in each of b replicates, (b,)."""
    if not len(t):
        return np.inf, -np.inf
    columns = np.stack(t)
    is_finite = np.isfinite(columns)
    has_finite = is_finite.any(axis=0)
    highest = np.where(is_finite, columns, -np.inf).max(axis=0)[has_finite]
    lowest = np.where(is_finite, columns, np.inf).min(axis=0)[has_finite]
    rank = bounding_rank(level, len(highest))
    return _quantiles(np.sort(lowest), rank)[0], _quantiles(np.sort(highest), rank)[1]


class Studentised(Record, eq=False):
    """This record has an estimate, its error, and its replicates by the studentised bootstrap.

    t (b,): (value* - value) / error* of each replicate; values (b,): value* of each replicate. Both are empty if the
    error is unknown (NaN) or 0."""

    value: float
    error: float
    t: Array = field(default_factory=lambda: np.empty(0))
    values: Array = field(default_factory=lambda: np.empty(0))

    def quantiles(self, level: float) -> Bounds:
        """Return the two quantiles of t that bound an interval of this level."""
        return _quantiles(np.sort(self.t), bounding_rank(level, len(self.t)))

    def bounds(self, level: float, *, least_quantiles: Bounds = (np.inf, -np.inf)) -> Bounds:
        """Return the bounds of the studentised bootstrap, value - t x error, where t are quantiles over replicates. A
        bound is infinite if its quantile is infinite, or if there are too few replicates for the level.

        If a replicate does not vary, its error is 0, and its t is -inf or +inf, by the sign of its difference. A
        replicate without any weight counts as an extreme at both ends.

        least_quantiles: quantiles of t that the bounds must at least reach."""
        if not len(self.t):
            return UNKNOWN
        low, high = self.quantiles(level)
        low, high = min(low, least_quantiles[0]), max(high, least_quantiles[1])
        return self.value - high * self.error, self.value - low * self.error


def studentised_bootstrap(
    estimator: Statistic, units: Array, *, seed: int, n_replicates: int = REPLICATES
) -> Studentised:
    """Return the estimate with its error and its replicates by the studentised bootstrap.

    units (m, d): the sums of each cluster or block; n_replicates: the number of replicates; with 0, only the value
    and the error are computed."""
    return studentised_bootstraps([(estimator, units)], seed=seed, n_replicates=n_replicates)[0]


def studentised_bootstraps(
    samples: Sequence[tuple[Statistic, Array]], *, seed: int, n_replicates: int = REPLICATES
) -> list[Studentised]:  # fmt: skip
    """Return, for each sample, its estimate, error and replicates by the studentised bootstrap. The squared error of a
    replicate is the sum over clusters of count x influence^2, with the gradient of this replicate.

    Draws depend only on the seed and on m, so two targets on one log have the same draws.

    samples: pairs of an estimator and the sums of each cluster or block, (m, d)."""
    sample_figures = [_by_influence(*sample) for sample in samples]
    t, values = ([[np.empty(0)] for _ in samples] for _ in range(2))
    indices_by_size: dict[int, list[int]] = {}
    for index, ((_, units), (_, error, _)) in enumerate(zip(samples, sample_figures, strict=True)):
        if error > 0 and np.isfinite(error):
            indices_by_size.setdefault(len(units), []).append(index)
    for m, indices in indices_by_size.items():
        for draws in _usual_draws(seed, m) if n_replicates == REPLICATES else _draws(seed, n_replicates, m):
            counts = draws.astype(np.float64)
            for index in indices:
                (estimator, units), (value, _, threshold) = samples[index], sample_figures[index]
                with np.errstate(all="ignore"):
                    # totals of the replicates
                    total = counts @ units
                    # squared error: sum over units of count x influence^2
                    influence = estimator.gradient(total) @ units.T
                    np.square(influence, out=influence)
                    errors = np.sqrt(np.einsum("bm,bm->b", counts, influence) * (m / (m - 1)))
                    errors = np.where(errors > threshold, errors, 0.0 * errors)
                    values[index].append(estimator.value(total))
                    t[index].append(_studentise(values[index][-1] - value, errors, scale=abs(value)))
    return [
        Studentised(value=value, error=error, t=np.concatenate(t_chunks), values=np.concatenate(value_chunks))
        for (value, error, _), t_chunks, value_chunks in zip(sample_figures, t, values, strict=True)
    ]


def _by_influence(estimator: Statistic, units: Array) -> tuple[float, float, float]:
    """Return the value, its error, and the size below which an error counts as 0. They are NaN if they do not exist."""
    m, total = len(units), units.sum(axis=0)
    with np.errstate(all="ignore"):
        value, gradient = float(estimator.value(total)), estimator.gradient(total)
        scale = np.sqrt(m / (m - 1)) if m > 1 else np.nan
        error = scale * np.linalg.norm(units @ gradient)
        threshold = _NEGLIGIBLE_SHARE * scale * np.linalg.norm(np.abs(units) @ np.abs(gradient))
        return value, float(error if error > threshold else 0.0 * error), float(threshold)


def bounding_rank(level: float, n_replicates: int) -> int:
    """Return the rank of the replicate that bounds an interval of this level, counted from either end of the sorted
    replicates. The rank is 0 if there are too few replicates."""
    return int((n_replicates + 1) * (1 - level) / 2 + _NEGLIGIBLE_SHARE)


def _studentise(distance: Array, errors: Array, *, scale: float) -> Array:
    """Return distance / error of every replicate, (b,). If the error is 0, the result is infinite with the sign of the
    distance.

    scale: the size of the estimate, relative to which tiny distances count as 0."""
    distance = np.where(np.abs(distance) <= _NEGLIGIBLE_SHARE * scale, 0.0, distance)
    infinite_t = np.where(distance == 0, 0.0, np.copysign(np.inf, distance))
    with np.errstate(all="ignore"):
        t = np.where((errors > 0) & np.isfinite(errors), distance / errors, infinite_t)
    return np.where(np.isnan(distance), np.nan, t)


def _quantiles(t: Array, rank: int) -> Bounds:
    """Return the values of sorted `t` with this rank, counted from the smallest and from the largest. NaN (sorted to
    the end) counts as an extreme at both ends."""
    n_nan = int(np.isnan(t).sum())
    sorted_t, rank = t[: len(t) - n_nan], rank - n_nan
    return (float(sorted_t[rank - 1]), float(sorted_t[-rank])) if rank >= 1 else UNKNOWN


def stretch_bounds(value: float, error: float, bounds: Bounds, replica_values: Sequence[float]) -> tuple[float, Bounds]:
    """Return the error and the bounds of an estimate, widened by the error of a simulation.

    replica_values: the estimate from each of several equal parts of the simulation; the variance of their mean is their
    variance over their number."""
    if len(replica_values) < 2 or not error > 0:
        return error, bounds
    total_error = float(np.hypot(error, np.std(replica_values, ddof=1) / np.sqrt(len(replica_values))))
    low, high = (value + total_error / error * (bound - value) for bound in bounds)
    return total_error, (low, high)


def pull_bounds(bounds: Bounds, outer_bounds: Bounds, share: float) -> Bounds:
    """Return the bounds, moved towards the outer bounds by a share of the distance. A bound stays if the outer bound is
    not farther out, or infinite."""
    (low, high), (outer_low, outer_high) = bounds, outer_bounds
    low_gap = low - outer_low if -np.inf < outer_low < low < np.inf else 0.0
    high_gap = outer_high - high if -np.inf < high < outer_high < np.inf else 0.0
    return low - share * low_gap, high + share * high_gap


def intersection(bounds: Sequence[Bounds], value: float) -> Bounds:
    """Return the bounds that all given bounds share, widened if necessary so that they include the value."""
    return min(value, max(low for low, _ in bounds)), max(value, min(high for _, high in bounds))


class WeightSums(Record):
    """A WeightSums object holds the sums that Cressie-Read needs: the number n of observations, and the sums over them
    of w (the weight), w^2, w r (r is the reward), w^2 r and w^2 r^2."""

    n: int
    w: float
    w2: float
    wr: float
    w2r: float
    w2r2: float


def cressie_read(sums: WeightSums, *, largest: float, reward: Bounds, level: float) -> Bounds:
    """Return bounds for the mean of w x r by power-2 empirical likelihood, given that the mean of w is 1. w is a
    weight, 0 or more, and r a reward.

    largest: the provable bound of w, inf if it is not known; reward: the range of r; an infinite end makes the bound
    at this end infinite. Source: VowpalWabbit/estimators, bandits/cressieread.py (after Karampatziakis, Langford &
    Mineiro 2020), for the statistic and its reference distribution; the closed form is an own derivation, see
    `_lower`."""
    if sums.n < 2 or max(sums.w2, sums.w2r2) > _MAX_SQUARE_SUM:
        return UNKNOWN
    if largest > _MAX_SQUARE_SUM:  # treated as unknown: its square would overflow
        largest = np.inf
    # The likelihood ratio is referred to F(1, n), the square of Student's t.
    spread = _least_spread(sums, largest if sums.w < sums.n else 0.0)
    spread += t_quantile((1 - level) / 2, sums.n) ** 2
    low, high = reward
    lower = min(_lower(sums, fake_weight, low, spread) for fake_weight in (0.0, largest))
    mirrored_sums = replace(sums, wr=-sums.wr, w2r=-sums.w2r)
    upper = -min(_lower(mirrored_sums, fake_weight, -high, spread) for fake_weight in (0.0, largest))
    return (max(low, lower) if lower < np.inf else low), (min(high, upper) if upper > -np.inf else high)


def _least_spread(sums: WeightSums, fake_weight: float) -> float:
    """Return the smallest sum of h^2 with which reweighings 1 + h of the observations have mean weight 1. One
    observation of weight `fake_weight` is added to the n observations."""
    n = sums.n
    if np.isinf(fake_weight):
        return 1 + 1 / n
    mean, square = (fake_weight + sums.w) / (n + 1), (fake_weight**2 + sums.w2) / (n + 1)
    spread = square - mean**2
    return (n + 1) * (mean - 1) ** 2 / spread if spread > _NEGLIGIBLE_SHARE * square else 0.0


def _lower(sums: WeightSums, fake_weight: float, reward: float, spread: float) -> float:
    """Return the smallest mean of w x r over reweighings 1 + h of n observations and an added one, or inf if there are
    no such reweighings. The added one is (fake_weight, reward); h has mean 0, w (1 + h) has mean 1, and sum h^2 <=
    spread.

    The mean weight is 1, so the mean of w r is reward + the mean of z = w (r - reward). z of the added one is 0, so
    a large fake_weight cancels nothing. h = a (w - mean w) - b u, where u is the residual of z after regression on 1
    and w; the constraint on w fixes a = (1 - mean w) / var w, the budget the largest b. As fake_weight grows without
    end, the share of the added one goes to 0 (h = -1) while it supplies the missing weight: then z is averaged over
    h of mean 1 / n."""
    n = sums.n
    if np.isinf(reward):
        return -np.inf
    # sums of z, w z and z^2
    total = sums.wr - reward * sums.w
    cross_sum = sums.w2r - reward * sums.w2
    squares = sums.w2r2 - 2 * reward * sums.w2r + reward**2 * sums.w2
    if np.isinf(fake_weight):
        budget, residual = (spread - 1 - 1 / n) / (n + 1), (squares - total**2 / n) / (n + 1)
        return reward + total / n - _max_change(residual, budget)
    # means and variance of w and z, the fake observation included
    w, z = (fake_weight + sums.w) / (n + 1), total / (n + 1)
    w_spread = (fake_weight**2 + sums.w2) / (n + 1) - w**2
    if w_spread <= _NEGLIGIBLE_SHARE * w**2:
        return np.inf
    # the budget after the constraint on w, and the residual variance of z
    covariance = cross_sum / (n + 1) - w * z
    budget = spread / (n + 1) - (1 - w) ** 2 / w_spread
    residual = squares / (n + 1) - z**2 - covariance**2 / w_spread
    return reward + z + (1 - w) * covariance / w_spread - _max_change(residual, budget)


def _max_change(residual: float, budget: float) -> float:
    """Return the largest amount by which reweighing can lower a mean, or -inf for a negative budget.

    residual: the variance of what is averaged; budget: the largest mean square of h, where weights are 1 + h."""
    return float(np.sqrt(max(residual, 0.0) * budget)) if budget >= 0 else -np.inf


# -- estimates of differences: smooth functions of the sums of both sides, whose columns lie side by side --

N_LOGGED_COLUMNS = 2  # columns of the log: the logged rewards, and the rows


class Minus(Record, kw_only=False):
    """A Minus computes the estimate of one target minus a baseline, from the columns of the target followed by those of
    the baseline.

    estimator: the estimator of the target; baseline: the logged average, computed from `N_LOGGED_COLUMNS` columns,
    or None if the baseline is another target with the same estimator."""

    estimator: Statistic
    baseline: Statistic | None = None

    def sides(self, mean: Array) -> tuple[Array, Array]:
        """Return two parts of the mean terms: the columns of the target, and the columns of the baseline."""
        column_cut = mean.shape[-1] // 2 if self.baseline is None else -N_LOGGED_COLUMNS
        return mean[..., :column_cut], mean[..., column_cut:]

    def scale(self, mean: Array) -> Array:
        """Return the amount of reward that counts as a difference of 1."""
        return np.ones(mean.shape[:-1])

    def base(self, mean: Array) -> float:
        """Return the value of the baseline, which the difference is relative to, at the mean terms."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float((self.baseline or self.estimator).value(self.sides(mean)[1]))

    def value(self, mean: Array) -> Array:
        target, reference = self.sides(mean)
        return self.estimator.value(target) - (self.baseline or self.estimator).value(reference)

    def gradient(self, mean: Array) -> Array:
        target, reference = self.sides(mean)
        reference_gradient = (self.baseline or self.estimator).gradient(reference)
        return np.concatenate([self.estimator.gradient(target), -reference_gradient], axis=-1)


class Relative(Minus, kw_only=False):
    """A Relative computes the difference between a target and a baseline, as a share of the size of the baseline."""

    def value(self, mean: Array) -> Array:
        return super().value(mean) / self.scale(mean)

    def gradient(self, mean: Array) -> Array:
        target, reference = self.sides(mean)
        baseline, size = self.baseline or self.estimator, self.scale(mean)[..., None]
        ratio = (self.estimator.value(target) / baseline.value(reference))[..., None]
        return np.concatenate([self.estimator.gradient(target), -ratio * baseline.gradient(reference)], axis=-1) / size

    def base(self, mean: Array) -> float:
        return 1.0

    def scale(self, mean: Array) -> Array:
        return np.abs((self.baseline or self.estimator).value(self.sides(mean)[1]))
