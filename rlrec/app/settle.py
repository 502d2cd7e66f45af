"""Learn from slots of settled rewards whose window is over."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from rlrec.app.learning import slot_statistics
from rlrec.app.learning.ledger import Ledger
from rlrec.app.learning.slot_statistics import BeliefFold, Totals
from rlrec.app.log import reward_log
from rlrec.records import Version
from rlrec.store import Store, Unit, decisions, policies, reader

PORTION = 50_000  # slots a transaction


@dataclass(frozen=True, kw_only=True)
class Result:
    settled: int
    open: int


def settle(store: Store) -> Result:
    """Every slot whose window is over enters; `open`: those whose window is not."""
    settled = 0
    with store.read() as unit:
        waiting = {version.policy.id for version in _settling(unit)}
    for policy_id in sorted(waiting):
        while entered := store.write(partial(_portion, policy_id=policy_id), repeatable=True):
            settled += entered
    with store.read() as unit:
        left = sum(
            decisions.count_slots_after(unit, version.policy.id, first=(version.entered_to or 0) + 1)
            for version in _settling(unit)
        )
    return Result(settled=settled, open=left)


def _settling(unit: Unit) -> list[Version]:
    learning = policies.learning(unit, [policy.id for policy in policies.all_policies(unit)])
    return [version for version in learning if version.entered_to is not None]


def _portion(unit: Unit, policy_id: int) -> int:
    ledger = Ledger(unit, [policy_id])
    entered = sum(_entered(unit, ledger, version) for version in ledger.settling(policy_id))
    ledger.close()
    return entered


def _entered(unit: Unit, ledger: Ledger, version: Version) -> int:
    """What `Ledger.settle` does to one belief, in columns: how many slots entered."""
    assert version.entered_to is not None
    if not (ids := ledger.overdue(version, PORTION)):
        return 0
    return enter(unit, ledger, version, last=ids[-1])


def enter(unit: Unit, ledger: Ledger, version: Version, *, last: int) -> int:
    """Let every decision after those that a belief holds into it, up to `last`: how many slots entered."""
    fold = BeliefFold(unit, version, ordinal=ledger.ordinal(version.policy.id))
    entered, total = 0, Totals()
    first = max(version.since, (version.entered_to or 0) + 1)
    for batch in reader.ranges(unit, version.policy.id, first=first, last=last):
        found = reward_log.rewarded(batch, version.reward, settled_only=False)
        entered += len(found)
        total = slot_statistics.add(total, fold.sums(found, rows=~found.slots["censored"]))
    if total:
        ledger.write(version, total)
    ledger.mark_entered(version, last)
    return entered
