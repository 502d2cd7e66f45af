"""Users, sessions and their visits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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
    history: bytes | None = None


VISIT = ("session_id", "number", "started_at", "last_at", "steps", "recent", "ended_at", "history")
_SESSIONS = (
    "SELECT session.id, session.key, session.user_id, users.key, session.split, session.created_at"
    " FROM session LEFT JOIN users ON users.id = session.user_id"
)
_VISITS = f"SELECT {', '.join(VISIT)} FROM visit"


def known_users(unit: Unit, keys: Collection[str]) -> dict[str, int]:
    """The id of each of these users that the store knows."""
    return dict(unit.ask("SELECT key, id FROM users WHERE key IN (?*)", keys)) if keys else {}


def users(unit: Unit, keys: Collection[str]) -> dict[str, int]:
    """The id of each user, stored if new."""
    known = known_users(unit, keys)
    if new := sorted(set(keys) - known.keys()):
        unit.insert("users", ("key",), [(key,) for key in new], known="(key) DO NOTHING")
        known = known_users(unit, keys)
    return known


def find(unit: Unit, keys: Collection[str], *, lock: bool = False) -> dict[str, Session]:
    """Of the session keys given, those known, locked in order of key if asked."""
    if lock:
        _lock(unit, keys)
    rows = unit.ask(f"{_SESSIONS} WHERE session.key IN (?*)", keys)
    return {row[1]: _session(row) for row in rows}


def guests(unit: Unit, keys: Collection[str], *, lock: bool = True) -> list[Row]:
    """(key, id, user_id, user) of each of these sessions that is known, locked in order of key if asked, and its newest
    visit.

    The visit is number, started_at, last_at, steps, recent, ended_at, history; all None where there is none yet."""
    if lock:
        _lock(unit, keys)
    newest = "(SELECT max(number) FROM visit WHERE visit.session_id = session.id)"
    return unit.ask(
        "SELECT session.key, session.id, session.user_id, users.key, last.number, last.started_at, last.last_at,"
        " last.steps, last.recent, last.ended_at, last.history"
        " FROM session LEFT JOIN users ON users.id = session.user_id"
        f" LEFT JOIN visit AS last ON last.session_id = session.id AND last.number = {newest}"
        " WHERE session.key IN (?*)",
        keys,
    )


def _lock(unit: Unit, keys: Collection[str]) -> None:
    if unit.postgres:
        in_order = 'ORDER BY key COLLATE "C" FOR NO KEY UPDATE'
        unit.ask(f"SELECT id FROM session WHERE key IN (?*) {in_order}", keys)


def _session(row: Row) -> Session:
    return Session(id=row[0], key=row[1], user_id=row[2], user=row[3], split=row[4], created_at=row[5])


def by_id(unit: Unit, ids: Collection[int]) -> dict[int, Session]:
    return {row[0]: _session(row) for row in unit.ask(f"{_SESSIONS} WHERE session.id IN (?*)", ids)}


def add(unit: Unit, rows: Iterable[tuple[str, int | None, int]]) -> None:
    """New sessions (key, user_id, split); one that came into being meanwhile is left as it is."""
    values = [(key, user_id, split, unit.now) for key, user_id, split in sorted(rows, key=lambda row: row[0])]
    unit.insert("session", ("key", "user_id", "split", "created_at"), values, known="(key) DO NOTHING")


def set_user(unit: Unit, users: Mapping[int, int]) -> None:
    """Give sessions their first user."""
    if users:
        rows = [(user, session) for session, user in sorted(users.items())]
        unit.tell_each("UPDATE session SET user_id = ? WHERE id = ?", rows)


def visits(unit: Unit, session_ids: Collection[int]) -> dict[int, Visit]:
    """The newest visit of each of these sessions that has one."""
    newest = "number = (SELECT max(number) FROM visit AS other WHERE other.session_id = visit.session_id)"
    rows = unit.ask(f"{_VISITS} WHERE session_id IN (?*) AND {newest}", session_ids)
    return {row[0]: Visit(**dict(zip(VISIT, row, strict=True))) for row in rows}


def all_visits(unit: Unit, session_id: int) -> list[Visit]:
    rows = unit.ask(f"{_VISITS} WHERE session_id = ? ORDER BY number", session_id)
    return [Visit(**dict(zip(VISIT, row, strict=True))) for row in rows]


def put_visits(unit: Unit, visits: Iterable[Visit]) -> None:
    """Store visits as they stand now."""
    put(unit, [tuple(getattr(visit, name) for name in VISIT) for visit in visits])


def put(unit: Unit, visits: list[Row]) -> None:
    """The same for rows of VISIT."""
    after = ", ".join(f"{name} = excluded.{name}" for name in ("last_at", "steps", "recent", "ended_at", "history"))
    unit.insert("visit", VISIT, visits, known=f"(session_id, number) DO UPDATE SET {after}")


def newest_keys(unit: Unit, *, limit: int) -> list[str]:
    return [row[0] for row in unit.ask("SELECT key FROM session ORDER BY id DESC LIMIT ?", limit)]


def listing(unit: Unit, *, limit: int | None = None) -> list[dict[str, Any]]:
    """Sessions with their number of visits and decisions, newest first."""
    statement = """
        SELECT session.key, users.key, sums.visits, sums.decisions, sums.last_at
        FROM session LEFT JOIN users ON users.id = session.user_id
        LEFT JOIN (
            SELECT session_id, count(*) AS visits, CAST(sum(steps) AS BIGINT) AS decisions, max(last_at) AS last_at
            FROM visit GROUP BY session_id
        ) AS sums ON sums.session_id = session.id
        ORDER BY session.id DESC"""
    names = ("session", "user", "visits", "decisions", "last_at")
    rows = unit.ask(statement) if limit is None else unit.ask(f"{statement} LIMIT ?", limit)
    return [dict(zip(names, row, strict=True)) for row in rows]


def oldest_running(unit: Unit, *, timeout_us: int, window_us: int, since: int) -> int | None:
    """When the eldest of the visits began that began after `since` and are not over, with their windows; None without
    one."""
    running = "(ended_at IS NULL AND last_at + ? >= ?) OR last_at + ? >= ?"
    eldest = f"SELECT min(started_at) FROM visit WHERE started_at >= ? AND ({running})"
    found = unit.ask_value(eldest, since, timeout_us, unit.now, window_us, unit.now)
    return None if found is None else int(found)


def any_user(unit: Unit) -> bool:
    """Whether some session has a user."""
    return unit.ask_row("SELECT id FROM session WHERE user_id IS NOT NULL LIMIT 1") is not None
