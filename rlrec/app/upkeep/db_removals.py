"""This module removes rows. `forget` removes the rows of a user, what beliefs learned from these rows, and the bytes
that deleted rows leave in the file. `prune` removes the rows of old decisions, and leaves beliefs as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import TypedDict

import numpy as np

from rlrec import policy as kinds
from rlrec.app.inputs import arm_rules
from rlrec.app.learning import holdings, slot_statistics
from rlrec.app.learning.ledger import Ledger
from rlrec.app.learning.slot_statistics import ROUNDING_ERROR, Totals
from rlrec.app.log import lineage
from rlrec.errors import InputError
from rlrec.policy.beliefs.statistics import Forgetting
from rlrec.records import Sums, Version
from rlrec.store import Store, Unit
from rlrec.store.log import sessions, settings
from rlrec.store.log.reader import Batch
from rlrec.store.policies import belief_deltas, beliefs, experiments, policies, users
from rlrec.store.upkeep import removals
from rlrec.store.upkeep.removals import OwnedDecision, VisitKey
from rlrec.times import format_time

VISITS = 2_000  # visits in a transaction of `prune`


def _delete_decisions(unit: Unit, decisions: Sequence[OwnedDecision]) -> list[int]:
    """Delete decisions with all rows that belong to them, record the removal, and return the ids of the decisions."""
    ids = sorted(decision.id for decision in decisions)
    removals.delete_decisions(unit, ids)
    settings.note_removal(unit, max(ids, default=0))
    return ids


# -- forgetting a user --


# keys: all of the user's; beliefs: the number of corrected versions; retrain: versions (POLICY@V) that started from
# rows of the user.
Forgotten = TypedDict("Forgotten", {
    "user": str, "keys": list[str], "decisions": int, "events": int, "beliefs": int, "retrain": list[str],
})  # fmt: skip


@dataclass(kw_only=True)
class _Correction:
    """This record collects the sums to be subtracted from a belief when a user is forgotten. slots: the sums of the
    user's slots, which `holding` finds; initial_sums: the user's part of the sums from which the belief started, which
    `origins` compute; ordinal: the number of decisions of the policy to which the sums have faded."""

    version: Version
    ordinal: int
    origins: Sequence[holdings.Origin]
    holding: holdings.Holding | None = None
    slots: Totals = field(default_factory=Totals)
    initial_sums: Totals = field(default_factory=Totals)

    def take(self, batch: Batch) -> None:
        """Add the sums of the slots in a batch, whose rows all belong to one policy."""
        if self.holding is not None:
            self.slots = slot_statistics.add_totals(self.slots, self.holding.sums(batch))
        for origin in self.origins:
            self.initial_sums = slot_statistics.add_totals(self.initial_sums, origin(batch))


@dataclass(kw_only=True)
class _UserRows:
    """This record has the rows of a user, the corrections of beliefs, and the versions that must be trained again
    (`retrain`), since their parameters were learned from some of these rows."""

    id: int
    sessions: list[int]
    decisions: list[OwnedDecision]
    events: int
    corrections: list[_Correction]
    retrain: list[Version]


def forget(store: Store, user: str, *, dry_run: bool = False) -> Forgotten:
    """Delete a user, and return counts of what was deleted. Raises InputError for an unknown user.

    The sums over the user's slots are subtracted from beliefs, as a rebuild would compute them. Each correction is
    stored like any other change of a belief, so that the propensities of other users can still be derived again. If
    the bytes could not be erased, the command can be repeated."""
    with store.read() as unit:
        exists, (_, n_unfinished) = bool(_user_id(unit, user)), removals.count_removals(unit)
        keys = sorted(users.all_keys(unit, [user]).get(user, {user}))
        rows = _read_user_rows(unit, user) if dry_run else None
    if not (exists or n_unfinished):
        raise InputError(f"unknown user {user!r}", hint="`rlrec session list` shows users")
    if not dry_run:
        if exists:
            with removals.removal_indexes(store):
                rows = store.write(lambda unit: delete_user(unit, user), references_hold=True)
        removals.erase_bytes(store)
    if rows is None:
        return {"user": user, "keys": keys, "decisions": 0, "events": 0, "beliefs": 0, "retrain": []}
    return {
        "user": user, "keys": keys, "decisions": len(rows.decisions), "events": rows.events,
        "beliefs": len(rows.corrections), "retrain": [version.reference for version in rows.retrain],
    }  # fmt: skip


def delete_user(unit: Unit, key: str) -> _UserRows | None:
    """Lock all policies, delete the rows of the user with the key `key`, and correct beliefs. Return what was deleted,
    or None without a user."""
    settings.lock(unit)
    ledger = Ledger(unit, [policy.id for policy in policies.all_policies(unit)])
    rows = _read_user_rows(unit, key)
    if rows is None:
        return None
    for correction in rows.corrections:
        _correct_belief(unit, ledger, correction)
    ids = _delete_decisions(unit, rows.decisions)
    removals.delete_sessions(unit, rows.id, rows.sessions)
    sets = {key or 0 for decision in rows.decisions for key in (decision.eligible_id, decision.catalogue_id)}
    contexts = {key or 0 for decision in rows.decisions for key in (decision.context_id, decision.features_id)}
    removals.delete_contents(unit, contexts, sets)
    settings.add_run(unit, removals.FORGET, {"decisions": len(ids), "events": rows.events})
    return rows


def _correct_belief(unit: Unit, ledger: Ledger, correction: _Correction) -> None:
    """Subtract a correction from a belief."""
    version, ordinal, initial_sums = correction.version, correction.ordinal, correction.initial_sums
    discount = Forgetting.parse(version.policy.params).discount
    stored_sums, changes = slot_statistics.stored_sums(unit, version, ordinal=ordinal), Totals()
    for key, numbers in slot_statistics.add_totals(correction.slots, initial_sums).items():
        old_sums = stored_sums.get(key, numbers)
        is_spent = np.abs((old_sums - numbers)[: len(beliefs.SUMS)]).max() <= ROUNDING_ERROR
        changes[key] = -old_sums if is_spent else -numbers  # so that rounding leaves no negative pull
    seq = ledger.seq(version.policy.id)
    spend = {key: changes.pop(key) for key in [*changes] if key[0] < 0}  # spend does not fade
    if changes:
        faded_to = ordinal if discount < 1 else 0
        beliefs.add(unit, version.id, seq=seq, changes=changes, ordinal=faded_to, discount=discount)
    if spend:
        beliefs.add(unit, version.id, seq=seq, changes=spend)
    if initial_sums:  # otherwise an audit would take them for sums of pruned slots
        pruned_sums = slot_statistics.pruned_sums(unit, version, ordinal=ordinal)
        beliefs.set_pruned(
            unit, version.id, slot_statistics.add_totals(pruned_sums, initial_sums, sign=-1.0), ordinal=ordinal
        )
    if version.status == "retired" and correction.holding is not None:
        seq_held = correction.holding.extent.seq
        removals.set_learned_from(unit, version.id, {**version.learned_from, holdings.HELD_UNTIL: seq_held})


def _read_user_rows(unit: Unit, key: str) -> _UserRows | None:
    """Read the rows of the user with the key `key`, and compute the corrections of beliefs, or return None without a
    user."""
    user_id = _user_id(unit, key)
    if user_id is None:
        return None
    session_ids = removals.user_sessions(unit, user_id)
    owned_decisions = removals.session_decisions(unit, session_ids)
    versions = policies.versions(unit, [policy.id for policy in policies.all_policies(unit)])
    corrections, retrain_ids = _corrections(unit, versions), set[int]()
    logs = {version.id: _logs_of_parameters(version, versions) for version in versions}
    for policy_id, group in groupby(owned_decisions, attrgetter("policy_id")):
        for batch in removals.batches(unit, policy_id, [decision.id for decision in group]):
            retrain_ids |= {
                key for key, version_logs in logs.items() if any(log.rows(batch.slots).any() for log in version_logs)
            }
            for correction in corrections:
                correction.take(batch)
    return _UserRows(
        id=user_id, sessions=session_ids, decisions=owned_decisions,
        events=removals.count_events(unit, [decision.id for decision in owned_decisions]),
        corrections=[correction for correction in corrections if correction.slots or correction.initial_sums],
        retrain=[version for version in versions if version.id in retrain_ids],
    )  # fmt: skip


def _user_id(unit: Unit, key: str) -> int | None:
    """Return the id of the user to whom a key belongs, or None if there is no such user."""
    main_key = users.main_keys(unit, [key]).get(key, key)
    return sessions.user_ids(unit, [main_key]).get(main_key)


def _corrections(unit: Unit, versions: Sequence[Version]) -> list[_Correction]:
    """Return a correction without sums for each version."""
    by_id = {version.id: version for version in versions}
    corrections = []
    for policy_id, group in groupby(versions, lambda version: version.policy.id):
        policy_versions, now = list(group), policies.ordinal(unit, policy_id)
        holdings_by_version = {
            holding.version.id: holding for holding in holdings.trace_holdings(unit, policy_versions)
        }
        for version in policy_versions:
            ordinal = now if version.learning else version.ordinal
            belief_origins = holdings.origins(unit, version, by_id, ordinal=ordinal)
            holding = holdings_by_version.get(version.id)
            corrections.append(_Correction(version=version, ordinal=ordinal, origins=belief_origins, holding=holding))
    return corrections


def _logs_of_parameters(version: Version, versions: Sequence[Version]) -> list[lineage.LearnedFrom]:
    """Return the logs from which the parameters and the prior of a version were made. Logs that only entered the sums
    of a belief are left out, since sums can be corrected. versions: all versions of the policy."""
    by_id, chain = {other_version.id: other_version for other_version in versions}, [version]
    while (parent := by_id.get(chain[-1].parent_id or 0)) is not None:
        chain.append(parent)
    is_online = kinds.load(version.policy.kind).learns_online
    omitted_keys = (
        ("policy_id",)
        if is_online and version.parameters
        else ("policy_id", "selection", "variants")
        if is_online
        else ()
    )
    return lineage.started_from([
        replace(link, learned_from={name: log for name, log in link.learned_from.items() if name not in omitted_keys})
        for link in chain
    ])  # fmt: skip


# -- pruning old decisions --


# before: the given time, or an earlier one if decisions before it are not yet mature for every reward. policies: those
# that lose decisions.
Pruned = TypedDict("Pruned", {"before": str, "visits": int, "decisions": int, "events": int, "policies": list[str]})


class _DeletedRows(Sums, kw_only=True, eq=True):
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
    """Delete old visits, and return counts. A visit is deleted if it ended before the time `before`, if its decisions
    are mature for every reward, and if they have entered every belief that should have them.

    Each portion of visits is deleted in a transaction. The sums that a belief holds of the deleted slots are stored
    with the belief, so that an audit can still tell what the belief should be."""
    counts, last_visit = _DeletedRows(), VisitKey(0, 0)
    with store.read() as unit:
        longest_window_us = max(reward.window_us for reward in policies.rewards(unit))
        ended_before = min(before, unit.now - longest_window_us)
        while dry_run and (visits := _old_visits(unit, ended_before, last_visit)):
            counts += _count_rows(unit, visits, removals.visit_decisions(unit, visits))
            last_visit = visits[-1]
    if not dry_run:
        with removals.removal_indexes(store):
            portion = _DeletedRows(visits=1)
            while portion.visits:
                portion, last_visit = store.write(
                    partial(_prune_portion, ended_before=ended_before, last_visit=last_visit), references_hold=True
                )
                counts += portion
                store.progress("decisions", counts.decisions, None)
            store.write(lambda unit: _finish_pruning(unit, counts.answer(ended_before)), references_hold=True)
        removals.erase_bytes(store)
    _notice_gaps(store, ended_before, counts)
    return counts.answer(ended_before)


def _notice_gaps(store: Store, ended_before: int, counts: _DeletedRows) -> None:
    """Print a notice on each running experiment that lacks users of the deleted visits, and on the live policies whose
    rules depend on what users saw or did in these visits."""
    if not counts.visits:
        return
    with store.read() as unit:
        names = [policy.name for policy in policies.all_policies(unit)]
        texts = [
            f"{rule.name}={rule.text} of {name}"
            for name, live in sorted(policies.live(unit, names).items())
            for rule in arm_rules.policy_rules(live.version.policy.params).past_rules
            if unit.now - rule.window_us < ended_before
        ]
        older_experiments = [
            experiment.name for experiment in experiments.all_experiments(unit)
            if experiment.status == "running"
            and 0 < experiments.assignment_times(unit, experiment.id)[0] < ended_before
        ]  # fmt: skip
    for name in older_experiments:
        since = format_time(ended_before)
        store.notice(
            f"{name} compares who came again, and gives no answer (picked-decisions): "
            f"`rlrec outcomes --experiment {name} --entered-since {since}` has one for those who came later"
        )
    if texts:
        clause = f" and {len(texts) - 1} more" if texts[1:] else ""
        store.notice(f"{texts[0]}{clause}: what persons did or saw in pruned visits takes no arm any more")


def _old_visits(unit: Unit, ended_before: int, last_visit: VisitKey) -> list[VisitKey]:
    """Return the next visits that may be deleted, at most VISITS. last_visit: the visit before these visits."""
    entered_to: dict[int, int] = {}
    for version in policies.settling(unit):
        newest_id = version.entered_to or 0
        entered_to[version.policy.id] = min(entered_to.get(version.policy.id, newest_id), newest_id)
    return removals.old_visits(
        unit, ended_before=ended_before, timeout_us=settings.get(unit).session_timeout_us, entered_to=entered_to,
        last_visit=last_visit, limit=VISITS,
    )  # fmt: skip


def _count_rows(unit: Unit, visits: list[VisitKey], decisions: list[OwnedDecision]) -> _DeletedRows:
    names = {policy.id: policy.name for policy in policies.all_policies(unit)}
    return _DeletedRows(
        visits=len(visits), decisions=len(decisions),
        events=removals.count_events(unit, [decision.id for decision in decisions]),
        policies=frozenset(names[decision.policy_id] for decision in decisions),
    )  # fmt: skip


def _prune_portion(unit: Unit, ended_before: int, last_visit: VisitKey) -> tuple[_DeletedRows, VisitKey]:
    """Lock all policies, and delete the next visits that may be deleted. Return counts, and the last deleted visit.
    last_visit: the visit before these visits."""
    policy_ids = removals.lock_all(unit)
    visits = _old_visits(unit, ended_before, last_visit)
    if not visits:
        return _DeletedRows(), last_visit
    decisions = removals.visit_decisions(unit, visits)
    counts, versions = _count_rows(unit, visits, decisions), policies.versions(unit, policy_ids)
    for policy_id, group in groupby(decisions, attrgetter("policy_id")):
        _store_sums(unit, [version for version in versions if version.policy.id == policy_id], [d.id for d in group])
    # for each policy the last decision by id
    policies.note_pruned(unit, {decision.policy_id: decision.id for decision in decisions})
    _delete_decisions(unit, decisions)
    removals.delete_visits(unit, visits)
    return counts, visits[-1]


def _store_sums(unit: Unit, versions: list[Version], decision_ids: list[int]) -> None:
    """Store which part of the beliefs of one policy comes from these decisions, which are then deleted."""
    holders = holdings.trace_holdings(unit, versions)
    sums = {
        holding.version.id: slot_statistics.pruned_sums(unit, holding.version, ordinal=holding.extent.ordinal)
        for holding in holders
    }
    for batch in removals.batches(unit, versions[0].policy.id, decision_ids):
        for holding in holders:
            version_id = holding.version.id
            sums[version_id] = slot_statistics.add_totals(sums[version_id], holding.sums(batch))
    for holding in holders:
        beliefs.set_pruned(unit, holding.version.id, sums[holding.version.id], ordinal=holding.extent.ordinal)


def _finish_pruning(unit: Unit, answer: Pruned) -> None:
    """Delete rows to which no other row refers any more. Merge those changes of beliefs that come before the oldest
    remaining decision. Record the command with its answer."""
    policy_ids = removals.lock_all(unit)
    removals.delete_unused(unit)
    for version in policies.versions(unit, policy_ids):
        discount = Forgetting.parse(version.policy.params).discount
        last_seq = removals.oldest_belief(unit, version.policy.id)
        belief_deltas.merge(unit, version.id, first=version.seq, last=last_seq, discount=discount)
    settings.note_removal(unit, 0)
    settings.add_run(unit, removals.PRUNE, answer)
