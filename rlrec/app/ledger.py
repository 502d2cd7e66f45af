"""How beliefs change: differences of rewards, added up over a transaction and written once, under the policy's lock.

Plain Python: a single `feedback` loads no numpy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

from rlrec.policy import reward as rewards
from rlrec.records import Decision, Event, Slot, Version
from rlrec.store import Unit, beliefs, decisions, events, policies
from rlrec.store.beliefs import NOTHING, Sums
from rlrec.store.events import CENSOR

OVERDUE = 1_000  # slots that any writing command of a policy lets in at most


class Ledger:
    """The policies of one transaction, locked in order; their learning beliefs; what changes in them.

    `seq` of a policy is the number of the change that this transaction makes: decisions and events carry it, and every
    belief that changes gets one delta under it. It is raised when it is first asked for: who changes nothing leaves
    no trace.
    """

    def __init__(self, unit: Unit, policy_ids: Collection[int]) -> None:
        self.unit = unit
        self.heads = policies.lock(unit, policy_ids)
        unit.now = max(unit.now, decisions.newest(unit) or 0)  # others may have decided while we waited
        self._seq: dict[int, int] = {}
        self.learning: dict[int, list[Version]] = defaultdict(list)
        for version in policies.versions(unit, policy_ids):
            if version.learning:
                self.learning[version.policy.id].append(version)
        self._changes: dict[tuple[int, int], dict[int, Sums]] = defaultdict(dict)  # (policy, version): arm: sums

    def seq(self, policy_id: int) -> int:
        if policy_id not in self._seq:
            self._seq[policy_id] = policies.raise_seq(self.unit, policy_id)
        return self._seq[policy_id]

    def add(self, version: Version, arm_id: int, before: Sums, after: Sums) -> None:
        """Replace what one slot adds to a belief."""
        change = tuple(new - old for old, new in zip(before, after, strict=True))
        if any(change):
            changes = self._changes[version.policy.id, version.id]
            sums = changes.get(arm_id, NOTHING)
            changes[arm_id] = (sums[0] + change[0], sums[1] + change[1], sums[2] + change[2])

    def serve(self, policy_id: int, arm_ids: Sequence[int]) -> None:
        """Slots are served: they enter every belief that learns `served`, with the default reward."""
        for version in self.learning[policy_id]:
            if version.entered_to is None:
                entry = rewards.entry(version.reward.default)
                for arm in arm_ids:
                    self.add(version, arm, NOTHING, entry)

    def settle(self, *, limit: int = OVERDUE) -> int:
        """Let slots whose window is over into the beliefs that learn `settled`, oldest first: how many entered."""
        return sum(
            self._settle(versions, place, limit)
            for versions in self.learning.values()
            for place, version in enumerate(versions)
            if version.entered_to is not None
        )

    def _settle(self, versions: list[Version], place: int, limit: int) -> int:
        version = versions[place]
        assert version.entered_to is not None
        before = self.unit.now - version.reward.window_us
        policy, first = version.policy.id, version.entered_to + 1
        overdue = decisions.overdue(self.unit, policy, first=first, before=before, slots=limit)
        if not overdue:
            return 0
        found, happened = decisions.find(self.unit, overdue), events.of(self.unit, overdue)
        for decision in found.values():
            for slot in decision.slots:
                self.add(version, slot.arm_id, NOTHING, worth(version, decision, slot, happened.get(decision.id, ())))
        policies.enter(self.unit, version.id, entered_to=overdue[-1])
        versions[place] = replace(version, entered_to=overdue[-1])
        return sum(len(decision.slots) for decision in found.values())

    def close(self) -> None:
        """Write what changed."""
        for (policy_id, version_id), changes in sorted(self._changes.items()):
            beliefs.add(self.unit, version_id, seq=self.seq(policy_id), changes=changes)


def holds(version: Version, decision: Decision) -> bool:
    """Whether a learning belief holds the slots of a decision (imported ones teach none)."""
    return not decision.imported and (version.entered_to is None or decision.id <= version.entered_to)


def worth(
    version: Version, decision: Decision, slot: Slot, happened: Collection[Event], *, censored: bool | None = None
) -> Sums:
    """What one slot adds to a belief that holds it: nothing while it is censored."""
    if slot.censored if censored is None else censored:
        return NOTHING
    mine = [event for event in happened if event.position == slot.position and event.kind != CENSOR]
    return rewards.entry(rewards.of_slot(version.reward, mine, served_at=decision.at))
