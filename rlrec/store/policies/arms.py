"""The catalogue."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from rlrec.records import Arm
from rlrec.store.database import database_errors
from rlrec.store.database.unit import StoredRows, Unit
from rlrec.store.log import settings

LAST_ID = 2**32 - 1  # the packed slots of a visit have 32 bits for an arm


def all_arms(unit: Unit) -> list[Arm]:
    """All arms, retired ones too, by id."""
    return unit.select(Arm, "arm ORDER BY id")


def keys_like(unit: Unit, key: str, *, limit: int = 1_000) -> list[str]:
    """Keys of at most `limit` arms; those that begin like `key` come first."""
    half = key[: len(key) // 2]
    query = "SELECT key FROM arm ORDER BY substr(key, 1, ?) <> ?, id LIMIT ?"
    return [row[0] for row in unit.ask(query, len(half), half, limit)]


class ArmRevision(NamedTuple):
    arm_id: int
    revision: int
    features: str


def revisions(unit: Unit) -> list[ArmRevision]:
    """Every change of an arm, by arm and revision."""
    return unit.select(ArmRevision, "arm_history ORDER BY arm_id, revision")


def active(unit: Unit) -> list[int]:
    """Ids of the arms that may be served now, ascending."""
    return [row[0] for row in unit.ask("SELECT id FROM arm WHERE retired_at IS NULL ORDER BY id")]


def ids(unit: Unit, keys: Collection[str]) -> dict[str, int]:
    """Id of each of these keys that the catalogue has."""
    return dict(unit.ask("SELECT key, id FROM arm WHERE key IN (?*)", keys))


def keys(unit: Unit, ids: Collection[int]) -> dict[int, str]:
    return StoredRows("arm", unit.ask("SELECT id, key FROM arm WHERE id IN (?*)", ids) if ids else ())


def put(unit: Unit, features: Mapping[str, str]) -> tuple[int, int]:
    """Add arms, or change the features of stored ones: how many were added, how many changed."""
    old_rows = {row[0]: row for row in unit.ask("SELECT key, id, features FROM arm WHERE key IN (?*)", features)}
    new_keys = sorted(key for key in features if key not in old_rows)
    changed = sorted(key for key, row in old_rows.items() if row[2] != features[key])
    if not new_keys and not changed:
        return 0, 0
    revision = settings.raise_catalogue(unit)
    unit.insert(
        "arm", ("key", "features", "added_at", "retired_at"), [(key, features[key], unit.now, None) for key in new_keys]
    )
    if new_keys and int(unit.ask_value("SELECT max(id) FROM arm")) > LAST_ID:
        raise database_errors.ids_exhausted("arms")
    unit.tell_each("UPDATE arm SET features = ? WHERE id = ?", [(features[key], old_rows[key][1]) for key in changed])
    _remember(unit, [*new_keys, *changed], revision=revision)
    return len(new_keys), len(changed)


def retire(unit: Unit, keys: Collection[str], *, retired: bool) -> int:
    """Take arms out of eligibility, or back into it: how many changed. Their log stays."""
    now = "IS NULL" if retired else "IS NOT NULL"
    changed_keys = [row[0] for row in unit.ask(f"SELECT key FROM arm WHERE key IN (?*) AND retired_at {now}", keys)]
    if changed_keys:
        revision = settings.raise_catalogue(unit)
        unit.tell("UPDATE arm SET retired_at = ? WHERE key IN (?*)", unit.now if retired else None, changed_keys)
        _remember(unit, changed_keys, revision=revision)
    return len(changed_keys)


def _remember(unit: Unit, changed_keys: Collection[str], *, revision: int) -> None:
    now = unit.ask("SELECT id, features, retired_at FROM arm WHERE key IN (?*)", changed_keys)
    rows = [(arm, revision, unit.now, features, int(retired is not None)) for arm, features, retired in now]
    unit.insert("arm_history", ("arm_id", "revision", "at", "features", "retired"), sorted(rows))
