"""The log as a folder of Parquet files, which Spark and DuckDB read as they are: what is new is appended, and a store
can be made of it again.

DIR/decisions/day=YYYY-MM-DD/bucket=00..63/part-N.parquet has a row for each decision, with its slots as a list; events
and visits lie beside decisions. A bucket has all decisions of a person (the user, else the session), on all days. A
file never changes: manifest.json, which is replaced last, names those that count. Of a visit that went on, the last row
counts."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain
from typing import Any

import numpy as np

from rlrec.app.inputs import filters
from rlrec.app.log import partitions
from rlrec.arrays import Ids
from rlrec.errors import CheckFailed, InputError, RlrecError
from rlrec.store import Store, Unit, arms, contents, decisions, log_tables, policies, reader, removals, settings
from rlrec.store import tables as t
from rlrec.store.contents import digest
from rlrec.times import written

MANIFEST = "manifest.json"
FORMAT = 1
GROUP = 5_000  # decisions that are read at a time
FILES = 500  # that are written to at a time
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
            with open(os.path.join(folder, MANIFEST), encoding="utf-8") as file:
                stored = json.load(file)
            if stored["format"] != FORMAT:
                raise CheckFailed(f"{folder} was written by a newer rlrec", hint="install that one")
            return cls(**{name: stored[name] for name in ("store", "forgotten", "files", "decisions")})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RlrecError(f"cannot read {folder}/{MANIFEST}: {error}", hint="export to another folder") from None

    def check(self, unit: Unit, folder: str) -> None:
        """Raises CheckFailed for the log of another store, and where a user was forgotten who may be in the folder."""
        if self.store != mark(unit):
            raise CheckFailed(f"{folder} holds the log of another store", hint="give that store, or another folder")
        if self.forgotten != removals.count_forgotten(unit):
            hint = "remove it, and export the log to another folder"
            raise CheckFailed(f"{folder} may hold a user whom the store has forgotten since", hint=hint)

    def write(self, folder: str) -> None:
        """Replace the manifest of a folder at once."""
        draft = os.path.join(folder, f".{MANIFEST}-{os.urandom(8).hex()}")
        with open(draft, "x", encoding="utf-8") as file:
            json.dump({"format": FORMAT, **vars(self)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, os.path.join(folder, MANIFEST))


def mark(unit: Unit) -> str:
    """A text that names the store that a log was written by."""
    return blake2b(settings.get(unit).salt.encode(), digest_size=8).hexdigest()


def load_pyarrow() -> Any:
    """The module pyarrow. Raises InputError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError("Parquet needs pyarrow", hint="pip install 'rlrec[parquet]'") from None
    return pyarrow


# -- the columns --


def _type(pa: Any, column: Any) -> Any:
    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string(), bytes: pa.binary()}
    return kinds[column.type.python_type]


def _fields(pa: Any, table: Any, *without: str) -> list[Any]:
    return [pa.field(column.name, _type(pa, column)) for column in table.columns if column.name not in without]


