"""Time: whether the log lies ahead of the database's clock, where nothing matures until that has caught up."""

from __future__ import annotations

from typing import TypedDict

from rlrec.app.audit.findings import Findings
from rlrec.errors import CheckFailed, InputError, quantity
from rlrec.store import Store, Unit, decisions, settings
from rlrec.times import DAY_US, written

CHECK = "clock"
MINUTE_US = 60_000_000


# How many decisions were put back, and by how many seconds.
Repair = TypedDict("Repair", {"decisions": int, "seconds": float})


def check(unit: Unit, *, findings: Findings) -> None:
    """An error where the newest decision lies more than a day ahead, a warning from a minute on."""
    ahead = decisions.ahead(unit)
    if ahead.by > MINUTE_US:
        severity = "error" if ahead.by > DAY_US else "warning"
        findings.add(
            CHECK, severity, "store",
            f"{quantity(ahead.decisions, 'decision')} ahead of the database's clock, the newest at "
            f"{written(ahead.newest)}: until then time stands still and nothing matures; "
            "see `rlrec doctor --repair-clock`",
        )  # fmt: skip


def refuse_far_ahead(store: Store) -> None:
    """Raises InputError where `--now` would log a decision far ahead of a log that follows the database's clock; a log
    that is empty, or lies ahead already, has a time of its own (simulations, replays). In an empty one, a notice."""
    if store.now is None:
        return
    with store.read() as unit:
        newest, now = decisions.newest(unit), unit.clock()
    if newest is None and store.now > now + DAY_US:
        store.notice(
            f"the first decision lies far ahead of the database's clock: the store's time is {written(store.now)}"
        )
    elif newest is not None and newest <= now and store.now > now + DAY_US:
        raise InputError(
            f"--now {written(store.now)} lies far ahead of the database's clock, {written(now)}: time would stand "
            "still until then",
            hint="check --now and RLREC_NOW; --allow-future logs decisions there all the same",
        )


def repair(store: Store) -> Repair:
    """Put decisions that lie ahead of the database's clock back, up to now. Raises CheckFailed where they span more
    time than has passed since the decisions before them."""
    if store.now is not None:
        raise InputError("--repair-clock goes by the database's clock", hint="leave out --now and RLREC_NOW")

    def work(unit: Unit) -> Repair:
        ahead = decisions.ahead(unit)
        if ahead.before is not None and ahead.first - ahead.by < ahead.before:
            ready = ahead.before + ahead.newest - ahead.first
            raise CheckFailed(
                "the decisions ahead of the clock span more time than has passed since those before them",
                hint=f"repeat the repair after {written(ready)}",
            )
        unit.now = ahead.clock
        repaired = Repair(decisions=ahead.decisions, seconds=ahead.by / 1e6)
        if ahead.decisions:
            decisions.put_back(unit, ahead)
            settings.add_run(unit, "doctor --repair-clock", repaired)
        return repaired

    return store.write(work)
