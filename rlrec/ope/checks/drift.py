"""A test of drift: whether an arm earns something else later in the log than earlier.

An estimate is an average over the time of its log, and misleads where rewards change: their level, or which arm is the
best. The test compares the mean reward of each arm before and after some time. A logger that learns shows an arm to
others by and by, so rows count by 1 / propensity; and it brings about other states, so only the first slot of each
visit counts. For each time there is a test of all arms alike, and one of each by itself.

Source: own derivation; errors by the jackknife over 64 blocks of clusters, tests by Student's t and Hotelling's T^2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.ope.checks.within_cells import ALPHA, BLOCKS, block_numbers
from rlrec.ope.intervals.tails import hotelling_above, t_below
from rlrec.records import Sums

PERIODS = 8  # of equal length, between which changes are looked for
ARMS = 255  # arms that are compared, at most; the others are as one
MATERIAL = 0.05  # share of the mean reward: a smaller change decides nothing
LEAST_PROPENSITY = 0.005  # rows below it count as if they had it
_LEAST = 20  # blocks, for a comparison
_ROWS, _REWARDS = 40, 10  # effective ones of an arm on either side of a change, for a comparison
_TESTED = 12  # arms that are compared one by one, at most


@dataclass(frozen=True, eq=False)
class DriftSums(Sums):
    """Sums over rows. table (4, 64, periods, a): of weights, of weighted rewards, and of the squares of both, by block
    of clusters, period and arm."""

    table: Array

    @classmethod
    def from_rows(
        cls, reward: Array, *, propensity: Array, arm: Ids, arms: int, period: Ids, cluster: Ids
    ) -> DriftSums:
        """The sums of rows, (n,) each. period: its number, from 0 to PERIODS - 1."""
        weight, shape = 1 / np.maximum(propensity, LEAST_PROPENSITY), (BLOCKS, PERIODS, min(arms, ARMS + 1))
        cell = (block_numbers(cluster) * PERIODS + period) * shape[2] + np.minimum(arm, ARMS)
        columns = (weight, weight * reward, weight**2, (weight * reward) ** 2)
        table = [np.bincount(cell, weights=column, minlength=int(np.prod(shape))) for column in columns]
        return cls(np.reshape(table, (4, *shape)))

    def followed_by(self, later: DriftSums) -> DriftSums:
        """Both logs as one: the later one is its last period, and the first two of this one are its first."""
        first, last = self.table[:, :, :2].sum(axis=2, keepdims=True), later.table.sum(axis=2, keepdims=True)
        return DriftSums(np.concatenate([first, self.table[:, :, 2:], last], axis=2))

    @property
    def drifts(self) -> bool:
        """Whether rewards surely changed at the end of some period, and by more than decides nothing."""
        total, early = self.table.sum(axis=2), np.cumsum(self.table, axis=2)
        weight, reward = total[:2].sum(axis=(1, 2))
        least_change = MATERIAL * abs(reward / weight) if weight else 0.0
        return any(
            self._changes(early[:, :, cut], total - early[:, :, cut], least_change) for cut in range(PERIODS - 1)
        )

    def _changes(self, early: Array, late: Array, least_change: float) -> bool:
        """Whether rewards differ between two times, by their sums (4, 64, a)."""
        with np.errstate(all="ignore"):
            rows, rewards = (
                np.array([side[first].sum(axis=0) ** 2 / side[squares].sum(axis=0) for side in (early, late)])
                for first, squares in ((0, 2), (1, 3))
            )
            arms = np.flatnonzero((rows >= _ROWS).all(axis=0))
            rewarded = min(float(side[1].sum() ** 2 / side[3].sum()) for side in (early, late))
            columns = np.concatenate([early[:2], late[:2]])[:, :, arms]
            columns = columns[:, columns[[0, 2]].any(axis=(0, 2))]
            total, blocks, count = columns.sum(axis=1), columns.shape[1], 1 / (1 / rows[:, arms]).sum(axis=0)
            if not len(arms) or blocks < _LEAST:
                return False
            # how much more each arm earned later, also without one block after the other
            difference, jackknifed = _difference(total), _difference(total[:, None] - columns)
        deviations, share = jackknifed - jackknifed.mean(axis=0), count / count.sum()
        level, error = float(difference @ share), float(np.sqrt((blocks - 1) * np.mean((deviations @ share) ** 2)))
        p_value = 1.0
        if rewarded >= _REWARDS and error and abs(level) > least_change:
            p_value = 2 * t_below(-abs(level) / error, blocks - 1)
        # the arms that tell most, one by one
        tested = np.flatnonzero((rewards[:, arms] >= _REWARDS).all(axis=0))
        tested = tested[np.argsort(-count[tested], kind="stable")[:_TESTED]]
        difference, deviations, share = difference[tested], deviations[:, tested], share[tested]
        covariance = (blocks - 1) / blocks * deviations.T @ deviations
        if len(tested) and share @ (difference**2 - np.diagonal(covariance)) > least_change**2 * share.sum():
            wald = float(difference @ np.linalg.pinv(covariance, hermitian=True) @ difference)
            p_value = min(p_value, hotelling_above(wald, len(tested), blocks))
        return 2 * (PERIODS - 1) * p_value < ALPHA


def _difference(sums: Array) -> Array:
    """How much more arms earned later, (..., a), from sums (4, ..., a) of weights and weighted rewards, early and
    late; 0 for an arm that a side lacks."""
    difference = sums[3] / sums[2] - sums[1] / sums[0]
    return np.where(np.isfinite(difference), difference, 0.0)
