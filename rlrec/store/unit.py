"""A unit of work: one transaction, its clock, and the few ways in which the query modules speak to the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

Row = tuple[Any, ...]


class Unit:
    """One transaction. `now` is its time, microseconds since 1970 UTC."""

    def __init__(self, connection: sa.Connection, *, now: int) -> None:
        self.connection = connection
        self.now = now

    @property
    def postgres(self) -> bool:
        return self.connection.dialect.name == "postgresql"

    def rows(self, statement: sa.Executable, parameters: Mapping[str, Any] | None = None) -> list[Row]:
        return [tuple(row) for row in self.connection.execute(statement, parameters or {})]

    def row(self, statement: sa.Executable, parameters: Mapping[str, Any] | None = None) -> Row | None:
        found = self.connection.execute(statement, parameters or {}).first()
        return None if found is None else tuple(found)

    def value(self, statement: sa.Executable, parameters: Mapping[str, Any] | None = None) -> Any:
        return self.connection.scalar(statement, parameters or {})

    def run(self, statement: sa.Executable, parameters: Mapping[str, Any] | None = None) -> int:
        return self.connection.execute(statement, parameters or {}).rowcount

    def insert(self, table: sa.Table, columns: Sequence[str], rows: Iterable[Row], *, known: str = "") -> None:
        """Rows into a table by the driver's own bulk call. `known` is what follows ON CONFLICT, or nothing."""
        values = list(rows)
        if not values:
            return
        mark = "%s" if self.postgres else "?"
        names = ", ".join(f'"{name}"' for name in columns)
        marks = ", ".join([mark] * len(columns))
        conflict = f" ON CONFLICT {known}" if known else ""
        self.connection.exec_driver_sql(f'INSERT INTO "{table.name}" ({names}) VALUES ({marks}){conflict}', values)

    def add(self, table: sa.Table, **values: Any) -> int:
        """One row into a table with an `id`: that id."""
        return int(self.connection.scalar(sa.insert(table).values(**values).returning(table.c.id)))

    def many(self, statement: sa.Select[Any], column: sa.ColumnElement[Any], values: Iterable[Any]) -> list[Row]:
        """Rows of `statement` whose `column` is among `values`, asked in portions that any database takes."""
        wanted = list(values)
        portions = (wanted[i : i + 10_000] for i in range(0, len(wanted), 10_000))
        return [row for portion in portions for row in self.rows(statement.where(column.in_(portion)))]
