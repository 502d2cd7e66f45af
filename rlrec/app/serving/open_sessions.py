"""Sessions, visits and steps of a group of decisions, under the sessions' locks; and the state that each decision saw,
with the history of its visit: the slots shown before it, and what they had earned by then.

A visit keeps 12 bytes for each of the last slots that it has shown, so that its row stays on one page of SQLite:
decision (40 bits), position (17 bits; larger ones are stored as the largest) and step modulo 128, then the arm (32
bits). Rewards are not stored: they follow from the events that had been received when a group began."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from rlrec.app.inputs import canonical
from rlrec.app.log.splits import splits
from rlrec.arrays import look_up
from rlrec.errors import Conflict, RlrecError
from rlrec.policy.beliefs import reward as rewards
from rlrec.policy.gradients.history import REMEMBERED, History, Ints
from rlrec.records import Reward
from rlrec.store import Unit
from rlrec.store.database.unit import Row, damage_error
from rlrec.store.log import decisions, events, sessions
from rlrec.store.log.events import CENSOR, AgedEvent
from rlrec.store.log.settings import StoreSettings

RECENT = 10  # arms of the visit so far that a state remembers
COUNT_BYTES = 8  # of a visit's history that say how many slots it has shown; its recent slots follow
SEPARATOR = '","'  # between two texts of a list, and nowhere else: inside a text, quotes are escaped
POSITION_BITS, STEP_BITS = 17, 7
LAST_POSITION, LAST_STEP = (1 << POSITION_BITS) - 1, (1 << STEP_BITS) - 1
_ROW = struct.Struct("<QI")
_DTYPE = np.dtype([("slot", "<u8"), ("arm", "<u4")])
SLOT_BYTES = _ROW.size
MAX_BYTES = REMEMBERED * SLOT_BYTES


def pack_slot(decision: int, step: int, position: int, arm: int) -> bytes:
    """The bytes of one slot."""
    return _ROW.pack((decision << POSITION_BITS | min(position, LAST_POSITION)) << STEP_BITS | step & LAST_STEP, arm)


def pack(decision: Ints, step: Ints, position: Ints, arm: Ints) -> npt.NDArray[np.void]:
    """The bytes of many slots, (n,) rows of them."""
    rows = np.empty(len(arm), _DTYPE)
    rows["slot"] = (decision << POSITION_BITS | np.minimum(position, LAST_POSITION)) << STEP_BITS | step & LAST_STEP
    rows["arm"] = arm
    return rows


def unpack_slots(packed: Iterable[bytes]) -> tuple[Ints, Ints, Ints, Ints]:
    """Decision, position, step and arm of the recent slots of several visits, end to end, from their bytes."""
    rows = np.frombuffer(b"".join(packed), _DTYPE)
    slot = rows["slot"]
    fields = slot >> (POSITION_BITS + STEP_BITS), (slot >> STEP_BITS) & LAST_POSITION, slot & LAST_STEP, rows["arm"]
    decision, position, step, arm = (field.astype(np.int64) for field in fields)
    return decision, position, step, arm


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
        packed = stored.history if stored.history and stored.ended_at is None else bytes(COUNT_BYTES)
        if (len(packed) - COUNT_BYTES) % SLOT_BYTES:
            raise RlrecError(
                f"the history of session {self.key!r} is damaged", hint=f"`rlrec session end {self.key}` begins anew"
            )
        self.shown, self.recent_slots = int.from_bytes(packed[:COUNT_BYTES], "little"), packed[COUNT_BYTES:]

    def visit(self) -> Row:
        """Its newest visit as it stands, a row of sessions.Visit."""
        history = self.shown.to_bytes(COUNT_BYTES, "little") + self.recent_slots
        return self.id, self.number, self.started_at, self.last_at, self.steps, self.recent, self.ended_at, history

    def state(self, now: int) -> str:
        """The session state that the next decision sees, canonical JSON."""
        if not self.steps:
            return '{"step":0}'
        gap = canonical.number((now - self.last_at) / 1e6)
        return f'{{"gap_s":{gap},"recent":{self.recent},"step":{self.steps}}}'

    def add_slate(self, decision: int, arms: Sequence[int], texts: Sequence[str], now: int) -> None:
        """Move on by a decision that showed these arms. texts: the arms as JSON."""
        first = max(0, len(arms) - REMEMBERED)
        for position, arm in enumerate(arms[first:], first + 1):
            self.recent_slots += pack_slot(decision, self.steps, position, arm)
        self.recent_slots = self.recent_slots[-MAX_BYTES:]
        recent = ",".join(texts[-RECENT:])
        if len(self.recent) > 2:
            recent = f"{self.recent[1:-1]},{recent}"
        for _ in range(recent.count(SEPARATOR) + 1 - RECENT):
            recent = recent[recent.index(SEPARATOR) + 2 :]
        self.recent, self.shown, self.steps = f"[{recent}]", self.shown + len(arms), self.steps + 1
        self.last_at = max(self.last_at, now)


class OpenSessions:
    """The sessions of a group: opened, locked, and moved on decision by decision."""

    def __init__(
        self, unit: Unit, settings: StoreSettings, owners: Iterable[tuple[str, str | None]], *, read_only: bool = False
    ) -> None:
        """owners: session and user of each request. read_only: nothing is locked or stored; a new session has no id."""
        pairs = list(owners)
        self.main_keys: dict[str | None, str | None] = {}  # of users who are merged into others
        if settings.has_merges:
            from rlrec.store.policies.users import main_keys

            self.main_keys.update(main_keys(unit, {user for _, user in pairs if user is not None}).items())
        self.unit = unit
        self.lock = not read_only
        self.has_exclusions = settings.has_exclusions
        self.timeout_us = settings.session_timeout_us
        users: dict[str, str | None] = {}  # the first one given, by session
        for key, user in pairs:
            users[key] = users.get(key) or self.main_keys.get(user, user)
        self.by_key = self._read(users)
        new = {key: user for key, user in users.items() if key not in self.by_key}
        if read_only:
            rows = [sessions.SessionVisit._make((key, None, None, user, *[None] * 7)) for key, user in new.items()]
            self.by_key |= {row.key: OpenSession(row) for row in rows}
        elif new:
            self._create(new, settings)
        self._restore_slots()
        self.new_users: dict[str, str] = {}  # by key of the session
        self._ended: list[Row] = []
        self._moved: dict[int, OpenSession] = {}

    def _read(self, keys: Iterable[str]) -> dict[str, OpenSession]:
        rows = sessions.with_newest_visit(self.unit, list(keys), lock=self.lock)
        return {row.key: OpenSession(row) for row in rows}

    def _create(self, new: dict[str, str | None], settings: StoreSettings) -> None:
        new_users = {user for user in new.values() if user is not None}
        user_ids = sessions.intern_users(self.unit, new_users) if new_users else {}
        numbers = splits(settings.split_salt, [user or key for key, user in new.items()])
        users = [user_ids.get(user or "") for user in new.values()]
        ids = sessions.add(self.unit, list(zip(new, users, numbers, strict=True)))
        for key, user_id in zip(new, users, strict=True):
            if key in ids:  # nobody else has seen it
                row = (key, ids[key], user_id, new[key], *[None] * 7)
                self.by_key[key] = OpenSession(sessions.SessionVisit._make(row))
        if created_meanwhile := new.keys() - ids.keys():
            self.by_key |= self._read(created_meanwhile)

    def _restore_slots(self) -> None:
        """Read the recent slots of visits that go on, and were stored by a release that kept no history."""
        visits = {
            session.id: session
            for session in self.by_key.values()
            if session.steps and not session.recent_slots and session.ended_at is None
            and self.unit.now - session.last_at <= self.timeout_us
        }  # fmt: skip
        for session_id, *slot in decisions.slots_of_open_visits(self.unit, list(visits)) if visits else ():
            session = visits[session_id]
            session.recent_slots = (session.recent_slots + pack_slot(*slot))[-MAX_BYTES:]
            session.shown += 1

    def set_user(self, key: str, user: str | None) -> None:
        """Give a session its user where it has none. Raises Conflict where it has another one."""
        session, user = self.by_key[key], self.main_keys.get(user, user)
        if user is None or session.user == user:
            return
        if session.user is not None:
            raise Conflict(
                f"session {key!r} belongs to user {session.user!r}, not {user!r}",
                hint="use another session key, or leave the user out",
                field="user",
            )
        session.user = self.new_users[key] = user

    def store_users(self) -> None:
        """Store the users that `set_user` gave."""
        if self.new_users:
            users = sessions.intern_users(self.unit, set(self.new_users.values()))
            for key, user in self.new_users.items():
                self.by_key[key].user_id = users[user]
            user_ids = {self.by_key[key].id: users[user] for key, user in self.new_users.items()}
            sessions.set_user(self.unit, user_ids)

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


class HistoryReader:
    """Histories of the visits of a group, with the rewards that had been received when the group began."""

    def __init__(self, unit: Unit, sessions: Sequence[OpenSession], definitions: Collection[Reward]) -> None:
        """definitions: the reward definitions of the versions that will decide."""
        self.now = unit.now
        self._events: list[AgedEvent] = []
        # targets of events are slots (decision, position) and slates (decision, None), numbered as they come
        self._targets: dict[tuple[int, int | None], int] = {}
        self._rewards: dict[int, list[float]] = {}
        recent_slots = [session.recent_slots for session in sessions if session.recent_slots]
        if recent_slots:
            kinds = {kind for definition in definitions for kind in definition.weights}
            self._events = events.received_by(unit, unpack_slots(recent_slots)[0], kinds, time=unit.now)
        for event in self._events:
            if event.age_us is None:
                raise damage_error(f"decision {event.decision_id} is gone, and its events are not")
            self._targets.setdefault((event.decision_id, event.position), len(self._targets))
        self._decisions = np.array(sorted({event.decision_id for event in self._events}), np.int64)

    def histories(self, sessions: Sequence[OpenSession], definitions: Sequence[Reward]) -> History:
        """The history that the next decision of each session remembers. definitions: one a session, of the version that
        decides."""
        n = len(sessions)
        if not any(session.steps for session in sessions):
            return History.empty(n)
        decision, position, slot_step, arm = unpack_slots(session.recent_slots for session in sessions)
        # which session each slot belongs to
        start = np.cumsum([0, *(len(session.recent_slots) // SLOT_BYTES for session in sessions)])
        row = np.repeat(np.arange(n), np.diff(start))
        columns = ((session.steps, self.now - session.last_at, session.shown) for session in sessions)
        step, gap_us, shown = np.array(list(columns), np.int64).T
        # what slots have earned, and whole slates, at their last slots
        earned, page_earned = np.array([definition.default for definition in definitions])[row], np.zeros(len(row))
        with_events = np.flatnonzero(look_up(self._decisions, decision)[1])
        is_last = np.append(decision[1:] != decision[:-1], True)
        for index in with_events.tolist():
            by_target, key = self._rewards_of(definitions[row[index]]), int(decision[index])
            if (slot := self._targets.get((key, int(position[index])))) is not None:
                earned[index] = by_target[slot]
            if is_last[index] and (page := self._targets.get((key, None))) is not None:
                page_earned[index] = by_target[page]
        total = np.bincount(row, weights=earned + page_earned, minlength=n).astype(np.float64, copy=False)
        return History(step, gap_us / 1e6, shown, total, start, arm, step[row] - slot_step & LAST_STEP, earned)

    def _rewards_of(self, definition: Reward) -> list[float]:
        """The reward of each target, inside its window. A censored slot has the default."""
        if definition.id not in self._rewards:
            order = {kind: number for number, kind in enumerate(definition.weights)}
            kind = np.array([order.get(event.kind, -1) for event in self._events], np.int64)
            target = np.array([self._targets[event.decision_id, event.position] for event in self._events], np.int64)
            value, age = np.array([(event.value, event.age_us) for event in self._events], np.float64).T
            n, columns = len(self._targets), {"kind": kind, "value": value, "age_us": age}
            earned, _ = rewards.slot_rewards(definition, n=n, slot=target, **columns)
            page_earned = rewards.page_rewards(definition, n=n, page=target, **columns)
            # the last mark holds
            marks = {(event.decision_id, event.position): event.value for event in self._events if event.kind == CENSOR}
            earned[[self._targets[name] for name, value in marks.items() if value == 1.0]] = definition.default
            is_page = [position is None for _, position in self._targets]
            self._rewards[definition.id] = np.where(is_page, page_earned, earned).tolist()
        return self._rewards[definition.id]
