"""The log of some persons in files of Parquet: which decisions they have, where each is, and batches of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from rlrec.app.imports.parquet_columns import SLOTS, STARTS, FileReader, concat
from rlrec.app.log import lineage
from rlrec.arrays import Flags, Ids, look_up, piece_rows, run_starts, take
from rlrec.store.database.bulk import Columns
from rlrec.store.database.unit import LogFolder, StoredRows
from rlrec.store.log.candidates import CandidateList, read_list
from rlrec.store.log.imported_data import read_slot_sets, read_support
from rlrec.store.log.reader import ABSENT, COLUMNS, Batch, ContextTexts
from rlrec.store.log.selected import LogExtent, Selection

INDEX = (
    "decision_id", "session_id", "at", "policy_id", "version_id", "variant_id", "imported", "step", "size",
    "context_id", "eligible_id",
)  # fmt: skip
VISITS = ("session_id", "number", "started_at", "last_at", "ended_at", "steps")
SESSION_COLUMNS = ("user_id", "user_digest", "session_digest", "split", "created_at")
EVENTS = ("decision_id", "number", "position", "kind", "value", "at")
CENSOR = "!censor"


class SelectionCounts(NamedTuple):
    """The extent of some decisions, and how many each version served."""

    extent: LogExtent
    versions: Counter[int]

    def __add__(self, other: SelectionCounts) -> SelectionCounts:  # type: ignore[override]
        if not self.versions or not other.versions:
            return self if self.versions else other
        first, second = self.extent, other.extent
        extent = LogExtent(
            max(first.positions, second.positions), max(first.steps, second.steps),
            min(first.first_version, second.first_version), max(first.last_version, second.last_version),
            first.decisions + second.decisions, min(first.first_at, second.first_at),
            max(first.last_at, second.last_at),
        )  # fmt: skip
        return SelectionCounts(extent, self.versions + other.versions)


class FolderPartition(LogFolder):
    """The log of the persons of some buckets. It is named by its files, and reads them where it is worked on.

    moved: the partition of sessions that left their bucket; batch: decisions of a batch, about; children: columns of
    lists that are not empty everywhere."""

    def __init__(
        self, folder: str, files: Mapping[str, Sequence[str]], number: int, index: int, moved: Mapping[int, int],
        batch: int, children: frozenset[str],
    ) -> None:  # fmt: skip
        self._named = folder, files, number, index, moved, batch, children
        self.files, self.batch, self.children, self._reader = files, batch, children, FileReader(folder)
        self._needed: tuple[str, ...] = ()  # columns beside the index that files are read for
        self._feature_rows: dict[int, int] = {}  # the row of a context that holds features of arms

    def __reduce__(self) -> tuple[Any, ...]:
        return FolderPartition, self._named

    # -- persons --

    @cached_property
    def _visits(self) -> Columns:
        """The newest row of each visit, by session and number, with the columns of its session."""
        names = [*VISITS, *SESSION_COLUMNS]
        pieces = [self._reader.numbers(path, names) for path in self.files["visits"]]
        columns = {name: concat([piece[name] for piece in pieces], np.int64) for name in names}
        columns["file"] = np.repeat(np.arange(len(pieces)), [len(piece["number"]) for piece in pieces])
        columns["line"] = concat([np.arange(len(piece["number"])) for piece in pieces], np.int64)
        columns = take(columns, self._belongs(columns["session_id"], self.files["visits"], columns["file"]))
        order = np.lexsort((columns["file"], columns["number"], columns["session_id"]))
        last = run_starts(columns["session_id"][order], columns["number"][order])[1:] - 1
        return take(columns, order[np.r_[last, len(order) - 1]] if len(order) else order)

    @cached_property
    def sessions(self) -> Columns:
        """The columns of each session, by its id."""
        return take(self._visits, run_starts(self._visits["session_id"]))

    def _belongs(self, session: Ids, paths: Sequence[str], file: Ids) -> Flags:
        """Whether sessions belong to this partition, (n,). file: of each row, its index among the paths."""
        _, _, number, index, moved, *_ = self._named
        home = (buckets_of(paths) % number)[file]
        if moved:
            changed = np.array(sorted(moved), np.int64)
            changed_rows, has_moved = look_up(changed, session)
            home = np.where(has_moved, np.array([moved[key] for key in changed.tolist()])[changed_rows], home)
        return home == index

    def any_returned(self) -> bool:
        """Whether some person has several visits."""
        visits = self._visits
        person = np.where(visits["user_id"] != ABSENT, -visits["user_id"], visits["session_id"])
        return len(np.unique(person)) < len(person)

    def oldest_running(self, *, timeout_us: int, window_us: int, since: int, now: int) -> int | None:
        visits = self._visits
        is_running = (visits["ended_at"] == ABSENT) & (visits["last_at"] + timeout_us >= now)
        is_running |= visits["last_at"] + window_us >= now
        is_running &= visits["started_at"] >= since
        return int(visits["started_at"][is_running].min()) if is_running.any() else None

    # -- decisions: an index of all of them, by session and id; `file` and `line` say where each is --

    @cached_property
    def _index(self) -> Columns:
        pieces = [self._reader.decisions(path, self._needed, passing=INDEX) for path in self.files["decisions"]]
        columns = {name: concat([piece[name] for piece in pieces], np.int64) for name in INDEX}
        columns["file"] = np.repeat(np.arange(len(pieces)), [len(piece["step"]) for piece in pieces])
        columns["line"] = concat([np.arange(len(piece["step"])) for piece in pieces], np.int64)
        member_rows = np.flatnonzero(self._belongs(columns["session_id"], self.files["decisions"], columns["file"]))
        order = member_rows[np.lexsort((columns["decision_id"][member_rows], columns["session_id"][member_rows]))]
        return take(columns, order)

    @cached_property
    def _events(self) -> Columns:
        """All events of these decisions, by decision and number."""
        pieces = [self._reader.numbers(path, EVENTS) for path in self.files["events"]]
        kinds: dict[str, type] = {"value": np.float64, "kind": np.object_}
        columns = {name: concat([entry[name] for entry in pieces], kinds.get(name, np.int64)) for name in EVENTS}
        return take(columns, np.lexsort((columns["number"], columns["decision_id"])))

    def largest(self, kinds: Collection[str], *, slots_only: bool) -> dict[str, float]:
        events, largest = self._events, {}
        for kind in kinds:
            rows = (events["kind"] == kind) & ((events["position"] > 0) | (not slots_only))
            if rows.any():
                largest[kind] = float(np.abs(events["value"][rows]).max())
        return largest

    def any_row(self, name: str) -> bool:
        return name in self.children

    def counts(self, selection: Selection) -> SelectionCounts:
        """The counts of the selected decisions."""
        rows = take(self._index, self._rows(selection))
        if not len(rows["at"]):
            return SelectionCounts(LogExtent(0, 0, 0, 0, 0), Counter())
        versions = dict(
            zip(*(entry.tolist() for entry in np.unique(rows["version_id"], return_counts=True)), strict=True)
        )
        extent = LogExtent(
            int(rows["size"].max()), int(rows["step"].max()) + 1, min(versions), max(versions), len(rows["at"]),
            int(rows["at"].min()), int(rows["at"].max()),
        )  # fmt: skip
        return SelectionCounts(extent, Counter(versions))

    def decision_ids(self, selection: Selection) -> Ids:
        """The ids of the selected decisions."""
        return self._index["decision_id"][self._rows(selection)]

    def _rows(self, selection: Selection) -> Ids:
        """The selected rows of the index."""
        if selection.route_ids is not None:
            self._needed = tuple({*self._needed, "route_id"})
        columns = dict(self._index)
        if selection.splits is not None:
            columns |= self._session_columns(columns["session_id"], "split")
        if selection.route_ids is not None:
            columns |= self._columns(np.arange(len(columns["at"])), ["route_id"])
        return np.flatnonzero(lineage.select_rows(columns, selection))

    def _session_columns(self, session: Ids, *names: str) -> Columns:
        """Columns of the sessions of decisions."""
        rows = look_up(self.sessions["session_id"], session)[0]
        return {name: self.sessions[name][rows] for name in names}

    # -- batches --

    def batches(
        self, selection: Selection, *, columns: Collection[str], pick_contexts: Callable[[Ids], Ids] | None = None,
        visits: bool = False, keys: bool = False,
    ) -> Iterator[Batch]:  # fmt: skip
        """The batches of the selected log, as of `partitions.read`."""
        self._needed = tuple(sorted({*columns, "position"} - {*SESSION_COLUMNS, *INDEX}))
        rows = self._rows(selection)
        sessions = self._index["session_id"][rows]
        ends, begin = np.r_[run_starts(sessions)[1:], len(rows)], 0
        while begin < len(rows):
            end = int(ends[min(int(np.searchsorted(ends, begin + self.batch)), len(ends) - 1)])
            yield self._batch(rows[begin:end], columns, pick_contexts, visits=visits, keys=keys)
            begin = end

    def _batch(
        self,
        rows: Ids,
        columns: Collection[str],
        wanted_contexts: Callable[[Ids], Ids] | None,
        *,
        visits: bool,
        keys: bool,
    ) -> Batch:
        index = take(self._index, rows)
        slots, counts = self._slots(rows, ("position", *sorted(SLOTS & {*columns} - {"position"})))
        events = self._decision_events(index)
        if "censored" in slots:
            _censor(slots, np.repeat(index["decision_id"], counts), events)
        needed_columns = {*columns, "decision_id", "session_id", *(["context_id"] if wanted_contexts else [])} - SLOTS
        singles = {name: index[name] for name in needed_columns & {*INDEX}}
        singles |= self._session_columns(index["session_id"], *(needed_columns & {*SESSION_COLUMNS}))
        singles |= self._columns(rows, needed_columns - singles.keys())
        repeated: Columns = {
            name: np.repeat(column, counts).astype(COLUMNS[name][0]) for name, column in singles.items()
        }
        slots = {name: (repeated | slots)[name] for name in COLUMNS if name in repeated or name in slots}
        session = index["session_id"][run_starts(index["session_id"])]
        rows_of_visits = take(self._visits, np.isin(self._visits["session_id"], session)) if visits else None
        return Batch(
            slots=slots, events={name: events[name] for name in ("decision_id", "position", "kind", "value", "age_us")},
            contexts=self.context_texts(wanted_contexts(slots["context_id"])) if wanted_contexts else None,
            visits=rows_of_visits and {name: rows_of_visits[name] for name in VISITS},
            keys=self._keys(session) if keys else None,
        )  # fmt: skip

    def _decision_events(self, index: Columns) -> Columns:
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
                picks = np.flatnonzero(file == number)
                values = self._reader.values(self.files["visits"][number], column, line[picks])
                texts[picks] = [value or "" for value in values]
            columns[name] = texts
        return columns

    def _slots(self, rows: Ids, names: Sequence[str]) -> tuple[Columns, Ids]:
        """Columns of the slots of decisions, and how many each has, (n,)."""
        pieces, counts, begin, total = [], np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64), 0
        for path, picks, line in self._by_file(rows):
            file = self._reader.decisions(path, self._needed)
            counts[picks] = np.diff(file[STARTS])[line]
            slots = piece_rows(file[STARTS][line], counts[picks])
            pieces.append({name: file[name][slots] for name in names})
            ends = np.cumsum(counts[picks])
            begin[picks] = total + ends - counts[picks]
            total += int(counts[picks].sum())
        order = piece_rows(begin, counts)
        return {name: concat([piece[name] for piece in pieces], COLUMNS[name][0])[order] for name in names}, counts

    def _columns(self, rows: Ids, names: Collection[str]) -> Columns:
        """Columns of decisions that are not in the index."""
        columns: Columns = {name: np.empty(len(rows), COLUMNS[name][0]) for name in names}
        for path, picks, line in self._by_file(rows) if names else ():
            file = self._reader.decisions(path, self._needed)
            for name, column in columns.items():
                column[picks] = file[name][line]
        return columns

    def _by_file(self, rows: Ids) -> Iterator[tuple[str, Ids, Ids]]:
        """Each file that has some of these rows of the index: its path, which of them, and their lines in it."""
        file, line = self._index["file"][rows], self._index["line"][rows]
        order = np.argsort(file, kind="stable")
        for picks in np.split(order, run_starts(file[order])[1:]) if len(order) else ():
            yield self.files["decisions"][int(file[picks[0]])], picks, line[picks]

    # -- what is asked by ids, of decisions of this partition --

    def _values(self, name: str, rows: Ids) -> list[Any]:
        """The values of a column at these rows of the index, as Python has them."""
        values: list[Any] = [None] * len(rows)
        for path, picks, line in self._by_file(rows):
            for index, value in zip(picks.tolist(), self._reader.values(path, name, line), strict=True):
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
        featured = [key for key in ids if key in self._feature_rows]
        rows = np.array([self._feature_rows[key] for key in featured], np.int64)
        bodies = dict(zip(featured, self._values("arm_features", rows), strict=True))
        plain = np.array([key for key in ids if key not in bodies], np.int64)
        return StoredRows(
            "context",
            {**bodies, **dict(zip(plain.tolist(), self.context_texts(plain).texts, strict=True))}.items(),
        )

    def eligible_arms(self, ids: Collection[int]) -> dict[int, tuple[int, ...]]:
        wanted_contexts = np.array(sorted(ids), np.int64)
        sets = self._values("eligible_arms", self._first("eligible_id", wanted_contexts))
        return StoredRows("eligible_set", zip(wanted_contexts.tolist(), map(tuple, sets), strict=True))

    def set_sizes(self, ids: Collection[int]) -> dict[int, int]:
        return {key: len(arms) for key, arms in self.eligible_arms(ids).items()}

    def _rows_of(self, name: str, decision_ids: Collection[int]) -> dict[int, tuple[int, dict[str, Any]]]:
        """The row of a table that some of these decisions have, behind their row of the index."""
        order = np.argsort(self._index["decision_id"])
        index, present = look_up(self._index["decision_id"][order], np.array(sorted(decision_ids), np.int64))
        rows = order[index[present]]
        entries = zip(rows.tolist(), self._values(name, rows), strict=True)
        return {int(self._index["decision_id"][row]): (row, values[0]) for row, values in entries if values}

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


def buckets_of(paths: Sequence[str]) -> Ids:
    """The buckets of files, (n,), by the names of their folders."""
    return np.array([int(path.rpartition("bucket=")[2].partition("/")[0]) for path in paths], np.int64)


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
