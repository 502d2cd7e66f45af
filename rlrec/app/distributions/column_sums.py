"""Sums of a belief on columns of sparse contexts, read when a context has them."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array, Ids, Index
from rlrec.store import Unit, beliefs
from rlrec.store.beliefs import SUMS, ColumnRow

ENTIRE = 2_000  # columns from which on the whole belief is read at once


class ColumnSums:
    """The sums on the columns of one version, as they stand or stood after change `seq`: rows of columns that nobody
    asks for are not read.

    unit: of one snapshot, since more is read later; ordinal, discount: of a belief that fades. read: the columns that
    were asked for, ascending."""

    def __init__(
        self, unit: Unit, version_id: int, *, seq: int | None = None, ordinal: int = 0, discount: float = 1.0
    ) -> None:
        self.unit, self.version_id, self.seq = unit, version_id, seq
        self.ordinal, self.discount = ordinal, discount
        self._columns = self._arms = np.empty(0, np.int64)  # of each row; rows by column and arm
        self._sums, self.read = np.zeros((0, len(SUMS))), np.empty(0, np.int64)
        self._complete = False

    def __len__(self) -> int:
        """Rows that were read."""
        return len(self._sums)

    def of(self, columns: Index, arms: Ids) -> Array:
        """The sums on some columns for some arms, (c, m, 3); 0 where there are none. Both ascend."""
        self._fetch(columns)
        total = np.zeros((len(columns), len(arms), len(SUMS)))
        if not len(self._columns):
            return total
        # rows of these columns
        low, high = (np.searchsorted(self._columns, columns, side) for side in ("left", "right"))
        count = high - low
        row = np.repeat(low - np.r_[0, np.cumsum(count)[:-1]], count) + np.arange(count.sum())
        # those of these arms
        index = np.minimum(np.searchsorted(arms, self._arms[row]), len(arms) - 1)
        among = arms[index] == self._arms[row]
        total[np.repeat(np.arange(len(columns)), count)[among], index[among]] = self._sums[row[among]]
        return total

    def columns(self) -> Ids:
        """The columns on which there are sums, ascending."""
        self._fetch(None)
        return np.unique(self._columns)

    def _fetch(self, columns: Index | None) -> None:
        """Read the rows of columns that were not read before; None: of all."""
        if self._complete:
            return
        missing = None if columns is None else np.setdiff1d(columns, self.read)
        if missing is None or len(missing) > ENTIRE:
            self._complete = True
            self._set(beliefs.of_columns(self.unit, self.version_id, None, seq=self.seq))
        elif len(missing):
            self.read = np.union1d(self.read, missing)
            self._set(beliefs.of_columns(self.unit, self.version_id, missing.tolist(), seq=self.seq), more=True)

    def _set(self, rows: list[ColumnRow], *, more: bool = False) -> None:
        """Take the sums of rows, faded; more: beside those that are there."""
        table = np.array(rows, np.float64).reshape(len(rows), len(ColumnRow._fields))
        column, arm, then = table[:, :3].T.astype(np.int64)
        sums = table[:, 3:] * (self.discount ** (self.ordinal - then))[:, None]
        if more:
            column, arm = np.r_[self._columns, column], np.r_[self._arms, arm]
            sums = np.concatenate([self._sums, sums])
        order = np.lexsort((arm, column))
        self._columns, self._arms, self._sums = column[order], arm[order], sums[order]
