"""Contexts as numbers: any JSON object to a short dense vector, or to a long sparse one, by signed hashing. A
vocabulary would have to be learned, stored and versioned; a hash needs none, and new values have columns, too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec.arrays import Array, Index, look_up, piece_rows, run_starts
from rlrec.policy.contexts.statements import STATEMENTS

WIDTH = 64
MAX_COLUMNS = 1 << 18  # columns of any hash; a shorter one takes the lowest bits of the same number
NUMBERS = frozenset({int, float})
_LARGEST = sys.float_info.max
_CELLS = 1 << 21  # products of entries in memory at a time
# A code: 4 x the column, plus 2 for a negative sign, plus 1 for a number.
_COLUMN, _NEGATIVE, _NUMBER = 4, 2, 1


@dataclass(frozen=True, eq=False)
class Sparse:
    """The nonzero features of n contexts: those of context i are at start[i]..start[i + 1].

    start (n + 1,); column (e,) of each entry; value (e,), added up where a column occurs twice. single: one context,
    whose scores have no axis of contexts."""

    start: npt.NDArray[np.int32]
    column: npt.NDArray[Any]
    value: Array
    single: bool = False

    @classmethod
    def empty(cls, n: int) -> Sparse:
        """n contexts without features."""
        return cls(np.zeros(n + 1, np.int32), np.empty(0, np.int32), np.empty(0))

    @classmethod
    def concatenate(cls, parts: Sequence[Sparse]) -> Sparse:
        """The contexts of all parts, one part after another."""
        counts = np.concatenate([np.diff(piece.start) for piece in parts])
        column, value = (np.concatenate([getattr(piece, name) for piece in parts]) for name in ("column", "value"))
        return cls(np.r_[0, np.cumsum(counts)].astype(np.int32), column, value)

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def size(self) -> int:
        """Bytes of its arrays."""
        return self.start.nbytes + self.column.nbytes + self.value.nbytes

    def __getitem__(self, rows: int | slice | Index) -> Sparse:
        """One context, the contexts of a range, or those of an array of rows, in its order."""
        if isinstance(rows, np.ndarray):
            entries, row = self.entries(rows)
            start = np.r_[0, np.cumsum(np.bincount(row, minlength=len(rows)))].astype(np.int32)
            return Sparse(start, self.column[entries], self.value[entries])
        first, last = (rows, rows + 1) if isinstance(rows, int) else rows.indices(len(self))[:2]
        start = self.start[first : last + 1]
        span = slice(start[0], start[-1])
        return Sparse(start - start[0], self.column[span], self.value[span], single=isinstance(rows, int))

    def __iter__(self) -> Iterator[Sparse]:
        return map(self.__getitem__, range(len(self)))

    @property
    def row(self) -> Index:
        """The context of each entry, (e,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.start))

    def select_columns(self, columns: Index) -> Sparse:
        """The contexts with only their entries in these columns (ascending), each renumbered to its index among
        these."""
        index, is_selected = look_up(columns, self.column)
        start = np.r_[0, np.cumsum(is_selected)][self.start].astype(np.int32)
        return Sparse(start, index[is_selected].astype(np.int32), self.value[is_selected], single=self.single)

    def times(self, weights: Array) -> Array:
        """The product of the matrix of contexts with weights (c, m), (n, m)."""
        product = np.zeros((len(self), weights.shape[1]), weights.dtype)
        step = max(1, _CELLS * len(self) // max(1, weights.shape[1] * len(self.column)))
        for first in range(0, len(self), step):
            chunk = self[first : first + step]
            filled_rows = np.flatnonzero(np.diff(chunk.start))
            if len(filled_rows):
                entries = weights[chunk.column] * chunk.value[:, None]
                product[first + filled_rows] = np.add.reduceat(entries, chunk.start[filled_rows], axis=0)
        return product

    def transposed_times(self, values: Array, width: int) -> Array:
        """The product of the transposed matrix of contexts with values (n, m), (width, m)."""
        row = self.row
        products = (np.bincount(self.column, self.value * column[row], width) for column in values.T)
        return np.column_stack([*products]) if values.shape[1] else np.zeros((width, 0))

    def entries(self, rows: Index) -> tuple[Index, Index]:
        """The indices of the entries of some contexts, and for each entry the index of its context in `rows`, (f,)
        both."""
        counts = (self.start[rows + 1] - self.start[rows]).astype(np.int64)
        return piece_rows(self.start[rows], counts), np.repeat(np.arange(len(rows)), counts)


def encode(contexts: Sequence[dict[str, Any]], columns: int = WIDTH) -> Array:
    """Context features, (n, columns), of n contexts; `columns` is a power of two up to WIDTH."""
    entries = sparse(contexts)
    return add_up(len(entries), columns, entries.row, entries.column % columns, entries.value)


def merge(n: int, row: Index, column: Index, value: Array) -> Sparse:
    """Sparse rows from entries, in order of column; entries of the same row and column are added."""
    order = np.lexsort((column, row))
    row, column, value = row[order], column[order], value[order]
    first = run_starts(row, column)
    total = np.add.reduceat(value, first) if len(first) else value
    start = np.r_[0, np.cumsum(np.bincount(row[first], minlength=n))].astype(np.int32)
    return Sparse(start, column[first].astype(np.int32), total)


def add_up(n: int, columns: int, row: Index, column: npt.NDArray[Any], value: Array) -> Array:
    """Dense rows, (n, columns), from entries; entries of the same row and column are added."""
    cells = np.bincount(row * columns + column, weights=value, minlength=n * columns)
    return cells.reshape(n, columns).astype(np.float64, copy=False)


def sparse(contexts: Sequence[dict[str, Any]], columns: int = WIDTH) -> Sparse:
    """Features of contexts in `columns` columns, a power of two up to MAX_COLUMNS.

    A number counts as asinh(number) under its key, so that a price does not outweigh a flag; text, true, false and null
    count as 1 under key and value; lists and objects count item by item. Keys that share a column are added there, with
    signs that cancel their interference on average.
    Source: our own choices, based on Weinberger, Dasgupta, Langford, Smola & Attenberg 2009 (signed feature
    hashing)."""
    # all fields of all contexts, except statements on arms and page: column, sign and value of each
    names = list(chain.from_iterable(contexts))
    if "@" in "".join(names):
        contexts = [{name: row[name] for name in row if name not in STATEMENTS} for row in contexts]
        names = list(chain.from_iterable(contexts))
    values = list(chain.from_iterable(map(dict.values, contexts)))
    row = np.repeat(np.arange(len(contexts)), np.fromiter(map(len, contexts), np.int64, len(contexts)))
    code = _codes(names, values)
    flat = code >= 0
    value = np.where(code & _NEGATIVE, -1.0, 1.0)
    number = np.flatnonzero(flat & (code & _NUMBER > 0))
    value[number] *= _squeeze([values[at] for at in number.tolist()])
    if flat.all():
        return _sort_rows(row, code // _COLUMN % columns, value, len(contexts))
    # items of lists and objects, path by path
    nested = [
        (row[at], *column_of(path), number)
        for at in np.flatnonzero(~flat).tolist()
        for path, number in items(f"\x1f{names[at]}", values[at])
    ]
    inner = np.array([entry[:3] for entry in nested], np.float64).reshape(len(nested), 3).T
    numbers = {at: entry[3] for at, entry in enumerate(nested) if entry[3] is not None}
    inner[2, list(numbers)] *= _squeeze(list(numbers.values()))
    row, column = np.concatenate([row[flat], inner[0].astype(np.int64)]), np.r_[code[flat] // _COLUMN, inner[1]]
    return _sort_rows(row, column.astype(np.int64) % columns, np.concatenate([value[flat], inner[2]]), len(contexts))


def _sort_rows(row: Index, column: npt.NDArray[Any], value: Array, n: int) -> Sparse:
    order = np.argsort(row, kind="stable")
    start = np.r_[0, np.cumsum(np.bincount(row, minlength=n))].astype(np.int32)
    fits_a_byte = not len(column) or int(column.max()) < WIDTH  # uses a quarter of the memory
    return Sparse(start, column[order].astype(np.uint8 if fits_a_byte else np.int32), value[order])


def _codes(names: Sequence[str], values: Sequence[Any]) -> Index:
    """Column, sign and kind of each entry in one number, (e,); -1 for a list or an object."""
    codes = [
        _TEXTS[name][value]
        if type(value) is str
        else _KEYS[name]
        if type(value) in NUMBERS
        else -1
        if isinstance(value, dict | list | tuple)
        else _TEXTS[name][str(value)]
        for name, value in zip(names, values, strict=True)
    ]
    return np.fromiter(codes, np.int64, len(codes))


class _Cache(dict[str, Any]):
    """The result of `make` for each text; emptied when it has `max_entries`."""

    def __init__(self, max_entries: int, make: Callable[[str], Any]) -> None:
        self.max_entries, self.make = max_entries, make

    def __missing__(self, text: str) -> Any:
        if len(self) >= self.max_entries:
            self.clear()
        self[text] = result = self.make(text)
        return result


def _code(path: str, *, number: bool) -> int:
    column, sign = column_of(path)
    return column * _COLUMN + _NEGATIVE * (sign < 0) + _NUMBER * number


# codes of numbers by the name of their field, and of texts by that name and themselves
_KEYS = _Cache(10_000, lambda name: _code(f"\x1f{name}", number=True))
_TEXTS = _Cache(1_000, lambda name: _Cache(10_000, lambda text: _code(f"\x1f{name}\x1e{text}", number=False)))


def text_of(value: Any) -> str:
    """A value of a context as a file writes it: text as it is, anything else as JSON, numbers by value."""
    if isinstance(value, str):
        return value
    integral = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if integral else value, sort_keys=True, ensure_ascii=False)


def items(path: str, value: Any) -> Iterator[tuple[str, float | None]]:
    """All values inside a list or an object: the path of each, and its value where that is a number."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from items(f"{path}\x1f{key}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from items(f"{path}\x1f", item)
    elif type(value) in NUMBERS:
        yield path, value
    else:
        yield f"{path}\x1e{value}", None


def _squeeze(values: Sequence[float]) -> Array:
    try:
        numbers = np.array(values, np.float64)
    except OverflowError:  # an integer too large for a double
        numbers = np.array([value if abs(value) <= _LARGEST else 0.0 for value in values], np.float64)
    return np.where(np.isfinite(numbers), np.arcsinh(numbers), 0.0)


@lru_cache(maxsize=100_000)
def column_of(name: str) -> tuple[int, float]:
    """Column and sign of a name, among MAX_COLUMNS columns."""
    bits = int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    return (bits >> 1) % MAX_COLUMNS, 1.0 if bits & 1 else -1.0
