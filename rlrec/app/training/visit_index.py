"""Visits that were written, in the order of their names: in files by the first bits of these, so that memory holds some
of them at a time, however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec.app.training.array_file import RowFile

BITS = 4  # of a name

Columns = dict[str, npt.NDArray[Any]]


class VisitIndex:
    """A row for each visit, whose columns are `split`, `name` (uint64) and whatever else is known of it."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int], RowFile] = {}

    def close(self) -> None:
        """Let the files go."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def add(self, columns: Columns) -> None:
        """Write some more visits."""
        first_bits = (columns["name"] >> np.uint64(64 - BITS)).astype(np.int64)
        for split in np.unique(columns["split"]).tolist():
            of_split = columns["split"] == split
            for bits in np.unique(first_bits[of_split]).tolist():
                rows = np.flatnonzero(of_split & (first_bits == bits))
                if (split, bits) not in self._files:
                    self._files[split, bits] = RowFile(columns)
                self._files[split, bits].append({name: column[rows] for name, column in columns.items()})

    def ordered(self, split: int) -> Iterator[Columns]:
        """The visits of a split by name, some at a time."""
        for bits in range(2**BITS):
            if (split, bits) in self._files:
                file = self._files[split, bits]
                columns = file.gather(np.array([0]), np.array([len(file)]))
                order = np.argsort(columns["name"], kind="stable")
                yield {name: column[order] for name, column in columns.items()}

    def count(self, split: int) -> int:
        """How many visits are in a split."""
        return sum(len(file) for (of_split, _), file in self._files.items() if of_split == split)

    def column(self, split: int, name: str) -> npt.NDArray[Any]:
        """A column of all visits of a split."""
        return np.concatenate([np.empty(0, np.int64), *(columns[name] for columns in self.ordered(split))])

    def batches(self, split: int, size: int) -> Iterator[Columns]:
        """The visits of a split by name, in batches of about one size, at most this one."""
        total = self.count(split)
        number = -(-total // size)
        sizes = (total // number + (index < total % number) for index in range(number))
        waiting, begin, wanted = Columns(), 0, next(sizes, 0)
        for columns in self.ordered(split):
            if waiting:
                columns = {name: np.r_[waiting[name][begin:], column] for name, column in columns.items()}
            waiting, begin = columns, 0
            while 0 < wanted <= len(waiting["name"]) - begin:
                yield {name: column[begin : begin + wanted] for name, column in waiting.items()}
                begin, wanted = begin + wanted, next(sizes, 0)
