"""Queries here read and write users, sessions and the visits of sessions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from rlrec.store.database import loading
from rlrec.store.database.unit import Row, StoredRows, Unit, damage_error
from rlrec.store.log.contents import key_digest, key_digests


class Session(NamedTuple):
    """This record is a stored session. `user_id` and `user` are the id and the key of the first user that the session
    was given, or None if it has not been given a user."""

    id: int
    key: str
    user_id: int | None
    user: str | None
    split: int
    created_at: int


class Visit(NamedTuple):
    """This record is a stored visit of a session. recent: the keys of the last arms shown, as JSON; history: the
    history of the visit as packed bytes, or None if the store has no history of the visit."""

    session_id: int
    number: int
    started_at: int
    last_at: int
    steps: int
    recent: str
    ended_at: int | None
    history: bytes | None = None


class NewestVisit(NamedTuple):
    """This record describes the newest visit of a session. is_live: 1 if the visit is open, or has a decision that was
    not imported; else 0."""

    session_id: int
    number: int
    last_at: int
    steps: int
    is_live: int


_SESSION_QUERY = (
    "SELECT session.id, session.key, session.user_id, users.key, session.split, session.created_at"
    " FROM session LEFT JOIN users ON users.id = session.user_id"
)


_ADDED = (
    "INSERT INTO session (key, user_id, split, created_at, digest)"
    " SELECT * FROM unnest(?::text[], ?::bigint[], ?::smallint[], ?::bigint[], ?::bigint[])"
    " ON CONFLICT (key) DO NOTHING RETURNING key, id"
)


def user_ids(unit: Unit, keys: Collection[str]) -> dict[str, int]:
    """Return the ids of the users that are stored under these keys, by key."""
    return loading.ids(unit, "users", "key", keys)


def intern_users(unit: Unit, keys: Collection[str], digests: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return the ids of the users with these keys, by key, and store the users that are new. digests: the digest of
    each key, if the caller has already computed the digests."""
    ids = user_ids(unit, sorted(keys))
    new_keys = sorted(set(keys) - ids.keys())
    digest = key_digest if digests is None else digests.__getitem__
    return ids | loading.add_new(unit, "users", {"key": new_keys, "digest": list(map(digest, new_keys))})


def find(unit: Unit, keys: Collection[str], *, lock: bool = False) -> dict[str, Session]:
    """Return the sessions that are stored under these keys, by key. lock: whether to lock the sessions, in order of
    key."""
    rows = _ask_locked(unit, f"{_SESSION_QUERY} WHERE session.key IN (?*)", keys, lock=lock)
    return {row[1]: Session._make(row) for row in rows}


def with_newest_visit(unit: Unit, keys: Collection[str], *, lock: bool = True) -> list[Row]:
    """Return one row for each stored session that has one of these keys, with the newest visit of the session.

    The row has the key and id of the session, the id and key of its user, and the fields of the visit from `number`
    on (number, started_at, last_at, steps, recent, ended_at, history). The fields of the visit are None if the
    session has no visit. lock: whether to lock the sessions, in order of key."""
    newest_number = "(SELECT max(number) FROM visit WHERE visit.session_id = session.id)"
    query = (
        "SELECT session.key, session.id, session.user_id, users.key, last.number, last.started_at, last.last_at,"
        " last.steps, last.recent, last.ended_at, last.history"
        " FROM session LEFT JOIN users ON users.id = session.user_id"
        f" LEFT JOIN visit AS last ON last.session_id = session.id AND last.number = {newest_number}"
        " WHERE session.key IN (?*)"
    )
    return _ask_locked(unit, query, keys, lock=lock)


def _ask_locked(unit: Unit, query: str, keys: Collection[str], *, lock: bool) -> list[Row]:
    """Return the rows of a query over the sessions with these keys. With `lock`, PostgreSQL locks the sessions before
    it answers the query."""
    if not (lock and unit.postgres):
        return unit.ask(query, keys)
    lock_query = 'SELECT id FROM session WHERE key IN (?*) ORDER BY key COLLATE "C" FOR NO KEY UPDATE'
    return unit.ask_all((lock_query, keys), (query, keys))[1]


