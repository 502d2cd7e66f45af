"""This module stores exclusions, which hide decisions (of bots, of staff, or during outages) from every reader of the
log until the exclusion is deleted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypedDict

from rlrec.app.audit.draws import machine_sessions
from rlrec.app.inputs import filters, lookup
from rlrec.app.log import lineage
from rlrec.errors import Conflict, InputError
from rlrec.records import Version
from rlrec.store import Store, Unit
from rlrec.store.log import selected, settings
from rlrec.store.log.selected import Exclusion, Selection, UnitIds
from rlrec.store.policies import experiments, policies, routes
from rlrec.times import format_time

# filter: without users and sessions; users, sessions: keys of those that are excluded, None if only the filter
# excludes.
StoredExclusion = TypedDict("StoredExclusion", {
    "exclusion": str, "filter": str, "users": list[str] | None, "sessions": list[str] | None, "created_at": str,
})  # fmt: skip


class Excluded(StoredExclusion):
    """This record is the answer to a command that stores or deletes an exclusion.

    decisions, total: the number of decisions that the exclusion hides, and the number of all decisions; rebuild: the
    commands that make beliefs without these decisions, or with them again; variants: the variants of running
    experiments, which no rebuild replaces, each with the command to be run after its promotion."""

    decisions: int
    total: int
    created: bool
    rebuild: list[str]
    variants: dict[str, str]


def exclude(store: Store, name: str, *, where: str | None = None, machines: bool = False) -> Excluded:
    """Store an exclusion of the decisions that a filter selects, or of the users and sessions that click like machines.
    Repeating the command changes nothing. Raises InputError if the exclusion would hide no decision or all, and
    Conflict if another exclusion has the name.

    where: the filter; machines: whether to exclude users and sessions that click nearly all slots they are shown."""
    pairs = filters.parse(where or "")
    if machines == bool(pairs) or "included" in pairs:
        hint = "give one of them: --where user=u1, or field:device=bot, say"
        raise InputError("an exclusion is of --where FILTER or of --machines", hint=hint)

    def work(unit: Unit) -> Excluded:
        settings.lock(unit)
        exclusion = _find_exclusion(unit, name)
        units: list[UnitIds] | None = None
        if machines:
            units = [*machine_sessions.find_machines(unit, ignored_names=exclusion and name)]
        elif "user" in pairs and "session" not in pairs:
            units = [(key, None) for key in filters.user_ids(unit, pairs["user"])]
        elif (ids := filters.select(unit, pairs).session_ids) is not None:
            units = [(None, key) for key in ids]
        text = _normalize_filter(unit, pairs)
        if exclusion is not None:
            if exclusion.filter != text or {*selected.unit_ids(unit, exclusion.id)} != {*(units or ())}:
                hint = f"`rlrec log include {name}` ends it; or use another name"
                raise Conflict(f"exclusion {name!r} already has another definition", hint=hint)
            return _make_answer(unit, exclusion)
        exclusion = selected.add(unit, name, text, units)
        answer = _make_answer(unit, exclusion)
        answer["created"] = True
        if not answer["decisions"]:
            reason = "no session clicks like a machine" if machines else "no decision passes the filter"
            raise InputError(f"{reason}: nothing would be excluded", hint="`rlrec status` shows what the store holds")
        if not selected.extent(unit, Selection(without=filters.exclusion_tests(unit))).decisions:
            raise InputError("every decision would be excluded: nothing would be left", hint="narrow --where")
        settings.add_run(unit, "log exclude", {"name": name}, {"decisions": answer["decisions"]})
        return answer

    return store.write(work)


def include(store: Store, name: str) -> Excluded:
    """Delete an exclusion, so that its decisions count again. Raises InputError for an unknown exclusion."""

    def work(unit: Unit) -> Excluded:
        settings.lock(unit)
        if (exclusion := _find_exclusion(unit, name)) is None:
            names = [other.name for other in selected.all_exclusions(unit)]
            raise lookup.unknown("exclusion", name, names, hint="`rlrec log list` shows them")
        answer = _make_answer(unit, exclusion, is_included=True)
        selected.remove(unit, exclusion.id)
        settings.add_run(unit, "log include", {"name": name})
        return answer

    return store.write(work)


def list_exclusions(store: Store) -> list[StoredExclusion]:
    """Return all stored exclusions, in order of name."""
    with store.read() as unit:
        return [_summary(unit, exclusion) for exclusion in selected.all_exclusions(unit)]


def _find_exclusion(unit: Unit, name: str) -> Exclusion | None:
    return next((exclusion for exclusion in selected.all_exclusions(unit) if exclusion.name == name), None)


def _normalize_filter(unit: Unit, pairs: Mapping[str, str]) -> str:
    """Return a filter without users and sessions as text, with all times in one format. pairs: its values, by name."""
    log = filters.select(unit, pairs)
    times = {"since": format_time(log.since or 0), "until": format_time(log.until or 0)}
    other_pairs = {key: value for key, value in pairs.items() if key not in ("user", "session")}
    return ",".join(f"{key}={times.get(key, value)}" for key, value in other_pairs.items())


def _summary(unit: Unit, row: Exclusion) -> StoredExclusion:
    users, sessions = selected.unit_keys(unit, row.id) if row.by_unit else (None, None)
    at = format_time(row.created_at)
    return {"exclusion": row.name, "filter": row.filter, "users": users, "sessions": sessions, "created_at": at}


def _make_answer(unit: Unit, exclusion: Exclusion, *, is_included: bool = False) -> Excluded:
    test = filters.excluding_test(unit, exclusion)
    total, n_left = (selected.extent(unit, Selection(without=tests)).decisions for tests in ((), (test,)))
    running_policies = {
        variant.policy_id
        for row in experiments.all_experiments(unit) if row.status == "running"
        for variant in row.serving
    }  # fmt: skip
    routed_policies = {change.policy_id for change in routes.newest_changes(unit)}
    commands, variants = dict[str, None](), dict[str, str]()
    for version in _concerned_versions(unit, test, is_included=is_included):
        policy = version.policy
        if policy.base_id is None:
            commands[lineage.rebuild_command(version)] = None
        elif policy.id in running_policies:
            variants[policy.name] = lineage.rebuild_command(version)
        elif policy.id in routed_policies:
            commands[f"rlrec policy create NEW --kind {policy.kind} --from-log policy={policy.base}"] = None
    return {
        **_summary(unit, exclusion), "decisions": total - n_left, "total": total, "created": False,
        "rebuild": [*commands], "variants": variants,
    }  # fmt: skip


def _concerned_versions(unit: Unit, test: str, *, is_included: bool) -> Iterator[Version]:
    """Yield the versions that need a rebuild: with `is_included` False, because their belief has learned from excluded
    decisions; with `is_included` True, because it has left out decisions that count again. A version that is not live
    is skipped if a newer version has been rebuilt already.

    test: an SQL test on decisions `d` that the exclusion hides."""
    stored_policies = policies.all_policies(unit)
    live_ids = {version.id for version, _ in policies.live(unit, [policy.name for policy in stored_policies]).values()}
    rebuilt_keys = set[tuple[int, int]]()  # (policy, reward) of newer versions that need no rebuild
    versions = policies.versions(unit, [policy.id for policy in stored_policies])
    for version in sorted(versions, key=lambda row: (row.policy.id, -row.number)):
        key = version.policy.id, version.reward.id
        if not (version.learning or version.id in live_ids) or (key in rebuilt_keys and version.id not in live_ids):
            continue
        if lineage.has_learned(unit, version, test, has_omissions=is_included):
            yield version
        elif version.learning:
            rebuilt_keys.add(key)
