"""This module finds the arms that were shown to a person, or that have events of the person, in all sessions of this
person."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from rlrec.store.database.unit import Unit

_PERSON_ARMS = (
    "FROM session s JOIN decision d ON d.session_id = s.id JOIN {parts}"
    " WHERE (s.user_id IN (?*) OR s.id IN (?*)) AND {tests} GROUP BY s.user_id, s.id, i.arm_id"
)
_SHOWN = _PERSON_ARMS.format(parts="slot i ON i.decision_id = d.id", tests="d.at > ? AND d.at <= ?")
_EVENTS = _PERSON_ARMS.format(
    parts="event v ON v.decision_id = d.id JOIN slot i ON i.decision_id = v.decision_id AND i.position = v.position",
    tests="v.kind = ? AND v.at > ? AND v.at <= ?",
)


class SessionArm(NamedTuple):
    """This record is a pair of a session and an arm. amount: how often the arm was shown in the session, or the sum of
    the values of its events."""

    user_id: int | None
    session_id: int
    arm_id: int
    amount: float


def read(
    unit: Unit, user_ids: Collection[int], session_ids: Collection[int], *, kind: str | None, window_us: int
) -> list[SessionArm]:
    """Return the arms that were shown in the sessions of these users and in these sessions. If a kind of event is
    given, return the arms that have events of this kind in these sessions.

    window_us: how many microseconds back decisions (with a kind, events) count."""
    since, person_ids = unit.now - window_us, (list(user_ids), list(session_ids))
    if kind is None:
        query = f"SELECT s.user_id, s.id, i.arm_id, count(*) {_SHOWN}"
        return unit.records(SessionArm, query, *person_ids, since, unit.now)
    query = f"SELECT s.user_id, s.id, i.arm_id, sum(v.value) {_EVENTS}"
    return unit.records(SessionArm, query, *person_ids, kind, since, unit.now)
