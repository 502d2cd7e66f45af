"""This module adds a group of decisions to their sessions and visits, while the sessions are locked. It also gives the
session state that each decision saw, and the history of the visit: the slots shown before the decision, with their
rewards so far.

A visit stores 12 bytes for each of its last slots, so that its row fits on one page of SQLite: decision (40 bits),
position (17 bits; a larger position is stored as the largest number), step modulo 128, and arm (32 bits). Rewards
are not stored: they are computed from the events that had been received when a group began."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rlrec.app.inputs import canonical
from rlrec.app.log.splits import splits
from rlrec.arrays import look_up
from rlrec.errors import Conflict, RlrecError
from rlrec.policy.beliefs import reward as rewards
from rlrec.policy.gradients.history import N_RECENT, N_REMEMBERED, History, Ints
from rlrec.records import Reward
from rlrec.store import Unit
from rlrec.store.database.unit import Row, damage_error
from rlrec.store.log import decisions, events, sessions
from rlrec.store.log.events import CENSOR, AgedEvent
from rlrec.store.log.settings import StoreSettings

if TYPE_CHECKING:
    from rlrec.app.serving.draws import DrawnSlate

COUNT_BYTES = 8  # of the number of slots shown, before the recent ones, where that differs from the number of these
SEPARATOR = '","'  # occurs only between two texts of a list, since quotes inside a text are escaped
POSITION_BITS, STEP_BITS = 17, 7
LAST_POSITION, LAST_STEP = (1 << POSITION_BITS) - 1, (1 << STEP_BITS) - 1
_DTYPE = np.dtype([("slot", "<u8"), ("arm", "<u4")])
SLOT_BYTES = _DTYPE.itemsize
MAX_BYTES = N_REMEMBERED * SLOT_BYTES


def pack(decision: Ints, step: Ints, position: Ints, arm: Ints) -> npt.NDArray[np.void]:
    """Return n slots in packed form, 12 bytes for each slot, (n,). decision, arm: the ids; step: the step of the
    decision; each array has a value for each slot, (n,)."""
    rows = np.empty(len(arm), _DTYPE)
    rows["slot"] = (decision << POSITION_BITS | np.minimum(position, LAST_POSITION)) << STEP_BITS | step & LAST_STEP
    rows["arm"] = arm
    return rows


def unpack_slots(blobs: Iterable[bytes]) -> tuple[Ints, Ints, Ints, Ints]:
    """Unpack the recent slots of several visits, one visit after another. Returns four arrays, each with a value for
    each of the n slots, (n,): decision, position, step and arm. blobs: the packed slots of each visit."""
    rows = np.frombuffer(b"".join(blobs), _DTYPE)
    slot = rows["slot"]
    fields = slot >> (POSITION_BITS + STEP_BITS), (slot >> STEP_BITS) & LAST_POSITION, slot & LAST_STEP, rows["arm"]
    decision, position, step, arm = (field.astype(np.int64) for field in fields)
    return decision, position, step, arm


def from_bytes(history: bytes) -> tuple[int, bytes] | None:
    """Return the number of slots that a visit has shown, and its last slots in packed form. Returns None if the length
    of the bytes is wrong. history: the stored bytes of the visit."""
    n_slots, extra_bytes = divmod(len(history), SLOT_BYTES)
    if extra_bytes == COUNT_BYTES:
        return int.from_bytes(history[:COUNT_BYTES], "little"), history[COUNT_BYTES:]
    return None if extra_bytes else (n_slots, history)


class OpenSessions:
    """An OpenSessions object holds the sessions of a group of requests as columns, with one row for each session. The
    sessions are locked, and each decision of the group is added to its session.

    row: the row of each session, by its key; number, started_at, last_at, steps, recent_arms, ended_at: fields of
    the newest visit; n_shown: the number of slots that the visit has shown; recent_slots: the last slots, packed;
    new_users: the users that were set for sessions without a user, by the session's key."""

    def __init__(
        self, unit: Unit, settings: StoreSettings, owners: Iterable[tuple[str, str | None]], *, read_only: bool = False
    ) -> None:
        """Open the sessions of a group of requests. owners: the session and the user of each request; read_only: if
        True, nothing is locked or stored, and a new session has no id."""
        pairs = list(owners)
        self.main_keys: dict[str | None, str | None] = {}  # by key of a merged user: the key of its person
        if settings.has_merges:
            from rlrec.store.policies.users import main_keys

            self.main_keys.update(main_keys(unit, {user for _, user in pairs if user is not None}).items())
        self.unit, self.settings, self.timeout_us = unit, settings, settings.session_timeout_us
        users: dict[str, str | None] = {}  # by session: the first user that is given
        for key, user in pairs:
            users[key] = users.get(key) or self.main_keys.get(user, user)
        rows = sessions.with_newest_visit(unit, list(users), lock=not read_only)
        new_sessions = {key: users[key] for key in users.keys() - {row[0] for row in rows}} if rows else users
        ids, user_ids = dict[str, int | None](dict.fromkeys(new_sessions)), dict[str | None, int]()
        if new_sessions and not read_only:
            new_users = {user for user in new_sessions.values() if user is not None}
            user_ids |= sessions.intern_users(unit, new_users).items() if new_users else ()
            split_numbers = splits(settings.split_salt, [user or key for key, user in new_sessions.items()])
            ids = dict(
                sessions.add(
                    unit, list(new_sessions), [user_ids.get(user) for user in new_sessions.values()], split_numbers
                )
            )
            if created_meanwhile := new_sessions.keys() - ids.keys():
                rows += sessions.with_newest_visit(unit, list(created_meanwhile))
        self._n_stored, first_visit = len(rows), (1, 0, 0, 0, "[]", None, None)
        added_rows = [
            (key, session_id, user_ids.get(new_sessions[key]), new_sessions[key], *first_visit)
            for key, session_id in ids.items()
        ]
        columns = list(map(list[Any], zip(*rows, *added_rows, strict=True)))
        self.key, self.id, self.user_id, self.user, self.number, self.started_at, self.last_at = columns[:7]
        self.steps, self.recent_arms, self.ended_at, history = columns[7:]
        self.row = {key: row for row, key in enumerate(self.key)}
        self.n_shown, self.recent_slots = [0] * len(self.key), [b""] * len(self.key)
        for row, blob in enumerate(history[: self._n_stored]):
            if blob and self.ended_at[row] is None:
                if (unpacked_history := from_bytes(blob)) is None:
                    hint = f"`rlrec session end {self.key[row]}` begins anew"
                    raise RlrecError(f"the history of session {self.key[row]!r} is damaged", hint=hint)
                self.n_shown[row], self.recent_slots[row] = unpacked_history
        self._restore_slots()
        self.new_users: dict[str, str] = {}
        self._ended_visits: list[Row] = []
        self._moved_rows: list[int] = []  # rows of sessions that got decisions

    def _restore_slots(self) -> None:
        """Read the recent slots of open visits from the log if their rows lack them, since an earlier release did not
        store them."""
        visits = {
            self.id[row]: row
            for row in range(self._n_stored)
            if self.steps[row] and not self.recent_slots[row] and self._continues_visit(row)
        }
        if visits and (slots := decisions.slots_of_open_visits(self.unit, list(visits))):
            session_ids, *columns = zip(*slots, strict=True)
            self._add_slots(map(visits.__getitem__, session_ids), *(np.array(column, np.int64) for column in columns))

    def _continues_visit(self, row: int) -> bool:
        """Tell whether the next decision of a session belongs to its newest visit. row: the row of the session."""
        is_open = self.number[row] and self.ended_at[row] is None
        return bool(is_open and self.unit.now - self.last_at[row] <= self.timeout_us)

    def set_user(self, key: str, user: str | None) -> None:
        """Set the user of a session that has no user. Raises Conflict if the session has another user."""
        row, user = self.row[key], self.main_keys.get(user, user)
        if user is None or self.user[row] == user:
            return
        if self.user[row] is not None:
            message = f"session {key!r} belongs to user {self.user[row]!r}, not {user!r}"
            raise Conflict(message, hint="use another session key, or leave the user out", field="user")
        self.user[row] = self.new_users[key] = user

    def store_users(self) -> None:
        """Store the users that `set_user` set."""
        if self.new_users:
            users = sessions.intern_users(self.unit, set(self.new_users.values()))
            for key, user in self.new_users.items():
                self.user_id[self.row[key]] = users[user]
            user_ids = {self.id[self.row[key]]: users[user] for key, user in self.new_users.items()}
            sessions.set_user(self.unit, user_ids)

    def arrive(self, keys: Iterable[str]) -> list[int]:
        """Return the rows of the sessions with these keys. If the last visit of a session is over, a new visit is
        opened."""
        now, rows = self.unit.now, list(map(self.row.__getitem__, keys))
        self.started_at[self._n_stored :] = self.last_at[self._n_stored :] = [now] * (len(self.key) - self._n_stored)
        self._moved_rows = list(dict.fromkeys(rows))
        new_visits = [row for row in self._moved_rows if row < self._n_stored and not self._continues_visit(row)]
        lapsed_visits = [row for row in new_visits if self.number[row] and self.ended_at[row] is None]
        for row in lapsed_visits:
            self.ended_at[row] = self.last_at[row] + self.timeout_us
            self.recent_arms[row], self.n_shown[row], self.recent_slots[row] = "[]", 0, b""
        self._ended_visits += self._visits(lapsed_visits)
        for row in new_visits:
            self.number[row], self.steps[row], self.recent_arms[row] = (self.number[row] or 0) + 1, 0, "[]"
            self.started_at[row] = self.last_at[row] = now
            self.ended_at[row], self.n_shown[row], self.recent_slots[row] = None, 0, b""
        return rows

    def states(self, rows: Iterable[int]) -> list[str]:
        """Return the session state that the next decision of each session will see, as canonical JSON. rows: the rows
        of the sessions."""
        now, last_at, texts, steps = self.unit.now, self.last_at, self.recent_arms, self.steps
        return [
            f'{{"gap_s":{canonical.number((now - last_at[row]) / 1e6)},"recent":{texts[row]},"step":{steps[row]}}}'
            if steps[row] else '{"step":0}'
            for row in rows
        ]  # fmt: skip

    def add_slates(self, rows: Sequence[int], decision_ids: Sequence[int], slates: Sequence[DrawnSlate]) -> None:
        """Add a decision to each of several distinct sessions. rows: the rows of the sessions; slates: what the
        decisions showed."""
        now, texts, steps, last_at = self.unit.now, self.recent_arms, self.steps, self.last_at
        sizes, arms = [len(slate.arms) for slate in slates], [arm for slate in slates for arm in slate.arms]
        decision, step = (np.repeat(column, sizes) for column in (decision_ids, [steps[row] for row in rows]))
        position = np.arange(len(arms)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + 1
        self._add_slots(np.repeat(rows, sizes).tolist(), decision, step, position, np.array(arms, np.int64))
        for row, slate in zip(rows, slates, strict=True):
            texts[row] = slate.recent_arms if texts[row] == "[]" else _append_texts(texts[row], slate.recent_arms)
            steps[row] += 1
            last_at[row] = max(last_at[row], now)

    def _add_slots(self, rows: Iterable[int], *slots: Ints) -> None:
        """Append slots to the recent slots of visits. rows: the row of the session of each slot; slots: the decision,
        step, position and arm of each slot, as for `pack`."""
        blob = pack(*slots).tobytes()
        for start, row in zip(range(0, len(blob), SLOT_BYTES), rows, strict=True):
            self.recent_slots[row] = (self.recent_slots[row] + blob[start : start + SLOT_BYTES])[-MAX_BYTES:]
            self.n_shown[row] += 1

    def store_visits(self) -> None:
        """Store all changed visits."""
        sessions.put_visits(self.unit, [*self._ended_visits, *self._visits(self._moved_rows)])

    def _visits(self, rows: Sequence[int]) -> Iterator[Row]:
        """Yield the newest visits of some sessions as tuples with the fields of `sessions.Visit`. rows: the rows of the
        sessions."""
        columns = self.id, self.number, self.started_at, self.last_at, self.steps, self.recent_arms, self.ended_at
        history = [
            slots if SLOT_BYTES * (n_shown := self.n_shown[row]) == len(slots := self.recent_slots[row])
            else n_shown.to_bytes(COUNT_BYTES, "little") + slots
            for row in rows
        ]  # fmt: skip
        return zip(*([column[row] for row in rows] for column in columns), history, strict=True)


def _append_texts(text: str, slate_text: str) -> str:
    """Join two lists of arms, and return the last N_RECENT arms. Both lists and the result are JSON. text: the first
    list; slate_text: the second list."""
    joined_text = f"{text[:-1]},{slate_text[1:]}"
    for _ in range(joined_text.count(SEPARATOR) + 1 - N_RECENT):
        joined_text = f"[{joined_text[joined_text.index(SEPARATOR) + 2 :]}"
    return joined_text


def turns(rows: Sequence[int]) -> list[list[int]]:
    """Split requests into turns, so that no turn has two requests of one session. Returns the indices of the requests
    of each turn: the first request of each session, then the second request of each session, and so on. rows: the row
    of the session of each request."""
    if len(set(rows)) == len(rows):
        return [list(range(len(rows)))]
    indices, counts = defaultdict[int, list[int]](list), Counter[int]()
    for index, row in enumerate(rows):
        indices[counts[row]].append(index)
        counts[row] += 1
    return list(indices.values())


class HistoryReader:
    """A HistoryReader makes the histories of the visits of a group of requests, with the rewards from events that were
    received before the group began."""

    def __init__(self, open_sessions: OpenSessions, definitions: Collection[Reward]) -> None:
        """Read the events on the recent slots of the visits. definitions: the rewards of the versions that serve."""
        self._open_sessions, unit = open_sessions, open_sessions.unit
        self._events: list[AgedEvent] = []
        # an event's target is a slot (decision, position) or a slate (decision, None); targets are numbered in order
        self._targets: dict[tuple[int, int | None], int] = {}
        self._rewards: dict[int, list[float]] = {}
        if recent_slots := list(filter(None, open_sessions.recent_slots)):
            kinds = {kind for definition in definitions for kind in definition.weights}
            self._events = events.received_by(unit, unpack_slots(recent_slots)[0], kinds, time=unit.now)
        for event in self._events:
            if event.age_us is None:
                raise damage_error(f"decision {event.decision_id} is gone, and its events are not")
            self._targets.setdefault((event.decision_id, event.position), len(self._targets))
        self._decisions = np.array(sorted({event.decision_id for event in self._events}), np.int64)

    def histories(self, rows: Sequence[int], definitions: Sequence[Reward]) -> History:
        """Return the history that the next decision of each session sees. rows: the rows of the sessions; definitions:
        for each session, the reward of the version that decides."""
        n, open_sessions = len(rows), self._open_sessions
        if not any(open_sessions.steps[row] for row in rows):
            return History.empty(n)
        recent_slots = [open_sessions.recent_slots[row] for row in rows]
        decision, position, slot_step, arm = unpack_slots(recent_slots)
        # which session each slot belongs to
        start = np.cumsum([0, *(len(slots) // SLOT_BYTES for slots in recent_slots)])
        row = np.repeat(np.arange(n), np.diff(start))
        columns = (open_sessions.steps, open_sessions.last_at, open_sessions.n_shown)
        step, last_at, n_shown = (np.array([column[row] for row in rows], np.int64) for column in columns)
        gap_us = open_sessions.unit.now - last_at
        # the rewards of slots, and those of whole slates at their last slots
        slot_rewards, page_rewards = (
            np.array([definition.default for definition in definitions])[row],
            np.zeros(len(row)),
        )
        with_events = np.flatnonzero(look_up(self._decisions, decision)[1])
        is_last = np.append(decision[1:] != decision[:-1], True)
        for index in with_events.tolist():
            by_target, key = self._rewards_of(definitions[row[index]]), int(decision[index])
            if (slot := self._targets.get((key, int(position[index])))) is not None:
                slot_rewards[index] = by_target[slot]
            if is_last[index] and (page := self._targets.get((key, None))) is not None:
                page_rewards[index] = by_target[page]
        total_rewards = np.bincount(row, weights=slot_rewards + page_rewards, minlength=n).astype(
            np.float64, copy=False
        )
        return History(
            step, gap_us / 1e6, n_shown, total_rewards, start, arm, step[row] - slot_step & LAST_STEP, slot_rewards
        )

    def _rewards_of(self, definition: Reward) -> list[float]:
        """Return the reward of each slot or slate whose events were read. Events after the window do not count, and a
        censored slot has the default reward."""
        if definition.id not in self._rewards:
            kind_indices = {kind: number for number, kind in enumerate(definition.weights)}
            kind = np.array([kind_indices.get(event.kind, -1) for event in self._events], np.int64)
            target = np.array([self._targets[event.decision_id, event.position] for event in self._events], np.int64)
            value, age = np.array([(event.value, event.age_us) for event in self._events], np.float64).T
            n, columns = len(self._targets), {"kind": kind, "value": value, "age_us": age}
            slot_rewards, _ = rewards.slot_rewards(definition, n=n, slot=target, **columns)
            page_rewards = rewards.page_rewards(definition, n=n, page=target, **columns)
            # the last mark counts
            last_marks = {
                (event.decision_id, event.position): event.value for event in self._events if event.kind == CENSOR
            }
            slot_rewards[[self._targets[name] for name, value in last_marks.items() if value == 1.0]] = (
                definition.default
            )
            is_page = [position is None for _, position in self._targets]
            self._rewards[definition.id] = np.where(is_page, page_rewards, slot_rewards).tolist()
        return self._rewards[definition.id]
