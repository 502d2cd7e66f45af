"""The layouts of logs, one file each, loaded when it is asked for: which of them are read, and which are written."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rlrec.app.imports.layouts.base import Layout

READERS = {
    "obd": "rlrec.app.imports.layouts.obd:Obd",
    "jsonl": "rlrec.app.imports.layouts.jsonl:Jsonl",
    "dsjson": "rlrec.app.imports.layouts.dsjson:DsJson",
    "parquet": "rlrec.app.imports.layouts.parquet:Parquet",
    "csv": "rlrec.app.imports.layouts.csv_map:CsvMap",
}
WRITERS = {
    "jsonl": "rlrec.app.imports.layouts.writers:JsonLines",
    "csv": "rlrec.app.imports.layouts.writers:CsvWriter",
    "dsjson": "rlrec.app.imports.layouts.writers:DsJsonWriter",
    "parquet": "rlrec.app.imports.parquet_export:export",
}
FOLDERS = ("parquet",)  # layouts that are written into a folder, by functions of the store and the folder


def reader(name: str) -> type[Layout]:
    """The class that reads a layout."""
    return cast("type[Layout]", resolve_name(READERS[name]))


def writer(name: str) -> Any:
    """The class that writes a layout of one file; the function that appends the log of a store to a folder."""
    return resolve_name(WRITERS[name])
