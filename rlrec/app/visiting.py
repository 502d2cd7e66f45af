"""Sessions, visits and steps of a group of decisions, under the sessions' locks; and the state each decision saw."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256

from rlrec.app import canonical
from rlrec.errors import Conflict
from rlrec.store import Unit, sessions
from rlrec.store.sessions import Session, Visit
from rlrec.store.settings import Settings

RECENT = 10  # arms of the visit so far that a state remembers


def split(salt: str, unit_key: str) -> int:
    """Where a cluster belongs for ever: 0 train (60 %), 1 tune (20 %), 2 gate (20 %)."""
    share = int.from_bytes(sha256(f"{salt}/split/{unit_key}".encode()).digest()[:8]) / 2**64
    return 0 if share < 0.6 else 1 if share < 0.8 else 2


class Guests:
    """The sessions of a group: opened, locked, and moved on decision by decision."""

    def __init__(self, unit: Unit, settings: Settings, wanted: Iterable[tuple[str, str | None]]) -> None:
        self.unit = unit
        self.timeout_us = settings.session_timeout_us
        first: dict[str, str | None] = {}
        for key, user in wanted:
            first[key] = first.get(key) or user
        self.users = sessions.users(unit, {user for _, user in wanted if user is not None})
        self.sessions = sessions.find(unit, first, lock=True)
        if new := [key for key in first if key not in self.sessions]:
            rows = [(key, self.users.get(first[key] or ""), split(settings.salt, first[key] or key)) for key in new]
            sessions.add(unit, rows)
            self.sessions = sessions.find(unit, first, lock=True)
        self.visits = sessions.visits(unit, {session.id for session in self.sessions.values()})
        self._named: dict[int, int] = {}
        self._moved: dict[tuple[int, int], Visit] = {}

    def check(self, key: str, user: str | None) -> Session:
        """The session; its user is the first one given. Raises Conflict where another one comes later."""
        session = self.sessions[key]
        if user is None or session.user == user:
            return session
        if session.user is not None:
            raise Conflict(
                f"session {key!r} belongs to user {session.user!r}, not {user!r}",
                hint="use another session key, or leave the user out",
                field="user",
            )
        self._named[session.id] = self.users[user]
        self.sessions[key] = replace(session, user=user, user_id=self.users[user])
        return self.sessions[key]

    def step(self, session: Session) -> tuple[int, int, str]:
        """Visit, step and state of the session's next decision."""
        visit = self._visit(session)
        state: dict[str, object] = {"step": visit.steps}
        if visit.steps:
            state["gap_s"] = (self.unit.now - visit.last_at) / 1e6
            state["recent"] = json.loads(visit.recent)
        return visit.number, visit.steps, canonical.text(state)

    def _visit(self, session: Session) -> Visit:
        last, now = self.visits.get(session.id), self.unit.now
        if last is not None and last.ended_at is None:
            if now - last.last_at <= self.timeout_us:
                return last
            self._put(replace(last, ended_at=last.last_at + self.timeout_us))
        number = 1 if last is None else last.number + 1
        return self._put(
            Visit(
                session_id=session.id, number=number, started_at=now, last_at=now, steps=0, recent="[]", ended_at=None
            )
        )

    def shown(self, session: Session, arms: list[str]) -> None:
        """A decision of the session was made: these arms stand on its page."""
        visit = self.visits[session.id]
        recent = [*json.loads(visit.recent), *arms][-RECENT:]
        text = json.dumps(recent, ensure_ascii=False, separators=(",", ":"))
        self._put(replace(visit, last_at=max(self.unit.now, visit.last_at), steps=visit.steps + 1, recent=text))

    def _put(self, visit: Visit) -> Visit:
        self.visits[visit.session_id] = visit
        self._moved[visit.session_id, visit.number] = visit
        return visit

    def close(self) -> None:
        """Write visits as they stand, and users that sessions got."""
        sessions.put_visits(self.unit, [visit for _, visit in sorted(self._moved.items())])
        sessions.set_user(self.unit, self._named)
