"""Logs from elsewhere into the tables, by what each database takes fastest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from rlrec.store import tables as t
from rlrec.store.sessions import Visit
from rlrec.store.unit import Row, Unit

PORTION = 10_000  # values asked for at once
VISIT = ("session_id", "number", "started_at", "last_at", "steps", "recent", "ended_at")


def write(unit: Unit, table: sa.Table, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Rows into a table: executemany on SQLite, COPY on PostgreSQL."""
    names = ", ".join(f'"{name}"' for name in columns)
    raw: Any = unit.connection.connection
    if not unit.postgres:
        marks = ", ".join("?" * len(columns))
        raw.cursor().executemany(f'INSERT INTO "{table.name}" ({names}) VALUES ({marks})', rows)
        return
    statement = f'COPY "{table.name}" ({names}) FROM STDIN'
    cursor = raw.cursor()
    try:
        with cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
    except cursor.connection.Error as error:
        raise exc.DBAPIError(statement, None, error) from error


def known(unit: Unit, table: sa.Table, column: str, values: Collection[Any], *, where: str = "true") -> set[Any]:
    """Of the values given, those that the column has, among the rows `where` holds."""
    if not unit.postgres:
        return {value for portion in _portions(values) for value in _among(unit, table, column, portion, where)}
    statement = f'SELECT "{column}" FROM "{table.name}" WHERE {where} AND "{column}" = ANY(%s)'
    found = unit.connection.exec_driver_sql(statement, (list(values),))
    return {bytes(row[0]) if isinstance(row[0], memoryview) else row[0] for row in found}


def _portions(values: Collection[Any]) -> Iterable[list[Any]]:
    rest = iter(values)
    while portion := list(islice(rest, PORTION)):
        yield portion


def _among(unit: Unit, table: sa.Table, column: str, portion: list[Any], where: str) -> Iterable[Any]:
    marks = ",".join("?" * len(portion))
    statement = f'SELECT "{column}" FROM "{table.name}" WHERE {where} AND "{column}" IN ({marks})'
    raw: Any = unit.connection.connection
    return (row[0] for row in raw.cursor().execute(statement, portion))


def known_lines(unit: Unit, policy_id: int, digests: Collection[bytes]) -> set[bytes]:
    """Of these identities of lines, those that the policy has taken in before."""
    return known(unit, t.import_line, "digest", digests, where=f"policy_id = {policy_id:d}")


def reserve(unit: Unit, table: sa.Table, count: int) -> range | list[int]:
    """`count` ids, ascending, that no one else will use. SQLite: the write lock is ours; PostgreSQL: a sequence."""
    if unit.postgres:
        series = f"SELECT nextval(pg_get_serial_sequence('{table.name}', 'id')) FROM generate_series(1, {count:d})"
        return sorted(int(row[0]) for row in unit.connection.exec_driver_sql(series))
    first = int(unit.value(sa.select(sa.func.coalesce(sa.func.max(table.c.id), 0)))) + 1
    return range(first, first + count)


def visits(unit: Unit, session_ids: Collection[int]) -> dict[int, dict[int, Visit]]:
    """All visits of these sessions, by session and number."""
    found: dict[int, dict[int, Visit]] = defaultdict(dict)
    for row in unit.many(sa.select(*(t.visit.c[name] for name in VISIT)), t.visit.c.session_id, session_ids):
        found[row[0]][row[1]] = Visit(**dict(zip(VISIT, row, strict=True)))
    return found


def steps(unit: Unit, session_ids: Collection[int]) -> list[Row]:
    """(session_id, visit, step, imported) of every decision of these sessions."""
    decision = t.decision.c
    columns = sa.select(decision.session_id, decision.visit, decision.step, decision.imported)
    return unit.many(columns, decision.session_id, session_ids)
