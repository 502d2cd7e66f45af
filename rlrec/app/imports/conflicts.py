"""Lines that the store or a line before contradicts: request ids and feedback keys that are known, other users."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import compress, repeat

import numpy as np

from rlrec.app.imports.columns import LogColumns, distinct, values
from rlrec.arrays import Flags, Ids, run_starts
from rlrec.errors import Conflict
from rlrec.store import Unit, decisions, events, sessions


def find(unit: Unit, rows: LogColumns, users: Mapping[str, str | None]) -> dict[int, Conflict]:
    """The rows that are refused, by index. users: of the sessions that the store has.

    A row that is refused leaves no trace: what it names is free for the rows after it."""
    keys_of = _keys(rows)
    request_ids, owners = distinct(rows.request_id), dict(users)
    if not request_ids and not keys_of and not distinct(rows.user):
        return {}
    requests = set(decisions.requests(unit, request_ids))
    keys = set(events.stored_keys(unit, set().union(*keys_of.values())))
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


def users_of_sessions(unit: Unit, rows: LogColumns) -> dict[str, str | None]:
    """The users of the sessions that some row gives a user."""
    with_user = compress(rows.session, (user is not None for user in values(rows.user, len(rows))))
    return {key: session.user for key, session in sessions.find(unit, set(with_user)).items()}


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
    """The names in the lines so far, 16 bytes each: a line that contradicts one of an earlier group is refused before
    either is stored."""

    def __init__(self) -> None:
        self.names = FirstValues()
        self.lines = 0  # so far

    def find(self, rows: LogColumns) -> tuple[int, Conflict] | None:
        """The first row that contradicts an earlier line, with the reason; None where none does.

        Another line with the same request id or feedback key contradicts, and another user of the same session."""
        users = values(rows.user, len(rows))
        named = [
            *zip(repeat("request"), values(rows.request_id, len(rows)), range(len(rows)), repeat(None)),
            *zip(repeat("key"), values(rows.events.key, len(rows.events.row)), rows.events.row, repeat(None)),
            *zip(repeat("session"), rows.session, range(len(rows)), users),
        ]  # fmt: skip
        named = [entry for entry in named if entry[1] is not None and (entry[0] != "session" or entry[3] is not None)]
        keys = np.fromiter((hash(entry[:2]) for entry in named), np.int64, len(named))
        line = (self.lines + row if user is None else hash(user) for _, _, row, user in named)
        differing = self.names.differing(keys, np.fromiter(line, np.int64, len(named)))
        self.lines += len(rows)
        contradicting = [entry for entry, differs in zip(named, differing, strict=True) if differs]
        if not contradicting:
            return None
        kind, name, row, user = min(contradicting, key=lambda entry: entry[2])
        if kind == "session":
            return row, _user_conflict(name, user, "another user")
        return row, _request_conflict(name) if kind == "request" else _key_conflict(name)


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
