"""A test of independent slots: whether a slot earns less below arms that attract.

Estimates per slot judge an arm at its position, whatever stands above it. Where readers stop at what they like, or want
no more of it, a target that fills the top otherwise earns something else below. Readers differ in eagerness, so their
clicks above predict their clicks below without any such thing: the test looks at what was shown above, not at what was
clicked. It compares rewards of the same arm at the same position by the sum of the attraction of the arms above, which
a model says that never saw the reader. It is one-sided: where a logger fits its slates to the reader, the arms above
tell of the reader, and then those who click more have more attractive arms above, not less.

Source: own derivation; the error by the jackknife over 64 blocks of clusters."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array, Ids, numbers_in_runs, run_starts
from rlrec.ope.checks.within_cells import CellSums, cell_sums, slopes
from rlrec.ope.intervals.tails import t_below


def slots_above_sums(
    reward: Array, *, attraction: Array, cell: Ids, cells: int, decision: Ids, position: Ids, cluster: Ids
) -> CellSums:
    """Sums of one batch of slots, (n,) each, in order of decision and position. attraction: of the arm of each; cell:
    number of the arm and position, from 0; below 0: not compared. Slots below a missing one are not compared."""
    starts = run_starts(decision)
    # attraction of the arms above, of the same slate
    cumulative = np.cumsum(attraction) - attraction
    attraction_above = cumulative - np.repeat(cumulative[starts], np.diff(starts, append=len(decision)))
    compared = (position > 1) & (numbers_in_runs(starts, len(decision)) == position - 1)
    return cell_sums((attraction_above, reward), cell=np.where(compared, cell, -1), cells=cells, cluster=cluster)


def p_value(sums: CellSums) -> float | None:
    """The one-sided p-value of the hypothesis that slots below attractive arms do not earn less; None where there is
    not enough evidence."""
    tested = slopes(sums, tested=1)
    if tested is None or not tested.covariance[0, 0] > 0:
        return None
    return t_below(float(tested.estimate[0] / np.sqrt(tested.covariance[0, 0])), tested.blocks - 1)
