"""Sets of arrays in a file without a name: written once, then read as often as training needs them.

What is read is a view of the file: nothing is copied, it counts as memory while it is in use and no longer, and it goes
with the process."""

from __future__ import annotations

import mmap
import os
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from itertools import islice
from math import prod
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rlrec.arrays import Ids
from rlrec.errors import RlrecError

ALIGNED = 64  # bytes; arrays begin at multiples of it

Arrays = Mapping[str, npt.NDArray[Any]]
_ROOM = "set TMPDIR to a folder with room: half a kB for each decision of the log"


class Sets:
    """Numbered sets, each of one or more groups of arrays: all groups with the same names, types and numbers of
    dimensions as the first."""

    def __init__(self) -> None:
        self._file = _nameless()
        self._ends = array("q", [0])
        self._kinds: list[tuple[str, np.dtype[Any], int]] = []

    def __len__(self) -> int:
        return len(self._ends) - 1

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def add(self, groups: Sequence[Arrays]) -> None:
        """Write one more: how many groups, all shapes, then their arrays."""
        kinds = [[(name, one.dtype, one.ndim) for name, one in group.items()] for group in groups]
        self._kinds = self._kinds or kinds[0]
        if any(one != self._kinds for one in kinds):
            raise ValueError("arrays of another kind")
        arrays = [one for group in groups for one in group.values()]
        head = np.array([len(groups), *(length for one in arrays for length in one.shape)], np.int64)
        parts = [_padded(one) for one in (head, *arrays)]
        _write(self._file, b"".join(parts))
        self._ends.append(self._ends[-1] + sum(map(len, parts)))

    def read(self, number: int) -> list[dict[str, npt.NDArray[Any]]]:
        """The groups of one, whose arrays cannot be written to."""
        held, at = _mapped(self._file.fileno(), self._ends[number], self._ends[number + 1])
        count, wide = int(np.frombuffer(held, np.int64, 1, at)[0]), sum(ndim for *_, ndim in self._kinds)
        shapes = iter(np.frombuffer(held, np.int64, count * wide, at + 8).tolist())
        at += _up(8 * (1 + count * wide))
        found: list[dict[str, npt.NDArray[Any]]] = []
        for _ in range(count):
            group: dict[str, npt.NDArray[Any]] = {}
            for name, kind, ndim in self._kinds:
                shape = tuple(islice(shapes, ndim))
                length = prod(shape)
                group[name] = np.frombuffer(held, kind, length, at).reshape(shape)
                at += _up(length * kind.itemsize)
            found.append(group)
        return found


def _nameless() -> IO[bytes]:
    """A file that goes with the process. Raises RlrecError where there is no folder for it."""
    try:
        return tempfile.TemporaryFile(prefix="rlrec-", buffering=0)
    except FileNotFoundError as error:
        raise RlrecError("no temporary folder can be written to", hint=_ROOM) from error


def _write(file: IO[bytes], told: bytes) -> None:
    """All of it, at the end. Raises RlrecError where there is no room."""
    rest = memoryview(told)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        place = tempfile.gettempdir()
        raise RlrecError(f"cannot write to the temporary folder {place}: {error.strerror}", hint=_ROOM) from error


def _mapped(file: int, start: int, end: int) -> tuple[mmap.mmap, int]:
    """The bytes of a file from start to before end, which must not be none, and where in the map they begin."""
    before = start % mmap.ALLOCATIONGRANULARITY
    return mmap.mmap(file, end - start + before, access=mmap.ACCESS_READ, offset=start - before), before


def _padded(one: npt.NDArray[Any]) -> bytes:
    told = one.tobytes()
    return told + bytes(_up(len(told)) - len(told))


def _up(length: int) -> int:
    return -(-length // ALIGNED) * ALIGNED


class Table:
    """Rows of several columns in a file without a name: appended, then gathered in any order."""

    def __init__(self, columns: Arrays) -> None:
        """columns: of the names, types and widths that all rows have; the rows themselves are not taken."""
        self._file = _nameless()
        self._kind = np.dtype([(name, one.dtype, one.shape[1:]) for name, one in columns.items()])

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def append(self, columns: Arrays) -> None:
        """Write some more rows."""
        length = len(next(iter(columns.values())))
        rows = np.empty(length, self._kind)
        for name, values in columns.items():
            rows[name] = values
        _write(self._file, rows.tobytes())

    def gather(self, begins: Ids, lengths: Ids) -> dict[str, npt.NDArray[Any]]:
        """Runs of rows, end to end, column by column. They are read, for a map would hold what lies around them too."""
        file, wide = self._file.fileno(), self._kind.itemsize
        runs = zip((begins * wide).tolist(), (lengths * wide).tolist(), strict=True)
        found = np.frombuffer(b"".join([os.pread(file, length, begin) for begin, length in runs]), self._kind)
        return {name: np.ascontiguousarray(found[name]) for name in self._kind.names or ()}
