"""Export into a folder of Parquet: what it lacks is appended."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from glob import escape, iglob
from itertools import chain
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from rlrec.app.imports.parquet_files import DATASETS, Manifest, load_pyarrow, mark, remote_folder, schemas, table
from rlrec.app.inputs import filters
from rlrec.app.log import partitions
from rlrec.arrays import Ids
from rlrec.drafts import DIGIT, DRAFT, remove_abandoned
from rlrec.errors import InputError, RlrecError, StoreBusy
from rlrec.store import Store, Unit
from rlrec.store.database import tables as t
from rlrec.store.log import contents, decisions, log_tables, selected
from rlrec.store.log.reader import ABSENT
from rlrec.store.log.selected import Selection
from rlrec.store.policies import arms, policies
from rlrec.store.upkeep import removals
from rlrec.times import format_time

GROUP = 5_000  # decisions that are read at a time
FILES = 500  # that are written to at a time


@dataclass(frozen=True, kw_only=True)
class Written:
    """The counts of a folder: its files, all decisions in it, and the new ones."""

    files: int
    decisions: int
    new: int


def export(store: Store, folder: str, *, log: str | None = None) -> Written:
    """Append the selected decisions, events and visits that the folder lacks, from one snapshot. folder: or a URL that
    fsspec knows; its files are complete in a temporary folder before the first is sent.

    The manifest of a new folder is written first: by it, what an export left there that was stopped is told from files
    of others, and the next one goes on."""
    pa, folder = load_pyarrow(), folder.removeprefix("file://")
    with store.read() as unit:
        selection = filters.selection(unit, log)
    with ExitStack() as opened:
        drafts = opened.enter_context(_drafts(folder))
        unit = opened.enter_context(store.read())
        stored = Manifest.read(folder)
        if stored is None and _is_filled(folder):
            raise InputError(f"{folder} is not empty, and no log", hint="name a folder that is not there yet")
        manifest = stored or Manifest(
            store=mark(unit), forgotten=removals.count_forgotten(unit), files={name: [] for name in DATASETS}
        )
        manifest.check(unit, folder)
        writer = _FileWriter(pa, folder, manifest, drafts)
        opened.callback(writer.close)
        try:
            if stored is None:
                manifest.write(folder)
            new = _write_new(unit, writer, selection)
            manifest = replace(manifest, files=writer.finish(), decisions=manifest.decisions + new)
            manifest.write(folder)
        except OSError as error:
            raise RlrecError(f"cannot write {folder}: {(error.strerror or str(error)).lower()}") from error
    return Written(files=sum(map(len, manifest.files.values())), decisions=manifest.decisions, new=new)


def _is_filled(folder: str) -> bool:
    """Whether a folder is there, and holds something."""
    if "://" not in folder:
        return os.path.isdir(folder) and bool(os.listdir(folder))
    with remote_folder(folder) as (files, root):
        return bool(files.exists(root) and files.ls(root))


@contextmanager
def _drafts(folder: str) -> Iterator[str]:
    """The folder of files that are not complete: itself where it is of this machine, so that they need a name only.
    Raises StoreBusy while another export has the lock of the folder."""
    if "://" in folder:
        with TemporaryDirectory() as temporary:
            yield temporary
        return
    with ExitStack() as opened:
        with suppress(OSError):  # said where something is written, unless the file system has no locks
            os.makedirs(folder, exist_ok=True)
            opened.callback(os.close, lock := os.open(folder, os.O_RDONLY))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreBusy(f"another export writes to {folder}", hint="repeat the command later") from None
            _remove_unnamed(folder)
            opened.callback(_remove_unnamed, folder)
        yield folder


def _remove_unnamed(folder: str) -> None:
    """Remove the files of exports that were stopped, which the manifest does not name."""
    remove_abandoned(os.path.join(escape(folder), DRAFT + 16 * DIGIT))
    if (manifest := Manifest.read(folder)) is not None:
        patterns = (f"{name}/day=*/bucket=*/*part-[0-9]*" for name in DATASETS)
        paths = (path for entry in patterns for path in iglob(entry, root_dir=folder, include_hidden=True))
        for path in set(paths).difference(*manifest.files.values()):
            with suppress(OSError):
                os.unlink(os.path.join(folder, path))


def _write_new(unit: Unit, writer: _FileWriter, selection: Selection) -> int:
    """Write what the folder lacks: how many decisions."""
    stored, new = writer.stored("decisions", "decision_id"), list[int]()
    low, last = 0, decisions.peek(unit)
    while ids := selected.ids_after(unit, selection, low=low, limit=GROUP):
        low = ids[-1]
        new_ids = np.array(ids)[~np.isin(ids, stored)].tolist()
        if new_ids:
            rows = log_tables.find_rows(unit, t.decision, "id", new_ids)
            writer.add("decisions", _folders(unit, rows), _decision_rows(unit, rows))
            new += new_ids
        unit.progress("decisions", len(new), low / max(last, 1))
    all_ids = np.union1d(stored, np.array(new, np.int64))
    _write_events(unit, writer, all_ids)
    _write_visits(unit, writer)
    return len(new)


def _write_events(unit: Unit, writer: _FileWriter, decision_ids: Ids) -> None:
    """Write the events of these decisions that the folder lacks: those of a decision are numbered as they come."""
    owner, number = writer.stored("events", "decision_id"), writer.stored("events", "number")
    last = np.full(len(decision_ids), -1, np.int64)
    np.maximum.at(last, np.searchsorted(decision_ids, owner), number)
    for portion in log_tables.event_keys(unit):
        keys = np.array(portion, np.int64).reshape(-1, 2)
        keys = keys[np.isin(keys[:, 0], decision_ids)]
        keys = keys[keys[:, 1] > last[np.searchsorted(decision_ids, keys[:, 0])]]
        if len(keys):
            new_ids, lacking = np.unique(keys[:, 0]).tolist(), set(map(tuple, keys.tolist()))
            owners = log_tables.find_rows(unit, t.decision, "id", new_ids)
            folder_of = dict(zip(new_ids, _folders(unit, owners), strict=True))
            rows = [
                row
                for row in log_tables.find_rows(unit, t.event, "decision_id", new_ids)
                if (row[0], row[1]) in lacking
            ]
            writer.add("events", [folder_of[row[0]] for row in rows], rows)


def _write_visits(unit: Unit, writer: _FileWriter) -> None:
    """Write the visits of sessions in the folder whose newest row there is another one."""
    names = [field.name for field in writer.schemas["visits"]]
    compared = [names.index(name) for name in ("session_id", "number", "last_at", "steps", "ended_at", "user_id")]
    stored = np.stack([writer.stored("visits", names[index]) for index in compared])
    stored = stored[:, np.argsort(stored[0], kind="stable")]
    sessions = np.unique(writer.stored("decisions", "session_id"))
    started = names.index("started_at")
    for portion in log_tables.visits(unit):  # in order of their sessions
        session = [portion[0][0], portion[-1][0]] if portion else [0, -1]
        near_rows = slice(np.searchsorted(stored[0], session[0]), np.searchsorted(stored[0], session[1], side="right"))
        exported = set(map(tuple, stored[:, near_rows].T.tolist()))
        owned = set(sessions[slice(*np.searchsorted(sessions, [session[0], session[1] + 1]))].tolist())
        states = (tuple(ABSENT if row[index] is None else row[index] for index in compared) for row in portion)
        rows = [row for row, state in zip(portion, states, strict=True) if row[0] in owned and state not in exported]
        digests = [(row[names.index("user_digest")], row[names.index("session_digest")]) for row in rows]
        writer.add("visits", [_folder(row[started], *entry) for row, entry in zip(rows, digests, strict=True)], rows)


def _folders(unit: Unit, rows: Sequence[Sequence[Any]]) -> list[str]:
    """The folder of each decision, by its rows."""
    columns = log_tables.column_names(t.decision)
    session, at = columns.index("session_id"), columns.index("at")
    digests = log_tables.person_digests(unit, {row[session] for row in rows})
    return [_folder(row[at], *digests[row[session]]) for row in rows]


def _folder(at: int, user_digest: int | None, session_digest: int | None) -> str:
    digest = session_digest or 0 if user_digest is None else user_digest
    return f"day={format_time(at)[:10]}/bucket={(digest >> 1) % partitions.BUCKETS:02d}"


def _decision_rows(unit: Unit, rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The rows of decisions with those of their slots and of whatever else belongs to them, as of `schemas`."""
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
    complete_files = []
    for row in rows:
        by_decision = [entry.get(row[0], []) for entry in children]
        by_decision[0] = [(*slot, keys[slot[1]]) for slot in by_decision[0]]
        version, eligible = versions[row[index["version_id"]]], list(sets[row[index["eligible_id"]]])
        complete_files.append([
            *row, *by_decision, *people[row[index["session_id"]]], version.policy.name, version.number,
            bodies[row[index["context_id"]]], [keys[arm] for arm in eligible], eligible,
            bodies[features[row[0]]] if row[0] in features else None,
        ])  # fmt: skip
    return complete_files


