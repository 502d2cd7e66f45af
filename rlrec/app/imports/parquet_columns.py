"""Columns of Parquet files as arrays.

pyarrow's own way to an array loads pandas wherever that is installed, in every process: here the buffers are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec.app.imports.parquet_files import load_pyarrow, table
from rlrec.arrays import Flags, Ids, offsets
from rlrec.log_fields import ABSENT, DECISION, SLOT
from rlrec.store.database.bulk import Columns
from rlrec.store.log.reader import COLUMNS, PER_DECISION

MAX_CACHED_BYTES = 128_000_000  # bytes of columns that are held, of files that the next batch may read again
SLOTS = {field.name for field in SLOT[1:]}
STARTS = "starts"  # names where the slots of each decision begin, (n + 1,)
_STORED_NAMES = {"recorded": "history", "subsampled": "keep_probability", "route_id": "route_decision"}
_DEFAULTS = {  # in place of null; 0 for other numbers
    **{field.name: field.absent for field in (*DECISION, *SLOT) if field.absent is not None},
    "user_id": ABSENT, "ended_at": ABSENT,
}  # fmt: skip
_KINDS = {"double": np.float64, "int32": np.int32}  # all other numbers, and times, are int64


class FileReader:
    """Reads columns of the files of a folder, and holds those that may be read again as long as there is room."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._cache: dict[tuple[str, ...], tuple[Any, int]] = {}
        self._bytes = 0

    def numbers(self, path: str, names: Sequence[str]) -> Columns:
        """Columns of a file as arrays."""
        columns = table(load_pyarrow(), self.folder, path, names)
        return {name: _array(name, columns.column(name).combine_chunks()) for name in names}

    def decisions(self, path: str, names: Sequence[str], *, passing: Sequence[str] = ()) -> Columns:
        """Columns of the decisions of a file and of their slots; with slots also STARTS. Those that are not cached are
        read at once. passing: columns that are not cached afterwards."""
        needed = [*passing, *names, *([STARTS] if SLOTS.intersection(names) else [])]
        cached = {name: self._cache[path, name][0] for name in needed if (path, name) in self._cache}
        read = self._read(path, [name for name in needed if name not in cached]) if len(cached) < len(needed) else {}
        for name, column in read.items():
            if name not in passing:
                self._hold((path, name), column, _size(column))
        return cached | read

    def _read(self, path: str, names: Sequence[str]) -> Columns:
        slots = [name for name in names if name in SLOTS] or (["position"] if STARTS in names else [])
        singles = [name for name in names if name not in SLOTS and name != STARTS]
        in_file = dict.fromkeys(_STORED_NAMES.get(name, name) for name in singles)
        stored = table(load_pyarrow(), self.folder, path, [*in_file, *(f"slot.{name}" for name in slots)])
        columns = {name: _decision_column(name, stored) for name in singles}
        if slots:
            lists = stored.column("slot").combine_chunks()
            columns[STARTS], fields = offsets(_plain(lists.value_lengths())), lists.flatten()
            columns |= {name: _array(name, fields.field(name)) for name in slots}
        return columns

    def values(self, path: str, name: str, lines: Ids) -> list[Any]:
        """The values of a column at these lines of a file, as Python has them."""
        pa, key = load_pyarrow(), (path, name, "values")
        if key in self._cache:
            column = self._cache[key][0]
        else:
            column = table(pa, self.folder, path, [name]).column(0).combine_chunks()
            self._hold(key, column, column.nbytes)
        index = pa.Array.from_buffers(pa.int64(), len(lines), [None, pa.py_buffer(np.ascontiguousarray(lines))])
        values: list[Any] = column.take(index).to_pylist()
        return values

    def _hold(self, key: tuple[str, ...], value: Any, size: int) -> None:
        """Hold a value as long as there is room for it; the eldest ones go first."""
        self._bytes += size
        while self._cache and self._bytes > MAX_CACHED_BYTES:
            self._bytes -= self._cache.pop(next(iter(self._cache)))[1]
        self._cache[key] = value, size


def concat(pieces: Sequence[npt.NDArray[Any]], kind: Any) -> npt.NDArray[Any]:
    """Pieces of a column, one after another."""
    return np.concatenate([np.empty(0, kind), *pieces])


def _decision_column(name: str, stored: Any) -> npt.NDArray[Any]:
    """A column of decisions, read or derived from the columns of their Parquet file."""
    column = stored.column(_STORED_NAMES.get(name, name)).combine_chunks()
    if name in ("recorded", "subsampled"):
        return _present(column)
    if name == "route_id":
        routes = np.full(len(column), ABSENT)
        routes[_plain(column.value_parent_indices())] = _plain(column.flatten().field("route_id"))
        return routes
    if name in PER_DECISION:
        return np.array([value or b"" for value in column.to_pylist()], np.object_)
    return _array(name, column)


def _array(name: str, column: Any) -> npt.NDArray[Any]:
    """A column of Arrow as an array, with what stands for null."""
    if str(column.type) == "string":  # few different ones
        encoded = column.dictionary_encode()
        return np.array(encoded.dictionary.to_pylist(), np.object_)[_plain(encoded.indices)]
    array = _plain(column)
    if column.null_count:
        array = np.where(_present(column), array, np.array(_DEFAULTS.get(name, 0), array.dtype))
    return array.astype(COLUMNS[name][0], copy=False) if name in COLUMNS else array


def _plain(column: Any) -> npt.NDArray[Any]:
    """The numbers of a column, with arbitrary ones at nulls."""
    kind, n = _KINDS.get(str(column.type), np.int64), len(column)
    if not n:
        return np.empty(0, kind)
    return np.frombuffer(column.buffers()[1], kind, count=column.offset + n)[column.offset :]


def _present(column: Any) -> Flags:
    """Flags of the rows that are not null, (n,)."""
    if not column.null_count:
        return np.ones(len(column), np.bool_)
    end = column.offset + len(column)
    bits = np.unpackbits(np.frombuffer(column.buffers()[0], np.uint8), count=end, bitorder="little")
    return bits[column.offset :].astype(np.bool_)


def _size(column: npt.NDArray[Any]) -> int:
    """Bytes of an array, those of its objects included."""
    return column.nbytes if column.dtype != np.object_ else column.nbytes + sum(map(len, column.tolist()))
