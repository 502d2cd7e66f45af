"""Rows that are gone or cannot be read, since somebody changed the database by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeVar

from rlrec.errors import RlrecError

K = TypeVar("K")
V = TypeVar("V")


def damaged(what: str) -> RlrecError:
    return RlrecError(f"the store is damaged: {what}", hint="`rlrec doctor` finds what else is; go back to a backup")


class StoredRows(dict[K, V]):
    """Rows of a table by id; one that is asked for and gone raises RlrecError."""

    def __init__(self, table: str, rows: Iterable[tuple[K, V]] = ()) -> None:
        super().__init__(rows)
        self.table = table

    def __missing__(self, key: K) -> V:
        raise damaged(f"row {key} of table {self.table} is gone")


def parse(text: str, where: str, kind: type = dict) -> Any:
    """The JSON of a column. Raises RlrecError where it is none, or not of this kind; where: table, row and column."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise damaged(f"{where} is {text[:40]!r}")
    return value
