"""This module defines array types, and operations that numpy lacks, such as finding runs of equal rows and distinct
rows. It uses only numpy."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Index = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]

# From now on, glibc keeps freed memory of up to this size for the next array. Otherwise the kernel would supply it
# again page by page, which would take longer than the computation.
np.empty((31 << 20) // 8)


def run_starts(*columns: npt.NDArray[np.generic]) -> Index:
    """Return the index of the first row of each run, (runs,), ascending. A run is a series of adjacent equal rows. The
    result is empty if there are no rows.

    columns: arrays (n,); rows are equal if they are equal in every column."""
    n = len(columns[0])
    changes = np.zeros(n, np.bool_)
    changes[:1] = True
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(changes)


def take(columns: Mapping[str, npt.NDArray[Any]], rows: Flags | Index | slice) -> dict[str, npt.NDArray[Any]]:
    """Return these rows of each column, by the name of the column. A column that keeps one value in memory for all its
    rows still does so in the result."""
    if isinstance(rows, slice):
        return {name: column[rows] for name, column in columns.items()}
    n = int(np.count_nonzero(rows)) if rows.dtype == np.bool_ else len(rows)
    return {
        name: repeat_value(column[:1], n) if repeats_value(column) else column[rows] for name, column in columns.items()
    }


def repeats_value(column: npt.NDArray[Any]) -> bool:
    """Tell whether all rows of a column share one value in memory. Such a column is read-only."""
    return column.strides == (0,) and len(column) > 0


def repeat_value(value: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    """Return a read-only column of n rows that share one value in memory. value: the value as an array (1,)."""
    column = np.ndarray((n,), value.dtype, value, strides=(0,))
    column.flags.writeable = False
    return column


def offsets(lengths: npt.NDArray[np.integer]) -> Ids:
    """Return the first row of each of m adjacent pieces and, as last entry, the end of the last piece, (m + 1,).
    lengths (m,): the number of rows of each piece."""
    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends


def piece_rows(begin: npt.NDArray[np.integer], length: npt.NDArray[np.integer]) -> Ids:
    """Return the indices of all rows of m pieces, piece after piece. begin, length (m,): the first row and the number
    of rows of each piece."""
    return np.repeat(begin - np.cumsum(length) + length, length) + np.arange(int(length.sum()))


def numbers_in_runs(starts: Index, n: int) -> Ids:
    """Return the number of each row within its run of equal rows, (n,), beginning with 0. starts: the first row of each
    run, from `run_starts`; n: the number of rows."""
    return np.arange(n) - np.repeat(starts, np.diff(starts, append=n))


def products_in_runs(values: Array, number: Ids, *, least: float = 0.0) -> Array:
    """Return, for each row, the product of the values from the first row of its run to this row, (n,). A product of
    positive values is at least `least`. number (n,): the number of each row within its run, from `numbers_in_runs`."""
    products, rows_by_number = values.copy(), np.argsort(number, kind="stable")
    for start, end in pairwise(np.cumsum(np.bincount(number)).tolist()):
        rows = rows_by_number[start:end]
        is_possible = (values[rows] > 0) & (products[rows - 1] > 0)
        products[rows] *= products[rows - 1]
        products[rows[is_possible]] = np.maximum(products[rows[is_possible]], least)
    return products


def look_up(values: npt.NDArray[np.integer], keys: npt.NDArray[np.integer]) -> tuple[Index, Flags]:
    """Return the index of each key in `values`, and whether the key is among the values. Both results have the shape of
    `keys`. The index of a key that is not among the values is arbitrary but valid.

    values: ascending integers. If their range is narrow, a table is used, which is many times faster than a search."""
    if not len(values):
        return np.zeros(keys.shape, np.intp), np.zeros(keys.shape, np.bool_)
    low, width = values[0], int(values[-1]) - int(values[0]) + 1
    if width <= _counting_limit(keys.size):
        table = np.zeros(width, np.intp)
        table[values - low] = np.arange(len(values))
        index = table.take(keys - low, mode="clip")
    else:
        index = np.minimum(np.searchsorted(values, keys), len(values) - 1)
    return index, values[index] == keys


def distinct(*columns: Ids) -> tuple[Ids, Ids]:
    """Number the distinct rows from 0, in ascending order, so that equal rows have the same number. Return the index of
    the first row with each number, (m,), and the number of each row, (n,).

    columns: arrays (n,); rows are equal if they are equal in every column. Columns with a narrow range of values are
    not sorted, which is many times faster."""
    n = len(columns[0])
    codes, n_kinds = np.zeros(n, np.int64), 1
    for column in columns:
        if repeats_value(column):
            continue
        values, n_values = _compact_values(column, n)
        if n_kinds * n_values >= 2**62:
            codes, n_kinds = _renumber_codes(codes, n_kinds)
        codes, n_kinds = values if n_kinds == 1 else codes * n_values + values, n_kinds * n_values
        if n_kinds > _counting_limit(n):
            codes, n_kinds = _renumber_codes(codes, n_kinds)
    codes, n_kinds = _renumber_codes(codes, n_kinds)
    first_rows = np.empty(n_kinds, np.int64)
    first_rows[codes[::-1]] = np.arange(n)[::-1]
    return first_rows, codes


def rows_by_kind(*columns: Ids) -> list[Index]:
    """Group equal rows. Return an array for each group, with the indices of its rows, ascending. Groups are in the
    order of their numbers in `distinct`. The list is empty if there are no rows."""
    _, kind = distinct(*columns)
    order = np.argsort(kind, kind="stable")
    return np.split(order, run_starts(kind[order])[1:]) if len(order) else []


def distinct_rows(rows: Array) -> tuple[Array, Index]:
    """Return the distinct rows of a matrix in ascending order, (m, d), and for each row of the matrix its index in this
    result, (n,)."""
    unique_rows, row_index = np.unique(rows, axis=0, return_inverse=True)
    return unique_rows, row_index.reshape(-1)


def best_of_rows(values: Array) -> tuple[Index, Index]:
    """Return the row and the column of each entry that is the largest of its row, as two arrays of the same length. A
    row with a tie has several such entries."""
    row, column = np.divmod(np.flatnonzero(values == values.max(axis=1, keepdims=True)), values.shape[1])
    return row, column


def finite_or_none(value: float | np.floating | None) -> float | None:
    """Return a number as a float that JSON can hold, or None for NaN, infinities and None."""
    return float(value) if value is not None and np.isfinite(value) else None


def plain_number(value: float) -> float | int:
    """Return a number as JSON writes it: a whole number as an int, any other number as a float."""
    return int(value) if float(value).is_integer() else float(value)


def _counting_limit(n: int) -> int:
    """Return the largest range of n integers for which counting them is faster than sorting them."""
    return 8 * n + 1024


def _compact_values(column: Ids, n: int) -> tuple[Ids, int]:
    """Replace n integers by small ones, from 0, in the same order. Return the new integers, and a number above all of
    them. If the range is narrow, the smallest integer is subtracted; otherwise each integer is replaced by its rank."""
    if not n:
        return column.astype(np.int64), 1
    low, high = int(column.min()), int(column.max())
    if high - low < _counting_limit(n):
        return np.subtract(column, low, dtype=np.int64), high - low + 1
    values, ranks = np.unique(column, return_inverse=True)
    return ranks.ravel(), len(values)


def _renumber_codes(codes: Ids, n_kinds: int) -> tuple[Ids, int]:
    """Renumber integers as 0, 1, 2, ... without gaps, in the same order. Return the new numbers, and how many distinct
    numbers there are. n_kinds: a number above all codes."""
    if n_kinds > _counting_limit(len(codes)):
        values, ranks = np.unique(codes, return_inverse=True)
        return ranks.ravel(), len(values)
    occurs = np.zeros(n_kinds, np.bool_)
    occurs[codes] = True
    n_occurring = int(occurs.sum())
    return codes if n_occurring == n_kinds else (np.cumsum(occurs) - 1)[codes], n_occurring


def matrix_product(first: Array, second: Array) -> Array:
    """Return the matrix product of two arrays in float32, without warnings about invalid numbers. OpenBLAS may cause
    such warnings when it also computes with numbers beside the arrays in memory, whose results it discards."""
    with np.errstate(invalid="ignore"):
        return np.asarray(first @ second)
