"""Arrays in files without a name: written once, then read as often as training needs them.

What is read is a view of the file: nothing is copied, it counts as memory only while it is in use, and the file ends
with the process."""

from __future__ import annotations

import mmap
import os
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from itertools import islice
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec.arrays import Ids
from rlrec.errors import RlrecError

ALIGNED = 64  # bytes; arrays begin at multiples of it

Arrays = Mapping[str, npt.NDArray[Any]]
_ROOM = "set TMPDIR to a folder with room: half a kB for each decision of the log"


class _UnnamedFile:
    """A file that ends with the process. Raises RlrecError where there is no folder, or no room, for it."""

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="rlrec-", buffering=0)  # noqa: SIM115 (closed by `close`)
        except FileNotFoundError as error:
            raise RlrecError("no temporary folder can be written to", hint=_ROOM) from error

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            folder = tempfile.gettempdir()
            raise RlrecError(f"cannot write to the temporary folder {folder}: {error.strerror}", hint=_ROOM) from error


class ArrayFile(_UnnamedFile):
    """Numbered records, each of one or more groups of arrays. All groups have the same names, types and numbers of
    dimensions as the first."""

    def __init__(self) -> None:
        super().__init__()
        self._ends = array("q", [0])
        self._fields: list[tuple[str, np.dtype[Any], int]] = []

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, groups: Sequence[Arrays]) -> None:
        """Write one more record: the number of its groups, all shapes, then the arrays."""
        fields = [[(name, values.dtype, values.ndim) for name, values in group.items()] for group in groups]
        self._fields = self._fields or fields[0]
        if any(group_fields != self._fields for group_fields in fields):
            raise ValueError("arrays of another kind")
        arrays = [values for group in groups for values in group.values()]
        head = np.array([len(groups), *(length for values in arrays for length in values.shape)], np.int64)
        blocks = [values.tobytes().ljust(_round_up(values.nbytes), b"\0") for values in (head, *arrays)]
        self._write(b"".join(blocks))
        self._ends.append(self._ends[-1] + sum(map(len, blocks)))

    def read(self, number: int) -> list[dict[str, npt.NDArray[Any]]]:
        """The groups of a record; their arrays are read-only."""
        # a map of the record, one byte at least, and where in it that begins
        start, end = self._ends[number], self._ends[number + 1]
        at = start % mmap.ALLOCATIONGRANULARITY
        view = mmap.mmap(self._file.fileno(), end - start + at, access=mmap.ACCESS_READ, offset=start - at)
        # the head: how many groups, and the shapes of all their arrays
        count, dimensions = int(np.frombuffer(view, np.int64, 1, at)[0]), sum(ndim for *_, ndim in self._fields)
        shapes = iter(np.frombuffer(view, np.int64, count * dimensions, at + 8).tolist())
        at += _round_up(8 * (1 + count * dimensions))
        # the arrays
        groups: list[dict[str, npt.NDArray[Any]]] = []
        for _ in range(count):
            group: dict[str, npt.NDArray[Any]] = {}
            for name, dtype, ndim in self._fields:
                shape = tuple(islice(shapes, ndim))
                length = prod(shape)
                group[name] = np.frombuffer(view, dtype, length, at).reshape(shape)
                at += _round_up(length * dtype.itemsize)
            groups.append(group)
        return groups


def _round_up(length: int) -> int:
    return -(-length // ALIGNED) * ALIGNED


class RowFile(_UnnamedFile):
    """Rows of several columns in a file without a name: appended, then gathered in any order. All have the names, types
    and widths of the first."""

    def __init__(self) -> None:
        super().__init__()
        self._dtype: np.dtype[Any] | None = None
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, columns: Arrays) -> None:
        """Write some more rows."""
        if self._dtype is None:
            self._dtype = np.dtype([(name, values.dtype, values.shape[1:]) for name, values in columns.items()])
        rows = np.empty(len(next(iter(columns.values()))), self._dtype)
        for name, values in columns.items():
            rows[name] = values
        self._write(rows.tobytes())
        self._length += len(rows)

    def gather(self, begins: Ids, lengths: Ids) -> dict[str, npt.NDArray[Any]]:
        """Runs of rows, end to end, column by column. They are read: a map would hold what lies around them too."""
        assert self._dtype is not None
        file, size = self._file.fileno(), self._dtype.itemsize
        runs = zip((begins * size).tolist(), (lengths * size).tolist(), strict=True)
        rows = np.frombuffer(b"".join([os.pread(file, length, begin) for begin, length in runs]), self._dtype)
        return {name: np.ascontiguousarray(rows[name]) for name in self._dtype.names or ()}
