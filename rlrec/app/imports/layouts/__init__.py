"""The layouts of logs, one file each, loaded when it is asked for: which of them are read, and which are written."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlrec.app.imports.layouts.base import Layout
    from rlrec.app.imports.layouts.writing import LayoutWriter

READERS = {
    "obd": "rlrec.app.imports.layouts.obd:Obd",
    "jsonl": "rlrec.app.imports.layouts.jsonl:Jsonl",
    "dsjson": "rlrec.app.imports.layouts.dsjson:DsJson",
    "parquet": "rlrec.app.imports.layouts.parquet:Parquet",
    "csv": "rlrec.app.imports.layouts.csv_map:CsvMap",
}
WRITERS = {
    "jsonl": "rlrec.app.imports.layouts.writing:JsonLines",
    "csv": "rlrec.app.imports.layouts.csv_writer:CsvWriter",
    "dsjson": "rlrec.app.imports.layouts.dsjson_writer:DsJsonWriter",
    "parquet": "rlrec.app.imports.parquet_export:export",
}
FOLDERS = ("parquet",)  # layouts that are written into a folder, by functions of the store and the folder


def reader(name: str) -> type[Layout]:
    """The class that reads a layout."""
    return _load(READERS[name])


def writer(name: str) -> type[LayoutWriter]:
    """The class that writes a layout of one file."""
    return _load(WRITERS[name])


def folder_writer(name: str) -> Callable[..., Any]:
    """The function that appends the log of a store to a folder."""
    return _load(WRITERS[name])


def _load(path: str) -> Any:
    module, attribute = path.split(":")
    return getattr(import_module(module), attribute)
