"""This module changes versions of a policy. It freezes a belief, promotes a version, rolls a promotion back, and
retires a version."""

from __future__ import annotations

from typing import Any, TypedDict

from rlrec.app.audit.integrity import live_versions
from rlrec.app.inputs import lookup
from rlrec.app.learning import belief_versions
from rlrec.app.learning.belief_versions import VersionSummary, is_complete, summary
from rlrec.errors import CheckFailed, InputError, quantity
from rlrec.records import Head, Version
from rlrec.store import Store, Unit
from rlrec.store.log import decisions, selected, settings
from rlrec.store.log.selected import Selection
from rlrec.store.policies import beliefs, policies, routes
from rlrec.times import format_time


class Frozen(VersionSummary):
    """This record describes a frozen version. parent: the number of the version that was copied; immature: the number
    of slots that the copy leaves out because they are not mature."""

    parent: int
    immature: int


# passed_by: routes and experiments that serve another version.
LiveVersion = TypedDict("LiveVersion", {"policy": str, "version": int, "previous": int, "passed_by": list[str]})
# A period in which a version was live: its start and end (until None: it still is), and the commands at both.
LiveTime = TypedDict("LiveTime", {"at": str, "until": str | None, "by": str, "ended_by": str | None})
# parent: the number of the version from which it was made, if that is one of the same policy; gate: see `train-pg`.
VersionHistory = TypedDict("VersionHistory", {
    "version": int, "status": str, "live": bool, "parent": int | None, "created_at": str,
    "learned_from": dict[str, Any], "gate": dict[str, Any] | None, "promoted": list[LiveTime],
})  # fmt: skip


def list_versions(store: Store) -> list[VersionSummary]:
    """Return a row for every policy, with its live version."""
    with store.read() as unit:
        names = [policy.name for policy in policies.all_policies(unit)]
        live = policies.live(unit, names)
        return [summary(unit, live[name].version) for name in names]


def history(store: Store, name: str) -> list[VersionHistory]:
    """Return the versions of a policy, each with the log from which it learned and the periods in which it was live."""
    if lookup.split_reference(name)[1] is not None:
        raise InputError(f"{name!r} names a version", hint=f"write {lookup.split_reference(name)[0]}")
    with store.read() as unit:
        live, head = lookup.version(unit, name)
        versions = policies.versions(unit, [live.policy.id])
        numbers = {version.id: version.number for version in versions}
        times = _live_times(unit, versions[0])
        return [
            {
                "version": version.number, "status": version.status, "live": version.id == head.live_id,
                "parent": numbers.get(version.parent_id or 0), "created_at": format_time(version.created_at),
                "learned_from": dict(version.learned_from),
                "gate": _gate(unit, version), "promoted": times.get(version.id, []),
            }
            for version in versions
        ]  # fmt: skip


def _gate(unit: Unit, version: Version) -> dict[str, Any] | None:
    """Return the result of the gate for a trained version, or None if the gate has not judged the version."""
    gate = (policies.report(unit, version.id) or {}).get("gate")
    return gate if gate and gate["candidate"] is not None else None


def _live_times(unit: Unit, first_version: Version) -> dict[int, list[LiveTime]]:
    """Return the periods in which each version of a policy was live, by version id. first_version: the version that was
    live first."""
    policy = first_version.policy
    creating_command = "policy create" if policy.base_id is None and "@" not in policy.name else "experiment create"
    commands = settings.promoting_commands(unit, policy.name) | routes.commands(unit)
    changes = [(first_version.created_at, 0, first_version.id, creating_command)]
    for promotion in policies.promotions(unit, policy.id):
        command = commands.get(promotion.at, "policy promote")
        changes.append((promotion.at, promotion.id, promotion.version_id, command))
        if promotion.rolled_back_at is not None:  # rollbacks undo the newest promotion first
            command = commands.get(promotion.rolled_back_at, "policy rollback")
            changes.append((promotion.rolled_back_at, -promotion.id, promotion.previous_id, command))
    changes.sort(key=lambda change: (change[0], change[1] < 0, change[1]))
    times: dict[int, list[LiveTime]] = {}
    for (at, _, version_id, command), next_change in zip(changes, [*changes[1:], None], strict=True):
        end = (None, None) if next_change is None else (format_time(next_change[0]), next_change[3])
        times.setdefault(version_id, []).append(
            {"at": format_time(at), "until": end[0], "by": command, "ended_by": end[1]}
        )
    return times


def freeze(store: Store, reference: str) -> Frozen:
    """Copy a belief without the slots that are not mature. The copy is a new version with the next number, which never
    changes and is not live. The belief is read in one snapshot; the copy gets the number of the newest change in it."""
    from rlrec.app.log import reward_log

    with store.read() as unit:
        n_removals = settings.get(unit).removals
        source, head = _learning_version(unit, reference)
        sums, last_id = belief_versions.fork(unit, source)
        n_immature = decisions.count_slots_after(unit, source.policy.id, last_id) if source.learning else 0
        newest_at = selected.newest_at(unit, Selection(policy_ids=[source.policy.id], imported=False), 1) or unit.now
        ready_at = reward_log.time_of_maturity(newest_at + source.reward.window_us, unit.now)

    def work(unit: Unit) -> Frozen:
        settings.lock_removals(unit, n_removals)
        policies.lock(unit, [source.policy.id])
        number = policies.versions(unit, [source.policy.id])[-1].number + 1
        version_id = belief_versions.copy_version(
            unit, source, policy_id=source.policy.id, number=number, status="frozen", seq=head.seq, sums=sums,
            ordinal=head.ordinal if source.learning else source.ordinal,
            # the source keeps the record of its log
            learned_from={"policy_id": source.policy.id, "last_id": last_id} if source.learning else {},
        )  # fmt: skip
        beliefs.copy_pruned(unit, source.id, version_id)
        settings.add_run(unit, "policy freeze", {"policy": source.policy.name, "from": source.number, "to": number})
        version = policies.by_id(unit, [version_id])[version_id]
        return {**summary(unit, version), "parent": source.number, "immature": n_immature}

    answer = store.write(work)
    if n_immature:
        store.notice(
            f"not mature yet: {quantity(n_immature, 'slot')}, the last at {ready_at}; "
            f"version {answer['version']} leaves them out"
        )
    return answer


