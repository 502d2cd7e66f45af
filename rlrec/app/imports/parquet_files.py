"""This module writes the log as a folder of Parquet files, which Spark and DuckDB read without conversion. Later
exports append new rows, and a store can be made from the folder again.

DIR/decisions/share=II-of-NN/part-N.parquet has a row for each decision, with its slots as a list. The folders
`events` and `visits` are next to `decisions`. Each person (a user, or a session without a known user) has a `bucket`
number. A share has all decisions of the persons with certain bucket numbers.

A file never changes, and manifest.json, which is replaced last, names the valid files. A visit that went on between
exports has several rows. The valid row has the highest `part`, the number of its export. If earlier exports wrote no
more than the new export, their files are merged with the new files, so that a folder that grows every night has few
files."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache
from glob import escape, iglob
from hashlib import blake2b
from itertools import chain, product
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any, BinaryIO, NamedTuple, cast

import numpy as np

from rlrec import drafts
from rlrec.app.inputs import filters
from rlrec.app.inputs.decision_tables import load_pyarrow
from rlrec.app.log import partitions
from rlrec.arrays import Flags, Ids, look_up
from rlrec.errors import CheckFailed, InputError, RlrecError, StoreBusy
from rlrec.records import Record
from rlrec.store import Store, Unit
from rlrec.store.database import tables as t
from rlrec.store.log import contents, decisions, log_tables, selected, settings
from rlrec.store.log.folder import FolderLog, file_number, remote_folder
from rlrec.store.log.reader import ABSENT
from rlrec.store.policies import arms, policies
from rlrec.store.upkeep import removals

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
DATASETS = ("decisions", "events", "visits")
SESSION = ("session", "user_id", "split", "created_at", "session_digest", "user", "user_digest")
READABLE = ("session", "user", "policy", "version", "context", "eligible", "eligible_arms", "arm_features")
GROUP = 5_000  # decisions that are read at a time
MAX_WAITING_BYTES = 32_000_000  # bytes of rows that wait for the spools of their files
GROUP_ROWS, GROUP_BYTES = 20_000, 64_000_000  # rows of a row group, and its bytes, about


class Manifest(Record):
    """A Manifest names the valid files of a folder, by dataset, and identifies the store from which they come.
    forgotten: the number of users that this store had forgotten when the folder was begun."""

    store: str
    forgotten: int
    files: Mapping[str, Sequence[str]]
    decisions: int = 0

    @classmethod
    def read(cls, folder: str) -> Manifest | None:
        """Return the manifest of a folder, or None if the folder has none. Raises RlrecError if it cannot be read."""
        try:
            with opened_file(folder, MANIFEST) as file:
                entries = json.load(file)
            _check_entries(entries, folder)
            return cls(**{name: entries[name] for name in ("store", "forgotten", "files", "decisions")})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise RlrecError(f"cannot read {folder}/{MANIFEST}: {error}", hint="export to another folder") from None

    def check(self, unit: Unit, folder: str) -> None:
        """Raise CheckFailed if the folder holds the log of another store, or if the store has forgotten a user since
        the folder was begun. Such a user may still be in the folder."""
        if self.store != mark(unit):
            raise CheckFailed(
                f"{folder} holds the log of another store",
                hint="name the store that exported it by --db, which has its policies and rewards, or another folder",
            )
        if self.forgotten != removals.count_forgotten(unit):
            hint = "remove it, and export the log to another folder"
            raise CheckFailed(f"{folder} may hold a user whom the store has forgotten since", hint=hint)

    def write(self, folder: str) -> None:
        """Replace the manifest of a folder in one step. If the folder is a URL, the upload itself is this step."""
        text = json.dumps({"format": FORMAT_VERSION, **vars(self)})
        if "://" in folder:
            with remote_folder(folder) as (files, root):
                files.pipe_file(f"{root}/{MANIFEST}", text.encode())
            return
        with drafts.complete(os.path.join(folder, MANIFEST)) as file:
            file.write(text.encode())


def _check_entries(entries: Any, folder: str) -> None:
    """Raise ValueError unless a manifest has the entries of an export and names only files that an export writes."""
    for name, kind in (("format", int), ("store", str), ("forgotten", int), ("files", dict), ("decisions", int)):
        entry = entries.get(name) if isinstance(entries, dict) else None
        if type(entry) is not kind:
            raise ValueError(f"{name} is {json.dumps(entry)[:80]}")
        if name == "format" and entry not in (1, FORMAT_VERSION):  # format 1 had folders by day
            raise CheckFailed(f"{folder} was written by a newer rlrec", hint="install that one")
    for name in DATASETS:
        paths = entries["files"].get(name)
        if not isinstance(paths, list):
            raise ValueError(f"files.{name} is {json.dumps(paths)[:80]}")
        folders = r"(day=\d{4}-\d\d-\d\d/bucket=\d\d|share=\d\d-of-\d\d)"
        pattern = re.compile(rf"{name}/{folders}/part-\d{{6,18}}\.parquet", re.ASCII)
        for path, times in Counter(map(str, paths)).items():
            if times > 1 or not pattern.fullmatch(path):
                raise ValueError(f"files.{name} has {path[:80]!r}, which no export writes there")


def mark(unit: Unit) -> str:
    """Return a text that identifies this store in the folders that it exports."""
    return blake2b(settings.get(unit).salt.encode(), digest_size=8).hexdigest()


def opened_file(folder: str, path: str) -> BinaryIO:
    """Open a file of a folder, which may be a URL that fsspec knows. Raises OSError if the file cannot be read."""
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
    """Return the pyarrow schema of each dataset, by the name of the dataset. pa: the module pyarrow."""
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


class ExportCounts(Record):
    """This record counts the files in a folder, all decisions in the folder, and the new decisions."""

    files: int
    decisions: int
    new: int


def export(store: Store, folder: str, *, log: str | None = None) -> ExportCounts:
    """Append to a folder those selected decisions, events and visits that it lacks, from one snapshot of the store.
    folder: a path, or a URL that fsspec knows; log: a filter of the decisions, None for all.

    The manifest of a new folder is written first, so that an export that was interrupted can be continued. For a
    URL, files are completed in a temporary folder before the first one is sent."""
    pa, folder = load_pyarrow(), folder.removeprefix("file://")
    with store.read() as unit:
        selection = filters.selection(unit, log)
    with ExitStack() as stack:
        drafts = stack.enter_context(_drafts(folder))
        unit = stack.enter_context(store.read())
        old_manifest = Manifest.read(folder)
        if old_manifest is None and _is_filled(folder):
            raise InputError(f"{folder} is not empty, and is not a log", hint="name a new folder")
        manifest = old_manifest or Manifest(
            store=mark(unit), forgotten=removals.count_forgotten(unit), files={name: [] for name in DATASETS}
        )
        manifest.check(unit, folder)
        writer = _FileWriter(pa, folder, manifest, drafts)
        stack.callback(writer.close)
        try:
            if old_manifest is None:
                manifest.write(folder)
            new = _write_new(unit, writer, FolderLog(folder, manifest.files), selection)
            manifest = replace(manifest, files=writer.finish(), decisions=manifest.decisions + new)
            manifest.write(folder)
            writer.remove_merged()
        except OSError as error:
            raise RlrecError(f"cannot write {folder}: {(error.strerror or str(error)).lower()}") from error
    return ExportCounts(files=sum(map(len, manifest.files.values())), decisions=manifest.decisions, new=new)


def _is_filled(folder: str) -> bool:
    """Tell whether a folder exists and is not empty."""
    if "://" not in folder:
        return os.path.isdir(folder) and bool(os.listdir(folder))
    with remote_folder(folder) as (files, root):
        return bool(files.exists(root) and files.ls(root))


@contextmanager
def _drafts(folder: str) -> Iterator[str]:
    """Yield the path of the folder for incomplete files. For a local target folder, this is the folder itself, so that
    complete files only need to be renamed. Raises StoreBusy if another export is writing to the folder."""
    if "://" in folder:
        with TemporaryDirectory() as temporary:
            yield temporary
        return
    with ExitStack() as stack:
        with suppress(OSError):  # reported when something is written, unless the file system merely has no locks
            os.makedirs(folder, exist_ok=True)
            stack.callback(os.close, lock := os.open(folder, os.O_RDONLY))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreBusy(f"another export writes to {folder}", hint="repeat the command later") from None
            _remove_unnamed(folder)
            stack.callback(_remove_unnamed, folder)
        yield folder


def _remove_unnamed(folder: str) -> None:
    """Remove the Parquet files that the manifest does not name, and the incomplete files of interrupted exports."""
    drafts.remove_abandoned(os.path.join(escape(folder), drafts.DRAFT + 16 * drafts.DIGIT))
    if (manifest := Manifest.read(folder)) is not None:
        patterns = (f"{name}/{folders}/*part-[0-9]*" for name in DATASETS for folders in ("share=*", "day=*/bucket=*"))
        paths = (path for entry in patterns for path in iglob(entry, root_dir=folder, include_hidden=True))
        for path in set(paths).difference(*manifest.files.values()):
            with suppress(OSError):
                os.unlink(os.path.join(folder, path))


def _write_new(unit: Unit, writer: _FileWriter, log: FolderLog, selection: selected.Selection) -> int:
    """Write the rows that the folder lacks, and return the number of new decisions. log: the log in the folder."""
    stored_ids, sessions = (_IdSet(*log.numbers("decisions", name)) for name in ("decision_id", "session_id"))
    writer.begin(selected.extent(unit, selection).decisions - len(stored_ids), log)
    low, last_id, session = 0, decisions.peek(unit), log_tables.column_names(t.decision).index("session_id")
    count = 0
    while ids := selected.ids_after(unit, selection, low=low, limit=GROUP):
        low = ids[-1]
        lacking_ids = np.array(ids)[~stored_ids.has(np.array(ids))]
        if len(lacking_ids):
            rows = log_tables.find_rows(unit, t.decision, "id", lacking_ids.tolist())
            writer.add("decisions", _decision_buckets(unit, rows), _decision_rows(unit, rows))
            stored_ids.add(lacking_ids)
            sessions.add(np.array([row[session] for row in rows]))
            count += len(lacking_ids)
        unit.progress("decisions", count, low / max(last_id, 1))
    _write_events(unit, writer, log, stored_ids)
    _write_visits(unit, writer, log, sessions)
    return count


class _IdSet:
    """An _IdSet is a set of ids. It takes one byte for each number up to the largest id; an array would take eight
    bytes for each id."""

    def __init__(self, ids: Ids) -> None:
        self._flags = np.zeros(0, np.bool_)
        self.add(ids)

    def add(self, ids: Ids) -> None:
        """Add ids to the set."""
        last = int(ids.max(initial=-1))
        if last >= len(self._flags):
            self._flags = np.append(self._flags, np.zeros(max(last, len(self._flags)) + 1, np.bool_))
        self._flags[ids] = True

    def has(self, ids: Ids) -> Flags:
        """Tell for each id whether it is in the set."""
        bounded_ids = np.minimum(ids, len(self._flags) - 1)
        return self._flags[bounded_ids] & (bounded_ids == ids) if len(self._flags) else np.zeros(len(ids), np.bool_)

    def __len__(self) -> int:
        return int(np.count_nonzero(self._flags))


def _write_events(unit: Unit, writer: _FileWriter, log: FolderLog, decision_set: _IdSet) -> None:
    """Write the events that the folder lacks. Events are numbered within a decision, so that an event is new if its
    number is higher than those of the decision's events in the folder. log: the log in the folder; decision_set: the
    ids of the decisions whose events are written."""
    query = "SELECT decision_id, max(number) AS number FROM events GROUP BY decision_id ORDER BY decision_id"
    owners, last_numbers = log.columns(query, dict.fromkeys(("decision_id", "number"), np.int64)).values()
    for portion in log_tables.event_keys(unit):
        keys = np.array(portion, np.int64).reshape(-1, 2)
        keys = keys[decision_set.has(keys[:, 0])]
        if len(owners):
            index, has_events = look_up(owners, keys[:, 0])
            keys = keys[~has_events | (keys[:, 1] > last_numbers[index])]
        if len(keys):
            new_ids, lacking_keys = np.unique(keys[:, 0]).tolist(), set(map(tuple, keys.tolist()))
            rows_of_owners = log_tables.find_rows(unit, t.decision, "id", new_ids)
            buckets = dict(zip(new_ids, _decision_buckets(unit, rows_of_owners), strict=True))
            events = log_tables.find_rows(unit, t.event, "decision_id", new_ids)
            rows = [row for row in events if (row[0], row[1]) in lacking_keys]
            writer.add("events", [buckets[row[0]] for row in rows], rows)


def _write_visits(unit: Unit, writer: _FileWriter, log: FolderLog, sessions: _IdSet) -> None:
    """Write the visits that the folder lacks, or of which it has an older state. log: the log in the folder; sessions:
    the ids of the sessions whose visits are written."""
    names = [field.name for field in writer.schemas["visits"]]
    columns = [names.index(name) for name in ("session_id", "number", "last_at", "steps", "ended_at", "user_id")]
    visits = np.stack(log.numbers("visits", *(names[index] for index in columns)))
    visits = visits[:, np.argsort(visits[0], kind="stable")]
    for portion in log_tables.visits(unit):  # in order of sessions
        ends = [portion[0][0], portion[-1][0]] if portion else [0, -1]
        near_rows = slice(np.searchsorted(visits[0], ends[0]), np.searchsorted(visits[0], ends[1], side="right"))
        old_states = set(map(tuple, visits[:, near_rows].T.tolist()))
        exported = sessions.has(np.array([row[0] for row in portion], np.int64)).tolist()
        states = (tuple(ABSENT if row[index] is None else row[index] for index in columns) for row in portion)
        rows = [
            row for row, state, is_exported in zip(portion, states, exported, strict=True)
            if is_exported and state not in old_states
        ]  # fmt: skip
        if rows:
            user_digest, digest = names.index("user_digest"), names.index("session_digest")
            writer.add("visits", [_bucket(row[user_digest], row[digest]) for row in rows], rows)


def _decision_buckets(unit: Unit, rows: Sequence[Sequence[Any]]) -> list[int]:
    """Return the bucket number of each decision, which depends on the user, or on the session if it has no user. rows:
    the rows of the table `decision`."""
    session = log_tables.column_names(t.decision).index("session_id")
    digests = log_tables.person_digests(unit, {row[session] for row in rows})
    return [_bucket(*digests[row[session]]) for row in rows]


def _bucket(user_digest: int | None, session_digest: int | None) -> int:
    digest = session_digest or 0 if user_digest is None else user_digest
    return (digest >> 1) % partitions.BUCKETS


def _decision_rows(unit: Unit, rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Return decisions as rows of the dataset `decisions`, with their slots, contexts, arms and names. rows: the rows
    of the table `decision`."""
    columns = log_tables.column_names(t.decision)
    index = {name: columns.index(name) for name in columns}
    ids = [row[0] for row in rows]
    children = [_children(unit, table, ids) for table in log_tables.CHILDREN]
    features = {row[0]: row[1] for row in log_tables.find_rows(unit, t.decision_features, "decision_id", ids)}
    bodies = contents.context_bodies(unit, {*(row[index["context_id"]] for row in rows), *features.values()})
    sets = contents.eligible_arms(unit, {row[index["eligible_id"]] for row in rows})
    keys = {arm.id: arm.key for arm in arms.all_arms(unit)}
    versions = policies.by_id(unit, {row[index["version_id"]] for row in rows})
    people = log_tables.person_keys(unit, {row[index["session_id"]] for row in rows})
    complete_rows = []
    for row in rows:
        by_decision = [entry.get(row[0], []) for entry in children]
        by_decision[0] = [(*slot, keys[slot[1]]) for slot in by_decision[0]]
        version, eligible = versions[row[index["version_id"]]], list(sets[row[index["eligible_id"]]])
        complete_rows.append([
            *row, *by_decision, *people[row[index["session_id"]]], version.policy.name, version.number,
            bodies[row[index["context_id"]]], [keys[arm] for arm in eligible], eligible,
            bodies[features[row[0]]] if row[0] in features else None,
        ])  # fmt: skip
    return complete_rows


