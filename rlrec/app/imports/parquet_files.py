"""The log as a folder of Parquet files, which Spark and DuckDB read as they are: what is new is appended, and a store
can be made of it again.

DIR/decisions/day=YYYY-MM-DD/bucket=00..63/part-N.parquet has a row for each decision, with its slots as a list; events
and visits lie beside decisions. A bucket has all decisions of a person (the user, else the session), on all days. A
file never changes: manifest.json, which is replaced last, names those that count. Of a visit that went on, the last row
counts."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import Any, BinaryIO, cast

from rlrec import drafts
from rlrec.errors import CheckFailed, InputError, RlrecError
from rlrec.store import Unit
from rlrec.store.database import tables as t
from rlrec.store.log import log_tables, settings
from rlrec.store.upkeep import removals

MANIFEST = "manifest.json"
FORMAT = 1
DATASETS = ("decisions", "events", "visits")
SESSION = ("session", "user_id", "split", "created_at", "session_digest", "user", "user_digest")
READABLE = ("session", "user", "policy", "version", "context", "eligible", "eligible_arms", "arm_features")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The files of a folder that count, by dataset, and the store that they are of. forgotten: how many times it had
    forgotten a user."""

    store: str
    forgotten: int
    files: Mapping[str, Sequence[str]]
    decisions: int = 0

    @classmethod
    def read(cls, folder: str) -> Manifest | None:
        """The manifest of a folder; None where it has none. Raises RlrecError where it cannot be read."""
        try:
            with opened_file(folder, MANIFEST) as file:
                stored = json.load(file)
            _check_entries(stored, folder)
            return cls(**{name: stored[name] for name in ("store", "forgotten", "files", "decisions")})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise RlrecError(f"cannot read {folder}/{MANIFEST}: {error}", hint="export to another folder") from None

    def check(self, unit: Unit, folder: str) -> None:
        """Raises CheckFailed for the log of another store, and where a user was forgotten who may be in the folder."""
        if self.store != mark(unit):
            raise CheckFailed(f"{folder} holds the log of another store", hint="give that store, or another folder")
        if self.forgotten != removals.count_forgotten(unit):
            hint = "remove it, and export the log to another folder"
            raise CheckFailed(f"{folder} may hold a user whom the store has forgotten since", hint=hint)

    def write(self, folder: str) -> None:
        """Replace the manifest of a folder at once. (A remote store does that by itself.)"""
        text = json.dumps({"format": FORMAT, **vars(self)})
        if "://" in folder:
            with remote_folder(folder) as (files, root):
                files.pipe_file(f"{root}/{MANIFEST}", text.encode())
            return
        with drafts.complete(os.path.join(folder, MANIFEST)) as file:
            file.write(text.encode())


def _check_entries(stored: Any, folder: str) -> None:
    """Raises ValueError unless a manifest has the entries that an export writes, and names no other files."""
    for name, kind in (("format", int), ("store", str), ("forgotten", int), ("files", dict), ("decisions", int)):
        entry = stored.get(name) if isinstance(stored, dict) else None
        if type(entry) is not kind:
            raise ValueError(f"{name} is {json.dumps(entry)[:80]}")
        if name == "format" and entry != FORMAT:
            raise CheckFailed(f"{folder} was written by a newer rlrec", hint="install that one")
    for name in DATASETS:
        paths = stored["files"].get(name)
        if not isinstance(paths, list):
            raise ValueError(f"files.{name} is {json.dumps(paths)[:80]}")
        pattern = re.compile(rf"{name}/day=\d{{4}}-\d\d-\d\d/bucket=\d\d/part-\d{{6,18}}\.parquet", re.ASCII)
        for path, times in Counter(map(str, paths)).items():
            if times > 1 or not pattern.fullmatch(path):
                raise ValueError(f"files.{name} has {path[:80]!r}, which no export writes there")


def mark(unit: Unit) -> str:
    """A text that names the store that a log was written by."""
    return blake2b(settings.get(unit).salt.encode(), digest_size=8).hexdigest()


def opened_file(folder: str, path: str) -> BinaryIO:
    """A file of a folder, which may be a URL that fsspec knows. Raises OSError where it cannot be read."""
    if "://" not in folder:
        return open(os.path.join(folder, path), "rb")
    with remote_folder(folder) as (files, root):
        return cast(BinaryIO, files.open(f"{root}/{path}", "rb"))


