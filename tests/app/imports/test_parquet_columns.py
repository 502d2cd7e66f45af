"""Columns of Parquet files as arrays: what stands for null, and nothing of a file that stays when it has been read."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlrec.app.imports import parquet_files
from rlrec.app.imports.parquet_columns import FileReader
from rlrec.app.imports.parquet_files import schemas

ROWS = 12


def write(folder: Path, rows: int) -> str:
    """A file of visits, every third of which has no user."""
    values = {
        "session_id": list(range(rows)), "user_id": [None if row % 3 == 0 else row for row in range(rows)],
        "user": [None if row % 3 == 0 else f"u{row}" for row in range(rows)], "started_at": [7] * rows,
    }  # fmt: skip
    schema = schemas(pa)["visits"]
    arrays = [pa.array(values.get(field.name, [None] * rows), field.type) for field in schema]
    path = "visits/day=2026-01-01/bucket=03/part-000001.parquet"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), folder / path)
    return path


@pytest.mark.parametrize("rows", [0, ROWS])
def test_a_default_stands_for_null(tmp_path: Path, rows: int) -> None:
    path = write(tmp_path, rows)
    columns = FileReader(str(tmp_path)).numbers(path, ["user_id", "session_id", "ended_at", "started_at"])
    number = np.arange(rows)
    assert columns["user_id"].tolist() == np.where(number % 3 == 0, -1, number).tolist()
    assert columns["session_id"].tolist() == number.tolist()
    assert (columns["ended_at"].tolist(), columns["started_at"].tolist()) == ([-1] * rows, [7] * rows)


def test_values_come_by_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    assert FileReader(str(tmp_path)).values(path, "user", np.array([4, 0, 1])) == ["u4", None, "u1"]


def test_nothing_of_a_file_waits_for_the_search_for_cycles(tmp_path: Path) -> None:
    """A footer takes some 80 KB: where it waited, a log of 20 million decisions took two gigabytes."""
    path = write(tmp_path, ROWS)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            parquet_files.table(pa, str(tmp_path), path, ["session_id"])
            parquet_files.filled(str(tmp_path), path)
        waiting = {type(each).__name__ for each in gc.get_objects()}
    finally:
        gc.enable()
    assert not waiting & {"FileMetaData", "ParquetSchema", "ParquetFile"}