def _children(unit: Unit, table: Any, ids: Collection[int]) -> dict[int, list[tuple[Any, ...]]]:
    """Return the rows of a table by the id of their decision, which each row leaves out. ids: the ids of the
    decisions."""
    position = log_tables.column_names(table).index("decision_id")
    by_decision: dict[int, list[tuple[Any, ...]]] = {}
    for row in log_tables.find_rows(unit, table, "decision_id", ids):
        by_decision.setdefault(row[position], []).append((*row[:position], *row[position + 1 :]))
    return by_decision


class _Spool(NamedTuple):
    """A _Spool is a temporary file that collects the rows of a future Parquet file. Rows come a few at a time, and a
    Parquet file written in such small pieces would be slow to read. stream: the Arrow stream that writes rows to
    `file`."""

    file: IO[bytes]
    stream: Any


class _FileWriter:
    """A _FileWriter writes new files into a folder. Users, and sessions without a user, are divided into shares by
    their bucket numbers, and each dataset gets one file per share. The files have temporary names until all of them are
    complete."""

    def __init__(self, pa: Any, folder: str, manifest: Manifest, drafts: str) -> None:
        """Prepare to write new files next to those that the manifest names. pa: the module pyarrow; drafts: the folder
        for incomplete files."""
        self.schemas, self._pa, self._folder, self._manifest, self._drafts = schemas(pa), pa, folder, manifest, drafts
        self._shares = 1  # a power of two
        self._waiting: dict[str, list[Any]] = {name: [] for name in DATASETS}  # tables by dataset
        self._spools: dict[tuple[str, int], _Spool] = {}  # by dataset and share
        self._number = self._export = 1 + max(map(file_number, chain(*manifest.files.values())), default=0)
        self._merged_log = FolderLog(folder, {name: [] for name in DATASETS})

    def begin(self, decisions: int, log: FolderLog) -> None:
        """Choose the number of shares, and the files of earlier exports to merge with the new files. From the newest
        export backwards, an export is merged if it wrote no more decisions than the merge has so far, nor more than
        BUCKETS * BATCH. The first export that wrote more ends the search. decisions: the number of new decisions; log:
        the log in the folder."""
        first = self._number
        for number, size in reversed(log.export_sizes()) if decisions > 0 else ():
            if size > min(decisions, partitions.BUCKETS * partitions.BATCH):
                break
            first, decisions = number, decisions + size
        self._merged_log, self._shares = log.since(first), partitions.count_partitions(decisions)

    def add(self, dataset: str, buckets: Sequence[int], rows: Sequence[Sequence[Any]]) -> None:
        """Add rows to a dataset. They wait in memory until there are many. buckets: the bucket number of each row."""
        schema, waiting = self.schemas[dataset], self._waiting[dataset]
        columns = [*zip(*rows, strict=True), buckets]
        if dataset == "visits":
            columns.append([self._export] * len(rows))
        arrays = [self._pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
        waiting.append(self._pa.Table.from_arrays(arrays, schema=schema))
        if sum(table.nbytes for table in waiting) > MAX_WAITING_BYTES:
            self._write(dataset)

    def _write(self, dataset: str) -> None:
        """Write the rows of a dataset that wait in memory to temporary files, one for each share."""
        if not self._waiting[dataset]:
            return
        table, self._waiting[dataset] = self._pa.concat_tables(self._waiting[dataset]), []
        share = np.array(table.column("bucket").to_pylist()) % self._shares
        table, share = table.take(np.argsort(share, kind="stable")), np.sort(share)
        for index in np.unique(share).tolist():
            start, end = np.searchsorted(share, [index, index + 1]).tolist()
            self._spool(dataset, index).stream.write_table(table.slice(start, end - start))

    def _spool(self, dataset: str, share: int) -> _Spool:
        if (dataset, share) not in self._spools:
            file, ipc = TemporaryFile(dir=self._drafts), self._pa.ipc  # noqa: SIM115 (closed with the writer)
            options = ipc.IpcWriteOptions(compression="lz4")
            self._spools[dataset, share] = _Spool(file, ipc.new_stream(file, self.schemas[dataset], options=options))
        return self._spools[dataset, share]

    def finish(self) -> dict[str, list[str]]:
        """Write the new files, and give them their final names. Returns the names of all valid files, by dataset; files
        that were merged into new ones are not among them."""
        for dataset in DATASETS:
            self._write(dataset)
        drafts: dict[str, str] = {}
        for dataset, share in product(DATASETS, range(self._shares)):
            if (dataset, share) in self._spools or self._merged_log.files[dataset]:
                directory = f"{dataset}/share={share:02d}-of-{self._shares:02d}"
                os.makedirs(os.path.join(self._drafts, directory), exist_ok=True)
                name, draft = f"part-{self._number:06d}", f"{directory}/.part-{self._number:06d}-{os.urandom(4).hex()}"
                if self._write_file(os.path.join(self._drafts, draft), dataset, share):
                    drafts[draft] = f"{directory}/{name}.parquet"
                    self._number += 1
        for draft, name in drafts.items():
            self._publish(os.path.join(self._drafts, draft), name)
        merged_paths = {*chain(*self._merged_log.files.values())}
        return {
            name: [path for path in [*paths, *drafts.values()] if path.startswith(name) and path not in merged_paths]
            for name, paths in self._manifest.files.items()
        }

    def _write_file(self, path: str, dataset: str, share: int) -> int:
        """Write the rows of a share to a Parquet file, after the rows of files that are merged into it. Returns the
        number of rows."""
        schema, spool = self.schemas[dataset], self._spools.get((dataset, share))
        batches: Iterator[Any] = self._merged_log.batches(dataset, schema.names, share=share, shares=self._shares)
        if spool is not None:
            spool.stream.close()
            spool.file.seek(0)
            batches = chain(batches, self._pa.ipc.open_stream(spool.file))
        writer, waiting, count = self._pa.parquet.ParquetWriter(path, schema), list[Any](), 0
        try:
            for batch in chain(batches, [None]):
                if batch is not None:
                    waiting.append(self._pa.Table.from_batches([batch]).cast(schema))
                    count += len(batch)
                is_full = sum(map(len, waiting)) >= GROUP_ROWS or sum(table.nbytes for table in waiting) >= GROUP_BYTES
                if waiting and (batch is None or is_full):
                    writer.write_table(self._pa.concat_tables(waiting))
                    waiting = []
            writer.close()
        finally:
            writer.is_open = False  # otherwise pyarrow tries again when it deletes the writer, and prints an error
        if spool is not None:
            spool.file.close()
        return count

    def _publish(self, path: str, name: str) -> None:
        """Move a complete file to its place in the folder. path: its present path; name: its path within the folder."""
        if self._drafts != self._folder:
            with remote_folder(self._folder) as (files, root):
                files.put_file(path, f"{root}/{name}")
            return
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(path, os.path.join(self._folder, name))

    def remove_merged(self) -> None:
        """Remove the files that were merged into new files, if the folder is a URL. In a local folder,
        `_remove_unnamed` does this, because no manifest names these files."""
        paths = [*chain(*self._merged_log.files.values())]
        if paths and self._drafts != self._folder:
            with remote_folder(self._folder) as (files, root):
                files.rm([f"{root}/{path}" for path in paths])

    def close(self) -> None:
        """Close the temporary files, and the files that were merged."""
        self._merged_log.close()
        for spool in self._spools.values():
            spool.file.close()
