"""The log as a folder of Parquet files, which Spark and DuckDB read as they are. New rows are appended, and a store can
be made from it again.

DIR/decisions/share=II-of-NN/part-N.parquet has a row for each decision, with its slots as a list; events and visits are
next to decisions. A share has all decisions of some persons (users, else sessions), by the column `bucket`. A file
never changes: manifest.json, which is replaced last, names the valid files. A visit that went on has several rows, of
which the one with the highest `part`, the number of its export, is valid."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import Any, BinaryIO, cast

from rlrec import drafts
from rlrec.errors import CheckFailed, RlrecError
from rlrec.store import Unit
from rlrec.store.database import tables as t
from rlrec.store.log import log_tables, settings
from rlrec.store.log.folder import remote_folder
from rlrec.store.upkeep import removals

MANIFEST = "manifest.json"
FORMAT = 2
DATASETS = ("decisions", "events", "visits")
SESSION = ("session", "user_id", "split", "created_at", "session_digest", "user", "user_digest")
READABLE = ("session", "user", "policy", "version", "context", "eligible", "eligible_arms", "arm_features")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The valid files of a folder, by dataset, and the store that they come from. forgotten: how many users that store
    had forgotten by then."""

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
            raise CheckFailed(
                f"{folder} holds the log of another store",
                hint="name the store that exported it by --db, which has its policies and rewards, or another folder",
            )
        if self.forgotten != removals.count_forgotten(unit):
            hint = "remove it, and export the log to another folder"
            raise CheckFailed(f"{folder} may hold a user whom the store has forgotten since", hint=hint)

    def write(self, folder: str) -> None:
        """Replace the manifest of a folder in one step. (A remote store does so by itself.)"""
        text = json.dumps({"format": FORMAT, **vars(self)})
        if "://" in folder:
            with remote_folder(folder) as (files, root):
                files.pipe_file(f"{root}/{MANIFEST}", text.encode())
            return
        with drafts.complete(os.path.join(folder, MANIFEST)) as file:
            file.write(text.encode())


def _check_entries(stored: Any, folder: str) -> None:
    """Raises ValueError unless a manifest has the entries that an export writes, and names only files of an export."""
    for name, kind in (("format", int), ("store", str), ("forgotten", int), ("files", dict), ("decisions", int)):
        entry = stored.get(name) if isinstance(stored, dict) else None
        if type(entry) is not kind:
            raise ValueError(f"{name} is {json.dumps(entry)[:80]}")
        if name == "format" and entry not in (1, FORMAT):  # format 1 had folders by day
            raise CheckFailed(f"{folder} was written by a newer rlrec", hint="install that one")
    for name in DATASETS:
        paths = stored["files"].get(name)
        if not isinstance(paths, list):
            raise ValueError(f"files.{name} is {json.dumps(paths)[:80]}")
        folders = r"(day=\d{4}-\d\d-\d\d/bucket=\d\d|share=\d\d-of-\d\d)"
        pattern = re.compile(rf"{name}/{folders}/part-\d{{6,18}}\.parquet", re.ASCII)
        for path, times in Counter(map(str, paths)).items():
            if times > 1 or not pattern.fullmatch(path):
                raise ValueError(f"files.{name} has {path[:80]!r}, which no export writes there")


def mark(unit: Unit) -> str:
    """A text that identifies the store that wrote a log."""
    return blake2b(settings.get(unit).salt.encode(), digest_size=8).hexdigest()


def opened_file(folder: str, path: str) -> BinaryIO:
    """A file of a folder, which may be a URL that fsspec knows. Raises OSError where it cannot be read."""
    if "://" not in folder:
        return open(os.path.join(folder, path), "rb")
    with remote_folder(folder) as (files, root):
        return cast(BinaryIO, files.open(f"{root}/{path}", "rb"))


# -- the columns --


def _fields(pa: Any, table: Any, *left_out: str) -> list[Any]:
    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string(), bytes: pa.binary()}
    columns = (column for column in table.columns if column.name not in left_out)
    return [pa.field(column.name, kinds[column.type.python_type]) for column in columns]


@cache
def schemas(pa: Any) -> dict[str, Any]:
    """The columns of each dataset, in order."""
    time, text, bucket = pa.timestamp("us", "UTC"), pa.string(), pa.field("bucket", pa.int64())
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
        "decisions": pa.schema([*decision, *children, *readable, bucket]),
        "events": pa.schema([*_fields(pa, t.event), bucket]),
        "visits": pa.schema([*_fields(pa, t.visit), *session, bucket, pa.field("part", pa.int64())]),
    }
