"""Enter past decisions into a belief, in columns: overdue ones of rewards that settle, and all at a rebuild."""

from __future__ import annotations

from rlrec.app.learning import slot_statistics
from rlrec.app.learning.ledger import Ledger
from rlrec.app.learning.slot_statistics import BeliefFold, Totals
from rlrec.app.log import reward_log
from rlrec.records import Version
from rlrec.store import Unit, reader


def add_settled(unit: Unit, ledger: Ledger, version: Version, *, last: int) -> int:
    """Enter the decisions after those that a belief holds, up to `last`: how many slots entered."""
    fold = BeliefFold(unit, version, ordinal=ledger.ordinal(version.policy.id))
    entered, total = 0, Totals()
    first = max(version.since, (version.entered_to or 0) + 1)
    for batch in reader.ranges(unit, version.policy.id, first=first, last=last):
        slots = reward_log.with_rewards(batch, version.reward, settled_only=False)
        entered += len(slots)
        total = slot_statistics.add(total, fold.sums(slots, rows=~slots.slots["censored"]))
    if total:
        ledger.write(version, total)
    ledger.mark_entered(version, last)
    return entered


def is_complete(version: Version) -> bool:
    """Whether a belief holds what it should: one that was rebuilt, the past that was mature when it was begun."""
    record = version.learned_from
    if version.entered_to is None or "rebuilt_from" not in record:
        return True
    return version.reward.learn == "settled" and version.entered_to >= record["ripe"]
