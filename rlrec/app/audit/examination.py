"""Whether a belief is told what its slots earn: by events of slots, and by a curve where clicks fall with the position
at equal arms."""

from __future__ import annotations

import numpy as np

from rlrec import policy as kinds
from rlrec.app.audit.arm_counts import SumsByArm
from rlrec.app.audit.findings import Findings
from rlrec.app.log import reward_log
from rlrec.records import Version
from rlrec.store.reader import Batch

CHECK = "positions"
ALARM = 5.0  # standard deviations by which rewards fall with the position
FALLEN = 0.9  # of what position 1 earns, that positions below it earn at most


class Examination:
    """Rewards by position at equal arms, of one policy's own slots, against the curve of its live version; and whether
    any of its events is of a slot."""

    def __init__(self, version: Version) -> None:
        self.version = version
        self._curve = version.params.get("position")
        self._values = len(version.params.get("examination") or ())
        self._learns = "position" in kinds.parameters(version.policy.kind)
        # slots, position, reward, their squares and product; slots and rewards at position 1
        self._sums = SumsByArm(8)
        self._longest = 0
        self._online = kinds.load(version.policy.kind).online
        self._weighed = {kind for kind, weight in version.reward.weights.items() if weight}
        self._of_pages = self._of_slots = 0  # weighed events

    def take(self, batch: Batch) -> None:
        if not self._learns:
            return
        slots = reward_log.with_rewards(batch, self.version.reward)
        rows = slots.take(~slots.slots["imported"] & ~slots.slots["censored"])
        position, reward = rows.slots["position"].astype(np.float64), rows.reward
        first = position == 1
        of_page = batch.events["position"] == 0
        weighed = np.array([kind in self._weighed for kind in batch.events["kind"].tolist()], np.bool_)
        weighed &= np.isin(batch.events["decision_id"], rows.slots["decision_id"])
        self._of_pages += int(np.count_nonzero(weighed & of_page))
        self._of_slots += int(np.count_nonzero(weighed & ~of_page))
        self._longest = max(self._longest, int(position.max(initial=0)))
        terms = (np.ones(len(rows)), position, reward, position**2, reward**2, position * reward, first, first * reward)
        self._sums.add(rows.slots["arm_id"], terms)

    def finish(self, findings: Findings) -> None:
        subject = f"policy {self.version.policy.name}"
        if self._curve and self._longest > self._values:
            detail = f"slates have up to {self._longest} positions, and curve {self._curve} ends at {self._values}"
            findings.warning(CHECK, subject, f"{detail}: slots below it teach nothing")
        elif not self._curve and self._longest > 1 and (share := self._fallen()) is not None:
            name, curve = self.version.policy.name, self.version.policy.display_name
            findings.warning(
                CHECK, subject,
                f"at equal arms, slots below position 1 earn {share:.0%} of those at it, and the belief uses no curve: "
                f"estimate one by `rlrec position fit {curve} --log policy={name}`, "
                f"then `rlrec policy rebuild {name} --position {curve}`",
            )  # fmt: skip

        if self._online and self._of_pages and not self._of_slots:
            findings.warning(
                CHECK, subject,
                f"whatever reward {self.version.reward.name} weighs came for pages ({self._of_pages:,} events), and "
                "the belief learns from slots alone: `rlrec feedback --position P` says which slot an event is of",
            )  # fmt: skip

    def _fallen(self) -> float | None:
        """The share of what position 1 earns that slots below it earn at equal arms; None where rewards do not fall
        clearly with the position."""
        slots, position, reward, positions, rewards, product, first, at_first = self._sums.sums
        n = np.maximum(slots, 1)
        # within arms: how position and reward vary together, against chance
        together = (product - position * reward / n).sum()
        chance = ((positions - position**2 / n) * (rewards - reward**2 / n) / n).sum()
        if chance <= 0 or together > -ALARM * np.sqrt(chance):
            return None
        # what the slots below would have earned at position 1
        expected = ((slots - first) * np.divide(at_first, first, out=np.zeros_like(first), where=first > 0)).sum()
        earned = (reward - at_first)[first > 0].sum()
        return float(earned / expected) if 0 < earned < FALLEN * expected or (expected > 0 >= earned) else None
