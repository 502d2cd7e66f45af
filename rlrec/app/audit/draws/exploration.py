"""Whether a policy still tries its arms: what it never shows, nobody can learn about."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rlrec.app.audit.draws.arm_counts import SumsByArm, eligible_arms
from rlrec.app.audit.integrity.findings import Findings
from rlrec.arrays import Array, Ids, take
from rlrec.errors import quantity
from rlrec.records import StoredPolicy
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log.reader import Batch
from rlrec.times import format_time

STARVING, ENTROPY = "starving", "entropy"
MIN_DECISIONS = 1_000  # decisions that tell something, at least
MIN_EXPECTED = 20.0  # times that a policy without preferences would have shown the arm
MAX_NAMED = 3  # arms in one finding
MIN_EFFECTIVE = 1.05  # arms


class StarvingArms:
    """The policy's own decisions in which an arm was eligible, since the last one that showed it, arm by arm.
    active: the keys of the arms that are not retired."""

    def __init__(self, unit: Unit, policy: StoredPolicy, *, active: Mapping[int, str]) -> None:
        self.unit = unit
        self.policy = policy
        self.active = active
        # decisions; how often chance alone would have shown it in them; how often their smallest propensities promise
        self._since = SumsByArm(3)
        self._shown_at: dict[int, int] = {}

    def take(self, batch: Batch) -> None:
        drawn_slots = take(batch.slots, ~batch.slots["imported"])
        ids, first, row = np.unique(drawn_slots["decision_id"], return_index=True, return_inverse=True)
        if len(ids):
            # the count of every arm that this batch shows starts anew
            shown = self._since.include(drawn_slots["arm_id"])
            self._since.sums[:, shown] = 0.0
            order = np.argsort(drawn_slots["at"], kind="stable")
            self._shown_at.update(
                zip(drawn_slots["arm_id"][order].tolist(), drawn_slots["at"][order].tolist(), strict=True)
            )
            self._count(drawn_slots, first, row)

    def _count(self, drawn_slots: Columns, first: Ids, row: Ids) -> None:
        """Count for each arm the decisions of a batch after the last one that showed it, or all where none did."""
        sets, set_index = np.unique(drawn_slots["eligible_id"][first], return_inverse=True)
        n = len(first)
        keys = np.sort(set_index * n + np.arange(n))  # decisions by eligible set, and in their order
        promised_shows = np.r_[0.0, drawn_slots["min_propensity"][first][keys % n].cumsum()]
        for portion, arms, sizes in eligible_arms(self.unit, sets):
            # of each arm and set the decisions behind the last one that showed the arm
            column, shown = self._since.include(arms), self._since.include(drawn_slots["arm_id"])
            last = np.full(len(self._since.arms), -1)
            np.maximum.at(last, shown, row)
            begin = np.repeat(np.arange(len(sets))[portion] * n, sizes)
            start, end = np.searchsorted(keys, begin + last[column] + 1), np.searchsorted(keys, begin + n)
            counts = end - start, (end - start) / np.repeat(sizes, sizes), promised_shows[end] - promised_shows[start]
            self._since.add(arms, counts)

    def finish(self, findings: Findings) -> None:
        since, expected, promised_shows = self._since.sums
        starving = np.flatnonzero((since >= MIN_DECISIONS) & (expected >= MIN_EXPECTED) & (promised_shows < 1))
        starving = starving[np.isin(self._since.arms[starving], list(self.active))]
        if len(starving):
            longest_starving = starving[np.argsort(-since[starving], kind="stable")]
            arms = ", ".join(map(self._describe, longest_starving[:MAX_NAMED].tolist()))
            detail = f"{quantity(len(starving), 'active arm')} not shown for long: {arms}"
            ellipsis = ", ..." if len(starving) > MAX_NAMED else ""
            findings.warning(
                STARVING, f"policy {self.policy.name}", f"{detail}{ellipsis}; a floor would keep them in the log"
            )

    def _describe(self, column: int) -> str:
        arm = int(self._since.arms[column])
        last_shown = f"since {format_time(self._shown_at[arm])}" if arm in self._shown_at else "ever"
        return f"{self.active[arm]} (in {self._since.sums[0, column]:,.0f} decisions, not {last_shown})"


class Entropy:
    """How many arms the policy chooses among in effect, in its last own decisions with a choice."""

    def __init__(self, policy: StoredPolicy) -> None:
        self.policy = policy
        self._surprise: Array = np.empty(0)

    def take(self, batch: Batch) -> None:
        slots = batch.slots
        # where an arm is alone, its propensity is the smallest one: 1
        has_choice = ~slots["imported"] & (slots["position"] == 1) & (slots["min_propensity"] < 1)
        self._surprise = np.r_[self._surprise, -np.log(slots["propensity"][has_choice])][-MIN_DECISIONS:]

    def finish(self, findings: Findings) -> None:
        if len(self._surprise) == MIN_DECISIONS and (arms := float(np.exp(self._surprise.mean()))) < MIN_EFFECTIVE:
            detail = f"the last {MIN_DECISIONS:,} decisions chose among {arms:.3f} arms in effect"
            findings.warning(ENTROPY, f"policy {self.policy.name}", f"{detail}: the log can judge no other policy")
