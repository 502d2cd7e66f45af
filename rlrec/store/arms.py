"""The catalogue."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import sqlalchemy as sa

from rlrec.records import Arm
from rlrec.store import settings
from rlrec.store import tables as t
from rlrec.store.unit import Unit

_ARM = tuple(t.arm.c[name] for name in ("id", "key", "features", "added_at", "retired_at"))


def every(unit: Unit) -> list[Arm]:
    """All arms, retired ones too, by id."""
    rows = unit.rows(sa.select(*_ARM).order_by(t.arm.c.id))
    return [Arm(id=row[0], key=row[1], features=row[2], added_at=row[3], retired_at=row[4]) for row in rows]


def active(unit: Unit) -> list[int]:
    """Ids of the arms that may be served now, ascending."""
    return [row[0] for row in unit.rows(sa.select(t.arm.c.id).where(t.arm.c.retired_at.is_(None)).order_by(t.arm.c.id))]


def ids(unit: Unit, keys: Collection[str]) -> dict[str, int]:
    """Id of each of these keys that the catalogue has."""
    return dict(unit.many(sa.select(t.arm.c.key, t.arm.c.id), t.arm.c.key, keys))


def keys(unit: Unit, ids: Collection[int]) -> dict[int, str]:
    return dict(unit.many(sa.select(t.arm.c.id, t.arm.c.key), t.arm.c.id, ids))


def put(unit: Unit, features: Mapping[str, str]) -> tuple[int, int]:
    """Add arms, or change the features of known ones: (added, changed)."""
    known = {row[1]: row for row in unit.many(sa.select(*_ARM), t.arm.c.key, features)}
    new = sorted(key for key in features if key not in known)
    changed = sorted(key for key, row in known.items() if row[2] != features[key])
    if not new and not changed:
        return 0, 0
    revision = settings.raise_catalogue(unit)
    unit.insert(
        t.arm, ("key", "features", "added_at", "retired_at"), [(key, features[key], unit.now, None) for key in new]
    )
    mark = "%s" if unit.postgres else "?"
    if changed:
        unit.connection.exec_driver_sql(
            f"UPDATE arm SET features = {mark} WHERE id = {mark}", [(features[key], known[key][0]) for key in changed]
        )
    _remember(unit, [*new, *changed], revision=revision)
    return len(new), len(changed)


def retire(unit: Unit, keys: Collection[str], *, retired: bool) -> int:
    """Take arms out of eligibility, or back into it: how many changed. Their log stays."""
    where = t.arm.c.key.in_(keys), (t.arm.c.retired_at.is_(None) if retired else t.arm.c.retired_at.is_not(None))
    touched = [row[0] for row in unit.rows(sa.select(t.arm.c.key).where(*where).order_by(t.arm.c.key))]
    if touched:
        revision = settings.raise_catalogue(unit)
        unit.run(sa.update(t.arm).where(*where).values(retired_at=unit.now if retired else None))
        _remember(unit, touched, revision=revision)
    return len(touched)


def _remember(unit: Unit, touched: Collection[str], *, revision: int) -> None:
    now = unit.many(sa.select(t.arm.c.id, t.arm.c.features, t.arm.c.retired_at), t.arm.c.key, touched)
    rows = [(arm, revision, unit.now, features, int(retired is not None)) for arm, features, retired in now]
    unit.insert(t.arm_history, ("arm_id", "revision", "at", "features", "retired"), sorted(rows))
