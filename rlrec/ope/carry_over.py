"""A test of carry-over: whether a reward depends on what its visit has already been through.

Estimates per impression judge a target in the states that the logger caused. Where a reward depends on the step of the
visit, or on how often the visit has seen the arm, the target would cause other states and earn something else. The test
compares rewards of the same arm at the same position only, by a linear model of log step and log repeats (earlier
slates of the visit that showed the arm). Readers who stay long may differ from others from their first step on: the log
of the visit's length, and its square, take that up.

Source: own derivation; errors by the jackknife over 64 blocks of clusters, a Wald test with the F distribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.ope.base import hash_bits
from rlrec.records import Sums

ALPHA = 1e-3  # false alarms of the test
CELLS = 2048  # pairs of arm and position that are compared, at most
_BLOCKS = 64
_LEAST = 20  # blocks with rows, for a test
_TESTED = 2  # the first columns, step and repeats; the others are controls
_COLUMNS = 5  # step, repeats, length, its square; reward
_SALT = 3
_CONSTANT = 1e-9  # share of the variance within cells, below which a column is constant there


@dataclass(frozen=True, eq=False)
class CarryOverSums(Sums):
    """Sums over rows that add up.

    cells (64, c, 6): per block of clusters and cell, of the five columns and of 1
    moments (64, 5, 5): per block, of the products of two columns"""

    cells: Array
    moments: Array


def carry_over_sums(
    reward: Array, *, cell: Ids, cells: int, step: Ids, repeats: Ids, length: Ids, cluster: Ids
) -> CarryOverSums:
    """Sums of one batch, (n,) each. cell: number of the arm and position, from 0; below 0: not compared. step: of the
    visit, from 0; repeats: earlier slates of the visit that showed the arm; length: decisions of the visit."""
    rows = cell >= 0
    stay = np.log1p(length[rows])
    columns = np.array([np.log1p(step[rows]), np.log1p(repeats[rows]), stay, stay**2, reward[rows]])
    block = (hash_bits(cluster[rows], salt=_SALT) % np.uint64(_BLOCKS)).astype(np.int64)
    # sums per block and cell
    index, shape = block * cells + cell[rows], (_BLOCKS, cells)
    sums = [np.bincount(index, weights=column, minlength=_BLOCKS * cells) for column in columns]
    sums.append(np.bincount(index, minlength=_BLOCKS * cells).astype(np.float64))
    # products of two columns per block
    moments = np.empty((_BLOCKS, _COLUMNS, _COLUMNS))
    for i in range(_COLUMNS):
        for j in range(i + 1):
            moments[:, i, j] = np.bincount(block, weights=columns[i] * columns[j], minlength=_BLOCKS)
            moments[:, j, i] = moments[:, i, j]
    return CarryOverSums(np.stack([each.reshape(shape) for each in sums], axis=-1), moments)


def is_significant(sums: CarryOverSums) -> bool:
    """Whether rewards depend on step or repeats, with a false alarm in 1 of 1,000 logs where they do not."""
    return (p_value(sums) or 1.0) < ALPHA


def p_value(sums: CarryOverSums) -> float | None:
    """Probability of rewards that depend so much on step and repeats, where they do not depend on them; None where
    the log cannot tell: no visit has a second step, or too few clusters have rows."""
    from scipy.special import fdtrc

    cells, moments = sums.cells.sum(axis=0), sums.moments.sum(axis=0)
    present = np.flatnonzero(sums.cells[..., -1].sum(axis=1))
    within = _within(cells, moments)
    varying = np.flatnonzero(np.diagonal(within)[:-1] > _CONSTANT * np.diagonal(moments)[:-1])
    tested = np.count_nonzero(varying < _TESTED)
    if len(present) < _LEAST or not tested or not within[-1, -1] > 0:
        return None
    # coefficients, and those without one block after the other
    without = [_within(cells - sums.cells[block], moments - sums.moments[block]) for block in present]
    beta = _coefficients(np.array(without), varying)[:, :tested]
    estimate = _coefficients(within[None], varying)[0, :tested]
    # Wald test with the jackknife's covariance
    blocks, apart = len(present), beta - beta.mean(axis=0)
    covariance = (blocks - 1) / blocks * apart.T @ apart
    wald = float(estimate @ np.linalg.pinv(covariance) @ estimate)
    freedom = blocks - tested
    return float(fdtrc(tested, freedom, wald * freedom / (tested * (blocks - 1))))


def _within(cells: Array, moments: Array) -> Array:
    """Products of two columns about their means in each cell, (5, 5). cells (c, 6), moments (5, 5): sums."""
    columns, count = cells[:, :-1], np.maximum(cells[:, -1:], 1.0)
    return moments - (columns / count).T @ columns


def _coefficients(within: Array, varying: Ids) -> Array:
    """Coefficients of the columns that vary, (b, k)."""
    left, right = within[:, varying[:, None], varying], within[:, varying, -1]
    return np.einsum("bij,bj->bi", np.linalg.pinv(left, hermitian=True), right)
