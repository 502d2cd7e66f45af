"""The changes of beliefs, as columns."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rlrec.store import bulk
from rlrec.store.beliefs import SUMS
from rlrec.store.bulk import Columns
from rlrec.store.unit import Unit

_TYPES: dict[str, type] = {
    **dict.fromkeys(("bucket", "arm_id", "seq", "ordinal"), np.int64),
    **{"d_" + name: np.float64 for name in SUMS},
    **dict.fromkeys(SUMS, np.float64),
    "extra": object,
}
_ALL = f"SELECT {', '.join(_TYPES)} FROM belief_delta WHERE version_id = "


def every(unit: Unit, version_id: int) -> Iterator[Columns]:
    """Every change of a belief: those of each bucket and arm together, by seq."""
    return bulk.stream(unit, f"{_ALL}{version_id} ORDER BY bucket, arm_id, seq", _TYPES)


def between(unit: Unit, version_id: int, after: int, last: int) -> Iterator[Columns]:
    """The changes of a belief after one seq up to another, by seq."""
    chosen = f"{_ALL}{version_id} AND seq > {after} AND seq <= {last}"
    return bulk.stream(unit, f"{chosen} ORDER BY seq, bucket, arm_id", _TYPES)
