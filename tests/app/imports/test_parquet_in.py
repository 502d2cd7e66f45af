"""Tables in Parquet are taken in by the map that a CSV of the same rows has."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.app.logs import summary
from tests.conftest import CommandResult, Run

MAP = {
    "session": "visit", "at": "time", "arm": "item", "propensity": "p", "events": {"click": "clicked"},
    "eligible": "items", "context": ["hour", "device"],
}  # fmt: skip
START = datetime(2026, 1, 31, 9, tzinfo=UTC)


pytestmark = pytest.mark.usefixtures("folder")


def table(number: int = 3, **changes: Any) -> pa.Table:
    rows = range(number)
    columns = {
        "visit": [f"v{n}" for n in rows], "time": [START + timedelta(seconds=n) for n in rows],
        "item": pa.array(["tea" if n % 2 else 'so-called "milk"' for n in rows]).dictionary_encode(),
        "p": [0.25 + n % 2 / 2 for n in rows], "clicked": [n % 3 == 0 for n in rows],
        "items": [["tea", 'so-called "milk"']] * number, "hour": [9] * number,
        "device": ["web", None, "app"] * (number // 3),
    }  # fmt: skip
    return pa.table(columns | changes)


def imported(run: Run, rows: pa.Table, **changes: Any) -> CommandResult:
    parquet.write_table(rows, "log.parquet")
    Path("map.json").write_text(json.dumps({**MAP, **changes}))
    return run("import-log", "log.parquet", "--layout", "parquet", "--map", "map.json", "--policy", "shop", "--json")


def test_a_row_becomes_what_the_map_says(run: Run) -> None:
    assert imported(run, table()).json == summary(accepted=3)
    first, second, _ = run("export-log", "-").lines
    assert (first["at"], first["slate"][0]["arm"]) == ("2026-01-31T09:00:00.000000Z", 'so-called "milk"')
    assert (first["context"], second["context"]) == ({"device": "web", "hour": 9}, {"hour": 9})
    assert ([event["kind"] for event in first["events"]], second["events"]) == (["click"], [])
    assert imported(run, table()).json == summary(duplicates=3)


def test_a_file_that_is_cut_or_lacks_a_column_is_refuses(run_sqlite: Run) -> None:
    assert "no column 'prob'" in imported(run_sqlite, table(), propensity="prob").error["error"]
    assert "log.parquet line 2, field p" in imported(run_sqlite, table(p=[0.0, 0.5, 0.5])).error["error"]
    imported(run_sqlite, table(300))
    content = Path("log.parquet").read_bytes()
    Path("log.parquet").write_bytes(content[: len(content) // 2])
    result = run_sqlite("import-log", "log.parquet", "--layout", "parquet", "--map", "map.json")
    assert (result.exit_code, "incomplete Parquet file" in result.stderr, len(result.stderr.splitlines())) == (
        2,
        True,
        1,
    )
