"""Sessions, visits and steps of a group of decisions, under the sessions' locks; and the state each decision saw."""

from __future__ import annotations

import json
from bisect import bisect
from collections.abc import Iterable, Sequence
from hashlib import sha256

from rlrec.app.inputs import canonical
from rlrec.app.serving import recent_slots
from rlrec.errors import Conflict, RlrecError
from rlrec.store import Unit, decisions, sessions
from rlrec.store.settings import Settings
from rlrec.store.unit import Row

RECENT = 10  # arms of the visit so far that a state remembers
SPLITS = 0.6, 0.8  # where the second and the third part begin
COUNT = 8  # bytes of a visit's history that say how many slots it has shown; its memory follows
BETWEEN = '","'  # in a list of texts it stands between two of them, and nowhere else: inside a text, quotes are escaped


def split(salt: str, unit_key: str) -> int:
    """Where a cluster belongs for ever: 0 train (60 %), 1 tune (20 %), 2 gate (20 %)."""
    share = int.from_bytes(sha256(f"{salt}/split/{unit_key}".encode()).digest()[:8]) / 2**64
    return bisect(SPLITS, share)


def splits(salt: str, unit_keys: Iterable[str]) -> list[int]:
    """`split` of each."""
    import numpy as np

    start = f"{salt}/split/"
    digests = b"".join([sha256((start + key).encode()).digest() for key in unit_keys])
    found: list[int] = np.searchsorted(SPLITS, np.frombuffer(digests, ">u8")[::4] / 2.0**64, side="right").tolist()
    return found


class Guest:
    """A session and its newest visit, as they stand after the decisions made so far.

    shown: slots shown in the visit; memory: the last of them (see `remembering`)."""

    __slots__ = (
        "ended_at", "id", "key", "last_at", "memory", "number", "recent", "shown", "started_at", "steps", "user",
        "user_id",
    )  # fmt: skip

    def __init__(self, row: Row) -> None:
        """row: as `sessions.guests` gives it; number None: no visit yet."""
        (
            self.key, self.id, self.user_id, self.user,
            self.number, self.started_at, self.last_at, self.steps, self.recent, self.ended_at, history,
        ) = row  # fmt: skip
        kept = history if history and self.ended_at is None else bytes(COUNT)
        if (len(kept) - COUNT) % recent_slots.WIDE:
            raise RlrecError(
                f"what session {self.key!r} remembers is broken", hint=f"`rlrec session end {self.key}` begins anew"
            )
        self.shown, self.memory = int.from_bytes(kept[:COUNT], "little"), kept[COUNT:]

    def visit(self) -> Row:
        """Its newest visit, a row of sessions.VISIT."""
        history = self.shown.to_bytes(COUNT, "little") + self.memory
        return self.id, self.number, self.started_at, self.last_at, self.steps, self.recent, self.ended_at, history

    def state(self, now: int) -> str:
        """What the session's next decision sees of it, canonical JSON."""
        if not self.steps:
            return '{"step":0}'
        gap = canonical.number((now - self.last_at) / 1e6)
        return f'{{"gap_s":{gap},"recent":{self.recent},"step":{self.steps}}}'

    def show(self, decision: int, arms: Sequence[int], texts: Sequence[str], now: int) -> None:
        """A decision was made: these arms stand on its page; texts: them as JSON."""
        self.memory = recent_slots.moved(self.memory, decision, self.steps, arms)
        recent = ",".join(texts[-RECENT:])
        if len(self.recent) > 2:
            recent = f"{self.recent[1:-1]},{recent}"
        for _ in range(recent.count(BETWEEN) + 1 - RECENT):
            recent = recent[recent.index(BETWEEN) + 2 :]
        self.recent, self.shown, self.steps = f"[{recent}]", self.shown + len(arms), self.steps + 1
        self.last_at = max(self.last_at, now)


class Guests:
    """The sessions of a group: opened, locked, and moved on decision by decision."""

    def __init__(
        self, unit: Unit, settings: Settings, wanted: Iterable[tuple[str, str | None]], *, look: bool = False
    ) -> None:
        """wanted: session and user. look: only look at what they would be; nothing is locked or stored, a new session
        has no id."""
        self.unit = unit
        self.lock = not look
        self.timeout_us = settings.session_timeout_us
        first: dict[str, str | None] = {}
        for key, user in wanted:
            first[key] = first.get(key) or user
        self.sessions = self._find(first)
        if len(self.sessions) < len(first) and look:
            self.sessions |= {key: Guest(_new(key, user)) for key, user in first.items() if key not in self.sessions}
        elif len(self.sessions) < len(first):
            new = [key for key in first if key not in self.sessions]
            users = sessions.users(unit, {user for key in new if (user := first[key]) is not None})
            rows = [(key, users.get(first[key] or ""), split(settings.salt, first[key] or key)) for key in new]
            sessions.add(unit, rows)
            self.sessions |= self._find(new)
        self._remind()
        self._named: list[Guest] = []
        self._ended: list[Row] = []
        self._moved: dict[int, Guest] = {}

    def _find(self, keys: Iterable[str]) -> dict[str, Guest]:
        return {row[0]: Guest(row) for row in sessions.guests(self.unit, list(keys), lock=self.lock)}

    def _remind(self) -> None:
        """Of visits that go on and were stored when none had a history: what they have shown."""
        lost = {
            guest.id: guest
            for guest in self.sessions.values()
            if guest.steps and not guest.memory and guest.ended_at is None
            and self.unit.now - guest.last_at <= self.timeout_us
        }  # fmt: skip
        for session_id, *slot in decisions.shown(self.unit, list(lost)) if lost else ():
            guest = lost[session_id]
            guest.memory = (guest.memory + recent_slots.row(*slot))[-recent_slots.LIMIT :]
            guest.shown += 1

    def check(self, key: str, user: str | None) -> None:
        """The session's user is the first one given. Raises Conflict where another one comes later."""
        guest = self.sessions[key]
        if user is None or guest.user == user:
            return
        if guest.user is not None:
            raise Conflict(
                f"session {key!r} belongs to user {guest.user!r}, not {user!r}",
                hint="use another session key, or leave the user out",
                field="user",
            )
        guest.user = user
        self._named.append(guest)

    def name(self) -> None:
        """Store the users that sessions got just now."""
        if self._named:
            users = sessions.users(self.unit, {guest.user for guest in self._named})
            for guest in self._named:
                guest.user_id = users[guest.user]
            sessions.set_user(self.unit, {guest.id: guest.user_id for guest in self._named})

    def arrive(self, key: str) -> Guest:
        """The session, in the visit to which its next decision belongs."""
        guest, now = self.sessions[key], self.unit.now
        if guest.number is not None and guest.ended_at is None:
            if now - guest.last_at <= self.timeout_us:
                self._moved[guest.id] = guest
                return guest
            guest.ended_at = guest.last_at + self.timeout_us
            self._ended.append(guest.visit())
        guest.number = 1 if guest.number is None else guest.number + 1
        guest.started_at = guest.last_at = now
        guest.steps, guest.recent, guest.ended_at, guest.shown, guest.memory = 0, "[]", None, 0, b""
        self._moved[guest.id] = guest
        return guest

    def close(self) -> None:
        """Write visits as they stand."""
        sessions.put(self.unit, sorted([*self._ended, *(guest.visit() for guest in self._moved.values())]))


def _new(key: str, user: str | None) -> Row:
    return key, None, None, user, *[None] * 7


def shown(arm: str) -> str:
    """An arm as `Guest.show` takes it."""
    return json.dumps(arm, ensure_ascii=False)
