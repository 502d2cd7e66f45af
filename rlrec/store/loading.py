"""Logs from elsewhere into the tables, by what each database takes fastest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import Any, NamedTuple

from sqlalchemy import exc

from rlrec.store.sessions import Visit
from rlrec.store.unit import Unit

ROWS = 5_000  # in one statement of SQLite
VALUES = 32_000  # in one statement of SQLite, which takes 32,766
PORTION = 10_000  # keys asked for at once
FEW = 10_000  # rows that are rather fetched at once than asked for one by one


@dataclass(frozen=True)
class Same:
    """A column that holds one value in every row."""

    value: Any


Column = Sequence[Any] | Same


def write(unit: Unit, table: str, columns: Mapping[str, Column]) -> None:
    """Rows into a table, column by column; one column at least is no `Same`."""
    if unit.postgres:
        _copy(unit, table, columns)
    else:
        _insert(unit, table, columns)


def _copy(unit: Unit, table: str, columns: Mapping[str, Column]) -> None:
    names = ", ".join(f'"{name}"' for name in columns)
    statement = f'COPY "{table}" ({names}) FROM STDIN'
    cursor = unit.driver
    values = [repeat(one.value) if isinstance(one, Same) else one for one in columns.values()]
    try:
        with cursor.copy(statement) as copy:
            for row in zip(*values):  # noqa: B905 (what is the same goes on for ever)
                copy.write_row(row)
    except cursor.connection.Error as error:
        raise exc.DBAPIError(statement, None, error) from error


def _insert(unit: Unit, table: str, columns: Mapping[str, Column]) -> None:
    """Many rows a statement: executemany costs more than the rows do. What is the same is bound once."""
    same = [one.value for one in columns.values() if isinstance(one, Same)]
    lists = {id(one): one for one in columns.values() if not isinstance(one, Same)}  # one may be several columns
    places = {key: place for place, key in enumerate(lists, 1)}
    chosen = tuple("?" if isinstance(one, Same) else f"column{places[id(one)]}" for one in columns.values())
    width = len(lists)
    flat: list[Any] = [None] * (width * len(next(iter(lists.values()))))
    for place, one in enumerate(lists.values()):
        flat[place::width] = one
    step = width * min(ROWS, (VALUES - len(same)) // width)
    for start in range(0, len(flat), step):
        part = flat[start : start + step]
        unit.driver.execute(_insertion(table, tuple(columns), chosen, width, len(part) // width), same + part)


@lru_cache(maxsize=64)
def _insertion(table: str, names: Sequence[str], chosen: Sequence[str], width: int, rows: int) -> str:
    """chosen: for each column what it is of a row of `width` values, or ? for what is bound once.

    No mark has a number: from 3.12 on Python asks SQLite for the names of marks, and it goes through all of them."""
    row = f"({','.join('?' * width)})"
    listed = ", ".join(f'"{name}"' for name in names)
    return f'INSERT INTO "{table}" ({listed}) SELECT {", ".join(chosen)} FROM (VALUES {",".join([row] * rows)})'


# -- what the store has --


def known_lines(unit: Unit, policy_id: int, digests: Sequence[bytes]) -> set[bytes]:
    """Of these identities of lines, those that the policy has taken in before."""
    chosen = "SELECT digest FROM import_line WHERE policy_id = ? AND digest IN (?*)"
    return {bytes(row[0]) for portion in _portions(digests) for row in unit.ask(chosen, policy_id, portion)}


def few_lines(unit: Unit, policy_id: int) -> set[bytes] | None:
    """All identities of lines that the policy has taken in; None where these are many."""
    rows = unit.ask("SELECT digest FROM import_line WHERE policy_id = ? LIMIT ?", policy_id, FEW)
    return {bytes(row[0]) for row in rows} if len(rows) < FEW else None


def known_sessions(unit: Unit, keys: Sequence[str]) -> set[str]:
    """Of these keys of sessions, those that the store has."""
    chosen = "SELECT key FROM session WHERE key IN (?*)"
    return {row[0] for portion in _portions(keys) for row in unit.ask(chosen, portion)}


def few_sessions(unit: Unit, prefix: str) -> set[str] | None:
    """All keys of sessions that begin so; None where these are many, or where an index does not tell them."""
    if unit.postgres:
        return None
    between = "key >= ? AND key < ? || char(1114111)"
    rows = unit.ask(f"SELECT key FROM session WHERE {between} LIMIT ?", prefix, prefix, FEW)
    return {row[0] for row in rows} if len(rows) < FEW else None


def _portions(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (values[start : start + PORTION] for start in range(0, len(values), PORTION))


def visits(unit: Unit, session_ids: Collection[int]) -> dict[int, dict[int, Visit]]:
    """All visits of these sessions, by session and number."""
    by_session: dict[int, dict[int, Visit]] = defaultdict(dict)
    columns = ", ".join(Visit._fields)
    for visit in unit.records(Visit, f"SELECT {columns} FROM visit WHERE session_id IN (?*)", session_ids):
        by_session[visit.session_id][visit.number] = visit
    return by_session


class VisitStep(NamedTuple):
    session_id: int
    visit: int
    step: int
    imported: int


def steps(unit: Unit, session_ids: Collection[int]) -> list[VisitStep]:
    """The step of every decision of these sessions."""
    chosen = "SELECT session_id, visit, step, imported FROM decision WHERE session_id IN (?*)"
    return unit.records(VisitStep, chosen, session_ids)
