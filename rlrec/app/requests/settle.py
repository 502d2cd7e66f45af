"""This module adds slots to the beliefs of versions that learn from a slot only when the window of its reward is over
(`settled`)."""

from __future__ import annotations

from functools import partial

from rlrec.app.learning.belief_versions import add_settled
from rlrec.app.learning.ledger import Ledger
from rlrec.records import Record
from rlrec.store import Store, Unit
from rlrec.store.log import decisions
from rlrec.store.policies import policies

PORTION = 50_000  # slots that enter in a transaction


class Result(Record):
    settled: int
    open: int


def settle(store: Store) -> Result:
    """Add each slot whose reward window is over to the beliefs that learn only then. Returns two counts: `settled`
    slots were added, and the windows of `open` slots are not over."""
    n_settled = 0
    with store.read() as unit:
        policy_ids = {version.policy.id for version in policies.settling(unit)}
    for policy_id in sorted(policy_ids):
        while n_entered := store.write(partial(_enter_portion, policy_id=policy_id), repeatable=True):
            n_settled += n_entered
    with store.read() as unit:
        n_open = sum(
            decisions.count_slots_after(unit, version.policy.id, version.entered_to or 0)
            for version in policies.settling(unit)
        )
    return Result(settled=n_settled, open=n_open)


def _enter_portion(unit: Unit, policy_id: int) -> int:
    """Add a portion of a policy's slots whose windows are over to its beliefs. Returns the number of added slots, 0 if
    none is left."""
    ledger, n_entered = Ledger(unit, [policy_id]), 0
    for version in list(ledger.learners[policy_id]):
        if version.entered_to is not None and (ids := ledger.overdue_ids(version, PORTION)):
            n_entered += add_settled(unit, ledger, version, last_id=ids[-1])
    ledger.close()
    return n_entered
