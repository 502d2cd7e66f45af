"""The cheap checks: the clock, what waits, and the newest decisions of live policies, without the whole log."""

from __future__ import annotations

from collections.abc import Sequence

from rlrec.app.audit.draws.arm_counts import Entropy
from rlrec.app.audit.draws.reward_drift import RewardDrift
from rlrec.app.audit.integrity import clock
from rlrec.app.audit.integrity.findings import Finding, Findings
from rlrec.app.audit.integrity.overdue import Outage, check_overdue
from rlrec.records import StoredPolicy
from rlrec.store import Unit
from rlrec.store.log import decisions
from rlrec.store.policies import arms, policies
from rlrec.store.upkeep import audit

RECENT = 50_000  # decisions of a policy that are looked at


def check(unit: Unit, audited: Sequence[StoredPolicy], *, on_its_clock: bool) -> list[Finding]:
    """The findings on these policies. on_its_clock: nobody set another time, so that decisions ahead of it are wrong.

    Their live versions are those that are looked at."""
    findings, names = Findings(), {arm.id: arm.key for arm in arms.all_arms(unit)}
    if on_its_clock:
        clock.check(unit, findings=findings)
    live = policies.live(unit, [policy.name for policy in audited])
    for policy in audited:
        with findings.unreadable("beliefs", f"policy {policy.name}"):
            check_overdue(unit, policies.versions(unit, [policy.id]), findings=findings)
            version = live[policy.name].version
            watches = (Outage(version, now=unit.now), RewardDrift(unit, version, names), Entropy(policy))
            for batch in audit.ranges(unit, policy.id, first=decisions.newest_id(unit, policy.id, RECENT)):
                for watch in watches:
                    watch.take(batch)
            for watch in watches:
                watch.finish(findings)
    return findings.in_order()
