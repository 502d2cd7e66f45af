"""Checks of rewards: whose they are, whether they changed with time or are still on their way, what they depend on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rlrec.app.evaluation.checks.base import Check, CheckedRows
from rlrec.app.log import reward_log
from rlrec.arrays import Ids, distinct, look_up, take
from rlrec.ope.checks.dependence import (
    CELLS,
    CellSums,
    alarms,
    carry_over_p_value,
    carry_over_sums,
    slots_above_p_value,
    slots_above_sums,
)
from rlrec.ope.checks.machines import SessionSums
from rlrec.ope.checks.times import PERIODS, ArrivalSums, DriftSums
from rlrec.ope.sums.base import hash_bits
from rlrec.store.log.reader import ABSENT

if TYPE_CHECKING:
    from rlrec.ope.sums.base import Estimator
    from rlrec.store.log.selected import LogExtent


MAX_DECISIONS = 200_000  # whose events are looked at, about
_SALT = 11


class LogDrift(Check):
    """Whether the rewards of arms, at the first position of the first page of a visit, changed at some time."""

    reason = "drift"

    def is_possible(self, extent: LogExtent) -> bool:
        return extent.last_at > extent.first_at

    def sums(self, checked: CheckedRows) -> DriftSums | None:
        slots = checked.rows.slots
        propensity = np.where(np.isnan(slots["propensity"]), slots["marginal"], slots["propensity"])
        is_first = (slots["position"] == 1) & (slots["step"] == 0) & ~slots["subsampled"] & (propensity > 0)
        rows, extent = checked.rows.take(is_first), checked.extent
        length = extent.last_at - extent.first_at + 1
        period = np.clip((rows.slots["at"] - extent.first_at) * PERIODS // length, 0, PERIODS - 1)
        return DriftSums.from_rows(
            rows.reward, propensity=propensity[is_first] * rows.slots["keep_probability"],
            arm=checked.arms.ranks(rows.slots["arm_id"]), arms=len(checked.arms), period=period,
            cluster=rows.slots["cluster"],
        )  # fmt: skip


class YoungRewards(Check):
    """Whether rewards of imported decisions, which count whatever their age is, are still on their way."""

    reason = "young-rewards"

    def sums(self, checked: CheckedRows) -> ArrivalSums | None:
        slots, log, definition = checked.rows.slots, checked.logged.log, checked.reward
        if not slots["imported"].any():
            return None
        decisions, first = np.unique(slots["decision_id"], return_index=True)
        # of a long log some persons
        share = np.uint64(max(1, -(-checked.extent.decisions // MAX_DECISIONS)))
        is_used = hash_bits(slots["cluster"][first], salt=_SALT) % share == 0
        decisions, first = decisions[is_used], first[is_used]
        events = take(log.events, look_up(decisions, log.events["decision_id"])[1])
        events, reward = reward_log.event_rewards(replace(log, events=events), definition)
        since = np.maximum(checked.extent.last_at - slots["at"][first], 0) / max(1, definition.window_us)
        distance = np.where(slots["imported"][first], since, np.inf)
        return ArrivalSums.from_rows(
            distance, cluster=slots["cluster"][first], decision=np.searchsorted(decisions, events["decision_id"]),
            age=events["age_us"] / max(1, definition.window_us), reward=reward,
        )  # fmt: skip


class NoUsers(Check):
    """Whether no user is known, and nobody said that each session is another person: people who come back under other
    keys make intervals too narrow, and nothing in the log tells of them."""

    reason = "no-users"

    def sums(self, checked: CheckedRows) -> Ids | None:
        """How many slots have a user, and how many have none and may be of people who come back."""
        if checked.people == "stated":
            return None
        slots = checked.rows.slots
        has_user = slots["user_id"] != ABSENT if checked.cluster == "user" else np.zeros(len(checked.rows), np.bool_)
        is_unclear = ~has_user & (slots["imported"] | (checked.people is None))
        return np.array([has_user.sum(), is_unclear.sum()])

    def fails(self, sums: Ids) -> bool:
        users, unclear = sums
        return bool(users == 0 and unclear > 0)


class MachineSessions(Check):
    """Whether sessions that click nearly everything are more than people account for."""

    reason = "machine-sessions"

    def sums(self, checked: CheckedRows) -> SessionSums:
        # sessions of a user belong together, and would not be independent
        _, person = distinct(checked.rows.slots["cluster" if checked.cluster == "user" else "session_id"])
        slots, clicks = (np.bincount(person, weights=weights) for weights in (None, ~checked.rows.default))
        return SessionSums.from_sessions(slots.astype(np.int64), clicks.astype(np.int64))


class CarryOver(Check):
    """Whether the reward of an arm depends on the step of the visit, or on how often the visit has seen the arm."""

    reason = "carry-over"

    def concerns(self, estimator: Estimator) -> bool:
        return not estimator.sees_visits

    def sums(self, checked: CheckedRows) -> CellSums | None:
        rows, slots = checked.rows, checked.rows.slots
        if not slots["step"].any() or slots["subsampled"].any():
            return None
        cell, cells = _cells(checked)
        return carry_over_sums(
            rows.reward, cell=cell, cells=cells, step=slots["step"], repeats=slots["repeats"], length=slots["length"],
            cluster=slots["cluster"],
        )  # fmt: skip

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
        rows, slots = checked.rows, checked.rows.slots
        cell, cells = _cells(checked)
        # slots that are weighed by their marginals, whatever stands above
        cell = np.where(np.isnan(slots["marginal"]) | slots["subsampled"], -1, cell)
        return slots_above_sums(
            rows.reward, attraction=checked.model.attraction(rows), cell=cell, cells=cells,
            decision=slots["decision_id"], position=slots["position"], cluster=slots["cluster"],
        )  # fmt: skip

    def fails(self, sums: CellSums) -> bool:
        return alarms(slots_above_p_value(sums))


def _cells(checked: CheckedRows) -> tuple[Ids, int]:
    """The cell of each slot, -1 without one, and how many there are: of the first arms by their keys."""
    slots, arms, positions = checked.rows.slots, checked.arms, checked.extent.positions
    rank = arms.ranks(slots["arm_id"])
    number = min(len(arms), max(1, CELLS // positions))
    inside = (rank < number) & (slots["position"] <= positions)
    return np.where(inside, rank * positions + slots["position"] - 1, -1), number * positions
