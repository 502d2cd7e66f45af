"""Pages of 2 of 5 arms, all 20 of them, and what each arm does."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from rlrec.arrays import Array, Ids

EFFECT = np.array([-0.3, -0.1, 0.0, 0.1, 0.25])
EXAMINATION = np.array([1.0, 0.5])
SLATES = np.array(list(permutations(range(5), 2)))


def chances(strength: Array) -> Array:
    """The probability of each of SLATES."""
    first, second = strength[SLATES].T
    return np.asarray(first / strength.sum() * second / (strength.sum() - first))


def looks(slates: Ids) -> Array:
    """How often each arm is looked at on each page, (n, 5)."""
    shown = np.zeros((len(slates), 5))
    for position, column in enumerate(slates.T):
        shown[np.arange(len(slates)), column] += EXAMINATION[position]
    return shown
