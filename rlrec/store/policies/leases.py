"""Leases: a row by which one process works on a policy alone, until it expires.

Times are those of `Unit.clock`, the database's clock, so that machines agree and `--now` moves nothing."""

from __future__ import annotations

from typing import NamedTuple

from rlrec.store.database.unit import Unit


class Lease(NamedTuple):
    """`token` is the holder's secret: whoever has it may renew and release."""

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
    """Take or renew the lease: None where it is ours now, else the lease of the other holder, which stays."""
    if unit.tell(_TAKE, policy_id, holder, token, now, until):
        return None
    return current(unit, policy_id)  # the row is locked by now: nobody can have released it


def can_renew(unit: Unit) -> bool:
    """Whether who holds a lease can renew it while it reads: a SQLite file without WAL lets nobody write then."""
    return unit.postgres or unit.ask_value("PRAGMA journal_mode") == "wal"


def renew(unit: Unit, policy_id: int, *, token: str, until: int) -> bool:
    """Renew a lease: whether it was still ours."""
    return unit.tell("UPDATE lease SET expires_at = ? WHERE policy_id = ? AND token = ?", until, policy_id, token) > 0


def release(unit: Unit, policy_id: int, *, token: str) -> bool:
    """Give a lease back: whether it was still ours."""
    return unit.tell("DELETE FROM lease WHERE policy_id = ? AND token = ?", policy_id, token) > 0


def current(unit: Unit, policy_id: int) -> Lease | None:
    """The lease of a policy as it stands, expired or not."""
    return next(iter(unit.select(Lease, "lease WHERE policy_id = ?", policy_id)), None)
