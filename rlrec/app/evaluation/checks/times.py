"""Checks of time: whether rewards changed while the log was written, and whether they are all there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rlrec.app.evaluation.checks.base import Check, CheckedRows
from rlrec.app.log import reward_log
from rlrec.arrays import look_up, take
from rlrec.ope.checks.arrivals import ArrivalSums
from rlrec.ope.checks.drift import PERIODS, DriftSums
from rlrec.ope.sums.base import hash_bits

if TYPE_CHECKING:
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
            arm=checked.arms.rank[checked.arms.index(rows.slots["arm_id"])], arms=len(checked.arms), period=period,
            cluster=rows.slots["cluster"],
        )  # fmt: skip

    def fails(self, sums: DriftSums) -> bool:
        return sums.drifts


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

    def fails(self, sums: ArrivalSums) -> bool:
        return sums.are_young
