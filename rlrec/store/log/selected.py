"""Selected decisions of the log: how many there are, how far they reach, and their ids."""

from __future__ import annotations

from typing import NamedTuple

from rlrec.store.database.folders import of_log
from rlrec.store.database.unit import Unit
from rlrec.store.log.reader import Selection
from rlrec.times import DAY_US


@of_log
def version_counts(unit: Unit, selection: Selection) -> dict[int, int]:
    """How many of the selected decisions each version served."""
    text = f"SELECT d.version_id, count(*) FROM decision d WHERE {_all(selection)} GROUP BY d.version_id"
    return dict(unit.ask(text))


class DayCount(NamedTuple):
    """How many of some decisions a version served on a day, numbered from 1970-01-01 UTC."""

    day: int
    version_id: int
    decisions: int


def day_counts(unit: Unit, selection: Selection) -> list[DayCount]:
    """How many of the selected decisions each version served on each day, by day."""
    columns = f"d.at / {DAY_US}, d.version_id, count(*)"
    text = f"SELECT {columns} FROM decision d WHERE {_all(selection)} GROUP BY 1, 2 ORDER BY 1, 2"
    return unit.records(DayCount, text)


def newest_at(unit: Unit, selection: Selection, n: int) -> int | None:
    """The time of the n-th newest selected decision; None where there are fewer."""
    text = f"SELECT d.at FROM decision d WHERE {_all(selection)} ORDER BY d.at DESC LIMIT 1 OFFSET ?"
    at = unit.ask_value(text, n - 1)
    return None if at is None else int(at)


class LogExtent(NamedTuple):
    """The extent of some decisions: positions of the longest slate, decisions of the longest visit up to the last one,
    the smallest and the largest id of the versions that served, 0 where there are none; and how many they are."""

    positions: int
    steps: int
    first_version: int
    last_version: int
    decisions: int


@of_log
def extent(unit: Unit, selection: Selection) -> LogExtent:
    """The extent of the selected decisions."""
    largest = ("max(d.size)", "max(d.step) + 1", "min(d.version_id)", "max(d.version_id)")
    columns = ", ".join(f"coalesce({each}, 0)" for each in (*largest, "count(*)"))
    return unit.records(LogExtent, f"SELECT {columns} FROM decision d WHERE {_all(selection)}")[0]


@of_log
def times(unit: Unit, selection: Selection) -> tuple[int, int]:
    """The times of the first and of the last selected decision; 0 where nothing is selected."""
    columns = "coalesce(min(d.at), 0), coalesce(max(d.at), 0)"
    first, last = unit.ask(f"SELECT {columns} FROM decision d WHERE {_all(selection)}")[0]
    return int(first), int(last)


def ids_after(unit: Unit, selection: Selection, *, low: int, limit: int) -> list[int]:
    """The first `limit` selected decisions whose id is above `low`, ascending."""
    wanted = f"SELECT d.id FROM decision d WHERE {_all(selection)} AND d.id > ? ORDER BY d.id LIMIT ?"
    return [row[0] for row in unit.ask(wanted, low, limit)]


def _all(selection: Selection) -> str:
    return " AND ".join(selection.conditions()) or "1 = 1"
