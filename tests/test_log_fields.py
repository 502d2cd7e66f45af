"""Every list of the fields of the log agrees with their table, `rlrec/log_fields.py`."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rlrec import records
from rlrec.api import _log_schema
from rlrec.app.imports import columns, parquet_files
from rlrec.app.imports.layouts import checks, csv_cells, jsonl, writers
from rlrec.app.serving import decision_json
from rlrec.log_fields import (
    DECISION,
    EVENT,
    FINITE,
    FLAG,
    LOG_PROBABILITY,
    PROBABILITY,
    SHARE,
    SLOT,
    STATED_FIELDS,
    LogField,
)
from rlrec.store.database import tables
from rlrec.store.log import decisions, reader

PAGE = Path(__file__).resolve().parents[1] / "rlrec" / "help" / "schema.md"
ALL = [("decision", DECISION), ("slot", SLOT), ("event", EVENT)]


def names(listed: Sequence[LogField]) -> list[str]:
    return [field.name for field in listed]


def keys(listed: Sequence[LogField]) -> set[str]:
    return {field.key for field in listed if field.key}


def array_names(listed: Sequence[LogField]) -> set[str]:
    return {"decision_id" if field.name == "id" else field.name for field in listed if field.is_read}


@pytest.mark.parametrize(("table", "listed"), ALL)
def test_a_table_has_a_column_for_each_field(table: str, listed: Sequence[LogField]) -> None:
    columns = tables.metadata.tables[table].columns
    assert [(column.name, column.nullable) for column in columns] == [(field.name, field.optional) for field in listed]
    kinds = [int if field.kind is bool else field.kind for field in listed]
    assert [column.type.python_type for column in columns] == kinds
    referred = [{key.column.table.name for key in column.foreign_keys} for column in columns]
    assert [field.name for field, some in zip(listed, referred, strict=True) if field.table not in {*some, None}] == []


@pytest.mark.parametrize(("table", "listed"), ALL)
def test_a_table_has_a_constraint_for_each_check(table: str, listed: Sequence[LogField], sqlite_db: str) -> None:
    with closing(sqlite3.connect(sqlite_db)) as connection:
        (text,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", [table]).fetchone()
    checks = [(f"ck_{table}_{field.name}_{field.check.word}", field) for field in listed if field.check is not None]
    assert [
        name for name, field in checks if f"CONSTRAINT {name} CHECK ({field.check.test.format(field.name)})" not in text
    ] == []
    assert {*re.findall(r"ck_\w+", text)} - {"ck_decision_live_complete"} == {name for name, _ in checks}


def test_records_have_the_fields_in_order_of_the_columns() -> None:
    assert [*decisions.DECISION_COLUMNS] == names([field for field in DECISION if not field.is_stated])
    assert [*decisions.SLOT_COLUMNS] == names(SLOT)
    assert {*records.Event._fields} == {*names(EVENT)}


def test_the_reader_has_an_array_for_each_field_that_it_reads() -> None:
    beside = {*reader.PER_SESSION, "route_id", "subsampled", "recorded"}
    assert reader.COLUMNS.keys() - beside == array_names(DECISION) | array_names(SLOT)
    assert reader.EVENTS.keys() - {"age_us"} == array_names(EVENT)


def test_an_array_has_a_value_for_what_is_missing() -> None:
    """Of real numbers only a probability may have NaN there: the reader takes what is above 1 for a missing one."""
    probabilities = (PROBABILITY, SHARE, LOG_PROBABILITY)
    optional = [field for field in (*DECISION, *SLOT, *EVENT) if field.is_read and field.optional]
    assert [field.name for field in optional if field.absent is None] == []
    reals = [field for field in optional if field.kind is float and field.check not in probabilities]
    assert [field.name for field in reals] == ["score"]


def test_a_line_is_checked_as_its_column_is() -> None:
    by_type = {None, FLAG, FINITE}  # what a decoder refuses
    stated = [field for field in (*DECISION, *SLOT, *EVENT) if field.key and field.kind is not bytes]
    assert [field.name for field in stated if field.check not in by_type | checks.CHECKS.keys()] == []


def test_files_of_parquet_have_all_fields() -> None:
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    schemas = parquet_files.schemas(pa)
    assert {*names(DECISION[1:]), "decision_id"} <= {*schemas["decisions"].names}
    slots = schemas["decisions"].field("slot").type.value_type
    assert {slots.field(index).name for index in range(slots.num_fields)} == {*names(SLOT[1:]), "arm"}
    assert schemas["events"].names == [*names(EVENT), "bucket"]


def test_lines_of_json_have_the_keys() -> None:
    line = {*msgspec.json.schema(jsonl.LINE)["$defs"]["DecisionLine"]["properties"]}
    assert keys(DECISION) <= line
    assert keys(SLOT) <= {*jsonl.SlateEntry.__struct_fields__}
    assert keys(EVENT) == {*jsonl.EventEntry.__struct_fields__} == {*decision_json.EventJson.__annotations__}


def test_what_layouts_decode_to_has_the_fields_of_a_line() -> None:
    assert {*names(STATED_FIELDS)} <= {*columns.LogColumns.__dataclass_fields__}
    of_slots = {"arm" if field.name == "arm_id" else field.name for field in SLOT[1:]}
    assert {*jsonl.LineSlot._fields} - {"id"} == of_slots
    assert {*columns.LoggedSlots.__dataclass_fields__} == {"row", *jsonl.LineSlot._fields}
    assert {*columns.LoggedEvents.__dataclass_fields__} == {"row", *jsonl.LineEvent._fields}
    assert {*jsonl.LineEvent._fields} == keys(EVENT)


def test_rows_of_csv_have_the_cells() -> None:
    other_names = {"decision_id": "decision", "k": "size"}
    cells = {other_names.get(field.key, field.key) for field in DECISION if field.in_csv}
    assert {*writers.DECISION_COLUMNS} - {"user"} == cells
    assert {*writers.SLOT_COLUMNS} - {"reward", "events"} == {field.key for field in SLOT if field.in_csv}
    assert {*csv_cells.SLOT_PARSERS} == {field.key for field in SLOT if field.in_csv}
    assert {*csv_cells.DECISION_PARSERS} == {*writers.DECISION_COLUMNS} - {"decision", "context"}


def test_a_notebook_has_the_types_of_the_fields() -> None:
    pa = pytest.importorskip("pyarrow")
    schema = _log_schema(pa)
    kinds = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}

    def wrong(listed: Sequence[LogField], types: Mapping[str, Any]) -> list[str]:
        """The fields with another type than that of their column. Ids of rows stand for keys, and times are times."""
        plain = [field for field in listed if field.key and field.table is None and field.name != "at"]
        return [field.name for field in plain if types[field.key] != kinds[field.kind]]

    assert wrong(DECISION, dict(zip(schema.names, schema.types, strict=True))) == []
    for name, listed in (("slate", SLOT), ("events", EVENT)):
        inner = schema.field(name).type.value_type
        types = {inner.field(index).name: inner.field(index).type for index in range(inner.num_fields)}
        assert types.keys() == keys(listed)
        assert wrong(listed, types) == []


def test_the_page_has_the_columns() -> None:
    rows = [
        f"| `{table}.{field.name}` | {f'`{field.key}`' if field.key else ''} | {field.meaning} |"
        for table, listed in ALL
        for field in listed
    ]
    start, rule, _ = PAGE.read_text(encoding="utf-8").rpartition("| --- | --- | --- |\n")
    table = "\n".join(rows) + "\n"
    if os.environ.get("PAGES") == "write":
        PAGE.write_text(start + rule + table, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == start + rule + table
