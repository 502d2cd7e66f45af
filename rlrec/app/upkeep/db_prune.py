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
from rlrec.times import written

VISITS = 2_000  # in a transaction
FIRST = VisitKey(0, 0)


@dataclass(frozen=True, kw_only=True)
class Request:
    before: int
    dry_run: bool = False


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

    def answer(self, before: int) -> Pruned:
        return {
            "before": written(before), "visits": self.visits, "decisions": self.decisions, "events": self.events,
            "policies": sorted(self.policies),
        }  # fmt: skip


def prune(store: Store, request: Request) -> Pruned:
    """The counts of what was deleted: visits that ended before a time, whose decisions are mature for every reward and
    stand in every belief in which they should.

    A portion of visits is a transaction. What a belief holds of their slots is stored beside it, so that an audit can
    still tell what it should be."""
    counts, after = _DeletedRows(), FIRST
    with store.read() as unit:
        longest = max(reward.window_us for reward in policies.rewards(unit))
        before = min(request.before, unit.now - longest)
        while request.dry_run and (visits := _old_visits(unit, before, after)):
            counts += _count(unit, visits, removals.visit_decisions(unit, visits))
            after = visits[-1]
    if request.dry_run:
        return counts.answer(before)
    with removals.removal_indexes(store):
        last: VisitKey | None = FIRST
        while last is not None:
            portion, last = store.write(partial(_prune, before=before, after=last), references_hold=True)
            counts += portion
            store.progress("decisions", counts.decisions, None)
        store.write(lambda unit: _finish(unit, counts.answer(before)), references_hold=True)
    removals.erase_bytes(store)
    return counts.answer(before)


def _old_visits(unit: Unit, before: int, after: VisitKey) -> list[VisitKey]:
    """The next visits that may go, VISITS at most."""
    entered_to: dict[int, int] = {}
    for version in policies.settling(unit):
        last = version.entered_to or 0
        entered_to[version.policy.id] = min(entered_to.get(version.policy.id, last), last)
    timeout_us = settings.get(unit).session_timeout_us
    return removals.old_visits(
        unit, ended_before=before, timeout_us=timeout_us, entered_to=entered_to, last_visit=after, limit=VISITS
    )


def _count(unit: Unit, visits: list[VisitKey], owned: list[OwnedDecision]) -> _DeletedRows:
    names = {policy.id: policy.name for policy in policies.all_policies(unit)}
    return _DeletedRows(
        visits=len(visits), decisions=len(owned),
        events=removals.count_events(unit, [decision.id for decision in owned]),
        policies=frozenset(names[decision.policy_id] for decision in owned),
    )  # fmt: skip


def _prune(unit: Unit, before: int, after: VisitKey) -> tuple[_DeletedRows, VisitKey | None]:
    """Delete the next visits, under the locks of all policies: what was deleted, and the last of the visits; None
    where there are no more."""
    every = removals.lock_all(unit)
    visits = _old_visits(unit, before, after)
    if not visits:
        return _DeletedRows(), None
    owned = removals.visit_decisions(unit, visits)
    counts, versions = _count(unit, visits, owned), policies.versions(unit, every)
    for policy_id, group in groupby(owned, attrgetter("policy_id")):
        _store_sums(unit, [version for version in versions if version.policy.id == policy_id], [d.id for d in group])
    policies.note_pruned(unit, {decision.policy_id: decision.id for decision in owned})  # by policy the last, by id
    ids = sorted(decision.id for decision in owned)
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
            before = sums[holding.version.id]
            sums[holding.version.id] = slot_statistics.add(before, holding.sums(batch))
    for holding in holders:
        beliefs.set_pruned(unit, holding.version.id, sums[holding.version.id], ordinal=holding.extent.ordinal)


def _finish(unit: Unit, answer: Pruned) -> None:
    """Delete what nothing names any more, merge changes of beliefs from which no decision is left, and record the
    command."""
    every = removals.lock_all(unit)
    removals.delete_unused(unit)
    for version in policies.versions(unit, every):
        discount = Forgetting.parse(version.policy.params).discount
        last = removals.oldest_belief(unit, version.policy.id)
        belief_deltas.merge(unit, version.id, first=version.seq, last=last, discount=discount)
    settings.note_removal(unit, 0)
    settings.add_run(unit, removals.PRUNE, answer)
