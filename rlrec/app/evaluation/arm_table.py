"""The arms of a store, by id and by key."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rlrec.arrays import Ids
from rlrec.store.damage import StoredRows


class ArmTable:
    """The catalogue of a store. ids (a,) ascending; keys: by id; rank (a,): where the key of each stands in order.

    Sums over arms are in the order of keys, which is the same in every store."""

    def __init__(self, keys: Mapping[int, str]) -> None:
        self.keys = StoredRows("arm", keys.items())
        self.ids: Ids = np.array(sorted(keys), np.int64)
        self.rank: Ids = np.argsort(np.argsort([keys[arm] for arm in self.ids.tolist()]))

    def __len__(self) -> int:
        return len(self.ids)

    def index(self, arm_id: Ids) -> Ids:
        """Where arms stand among the ids, same shape."""
        return np.searchsorted(self.ids, arm_id)
