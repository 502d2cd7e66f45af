"""Tables for people, before they are laid out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class View(NamedTuple):
    """Lines of text, rows of raw values under their headers, and notes to these."""

    headers: Sequence[str]
    rows: Iterable[Sequence[Any]]
    title: Sequence[str] = ()
    notes: Sequence[str] = ()


def cells(record: Mapping[str, Any], columns: Iterable[str]) -> list[Any]:
    """The values that a record has in these columns."""
    return [record[column] for column in columns]
