"""Sums of a belief on columns of sparse contexts, read when a context has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlrec.arrays import Array, Ids, Index, look_up, run_starts
from rlrec.policy.contexts.marginal import Anchor
from rlrec.store import Unit
from rlrec.store.policies import beliefs
from rlrec.store.policies.beliefs import SUMS, ColumnRow

ENTIRE = 2_000  # columns from which on the whole belief is read at once
CACHED = 50_000  # columns that are kept beside those of a request


class ColumnSums:
    """The sums on the columns of one version, as they stand or stood after change `seq`: rows of columns that nobody
    asks for are not read.

    anchor: read from the store where it is None; it never changes. unit: of one snapshot, since more is read later;
    ordinal, discount: of a belief that fades. read: by column, the arms that have sums there, ascending, and these."""

    def __init__(
        self, unit: Unit, version_id: int, *, seq: int | None = None, ordinal: int = 0, discount: float = 1.0,
        anchor: Anchor | None = None,
    ) -> None:  # fmt: skip
        self.unit, self.version_id, self.seq = unit, version_id, seq
        self.ordinal, self.discount = ordinal, discount
        self.anchor = Anchor.from_packed(beliefs.weights(unit, version_id)) if anchor is None else anchor
        self.read: dict[int, tuple[Ids, Array]] = {}
        self._complete = False

    def of(self, columns: Index, arms: Ids) -> Array:
        """The sums on some columns for some arms, ascending, and their weights in the anchor, (c, m, 4); 0 where there
        are none."""
        wanted = columns.tolist()
        self._fetch(wanted)
        total = np.zeros((len(columns), len(arms), len(SUMS) + 1))
        pairs = np.repeat(columns, len(arms)), np.tile(arms, len(columns))
        total[..., -1] = self.anchor.at(*pairs).reshape(total.shape[:2])
        stored = [self.read.get(column, _NOTHING) for column in wanted]
        if not stored:
            return total
        # rows of these columns, and those of these arms among them
        row = np.repeat(np.arange(len(columns)), [len(of_column) for of_column, _ in stored])
        arm, sums = (np.concatenate(parts) for parts in zip(*stored, strict=True))
        index, among = look_up(arms, arm)
        total[row[among], index[among], :-1] = sums[among]
        return total

    def columns(self) -> Ids:
        """The columns on which there are sums, ascending."""
        self._fetch(None)
        return np.array(sorted(column for column, (arms, _) in self.read.items() if len(arms)), np.int64)

    def _fetch(self, columns: Sequence[int] | None) -> None:
        """Read the rows of columns that were not read before; None: of all."""
        if self._complete:
            return
        missing = None if columns is None else [column for column in columns if column not in self.read]
        if missing is None or len(missing) > ENTIRE:
            self._complete, missing = True, None
        if missing and len(self.read) > CACHED:
            self.read, missing = {}, list(columns or ())
        if missing is None or missing:
            self._add(beliefs.column_rows(self.unit, self.version_id, missing, seq=self.seq))
            self.read |= {column: self.read.get(column, _NOTHING) for column in missing or ()}

    def _add(self, rows: list[ColumnRow]) -> None:
        """Take the sums of rows, faded."""
        table = np.array(rows, np.float64).reshape(len(rows), len(ColumnRow._fields))
        table = table[np.lexsort((table[:, 1], table[:, 0]))]
        column, arm, then = table[:, :3].T.astype(np.int64)
        sums = table[:, 3:] * (self.discount ** (self.ordinal - then))[:, None]
        starts = run_starts(column)
        pieces = zip(np.split(arm, starts[1:]), np.split(sums, starts[1:]), strict=True)
        self.read |= dict(zip(column[starts].tolist(), pieces, strict=False))


_NOTHING = np.empty(0, np.int64), np.zeros((0, len(SUMS)))