def by_id(unit: Unit, ids: Collection[int]) -> dict[int, Session]:
    rows = unit.records(Session, f"{_SESSION_QUERY} WHERE session.id IN (?*)", ids)
    return StoredRows("session", ((session.id, session) for session in rows))


def add(unit: Unit, keys: Sequence[str], user_ids: Sequence[int | None], splits: Sequence[int]) -> dict[str, int]:
    """Store new sessions and return their ids, by key. On PostgreSQL, a session that another transaction has stored
    meanwhile does not change, and its id is not in the result.

    keys, user_ids, splits: the key, the user (or None) and the split of each session."""
    keys, user_ids, splits = zip(*sorted(zip(keys, user_ids, splits, strict=True)), strict=True)
    digests = key_digests(keys)
    if unit.postgres:
        columns = keys, user_ids, splits, [unit.now] * len(keys), digests
        return dict(unit.ask(_ADDED, *map(list, columns)))
    ids = unit.reserve("session", len(keys))
    loading.write(unit, "session", {
        "id": ids, "key": keys, "user_id": loading.column(user_ids), "split": splits,
        "created_at": loading.Same(unit.now), "digest": digests,
    })  # fmt: skip
    return dict(zip(keys, ids, strict=True))


def set_user(unit: Unit, users: Mapping[int, int]) -> None:
    """Store the first user of each session. users: the id of the user by the id of the session."""
    if users:
        rows = [(user, session) for session, user in sorted(users.items())]
        unit.tell_each("UPDATE session SET user_id = ? WHERE id = ?", rows)


_NEWEST = "number = (SELECT max(number) FROM visit AS other WHERE other.session_id = visit.session_id)"
_LIVE = (
    "CASE WHEN ended_at IS NULL OR EXISTS (SELECT 1 FROM decision WHERE decision.session_id = visit.session_id"
    " AND decision.visit = visit.number AND decision.imported = 0) THEN 1 ELSE 0 END"
)


def visits(unit: Unit, session_ids: Collection[int]) -> dict[int, Visit]:
    """Return the newest visit of each of these sessions, by session id. Sessions without a visit are left out."""
    rows = unit.select(Visit, f"visit WHERE session_id IN (?*) AND {_NEWEST}", session_ids)
    return {visit.session_id: visit for visit in rows}


def newest_visits(unit: Unit, session_ids: Collection[int]) -> list[NewestVisit]:
    """Return a NewestVisit for each of these sessions. Sessions without a visit are left out."""
    columns = f"session_id, number, last_at, steps, {_LIVE}"
    return unit.records(
        NewestVisit, f"SELECT {columns} FROM visit WHERE session_id IN (?*) AND {_NEWEST}", list(session_ids)
    )


def extend_visits(unit: Unit, columns: Mapping[str, Sequence[int]]) -> None:
    """Store the new last time, end and number of steps of visits that got further decisions. columns: lists by name of
    the column; session_id and number identify the visits, and last_at, ended_at and steps have the new values."""
    names = "last_at", "ended_at", "steps", "session_id", "number"
    update = "UPDATE visit SET last_at = ?, ended_at = ?, steps = ? WHERE session_id = ? AND number = ?"
    unit.tell_each(update, zip(*map(columns.__getitem__, names), strict=True))


def all_visits(unit: Unit, session_id: int) -> list[Visit]:
    return unit.select(Visit, "visit WHERE session_id = ? ORDER BY number", session_id)


def numbered_visits(unit: Unit, session_ids: Collection[int]) -> dict[int, dict[int, Visit]]:
    """Return all visits of these sessions, by session id and then by the number of the visit."""
    by_session: dict[int, dict[int, Visit]] = defaultdict(dict)
    for visit in unit.select(Visit, "visit WHERE session_id IN (?*)", session_ids):
        by_session[visit.session_id][visit.number] = visit
    return by_session


