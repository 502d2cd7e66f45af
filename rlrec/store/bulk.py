"""Rows of the log as arrays, past SQLAlchemy's row objects: one place for what a database does fastest."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from rlrec.store.unit import Row, Unit

Columns = dict[str, npt.NDArray[Any]]


def fetch(unit: Unit, statement: sa.Select[Any]) -> list[Row]:
    """All rows of a statement as the driver gives them."""
    compiled = statement.compile(unit.connection.engine, compile_kwargs={"render_postcompile": True})
    names = compiled.positiontup
    values: Any = compiled.params if names is None else [compiled.params[name] for name in names]
    raw: Any = unit.connection.connection
    cursor = raw.cursor()
    try:
        cursor.execute(str(compiled), values)
        rows: list[Row] = cursor.fetchall()
        return rows
    finally:
        cursor.close()


def columns(unit: Unit, statement: sa.Select[Any], types: dict[str, type]) -> Columns:
    """One array a column, named and typed by `types` in the statement's order; a missing number is NaN."""
    rows = fetch(unit, statement)
    if not rows:
        return {name: np.empty(0, kind) for name, kind in types.items()}
    return {
        name: np.array(values, kind)
        for (name, kind), values in zip(types.items(), zip(*rows, strict=True), strict=True)
    }
