"""Queries here store the arms of the catalogue, with their features, groups and times of eligibility."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from rlrec.errors import InputError
from rlrec.records import Arm
from rlrec.store.database import database_errors, loading
from rlrec.store.database.unit import Row, StoredRows, Unit
from rlrec.store.log import settings
from rlrec.times import FIRST, LAST, format_time

TIMES = ("eligible_from", "eligible_until")  # columns
LAST_ID = 2**32 - 1  # the packed slots of a visit have 32 bits for an arm


def all_arms(unit: Unit) -> list[Arm]:
    """Return all arms, including retired arms, in order of id."""
    return unit.select(Arm, "arm ORDER BY id")


def by_keys(unit: Unit, keys: Collection[str]) -> list[Arm]:
    """Return the arms that have one of these keys, in order of id."""
    return unit.select(Arm, "arm WHERE key IN (?*) ORDER BY id", keys)


def keys_like(unit: Unit, key: str, *, limit: int = 1_000) -> list[str]:
    """Return the keys of at most `limit` arms. Keys that begin with the first half of `key` come first."""
    prefix = key[: len(key) // 2]
    query = "SELECT key FROM arm ORDER BY substr(key, 1, ?) <> ?, id LIMIT ?"
    return [row[0] for row in unit.ask(query, len(prefix), prefix, limit)]


def revisions(unit: Unit) -> list[Row]:
    """Return a row for each change of an arm, in order of arm and revision: the arm id, the revision of the catalogue,
    and the features that the arm has from this revision on."""
    return unit.ask("SELECT arm_id, revision, features FROM arm_history ORDER BY arm_id, revision")


def first_features(unit: Unit, ids: Collection[int]) -> dict[int, str]:
    """Return the features that each of these arms had when the arm was added, by arm id."""
    first_revision = "(SELECT min(revision) FROM arm_history WHERE arm_id = h.arm_id)"
    query = f"SELECT arm_id, features FROM arm_history h WHERE arm_id IN (?*) AND revision = {first_revision}"
    return dict(unit.ask(query, ids))


def active_arms(unit: Unit, *, at: int | None = None) -> tuple[tuple[int, ...], int, int]:
    """Return the ids of the arms that may be served at a time, ascending, and a time span (start, end) around this time
    in which these arms stay the same. at: the time; None: now."""
    now = unit.now if at is None else at
    time_test = "coalesce(eligible_from, ?) <= ? AND ? < coalesce(eligible_until, ?)"
    ids = unit.ask(f"SELECT id FROM arm WHERE retired_at IS NULL AND {time_test} ORDER BY id", FIRST, now, now, LAST)
    bounds = " UNION ALL ".join(
        f"SELECT {name} AS bound FROM arm WHERE retired_at IS NULL AND {name} IS NOT NULL" for name in TIMES
    )
    ends = "max(CASE WHEN bound <= ? THEN bound END), min(CASE WHEN bound > ? THEN bound END)"
    start, end = unit.ask(f"SELECT {ends} FROM ({bounds}) AS bounds", now, now)[0]
    return tuple(row[0] for row in ids), FIRST if start is None else start, LAST if end is None else end


def members(unit: Unit, groups: Collection[str]) -> dict[str, frozenset[int]]:
    """Return the ids of the arms in each of these groups, by the name of the group. Groups that do not exist are left
    out."""
    tables = "arm_group g LEFT JOIN group_member m ON m.arm_group_id = g.id"
    by_group = unit.ask_groups(f"SELECT g.name, m.arm_id FROM {tables} WHERE g.name IN (?*)", groups)
    # a group without arms has one row, with None
    return {name: frozenset(ids) - {None} for name, ids in by_group.items()}


def group_names(unit: Unit) -> list[str]:
    return [row[0] for row in unit.ask("SELECT name FROM arm_group ORDER BY name")]


def groups(unit: Unit) -> dict[int, list[str]]:
    """Return the names of the groups to which each arm belongs, in order of name, by arm id. Arms without a group are
    left out."""
    tables = "arm_group g JOIN group_member m ON m.arm_group_id = g.id"
    return unit.ask_groups(f"SELECT m.arm_id, g.name FROM {tables} ORDER BY g.name")


def at_revision(unit: Unit, revision: int) -> list[Arm]:
    """Return all arms as they were at a revision of the catalogue, in order of id. Arms that were added later are left
    out."""
    newest_revision = "(SELECT max(revision) FROM arm_history WHERE arm_id = h.arm_id AND revision <= ?)"
    columns = "a.id, a.key, h.features, a.added_at, CASE WHEN h.retired = 1 THEN h.at END, h.eligible_from"
    tables = f"arm_history h JOIN arm a ON a.id = h.arm_id WHERE h.revision = {newest_revision}"
    return unit.records(Arm, f"SELECT {columns}, h.eligible_until FROM {tables} ORDER BY a.id", revision)


def ids(unit: Unit, keys: Collection[str]) -> dict[str, int]:
    """Return the ids of the arms that have these keys, by key. Keys without an arm are left out."""
    return dict(unit.ask("SELECT key, id FROM arm WHERE key IN (?*)", keys))


def keys(unit: Unit, ids: Collection[int]) -> dict[int, str]:
    return StoredRows("arm", unit.ask("SELECT id, key FROM arm WHERE id IN (?*)", ids) if ids else ())


def put(
    unit: Unit, features: Mapping[str, str | None], *, times: Mapping[str, Mapping[str, int | None]] | None = None,
    groups: Mapping[str, Collection[str]] | None = None,
) -> tuple[int, int]:  # fmt: skip
    """Add or change arms. Return the number of added arms and the number of changed arms.

    features: the features of each arm by key, as canonical JSON, or None to keep the features of a stored arm;
    times: new times of eligibility by arm key, and then by name of the column; groups: the names of all groups of
    each arm. An arm that is not in `times` keeps its times, and an arm that is not in `groups` keeps its groups."""
    columns = ", ".join(("features", *TIMES))
    old_rows = {row[0]: row[1:] for row in unit.ask(f"SELECT key, {columns} FROM arm WHERE key IN (?*)", features)}
    new_rows = dict[str, Row]()
    for key, features_text in features.items():
        old_features, *old_times = old_rows.get(key, ("{}", None, None))
        start, end = (dict(zip(TIMES, old_times, strict=True)) | {**(times or {}).get(key, {})}).values()
        if start is not None and end is not None and start >= end:
            message = f"arm {key!r} would begin at {format_time(start)} and end at {format_time(end)}"
            raise InputError(message, hint="it ends after it begins", field="until")
        new_rows[key] = old_features if features_text is None else features_text, start, end
    new_keys = sorted(new_rows.keys() - old_rows.keys())
    changed_keys = sorted(key for key, row in old_rows.items() if row != new_rows[key])
    changed_groups = _changed_groups(unit, groups) if groups else {}
    if not new_keys and not changed_keys and not changed_groups:
        return 0, 0
    revision = settings.raise_catalogue(unit)
    rows = [(key, unit.now, None, *new_rows[key]) for key in new_keys]
    unit.insert("arm", ("key", "added_at", "retired_at", "features", *TIMES), rows)
    if new_keys and int(unit.ask_value("SELECT max(id) FROM arm")) > LAST_ID:
        raise database_errors.ids_exhausted("arms")
    update = "UPDATE arm SET features = ?, eligible_from = ?, eligible_until = ? WHERE key = ?"
    unit.tell_each(update, [(*new_rows[key], key) for key in changed_keys])
    _add_history(unit, [*new_keys, *changed_keys], revision=revision)
    _put_groups(unit, changed_groups)
    return len(new_keys), len({*changed_keys, *changed_groups}.difference(new_keys))


def _changed_groups(unit: Unit, groups: Mapping[str, Collection[str]]) -> dict[str, Collection[str]]:
    """Return the arms whose groups change, with their new groups, by arm key. groups: the names of the groups that each
    arm shall have, by arm key."""
    tables = "group_member m JOIN arm a ON a.id = m.arm_id JOIN arm_group g ON g.id = m.arm_group_id"
    old_groups = unit.ask_groups(f"SELECT a.key, g.name FROM {tables} WHERE a.key IN (?*)", groups)
    return {key: names for key, names in groups.items() if set(names) != set(old_groups.get(key, ()))}


def _put_groups(unit: Unit, groups: Mapping[str, Collection[str]]) -> None:
    """Replace all groups of these arms. groups: the names of the new groups, by arm key."""
    if not groups:
        return
    arm_ids = ids(unit, groups)
    names = sorted(set[str]().union(*groups.values()))
    group_ids = loading.ids(unit, "arm_group", "name", names)
    group_ids |= loading.add_new(unit, "arm_group", {"name": [name for name in names if name not in group_ids]})
    unit.tell("DELETE FROM group_member WHERE arm_id IN (?*)", list(arm_ids.values()))
    rows = [(group_ids[name], arm_ids[key]) for key, group in groups.items() for name in sorted(set(group))]
    unit.insert("group_member", ("arm_group_id", "arm_id"), rows)


def retire(unit: Unit, keys: Collection[str], *, is_retired: bool) -> int:
    """Retire arms or, with `is_retired` False, restore arms. Return how many arms changed. The log of a retired arm
    stays."""
    condition = "IS NULL" if is_retired else "IS NOT NULL"
    query = f"SELECT key FROM arm WHERE key IN (?*) AND retired_at {condition}"
    changed_keys = [row[0] for row in unit.ask(query, keys)]
    if changed_keys:
        revision = settings.raise_catalogue(unit)
        unit.tell("UPDATE arm SET retired_at = ? WHERE key IN (?*)", unit.now if is_retired else None, changed_keys)
        _add_history(unit, changed_keys, revision=revision)
    return len(changed_keys)


def _add_history(unit: Unit, changed_keys: Collection[str], *, revision: int) -> None:
    columns = ", ".join(("id", "retired_at", "features", *TIMES))
    arm_rows = unit.ask(f"SELECT {columns} FROM arm WHERE key IN (?*)", changed_keys)
    rows = [(arm, revision, unit.now, int(retired_at is not None), *values) for arm, retired_at, *values in arm_rows]
    unit.insert("arm_history", ("arm_id", "revision", "at", "retired", "features", *TIMES), sorted(rows))
