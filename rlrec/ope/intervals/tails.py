"""Functions here compute tail probabilities of Student's t, Hotelling's T^2 and chi-square without scipy, which takes
long to load."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import erfc, exp, isinf, lgamma, log, log1p, pi, sqrt

_MAX_TERMS = 1_000  # of the continued fraction, at most
_MIN_DIVISOR, _TOLERANCE = 1e-300, 1e-15
_LARGE_DF = 1_000  # degrees of freedom above which a quantile is an expansion around the normal one


def t_below(value: float, df: float) -> float:
    """Return the probability that Student's t is at most `value`."""
    tail = _incomplete_beta(df, value * value, df / 2, 0.5) / 2
    return 1 - tail if value > 0 else tail


@lru_cache(maxsize=1_000)
def t_quantile(probability: float, df: float) -> float:
    """Return the quantile of Student's t for a probability in (0, 1). Source: Abramowitz & Stegun 1964, 26.7.5, for
    many degrees of freedom."""
    if probability > 0.5:
        return -t_quantile(1 - probability, df)
    if df < _LARGE_DF:
        peak = exp(lgamma((df + 1) / 2) - lgamma(df / 2)) / sqrt(df * pi)
        power = (df + 1) / 2
        return _solve(lambda t: t_below(t, df), lambda t: peak * (1 + t * t / df) ** -power, probability)
    z = _solve(lambda z: erfc(-z / sqrt(2)) / 2, lambda z: exp(-z * z / 2) / sqrt(2 * pi), probability)
    terms = (
        (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )  # fmt: skip
    return z + sum(term / df**power for power, term in enumerate(terms, 1))


def hotelling_above(t_squared: float, k: int, samples: int) -> float:
    """Return the probability that Hotelling's T^2 exceeds `t_squared`, if it is computed from `samples` vectors of k
    numbers whose true mean is 0. T^2 (samples - k) / (k (samples - 1)) has the F distribution with k and samples - k
    degrees of freedom."""
    return _incomplete_beta(samples - 1, max(t_squared, 0.0), (samples - k) / 2, k / 2)


def chi_square_above(value: float, df: int) -> float:
    """Return the probability that a sum of `df` squares of standard normals exceeds `value`. Source: Abramowitz &
    Stegun 1964, 26.4.4 and 26.4.5."""
    if value <= 0:
        return 1.0
    half, odd = value / 2, df % 2
    powers = (number + odd / 2 for number in range(df // 2))
    return odd * erfc(sqrt(half)) + sum(exp(power * log(half) - half - lgamma(power + 1)) for power in powers)


def _solve(distribution: Callable[[float], float], density: Callable[[float], float], probability: float) -> float:
    """Return the quantile for a probability of at most 1/2, found by Newton's method. The distribution function is
    convex below 0, so no step from 0 overshoots."""
    value, step = 0.0, 1.0
    while step > _TOLERANCE * abs(value):
        step = (distribution(value) - probability) / density(value)
        value -= max(step, 0.0)
    return value


def _incomplete_beta(left: float, right: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b) at x = left / (left + right), to 1e-12 of its value.
    Source: DLMF 8.17.22, by the modified algorithm of Lentz."""
    if not left or not right or isinf(right):
        return float(not right)
    x = left / (left + right)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(right, left, b, a)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) - a * log1p(right / left) - b * log1p(left / right)) / a
    c, d = 1.0, 1 / _avoid_zero(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, _MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _avoid_zero(1 + term * d)
            c = _avoid_zero(1 + term / c)
            fraction *= c * d
        if abs(c * d - 1) < _TOLERANCE:
            break
    return front * fraction


def _avoid_zero(value: float) -> float:
    """Return the value, or the smallest allowed divisor if the value is nearly 0."""
    return value if abs(value) > _MIN_DIVISOR else _MIN_DIVISOR
