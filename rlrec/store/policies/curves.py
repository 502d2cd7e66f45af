"""Queries here store curves of examination: how likely a user looks at each position of a slate. A curve has a name and
a number, and never changes."""

from __future__ import annotations

from math import log
from typing import Any, NamedTuple

from rlrec.store.database.unit import Row, Unit, parse


class Curve(NamedTuple):
    """This record is a stored curve of examination. positions: a dictionary for each position, beginning with position
    1, with the examination relative to position 1 (`examination`), the bounds of this estimate, and the rewards and
    slots from which it was computed; report: how the curve was estimated."""

    id: int
    name: str
    number: int
    created_at: int
    reward_id: int
    model: str
    method: str
    options: dict[str, Any]
    positions: list[dict[str, Any]]
    report: dict[str, Any]

    @property
    def reference(self) -> str:
        """Return the reference NAME@N, which always stands for this curve."""
        return f"{self.name}@{self.number}"

    @property
    def examination(self) -> tuple[float, ...]:
        """Return the examination of each position relative to position 1, beginning with position 1."""
        return tuple(float(position["examination"]) for position in self.positions)

    @property
    def errors(self) -> tuple[float, ...]:
        """Return, for each position, half the width of a 95 % interval for the logarithm of the examination. The value
        is 0 if the method gives no interval."""
        upper_limits = (position.get("upper") for position in self.positions)
        pairs = zip(upper_limits, self.examination, strict=True)
        return tuple(0.0 if upper is None else log(upper / value) for upper, value in pairs)


_COLUMNS = ", ".join(Curve._fields)


def all_curves(unit: Unit) -> list[Curve]:
    """Return all curves, in order of name and number."""
    return [_read_curve(row) for row in unit.ask(f"SELECT {_COLUMNS} FROM position_curve ORDER BY name, number")]


def by_name(unit: Unit, reference: str) -> Curve | None:
    """Return the curve with the reference NAME@N, or the newest curve with the name NAME. Return None where there is no
    such curve."""
    name, _, number = reference.rpartition("@")
    if name and number.isascii() and number.isdigit() and len(number) < 18:
        row = unit.ask_row(f"SELECT {_COLUMNS} FROM position_curve WHERE name = ? AND number = ?", name, int(number))
    else:
        condition = "WHERE name = ? ORDER BY number DESC LIMIT 1"
        row = unit.ask_row(f"SELECT {_COLUMNS} FROM position_curve {condition}", reference)
    return None if row is None else _read_curve(row)


def add(unit: Unit, **columns: Any) -> int:
    """Store a curve and return its id. columns: the values of the columns of the table `position_curve`, in which
    `options`, `positions` and `report` are JSON."""
    return unit.add("position_curve", created_at=unit.now, **columns)


def _read_curve(row: Row) -> Curve:
    *fields, options, positions, report = row
    source = f"of position curve {row[1]}@{row[2]}"
    values = parse(options, f"options {source}"), parse(positions, f"positions {source}", list)
    return Curve._make([*fields, *values, parse(report, f"report {source}")])
