"""Effects of many arms, shrunk towards their common mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array, Flags

_WIDEST, _SPREADS = 4.0, 161  # spreads that are tried, in units of what effects and errors spread together


@dataclass(frozen=True, eq=False)
class ShrunkEffects:
    """Normal posteriors of effects. mean, sd (k,): of each; prior_mean, prior_sd: of an arm that was never shown."""

    mean: Array
    sd: Array
    prior_mean: float
    prior_sd: float


def shrink(effect: Array, error: Array, usable: Flags) -> ShrunkEffects:
    """Posteriors of effects (k,) with standard errors (k,), normal around a common mean; of those that are not usable,
    the prior, which the others make.

    The common mean and the spread of effects have flat priors and are integrated out: where effects cannot be told from
    noise, their posterior keeps a doubt by which a policy explores.
    Source: Gelman et al. 2013, Bayesian Data Analysis, section 5.4, equations 5.17, 5.20 and 5.21."""
    nothing = np.zeros(len(effect))
    usable = usable & (error > 0)  # none of which is NaN
    if not usable.any():
        return ShrunkEffects(nothing, nothing, 0.0, 0.0)
    y, s = effect[usable], error[usable]
    spread = np.linspace(0, _WIDEST, _SPREADS) * np.sqrt(np.median(s) ** 2 + y.var())
    variance = np.square(spread)[:, None] + np.square(s)
    total = (1 / variance).sum(axis=1)
    centre = (y / variance).sum(axis=1) / total
    log_posterior = -0.5 * (np.log(variance).sum(axis=1) + np.log(total))
    log_posterior -= 0.5 * (np.square(y - centre[:, None]) / variance).sum(axis=1)
    weight = np.exp(log_posterior - log_posterior.max())
    weight /= weight.sum()
    # posteriors given each spread, and their mixture
    share = np.square(s) / variance
    means = share * centre[:, None] + (1 - share) * y
    variances = (1 - share) * np.square(s) + np.square(share) / total[:, None]
    mean, prior_mean = weight @ means, float(weight @ centre)
    prior_variance = float(weight @ (np.square(spread) + 1 / total + np.square(centre))) - prior_mean**2
    posterior = ShrunkEffects(nothing + prior_mean, nothing + np.sqrt(prior_variance), prior_mean, prior_variance**0.5)
    posterior.mean[usable] = mean
    posterior.sd[usable] = np.sqrt(np.maximum(weight @ (variances + np.square(means)) - np.square(mean), 0.0))
    return posterior


def add_effects(posteriors: Sequence[ShrunkEffects], factors: Sequence[float]) -> ShrunkEffects:
    """The posterior of a sum of effects that were shrunk each by itself, each times a factor."""
    pairs = list(zip(posteriors, factors, strict=True))
    return ShrunkEffects(
        mean=np.sum([factor * effects.mean for effects, factor in pairs], axis=0),
        sd=np.sqrt(np.sum([np.square(factor * effects.sd) for effects, factor in pairs], axis=0)),
        prior_mean=sum(factor * effects.prior_mean for effects, factor in pairs),
        prior_sd=float(np.sqrt(sum((factor * effects.prior_sd) ** 2 for effects, factor in pairs))),
    )
