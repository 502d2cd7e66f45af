"""Exact Thompson probabilities, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import numpy as np

from rlrec.arrays import Array
from tests.benchmarks.measure import Figure, Sample, Setting, growth, medians, timed
from tests.benchmarks.shops import posteriors

GOALS = {100: 5.0, 300: None, 1_000: 60.0}  # milliseconds by arms
NODES = 512  # of the references


def exact(setting: Setting) -> Iterator[Figure]:
    """Time and error for 100 and 1,000 distinct posteriors, each time of a belief that was not seen before."""
    from rlrec.policy.scores.families.beta import Beta
    from rlrec.policy.slates.slate import p_first

    fresh, spent = count(1), {}
    for arms, goal in GOALS.items():
        alpha, beta = np.array(posteriors(arms)).T
        result = p_first(Beta(alpha, beta), floor=0.0)

        def ours(alpha: Array = alpha, beta: Array = beta) -> Sample:
            scores = Beta(alpha * (1 + 1e-6 * next(fresh)), beta)
            return timed(lambda: p_first(scores, floor=0.0))

        calls: dict[str, Callable[[], Sample]] = {
            "ours": ours,
            "loop": partial(timed, partial(loop, alpha, beta)),
            "gemm": partial(timed, partial(gemm, arms)),
        }
        medians(2, calls)
        taken = {name: 1000 * setting.seconds(item) for name, item in medians(setting.times(31), calls).items()}
        spent[arms] = taken["ours"] / 1000
        error = float(np.abs(result - by_scipy(alpha, beta)).max())
        name = f"exact Thompson probabilities, {arms:,} arms"
        yield Figure(name=name, value=taken["ours"], unit="ms", at_most=goal)
        yield Figure(name=f"{name}: error", value=error, unit="", at_most=1e-9)
        yield Figure(name=f"{name}: to a numpy loop", value=taken["ours"], unit="ms", reference=taken["loop"])
        yield Figure(name=f"{name}: to a GEMM", value=taken["ours"], unit="ms", reference=taken["gemm"])
    yield growth("exact Thompson probabilities, arms", spent)


def loop(alpha: Array, beta: Array) -> Array:
    """The same probabilities as a person would write them in numpy: one even grid, sums for integrals; few digits."""
    mean = alpha / (alpha + beta)
    spread = np.sqrt(mean * (1 - mean) / (alpha + beta))
    x = np.linspace((mean - 4 * spread).max(), min((mean + 8 * spread).max(), 1 - 1e-9), NODES)
    log_density = np.column_stack([alpha - 1, beta - 1]) @ np.vstack([np.log(x), np.log1p(-x)])
    density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    density /= density.sum(axis=1, keepdims=True)
    cdf = np.maximum(np.cumsum(density, axis=1), 1e-300)
    return np.asarray((density / cdf) @ np.exp(np.log(cdf).sum(axis=0)))


def gemm(arms: int) -> Array:
    """A matrix product of arms x nodes with nodes x arms."""
    matrix = np.ones((arms, NODES))
    return np.asarray(matrix @ matrix.T)


def by_scipy(alpha: Array, beta: Array) -> Array:
    """The same probabilities by the trapezoidal rule on logits with scipy's betainc, some digits beyond 1e-12."""
    from scipy import special

    narrowest = float(np.sqrt(1 / alpha + 1 / beta).min())
    logits = np.arange(-14.0, 4.0, narrowest / 6)
    x, y = special.expit(logits), special.expit(-logits)
    below = np.array([special.betainc(a, b, x) for a, b in zip(alpha, beta, strict=True)])
    above = np.array([special.betaincc(a, b, x) for a, b in zip(alpha, beta, strict=True)])
    with np.errstate(divide="ignore"):
        log_cdf = np.maximum(np.where(above < 0.5, np.log1p(-above), np.log(below)), -700.0)
    constant = special.betaln(alpha, beta)[:, None]
    density = np.exp(alpha[:, None] * np.log(x) + beta[:, None] * np.log(y) - constant)
    return np.asarray((density * np.exp(log_cdf.sum(axis=0) - log_cdf)).sum(axis=1) * narrowest / 6)
