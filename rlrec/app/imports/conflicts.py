"""Lines that the store or a line before contradicts: request ids and feedback keys that are known, other users."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress
from typing import Any, NamedTuple, cast

import numpy as np

from rlrec.app.imports.columns import NULL, LogColumns, distinct, picked, values
from rlrec.arrays import Ids
from rlrec.errors import Conflict
from rlrec.store import Unit
from rlrec.store.database import loading
from rlrec.store.log import decisions, events, sessions

MIXED = -0x61C8864680B583EB  # an odd number that spreads hashes over 64 bits


def find(unit: Unit, rows: LogColumns, users: Mapping[str, str | None], *, agree: bool) -> dict[int, Conflict]:
    """The rows that are refused, by index. users: of the sessions that the store has; agree: whether it is known that
    no row contradicts another.

    A row that is refused leaves no trace: what it names is free for the rows after it."""
    requests = set(decisions.requests(unit, distinct(rows.request_id)))
    keys = set(events.stored_keys(unit, distinct(rows.events.key)))
    agree = agree or not len(LineNames.read(rows).disputed_hashes())
    stored_users = {session: user for session, user in users.items() if user is not None}
    differs = stored_users and any(stored_users.get(session, user) != user for session, user in _with_user(rows))
    if agree and not (requests or keys or differs):
        return {}
    keys_of, owners = _keys(rows), dict(users)
    refused: dict[int, Conflict] = {}
    columns = zip(values(rows.request_id, len(rows)), rows.session, values(rows.user, len(rows)), strict=True)
    for row, (request, session, user) in enumerate(columns):
        named_values = keys_of.get(row, set())
        if request in requests:
            refused[row] = _request_conflict(request)
        elif repeated := named_values & keys:
            refused[row] = _key_conflict(min(repeated))
        elif user is not None and (owners.get(session) or user) != user:
            refused[row] = _user_conflict(session, user, f"user {owners[session]!r}")
        else:
            keys |= named_values
            if request is not None:
                requests.add(request)
            if user is not None:
                owners[session] = user
    return refused


def _with_user(rows: LogColumns) -> list[tuple[str, str]]:
    """Session and user of the rows that have one."""
    pairs = zip(rows.session, values(rows.user, len(rows)), strict=True) if rows.user != NULL else ()
    return [(session, user) for session, user in pairs if user is not None]


def users_of_sessions(unit: Unit, rows: LogColumns) -> dict[str, str | None]:
    """The users of the stored sessions that some row gives a user."""
    stored_users = loading.stored_sessions(unit, {session for session, _ in _with_user(rows)})
    return {key: session.user for key, session in sessions.find(unit, stored_users).items()}


def _keys(rows: LogColumns) -> dict[int, set[str]]:
    """The feedback keys of each row that names some."""
    keys = defaultdict[int, set[str]](set)
    if distinct(rows.events.key):
        for row, key in zip(rows.events.row, values(rows.events.key, len(rows.events.row)), strict=True):
            if key is not None:
                keys[row].add(key)
    return keys


def _request_conflict(request: str) -> Conflict:
    hint = "it names one decision of the store"
    return Conflict(f"request id {request!r} is known already", hint=hint, field="request_id")


def _key_conflict(key: str) -> Conflict:
    return Conflict(f"feedback key {key!r} is known already", hint="it names one line of feedback", field="events")


def _user_conflict(session: str, user: str, owner: str) -> Conflict:
    return Conflict(f"session {session[:80]!r} belongs to {owner}, not {user!r}", field="user")


class _NamesOfKind(NamedTuple):
    """Names of one kind in lines: each with its row, and with what it stands for, the line or a user."""

    kind: str
    names: Sequence[str]
    row: Sequence[int]
    values: Sequence[str | bytes]


def _names_by_kind(rows: LogColumns) -> Iterator[_NamesOfKind]:
    """The request ids and feedback keys that rows name, and the sessions that they give a user."""
    all_rows, event_rows = range(len(rows)), rows.events.row
    entries = (
        ("request", rows.request_id, all_rows, rows.digest),
        ("key", rows.events.key, event_rows, picked(rows.digest, event_rows)),
        ("session", rows.session or NULL, all_rows, rows.user),
    )
    for kind, names, row, stands_for in entries:
        if NULL not in (names, stands_for) and row:
            named_values = _NamesOfKind(kind, values(names, len(row)), row, values(stands_for, len(row)))
            if None in named_values.names or None in named_values.values:
                keep = [None not in pair for pair in zip(named_values.names, named_values.values, strict=True)]
                named_values = _NamesOfKind(
                    kind, *(cast(Any, list(compress(column, keep))) for column in named_values[1:])
                )
            yield named_values


class LineNames(NamedTuple):
    """Names in lines, (n,), as hashes: of each name, and of it with what it stands for. No pair comes twice."""

    name: Ids
    pair: Ids

    @classmethod
    def read(cls, rows: LogColumns) -> LineNames:
        return cls.join(map(cls.hashed, _names_by_kind(rows)))

    @classmethod
    def hashed(cls, named_values: _NamesOfKind) -> LineNames:
        name = _hashes(named_values.names) ^ hash(named_values.kind)
        pair, index = np.unique(name * MIXED + _hashes(named_values.values), return_index=True)
        return cls(name[index], pair)

    @classmethod
    def join(cls, entries: Iterable[LineNames]) -> LineNames:
        empty = np.empty(0, np.int64)
        return cls(*map(np.concatenate, zip((empty, empty), *entries, strict=True)))

    def disputed_hashes(self) -> Ids:
        """The hashes of the names that stand for several things."""
        if _count_changes(self.name) == _count_changes(self.pair):
            return self.name[:0]
        _, index = np.unique(self.pair, return_index=True)
        name, count = np.unique(self.name[index], return_counts=True)
        return name[count > 1]


def _count_changes(hashes: Ids) -> int:
    """The number of distinct hashes, less one."""
    ordered = np.sort(hashes)
    return int(np.count_nonzero(ordered[1:] != ordered[:-1]))


def _hashes(column: Sequence[str | bytes]) -> Ids:
    return np.fromiter(map(hash, column), np.int64, len(column))


def names_of_store(unit: Unit) -> LineNames | None:
    """The names in the store, as if of other lines than any of a log; None where they are many."""
    few_names = loading.few_names(unit)
    if few_names is None:
        return None
    requests, keys, users = few_names
    named_values = ("request", requests, requests), ("key", keys, keys), ("session", list(users), list(users.values()))
    return LineNames.join(
        LineNames.hashed(_NamesOfKind(kind, names, (), owners)) for kind, names, owners in named_values
    )


class EarlierLines:
    """The lines so far, of which disputed names are remembered with what they stood for: a line that contradicts one of
    an earlier group or file is refused before either is stored."""

    def __init__(self, disputed: Ids) -> None:
        self.disputed_hashes = disputed
        self.values: dict[tuple[str, str], str | bytes] = {}

    def find(self, rows: LogColumns) -> Iterator[tuple[int, Conflict]]:
        """Rows that contradict an earlier line, with the reason: of each kind of names the first.

        Another line with the same request id or feedback key contradicts, and another user of the same session. The
        same line, which a file has that overlaps with another, does not."""
        for kind, names, row, stands_for in _names_by_kind(rows):
            is_disputed = np.isin(_hashes(names) ^ hash(kind), self.disputed_hashes)
            for index in np.flatnonzero(is_disputed).tolist():
                name, value = names[index], stands_for[index]
                first = self.values.setdefault((kind, name), value)
                if first != value:
                    yield row[index], _conflict(kind, name, value, first)
                    break


def _conflict(kind: str, name: str, value: str | bytes, first: str | bytes) -> Conflict:
    if kind == "session":
        return _user_conflict(name, str(value), f"user {first!r}")
    return _request_conflict(name) if kind == "request" else _key_conflict(name)
