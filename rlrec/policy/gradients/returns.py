"""Returns of visits: what came after a decision, and how potentials reshape it."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.errors import InputError


def discounted(reward: Array, start: Ids, *, gamma: float) -> Array:
    """Return of every step, (n,), in the unit of `reward`; visits lie end to end.

    reward (n,); start (s + 1,) where each visit begins, and the end of the last; gamma per step, in [0, 1].
    Raises InputError unless every visit has a step and gamma lies in [0, 1]. Source: Sutton & Barto 2018, eq. 3.8."""
    if not 0 <= gamma <= 1:
        raise InputError(f"gamma is {gamma:g}", hint="it lies between 0 and 1")
    if len(start) == 0 or start[0] != 0 or start[-1] != len(reward) or (np.diff(start) < 1).any():
        raise InputError("visits do not lie end to end")
    value = np.array(reward, np.float64)
    length = np.diff(start)
    order = np.argsort(-length, kind="stable")
    begins, lengths = start[:-1][order], length[order]
    for step in range(int(lengths.max(initial=0)) - 2, -1, -1):
        rows = begins[: np.searchsorted(-lengths, -(step + 2), side="right")] + step
        value[rows] += gamma * value[rows + 1]
    return value


def steps(start: Ids) -> Ids:
    """The step of each decision in its visit, from 0, (n,). start (s + 1,) as in `discounted`."""
    return np.arange(start[-1]) - np.repeat(start[:-1], np.diff(start))


def shape_returns(returns: Array, potential: Array) -> Array:
    """Returns under the rewards r + gamma Phi(s') - Phi(s), Phi 0 after the end: they lose the potential of their
    state, and no policy changes its rank.

    returns, potential (n,), in the unit of the reward. Source: Ng, Harada & Russell 1999 (own derivation of the sum,
    which telescopes)."""
    return returns - potential