def _learning_version(unit: Unit, reference: str) -> tuple[Version, Head]:
    """Find the version that a reference names, and return the version and the head of its policy. A name without a
    number means the live version, or the newest version that learns if the live version is frozen."""
    version, head = lookup.version(unit, reference)
    if lookup.split_reference(reference)[1] is None and not version.learning:
        learners = [row for row in policies.versions(unit, [version.policy.id]) if row.learning]
        version = learners[-1] if learners else version
    if version.policy.kind == "logged":
        raise InputError(f"policy {version.policy.name!r} only holds an imported log: it has no belief to freeze")
    return version, head


def _lock_version(unit: Unit, reference: str) -> tuple[Version, Head]:
    """Lock the head of the policy whose version a reference names. Return the version and the head."""
    version, _ = lookup.version(unit, reference)
    return version, policies.lock(unit, [version.policy.id])[version.policy.id]


def _check_numbered(reference: str) -> None:
    if lookup.split_reference(reference)[1] is None:
        raise InputError(f"{reference!r} names no version", hint=f"write {reference}@V; `rlrec policy show` lists them")


def retire(store: Store, reference: str) -> VersionSummary:
    """Stop the learning of a version, unless it is retired already. Raises InputError for a live or frozen version."""
    _check_numbered(reference)

    def work(unit: Unit) -> VersionSummary:
        version, head = _lock_version(unit, reference)
        if head.live_id == version.id:
            raise InputError(f"version {version.number} of {version.policy.name} is live", hint="promote another first")
        if version.status == "frozen":
            raise InputError(f"version {version.number} of {version.policy.name} is frozen: it learns nothing")
        if version.learning:
            policies.retire(unit, version.id, ordinal=head.ordinal)
            settings.add_run(unit, "policy retire", {"policy": version.policy.name, "version": version.number})
        return summary(unit, policies.by_id(unit, [version.id])[version.id])

    return store.write(work)


def promote(store: Store, reference: str) -> LiveVersion:
    """Make a version live. Nothing changes if the version is live already."""
    _check_numbered(reference)

    def work(unit: Unit) -> LiveVersion:
        version, head = _lock_version(unit, reference)
        lookup.refuse_running_variant(unit, version)
        version_text = f"version {version.number} of {version.policy.name}"
        if version.status == "retired":
            hint = f"`rlrec policy rebuild {version.policy.name}` makes a version that learns"
            raise InputError(f"{version_text} is retired", hint=hint)
        if not is_complete(version):
            raise InputError(
                f"{version_text} is a rebuild that has not finished", hint="`rlrec policy rebuild` continues it"
            )
        live_version = policies.by_id(unit, [head.live_id])[head.live_id]
        if head.live_id != version.id:
            policies.promote(unit, version.policy.id, version_id=version.id, previous_id=head.live_id)
            settings.add_run(unit, "policy promote", {"policy": version.policy.name, "version": version.number})
        return _live_version(unit, version, live_version)

    return store.write(work)


def rollback(store: Store, name: str) -> LiveVersion:
    """Undo the last promotion of a policy: the version that was live before is live again. Raises CheckFailed if there
    is no promotion to undo, or if that version is retired."""
    if lookup.split_reference(name)[1] is not None:
        raise InputError(
            f"{name!r} names a version", hint=f"write {lookup.split_reference(name)[0]}, or promote {name}"
        )
    return store.write(lambda unit: roll_back(unit, name))


def roll_back(unit: Unit, name: str) -> LiveVersion:
    """Undo the last promotion of a policy, as `rollback` does, within the caller's transaction."""
    version, head = _lock_version(unit, name)
    lookup.refuse_running_variant(unit, version)
    last_promotion = policies.last_promotion(unit, version.policy.id)
    if last_promotion is None:
        versions = policies.versions(unit, [version.policy.id])
        references = [row.reference for row in versions if row.id != head.live_id and row.status != "retired"]
        hint = "it has no other version; `rlrec policy list` shows the policies that could serve"
        hint = f"`rlrec policy promote {references[-1]}` makes the newest other one live" if references else hint
        raise CheckFailed(f"policy {version.policy.name} has no promotion to roll back", hint=hint)
    target, live_version = (policies.by_id(unit, [key])[key] for key in (last_promotion.previous_id, head.live_id))
    if target.status == "retired":
        raise CheckFailed(
            f"version {target.number} of {version.policy.name}, which was live before, is retired",
            hint=f"promote another: `rlrec policy promote {version.policy.name}@V`",
        )
    policies.roll_back(unit, version.policy.id, promotion_id=last_promotion.id, live_id=target.id)
    settings.add_run(unit, "policy rollback", {"policy": version.policy.name, "version": target.number})
    return _live_version(unit, target, live_version)


def _live_version(unit: Unit, version: Version, previous_version: Version) -> LiveVersion:
    name = version.policy.name
    passed_by = live_versions.describe_bypasses(unit, name)
    return {"policy": name, "version": version.number, "previous": previous_version.number, "passed_by": passed_by}
