"""Array types, and what numpy leaves to write by hand each time: runs, offsets, distinct rows. Numpy only."""

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

# With glibc, memory of up to this size is from now on kept when it is freed, and not fetched page by page again for
# the next array, which would cost more than what is computed in it.
np.empty((31 << 20) // 8)


def run_starts(*columns: npt.NDArray[np.generic]) -> Index:
    """Index of the first row of every run of equal rows, (runs,), ascending; empty for no rows.

    columns (n,) each: a run ends where any of them changes."""
    n = len(columns[0])
    changes = np.zeros(n, np.bool_)
    changes[:1] = True
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(changes)


def take(columns: Mapping[str, npt.NDArray[Any]], rows: Flags | Index | slice) -> dict[str, npt.NDArray[Any]]:
    """These rows of columns by name, in that order. One that repeats a value still does."""
    if isinstance(rows, slice):
        return {name: column[rows] for name, column in columns.items()}
    n = int(np.count_nonzero(rows)) if rows.dtype == np.bool_ else len(rows)
    return {
        name: repeat_value(column[:1], n) if repeats_value(column) else column[rows] for name, column in columns.items()
    }


def repeats_value(column: npt.NDArray[Any]) -> bool:
    """Whether a column holds a single value, which all rows share in memory; then nobody can write into it."""
    return column.strides == (0,) and len(column) > 0


def repeat_value(value: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    """A column of n rows, all of which are the one of `value` (1,)."""
    column = np.ndarray((n,), value.dtype, value, strides=(0,))
    column.flags.writeable = False
    return column


def offsets(lengths: npt.NDArray[np.integer]) -> Ids:
    """Where each of m pieces begins when they lie end to end, and where the last one ends, (m + 1,)."""
    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends


def piece_rows(begin: npt.NDArray[np.integer], length: npt.NDArray[np.integer]) -> Ids:
    """Index of every row of pieces that begin at `begin` (m,) and have `length` (m,) rows, one piece after another."""
    return np.repeat(begin - np.cumsum(length) + length, length) + np.arange(int(length.sum()))


def numbers_in_runs(starts: Index, n: int) -> Ids:
    """Number of each of n rows in its run, from 0, (n,). starts: as `run_starts` gives them."""
    return np.arange(n) - np.repeat(starts, np.diff(starts, append=n))


def products_in_runs(values: Array, number: Ids, *, least: float = 0.0) -> Array:
    """Products of values from the first row of each run down to each row, (n,); what is above 0 stays above `least`.

    number (n,): of each row in its run, as `numbers_in_runs` gives it."""
    product, order = values.copy(), np.argsort(number, kind="stable")
    for start, end in pairwise(np.cumsum(np.bincount(number)).tolist()):
        rows = order[start:end]
        is_possible = (values[rows] > 0) & (product[rows - 1] > 0)
        product[rows] *= product[rows - 1]
        product[rows[is_possible]] = np.maximum(product[rows[is_possible]], least)
    return product


def look_up(values: npt.NDArray[np.integer], keys: npt.NDArray[np.integer]) -> tuple[Index, Flags]:
    """Index of each key among values, which ascend, and whether it is one of them; both of the shape of `keys`. The
    index of one that is not there is that of any other."""
    if not len(values):
        return np.zeros(keys.shape, np.intp), np.zeros(keys.shape, np.bool_)
    index = np.minimum(np.searchsorted(values, keys), len(values) - 1)
    return index, values[index] == keys


def distinct(*columns: Ids) -> tuple[Ids, Ids]:
    """Index of the first row of each kind of row, (m,), in the order of its values, and the kind of every row, (n,).

    columns (n,) each: rows are of one kind where all of them agree. Where the values lie close together they are
    counted, which is many times faster than to sort them."""
    n = len(columns[0])
    code, kinds = np.zeros(n, np.int64), 1
    for column in columns:
        if repeats_value(column):
            continue
        values, number = _close(column, n)
        if kinds * number >= 2**62:
            code, kinds = _ranked(code, kinds)
        code, kinds = code * number + values, kinds * number
        if kinds > _countable(n):
            code, kinds = _ranked(code, kinds)
    code, kinds = _ranked(code, kinds)
    first = np.empty(kinds, np.int64)
    first[code[::-1]] = np.arange(n)[::-1]
    return first, code


def rows_by_kind(*columns: Ids) -> list[Index]:
    """The rows of each kind of row, ascending, in the order of `distinct`; none for no rows."""
    _, kind = distinct(*columns)
    order = np.argsort(kind, kind="stable")
    return np.split(order, run_starts(kind[order])[1:]) if len(order) else []


def distinct_rows(rows: Array) -> tuple[Array, Index]:
    """The different rows of a matrix, (m, d), in ascending order, and which of them each row is, (n,)."""
    unique_rows, row_index = np.unique(rows, axis=0, return_inverse=True)
    return unique_rows, row_index.reshape(-1)


def finite_or_none(value: float | np.floating | None) -> float | None:
    """The number as JSON can hold it: None for NaN, infinities and None."""
    return float(value) if value is not None and np.isfinite(value) else None


def plain_number(value: float) -> float | int:
    """A number as JSON writes it: a count as an integer."""
    return int(value) if float(value).is_integer() else float(value)


def _countable(n: int) -> int:
    """The range of values in which n of them are counted sooner than sorted."""
    return 8 * n + 1024


def _close(column: Ids, n: int) -> tuple[Ids, int]:
    """The column from 0, its gaps closed where they are wide, and how many values that leaves room for."""
    if not n:
        return column.astype(np.int64), 1
    low, high = int(column.min()), int(column.max())
    if high - low < _countable(n):
        return column.astype(np.int64) - low, high - low + 1
    values, code = np.unique(column, return_inverse=True)
    return code.ravel(), len(values)


def _ranked(code: Ids, kinds: int) -> tuple[Ids, int]:
    """The codes without those that do not occur, and how many are left."""
    if kinds > _countable(len(code)):
        values, ranks = np.unique(code, return_inverse=True)
        return ranks.ravel(), len(values)
    occurs = np.zeros(kinds, np.bool_)
    occurs[code] = True
    return (np.cumsum(occurs) - 1)[code], int(occurs.sum())
