"""When the rewards of decisions will be complete, in words: until then nothing is estimated from them."""

from __future__ import annotations

from rlrec.store import Unit
from rlrec.store.log import selected
from rlrec.store.log.selected import Selection
from rlrec.times import DAY_US, LAST, SECOND, written

MINUTE_US, HOUR_US = 60 * SECOND, 3_600 * SECOND


def moment(at: int, now: int) -> str:
    """A time in the future, to the minute, and how long it is until then: 21:13Z, in 29 min."""
    minute = written(-(-at // MINUTE_US) * MINUTE_US)[:16].replace("T", " ") + "Z"
    wait = at - now
    units = ((MINUTE_US, "min", 90 * MINUTE_US), (HOUR_US, "h", 2 * DAY_US), (DAY_US, "days", wait + 1))
    size, word = next((size, word) for size, word, limit in units if wait < limit)
    return f"{minute[11:] if minute[:10] == written(now)[:10] else minute}, in {-(-wait // size)} {word}"


def outlook(unit: Unit, selection: Selection, *, wait_us: int, mature_from: int | None = None) -> str | None:
    """When the first of the selected decisions that are not mature will be, and how to look as if all were; None where
    that cannot be told. wait_us: from a decision until it counts; mature_from: None where no decision is mature."""
    first, last = selected.times(unit, selection)
    mature_from = first + wait_us if mature_from is None else mature_from
    if mature_from < unit.now or last + wait_us + SECOND > LAST:
        return None
    clock = written(last + wait_us + SECOND)[:19] + "Z"
    return f"the first at {moment(mature_from, unit.now)}; to look now, add `--now {clock}`"
