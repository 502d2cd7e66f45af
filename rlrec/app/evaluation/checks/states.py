"""Checks of what rewards depend on: the course of the visit, and the slots above."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlrec.app.evaluation.checks.base import Check, CheckedRows
from rlrec.app.evaluation.rows import log_rows
from rlrec.ope.checks.within_cells import CellSums, alarms, carry_over_p_value, slots_above_p_value

if TYPE_CHECKING:
    from rlrec.ope.sums.base import Estimator
    from rlrec.store.log.selected import LogExtent


class CarryOver(Check):
    """Whether the reward of an arm depends on the step of the visit, or on how often the visit has seen the arm."""

    reason = "carry-over"

    def concerns(self, estimator: Estimator) -> bool:
        return not estimator.sees_visits

    def sums(self, checked: CheckedRows) -> CellSums | None:
        return log_rows.carry_over(checked.rows, checked.arms, positions=checked.extent.positions)

    def fails(self, sums: CellSums) -> bool:
        return alarms(carry_over_p_value(sums))


class DependentSlots(Check):
    """Whether a slot earns less below arms that attract."""

    reason = "dependent-slots"
    needs_model = True

    def is_possible(self, extent: LogExtent) -> bool:
        return extent.positions > 1

    def concerns(self, estimator: Estimator) -> bool:
        return estimator.independent_slots

    def sums(self, checked: CheckedRows) -> CellSums | None:
        if checked.model is None:
            return None
        attraction = checked.model.attraction(checked.rows)
        return log_rows.slots_above(checked.rows, attraction, checked.arms, positions=checked.extent.positions)

    def fails(self, sums: CellSums) -> bool:
        return alarms(slots_above_p_value(sums))
