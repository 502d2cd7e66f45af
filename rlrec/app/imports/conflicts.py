"""This module finds lines that contradict the store or an earlier line. Such a line has a request id or feedback key
that a different line has already, or gives a session another user."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any, NamedTuple, cast

import numpy as np

from rlrec.app.imports.columns import NULL, LogColumns, pick_values, value_set, values
from rlrec.arrays import Ids
from rlrec.errors import Conflict
from rlrec.store import Unit
from rlrec.store.database import loading
from rlrec.store.log import decisions, events, sessions, settings
from rlrec.store.policies.users import main_keys

MIXED = -0x61C8864680B583EB  # an odd number that spreads hashes over 64 bits


NameValues = dict[tuple[str, str], str | bytes]  # by kind and name, the line or user that it stands for


def find(
    unit: Unit, rows: LogColumns, users: Mapping[str, str | None], *, disputed_hashes: Ids | None, meanings: NameValues
) -> dict[int, Conflict]:  # fmt: skip
    """Return the errors of rows that must be refused, by the index of the row. A row is refused if a different line, in
    the store or in an earlier row, has the same request id or feedback key, or if its session has another user. Equal
    lines, as in files that overlap, do not conflict. Later rows may use the names (request id, feedback keys, session)
    of a refused row.

    users: the user of each session in the store; disputed_hashes: hashes of the names that stand for different lines
    or users anywhere in the import, or None to look for such names in these rows alone; meanings: the line or user
    that each disputed name of earlier rows stands for, to which this call adds the names of these rows."""
    requests = decisions.requests(unit, value_set(rows.request_id))
    keys, _ = events.keys_and_kinds(unit, value_set(rows.events.key))
    session_users = {session: user for session, user in users.items() if user is not None}
    entries = _stored_names(list(requests), list(keys), session_users)
    if disputed_hashes is None or any(entry.names for entry in entries):
        hashes = LineNames.join([LineNames.read(rows), *map(LineNames.hash_names, entries)]).disputed_hashes()
        disputed_hashes = hashes if disputed_hashes is None else np.union1d(disputed_hashes, hashes)
    if not len(disputed_hashes):
        return {}
    values_in_store: NameValues = {
        (entry.kind, name): value for entry in entries for name, value in zip(entry.names, entry.values, strict=True)
    }
    values_by_row = defaultdict[int, NameValues](dict)
    for kind, names, owners, meanings_of_names in _names_by_kind(rows):
        for index in np.flatnonzero(np.isin(_hashes(names) ^ hash(kind), disputed_hashes)).tolist():
            values_by_row[owners[index]][kind, names[index]] = meanings_of_names[index]
    conflicts: dict[int, Conflict] = {}
    for row in sorted(values_by_row):
        for name, value in values_by_row[row].items():
            first_value = values_in_store.get(name, meanings.get(name, value))
            if first_value != value:
                conflicts[row] = _conflict(*name, value, first_value)
                break
        else:
            meanings |= values_by_row[row]
    return conflicts


def with_main_users(unit: Unit, rows: LogColumns) -> LogColumns:
    """Return the rows with the main user in place of each user that was merged into another one."""
    main_users = main_keys(unit, value_set(rows.user)) if rows.user != NULL and settings.get(unit).has_merges else {}
    if not main_users:
        return rows
    return replace(rows, user=[main_users.get(user, user) for user in values(rows.user, len(rows))])


def users_of_sessions(unit: Unit, rows: LogColumns) -> dict[str, str | None]:
    """Return the stored user of each session, by the key of the session, for the stored sessions of rows with a user.
    The value is None for a stored session without a user."""
    pairs = zip(rows.session, values(rows.user, len(rows)), strict=True) if rows.user != NULL else ()
    stored_keys = loading.stored_sessions(unit, {session for session, user in pairs if user is not None})
    return {key: session.user for key, session in sessions.find(unit, stored_keys).items()}


def _conflict(kind: str, name: str, value: str | bytes, first_value: str | bytes) -> Conflict:
    if kind == "session":
        return Conflict(f"session {name[:80]!r} belongs to user {first_value!r}, not {value!r}", field="user")
    if kind == "request":
        hint = "it names one decision of the store"
        return Conflict(f"request id {name!r} is known already", hint=hint, field="request_id")
    return Conflict(f"feedback key {name!r} is known already", hint="it names one line of feedback", field="events")


class _NamesOfKind(NamedTuple):
    """This record holds the names of one kind in lines: request ids, feedback keys or sessions. row: the index of each
    name's row; values: what each name stands for, which is a user for a session, and the digest of the line for other
    names."""

    kind: str
    names: Sequence[str]
    row: Sequence[int]
    values: Sequence[str | bytes]


def _names_by_kind(rows: LogColumns) -> Iterator[_NamesOfKind]:
    """Yield the request ids in rows, then the feedback keys, then the sessions of rows that name a user."""
    all_rows, event_rows = range(len(rows)), rows.events.row
    entries = (
        ("request", rows.request_id, all_rows, rows.digest),
        ("key", rows.events.key, event_rows, pick_values(rows.digest, event_rows)),
        ("session", rows.session or NULL, all_rows, rows.user),
    )
    for kind, names, row, meanings in entries:
        if NULL not in (names, meanings) and row:
            named_values = _NamesOfKind(kind, values(names, len(row)), row, values(meanings, len(row)))
            if None in named_values.names or None in named_values.values:
                mask = [None not in pair for pair in zip(named_values.names, named_values.values, strict=True)]
                named_values = _NamesOfKind(
                    kind, *(cast(Any, list(compress(column, mask))) for column in named_values[1:])
                )
            yield named_values


class LineNames(NamedTuple):
    """This record holds hashes of n names in lines. name (n,): the hash of each name; pair (n,): the hash of the
    name together with its meaning (the user of a session, else the digest of the line). `hash_names` returns each
    pair once."""

    name: Ids
    pair: Ids

    @classmethod
    def read(cls, rows: LogColumns) -> LineNames:
        return cls.join(map(cls.hash_names, _names_by_kind(rows)))

    @classmethod
    def hash_names(cls, named_values: _NamesOfKind) -> LineNames:
        name = _hashes(named_values.names) ^ hash(named_values.kind)
        pair, index = np.unique(name * MIXED + _hashes(named_values.values), return_index=True)
        return cls(name[index], pair)

    @classmethod
    def join(cls, entries: Iterable[LineNames]) -> LineNames:
        empty = np.empty(0, np.int64)
        return cls(*map(np.concatenate, zip((empty, empty), *entries, strict=True)))

    def disputed_hashes(self) -> Ids:
        """Return the hashes of names that stand for several lines or users, so that lines contradict each other."""
        if _count_changes(self.name) == _count_changes(self.pair):
            return self.name[:0]
        _, index = np.unique(self.pair, return_index=True)
        name, count = np.unique(self.name[index], return_counts=True)
        return name[count > 1]


def _count_changes(hashes: Ids) -> int:
    """Return the number of distinct hashes minus 1."""
    sorted_hashes = np.sort(hashes)
    return int(np.count_nonzero(sorted_hashes[1:] != sorted_hashes[:-1]))


def _hashes(column: Sequence[str | bytes]) -> Ids:
    return np.fromiter(map(hash, column), np.int64, len(column))


def names_of_store(unit: Unit) -> LineNames | None:
    """Return hashes of the request ids, feedback keys and sessions in the store, or None if there are too many to
    read."""
    few_names = loading.few_names(unit)
    return None if few_names is None else LineNames.join(map(LineNames.hash_names, _stored_names(*few_names)))


def _stored_names(requests: Sequence[str], keys: Sequence[str], users: Mapping[str, str]) -> list[_NamesOfKind]:
    """Return the names in the store, by kind, with their meanings. The meaning of a session is its user. A request id
    or a feedback key gets its own text as its meaning, which differs from the digest of every line."""
    named_values = ("request", requests, requests), ("key", keys, keys), ("session", list(users), list(users.values()))
    return [_NamesOfKind(kind, names, (), owners) for kind, names, owners in named_values]
