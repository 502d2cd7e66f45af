"""Linear models of rewards within cells (an arm at a position), with jackknife errors over blocks of clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.ope.sums.base import hash_bits
from rlrec.records import Sums

ALPHA = 1e-3  # false alarms of a test
CELLS = 2048  # pairs of arm and position that are compared, at most
_BLOCKS = 64
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
    block = (hash_bits(cluster, salt=_SALT) % np.uint64(_BLOCKS)).astype(np.int64)
    # sums per block and cell
    index, shape = block * cells + cell, (_BLOCKS, cells)
    sums = [np.bincount(index, weights=column, minlength=_BLOCKS * cells) for column in compared]
    sums.append(np.bincount(index, minlength=_BLOCKS * cells).astype(np.float64))
    # products of two columns per block
    moments = np.empty((_BLOCKS, len(compared), len(compared)))
    for i in range(len(compared)):
        for j in range(i + 1):
            moments[:, i, j] = np.bincount(block, weights=compared[i] * compared[j], minlength=_BLOCKS)
            moments[:, j, i] = moments[:, i, j]
    return CellSums(np.stack([total.reshape(shape) for total in sums], axis=-1), moments)


def slopes(sums: CellSums, *, tested: int) -> Slopes | None:
    """Coefficients of the first columns; None where there is not enough evidence: none of them varies, or too few
    clusters have rows."""
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
