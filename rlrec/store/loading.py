"""Imported logs into the tables, by the way that each database takes fastest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import Any, NamedTuple

from rlrec.store.sessions import Visit
from rlrec.store.unit import Row, Unit, quoted, slices

ROWS = 5_000  # in one statement of SQLite
VALUES = 32_000  # in one statement of SQLite, which takes 32,766
PORTION = 10_000  # keys looked up at once
FEW = 10_000  # up to so many rows are fetched at once rather than looked up by key


@dataclass(frozen=True)
class Same:
    """A column that holds one value in every row."""

    value: Any


Column = Sequence[Any] | Same


def write(unit: Unit, table: str, columns: Mapping[str, Column]) -> None:
    """Rows into a table, column by column; one column at least is no `Same`."""
    if unit.postgres:
        values = [repeat(column.value) if isinstance(column, Same) else column for column in columns.values()]
        unit.copy(table, columns, zip(*values))  # noqa: B905 (a `Same` is repeated for ever)
    else:
        _insert(unit, table, columns)


def _insert(unit: Unit, table: str, columns: Mapping[str, Column]) -> None:
    """Many rows a statement: executemany costs more than the rows do. A `Same` is bound once."""
    same = [column.value for column in columns.values() if isinstance(column, Same)]
    # The same list may be several columns: it is bound once.
    lists = {id(column): column for column in columns.values() if not isinstance(column, Same)}
    indexes = {key: index for index, key in enumerate(lists, 1)}
    chosen = tuple("?" if isinstance(column, Same) else f"column{indexes[id(column)]}" for column in columns.values())
    width = len(lists)
    flat: list[Any] = [None] * (width * len(next(iter(lists.values()))))
    for index, column in enumerate(lists.values()):
        flat[index::width] = column
    step = width * min(ROWS, (VALUES - len(same)) // width)
    for start in range(0, len(flat), step):
        values = flat[start : start + step]
        unit.driver.execute(_insertion(table, tuple(columns), chosen, width, len(values) // width), same + values)


@lru_cache(maxsize=64)
def _insertion(table: str, names: Sequence[str], chosen: Sequence[str], width: int, rows: int) -> str:
    """chosen: for each column the name of one of a row's `width` values, or ? for a value that is bound once.
    No mark has a number: from 3.12 on Python asks SQLite for the names of marks, which it looks for in all of them."""
    row = f"({','.join('?' * width)})"
    return f'INSERT INTO "{table}" ({quoted(names)}) SELECT {", ".join(chosen)} FROM (VALUES {",".join([row] * rows)})'


# -- what is stored already --


def stored_lines(unit: Unit, policy_id: int, digests: Sequence[bytes]) -> set[bytes]:
    """The digests, among these, of lines that the policy has imported before."""
    chosen = "SELECT digest FROM import_line WHERE policy_id = ? AND digest IN (?*)"
    return {bytes(row[0]) for portion in slices(digests, PORTION) for row in unit.ask(chosen, policy_id, portion)}


def few_lines(unit: Unit, policy_id: int) -> set[bytes] | None:
    """The digests of all lines that the policy has imported; None where there are FEW or more."""
    rows = unit.ask("SELECT digest FROM import_line WHERE policy_id = ? LIMIT ?", policy_id, FEW)
    return {bytes(row[0]) for row in rows} if len(rows) < FEW else None


def stored_sessions(unit: Unit, keys: Collection[str]) -> set[str]:
    """The keys, among these, of sessions that are stored."""
    # Keys that begin with their time mostly lie behind all that are stored. PostgreSQL may order them otherwise.
    between = "SELECT EXISTS (SELECT 1 FROM session WHERE key BETWEEN ? AND ?)"
    if not keys or not (unit.postgres or unit.ask_value(between, min(keys), max(keys))):
        return set()
    chosen = "SELECT key FROM session WHERE key IN (?*)"
    return {row[0] for portion in slices(list(keys), PORTION) for row in unit.ask(chosen, portion)}


def marks(unit: Unit, policy_ids: Collection[int]) -> list[Row]:
    """Equal only as long as nobody changes one of these policies, which are locked, or deletes decisions."""
    columns = "policy_id, seq, (SELECT removals FROM settings)"
    return unit.ask(f"SELECT {columns} FROM policy_head WHERE policy_id IN (?*) ORDER BY policy_id", list(policy_ids))


def visits(unit: Unit, session_ids: Collection[int]) -> dict[int, dict[int, Visit]]:
    """All visits of these sessions, by session and number."""
    by_session: dict[int, dict[int, Visit]] = defaultdict(dict)
    for visit in unit.select(Visit, "visit WHERE session_id IN (?*)", session_ids):
        by_session[visit.session_id][visit.number] = visit
    return by_session


class VisitStep(NamedTuple):
    session_id: int
    visit: int
    step: int
    imported: int


def steps(unit: Unit, session_ids: Collection[int]) -> list[VisitStep]:
    """The step of every decision of these sessions."""
    return unit.select(VisitStep, "decision WHERE session_id IN (?*)", session_ids)
