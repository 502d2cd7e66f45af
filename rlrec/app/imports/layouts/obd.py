"""This module reads the Open Bandit Dataset, a CSV with a row for each slot: an item at one position of a slate, with
the marginal propensity of this item. Each row becomes a session by itself, since the file has no key of sessions.

Source: Saito, Aihara, Matsutani, Narita (2020), "Open Bandit Dataset and Pipeline", arXiv 2008.07146."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from json.encoder import encode_basestring
from typing import Any

from rlrec.app.imports.columns import LogColumns
from rlrec.app.imports.layouts import csv_cells
from rlrec.app.imports.layouts.base import Source
from rlrec.app.imports.layouts.csv_map import ColumnMap, CsvMap
from rlrec.app.inputs import canonical
from rlrec.errors import InputError
from rlrec.store.database.loading import Same

MAP = {
    "at": "timestamp", "arm": "item_id", "position": "position", "marginal": "propensity_score",
    "events": {"click": "click"},
}  # fmt: skip
FEATURE, AFFINITY = "user_feature_", "user-item_affinity_"
CLICKS = {"0": None, "1": 1.0, "0.0": None, "1.0": 1.0}


class Obd(CsvMap):
    """This layout reads the columns timestamp, item_id, position, click, propensity_score, user_feature_*,
    user-item_affinity_*."""

    wants_policy = True
    reads, has_pages = frozenset(), False
    slot_parsers = csv_cells.SLOT_PARSERS | {"marginal": csv_cells.finite_number}

    def __init__(self, source: Source, *, policy: str | None, now: int, options: Mapping[str, Any]) -> None:
        super().__init__(source, policy=policy, now=now, options={"map": MAP})

    def map_of(self, names: Sequence[str]) -> ColumnMap:
        self.arms = {name.removeprefix(AFFINITY) for name in names if name.startswith(AFFINITY)}
        return self.map._replace(context=sorted(name for name in names if name.startswith((FEATURE, AFFINITY))))

    @staticmethod
    def count(cell: str) -> float | None:
        if cell not in CLICKS:
            raise InputError(f"{cell[:40]!r} is no click", hint="0 or 1")
        return CLICKS[cell]

    @staticmethod
    def piece(name: str, cell: str) -> str:
        """Return the JSON member, such as `"user_feature_0":"a"`, that a cell adds to a context. A user feature becomes
        a text, and an affinity a number. The result is "" for an affinity of 0."""
        if name.startswith(FEATURE):
            return f"{encode_basestring(name)}:{encode_basestring(cell)}"
        try:
            value = csv_cells.finite_number(cell)
        except InputError as error:
            error.field = name
            raise
        return f"{encode_basestring(name)}:{canonical.number(value)}" if value else ""

    def complete(self, rows: LogColumns) -> LogColumns:
        return replace(super().complete(rows), size=Same(self.max_length))
