"""Checks of logged propensities: whether arms were shown as often as they say."""

from __future__ import annotations

from rlrec.app.evaluation.checks.base import Check, CheckedRows
from rlrec.app.evaluation.rows.log_rows import propensity_bets
from rlrec.ope.intervals.betting import BetSums, propensities_are_wrong


class WrongPropensities(Check):
    """Bets against the propensities of the arms at position 1."""

    reason = "wrong-propensities"

    def sums(self, checked: CheckedRows) -> BetSums:
        return propensity_bets(checked.logged, checked.arms)

    def fails(self, sums: BetSums) -> bool:
        return propensities_are_wrong(sums)
