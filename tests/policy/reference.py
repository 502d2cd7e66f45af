"""Independent answers: exact enumeration of what the sampler does, and quadrature through scipy's Beta functions."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from math import factorial

import numpy as np
from scipy import special, stats

from rlrec.arrays import Array
from rlrec.policy.scores.families.beta import Beta, BetaLogit
from rlrec.policy.scores.sweep import ContinuousOrder

Order = tuple[int, ...]
Polynomial = list[Fraction]


def pages(orders: Mapping[Order, Fraction], size: int, floor: Fraction) -> dict[Order, Fraction]:
    """Probability of every ordered page, by playing the procedure through on every order of the vector."""
    result: dict[Order, Fraction] = defaultdict(Fraction)

    def fill(page: Order, left: Order, chance: Fraction) -> None:
        if len(page) == size:
            result[page] += chance
            return
        for arm in left:
            share = floor / len(left) + (1 - floor) * (arm == left[0])
            if share:
                fill((*page, arm), tuple(a for a in left if a != arm), chance * share)

    for order, chance in orders.items():
        fill((), order, chance)
    return result


def beta_orders(alpha: Sequence[int], beta: Sequence[int]) -> dict[Order, Fraction]:
    """Probability of every order of Beta scores with whole parameters: their densities are polynomials."""
    densities = [_beta_density(a, b) for a, b in zip(alpha, beta, strict=True)]
    result = {}
    for order in itertools.permutations(range(len(alpha))):
        below: Polynomial = [Fraction(1)]
        for arm in reversed(order):  # from the smallest score up
            below = _integrated(_product(densities[arm], below))
        result[order] = sum(below, Fraction(0))  # at 1
    return result


def luce_orders(weights: Sequence[int]) -> dict[Order, Fraction]:
    """Probability of every order when each place goes to an arm left in proportion to its weight."""
    result = {}
    for order in itertools.permutations(range(len(weights))):
        chance = Fraction(1)
        for index, arm in enumerate(order):
            chance *= Fraction(weights[arm], sum(weights[a] for a in order[index:]))
        result[order] = chance
    return result


def point_orders(values: Sequence[float]) -> dict[Order, Fraction]:
    """Probability of every order of fixed scores, equal ones shuffled."""
    allowed = [o for o in itertools.permutations(range(len(values))) if _falls(values[a] for a in o)]
    return {order: Fraction(1, len(allowed)) for order in allowed}


def beta_first(alpha: Array, beta: Array) -> Array:
    """Probability that each Beta score is the largest, with F from scipy's betainc and betaincc.

    Panels end at quantiles of every score, so every density and distribution function is smooth in each of them."""
    edges = np.unique(np.concatenate([_quantiles(a, b) for a, b in zip(alpha, beta, strict=True)]))
    nodes, weights = np.polynomial.legendre.leggauss(20)
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    u = (middle[:, None] + half[:, None] * nodes).ravel()
    w = (half[:, None] * weights).ravel()
    log_cdf = np.array([_log_cdf(a, b, u) for a, b in zip(alpha, beta, strict=True)])
    density = np.array([_density(a, b, u) for a, b in zip(alpha, beta, strict=True)])
    return np.asarray((density * np.exp(log_cdf.sum(axis=0) - log_cdf)) @ w)


def _falls(values: Iterable[float]) -> bool:
    return all(a >= b for a, b in itertools.pairwise(values))


def _beta_density(a: int, b: int) -> Polynomial:
    scale = Fraction(factorial(a + b - 1), factorial(a - 1) * factorial(b - 1))
    power = [Fraction(0)] * (a - 1) + [scale]
    for _ in range(b - 1):
        power = _product(power, [Fraction(1), Fraction(-1)])
    return power


def _product(p: Polynomial, q: Polynomial) -> Polynomial:
    out = [Fraction(0)] * (len(p) + len(q) - 1)
    for i, x in enumerate(p):
        for j, y in enumerate(q):
            out[i + j] += x * y
    return out


def _integrated(p: Polynomial) -> Polynomial:
    return [Fraction(0), *(x / (i + 1) for i, x in enumerate(p))]


def _quantiles(a: float, b: float) -> Array:
    """Logits of quantiles from 1e-17 to 1 - 1e-17; each tail from the side where it is exact, NaN left out.

    Exponential tails (parameters below 1) are cut further, to the scale of the logistic function."""
    p = np.array([1e-17, 1e-14, 1e-11, 1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5])
    with np.errstate(divide="ignore"):
        low, high = special.logit(special.betaincinv(a, b, p)), -special.logit(special.betaincinv(b, a, p))
    edges = np.sort(np.concatenate([low, high]))
    edges = edges[np.isfinite(edges)]
    fine = [np.linspace(s, e, max(2, min(60, int((e - s) / 2) + 2))) for s, e in itertools.pairwise(edges)]
    return np.concatenate(fine)


def _log_cdf(a: float, b: float, u: Array) -> Array:
    """log F from the smaller of x and 1 - x, neither rounded to 1, and from the smaller of F and 1 - F."""
    x, y = special.expit(u), special.expit(-u)
    low = x <= 0.5
    cdf = np.where(low, special.betainc(a, b, x), special.betaincc(b, a, y))
    sf = np.where(low, special.betaincc(a, b, x), special.betainc(b, a, y))
    return np.where(cdf < 0.5, np.log(np.maximum(cdf, 1e-300)), np.log1p(-np.minimum(sf, 0.5)))


def _density(a: float, b: float, u: Array) -> Array:
    x, y = special.expit(u), special.expit(-u)
    return np.where(x <= 0.5, stats.beta.pdf(x, a, b), stats.beta.pdf(y, b, a)) * x * y


def refined_order(scores: Beta, *, positions: int, refinement: int) -> ContinuousOrder:
    """The order of Beta scores as `Beta.order` gives it, on panels that are divided once more."""
    return ContinuousOrder(BetaLogit, scores.alpha, scores.beta, positions=positions, refinement=refinement)
