"""The log of a folder of Parquet in place of that of the store: partition by partition, and of each file the columns
alone that a pass wants. Memory holds a few numbers for each decision of a partition, and the rows of a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property, reduce
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rlrec.app.imports.parquet_files import Manifest, filled, load_pyarrow, table
from rlrec.app.log import lineage, partitions
from rlrec.arrays import Flags, Ids, look_up, offsets, piece_rows, run_starts, take
from rlrec.errors import InputError
from rlrec.store import Unit
from rlrec.store.bulk import Columns
from rlrec.store.candidates import CandidateList, read_list
from rlrec.store.folders import LogFolder
from rlrec.store.imported_data import read_slot_sets, read_support
from rlrec.store.reader import ABSENT, COLUMNS, NO_SCORE, ONCE, Batch, ContextTexts, LogExtent, Selection
from rlrec.store.unit import StoredRows

ROOM = 128_000_000  # bytes of columns that are held, of files that the next batch may read again
INDEX = (
    "decision_id", "session_id", "at", "policy_id", "version_id", "variant_id", "imported", "step", "size",
    "context_id", "eligible_id",
)  # fmt: skip
VISITS = ("session_id", "number", "started_at", "last_at", "ended_at", "steps")
OF_SESSION = ("user_id", "user_digest", "session_digest", "split", "created_at")
EVENTS = ("decision_id", "number", "position", "kind", "value", "at")
CENSOR = "!censor"
_SLOTS = {"position", "arm_id", "propensity", "marginal", "min_propensity", "score", "censored", "rounded"}
_ELSEWHERE = {"recorded": "history", "subsampled": "keep_probability", "route_id": "route_decision"}
_DEFAULTS = {  # in place of null; 0 for other numbers
    "variant_id": ABSENT, "user_id": ABSENT, "ended_at": ABSENT, "score": NO_SCORE, "keep_probability": 1.0,
    **dict.fromkeys(("log_propensity", "propensity", "marginal", "min_propensity"), np.nan),
}  # fmt: skip


class FolderLog(LogFolder):
    """The log of a folder: what a command asks of all of it is asked of each bucket, and added up."""

    def __init__(self, unit: Unit, folder: str) -> None:
        """Raises InputError where the folder holds no log, CheckFailed for the log of another store."""
        load_pyarrow()
        manifest = Manifest.read(folder)
        if manifest is None:
            raise InputError(f"{folder} holds no log", hint=f"`rlrec export-log {folder} --layout parquet` writes one")
        manifest.check(unit, folder)
        self.folder, self.files = folder, manifest.files
        self._counts: dict[str, SelectionCounts] = {}

    def split(self, number: int) -> Iterator[FolderPartition]:
        """So many partitions of whole persons, a power of two."""
        session, old, home = self._moved
        between = old % number != home % number
        moved = dict(zip(session[between].tolist(), (home[between] % number).tolist(), strict=True))
        for index in range(number):
            arrived = set(old[between & (home % number == index)].tolist())
            files = {
                name: [path for path in paths if _bucket(path) % number == index or _bucket(path) in arrived]
                for name, paths in self.files.items()
            }
            yield FolderPartition(self.folder, files, number, index, moved, partitions.BATCH, self._children)

    @cached_property
    def _moved(self) -> tuple[Ids, Ids, Ids]:
        """The sessions whose user came after some of their decisions were exported: their ids, the bucket of these, and
        that of the user."""
        anonymous, named = [np.empty((2, 0), np.int64)], [np.empty((2, 0), np.int64)]
        for path in self.files["visits"]:
            columns = _numbers(table(load_pyarrow(), self.folder, path, ["session_id", "user_id"]))
            rows = np.stack([columns["session_id"], np.full(len(columns["session_id"]), _bucket(path))])
            anonymous.append(np.unique(rows[:, columns["user_id"] == ABSENT], axis=1))
            named.append(np.unique(rows[:, columns["user_id"] != ABSENT], axis=1))
        before, after = np.concatenate(anonymous, axis=1), np.concatenate(named, axis=1)
        after = after[:, np.argsort(after[0], kind="stable")]
        index, moved = look_up(after[0], before[0])
        return before[0][moved], before[1][moved], after[1][index[moved]]

    def _sum(self, of_bucket: Callable[[FolderPartition], Any]) -> Iterator[Any]:
        return map(of_bucket, self.split(partitions.BUCKETS))

    # -- what is asked of the log --

    def extent(self, selection: Selection) -> LogExtent:
        return self._selected(selection).extent

    def version_counts(self, selection: Selection) -> dict[int, int]:
        return dict(self._selected(selection).versions)

    def times(self, selection: Selection) -> tuple[int, int]:
        counts = self._selected(selection)
        return (counts.first_at, counts.last_at) if counts.versions else (0, 0)

    def _selected(self, selection: Selection) -> SelectionCounts:
        key = repr(selection)
        if key not in self._counts:
            self._counts[key] = reduce(SelectionCounts.__add__, self._sum(lambda bucket: bucket.counts(selection)))
        return self._counts[key]

    def any_user(self) -> bool:
        return any(self._sum(lambda bucket: bool((bucket.sessions["user_id"] != ABSENT).any())))

    def any_returned(self) -> bool:
        return any(self._sum(FolderPartition.any_returned))

    def any_row(self, name: str) -> bool:
        return name in self._children

    @cached_property
    def _children(self) -> frozenset[str]:
        """The columns of lists that some decision has a row in."""
        return frozenset[str]().union(*(filled(self.folder, path) for path in self.files["decisions"]))

    def oldest_running(self, **times: int) -> int | None:
        return min(
            (at for at in self._sum(lambda bucket: bucket.oldest_running(**times)) if at is not None), default=None
        )

    def largest(self, kinds: Collection[str], *, of_slots: bool) -> dict[str, float]:
        largest: dict[str, float] = {}
        for bucket in self.split(partitions.BUCKETS):
            for kind, value in bucket.largest(kinds, of_slots=of_slots).items():
                largest[kind] = max(value, largest.get(kind, 0.0))
        return largest


class SelectionCounts(NamedTuple):
    """The extent of some decisions, how many each version served, and the first and the last time."""

    extent: LogExtent
    versions: Counter[int]
    first_at: int
    last_at: int

    def __add__(self, other: SelectionCounts) -> SelectionCounts:  # type: ignore[override]
        if not self.versions or not other.versions:
            return self if self.versions else other
        ours, theirs = self.extent, other.extent
        extent = LogExtent(
            max(ours.positions, theirs.positions), max(ours.steps, theirs.steps),
            min(ours.first_version, theirs.first_version), max(ours.last_version, theirs.last_version),
            ours.decisions + theirs.decisions,
        )  # fmt: skip
        return SelectionCounts(
            extent, self.versions + other.versions, min(self.first_at, other.first_at),
            max(self.last_at, other.last_at),
        )  # fmt: skip


class FolderPartition(LogFolder):
    """The log of the persons of some buckets. It is named by its files, and reads them where it is worked on.

    moved: the partition of sessions that left their bucket; batch: decisions of a batch, about; children: columns of
    lists that are not empty everywhere."""

    def __init__(
        self, folder: str, files: Mapping[str, Sequence[str]], number: int, index: int, moved: Mapping[int, int],
        batch: int, children: frozenset[str],
    ) -> None:  # fmt: skip
        self._named = folder, files, number, index, moved, batch, children
        self.folder, self.files, self.batch, self.children = folder, files, batch, children
        self._cache: dict[Any, tuple[Any, int]] = {}
        self._wanted: tuple[str, ...] = ()  # columns beside the index that files are read for
        self._feature_rows: dict[int, int] = {}  # the row of a context that holds features of arms

    def __reduce__(self) -> tuple[Any, ...]:
        return FolderPartition, self._named

    # -- persons --

    @cached_property
    def _visits(self) -> Columns:
        """The newest row of each visit, by session and number, with the columns of its session."""
        names = [*VISITS, *OF_SESSION]
        pieces = [_numbers(self._read(path, names)) for path in self.files["visits"]]
        columns = {name: _joined([piece[name] for piece in pieces], np.int64) for name in names}
        columns["file"] = np.repeat(np.arange(len(pieces)), [len(piece["number"]) for piece in pieces])
        columns["line"] = _joined([np.arange(len(piece["number"])) for piece in pieces], np.int64)
        columns = take(columns, self._here(columns["session_id"], self.files["visits"], columns["file"]))
        order = np.lexsort((columns["file"], columns["number"], columns["session_id"]))
        last = run_starts(columns["session_id"][order], columns["number"][order])[1:] - 1
        return take(columns, order[np.r_[last, len(order) - 1]] if len(order) else order)

    @cached_property
    def sessions(self) -> Columns:
        """The columns of each session, by its id."""
        return take(self._visits, run_starts(self._visits["session_id"]))

    def _here(self, session: Ids, paths: Sequence[str], file: Ids) -> Flags:
        """Whether sessions belong to this partition, (n,). file: of each row, its index among the paths."""
        _, _, number, index, moved, *_ = self._named
        home = (np.array([_bucket(path) for path in paths], np.int64) % number)[file]
        if moved:
            changed = np.array(sorted(moved), np.int64)
            which, has_moved = look_up(changed, session)
            home = np.where(has_moved, np.array([moved[key] for key in changed.tolist()])[which], home)
        return home == index

    def any_returned(self) -> bool:
        """Whether some person has several visits."""
        visits = self._visits
        person = np.where(visits["user_id"] != ABSENT, -visits["user_id"], visits["session_id"])
        return len(np.unique(person)) < len(person)

    def oldest_running(self, *, timeout_us: int, window_us: int, since: int, now: int) -> int | None:
        visits = self._visits
        running = (visits["ended_at"] == ABSENT) & (visits["last_at"] + timeout_us >= now)
        running |= visits["last_at"] + window_us >= now
        running &= visits["started_at"] >= since
        return int(visits["started_at"][running].min()) if running.any() else None

    # -- decisions: an index of all of them, by session and id; `file` and `line` say where each is --

    @cached_property
    def _index(self) -> Columns:
        pieces = [self._file(path).decisions for path in self.files["decisions"]]
        columns = {name: _joined([piece[name] for piece in pieces], np.int64) for name in INDEX}
        columns["file"] = np.repeat(np.arange(len(pieces)), [len(piece["step"]) for piece in pieces])
        columns["line"] = _joined([np.arange(len(piece["step"])) for piece in pieces], np.int64)
        here = np.flatnonzero(self._here(columns["session_id"], self.files["decisions"], columns["file"]))
        order = here[np.lexsort((columns["decision_id"][here], columns["session_id"][here]))]
        return take(columns, order)

    def _file(self, path: str) -> FileColumns:
        """The columns of a file that are wanted: all that a pass reads of it are read at once."""

        def read() -> tuple[FileColumns, int]:
            once = [name for name in self._wanted if name not in _SLOTS]
            slots = [name for name in self._wanted if name in _SLOTS]
            names = dict.fromkeys([*INDEX, *(_ELSEWHERE.get(name, name) for name in once)])
            stored = self._read(path, [*names, *(f"slot.{name}" for name in slots)])
            decisions = {name: _of_decision(name, stored) for name in dict.fromkeys([*INDEX, *once])}
            starts, columns = np.zeros(len(stored) + 1, np.int64), Columns()
            if slots:
                lists = stored.column("slot").combine_chunks()
                starts, fields = offsets(lists.value_lengths().to_numpy()), lists.flatten()
                columns = {name: _array(name, fields.field(name)) for name in slots}
            size = sum(map(_size, (*decisions.values(), *columns.values())))
            return FileColumns(decisions, starts, columns), size

        result: FileColumns = self._held(path, read)
        return result

    @cached_property
    def _events(self) -> Columns:
        """All events of these decisions, by decision and number."""
        pieces = [_numbers(self._read(path, EVENTS)) for path in self.files["events"]]
        kinds: dict[str, type] = {"value": np.float64, "kind": np.object_}
        columns = {name: _joined([each[name] for each in pieces], kinds.get(name, np.int64)) for name in EVENTS}
        return take(columns, np.lexsort((columns["number"], columns["decision_id"])))

    def largest(self, kinds: Collection[str], *, of_slots: bool) -> dict[str, float]:
        events, largest = self._events, {}
        for kind in kinds:
            rows = (events["kind"] == kind) & ((events["position"] > 0) | (not of_slots))
            if rows.any():
                largest[kind] = float(np.abs(events["value"][rows]).max())
        return largest

    def any_row(self, name: str) -> bool:
        return name in self.children

    def counts(self, selection: Selection) -> SelectionCounts:
        """The counts of the selected decisions."""
        rows = take(self._index, self._rows(selection))
        if not len(rows["at"]):
            return SelectionCounts(LogExtent(0, 0, 0, 0, 0), Counter(), 0, 0)
        versions = dict(
            zip(*(each.tolist() for each in np.unique(rows["version_id"], return_counts=True)), strict=True)
        )
        extent = LogExtent(
            int(rows["size"].max()), int(rows["step"].max()) + 1, min(versions), max(versions), len(rows["at"])
        )
        return SelectionCounts(extent, Counter(versions), int(rows["at"].min()), int(rows["at"].max()))

    def _rows(self, selection: Selection) -> Ids:
        """The selected rows of the index."""
        if selection.route_ids is not None:
            self._wanted = tuple({*self._wanted, "route_id"})
        columns = dict(self._index)
        if selection.splits is not None:
            columns["split"] = self._of_sessions(columns["session_id"], "split")
        if selection.route_ids is not None:
            columns["route_id"] = self._columns(np.arange(len(columns["at"])), ["route_id"])["route_id"]
        return np.flatnonzero(lineage.matching(columns, selection))

    def _of_sessions(self, session: Ids, name: str) -> Ids:
        return self.sessions[name][look_up(self.sessions["session_id"], session)[0]]

    # -- batches --

    def batches(
        self, selection: Selection, *, columns: Collection[str], wanted: Callable[[Ids], Ids] | None = None,
        visits: bool = False, keys: bool = False,
    ) -> Iterator[Batch]:  # fmt: skip
        """The batches of the selected log, as of `partitions.read`."""
        self._wanted = tuple(sorted({*columns, "position"} - {*OF_SESSION, *INDEX}))
        rows = self._rows(selection)
        sessions = self._index["session_id"][rows]
        ends, begin = np.r_[run_starts(sessions)[1:], len(rows)], 0
        while begin < len(rows):
            end = int(ends[min(int(np.searchsorted(ends, begin + self.batch)), len(ends) - 1)])
            yield self._batch(rows[begin:end], columns, wanted, visits=visits, keys=keys)
            begin = end

    def _batch(
        self, rows: Ids, columns: Collection[str], wanted: Callable[[Ids], Ids] | None, *, visits: bool, keys: bool
    ) -> Batch:
        index = take(self._index, rows)
        slots, counts = self._slots(rows, ("position", *sorted(_SLOTS & {*columns} - {"position"})))
        events = self._of_decisions(index)
        if "censored" in slots:
            _censor(slots, np.repeat(index["decision_id"], counts), events)
        needed = {*columns, "decision_id", "session_id", *(["context_id"] if wanted else [])} - _SLOTS
        once = {name: index[name] for name in needed & {*INDEX}}
        once |= {name: self._of_sessions(index["session_id"], name) for name in needed & {*OF_SESSION}}
        once |= self._columns(rows, needed - once.keys())
        repeated: Columns = {name: np.repeat(column, counts).astype(COLUMNS[name][0]) for name, column in once.items()}
        slots = {name: (repeated | slots)[name] for name in COLUMNS if name in repeated or name in slots}
        session = np.unique(index["session_id"])
        of_range = take(self._visits, np.isin(self._visits["session_id"], session)) if visits else None
        return Batch(
            slots=slots, events={name: events[name] for name in ("decision_id", "position", "kind", "value", "age_us")},
            contexts=self.context_texts(wanted(slots["context_id"])) if wanted else None,
            visits=of_range and {name: of_range[name] for name in VISITS},
            keys=self._keys(session) if keys else None,
        )  # fmt: skip

    def _of_decisions(self, index: Columns) -> Columns:
        """The events of decisions, one after another."""
        begin, end = (
            np.searchsorted(self._events["decision_id"], index["decision_id"], side) for side in ("left", "right")
        )
        events = take(self._events, piece_rows(begin, end - begin))
        return events | {"age_us": events["at"] - np.repeat(index["at"], end - begin)}

    def _keys(self, session: Ids) -> Columns:
        rows = look_up(self.sessions["session_id"], session)[0]
        file, line = self.sessions["file"][rows], self.sessions["line"][rows]
        columns: Columns = {"session_id": session}
        for name, column in (("key", "session"), ("user", "user")):
            texts = np.empty(len(session), np.object_)
            for number in np.unique(file).tolist():
                chosen = np.flatnonzero(file == number)
                texts[chosen] = self._raw(self.files["visits"][number], column).take(line[chosen]).fill_null("")
            columns[name] = texts
        return columns

    def _slots(self, rows: Ids, names: Sequence[str]) -> tuple[Columns, Ids]:
        """Columns of the slots of decisions, and how many each has, (n,)."""
        pieces, counts, begin, total = [], np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64), 0
        for path, chosen, line in self._by_file(rows):
            file = self._file(path)
            counts[chosen] = np.diff(file.starts)[line]
            pieces.append(take(file.slots, piece_rows(file.starts[line], counts[chosen])))
            ends = np.cumsum(counts[chosen])
            begin[chosen] = total + ends - counts[chosen]
            total += int(counts[chosen].sum())
        order = piece_rows(begin, counts)
        return {name: _joined([piece[name] for piece in pieces], COLUMNS[name][0])[order] for name in names}, counts

    def _columns(self, rows: Ids, names: Collection[str]) -> Columns:
        """Columns of decisions that are not in the index."""
        columns: Columns = {name: np.empty(len(rows), COLUMNS[name][0]) for name in names}
        for path, chosen, line in self._by_file(rows) if names else ():
            file = self._file(path)
            for name, column in columns.items():
                column[chosen] = file.decisions[name][line]
        return columns

    def _by_file(self, rows: Ids) -> Iterator[tuple[str, Ids, Ids]]:
        """Each file that has some of these rows of the index: its path, which of them, and their lines in it."""
        file, line = self._index["file"][rows], self._index["line"][rows]
        order = np.argsort(file, kind="stable")
        for chosen in np.split(order, run_starts(file[order])[1:]) if len(order) else ():
            yield self.files["decisions"][int(file[chosen[0]])], chosen, line[chosen]

    def _read(self, path: str, names: Sequence[str]) -> Any:
        return table(load_pyarrow(), self.folder, path, names)

    def _raw(self, path: str, name: str) -> Any:
        """A column of a file as Arrow has it."""

        def read() -> tuple[Any, int]:
            column = self._read(path, [name]).column(0).combine_chunks()
            return column, column.nbytes

        return self._held((path, name, "raw"), read)

    def _held(self, key: Any, read: Callable[[], tuple[Any, int]]) -> Any:
        """A value that is read once, as long as there is room for it; the eldest ones go first."""
        if key not in self._cache:
            value = read()
            while self._cache and value[1] + sum(size for _, size in self._cache.values()) > ROOM:
                del self._cache[next(iter(self._cache))]
            self._cache[key] = value
        return self._cache[key][0]

    # -- what is asked by ids, of decisions of this partition --

    def _values(self, name: str, rows: Ids) -> list[Any]:
        """The values of a column at these rows of the index, as Python has them."""
        values: list[Any] = [None] * len(rows)
        for path, chosen, line in self._by_file(rows):
            taken = self._raw(path, name).take(load_pyarrow().array(line)).to_pylist()
            for index, value in zip(chosen.tolist(), taken, strict=True):
                values[index] = value
        return values

    def _first(self, name: str, ids: Ids) -> Ids:
        """The first row of the index with each of these ids in a column."""
        values, first = self._firsts[name]
        index, present = look_up(values, ids)
        for key in ids[~present][:1].tolist():
            StoredRows[int, int](name.removesuffix("_id"))[key]
        return first[index]

    @cached_property
    def _firsts(self) -> dict[str, tuple[Ids, Ids]]:
        return {name: np.unique(self._index[name], return_index=True) for name in ("context_id", "eligible_id")}

    def context_texts(self, ids: Ids) -> ContextTexts:
        return ContextTexts(ids, self._values("context", self._first("context_id", ids)))

    def context_bodies(self, ids: Collection[int]) -> dict[int, str]:
        of_features = [key for key in ids if key in self._feature_rows]
        rows = np.array([self._feature_rows[key] for key in of_features], np.int64)
        bodies = dict(zip(of_features, self._values("arm_features", rows), strict=True))
        others = np.array([key for key in ids if key not in bodies], np.int64)
        return StoredRows(
            "context", {**bodies, **dict(zip(others.tolist(), self.context_texts(others).texts, strict=True))}.items()
        )

    def eligible_arms(self, ids: Collection[int]) -> dict[int, tuple[int, ...]]:
        wanted = np.array(sorted(ids), np.int64)
        sets = self._values("eligible_arms", self._first("eligible_id", wanted))
        return StoredRows("eligible_set", zip(wanted.tolist(), map(tuple, sets), strict=True))

    def set_sizes(self, ids: Collection[int]) -> dict[int, int]:
        return {key: len(arms) for key, arms in self.eligible_arms(ids).items()}

    def _rows_of(self, name: str, decision_ids: Collection[int]) -> dict[int, tuple[int, dict[str, Any]]]:
        """The row of a table that some of these decisions have, behind their row of the index."""
        order = np.argsort(self._index["decision_id"])
        index, present = look_up(self._index["decision_id"][order], np.array(sorted(decision_ids), np.int64))
        rows = order[index[present]]
        listed = zip(rows.tolist(), self._values(name, rows), strict=True)
        return {int(self._index["decision_id"][row]): (row, values[0]) for row, values in listed if values}

    def find_lists(self, decision_ids: Collection[int]) -> dict[int, CandidateList]:
        rows = self._rows_of("candidate_list", decision_ids)
        return {key: read_list(decision_id=key, **columns) for key, (_, columns) in rows.items()}

    def supports(self, decision_ids: Collection[int]) -> dict[int, Any]:
        rows = self._rows_of("logged_support", decision_ids)
        return {key: read_support(key, columns["probabilities"]) for key, (_, columns) in rows.items()}

    def slot_sets(self, decision_ids: Collection[int]) -> dict[int, list[list[int]]]:
        rows = self._rows_of("slot_set", decision_ids)
        return {key: read_slot_sets(key, columns["arms"]) for key, (_, columns) in rows.items()}

    def feature_contexts(self, decision_ids: Collection[int]) -> dict[int, int]:
        rows = self._rows_of("decision_features", decision_ids)
        self._feature_rows |= {columns["context_id"]: row for row, columns in rows.values()}
        return {key: columns["context_id"] for key, (_, columns) in rows.items()}


class FileColumns(NamedTuple):
    """Columns of the decisions of a file, where the slots of each begin, (n + 1,), and columns of these."""

    decisions: Columns
    starts: Ids
    slots: Columns


def _of_decision(name: str, stored: Any) -> npt.NDArray[Any]:
    """A column of decisions, by the columns of their file."""
    column = stored.column(_ELSEWHERE.get(name, name)).combine_chunks()
    if name in ("recorded", "subsampled"):
        return np.asarray(column.is_valid().to_numpy(zero_copy_only=False))
    if name == "route_id":
        routes = np.full(len(column), ABSENT)
        routes[column.value_parent_indices().to_numpy()] = column.flatten().field("route_id").to_numpy()
        return routes
    return _array(name, column.fill_null(b"") if name in ONCE else column)


def _bucket(path: str) -> int:
    """The bucket of a file, by the name of its folder."""
    return int(path.rpartition("bucket=")[2].partition("/")[0])


def _numbers(columns: Any) -> Columns:
    """The columns of a table as arrays."""
    return {name: _array(name, columns.column(name).combine_chunks()) for name in columns.column_names}


def _array(name: str, column: Any) -> npt.NDArray[Any]:
    """A column of Arrow as an array, with what stands for null."""
    kind = str(column.type)
    if kind.startswith("timestamp"):
        column = column.cast("int64")
    elif kind == "string":  # few different ones
        encoded = column.dictionary_encode()
        return np.array(encoded.dictionary.to_pylist(), np.object_)[encoded.indices.to_numpy()]
    elif kind == "binary":
        return np.array(column.to_pylist(), np.object_)
    if column.null_count:
        column = column.fill_null(_DEFAULTS.get(name, 0))
    array: npt.NDArray[Any] = column.to_numpy()
    return array.astype(COLUMNS[name][0]) if name in COLUMNS else array


def _joined(pieces: Sequence[npt.NDArray[Any]], kind: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, kind), *pieces])


def _size(column: npt.NDArray[Any]) -> int:
    """Bytes of an array, those of its objects included."""
    return column.nbytes if column.dtype != np.object_ else column.nbytes + sum(map(len, column.tolist()))


def _censor(slots: Columns, decision_id: Ids, events: Columns) -> None:
    """Let slots be censored as the last event that says so has it."""
    rows = np.flatnonzero((events["kind"] == CENSOR) & (events["position"] > 0))
    if not len(rows):
        return
    width = int(max(slots["position"].max(), events["position"].max())) + 1
    codes = (events["decision_id"] * width + events["position"])[rows]
    marked, last = np.unique(codes[::-1], return_index=True)
    index, present = look_up(marked, decision_id * width + slots["position"])
    values = events["value"][rows][::-1][last] != 0
    slots["censored"] = np.where(present, values[index], slots["censored"])
