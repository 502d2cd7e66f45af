"""Users, sessions and their visits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from rlrec.store import tables as t
from rlrec.store.unit import Row, Unit


@dataclass(frozen=True, kw_only=True)
class Session:
    """A session as it stands; `user` is the first one given, None until then."""

    id: int
    key: str
    user_id: int | None
    user: str | None
    split: int
    created_at: int


@dataclass(frozen=True, kw_only=True)
class Visit:
    session_id: int
    number: int
    started_at: int
    last_at: int
    steps: int
    recent: str
    ended_at: int | None


_SESSION = (
    t.session.c.id, t.session.c.key, t.session.c.user_id, t.users.c.key.label("user"), t.session.c.split,
    t.session.c.created_at,
)  # fmt: skip
_VISIT = ("session_id", "number", "started_at", "last_at", "steps", "recent", "ended_at")


def known_users(unit: Unit, keys: Collection[str]) -> dict[str, int]:
    """The id of each of these users that the store knows."""
    return dict(unit.many(sa.select(t.users.c.key, t.users.c.id), t.users.c.key, keys))


def users(unit: Unit, keys: Collection[str]) -> dict[str, int]:
    """The id of each user, stored if new."""
    known = known_users(unit, keys)
    if new := sorted(set(keys) - known.keys()):
        unit.insert(t.users, ("key",), [(key,) for key in new], known="(key) DO NOTHING")
        known = known_users(unit, keys)
    return known


def find(unit: Unit, keys: Collection[str], *, lock: bool = False) -> dict[str, Session]:
    """Of the session keys given, those known, locked in order of key if asked."""
    if lock and unit.postgres:
        mine = sa.select(t.session.c.id).order_by(sa.collate(t.session.c.key, "C")).with_for_update(key_share=True)
        unit.many(mine, t.session.c.key, sorted(keys))
    joined = t.session.outerjoin(t.users, t.users.c.id == t.session.c.user_id)
    rows = unit.many(sa.select(*_SESSION).select_from(joined), t.session.c.key, keys)
    return {row[1]: _session(row) for row in rows}


def _session(row: Row) -> Session:
    return Session(id=row[0], key=row[1], user_id=row[2], user=row[3], split=row[4], created_at=row[5])


def by_id(unit: Unit, ids: Collection[int]) -> dict[int, Session]:
    joined = t.session.outerjoin(t.users, t.users.c.id == t.session.c.user_id)
    rows = unit.many(sa.select(*_SESSION).select_from(joined), t.session.c.id, ids)
    return {row[0]: _session(row) for row in rows}


def add(unit: Unit, rows: Iterable[tuple[str, int | None, int]]) -> None:
    """New sessions (key, user_id, split); one that came into being meanwhile is left as it is."""
    values = [(key, user_id, split, unit.now) for key, user_id, split in sorted(rows, key=lambda row: row[0])]
    unit.insert(t.session, ("key", "user_id", "split", "created_at"), values, known="(key) DO NOTHING")


def set_user(unit: Unit, users: Mapping[int, int]) -> None:
    """Give sessions their first user."""
    mark = "%s" if unit.postgres else "?"
    if users:
        unit.connection.exec_driver_sql(
            f"UPDATE session SET user_id = {mark} WHERE id = {mark}",
            [(user, session) for session, user in sorted(users.items())],
        )


def visits(unit: Unit, session_ids: Collection[int]) -> dict[int, Visit]:
    """The newest visit of each of these sessions that has one."""
    visit = t.visit.c
    newest = sa.select(visit.session_id, sa.func.max(visit.number)).group_by(visit.session_id)
    last: dict[int, int] = dict(unit.many(newest, visit.session_id, session_ids))
    columns = [visit[name] for name in _VISIT]
    rows = unit.many(sa.select(*columns), sa.tuple_(visit.session_id, visit.number), sorted(last.items()))
    return {row[0]: Visit(**dict(zip(_VISIT, row, strict=True))) for row in rows}


def all_visits(unit: Unit, session_id: int) -> list[Visit]:
    columns = [t.visit.c[name] for name in _VISIT]
    rows = unit.rows(sa.select(*columns).where(t.visit.c.session_id == session_id).order_by(t.visit.c.number))
    return [Visit(**dict(zip(_VISIT, row, strict=True))) for row in rows]


def put_visits(unit: Unit, visits: Iterable[Visit]) -> None:
    """Store visits as they stand now."""
    rows = [tuple(getattr(visit, name) for name in _VISIT) for visit in visits]
    after = ", ".join(f"{name} = excluded.{name}" for name in ("last_at", "steps", "recent", "ended_at"))
    unit.insert(t.visit, _VISIT, rows, known=f"(session_id, number) DO UPDATE SET {after}")


def newest_keys(unit: Unit, *, limit: int) -> list[str]:
    return [row[0] for row in unit.rows(sa.select(t.session.c.key).order_by(t.session.c.id.desc()).limit(limit))]


def listing(unit: Unit, *, limit: int | None = None) -> list[dict[str, Any]]:
    """Sessions with their number of visits and decisions, newest first."""
    visit = t.visit.c
    sums = (
        sa.select(
            visit.session_id,
            sa.func.count().label("visits"),
            sa.cast(sa.func.sum(visit.steps), t.BIG).label("decisions"),
            sa.func.max(visit.last_at).label("last_at"),
        )
        .group_by(visit.session_id)
        .subquery()
    )
    joined = t.session.outerjoin(t.users, t.users.c.id == t.session.c.user_id).outerjoin(
        sums, sums.c.session_id == t.session.c.id
    )
    statement = sa.select(t.session.c.key, t.users.c.key, sums.c.visits, sums.c.decisions, sums.c.last_at)
    names = ("session", "user", "visits", "decisions", "last_at")
    rows = unit.rows(statement.select_from(joined).order_by(t.session.c.id.desc()).limit(limit))
    return [dict(zip(names, row, strict=True)) for row in rows]


def any_user(unit: Unit) -> bool:
    """Whether some session has a user."""
    return unit.value(sa.select(t.session.c.id).where(t.session.c.user_id.is_not(None)).limit(1)) is not None
