"""Queries here find the last decision of each user, and the returns: visits of users who come back after their last
decision."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from rlrec.store.database.unit import Row, Unit
from rlrec.store.log import decisions, settings
from rlrec.store.log.events import RETURN

# The first decision of a visit is a return to the user's decision before it, if that decision's visit had ended.
# Within a user, decisions that were served are in order of time as of commit, since their transactions lock the user.
_RETURNS = """
SELECT pair.before, pair.at FROM (
    SELECT d.step, d.at, lag(d.id) OVER (PARTITION BY s.user_id ORDER BY d.at, d.id) AS before
    FROM decision d JOIN session s ON s.id = d.session_id
    WHERE s.user_id {users}
) AS pair
JOIN decision p ON p.id = pair.before JOIN visit v ON v.session_id = p.session_id AND v.number = p.visit
WHERE pair.step = 0 AND (v.ended_at < pair.at OR v.last_at + ? < pair.at)
"""
_NEWEST = """
SELECT user_id, id FROM (
    SELECT s.user_id, d.id, row_number() OVER (PARTITION BY s.user_id ORDER BY d.at DESC, d.id DESC) AS place
    FROM decision d JOIN session s ON s.id = d.session_id WHERE s.user_id {users}
) AS placed WHERE place = 1
"""
_ALL_USERS = "IS NOT NULL"
_REPLACED = "(user_id) DO UPDATE SET decision_id = excluded.decision_id"
# How often a decision has the event, by its time; an event with a negative value takes one back.
_TIMES = (
    "SELECT decision_id, at, sum(CASE WHEN value < 0 THEN -1 ELSE 1 END) AS times FROM event"
    f" WHERE kind = '{RETURN}' {{condition}} GROUP BY decision_id, at"
)
_REPEATED_EVENTS = (
    f"SELECT decision_id, sum(times) - count(*) AS repeated FROM ({_TIMES.format(condition='')}) AS t"
    " WHERE times <> 0 GROUP BY decision_id"
)


class Return(NamedTuple):
    """This record is a visit that counts as a return. at: the start of the visit; decision_id: the last decision of the
    user's previous visit."""

    decision_id: int
    at: int


class LastDecision(NamedTuple):
    """This record is the last decision of a user. last_at: the time of the last decision in the visit of this decision;
    ended_at: the end of this visit, or None if it has not ended."""

    user_id: int
    decision_id: int
    policy_id: int
    last_at: int
    ended_at: int | None

    def ends_at(self, timeout_us: int) -> int:
        """Return the time at which the visit of the decision ends if the visit gets no further decision."""
        end_at = self.last_at + timeout_us
        return end_at if self.ended_at is None else min(end_at, self.ended_at)


def lock_users(unit: Unit, user_ids: Collection[int]) -> None:
    """Lock users in order of id. Until this transaction ends, no other transaction can begin or end a visit of these
    users."""
    if unit.postgres and user_ids:
        unit.ask("SELECT id FROM users WHERE id IN (?*) ORDER BY id FOR NO KEY UPDATE", user_ids)
        unit.now = max(unit.now, decisions.newest_time(unit) or 0)  # others may have decided while we waited


def last_decisions(unit: Unit, user_ids: Collection[int]) -> list[LastDecision]:
    """Return the last decision of each user that has a decision."""
    return unit.records(
        LastDecision,
        "SELECT l.user_id, d.id, d.policy_id, v.last_at, v.ended_at FROM last_decision l"
        " JOIN decision d ON d.id = l.decision_id JOIN visit v ON v.session_id = d.session_id AND v.number = d.visit"
        " WHERE l.user_id IN (?*)",
        user_ids,
    )


def set_last(unit: Unit, rows: Iterable[tuple[int, int]]) -> None:
    """Store the last decision of each user. rows: pairs (user_id, decision_id)."""
    unit.insert("last_decision", ("user_id", "decision_id"), sorted(rows), on_conflict=_REPLACED)


