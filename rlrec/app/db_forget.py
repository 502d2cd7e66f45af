"""Forget a user: their rows, what beliefs learned from them, and the bytes that deleted rows leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import TypedDict

import numpy as np

from rlrec.app.learning import holdings, slot_statistics
from rlrec.app.learning.holdings import Holding
from rlrec.app.learning.ledger import Ledger
from rlrec.app.learning.slot_statistics import ROUNDING, Totals
from rlrec.app.log import lineage
from rlrec.app.log.lineage import LearnedFrom
from rlrec.errors import InputError
from rlrec.records import Version
from rlrec.store import Store, Unit, beliefs, policies, removals, settings
from rlrec.store.removals import OwnedDecision

COUNTS = len(beliefs.SUMS)  # numbers of a belief before further sums


@dataclass(frozen=True, kw_only=True)
class Request:
    user: str
    dry_run: bool = False


# beliefs: how many versions are corrected; retrain: those that started from rows of the user, as POLICY@V.
Forgotten = TypedDict("Forgotten", {
    "user": str, "decisions": int, "events": int, "beliefs": int, "retrain": list[str],
})  # fmt: skip


@dataclass(kw_only=True)
class _UserRows:
    """A user's rows, and what they add to beliefs. held: what each belief holds of them, by version id; retrain: the
    versions that started from some of them."""

    id: int
    sessions: list[int]
    decisions: list[OwnedDecision]
    events: int
    held: dict[int, tuple[Holding, Totals]]
    retrain: list[Version]


def forget(store: Store, request: Request) -> Forgotten:
    """The counts of what was deleted. Raises InputError for a user that the store does not have.

    Beliefs are corrected by the sums of the user's slots, as a rebuild adds them up; each correction is a change like
    any other, so that the propensities of others can still be derived again. A command that could not erase the bytes
    can be repeated."""
    with store.read() as unit:
        rows, unfinished = _read(unit, request.user), removals.unfinished(unit)
    if rows is None and not unfinished:
        raise InputError(f"unknown user {request.user!r}", hint="`rlrec session list` shows users")
    if not request.dry_run:
        if rows is not None:
            with removals.lookups(store):
                rows = store.write(lambda unit: _forget(unit, request.user), sound=True)
        removals.erase(store)
    if rows is None:
        return {"user": request.user, "decisions": 0, "events": 0, "beliefs": 0, "retrain": []}
    return {
        "user": request.user, "decisions": len(rows.decisions), "events": rows.events, "beliefs": len(rows.held),
        "retrain": [f"{version.policy.name}@{version.number}" for version in rows.retrain],
    }  # fmt: skip


def _forget(unit: Unit, key: str) -> _UserRows | None:
    """Delete the rows of a user and correct beliefs, under the locks of all policies."""
    ledger = Ledger(unit, [policy.id for policy in policies.all_policies(unit)])
    rows = _read(unit, key)
    if rows is None:
        return None
    for holding, sums in rows.held.values():
        _correct(unit, ledger, holding, sums)
    ids = sorted(decision.id for decision in rows.decisions)
    removals.delete_decisions(unit, ids)
    removals.delete_sessions(unit, rows.id, rows.sessions)
    sets = {each.eligible_id for each in rows.decisions} | {each.catalogue_id or 0 for each in rows.decisions}
    removals.delete_contents(unit, {each.context_id for each in rows.decisions}, sets)
    settings.note_removal(unit, max(ids, default=0))
    settings.add_run(unit, removals.FORGET, {"decisions": len(ids), "events": rows.events})
    return rows


def _correct(unit: Unit, ledger: Ledger, holding: Holding, sums: Totals) -> None:
    """Take sums out of a belief."""
    version, discount = holding.version, holding.fold.forgetting.discount
    ordinal = holding.extent.ordinal if discount < 1 else 0
    stored, changes = slot_statistics.stored_sums(unit, version, ordinal=holding.extent.ordinal), Totals()
    for key, numbers in sums.items():
        before = stored.get(key, numbers)
        is_spent = np.abs((before - numbers)[:COUNTS]).max() <= ROUNDING
        changes[key] = -before if is_spent else -numbers  # no pull below 0 is left by rounding
    seq = ledger.seq(version.policy.id)
    beliefs.add(unit, version.id, seq=seq, changes=changes, ordinal=ordinal, discount=discount)
    if version.status == "retired":
        removals.set_learned_from(unit, version.id, {**version.learned_from, holdings.HELD_UNTIL: holding.extent.seq})


def _read(unit: Unit, key: str) -> _UserRows | None:
    """The rows of a user, and what beliefs hold of them; None where there is no such user."""
    user_id = removals.user_id(unit, key)
    if user_id is None:
        return None
    sessions = removals.sessions_of(unit, user_id)
    owned = removals.decisions_of(unit, sessions)
    every = policies.versions(unit, [policy.id for policy in policies.all_policies(unit)])
    started = {version.id: _started_from(version, every) for version in every}
    held: dict[int, tuple[Holding, Totals]] = {}
    retrain = set[int]()
    for policy_id, group in groupby(owned, attrgetter("policy_id")):
        holders = holdings.of_policy(unit, [version for version in every if version.policy.id == policy_id])
        for batch in removals.batches(unit, policy_id, [decision.id for decision in group]):
            retrain |= {key for key, logs in started.items() if any(log.rows(batch.slots).any() for log in logs)}
            for holding in holders:
                _, before = held.get(holding.version.id, (holding, {}))
                held[holding.version.id] = holding, slot_statistics.add(before, holding.sums(batch))
    return _UserRows(
        id=user_id, sessions=sessions, decisions=owned,
        events=removals.count_events(unit, [decision.id for decision in owned]),
        held={key: (holding, sums) for key, (holding, sums) in held.items() if sums},
        retrain=[version for version in every if version.id in retrain],
    )  # fmt: skip


def _started_from(version: Version, every: Sequence[Version]) -> list[LearnedFrom]:
    """The logs that a version started from, and those that it is a copy of another policy's belief of; a copy within
    its policy is corrected as the belief is."""
    by_id, chain = {other.id: other for other in every}, [version]
    while (parent := by_id.get(chain[-1].parent_id or 0)) is not None:
        chain.append(parent)
    return lineage.started_from([
        replace(each, learned_from={name: value for name, value in each.learned_from.items() if name != "policy_id"})
        if each.learned_from.get("policy_id") == each.policy.id else each
        for each in chain
    ])  # fmt: skip
