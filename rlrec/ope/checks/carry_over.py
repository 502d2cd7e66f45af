"""A test of carry-over: whether a reward depends on what its visit has already been through.

Estimates per impression judge a target in the states that the logger caused. Where a reward depends on the step of the
visit, or on how often the visit has seen the arm, the target would cause other states and earn something else. The test
compares rewards of the same arm at the same position only, by a linear model of log step and log repeats (earlier
slates of the visit that showed the arm). Readers who stay long may differ from others from their first step on: the log
of the visit's length, and its square, take that up.

Source: own derivation; errors by the jackknife over 64 blocks of clusters, a Wald test with the F distribution."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.ope.checks.within_cells import CellSums, cell_sums, slopes
from rlrec.ope.intervals.tails import hotelling_above

_TESTED = 2  # the first columns, step and repeats; the others are controls


def carry_over_sums(
    reward: Array, *, cell: Ids, cells: int, step: Ids, repeats: Ids, length: Ids, cluster: Ids
) -> CellSums:
    """Sums of one batch, (n,) each. cell: number of the arm and position, from 0; below 0: not compared. step: of the
    visit, from 0; repeats: earlier slates of the visit that showed the arm; length: decisions of the visit."""
    largest_count = max(int(counts.max(initial=0)) for counts in (step, repeats, length))
    log1p = np.log1p(np.arange(largest_count + 1))  # of every count that may occur
    stay = log1p[length]
    columns = (log1p[step], log1p[repeats], stay, stay**2, reward)
    return cell_sums(columns, cell=cell, cells=cells, cluster=cluster)


def p_value(sums: CellSums) -> float | None:
    """The p-value of the hypothesis that rewards depend neither on the step nor on repeats; None where there is not
    enough evidence: no visit has a second step, or too few clusters have rows."""
    tested = slopes(sums, tested=_TESTED)
    if tested is None:
        return None
    wald = float(tested.estimate @ np.linalg.pinv(tested.covariance) @ tested.estimate)
    return hotelling_above(wald, len(tested.estimate), tested.blocks)
