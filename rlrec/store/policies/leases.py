"""Queries here take and release leases. While a process holds the lease of a policy, no other process works on this
policy, until the lease expires.

Times are from `Unit.clock`, the clock of the database. All machines therefore agree on the time, and `--now` does
not change it."""

from __future__ import annotations

from typing import NamedTuple

from rlrec.store.database.unit import Unit


class Lease(NamedTuple):
    """This record is a stored lease. token: a secret of the holder, without which the lease cannot be renewed or
    released."""

    policy_id: int
    holder: str
    token: str
    taken_at: int
    expires_at: int


_TAKE = """
INSERT INTO lease (policy_id, holder, token, taken_at, expires_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (policy_id) DO UPDATE SET holder = excluded.holder, token = excluded.token,
    taken_at = CASE WHEN lease.token = excluded.token THEN lease.taken_at ELSE excluded.taken_at END,
    expires_at = excluded.expires_at
WHERE lease.expires_at < excluded.taken_at OR lease.token = excluded.token
"""


def take(unit: Unit, policy_id: int, *, holder: str, token: str, now: int, until: int) -> Lease | None:
    """Take the lease of a policy, or renew it. Return None if the caller holds the lease now. If another process holds
    it, change nothing and return the lease of that process."""
    if unit.tell(_TAKE, policy_id, holder, token, now, until):
        return None
    return current_lease(unit, policy_id)  # the statement locked the row, so nobody can have released the lease


def can_renew(unit: Unit) -> bool:
    """Tell whether a process can renew its lease while it reads. The result is False for an SQLite file without WAL,
    since such a file cannot be written during a read."""
    return unit.postgres or unit.ask_value("PRAGMA journal_mode") == "wal"


def renew(unit: Unit, policy_id: int, *, token: str, until: int) -> bool:
    """Renew a lease until a later time, and tell whether the caller still held the lease."""
    return unit.tell("UPDATE lease SET expires_at = ? WHERE policy_id = ? AND token = ?", until, policy_id, token) > 0


def release(unit: Unit, policy_id: int, *, token: str) -> bool:
    """Release a lease, and tell whether the caller still held the lease."""
    return unit.tell("DELETE FROM lease WHERE policy_id = ? AND token = ?", policy_id, token) > 0


def current_lease(unit: Unit, policy_id: int) -> Lease | None:
    """Return the stored lease of a policy, even if the lease has expired, or None if there is no lease."""
    return next(iter(unit.select(Lease, "lease WHERE policy_id = ?", policy_id)), None)
