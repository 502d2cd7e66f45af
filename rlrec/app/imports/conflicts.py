"""Lines that the store or a line before contradicts: request ids and feedback keys that are known, other users."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import compress, repeat
from operator import is_not, itemgetter

import numpy as np

from rlrec.app.imports.columns import NULL, LogColumns, distinct, values
from rlrec.arrays import Flags, Ids, run_starts
from rlrec.errors import Conflict
from rlrec.store import Unit, decisions, events, loading, sessions
from rlrec.store.loading import Column, Same


def find(unit: Unit, rows: LogColumns, users: Mapping[str, str | None]) -> dict[int, Conflict]:
    """The rows that are refused, by index. users: of the sessions that the store has.

    A row that is refused leaves no trace: what it names is free for the rows after it."""
    requests = set(decisions.requests(unit, distinct(rows.request_id)))
    keys = set(events.stored_keys(unit, distinct(rows.events.key)))
    if not (requests or keys or _repeats(rows) or _differs(rows, users)):
        return {}
    keys_of, owners = _keys(rows), dict(users)
    refused: dict[int, Conflict] = {}
    columns = zip(values(rows.request_id, len(rows)), rows.session, values(rows.user, len(rows)), strict=True)
    for row, (request, session, user) in enumerate(columns):
        named = keys_of.get(row, set())
        if request in requests:
            refused[row] = _request_conflict(request)
        elif repeated := named & keys:
            refused[row] = _key_conflict(min(repeated))
        elif user is not None and (owners.get(session) or user) != user:
            refused[row] = _user_conflict(session, user, f"user {owners[session]!r}")
        else:
            keys |= named
            if request is not None:
                requests.add(request)
            if user is not None:
                owners[session] = user
    return refused


def _repeats(rows: LogColumns) -> bool:
    """Whether a request id, or a feedback key, is named by two rows."""
    listed = rows.request_id, rows.events.key
    names = [[] if isinstance(column, Same) else [name for name in column if name is not None] for column in listed]
    pairs = set(zip(rows.events.row, values(rows.events.key, len(rows.events.row)), strict=True)) if names[1] else set()
    n_pairs = sum(key is not None for _, key in pairs)
    return len(set(names[0])) < len(names[0]) or len(set(names[1])) < n_pairs


def _differs(rows: LogColumns, users: Mapping[str, str | None]) -> bool:
    """Whether a row has another user than the store, or than another row, has for its session."""
    keys, of_rows = _with_user(rows)
    owners = dict(zip(keys, of_rows, strict=True))
    stored = {key: user for key, user in users.items() if user is not None and key in owners}
    return list(map((owners | stored).__getitem__, keys)) != of_rows


def _with_user(rows: LogColumns) -> tuple[list[str], list[str]]:
    """Session and user of the rows that have one."""
    if rows.user == NULL:
        return [], []
    listed = list(values(rows.user, len(rows)))
    if None not in listed:
        return list(rows.session), listed
    return list(compress(rows.session, map(is_not, listed, repeat(None)))), list(filter(None, listed))


def users_of_sessions(unit: Unit, rows: LogColumns) -> dict[str, str | None]:
    """The users of the stored sessions that some row gives a user."""
    stored = loading.stored_sessions(unit, set(_with_user(rows)[0]))
    return {key: session.user for key, session in sessions.find(unit, stored).items()}


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


class EarlierLines:
    """The names in the lines so far, 16 bytes each: a line that contradicts one of an earlier group or file is refused
    before either is stored."""

    def __init__(self) -> None:
        self.names = FirstValues()

    def find(self, rows: LogColumns) -> tuple[int, Conflict] | None:
        """The first row that contradicts an earlier line, with the reason; None where none does.

        Another line with the same request id or feedback key contradicts, and another user of the same session. The
        same line, which a file has that overlaps with another, does not."""
        if not len(rows):
            return None
        lines = np.frombuffer(b"".join(rows.digest), np.int64)[::2]
        every, first = range(len(rows)), list[tuple[int, Conflict]]()
        if (problem := self._differing("request", rows.request_id, every, lines)) is not None:
            first.append((problem[0], _request_conflict(problem[1])))
        if (problem := self._differing("key", rows.events.key, rows.events.row, lines)) is not None:
            first.append((problem[0], _key_conflict(problem[1])))
        if (problem := self._differing("session", rows.session, every, lines, users=rows.user)) is not None:
            user = values(rows.user, len(rows))[problem[0]]
            first.append((problem[0], _user_conflict(problem[1], user, "another user")))
        return min(first, default=None, key=itemgetter(0))

    def _differing(
        self, kind: str, names: Column, row: Sequence[int], lines: Ids, *, users: Column | None = None
    ) -> tuple[int, str] | None:  # fmt: skip
        """Row and name of the first name that came before in another line, or with another user. lines: the identity
        of each row's; users: rows without one name nothing."""
        deciding = names if users is None else users
        if deciding == NULL or not row:
            return None
        listed, of = values(names, len(row)), values(deciding, len(row))
        if None in of:
            is_named = [value is not None for value in of]
            listed, row, of = (list(compress(column, is_named)) for column in (listed, row, of))
        keys = np.fromiter(map(hash, zip(repeat(kind), listed)), np.int64, len(listed))
        owners = lines[np.array(row)] if users is None else np.fromiter(map(hash, of), np.int64, len(of))
        index = np.flatnonzero(self.names.differing(keys, owners))
        return (row[index[0]], listed[index[0]]) if len(index) else None


class FirstValues:
    """The first value that came with each key, keys and values as 64-bit numbers, in a few sorted runs.

    Two names have one hash once in many millions of imports; a good line is then refused."""

    def __init__(self) -> None:
        self.runs: list[tuple[Ids, Ids]] = []

    def differing(self, keys: Ids, values: Ids) -> Flags:
        """Which keys came before, or earlier in these, with another value, (n,)."""
        order = np.argsort(keys, kind="stable")
        start = run_starts(keys[order])
        unique, first = keys[order][start], values[order][start]
        new = np.ones(len(unique), np.bool_)
        for run_keys, run_values in self.runs:
            index = np.minimum(np.searchsorted(run_keys, unique), len(run_keys) - 1)
            is_in_run = run_keys[index] == unique
            first = np.where(is_in_run, run_values[index], first)
            new &= ~is_in_run
        self._add(unique[new], first[new])
        differing = np.empty(len(keys), np.bool_)
        differing[order] = values[order] != np.repeat(first, np.diff(start, append=len(keys)))
        return differing

    def _add(self, keys: Ids, values: Ids) -> None:
        """Add a run; the last runs are joined with it as long as they are not longer."""
        if not len(keys):
            return
        while self.runs and len(self.runs[-1][0]) <= len(keys):
            other_keys, other_values = self.runs.pop()
            keys, values = np.concatenate([other_keys, keys]), np.concatenate([other_values, values])
            order = np.argsort(keys)
            keys, values = keys[order], values[order]
        self.runs.append((keys, values))
