"""Sessions, visits and steps of a group of decisions, under the sessions' locks; and the state each decision saw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlrec.app.inputs import canonical
from rlrec.app.log.splits import splits
from rlrec.app.serving import recent_slots
from rlrec.errors import Conflict, RlrecError
from rlrec.store import Unit
from rlrec.store.database.unit import Row
from rlrec.store.log import decisions, returns, sessions
from rlrec.store.log.settings import StoreSettings

RECENT = 10  # arms of the visit so far that a state remembers
COUNT = 8  # bytes of a visit's history that say how many slots it has shown; its recent slots follow
BETWEEN = '","'  # in a list of texts it stands between two of them, and nowhere else: inside a text, quotes are escaped


class OpenSession:
    """A session and its newest visit, as they stand after the decisions drawn so far.
    shown: how many slots the visit has shown; recent_slots: the last of them, packed."""

    __slots__ = (
        "ended_at", "id", "key", "last_at", "number", "recent", "recent_slots", "shown", "started_at", "steps", "user",
        "user_id",
    )  # fmt: skip

    def __init__(self, stored: sessions.SessionVisit) -> None:
        self.key, self.id, self.user_id, self.user = stored.key, stored.id, stored.user_id, stored.user
        self.number, self.started_at, self.last_at = stored.number or 0, stored.started_at, stored.last_at
        self.steps, self.recent, self.ended_at = stored.steps, stored.recent, stored.ended_at
        packed = stored.history if stored.history and stored.ended_at is None else bytes(COUNT)
        if (len(packed) - COUNT) % recent_slots.SLOT_BYTES:
            raise RlrecError(
                f"the history of session {self.key!r} is damaged", hint=f"`rlrec session end {self.key}` begins anew"
            )
        self.shown, self.recent_slots = int.from_bytes(packed[:COUNT], "little"), packed[COUNT:]

    def visit(self) -> Row:
        """Its newest visit as it stands, a row of sessions.Visit."""
        history = self.shown.to_bytes(COUNT, "little") + self.recent_slots
        return self.id, self.number, self.started_at, self.last_at, self.steps, self.recent, self.ended_at, history

    def state(self, now: int) -> str:
        """The session state that the next decision sees, canonical JSON."""
        if not self.steps:
            return '{"step":0}'
        gap = canonical.number((now - self.last_at) / 1e6)
        return f'{{"gap_s":{gap},"recent":{self.recent},"step":{self.steps}}}'

    def add_slate(self, decision: int, arms: Sequence[int], texts: Sequence[str], now: int) -> None:
        """Move on by a decision that showed these arms. texts: the arms as JSON."""
        self.recent_slots = recent_slots.append_slate(self.recent_slots, decision, self.steps, arms)
        recent = ",".join(texts[-RECENT:])
        if len(self.recent) > 2:
            recent = f"{self.recent[1:-1]},{recent}"
        for _ in range(recent.count(BETWEEN) + 1 - RECENT):
            recent = recent[recent.index(BETWEEN) + 2 :]
        self.recent, self.shown, self.steps = f"[{recent}]", self.shown + len(arms), self.steps + 1
        self.last_at = max(self.last_at, now)


class OpenSessions:
    """The sessions of a group: opened, locked, and moved on decision by decision."""

    def __init__(
        self, unit: Unit, settings: StoreSettings, wanted: Iterable[tuple[str, str | None]], *, read_only: bool = False
    ) -> None:
        """wanted: session and user of each request. read_only: nothing is locked or stored; a new session has no id."""
        self.unit = unit
        self.lock = not read_only
        self.timeout_us = settings.session_timeout_us
        users: dict[str, str | None] = {}  # the first one given, by session
        for key, user in wanted:
            users[key] = users.get(key) or user
        self.by_key = self._read(users)
        new = {key: user for key, user in users.items() if key not in self.by_key}
        if read_only:
            rows = [sessions.SessionVisit._make((key, None, None, user, *[None] * 7)) for key, user in new.items()]
            self.by_key |= {row.key: OpenSession(row) for row in rows}
        elif new:
            self._create(new, settings)
        self._restore_slots()
        self._with_new_user: list[tuple[OpenSession, str]] = []
        self._ended: list[Row] = []
        self._moved: dict[int, OpenSession] = {}

    def _read(self, keys: Iterable[str]) -> dict[str, OpenSession]:
        rows = sessions.with_newest_visit(self.unit, list(keys), lock=self.lock)
        return {row.key: OpenSession(row) for row in rows}

    def _create(self, new: dict[str, str | None], settings: StoreSettings) -> None:
        user_ids = sessions.intern_users(self.unit, {user for user in new.values() if user is not None})
        numbers = splits(settings.split_salt, [user or key for key, user in new.items()])
        users = [user_ids.get(user or "") for user in new.values()]
        ids = sessions.add(self.unit, list(zip(new, users, numbers, strict=True)))
        for key, user_id in zip(new, users, strict=True):
            if key in ids:  # nobody else has seen it
                row = (key, ids[key], user_id, new[key], *[None] * 7)
                self.by_key[key] = OpenSession(sessions.SessionVisit._make(row))
        if others := new.keys() - ids.keys():
            self.by_key |= self._read(others)

    def _restore_slots(self) -> None:
        """Read the recent slots of visits that go on, and were stored by a release that kept no history."""
        without = {
            session.id: session
            for session in self.by_key.values()
            if session.steps and not session.recent_slots and session.ended_at is None
            and self.unit.now - session.last_at <= self.timeout_us
        }  # fmt: skip
        for slot in decisions.slots_of_open_visits(self.unit, list(without)) if without else ():
            session = without[slot.session_id]
            packed = recent_slots.pack_slot(slot.decision_id, slot.step, slot.position, slot.arm_id)
            session.recent_slots = (session.recent_slots + packed)[-recent_slots.LIMIT :]
            session.shown += 1

    def set_user(self, key: str, user: str | None) -> None:
        """Give a session its user where it has none. Raises Conflict where it has another one."""
        session = self.by_key[key]
        if user is None or session.user == user:
            return
        if session.user is not None:
            raise Conflict(
                f"session {key!r} belongs to user {session.user!r}, not {user!r}",
                hint="use another session key, or leave the user out",
                field="user",
            )
        session.user = user
        self._with_new_user.append((session, user))

    def store_users(self) -> None:
        """Store the users that `set_user` gave."""
        if self._with_new_user:
            users = sessions.intern_users(self.unit, {user for _, user in self._with_new_user})
            for session, user in self._with_new_user:
                session.user_id = users[user]
            sessions.set_user(self.unit, {session.id: users[user] for session, user in self._with_new_user})

    def lock_users(self) -> None:
        """Lock the users of the group."""
        returns.lock_users(
            self.unit, {user for session in self.by_key.values() if (user := session.user_id) is not None}
        )

    def named(self) -> set[str]:
        """Keys of the sessions that `set_user` gave their user."""
        return {session.key for session, _ in self._with_new_user}

    def arrive(self, key: str) -> OpenSession:
        """The session, in the visit that its next decision belongs to."""
        session, now = self.by_key[key], self.unit.now
        if session.number and session.ended_at is None:
            if now - session.last_at <= self.timeout_us:
                self._moved[session.id] = session
                return session
            session.ended_at = session.last_at + self.timeout_us
            self._ended.append(session.visit())
        session.number += 1
        session.started_at = session.last_at = now
        session.steps, session.recent, session.ended_at, session.shown, session.recent_slots = 0, "[]", None, 0, b""
        self._moved[session.id] = session
        return session

    def store_visits(self) -> None:
        """Store visits as they stand."""
        sessions.put_visits(self.unit, sorted([*self._ended, *(session.visit() for session in self._moved.values())]))