def steps(unit: Unit, session_ids: Collection[int]) -> list[Row]:
    """Return a row for each decision of these sessions: the session, the visit, the step, and whether the decision was
    imported."""
    return unit.ask("SELECT session_id, visit, step, imported FROM decision WHERE session_id IN (?*)", session_ids)


def put_visits(unit: Unit, visits: Iterable[Row]) -> None:
    """Store visits. Each row has the fields of Visit. A stored visit with the same session and number is
    overwritten."""
    if columns := dict(zip(Visit._fields, zip(*visits, strict=True), strict=False)):
        changes = ", ".join(f"{name} = excluded.{name}" for name in Visit._fields[2:])
        table_columns = {name: loading.column(values) for name, values in columns.items()}
        table_columns["session_id"] = columns["session_id"]  # at least one column must not be a `Same`
        loading.write(unit, "visit", table_columns, on_conflict=f"(session_id, number) DO UPDATE SET {changes}")


def newest_keys(unit: Unit, *, limit: int) -> list[str]:
    return [row[0] for row in unit.ask("SELECT key FROM session ORDER BY id DESC LIMIT ?", limit)]


def list_sessions(unit: Unit, *, limit: int | None = None, user_id: int | None = None) -> list[Row]:
    """Return a row for each session, newest session first.

    Each row has the key of the session, the key of its user, the number of its visits, the number of its decisions
    and the time of its last decision. limit: the largest number of rows; user_id: if given, only sessions of this
    user are returned. The query reads only the visits of the returned sessions."""
    where_clause = "" if user_id is None else f"WHERE user_id = {int(user_id)}"
    newest_sessions = f"SELECT id, key, user_id FROM session {where_clause} ORDER BY id DESC"
    sums = "nullif(count(visit.number), 0), CAST(sum(visit.steps) AS BIGINT), max(visit.last_at)"
    statement = f"""
        SELECT s.key, min(users.key), {sums} FROM ({newest_sessions}{"" if limit is None else " LIMIT ?"}) AS s
        LEFT JOIN users ON users.id = s.user_id LEFT JOIN visit ON visit.session_id = s.id
        GROUP BY s.id, s.key ORDER BY s.id DESC"""
    return unit.ask(statement, *([] if limit is None else [limit]))


def oldest_running(unit: Unit, *, timeout_us: int, window_us: int, since: int, now: int) -> int | None:
    """Return the earliest start of a visit that began at or after `since` and still runs at `now`, or None if there is
    no such visit. A visit stops running when it has ended and `window_us` have passed since its last decision.
    timeout_us: the time after the last decision at which a visit without a stored end ends."""
    running_test = "(ended_at IS NULL AND last_at + ? >= ?) OR last_at + ? >= ?"
    query = f"SELECT min(started_at) FROM visit WHERE started_at >= ? AND ({running_test})"
    started_at = unit.ask_value(query, since, timeout_us, now, window_us, now)
    return None if started_at is None else int(started_at)


def any_user(unit: Unit) -> bool:
    """Tell whether any session has a user."""
    return unit.ask_row("SELECT id FROM session WHERE user_id IS NOT NULL LIMIT 1") is not None


def check_steps(unit: Unit, keys: Collection[str]) -> None:
    """Raise RlrecError if a visit of the sessions with these keys counts fewer steps than its decisions have."""
    tables = (
        "decision d JOIN session s ON s.id = d.session_id JOIN visit v ON v.session_id = s.id AND v.number = d.visit"
    )
    if key := unit.ask_value(f"SELECT s.key FROM {tables} WHERE d.step >= v.steps AND s.key IN (?*) LIMIT 1", keys):
        raise damage_error(f"a visit of session {key!r} counts fewer steps than its decisions have")
