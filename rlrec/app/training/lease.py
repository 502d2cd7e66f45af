"""This module allows one training at a time for each policy. The process that trains holds a lease, renews the lease,
and releases it at the end of the training."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from time import monotonic
from typing import Self
from uuid import uuid4

from rlrec.errors import StoreBusy
from rlrec.records import StoredPolicy
from rlrec.store import Store, Unit
from rlrec.store.policies import leases
from rlrec.times import SECOND, format_time

LEASE_S = 60  # on the database's clock, without renewal
RENEWAL_S, UNRENEWED_S = 10, 86_400  # seconds between renewals; length of a lease that cannot be renewed


class TrainingLease:
    """A TrainingLease holds a lease on a policy for the time of a `with` block. Raises StoreBusy where another process
    holds the lease, or has taken it over. If the holder of the lease was a process on this machine, its death is
    noticed at once. If the holder was on another machine, its death shows when the lease expires, by the clock of the
    database.

    is_exclusive: whether other processes may not train meanwhile; False for a run that stores nothing."""

    def __init__(self, store: Store, policy: StoredPolicy, *, is_exclusive: bool = True) -> None:
        self.store, self.policy, self.is_exclusive = store, policy, is_exclusive
        self.token = f"{_machine()}/{os.getpid()}/{_start_ticks(os.getpid())}/{uuid4().hex}"
        self._renewed_at, self._can_renew = monotonic(), True

    def __enter__(self) -> Self:
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        lease = self.store.write(lambda unit: self._take_lease(unit, holder)) if self.is_exclusive else None
        if lease is not None:
            raise StoreBusy(
                f"policy {self.policy.name} is being trained by {lease.holder} since {format_time(lease.taken_at)}",
                hint=f"a retry is safe; a lease without a sign of life ends after {LEASE_S} s",
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self.is_exclusive:
            self.store.write(lambda unit: leases.release(unit, self.policy.id, token=self.token))

    def _take_lease(self, unit: Unit, holder: str) -> leases.Lease | None:
        lease = leases.current_lease(unit, self.policy.id)
        if lease is not None and _is_dead(lease.token):
            leases.release(unit, self.policy.id, token=lease.token)
        now, self._can_renew = unit.clock(), leases.can_renew(unit)
        until = now + (LEASE_S if self._can_renew else UNRENEWED_S) * SECOND
        return leases.take(unit, self.policy.id, holder=holder, token=self.token, now=now, until=until)

    def renew(self) -> None:
        """Renew the lease, unless this lease was renewed recently."""
        if self.is_exclusive and self._can_renew and monotonic() - self._renewed_at > RENEWAL_S:
            self.store.write(self.check)
            self._renewed_at = monotonic()

    def check(self, unit: Unit) -> None:
        """Renew the lease. Raises StoreBusy where the lease is lost, since another process may have trained
        meanwhile."""
        if self.is_exclusive and not leases.renew(
            unit, self.policy.id, token=self.token, until=unit.clock() + LEASE_S * SECOND
        ):
            raise StoreBusy(
                f"the lease on policy {self.policy.name} was lost: another trainer has taken over",
                hint="a retry is safe; nothing was stored",
            )


def _is_dead(token: str) -> bool:
    machine, pid, start_ticks, _ = token.split("/") if token.count("/") == 3 else ("", "0", "", "")
    return bool(machine) and machine == _machine() and _start_ticks(int(pid)) != start_ticks


def _machine() -> str:
    """Return a text that identifies the boot of this machine and the PID namespace, within which process numbers are
    unique. The text is "" where the system does not tell these two."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _start_ticks(pid: int) -> str:
    """Return the start time of a process, in the system's ticks, or "" where no process has this number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        return ""
