"""How long people stay away: the share of those who come back in time that has come by an age."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array
from rlrec.records import Sums

AGES = 64  # classes of ages, of equal width, up to the horizon


@dataclass(frozen=True, eq=False)
class ReturnTimes(Sums):
    """Returns by how long their visit was watched and by how long they took, (65, 64), in classes of a 64th of the
    horizon; the last class of the watched is that of a whole horizon."""

    number: Array

    @classmethod
    def from_visits(cls, *, watched: Array, gap: Array) -> ReturnTimes:
        """watched, gap (n,): of visits, in horizons; a gap is infinite where nobody came back."""
        returned = gap <= np.minimum(watched, 1.0)
        row = np.minimum(watched[returned] * AGES, AGES).astype(np.int64)
        column = np.minimum(gap[returned] * AGES, AGES - 1).astype(np.int64)
        cells = np.bincount(row * AGES + column, minlength=(AGES + 1) * AGES)
        return cls(cells.reshape(AGES + 1, AGES).astype(np.float64))

    @property
    def shares(self) -> Array:
        """The share of returns that has come at ages from 0 to the horizon, (65,), by a chain ladder: of visits that
        were watched for a class more, the share that had come before."""
        shares = np.ones(AGES + 1)
        for age in range(AGES - 1, 0, -1):
            watched = self.number[age + 1 :].sum(axis=0)
            earlier, later = watched[:age].sum(), watched[: age + 1].sum()
            shares[age] = shares[age + 1] * (earlier / later if later > 0 else 1.0)
        shares[0] = 0.0
        return shares
