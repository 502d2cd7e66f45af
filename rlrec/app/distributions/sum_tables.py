"""Functions here bring the sums of beliefs into the form that distributions read. A table has the ids of arms,
ascending, and the sums of each arm, discounted to a moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlrec.arrays import Array, Ids, Index, look_up, run_starts
from rlrec.policy.beliefs.statistics import Forgetting
from rlrec.store import Unit
from rlrec.store.database.unit import Row, damage_error
from rlrec.store.policies import beliefs
from rlrec.store.policies.beliefs import SUMS, BeliefRow

if TYPE_CHECKING:
    from rlrec.policy.contexts.marginal import Anchor

_NEGLIGIBLE = 1e-9  # pulls: a smaller rest is rounding
MIN_COLUMNS_FOR_ALL = 2_000  # columns from which on the whole belief is read at once
MAX_CACHED_COLUMNS = 50_000  # columns that are cached besides those of a request
Table = tuple[Ids, Array]
_NO_SUMS = np.empty(0, np.int64), np.zeros((0, len(SUMS)))


def replace_sums(arms: Ids, sums: Array, changed_arms: Ids, changed_sums: Array) -> tuple[Ids, Array]:
    """Return arms, ascending, and their sums, in which the changed arms have their new sums. Arms that are new are
    added. arms (m,), ascending; sums (m, width): the old sums."""
    if not len(changed_arms):
        return arms, sums
    if not len(arms):
        return changed_arms, changed_sums
    index = arms.searchsorted(changed_arms)
    is_new, sums = arms[np.minimum(index, len(arms) - 1)] != changed_arms, sums.copy()
    if not is_new.any():
        sums[index] = changed_sums
        return arms, sums
    sums[index[~is_new]] = changed_sums[~is_new]
    return np.insert(arms, index[is_new], changed_arms[is_new]), np.insert(
        sums, index[is_new], changed_sums[is_new], axis=0
    )


def split_arms(rows: Sequence[Row], width: int) -> tuple[Ids, Array]:
    """Split n rows into the arms (n,), which are the first column, and the other columns, (n, width)."""
    values = np.array(rows, np.float64).reshape(len(rows), 1 + width)
    return values[:, 0].astype(np.int64), values[:, 1:]


def faded_sums(rows: Sequence[BeliefRow], forgetting: Forgetting, ordinal: int) -> dict[int, Table]:
    """Discount rows of `beliefs.rows` to the moment when the policy had made `ordinal` decisions, and add up the
    buckets of each section. Returns, for each section, the arms and their sums. Section 0 always exists."""
    sections, oldest = defaultdict[int, list[BeliefRow]](list), forgetting.oldest_bucket(ordinal)
    if not rows or rows[-1].bucket < beliefs.SECTION:  # rows are in order of buckets
        sections[0] = [row for row in rows if row.bucket >= oldest]
    else:
        for row in rows:
            if row.bucket % beliefs.SECTION >= oldest:
                sections[row.bucket // beliefs.SECTION].append(row)
    tables = {
        section: _faded_table(section_rows, forgetting, ordinal)
        for section, section_rows in sections.items()
        if section_rows
    }
    return {0: (np.empty(0, np.int64), np.zeros((0, 3)))} | tables


def _faded_table(rows: Sequence[BeliefRow], forgetting: Forgetting, ordinal: int) -> Table:
    sums = np.array([(row.pulls, row.reward_sum, row.reward_squares) for row in rows])
    if rows[0].extra is not None:
        extras = [row.extra or b"" for row in rows]
        if len(extras[0]) % 8 or len(set(map(len, extras))) > 1:
            raise damage_error("the sums of a belief are not as long as each other")
        sums = np.hstack([sums, np.array([np.frombuffer(extra, "<f8") for extra in extras])])
    sums = sums * (forgetting.discount ** (ordinal - np.array([row.ordinal for row in rows], np.float64)))[:, None]
    arms, index = np.unique(np.array([row.arm_id for row in rows], np.int64), return_inverse=True)
    totals = np.zeros((len(arms), sums.shape[1]))
    np.add.at(totals, index.reshape(-1), sums)
    totals[np.abs(totals[:, 0]) < _NEGLIGIBLE] = 0.0
    return arms, totals


def align_values(stored_arms: Ids, values: Array, arms: Ids, default: tuple[float, ...]) -> Array:
    """Return the values of m arms, (m, width); an arm that is not stored has the default values. stored_arms: the arms
    with values; values: the values of each stored arm; arms (m,): the wanted arms, ascending."""
    if 0 < len(stored_arms) == len(arms) and (stored_arms == arms).all():
        return values
    aligned_values = np.broadcast_to(np.array(default), (len(arms), len(default)))
    if len(stored_arms):
        (index, is_wanted), aligned_values = look_up(arms, stored_arms), aligned_values.copy()
        aligned_values[index[is_wanted]] = values[is_wanted]
    return aligned_values


class ColumnSums:
    """This class holds the sums of one version for the columns of sparse contexts, now or after change `seq`. Only
    columns that are asked for are read.

    unit: the transaction from which columns are read, all in one snapshot; anchor: the version's weights that were
    fitted together to a log, read from the store if None; ordinal: the number of decisions to which the sums are
    discounted; discount: the factor per decision. cached_columns: for each column, the arms with sums, ascending,
    and their sums."""

    def __init__(
        self, unit: Unit, version_id: int, *, seq: int | None = None, ordinal: int = 0, discount: float = 1.0,
        anchor: Anchor | None = None,
    ) -> None:  # fmt: skip
        self.unit, self.version_id, self.seq = unit, version_id, seq
        self.ordinal, self.discount = ordinal, discount
        if anchor is None:
            from rlrec.policy.contexts.marginal import Anchor  # policies without such sums need none of it

            anchor = Anchor.from_packed(beliefs.weights(unit, version_id))
        self.anchor = anchor
        self.cached_columns: dict[int, tuple[Ids, Array]] = {}
        self._has_all_columns = False

    def sums(self, columns: Index, arms: Ids) -> Array:
        """Return three sums and the weight in the anchor, for each of c columns and m arms (ascending), (c, m, 4). The
        sums are 0 where none are stored."""
        column_numbers = columns.tolist()
        self._fetch(column_numbers)
        total = np.zeros((len(columns), len(arms), len(SUMS) + 1))
        pairs = np.repeat(columns, len(arms)), np.tile(arms, len(columns))
        total[..., -1] = self.anchor.weights_at(*pairs).reshape(total.shape[:2])
        tables = [self.cached_columns.get(column, _NO_SUMS) for column in column_numbers]
        if not tables:
            return total
        # the rows of these columns, and among them those of these arms
        row = np.repeat(np.arange(len(columns)), [len(column_arms) for column_arms, _ in tables])
        arm, sums = (np.concatenate(pieces) for pieces in zip(*tables, strict=True))
        index, has_arm = look_up(arms, arm)
        total[row[has_arm], index[has_arm], :-1] = sums[has_arm]
        return total

    def column_ids(self) -> Ids:
        """Return the columns that have sums, ascending."""
        self._fetch(None)
        return np.array(sorted(column for column, (arms, _) in self.cached_columns.items() if len(arms)), np.int64)

    def _fetch(self, columns: Sequence[int] | None) -> None:
        """Read the given columns that were not read before; read all columns if `columns` is None."""
        if self._has_all_columns:
            return
        unread = None if columns is None else [column for column in columns if column not in self.cached_columns]
        if unread is None or len(unread) > MIN_COLUMNS_FOR_ALL:
            self._has_all_columns, unread = True, None
        if unread and len(self.cached_columns) > MAX_CACHED_COLUMNS:
            self.cached_columns, unread = {}, list(columns or ())
        if unread is None or unread:
            self._add(beliefs.column_rows(self.unit, self.version_id, unread, seq=self.seq))
            self.cached_columns |= {column: self.cached_columns.get(column, _NO_SUMS) for column in unread or ()}

    def _add(self, rows: list[Row]) -> None:
        """Discount the sums in rows from the store, and add their columns to the cache."""
        table = np.array(rows, np.float64).reshape(len(rows), 3 + len(SUMS))
        table = table[np.lexsort((table[:, 1], table[:, 0]))]
        column, arm, written_at = table[:, :3].T.astype(np.int64)
        sums = table[:, 3:] * (self.discount ** (self.ordinal - written_at))[:, None]
        starts = run_starts(column)
        pieces = zip(np.split(arm, starts[1:]), np.split(sums, starts[1:]), strict=True)
        self.cached_columns |= dict(zip(column[starts].tolist(), pieces, strict=False))
