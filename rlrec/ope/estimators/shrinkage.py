"""This module shrinks the estimated effects of many arms towards their common mean, or towards what the events at their
slots predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlrec.arrays import Array, Flags
from rlrec.records import Record

_WIDEST_SPREAD, _N_SPREADS = 4.0, 161  # grid of spreads, in units of the joint spread of effects and errors
_N_LINE_SPREADS, _N_SLOPES = 41, 17  # the same around lines, and grid of spreads of slopes, up to half as wide
_PRIOR_SCALE = 0.3  # scale of the half-Cauchy priors of the spread around lines and of slopes, in units of the errors
MAX_PREDICTORS = 4  # kinds of events that predict effects
_ARMS_PER_KIND = 8  # arms that are needed for each kind of event whose effect is predicted


class ShrunkEffects(Record, kw_only=False, eq=False):
    """A ShrunkEffects object holds normal posteriors of the effects of k arms.

    mean, sd (k,): the mean and standard deviation of the effect of each arm; prior_mean, prior_sd: the mean and
    standard deviation for an arm that was never shown."""

    mean: Array
    sd: Array
    prior_mean: float
    prior_sd: float

    def centre(self, share: Array) -> ShrunkEffects:
        """Return these effects minus their weighted mean. Errors that all arms have in common (if arms come and go) and
        errors that grow with effects shift the mean, but cancel in the differences.

        share (k,): the weight of each arm in the mean; the weights sum to 1."""
        offset = float(share @ self.mean)
        mean, prior_mean = self.mean - offset, self.prior_mean - offset
        rounding_error = 1e-12 * abs(offset)
        return ShrunkEffects(np.where(np.abs(mean) > rounding_error, mean, 0.0), self.sd, prior_mean, self.prior_sd)


def shrink(effect: Array, error: Array, is_usable: Flags, predictors: Array | None = None) -> ShrunkEffects:
    """Return the posteriors of the effects of k arms. The effects are normal around a common mean or, with predictors,
    around a line. Effects that are not usable get the prior that the others imply.

    The common mean and the spread of effects have flat priors and are integrated out: if effects cannot be told from
    noise, their posterior stays wide enough for a policy to explore. With predictors, the spread of effects and the
    spread of slopes (of predictors scaled to spread 1) have half-Cauchy priors; predictors without information get
    slopes near 0. Source: Gelman et al. 2013, Bayesian Data Analysis, section 5.4, equations 5.17, 5.20 and 5.21;
    section 5.7 for the half-Cauchy prior, section 15.3 for slopes.

    effect, error (k,): the estimated effects and their standard errors; predictors (k, p): the predictors of each arm.
    """
    zeros = np.zeros(len(effect))
    is_usable = is_usable & (error > 0)  # which excludes NaN
    if not is_usable.any():
        return ShrunkEffects(zeros, zeros, 0.0, 0.0)
    y, s = effect[is_usable], error[is_usable]
    scale = float(np.sqrt(np.median(s) ** 2 + y.var()))
    z = _standardize_predictors(zeros[:, None] if predictors is None else predictors, is_usable)
    spread = np.linspace(0, _WIDEST_SPREAD, _N_LINE_SPREADS if z.shape[1] else _N_SPREADS) * scale
    variance = np.square(spread)[:, None] + np.square(s)
    lines = [_around_lines(y, s, np.ones((len(y), 1)), variance, np.inf)]
    slopes = np.linspace(0, _WIDEST_SPREAD / 2, _N_SLOPES)[: _N_SLOPES if z.shape[1] else 1] * scale
    design = np.column_stack([np.ones(len(y)), z])
    lines += [_around_lines(y, s, design, variance, slope) for slope in slopes[1:].tolist()]
    log_posterior, means, variances, average_arm, arm_variance = (
        np.concatenate(parts) for parts in zip(*lines, strict=True)
    )
    if z.shape[1]:
        prior_scale = _PRIOR_SCALE * float(np.median(s))
        log_prior = -np.log1p(np.square(slopes / prior_scale))[:, None] - np.log1p(np.square(spread / prior_scale))
        log_posterior = log_posterior + log_prior.ravel()
    weight = np.exp(log_posterior - log_posterior.max())
    weight /= weight.sum()
    # the mixture of the posteriors given each spread, and of the effect of an arm that was never shown
    mean, prior_mean = weight @ means, float(weight @ average_arm)
    arm_variance = arm_variance + np.tile(np.square(spread), len(lines))
    prior_sd = float(np.sqrt(weight @ (arm_variance + np.square(average_arm)) - prior_mean**2))
    posterior = ShrunkEffects(zeros + prior_mean, zeros + prior_sd, prior_mean, prior_sd)
    posterior.mean[is_usable] = mean
    posterior.sd[is_usable] = np.sqrt(np.maximum(weight @ (variances + np.square(means)) - np.square(mean), 0.0))
    return posterior


def shrink_cells(
    arm_effects: ShrunkEffects, effect: Array, error: Array, is_usable: Flags, predictors: Array
) -> list[ShrunkEffects]:
    """Return the posteriors of the effects of k arms in each of c cells. They are normal around the arm's posterior
    over all cells. An arm that was never shown has the prior over all cells.

    arm_effects: the posteriors over all cells; effect, error, is_usable (c, k): the effect of each arm in each cell,
    its standard error, and whether it is usable; predictors (c k, p): the predictors of the difference between a
    cell and all cells."""
    difference = shrink((effect - arm_effects.mean).ravel(), error.ravel(), is_usable.ravel(), predictors)
    mean = arm_effects.mean + difference.mean.reshape(effect.shape)
    sd = np.hypot(arm_effects.sd, difference.sd.reshape(effect.shape))
    return [ShrunkEffects(*cell, arm_effects.prior_mean, arm_effects.prior_sd) for cell in zip(mean, sd, strict=True)]


def _around_lines(y: Array, s: Array, design: Array, variance: Array, slope: float) -> tuple[Array, ...]:
    """Return posteriors of n effects around a line, for each of t values of the spread around it: the logarithm of the
    posterior of the spread (t,), the means and variances of effects (t, n), the mean effect of an average arm (t,), and
    the squared error of the line for any other arm (t,).

    y, s (n,): the effects and their errors; design (n, q): 1 and the predictors; variance (t, n): the squared spread
    plus the squared error of each effect; slope: the spread of the slopes."""
    log_posterior, line, covariance = _lines(y, design, variance, slope)
    shrinkage, line_values = np.square(s) / variance, line @ design.T
    line_variance = np.einsum("nq,tqr,nr->tn", design, covariance, design, optimize=True)
    means = shrinkage * line_values + (1 - shrinkage) * y
    variances = (1 - shrinkage) * np.square(s) + np.square(shrinkage) * line_variance
    average_arm = line[:, 0]
    distance = np.square(line_values - average_arm[:, None]) + line_variance
    return log_posterior, means, variances, average_arm, distance.mean(axis=1)


def _lines(y: Array, design: Array, variance: Array, slope: float) -> tuple[Array, Array, Array]:
    """Return, for each of t values of the spread, the logarithm of its posterior (t,), and the line of y given the
    spread, (t, q), with its covariance.

    y (n,): the effects; design (n, q): 1 and the predictors; variance (t, n): the squared spread plus the squared
    error of each effect; slope: the spread of the slopes."""
    precision = np.full(design.shape[1], slope**-2)
    precision[0] = 0.0  # the common mean has a flat prior
    information = np.einsum("tn,nq,nr->tqr", 1 / variance, design, design, optimize=True) + np.diag(precision)
    covariance = np.linalg.inv(information)
    line = np.einsum("tqr,tr->tq", covariance, (y / variance) @ design)
    misfit = (np.square(y - line @ design.T) / variance).sum(axis=1) + np.square(line) @ precision
    log_posterior = 0.5 * np.log(precision[1:]).sum() - 0.5 * (np.log(variance).sum(axis=1) + misfit)
    return log_posterior - 0.5 * np.linalg.slogdet(information)[1], line, covariance


class LineDraws(Record, kw_only=False, eq=False):
    """A LineDraws object holds n draws of a line and of k effects around it, from their posterior.

    slopes (n, p): the slopes of the line, per unit of each predictor; centres (n, k): the values on the line;
    effects (n, k): the effects, which deviate from the line."""

    slopes: Array
    centres: Array
    effects: Array


def draw_lines(effect: Array, error: Array, predictors: Array, *, draws: int, rng: np.random.Generator) -> LineDraws:
    """Return draws, from their posterior, of a line in predictors and of the k effects that lie around it.

    The spread around the line, and the spread of slopes of predictors scaled to spread 1, have half-Cauchy priors as
    wide as the joint spread of effects and errors. Predictors have errors, too: they are posterior means
    (`joint_rates`), on which slopes equal those on the true rates. Source: Tripuraneni et al. 2023, Choosing a Proxy
    Metric from Past Experiments, for effects of experiments around a line in the effects on proxies; Carroll et al.
    2006, Measurement Error in Nonlinear Models, chapter 4, for posterior means in place of measured values.

    effect, error (k,): the estimated effects and their standard errors; predictors (k, p): the predictors; draws: the
    number of draws."""
    scale = float(np.sqrt(np.median(error) ** 2 + effect.var()))
    predictor_mean, predictor_sd = predictors.mean(axis=0), predictors.std(axis=0)
    design = np.column_stack([np.ones(len(effect)), (predictors - predictor_mean) / predictor_sd])
    spread, slopes = (
        np.linspace(0, _WIDEST_SPREAD, _N_LINE_SPREADS) * scale,
        np.linspace(0, _WIDEST_SPREAD, _N_SLOPES + 1)[1:] * scale,
    )
    variance = np.square(spread)[:, None] + np.square(error)
    fits = [_lines(effect, design, variance, slope) for slope in slopes.tolist()]
    log_posterior, line, covariance = (np.concatenate(parts) for parts in zip(*fits, strict=True))
    log_prior = -np.log1p(np.square(slopes / scale))[:, None] - np.log1p(np.square(spread / scale))
    log_posterior = log_posterior + log_prior.ravel()
    weight = np.exp(log_posterior - log_posterior.max())
    grid_cell = rng.choice(len(weight), draws, p=weight / weight.sum())
    noise = rng.normal(size=(draws, design.shape[1]))
    lines = line[grid_cell] + np.einsum("nqr,nr->nq", np.linalg.cholesky(covariance[grid_cell]), noise)
    shrinkage = np.square(error) / variance[grid_cell % len(spread)]
    line_values = lines @ design.T
    effects = (
        shrinkage * line_values
        + (1 - shrinkage) * effect
        + np.sqrt(1 - shrinkage) * error * rng.normal(size=shrinkage.shape)
    )
    return LineDraws(lines[:, 1:] / predictor_sd, line_values, effects)


def _standardize_predictors(predictors: Array, is_usable: Flags) -> Array:
    """Return the predictors of the n usable effects, scaled to mean 0 and spread 1, (n, p). Predictors that do not vary
    are left out."""
    deviations = predictors[is_usable] - predictors[is_usable].mean(axis=0)
    spread = deviations.std(axis=0)
    is_varying = spread > 1e-9 * np.abs(predictors[is_usable]).max(initial=0.0, axis=0)
    return np.asarray(deviations[:, is_varying] / spread[is_varying])


def event_rates(events: Mapping[str, Array], looks: Array, is_usable: Flags) -> dict[str, Array]:
    """Return, for the kinds of events that differ most between arms, the rate per look of each arm, (k,), shrunk
    towards the mean of all arms. Source: DerSimonian and Laird 1986, for the variance between arms.

    events: for each kind, the sums of values and of squared values at the arm's own slots, (k, 2); looks (k,): the
    sum of the examinations of each arm's slots."""
    is_shown = is_usable & (looks > 0)
    look_total = float(looks[is_shown].sum())
    rates = dict[str, tuple[float, Array]]()
    for kind, sums in events.items():
        value, squares = sums.T
        noise = float(squares[is_shown].sum()) / max(look_total, 1e-300)
        if not noise:
            continue
        mean = float(value[is_shown].sum()) / look_total
        spread = float((np.square(value[is_shown] - mean * looks[is_shown]) / looks[is_shown]).sum())
        n, df = int(is_shown.sum()), look_total - float(np.square(looks[is_shown]).sum()) / look_total
        arm_variance = (spread - (n - 1) * noise) / max(df, 1e-300)
        if arm_variance > 0:
            weight = noise / arm_variance
            rates[kind] = spread / noise, (value + weight * mean) / (looks + weight)
    max_kinds = min(MAX_PREDICTORS, int(is_shown.sum()) // _ARMS_PER_KIND)
    kinds = sorted(rates, key=lambda kind: (-rates[kind][0], kind))[:max_kinds]
    return {kind: rates[kind][1] for kind in kinds}


def joint_rates(values: Array, products: Array, looks: Array) -> tuple[Array, Array]:
    """Return the posterior means (k, p) and covariances (k, p, p) of the rates of p kinds of events at the slots of k
    arms. Rates of different kinds may be correlated.

    values (k, p): the sums of the values; products (p, p): the sums of products of two kinds over all slots; looks
    (k,): the sum of the examinations of each arm's slots, above 0.

    Source: as in `event_rates`, for several kinds; Carroll et al. 2006, section 4.4."""
    look_total = float(looks.sum())
    mean, noise = values.sum(axis=0) / look_total, products / look_total
    distance = values / looks[:, None] - mean
    df = look_total - float(np.square(looks).sum()) / look_total
    arm_covariance = ((distance.T * looks) @ distance - (len(looks) - 1) * noise) / max(df, 1e-300)
    spread, axes = np.linalg.eigh(arm_covariance)
    arm_covariance = (axes * np.maximum(spread, 0.0)) @ axes.T
    posterior = arm_covariance @ np.linalg.pinv(arm_covariance + noise / looks[:, None, None], hermitian=True)
    return mean + np.einsum("kpq,kq->kp", posterior, distance), arm_covariance - posterior @ arm_covariance


def draw_errors(covariance: Array, *, draws: int, rng: np.random.Generator) -> Array:
    """Return normal errors with the given covariances (k, p, p), as (draws, k, p)."""
    spread, axes = np.linalg.eigh(covariance)
    root = axes * np.sqrt(np.maximum(spread, 0.0))[:, None, :]
    errors: Array = np.einsum("kpq,nkq->nkp", root, rng.normal(size=(draws, *covariance.shape[:2])))
    return errors


def columns_of(rates: Mapping[str, Array], arms: int) -> Array:
    """Return p rates of k arms as columns, (k, p)."""
    return np.column_stack([np.zeros((arms, 0)), *rates.values()])


def add_effects(posteriors: Sequence[ShrunkEffects], factors: Sequence[float]) -> ShrunkEffects:
    """Return the posterior of a weighted sum of effects that were shrunk separately. `factors` are the weights."""
    pairs = list(zip(posteriors, factors, strict=True))
    return ShrunkEffects(
        mean=np.sum([factor * effects.mean for effects, factor in pairs], axis=0),
        sd=np.sqrt(np.sum([np.square(factor * effects.sd) for effects, factor in pairs], axis=0)),
        prior_mean=sum(factor * effects.prior_mean for effects, factor in pairs),
        prior_sd=float(np.sqrt(sum((factor * effects.prior_sd) ** 2 for effects, factor in pairs))),
    )