@contextmanager
def remote_folder(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL that fsspec knows, and the path there. What fails inside raises OSError."""
    try:
        import fsspec
    except ImportError:
        raise InputError(f"{url} needs fsspec", hint="pip install fsspec") from None
    try:
        files, root = fsspec.core.url_to_fs(url)
        yield files, root.rstrip("/")
    except (OSError, RlrecError):
        raise
    except (ImportError, ValueError) as error:  # a protocol whose package is not there, or that is none
        hint = "s3:// needs s3fs, gs:// gcsfs, abfs:// adlfs, https:// aiohttp: pip install PACKAGE"
        raise InputError(f"cannot open {url}: {' '.join(str(error).split())[:200]}", hint=hint) from None
    except Exception as error:  # each protocol has its own, such as for credentials
        raise OSError(f"{type(error).__name__}: {error}") from error


def load_pyarrow() -> Any:
    """The module pyarrow. Raises InputError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError("Parquet needs pyarrow", hint="pip install 'rlrec[parquet]'") from None
    return pyarrow


# -- the columns --


def _fields(pa: Any, table: Any, *left_out: str) -> list[Any]:
    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string(), bytes: pa.binary()}
    columns = (column for column in table.columns if column.name not in left_out)
    return [pa.field(column.name, kinds[column.type.python_type]) for column in columns]


@cache
def schemas(pa: Any) -> dict[str, Any]:
    """The columns of each dataset, in order."""
    time, text = pa.timestamp("us", "UTC"), pa.string()
    decision = [
        pa.field("decision_id", pa.int64()),
        *(field.with_type(time) if field.name == "at" else field for field in _fields(pa, t.decision, "id")),
    ]
    slots = [*_fields(pa, t.slot, "decision_id"), pa.field("arm", text)]
    children = [
        pa.field(table.name, pa.list_(pa.struct(slots if table is t.slot else _fields(pa, table, "decision_id"))))
        for table in log_tables.CHILDREN
    ]
    kinds = {"version": pa.int64(), "eligible": pa.list_(text), "eligible_arms": pa.list_(pa.int64())}
    readable = [pa.field(name, kinds.get(name, text)) for name in READABLE]
    session = [pa.field(name, text if name in ("session", "user") else pa.int64()) for name in SESSION]
    return {
        "decisions": pa.schema([*decision, *children, *readable]),
        "events": pa.schema(_fields(pa, t.event)),
        "visits": pa.schema([*_fields(pa, t.visit), *session]),
    }


def _chunks(footer: Any, groups: int | None = None) -> Iterator[Any]:
    """The columns of so many groups of rows, or of all, as a footer describes them. (A footer and its schema hold each
    other: the memory of both, much for a file, would stay until somebody looks for cycles.)"""
    for index in range(footer.num_row_groups)[:groups]:
        group = footer.row_group(index)
        yield from map(group.column, range(group.num_columns))


def _names(pa: Any, schema: Any) -> set[str]:
    """The names of all columns, and NAME.FIELD for the fields of rows that lie in a column of lists."""
    lists = [field for field in schema if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type)]
    return {*schema.names, *(f"{field.name}.{inner.name}" for field in lists for inner in field.type.value_type)}


def filled(folder: str, path: str) -> set[str]:
    """The columns of lists of a file that hold some row, by its statistics."""
    pa, full_path = load_pyarrow(), os.path.join(folder, path)
    with _named(pa, full_path), opened_file(folder, path) as opened:
        footer = pa.parquet.ParquetFile(opened).metadata
        lists = [chunk for chunk in _chunks(footer) if "." in chunk.path_in_schema]
        filled_lists = [chunk for chunk in lists if chunk.statistics is None or chunk.statistics.num_values]
        return {chunk.path_in_schema.partition(".")[0] for chunk in filled_lists}


def table(pa: Any, folder: str, path: str, columns: Sequence[str]) -> Any:
    """Columns of a file; NAME.FIELD is a field of the rows that lie in a column of lists. Raises RlrecError where it is
    damaged, gone, or lacks one of them."""
    full_path = os.path.join(folder, path)
    with _named(pa, full_path), opened_file(folder, path) as opened:
        file = pa.parquet.ParquetFile(opened)
        stored = _names(pa, file.schema_arrow)
        expected = schemas(pa).get(path.partition("/")[0], ())
        for name in (*(field.name for field in expected), *columns):
            if name not in stored:
                raise RlrecError(f"{full_path} has no column {name}", hint="export the log to another folder")
        nested = {name for name in columns if "." in name}
        paths = [chunk.path_in_schema for chunk in _chunks(file.metadata, 1)] if nested else ()
        named = {path: f"{path.partition('.')[0]}.{path.rpartition('.')[2]}" for path in paths}  # as NAME.FIELD
        fields = [path for path in paths if named[path] in nested] or {name.partition(".")[0] for name in nested}
        return file.read(columns=[*(name for name in columns if "." not in name), *fields], use_threads=False)


@contextmanager
def _named(pa: Any, full_path: str) -> Iterator[None]:
    """Names the file that cannot be read inside it."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        reason = " ".join(str(error).split())[:200]
        raise RlrecError(f"cannot read {full_path}: {reason}", hint="export the log to another folder") from error
