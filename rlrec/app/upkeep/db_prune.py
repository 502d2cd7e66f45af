"""Prune old decisions: their rows go, and beliefs stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import TypedDict

from rlrec.app.learning import holdings, slot_statistics
from rlrec.policy.beliefs.forgetting import Forgetting
from rlrec.records import Sums, Version
from rlrec.store import Store, Unit
from rlrec.store.log import settings
from rlrec.store.policies import belief_deltas, beliefs, policies
from rlrec.store.upkeep import removals
from rlrec.store.upkeep.removals import OwnedDecision, VisitKey
from rlrec.times import format_time

VISITS = 2_000  # in a transaction


# before: the time that was given, or the earlier one from which on decisions are not mature for every reward.
# policies: those that lose decisions.
Pruned = TypedDict("Pruned", {
    "before": str, "visits": int, "decisions": int, "events": int, "policies": list[str],
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _DeletedRows(Sums):
    visits: int = 0
    decisions: int = 0
    events: int = 0
    policies: frozenset[str] = frozenset()

    def answer(self, ended_before: int) -> Pruned:
        return {
            "before": format_time(ended_before), "visits": self.visits, "decisions": self.decisions,
            "events": self.events, "policies": sorted(self.policies),
        }  # fmt: skip


def prune(store: Store, before: int, *, dry_run: bool = False) -> Pruned:
    """The counts of what was deleted: visits that ended before a time, whose decisions are mature for every reward and
    stand in every belief in which they should.

    A portion of visits is a transaction. What a belief holds of their slots is stored beside it, so that an audit can
    still tell what it should be."""
    counts, last = _DeletedRows(), VisitKey(0, 0)
    with store.read() as unit:
        longest_window_us = max(reward.window_us for reward in policies.rewards(unit))
        ended_before = min(before, unit.now - longest_window_us)
        while dry_run and (visits := _old_visits(unit, ended_before, last)):
            counts += _count(unit, visits, removals.visit_decisions(unit, visits))
            last = visits[-1]
    if dry_run:
        return counts.answer(ended_before)
    with removals.removal_indexes(store):
        portion = _DeletedRows(visits=1)
        while portion.visits:
            portion, last = store.write(partial(_prune, ended_before=ended_before, last=last), references_hold=True)
            counts += portion
            store.progress("decisions", counts.decisions, None)
        store.write(lambda unit: _finish(unit, counts.answer(ended_before)), references_hold=True)
    removals.erase_bytes(store)
    return counts.answer(ended_before)


def _old_visits(unit: Unit, ended_before: int, last: VisitKey) -> list[VisitKey]:
    """The next visits that may go, VISITS at most."""
    entered_to: dict[int, int] = {}
    for version in policies.settling(unit):
        newest = version.entered_to or 0
        entered_to[version.policy.id] = min(entered_to.get(version.policy.id, newest), newest)
    return removals.old_visits(
        unit, ended_before=ended_before, timeout_us=settings.get(unit).session_timeout_us, entered_to=entered_to,
        last_visit=last, limit=VISITS,
    )  # fmt: skip


def _count(unit: Unit, visits: list[VisitKey], decisions: list[OwnedDecision]) -> _DeletedRows:
    names = {policy.id: policy.name for policy in policies.all_policies(unit)}
    return _DeletedRows(
        visits=len(visits), decisions=len(decisions),
        events=removals.count_events(unit, [decision.id for decision in decisions]),
        policies=frozenset(names[decision.policy_id] for decision in decisions),
    )  # fmt: skip


def _prune(unit: Unit, ended_before: int, last: VisitKey) -> tuple[_DeletedRows, VisitKey]:
    """Delete the next visits, under the locks of all policies: what was deleted, and the last of the visits."""
    policy_ids = removals.lock_all(unit)
    visits = _old_visits(unit, ended_before, last)
    if not visits:
        return _DeletedRows(), last
    decisions = removals.visit_decisions(unit, visits)
    counts, versions = _count(unit, visits, decisions), policies.versions(unit, policy_ids)
    for policy_id, group in groupby(decisions, attrgetter("policy_id")):
        _store_sums(unit, [version for version in versions if version.policy.id == policy_id], [d.id for d in group])
    policies.note_pruned(unit, {decision.policy_id: decision.id for decision in decisions})  # by policy the last, by id
    ids = sorted(decision.id for decision in decisions)
    removals.delete_decisions(unit, ids)
    removals.delete_visits(unit, visits)
    settings.note_removal(unit, max(ids, default=0))
    return counts, visits[-1]


def _store_sums(unit: Unit, versions: list[Version], decision_ids: list[int]) -> None:
    """Store what the beliefs of one policy hold of decisions that are deleted."""
    holders = holdings.trace_holdings(unit, versions)
    sums = {
        holding.version.id: slot_statistics.pruned_sums(unit, holding.version, ordinal=holding.extent.ordinal)
        for holding in holders
    }
    for batch in removals.batches(unit, versions[0].policy.id, decision_ids):
        for holding in holders:
            version_id = holding.version.id
            sums[version_id] = slot_statistics.add(sums[version_id], holding.sums(batch))
    for holding in holders:
        beliefs.set_pruned(unit, holding.version.id, sums[holding.version.id], ordinal=holding.extent.ordinal)


def _finish(unit: Unit, answer: Pruned) -> None:
    """Delete what nothing names any more, merge changes of beliefs from which no decision is left, and record the
    command."""
    policy_ids = removals.lock_all(unit)
    removals.delete_unused(unit)
    for version in policies.versions(unit, policy_ids):
        discount = Forgetting.parse(version.policy.params).discount
        last = removals.oldest_belief(unit, version.policy.id)
        belief_deltas.merge(unit, version.id, first=version.seq, last=last, discount=discount)
    settings.note_removal(unit, 0)
    settings.add_run(unit, removals.PRUNE, answer)