def schemas(pa: Any) -> dict[str, Any]:
    """The columns of each dataset, in order."""
    at, text = pa.timestamp("us", "UTC"), pa.string()
    decision = [
        pa.field("decision_id", pa.int64()),
        *(field.with_type(at) if field.name == "at" else field for field in _fields(pa, t.decision, "id")),
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


# -- writing --


@dataclass(frozen=True, kw_only=True)
class Written:
    """The counts of a folder: its files, all decisions in it, and the new ones."""

    files: int
    decisions: int
    new: int


def export(store: Store, folder: str, *, log: str | None = None) -> Written:
    """Append the selected decisions, events and visits that the folder lacks, from one snapshot."""
    pa = load_pyarrow()
    with store.read() as unit:
        manifest = Manifest.read(folder) or Manifest(
            store=mark(unit), forgotten=removals.count_forgotten(unit), files={name: [] for name in DATASETS}
        )
        manifest.check(unit, folder)
        if not os.path.exists(os.path.join(folder, MANIFEST)) and os.path.isdir(folder) and os.listdir(folder):
            raise InputError(f"{folder} is not empty, and no log", hint="name a folder that is not there yet")
        writer = _FileWriter(pa, folder, manifest)
        try:
            new = _write_new(unit, writer, filters.selection(unit, log))
            manifest = replace(manifest, files=writer.finish(), decisions=manifest.decisions + new)
            os.makedirs(folder, exist_ok=True)
            manifest.write(folder)
        except OSError as error:
            raise RlrecError(f"cannot write {folder}: {(error.strerror or str(error)).lower()}") from error
        finally:
            writer.remove_drafts()
    return Written(files=sum(map(len, manifest.files.values())), decisions=manifest.decisions, new=new)


def _write_new(unit: Unit, writer: _FileWriter, selection: reader.Selection) -> int:
    """Write what the folder lacks: how many decisions."""
    stored, new = writer.stored("decisions", "decision_id"), list[int]()
    low, last = 0, decisions.peek(unit)
    while ids := reader.ids_after(unit, selection, low=low, limit=GROUP):
        low = ids[-1]
        wanted = np.array(ids)[~np.isin(ids, stored)].tolist()
        if wanted:
            rows = log_tables.rows_of(unit, t.decision, "id", wanted)
            writer.add("decisions", _folders(unit, rows), _decision_rows(unit, rows))
            new += wanted
        unit.progress("decisions", len(new), low / max(last, 1))
    every = np.union1d(stored, np.array(new, np.int64))
    _write_events(unit, writer, every)
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
            wanted, lacking = np.unique(keys[:, 0]).tolist(), set(map(tuple, keys.tolist()))
            owners = log_tables.rows_of(unit, t.decision, "id", wanted)
            folder_of = dict(zip(wanted, _folders(unit, owners), strict=True))
            rows = [
                row for row in log_tables.rows_of(unit, t.event, "decision_id", wanted) if (row[0], row[1]) in lacking
            ]
            writer.add("events", [folder_of[row[0]] for row in rows], rows)


def _write_visits(unit: Unit, writer: _FileWriter) -> None:
    """Write the visits of sessions in the folder whose newest row there is another one."""
    names = [field.name for field in writer.schemas["visits"]]
    compared = [names.index(name) for name in ("session_id", "number", "last_at", "steps", "ended_at", "user_id")]
    stored = set(zip(*(writer.stored("visits", names[index], plain=True) for index in compared), strict=True))
    sessions = set(writer.stored("decisions", "session_id").tolist())
    started = names.index("started_at")
    for portion in log_tables.visits(unit):
        rows = [row for row in portion if tuple(row[index] for index in compared) not in stored and row[0] in sessions]
        digests = [(row[names.index("user_digest")], row[names.index("session_digest")]) for row in rows]
        writer.add("visits", [_folder(row[started], *each) for row, each in zip(rows, digests, strict=True)], rows)


def _folders(unit: Unit, rows: Sequence[Sequence[Any]]) -> list[str]:
    """The folder of each decision, by its rows."""
    columns = log_tables.names(t.decision)
    session, at = columns.index("session_id"), columns.index("at")
    digests = log_tables.person_digests(unit, {row[session] for row in rows})
    return [_folder(row[at], *digests[row[session]]) for row in rows]


def _folder(at: int, user_digest: int | None, session_digest: int | None) -> str:
    digest = session_digest or 0 if user_digest is None else user_digest
    return f"day={written(at)[:10]}/bucket={(digest >> 1) % partitions.BUCKETS:02d}"


def _decision_rows(unit: Unit, rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The rows of decisions with those of their slots and of whatever else belongs to them, as of `schemas`."""
    columns = log_tables.names(t.decision)
    index = {name: columns.index(name) for name in columns}
    ids = [row[0] for row in rows]
    children = [_children(unit, table, ids) for table in log_tables.CHILDREN]
    features = {row[0]: row[1] for row in log_tables.rows_of(unit, t.decision_features, "decision_id", ids)}
    bodies = contents.context_bodies(unit, {*(row[index["context_id"]] for row in rows), *features.values()})
    sets = contents.eligible_arms(unit, {row[index["eligible_id"]] for row in rows})
    keys = {arm.id: arm.key for arm in arms.every(unit)}
    versions = policies.by_id(unit, {row[index["version_id"]] for row in rows})
    people = log_tables.person_keys(unit, {row[index["session_id"]] for row in rows})
    complete = []
    for row in rows:
        of_decision = [each.get(row[0], []) for each in children]
        of_decision[0] = [(*slot, keys[slot[1]]) for slot in of_decision[0]]
        version, eligible = versions[row[index["version_id"]]], list(sets[row[index["eligible_id"]]])
        complete.append([
            *row, *of_decision, *people[row[index["session_id"]]], version.policy.name, version.number,
            bodies[row[index["context_id"]]], [keys[arm] for arm in eligible], eligible,
            bodies[features[row[0]]] if row[0] in features else None,
        ])  # fmt: skip
    return complete


def _children(unit: Unit, table: Any, ids: Collection[int]) -> dict[int, list[tuple[Any, ...]]]:
    """The rows of a table of each decision, without its id."""
    position = log_tables.names(table).index("decision_id")
    of_decision: dict[int, list[tuple[Any, ...]]] = {}
    for row in log_tables.rows_of(unit, table, "decision_id", ids):
        of_decision.setdefault(row[position], []).append((*row[:position], *row[position + 1 :]))
    return of_decision


class _FileWriter:
    """Writes new files into a folder. They have names of their own until all of them are complete."""

    def __init__(self, pa: Any, folder: str, manifest: Manifest) -> None:
        self.schemas, self._pa, self._folder, self._manifest = schemas(pa), pa, folder, manifest
        self._open: dict[tuple[str, str], Any] = {}
        self._names: dict[str, str] = {}  # of complete files by that of their drafts
        self._number = 1 + max(
            (int(path.rpartition("-")[2].split(".")[0]) for path in chain(*manifest.files.values())), default=0
        )

    def stored(self, dataset: str, column: str, *, plain: bool = False) -> Any:
        """A column of all files of a dataset, those of this export included: an array, or a list that has None."""
        self._close(set())
        paths = [*self._manifest.files[dataset], *(draft for draft in self._names if draft.startswith(dataset))]
        columns = [_table(self._pa, self._folder, path, [column]).column(0) for path in paths]
        values: list[Any] = [value for each in columns for value in each.to_pylist()] if plain else []
        if plain:
            return values
        return np.concatenate([np.empty(0, np.int64), *(each.to_numpy() for each in columns)])

    def add(self, dataset: str, folders: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write rows, each into its folder."""
        by_folder: dict[str, list[Sequence[Any]]] = {}
        for folder, row in zip(folders, rows, strict=True):
            by_folder.setdefault(folder, []).append(row)
        schema = self.schemas[dataset]
        for folder, some in sorted(by_folder.items()):
            arrays = [
                self._pa.array(values, field.type)
                for values, field in zip(zip(*some, strict=True), schema, strict=True)
            ]
            self._file(dataset, folder).write_table(self._pa.Table.from_arrays(arrays, schema=schema))
        if len(self._open) > FILES:
            self._close({(dataset, folder) for folder in by_folder})

    def _file(self, dataset: str, folder: str) -> Any:
        if (dataset, folder) not in self._open:
            directory = f"{dataset}/{folder}"
            os.makedirs(os.path.join(self._folder, directory), exist_ok=True)
            draft = f"{directory}/.part-{self._number:06d}-{os.urandom(4).hex()}"
            self._names[draft] = f"{directory}/part-{self._number:06d}.parquet"
            self._number += 1
            path = os.path.join(self._folder, draft)
            self._open[dataset, folder] = self._pa.parquet.ParquetWriter(path, self.schemas[dataset])
        return self._open[dataset, folder]

    def _close(self, needed: Collection[tuple[str, str]]) -> None:
        for key in [key for key in self._open if key not in needed]:
            self._open.pop(key).close()

    def finish(self) -> dict[str, list[str]]:
        """Give the new files their names: all files of each dataset."""
        self._close(set())
        files = {name: [*paths] for name, paths in self._manifest.files.items()}
        for draft, name in self._names.items():
            path = os.path.join(self._folder, draft)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            os.replace(path, os.path.join(self._folder, name))
            files[name.partition("/")[0]].append(name)
        return files

    def remove_drafts(self) -> None:
        """Close what is open, and take away what has no name yet."""
        with suppress(OSError):
            self._close(set())
        for draft in self._names:
            with suppress(OSError):
                os.unlink(os.path.join(self._folder, draft))


# -- reading --


def _table(pa: Any, folder: str, path: str, columns: Sequence[str]) -> Any:
    """Columns of a file. Raises RlrecError where it is damaged, gone, or lacks one of them."""
    where = os.path.join(folder, path)
    try:
        file = pa.parquet.ParquetFile(where)
        for name in columns:
            if name not in file.schema_arrow.names:
                raise RlrecError(f"{where} has no column {name}", hint="export the log to another folder")
        return file.read(columns=list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        reason = " ".join(str(error).split())[:200]
        raise RlrecError(f"cannot read {where}: {reason}", hint="export the log to another folder") from error


@contextmanager
def opened(store: Store, folder: str) -> Iterator[Store]:
    """A private store with the log of a folder, and with the policies and definitions of this store."""
    pa, manifest = load_pyarrow(), Manifest.read(folder)
    if manifest is None:
        raise InputError(f"{folder} holds no log", hint=f"`rlrec export-log {folder} --layout parquet` writes one")
    with tempfile.TemporaryDirectory(prefix="rlrec-log-") as directory:
        path = os.path.join(directory, "log.db")
        with store.read() as unit:
            manifest.check(unit, folder)
            with closing(log_tables.PrivateStore(unit, path)) as private:
                _load(pa, folder, manifest, private, unit.progress)
                private.finish()
            now = unit.now
        with closing(Store(path, now=now, notice=store.notice)) as log_store:
            log_store.progress = store.progress
            yield log_store


def _load(pa: Any, folder: str, manifest: Manifest, private: log_tables.PrivateStore, progress: Any) -> None:
    """Put the rows of all files into a private store."""
    columns_of = schemas(pa)
    decision = log_tables.names(t.decision)
    for number, path in enumerate(manifest.files["decisions"]):
        table = _table(pa, folder, path, columns_of["decisions"].names)
        columns = {name: table.column(name) for name in columns_of["decisions"].names}
        columns["at"] = columns["at"].cast(pa.int64())
        values = {name: columns[name].to_pylist() for name in ("decision_id", *decision[1:], "context", "arm_features")}
        ids = values["decision_id"]
        private.add("decision", decision, zip(ids, *(values[name] for name in decision[1:]), strict=True))
        _add_contexts(private, values["context_id"], values["context"])
        _add_sets(private, values["eligible_id"], columns["eligible_arms"].to_pylist())
        for child in log_tables.CHILDREN:
            names = [name for name in log_tables.names(child) if name != "decision_id"]
            rows = _nested(columns[child.name], ids, names)
            private.add(child.name, ["decision_id", *names], rows)
            if child is t.decision_features:
                context_of = {row[0]: row[1] for row in rows}
                texts = dict(zip(ids, values["arm_features"], strict=True))
                _add_contexts(private, context_of.values(), [texts[key] for key in context_of])
        progress("decisions", (number + 1), (number + 1) / len(manifest.files["decisions"]))
    for path in manifest.files["events"]:
        names = columns_of["events"].names
        private.add("event", names, zip(*_table(pa, folder, path, names).to_pydict().values(), strict=True))
    for path in manifest.files["visits"]:
        _add_visits(private, _table(pa, folder, path, columns_of["visits"].names).to_pydict())


def _add_contexts(private: log_tables.PrivateStore, ids: Iterable[int], texts: Iterable[str]) -> None:
    bodies = dict(zip(ids, texts, strict=True))
    rows = ((key, digest(text), text) for key, text in bodies.items())
    private.add("context", ("id", "digest", "body"), rows)


def _add_sets(private: log_tables.PrivateStore, ids: Iterable[int], sets: Iterable[list[int]]) -> None:
    texts = {
        key: (len(members), json.dumps(members, separators=(",", ":"))) for key, members in zip(ids, sets, strict=True)
    }
    rows = ((key, digest(text), size, text) for key, (size, text) in texts.items())
    private.add("eligible_set", ("id", "digest", "size", "arms"), rows)


def _nested(column: Any, ids: Sequence[int], names: Sequence[str]) -> list[tuple[Any, ...]]:
    """The rows of a table that lie in a column of lists, with the ids of their decisions."""
    lists = column.combine_chunks()
    lists = lists.chunk(0) if hasattr(lists, "chunks") else lists
    owners = np.array(ids, np.int64)[lists.value_parent_indices().to_numpy()].tolist()
    flat = lists.flatten()
    return list(zip(owners, *(flat.field(name).to_pylist() for name in names), strict=True))


def _add_visits(private: log_tables.PrivateStore, columns: Mapping[str, list[Any]]) -> None:
    """Put visits, their sessions and users in place of earlier rows of these."""
    names = log_tables.names(t.visit)
    private.replace("visit", names, zip(*(columns[name] for name in names), strict=True))
    sessions = {
        row[0]: row
        for row in zip(
            *(columns[name] for name in ("session_id", "session", "user_id", "split", "created_at", "session_digest")),
            strict=True,
        )
    }
    private.replace("session", ("id", "key", "user_id", "split", "created_at", "digest"), sessions.values())
    users = {
        row[0]: row
        for row in zip(*(columns[name] for name in ("user_id", "user", "user_digest")), strict=True)
        if row[0] is not None
    }
    private.replace("users", ("id", "key", "digest"), users.values())
