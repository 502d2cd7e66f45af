"""Functions here read the changes of beliefs as columns, and merge several changes into one change."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rlrec.store.database import bulk
from rlrec.store.database.bulk import Columns
from rlrec.store.database.unit import Unit
from rlrec.store.policies import beliefs

_TYPES: dict[str, type] = {
    **dict.fromkeys(("bucket", "arm_id", "seq", "ordinal"), np.int64),
    **{"d_" + name: np.float64 for name in beliefs.SUMS},
    **dict.fromkeys(beliefs.SUMS, np.float64),
    "extra": object,
}
_DELTAS = f"SELECT {', '.join(_TYPES)} FROM belief_delta WHERE version_id = "


def stream(unit: Unit, version_id: int) -> Iterator[Columns]:
    """Yield all changes of a belief as columns, in portions, in order of bucket, arm and seq (the number of the
    change)."""
    return bulk.stream(unit, f"{_DELTAS}{version_id} ORDER BY bucket, arm_id, seq", _TYPES)


def read_range(unit: Unit, version_id: int, first: int, last: int, *, counts_alone: bool = False) -> Iterator[Columns]:
    """Yield the changes of a belief with first < seq <= last as columns, in portions, in order of seq (the number of
    the change). counts_alone: whether to read only bucket 0, which leaves out the sums of columns of contexts."""
    test = f"seq > {first} AND seq <= {last}{' AND bucket = 0' if counts_alone else ''}"
    return bulk.stream(unit, f"{_DELTAS}{version_id} AND {test} ORDER BY seq, bucket, arm_id", _TYPES)


def merge(unit: Unit, version_id: int, *, first: int, last: int, discount: float) -> None:
    """Replace all changes with first < seq <= last by one change, for each bucket and arm of a belief. The sums of the
    belief after change `last`, and after every later change, stay the same. discount: the factor by which the sums fade
    with each decision (1: they do not fade)."""
    changes_query = "SELECT bucket, arm_id FROM belief_delta WHERE version_id = ? AND seq > ? AND seq <= ?"
    repeated_query = f"{changes_query} GROUP BY bucket, arm_id HAVING count(*) > 1"
    repeated_keys = set(unit.ask(repeated_query, version_id, first, last))
    first_rows = {row[:2]: row for row in beliefs.rows(unit, version_id, start=beliefs.EARLIEST, seq=first)}
    rows = [row for row in beliefs.rows(unit, version_id, start=beliefs.EARLIEST, seq=last) if row[:2] in repeated_keys]
    key = "version_id = ? AND bucket = ? AND arm_id = ?"
    newer_seq = f"SELECT max(seq) FROM belief_delta WHERE {key} AND seq <= ?"
    old_keys = [(version_id, *row[:2], first, version_id, *row[:2], last) for row in rows]
    unit.tell_each(f"DELETE FROM belief_delta WHERE {key} AND seq > ? AND seq < ({newer_seq})", old_keys)
    changes = []
    for row in rows:
        first_row = first_rows.get(row[:2], row._replace(pulls=0.0, reward_sum=0.0, reward_squares=0.0))
        fade = discount ** (row.ordinal - first_row.ordinal)
        sums = (new_sum - fade * old_sum for new_sum, old_sum in zip(row[3:6], first_row[3:6], strict=True))
        changes.append((*sums, version_id, *row[:2], first, last))
    columns = ", ".join(f"d_{name} = ?" for name in beliefs.SUMS)
    unit.tell_each(f"UPDATE belief_delta SET {columns} WHERE {key} AND seq > ? AND seq <= ?", changes)
