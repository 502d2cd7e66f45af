"""Bounds of a mean by empirical likelihood, for terms that rare and large losses skew."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array

_STEPS = 60  # of the bisection: each halves the logarithm of the tilt
_WIDEST = 40.0  # logarithm of the largest tilt, relative to the spread of the terms


def lower_bound(terms: Array, *, loss: float, reach: float) -> float:
    """Smallest mean of the terms, (m,), and of one more that lies `loss` below their mean, under reweighings w whose
    -2 sum log((m + 1) w) is at most reach^2.

    A normal or studentised bound is too high where losses are rare: a log that happens to hold few of them has a high
    mean and a small error. One loss more than the log holds is what the exact bound of a Poisson count adds, too.
    Source: Owen 1988 (empirical likelihood); Chen, Variyath & Abraham 2008 (a term more than there are)."""
    excess = np.append(terms, terms.mean() - loss)
    least = excess.min()
    excess -= least
    if not excess.any():
        return float(least)
    # weights 1 / (s + term - least): the smaller s, the lower the mean
    low, high, scale = -_WIDEST, _WIDEST, excess.mean()
    for _ in range(_STEPS):
        middle = (low + high) / 2
        density = np.log(np.exp(middle) * scale + excess)
        distance = 2 * (len(excess) * np.log(np.exp(-density).mean()) + density.sum())
        low, high = (middle, high) if distance > reach**2 else (low, middle)
    weight = 1 / (np.exp(high) * scale + excess)
    return float(least + weight @ excess / weight.sum())
