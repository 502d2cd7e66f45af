"""This module computes Gauss-Legendre nodes and weights, Legendre polynomials and Legendre series.

The numpy functions for this purpose take longer to load than to run."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array

# positive nodes and their weights, to the last digit (from 40 digits; a test holds them equal to numpy's)
_GAUSS = {
    4: ((0.33998104358485626, 0.6521451548625461), (0.8611363115940526, 0.34785484513745385)),
    16: (
        (0.09501250983763744, 0.1894506104550685),
        (0.2816035507792589, 0.18260341504492358),
        (0.45801677765722737, 0.16915651939500254),
        (0.6178762444026438, 0.14959598881657674),
        (0.755404408355003, 0.12462897125553388),
        (0.8656312023878318, 0.09515851168249279),
        (0.9445750230732326, 0.062253523938647894),
        (0.9894009349916499, 0.027152459411754096),
    ),
}


def gauss(n: int) -> tuple[Array, Array]:
    """Return two arrays (n,): the nodes of the Gauss-Legendre rule on [-1, 1], in increasing order, and their weights.
    The rule is exact for polynomials up to degree 2 n - 1. n is 4 or 16."""
    nodes, weights = np.array(_GAUSS[n]).T
    return np.concatenate([-nodes[::-1], nodes]), np.concatenate([weights[::-1], weights])


def polynomials(x: Array, degree: int) -> Array:
    """Return the values of the Legendre polynomials of degree 0 to `degree` at points x, (n, degree + 1).

    x (n,): the points."""
    p = np.ones((degree + 1, len(x)))
    p[1:] = x
    for k in range(2, degree + 1):
        p[k] = ((2 * k - 1) * x * p[k - 1] - (k - 1) * p[k - 2]) / k
    return p.T


def evaluate(x: Array, series: Array) -> Array:
    """Return the value of each of n Legendre series at one point, (n,).

    x (n,): the point of each series; series (terms, n): the coefficients of each series, at least two. Source:
    Clenshaw's recurrence."""
    low, high = series[-2], series[-1]
    for k in range(len(series) - 1, 1, -1):
        low, high = series[k - 2] - high * ((k - 1) / k), low + high * x * ((2 * k - 1) / k)
    return low + high * x
