"""Cells that contexts lie in: what a log says of an arm can be right on average, and wrong in each of them."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array, Ids, distinct
from rlrec.ope.sums.base import hash_bits

_STEPS = 4  # into which 1 of a feature is cut: numbers count as asinh(number)
_LARGEST = 32  # steps that are told apart
_SALT = 11


def context_cells(row: Ids, column: Ids, value: Array, *, contexts: int, cells: int) -> tuple[Ids, Ids]:
    """Pairs of a context and a cell that it lies in, (c,) each, by context and cell.

    row, column, value (e,): the features of contexts; contexts: how many there are. The first half of the cells is of
    values of fields (of numbers: of values close together), the other half of contexts as they stand. Which cell that
    is follows from hashes, so that nothing need be known of the log beforehand; values that share a cell make it
    coarser, and no test of it wrong."""
    half = cells // 2
    step = np.clip(np.rint(value * _STEPS), -_LARGEST, _LARGEST).astype(np.int64)
    value_cell = hash_bits(column.astype(np.int64) * 256 + step, salt=_SALT) % np.uint64(half)
    digest = context_digests(row, column, value, contexts=contexts)
    context = np.r_[row, np.arange(contexts)].astype(np.int64)
    cell = np.r_[value_cell, np.uint64(half) + hash_bits(digest, salt=_SALT) % np.uint64(half)].astype(np.int64)
    first, _ = distinct(context, cell)
    return context[first], cell[first]


def context_digests(row: Ids, column: Ids, value: Array, *, contexts: int) -> Ids:
    """The digest of each context, (contexts,), whatever the order of its features."""
    bits = hash_bits(np.asarray(value, np.float64).view(np.int64) + column.astype(np.int64), salt=_SALT + 1)
    total = np.zeros(contexts, np.uint64)
    np.add.at(total, row, bits)
    return total.view(np.int64)
