"""This module checks whether the log is ahead of the database's clock. If so, no reward becomes mature until the clock
has caught up."""

from __future__ import annotations

from typing import TypedDict

from rlrec.app.audit.integrity.findings import Findings, row_subject
from rlrec.errors import CheckFailed, InputError, quantity
from rlrec.store import Store, Unit
from rlrec.store.log import decisions, settings
from rlrec.times import DAY_US, format_time

CHECK = "clock"
MINUTE_US = 60_000_000


# The number of decisions that were moved back, and the seconds; the number of other times that were moved.
Repair = TypedDict("Repair", {"decisions": int, "seconds": float, "other_times": int})


def check(unit: Unit, *, findings: Findings) -> None:
    """Add a finding if the newest decision is more than a minute ahead of the clock: an error if it is more than a day
    ahead, else a warning."""
    block = decisions.find_ahead(unit)
    if block.distance_us > MINUTE_US:
        findings.add(
            CHECK, _severity(block.distance_us), "store",
            f"{quantity(block.decisions, 'decision')} ahead of the database's clock, the newest at "
            f"{format_time(block.newest_time)}: until then time stands still and nothing matures; "
            "see `rlrec doctor --repair-clock`",
        )  # fmt: skip


def check_rows(unit: Unit, *, findings: Findings) -> None:
    """Add findings on all rows, except decisions, that are later than both the clock and the newest decision."""
    from rlrec.store.upkeep import audit  # with all tables, which `recommend` under --now does without

    now = unit.clock()
    for column, key, at in audit.rows_ahead(unit, since=max(now + MINUTE_US, decisions.newest_time(unit) or 0)):
        detail = f"{column.name} of its {column.table.name} row, {format_time(at)}, lies ahead of the database's clock"
        findings.add(CHECK, _severity(at - now), row_subject(column.table.name, key), detail)


def _severity(ahead_us: int) -> str:
    return "error" if ahead_us > DAY_US else "warning"


def refuse_far_ahead(store: Store) -> None:
    """Raise InputError if the store was given a time (`--now`) that is far ahead of the clock. The store raises this
    error itself, but only when it stores decisions; this function is called before decisions are drawn. If the log has
    no decisions, a notice is printed in place of the error."""
    if store.now is None:
        return
    with store.read() as unit:
        newest_at = decisions.newest_time(unit)
        store.refuse_far_ahead(unit, newest_at)
        if newest_at is None and store.now > unit.clock() + DAY_US:
            now = format_time(store.now)
            store.notice(f"the first decision lies far ahead of the database's clock: the store's time is {now}")


def repair(store: Store) -> Repair:
    """Move decisions ahead of the database's clock back in time, so that the newest has the clock's time. Return what
    was moved. Raise CheckFailed if the moved decisions would come before older decisions."""
    if store.now is not None:
        raise InputError("--repair-clock goes by the database's clock", hint="leave out --now and RLREC_NOW")

    def move_back(unit: Unit) -> Repair:
        block = decisions.find_ahead(unit)
        if block.last_before is not None and block.first - block.distance_us < block.last_before:
            ready_at = block.last_before + block.newest_time - block.first
            raise CheckFailed(
                "the decisions ahead of the clock span more time than has passed since those before them",
                hint=f"repeat the repair after {format_time(ready_at)}",
            )
        unit.now = block.clock
        other_times = decisions.put_back(unit, block)
        result = Repair(decisions=block.decisions, seconds=block.distance_us / 1e6, other_times=other_times)
        if block.decisions or other_times:
            settings.add_run(unit, "doctor --repair-clock", result)
        return result

    return store.write(move_back)