def policies_of_last(unit: Unit, *, users: Collection[str], sessions: Collection[str]) -> set[int]:
    """Return the ids of the policies that made the last decisions of certain users: the users with these keys, and the
    users of the sessions with these keys."""
    user_ids = (
        "SELECT coalesce(m.person_id, u.id) FROM users u LEFT JOIN merged_user m ON m.user_id = u.id"
        " WHERE u.key IN (?*) UNION SELECT user_id FROM session WHERE key IN (?*)"
    )
    tables = "last_decision l JOIN decision d ON d.id = l.decision_id"
    query = f"SELECT DISTINCT d.policy_id FROM {tables} WHERE l.user_id IN ({user_ids})"
    return {row[0] for row in unit.ask(query, users, sessions)}


def missing_returns(unit: Unit) -> list[Return]:
    """Return the returns in the log for which no event `return` is stored, oldest decision first."""
    query = f"SELECT r.before, r.at FROM ({_RETURNS.format(users=_ALL_USERS)}) AS r LEFT JOIN ({_REPEATED_EVENTS}) AS e"
    condition = " ON e.decision_id = r.before WHERE e.decision_id IS NULL ORDER BY r.before"
    return unit.records(Return, query + condition, settings.get(unit).session_timeout_us)


def returns_of(unit: Unit, user_ids: Collection[int]) -> set[Return]:
    """Return the returns of these users in the log, whether or not an event `return` is stored for them."""
    query = _RETURNS.format(users="IN (?*)")
    return set(unit.records(Return, query, user_ids, settings.get(unit).session_timeout_us))


def stored_returns(unit: Unit, decision_ids: Collection[int]) -> set[Return]:
    """Return the returns of these decisions for which an event `return` is stored."""
    query = _TIMES.format(condition="AND decision_id IN (?*)")
    return {Return(decision_id, at) for decision_id, at, times in unit.ask(query, decision_ids) if times > 0}


def wrong_returns(unit: Unit, *, limit: int) -> list[Row]:
    """Find returns in the log that do not have exactly one event `return`. Each row has the decision, the time of the
    return, and the number of events beyond the first for the same time (None where the decision has no such event).
    limit: the largest number of rows to return."""
    pairs = _RETURNS.format(users=_ALL_USERS)
    query = f"SELECT r.before, r.at, e.repeated FROM ({pairs}) AS r LEFT JOIN ({_REPEATED_EVENTS}) AS e"
    condition = " ON e.decision_id = r.before WHERE coalesce(e.repeated, 1) > 0 ORDER BY r.before LIMIT ?"
    return unit.ask(query + condition, settings.get(unit).session_timeout_us, limit)


def wrong_last_decisions(unit: Unit, *, limit: int) -> list[tuple[str, int]]:
    """Return the users whose stored last decision is wrong, as pairs: the key of the user, and the wrong decision id.
    limit: the largest number of pairs to return."""
    newest_ids = _NEWEST.format(users=_ALL_USERS)
    tables = f"last_decision l JOIN users u ON u.id = l.user_id LEFT JOIN ({newest_ids}) AS n ON n.user_id = l.user_id"
    is_wrong = "coalesce(n.id, 0) <> l.decision_id AND l.user_id NOT IN (SELECT user_id FROM merged_user)"
    query = f"SELECT u.key, l.decision_id FROM {tables} WHERE {is_wrong}"
    return [(user, decision_id) for user, decision_id in unit.ask(f"{query} ORDER BY l.user_id LIMIT ?", limit)]


def derive_last(unit: Unit, user_ids: Collection[int] | None = None) -> None:
    """Find the last decision of each of these users in the log, and store it as the user's last decision. user_ids:
    None stands for all users."""
    newest_ids = _NEWEST.format(users=_ALL_USERS if user_ids is None else "IN (?*)")
    query = f"INSERT INTO last_decision (user_id, decision_id) {newest_ids} ON CONFLICT {_REPLACED}"
    unit.tell(query, *([] if user_ids is None else [user_ids]))