def _children(unit: Unit, table: Any, ids: Collection[int]) -> dict[int, list[tuple[Any, ...]]]:
    """The rows of a table of each decision, without its id."""
    position = log_tables.column_names(table).index("decision_id")
    by_decision: dict[int, list[tuple[Any, ...]]] = {}
    for row in log_tables.find_rows(unit, table, "decision_id", ids):
        by_decision.setdefault(row[position], []).append((*row[:position], *row[position + 1 :]))
    return by_decision


class _FileWriter:
    """Writes new files into a folder. They have names of their own until all of them are complete."""

    def __init__(self, pa: Any, folder: str, manifest: Manifest, drafts: str) -> None:
        """drafts: the folder of files that are not complete."""
        self.schemas, self._pa, self._folder, self._manifest, self._drafts = schemas(pa), pa, folder, manifest, drafts
        self._open: dict[tuple[str, str], Any] = {}
        self._names: dict[str, str] = {}  # of complete files by that of their drafts
        self._number = 1 + max(
            (int(path.rpartition("-")[2].split(".")[0]) for path in chain(*manifest.files.values())), default=0
        )

    def stored(self, dataset: str, column: str) -> Ids:
        """A column of all files of a dataset, those of this export included; ABSENT where there is no value."""
        self._close(set())
        paths = [(self._folder, path) for path in self._manifest.files[dataset]]
        paths += [(self._drafts, draft) for draft in self._names if draft.startswith(dataset)]
        columns = (table(self._pa, folder, path, [column]).column(0).fill_null(ABSENT) for folder, path in paths)
        return np.concatenate([np.empty(0, np.int64), *(entry.to_numpy() for entry in columns)])

    def add(self, dataset: str, folders: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write rows, each into its folder."""
        by_folder: dict[str, list[Sequence[Any]]] = {}
        for folder, row in zip(folders, rows, strict=True):
            by_folder.setdefault(folder, []).append(row)
        schema = self.schemas[dataset]
        for folder, group in sorted(by_folder.items()):
            arrays = [
                self._pa.array(values, field.type)
                for values, field in zip(zip(*group, strict=True), schema, strict=True)
            ]
            self._file(dataset, folder).write_table(self._pa.Table.from_arrays(arrays, schema=schema))
        if len(self._open) > FILES:
            self._close({(dataset, folder) for folder in by_folder})

    def _file(self, dataset: str, folder: str) -> Any:
        if (dataset, folder) not in self._open:
            directory = f"{dataset}/{folder}"
            os.makedirs(os.path.join(self._drafts, directory), exist_ok=True)
            draft = f"{directory}/.part-{self._number:06d}-{os.urandom(4).hex()}"
            self._names[draft] = f"{directory}/part-{self._number:06d}.parquet"
            self._number += 1
            path = os.path.join(self._drafts, draft)
            self._open[dataset, folder] = self._pa.parquet.ParquetWriter(path, self.schemas[dataset])
        return self._open[dataset, folder]

    def _close(self, needed: Collection[tuple[str, str]]) -> None:
        for key in [key for key in self._open if key not in needed]:
            self._open[key].close()
            del self._open[key]

    def finish(self) -> dict[str, list[str]]:
        """Give the new files their names: all files of each dataset."""
        self._close(set())
        files = {name: [*paths] for name, paths in self._manifest.files.items()}
        for draft, name in self._names.items():
            self._publish(os.path.join(self._drafts, draft), name)
            files[name.partition("/")[0]].append(name)
        return files

    def _publish(self, path: str, name: str) -> None:
        """Give a complete file its name in the folder."""
        if self._drafts != self._folder:
            with remote_folder(self._folder) as (files, root):
                files.put_file(path, f"{root}/{name}")
            return
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(path, os.path.join(self._folder, name))

    def close(self) -> None:
        """Close what is open after an error."""
        for file in self._open.values():
            with suppress(OSError, ValueError):
                file.close()
            file.is_open = False  # or pyarrow tries again as it deletes the writer, and prints why it cannot
