"""Queries here group sessions by person, and read all visits of persons. A person is a user, or a session without a
user."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from rlrec.arrays import Ids, offsets, run_starts
from rlrec.store.database import bulk
from rlrec.store.database.unit import Unit
from rlrec.store.log import reader
from rlrec.store.log.reader import ABSENT
from rlrec.store.log.selected import Selection, numbers, scan_tests
from rlrec.store.policies.experiments import Experiment


def any_returned(unit: Unit) -> bool:
    """Tell whether any person has more than one visit."""
    text = "SELECT 1 FROM visit w JOIN session s ON s.id = w.session_id GROUP BY coalesce(-s.user_id, s.id)"
    return unit.ask_row(f"{text} HAVING count(*) > 1 LIMIT 1") is not None


def portions(unit: Unit, sessions: Ids | None = None, *, size: int = reader.BATCH) -> list[Ids]:
    """Return session ids in portions, with about `size` decisions in each portion. A portion is an array of ascending
    ids. All sessions of a person are in one portion.

    sessions: only sessions of the persons who have one of these sessions are in the result; None: all sessions are."""
    person_clause = visit_clause = ""
    if sessions is not None:
        test = f"id IN ({numbers(sessions.tolist())})"
        person_clause = f" WHERE {test} OR user_id IN (SELECT user_id FROM session WHERE {test})"
        visit_clause = f" WHERE session_id IN (SELECT id FROM session{person_clause})"
    sessions_query = f"SELECT id, coalesce(user_id, 0) FROM session{person_clause} ORDER BY id"
    sums = f"SELECT session_id, CAST(sum(steps) AS BIGINT) FROM visit{visit_clause} GROUP BY session_id ORDER BY 1"
    types = dict.fromkeys(("session", "value"), np.int64)
    queries = [bulk.PendingQuery(unit, text, types) for text in (sessions_query, sums)]
    (session, user_ids), (visited_sessions, steps) = (query.columns().values() for query in queries)
    decisions = np.zeros(len(session), np.int64)
    decisions[np.searchsorted(session, visited_sessions)] = steps
    order = np.argsort(user_ids, kind="stable")
    user_ids, decisions_before = user_ids[order], offsets(np.clip(decisions[order], 1, size))
    # where each person begins, and at which of these a portion begins
    person_starts = np.flatnonzero(np.r_[True, (user_ids[1:] != user_ids[:-1]) | (user_ids[1:] == 0)][: len(user_ids)])
    portion_starts = person_starts[run_starts(decisions_before[person_starts] // size)]
    return [np.sort(piece) for piece in np.split(session[order], portion_starts[1:])] if len(session) else []


def arrivals(
    unit: Unit, selection: Selection, *, since: int, length: int, by_session: bool = False
) -> dict[int, int]:  # fmt: skip
    """Count persons by the time of their first selected decision. The time is divided into stretches; return the number
    of persons by the number of the stretch.

    since: the start of stretch 0; length: the length of a stretch; by_session: whether to count sessions in place of
    persons."""
    person = "s.id" if by_session else "coalesce(-s.user_id, s.id)"
    tables = f"decision d JOIN session s ON s.id = d.session_id WHERE {scan_tests(unit, selection)} GROUP BY {person}"
    text = f"SELECT (at - {since}) / {length}, count(*) FROM (SELECT min(d.at) AS at FROM {tables}) AS entry GROUP BY 1"
    return dict(unit.ask(text))


def count_users(unit: Unit, since: int) -> tuple[int, int]:
    """Return the number of users, and the number of users whose first session began at the time `since` or later."""
    first_sessions = "SELECT min(created_at) AS at FROM session WHERE user_id IS NOT NULL GROUP BY user_id"
    text = f"SELECT count(*), count(CASE WHEN at >= {since} THEN 1 END) FROM ({first_sessions}) AS entry"
    users, n_new = unit.ask(text)[0]
    return int(users), int(n_new)


def count_clicks(unit: Unit, selection: Selection, kinds: Collection[str]) -> Ids:
    """Count, for each person who has selected decisions, the slots of these decisions and the slots with an event of
    one of these kinds.

    The result (3, n) has a column for each person. Its rows are the negative id of the user (or the id of the
    session, if the session has no user), the number of slots, and the number of slots with such an event."""
    listed_kinds = ", ".join(f"'{kind}'" for kind in kinds)
    event = f"e.decision_id = s.decision_id AND e.position = s.position AND e.kind IN ({listed_kinds})"
    click_count = f"CAST(sum(CASE WHEN EXISTS (SELECT 1 FROM event e WHERE {event}) THEN 1 ELSE 0 END) AS BIGINT)"
    tables = "decision d JOIN slot s ON s.decision_id = d.id JOIN session v ON v.id = d.session_id"
    tests = " AND ".join(selection.conditions()) or "1 = 1"
    text = f"SELECT coalesce(-v.user_id, v.id), count(*), {click_count} FROM {tables} WHERE {tests} GROUP BY 1"
    types = dict.fromkeys(("person", "slots", "clicks"), np.int64)
    pieces = [np.stack([*columns.values()]) for columns in bulk.stream(unit, text, types)]
    return np.hstack([np.zeros((3, 0), np.int64), *pieces])


def session_test(column: str, sessions: Ids) -> str:
    """Return an SQL test that is true if a column has the id of one of these sessions. sessions: at least one id,
    ascending."""
    low, high = int(sessions[0]), int(sessions[-1])
    if high - low + 1 == len(sessions):
        return f"{column} BETWEEN {low} AND {high}"
    return f"{column} IN ({numbers(sessions.tolist())})"


def ask_visits(unit: Unit, sessions: Ids, experiment: Experiment | None = None) -> bulk.PendingQuery:
    """Return a query for the visits of these sessions, in order of session and number of the visit. The columns include
    the digests of the session and of its user (0 if the session has no user).

    experiment: if given, the columns entry_at and assigned_id are the time of assignment and the variant of the user
    or session, and merged_at is the time at which the user first got a second key. ABSENT stands for a missing
    value: the visit has not ended, or the session has no user, or nothing was assigned, or the user has only one
    key."""
    entry_at, variant_id, assignment_joins, merged_at = str(ABSENT), str(ABSENT), "", str(ABSENT)
    if experiment is not None:
        # a unit is the user where one is known, else the session
        joins = {"b": "b.session_id = s.id", **({"a": "a.user_id = s.user_id"} if experiment.unit == "user" else {})}
        entry_at, variant_id = (
            f"coalesce({', '.join(f'{name}.{column}' for name in sorted(joins))}, {ABSENT})"
            for column in ("at", "variant_id")
        )
        merged_at = f"coalesce((SELECT min(m.at) FROM merged_user m WHERE m.person_id = s.user_id), {ABSENT})"
        assignment_joins = "".join(
            f" LEFT JOIN assignment {name} ON {name}.experiment_id = {experiment.id} AND {test}"
            for name, test in joins.items()
        )
    columns = {
        "session_id": "w.session_id", "number": "w.number", "started_at": "w.started_at", "last_at": "w.last_at",
        "ended_at": f"coalesce(w.ended_at, {ABSENT})", "user_id": f"coalesce(s.user_id, {ABSENT})",
        "user_digest": "coalesce(u.digest, 0)", "session_digest": "coalesce(s.digest, 0)", "entry_at": entry_at,
        "assigned_id": variant_id, "merged_at": merged_at,
    }  # fmt: skip
    tables = "visit w JOIN session s ON s.id = w.session_id LEFT JOIN users u ON u.id = s.user_id"
    order = f"WHERE {session_test('w.session_id', sessions)} ORDER BY w.session_id, w.number"
    text = f"SELECT {', '.join(columns.values())} FROM {tables}{assignment_joins} {order}"
    return bulk.PendingQuery(unit, text, dict.fromkeys(columns, np.int64))
