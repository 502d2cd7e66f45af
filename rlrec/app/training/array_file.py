"""Arrays in files without a name: written once, then read as often as training needs them.

What is read is a view of the file: nothing is copied, it counts as memory only while it is in use, and the file ends
with the process."""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
from array import array
from collections.abc import Mapping
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
    """Numbered records: objects whose arrays stay in the file."""

    def __init__(self) -> None:
        super().__init__()
        self._begins = array("q", [0])
        self._lengths: list[array[int]] = []  # of the pickle of each record, and of its arrays

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, record: object) -> None:
        """Write one more record: its pickle, then the arrays."""
        buffers: list[pickle.PickleBuffer] = []
        content = pickle.dumps(record, protocol=5, buffer_callback=buffers.append)
        blocks = [content, *(buffer.raw() for buffer in buffers)]
        self._lengths.append(array("q", map(len, blocks)))
        content = b"".join(bytes(block).ljust(_round_up(len(block)), b"\0") for block in blocks)
        self._write(content)
        self._begins.append(self._begins[-1] + len(content))

    def read(self, number: int) -> Any:
        """A record; its arrays are read-only."""
        begin, end = self._begins[number : number + 2]
        at = begin % mmap.ALLOCATIONGRANULARITY
        view = memoryview(mmap.mmap(self._file.fileno(), end - begin + at, access=mmap.ACCESS_READ, offset=begin - at))
        blocks = []
        for length in self._lengths[number]:
            blocks.append(view[at : at + length])
            at += _round_up(length)
        return pickle.loads(blocks[0], buffers=blocks[1:])


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
