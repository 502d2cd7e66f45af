"""Linear models of rewards within cells (an arm at a position), with jackknife errors over blocks of clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rlrec.arrays import Array, Ids, numbers_in_runs, run_starts
from rlrec.ope.intervals.tails import hotelling_above, t_below
from rlrec.ope.sums.base import hash_bits
from rlrec.records import Sums

ALPHA = 1e-3  # false alarms of a test
CELLS = 2048  # pairs of arm and position that are compared, at most
BLOCKS = 64
_LEAST = 20  # blocks with rows, for a test
_SALT = 3
_CONSTANT = 1e-9  # share of the variance within cells, below which a column is constant there


@dataclass(frozen=True, eq=False)
class CellSums(Sums):
    """Sums over rows that add up, of d columns; the last one is explained by the others.

    cells (64, c, d + 1): per block of clusters and cell, of the columns and of 1
    moments (64, d, d): per block, of the products of two columns"""

    cells: Array
    moments: Array


def block_numbers(cluster: Ids) -> Ids:
    """The block that each cluster lies in, from 0."""
    return (hash_bits(cluster, salt=_SALT) % np.uint64(BLOCKS)).astype(np.int64)


def block_sums(columns: Sequence[Array | None], block: Ids, cell: Ids, *, cells: int) -> Array:
    """Sums of columns per block and cell, (k, 64, cells). columns (n,) each; None counts rows."""
    index = block * cells + cell
    sums = [np.bincount(index, weights=column, minlength=BLOCKS * cells) for column in columns]
    return np.reshape(sums, (len(columns), BLOCKS, cells)).astype(np.float64)


def alarms(p_value: float | None) -> bool:
    """Whether a test rejects its hypothesis; without a p-value (None) it does not."""
    return p_value is not None and p_value < ALPHA


class Slopes(NamedTuple):
    """Coefficients of the columns that are tested, and vary: estimate (k,), covariance (k, k), number of blocks."""

    estimate: Array
    covariance: Array
    blocks: int


def cell_sums(columns: Sequence[Array], *, cell: Ids, cells: int, cluster: Ids) -> CellSums:
    """Sums of one batch of columns, (n,) each. cell: its number, from 0; below 0: not compared."""
    compared, rows = columns, cell >= 0
    if not rows.all():
        compared, cell, cluster = [column[rows] for column in columns], cell[rows], cluster[rows]
    block = block_numbers(cluster)
    sums = block_sums([*compared, None], block, cell, cells=cells)
    # products of two columns per block
    moments = np.empty((BLOCKS, len(compared), len(compared)))
    for i in range(len(compared)):
        for j in range(i + 1):
            moments[:, i, j] = np.bincount(block, weights=compared[i] * compared[j], minlength=BLOCKS)
            moments[:, j, i] = moments[:, i, j]
    return CellSums(np.stack([*sums], axis=-1), moments)


def slopes(sums: CellSums | None, *, tested: int) -> Slopes | None:
    """Coefficients of the first columns; None where there is not enough evidence: none of them varies, or too few
    clusters have rows."""
    if sums is None:
        return None
    cells, moments = sums.cells.sum(axis=0), sums.moments.sum(axis=0)
    present = np.flatnonzero(sums.cells[..., -1].sum(axis=1))
    products = _centred_products(cells, moments)
    varying = np.flatnonzero(np.diagonal(products)[:-1] > _CONSTANT * np.diagonal(moments)[:-1])
    number = int(np.count_nonzero(varying < tested))
    if len(present) < _LEAST or not number or not products[-1, -1] > 0:
        return None
    # coefficients, and those without one block after the other
    jackknifed = [_centred_products(cells - sums.cells[block], moments - sums.moments[block]) for block in present]
    beta = _coefficients(np.array(jackknifed), varying)[:, :number]
    estimate = _coefficients(products[None], varying)[0, :number]
    # the jackknife's covariance
    blocks, deviations = len(present), beta - beta.mean(axis=0)
    return Slopes(estimate, (blocks - 1) / blocks * deviations.T @ deviations, blocks)


def _centred_products(cells: Array, moments: Array) -> Array:
    """Products of two columns about their means in each cell, (d, d). cells (c, d + 1), moments (d, d): sums."""
    columns, count = cells[:, :-1], np.maximum(cells[:, -1:], 1.0)
    return moments - (columns / count).T @ columns


def _coefficients(products: Array, varying: Ids) -> Array:
    """Coefficients of the columns that vary, (b, k)."""
    left, right = products[:, varying[:, None], varying], products[:, varying, -1]
    return np.einsum("bij,bj->bi", np.linalg.pinv(left, hermitian=True), right)


# -- a test of carry-over: whether a reward depends on what its visit has already been through --
#
# Estimates per impression judge a target in the states that the logger caused. Where a reward depends on the step of
# the visit, or on how often the visit has seen the arm, the target would cause other states and earn something else.
# The test compares rewards of the same arm at the same position only, by a linear model of log step and log repeats
# (earlier slates of the visit that showed the arm). Readers who stay long may differ from others from their first step
# on: the log of the visit's length, and its square, take that up.
#
# Source: own derivation; errors by the jackknife over 64 blocks of clusters, a Wald test with the F distribution.

_TESTED = 2  # the first columns, step and repeats; the others are controls


def carry_over_sums(
    reward: Array, *, cell: Ids, cells: int, step: Ids, repeats: Ids, length: Ids, cluster: Ids
) -> CellSums:
    """Sums of one batch, (n,) each. cell: number of the arm and position, from 0; below 0: not compared. step: of the
    visit, from 0; repeats: earlier slates of the visit that showed the arm; length: decisions of the visit."""
    largest_count = max(int(counts.max(initial=0)) for counts in (step, repeats, length))
    log1p = np.log1p(np.arange(largest_count + 1))  # of every count that may occur
    stay = log1p[length]
    columns = (log1p[step], log1p[repeats], stay, stay**2, reward)
    return cell_sums(columns, cell=cell, cells=cells, cluster=cluster)


def carry_over_p_value(sums: CellSums | None) -> float | None:
    """The p-value of the hypothesis that rewards depend neither on the step nor on repeats; None where there is not
    enough evidence: no visit has a second step, or too few clusters have rows."""
    tested = slopes(sums, tested=_TESTED)
    if tested is None:
        return None
    wald = float(tested.estimate @ np.linalg.pinv(tested.covariance) @ tested.estimate)
    return hotelling_above(wald, len(tested.estimate), tested.blocks)


# -- a test of independent slots: whether a slot earns less below arms that attract --
#
# Estimates per slot judge an arm at its position, whatever stands above it. Where readers stop at what they like, or
# want no more of it, a target that fills the top otherwise earns something else below. Readers differ in eagerness, so
# their clicks above predict their clicks below without any such thing: the test looks at what was shown above, not at
# what was clicked. It compares rewards of the same arm at the same position by the sum of the attraction of the arms
# above, which a model says that never saw the reader. It is one-sided: where a logger fits its slates to the reader,
# the arms above tell of the reader, and then those who click more have more attractive arms above, not less.
#
# Source: own derivation; the error by the jackknife over 64 blocks of clusters.


def slots_above_sums(
    reward: Array, *, attraction: Array, cell: Ids, cells: int, decision: Ids, position: Ids, cluster: Ids
) -> CellSums:
    """Sums of one batch of slots, (n,) each, in order of decision and position. attraction: of the arm of each; cell:
    number of the arm and position, from 0; below 0: not compared. Slots below a missing one are not compared."""
    starts = run_starts(decision)
    # attraction of the arms above, of the same slate
    cumulative = np.cumsum(attraction) - attraction
    attraction_above = cumulative - np.repeat(cumulative[starts], np.diff(starts, append=len(decision)))
    compared = (position > 1) & (numbers_in_runs(starts, len(decision)) == position - 1)
    return cell_sums((attraction_above, reward), cell=np.where(compared, cell, -1), cells=cells, cluster=cluster)


def slots_above_p_value(sums: CellSums | None) -> float | None:
    """The one-sided p-value of the hypothesis that slots below attractive arms do not earn less; None where there is
    not enough evidence."""
    tested = slopes(sums, tested=1)
    if tested is None or not tested.covariance[0, 0] > 0:
        return None
    return t_below(float(tested.estimate[0] / np.sqrt(tested.covariance[0, 0])), tested.blocks - 1)
