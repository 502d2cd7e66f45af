"""Visits on disk: written as they come, then read in batches, in the order of digests of their names.

What is read, and in which order, follows from the keys of visits and arms alone, never from ids: the same log in
another order trains the same parameters. Files have no name, and end with the process; what is read is a view of the
file where that can be: nothing is copied, and it counts as memory only while it is in use."""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rlrec.app.log.splits import TRAIN
from rlrec.arrays import Array, Ids, Index, distinct, offsets
from rlrec.errors import RlrecError
from rlrec.ope.units.strata import NO_LOGGER, Stratum
from rlrec.policy.contexts.features import Sparse
from rlrec.policy.gradients.gradient import State
from rlrec.policy.gradients.natural import FOLDS

ALIGNED = 64  # bytes; arrays begin at multiples of it

Arrays = Mapping[str, npt.NDArray[Any]]
_ROOM = "set TMPDIR to a folder with room: half a kB for each decision of the log"


# -- files --


class _UnnamedFile:
    """A file that ends with the process. Raises RlrecError where there is no folder, or no room, for it."""

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="rlrec-", buffering=0)  # noqa: SIM115 (closed by `close`)
        except FileNotFoundError as error:
            raise RlrecError("no temporary folder can be written to", hint=_ROOM) from error

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            folder = tempfile.gettempdir()
            raise RlrecError(f"cannot write to the temporary folder {folder}: {error.strerror}", hint=_ROOM) from error


class ArrayFile(_UnnamedFile):
    """Numbered records: objects whose arrays stay in the file."""

    def __init__(self) -> None:
        super().__init__()
        self._begins = array("q", [0])
        self._lengths: list[array[int]] = []  # of the pickle of each record, and of its arrays

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, record: object) -> None:
        """Write one more record: its pickle, then the arrays."""
        buffers: list[pickle.PickleBuffer] = []
        content = pickle.dumps(record, protocol=5, buffer_callback=buffers.append)
        blocks = [content, *(buffer.raw() for buffer in buffers)]
        self._lengths.append(array("q", map(len, blocks)))
        content = b"".join(bytes(block).ljust(_round_up(len(block)), b"\0") for block in blocks)
        self._write(content)
        self._begins.append(self._begins[-1] + len(content))

    def read(self, number: int) -> Any:
        """A record; its arrays are read-only."""
        begin, end = self._begins[number : number + 2]
        at = begin % mmap.ALLOCATIONGRANULARITY
        view = memoryview(mmap.mmap(self._file.fileno(), end - begin + at, access=mmap.ACCESS_READ, offset=begin - at))
        blocks = []
        for length in self._lengths[number]:
            blocks.append(view[at : at + length])
            at += _round_up(length)
        return pickle.loads(blocks[0], buffers=blocks[1:])


def _round_up(length: int) -> int:
    return -(-length // ALIGNED) * ALIGNED


class RowFile(_UnnamedFile):
    """Rows of several columns in a file without a name: appended, then gathered in any order. All have the names, types
    and widths of the first."""

    def __init__(self) -> None:
        super().__init__()
        self._dtype: np.dtype[Any] | None = None
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, columns: Arrays) -> None:
        """Write some more rows."""
        if self._dtype is None:
            self._dtype = np.dtype([(name, values.dtype, values.shape[1:]) for name, values in columns.items()])
        rows = np.empty(len(next(iter(columns.values()))), self._dtype)
        for name, values in columns.items():
            rows[name] = values
        self._write(rows.tobytes())
        self._length += len(rows)

    def gather(self, begins: Ids, lengths: Ids) -> dict[str, npt.NDArray[Any]]:
        """Runs of rows, end to end, column by column. They are read: a map would hold what lies around them too."""
        assert self._dtype is not None
        file, size = self._file.fileno(), self._dtype.itemsize
        runs = zip((begins * size).tolist(), (lengths * size).tolist(), strict=True)
        rows = np.frombuffer(b"".join([os.pread(file, length, begin) for begin, length in runs]), self._dtype)
        return {name: np.ascontiguousarray(rows[name]) for name in self._dtype.names or ()}


# -- visits --


@dataclass(frozen=True, eq=False)
class Catalogue:
    """features (m, p) of all arms that are trained, as they were described at a time, in order of their keys."""

    features: Array

    @cached_property
    def digest(self) -> bytes:
        """A digest of the features: equal for equal descriptions, whatever the time."""
        return blake2b(self.features.astype("<f8").tobytes(), digest_size=16).digest()


@dataclass(frozen=True, eq=False)
class EligibleSet:
    """Eligible arms as they were described: their indices (m,) among those that are trained, ascending."""

    catalogue: Catalogue
    arms: Index


@dataclass(frozen=True, kw_only=True, eq=False)
class VisitRows:
    """Visits end to end.
    eligible_sets: the different ones of the decisions.
    One a visit, (s,): name, a digest of session and visit; split; cluster, a digest of the user or session; stratum, an
    index of the logger and half that it counts for; length, its decisions.
    One a decision, (n,): eligible, the index of its eligible set; size, its positions; remembered, how many arms its
    state remembers; log_propensity of the slate; reward of the slate; default, 1 where no event counted; lowest, the
    log of the smallest probability that any slate could have had (NaN: not known); x (n, d), features of its state.
    One a slot, (i,): shown, the index of its arm; earned, its reward; divided, that over the examination of its
    position; logged, its log propensity whatever stands above; conditional, that given the slots above.
    One an arm remembered, (e,), if it is eligible: arm, its index; memory (e, 4), what is known of it.
    Indices of arms are those among all that are trained. words: what else sparse contexts of the decisions have."""

    eligible_sets: Sequence[EligibleSet]
    name: npt.NDArray[np.uint64]
    split: Ids
    cluster: Ids
    stratum: Ids
    length: Ids
    eligible: Ids
    size: Ids
    remembered: Ids
    log_propensity: Array
    reward: Array
    default: Ids
    lowest: Array
    x: Array
    shown: Ids
    earned: Array
    divided: Array
    logged: Array
    conditional: Array
    arm: Ids
    memory: Array
    words: Sparse | None = None

    def __len__(self) -> int:
        return len(self.name)

    def packed(self) -> Self:
        """The same rows as they are written."""
        columns: dict[str, Any] = _columns(self, {**DECISION, **SLOT, **ARM})
        return replace(self, **columns)

    @property
    def start(self) -> Ids:
        """Index of the first decision of each visit, and of the end, (s + 1,)."""
        return offsets(self.length)

    @property
    def first(self) -> Ids:
        """Index of the first slot of each decision, and of the end, (n + 1,)."""
        return offsets(self.size)

    def state(self) -> State:
        """The states of the decisions."""
        row = np.repeat(np.arange(len(self.eligible)), self.remembered)
        return State(self.x, row, self.arm, self.memory, self.words)


# Columns and how they are written: features are of the size of 1, and indices are small.
DECISION = {"size": "i4", "remembered": "i4", "log_propensity": "f8", "reward": "f8", "default": "i1",
            "lowest": "f8", "x": "f4"}  # fmt: skip
SET = {"catalogue": "i4", "begin": "i8", "count": "i4"}  # one a decision: where its eligible set is written
SLOT = {"shown": "i4", "earned": "f8", "divided": "f8", "logged": "f8", "conditional": "f8"}
ARM = {"arm": "i4", "memory": "f4"}
WORD = {"column": "i4", "value": "f4"}  # of sparse contexts, "words" a decision
VISIT = {"name": "u8", "split": "i1", "cluster": "i8", "stratum": "i1", "length": "i4"}
SETS = ("catalogue", "count", "eligible_arms")  # one an eligible set of a batch; then the arms of all of them
FILES = ("decisions", "slots", "arms", "words")  # a visit has rows in each
IN_MEMORY = ("name", "split", "cluster")  # of VISIT, until the visits are arranged


class DatasetSplit:
    """The visits of one split, by name, in batches of about one size.
    strata: of its visits, by their indices. visits: how many; longest: decisions of the longest; spans_batches: whether
    some cluster has several visits."""

    def __init__(self, catalogues: Sequence[Catalogue], cluster: Ids, strata: Sequence[Stratum] = (NO_LOGGER,)) -> None:
        self.strata, self.visits, self.longest = strata, len(cluster), 1
        self.spans_batches = len(np.unique(cluster)) < len(cluster)
        self._catalogues, self._file = catalogues, ArrayFile()

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def add(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write one more batch: all columns of VisitRows, and those of its eligible sets."""
        self.longest = max(self.longest, int(columns["length"].max()))
        self._file.add(dict(columns))

    def batches(self, max_visits: int | None = None) -> Iterator[VisitRows]:
        """The batches in order. max_visits: end before the batch that would exceed as many, but give one at least."""
        total = 0
        for number in range(len(self._file)):
            rows = self._read(number)
            total += len(rows)
            if number and max_visits is not None and total > max_visits:
                return
            yield rows

    def _read(self, number: int) -> VisitRows:
        columns: dict[str, Any] = self._file.read(number)
        columns = {
            name: values.astype(np.int64) if values.dtype.kind == "i" else values for name, values in columns.items()
        }
        catalogue, count, arms = (columns.pop(name) for name in SETS)
        pieces = np.split(arms, np.cumsum(count)[:-1])
        sets = [EligibleSet(self._catalogues[at], piece) for at, piece in zip(catalogue.tolist(), pieces, strict=True)]
        words = _words_of(columns)
        return VisitRows(eligible_sets=sets, words=words if len(words.column) else None, **columns)


def _columns(rows: VisitRows | Sparse, types: Mapping[str, str]) -> dict[str, npt.NDArray[Any]]:
    """Columns of rows in the types in which they are written."""
    return {name: np.asarray(getattr(rows, name), dtype) for name, dtype in types.items()}


def _words_of(columns: dict[str, Any]) -> Sparse:
    """The words of decisions, which are taken out of these columns."""
    words, column, value = (columns.pop(name) for name in ("words", *WORD))
    return Sparse(offsets(words.astype(np.int64)).astype(np.int32), column, value)


class Dataset:
    """Visits as they are written, and then by split. strata: by the index that visits have."""

    def __init__(self) -> None:
        self.strata: Sequence[Stratum] = (NO_LOGGER,)
        self.splits: dict[int, DatasetSplit] = {}
        self._catalogues: dict[bytes, Catalogue] = {}
        self._files = {name: RowFile() for name in FILES}
        self._index, self._eligible = RowFile(), RowFile()  # a row for each visit, and for each arm of an eligible set
        self._visits = [{name: np.empty(0, VISIT[name]) for name in IN_MEMORY}]
        self._has_column = np.zeros(0, np.bool_)

    @property
    def columns(self) -> Ids:
        """The columns of sparse contexts that visits which teach have, ascending."""
        return np.flatnonzero(self._has_column)

    def close(self) -> None:
        """Let the files go."""
        self._close_files()
        for split in self.splits.values():
            split.close()

    def _close_files(self) -> None:
        for file in (self._index, self._eligible, *self._files.values()):
            file.close()

    def add(self, rows: VisitRows) -> None:
        """Write some more visits."""
        words = rows.words or Sparse.empty(len(rows.eligible))
        columns_taught = words.column[np.repeat(rows.split == TRAIN, rows.length)[words.row]]
        if len(columns_taught):
            width = max(len(self._has_column), int(columns_taught.max()) + 1)
            self._has_column = np.pad(self._has_column, (0, width - len(self._has_column)))
            self._has_column[columns_taught] = True
        n_words = np.diff(words.start)
        decisions = _columns(rows, DECISION) | {"words": n_words} | self._write_sets(rows)
        tables = decisions, _columns(rows, SLOT), _columns(rows, ARM), _columns(words, WORD)
        # where the rows of each visit begin in each file, and how many they are
        visits = _columns(rows, VISIT)
        self._visits.append({name: visits[name] for name in IN_MEMORY})
        lengths = np.ones(len(rows.eligible), np.int64), rows.size, rows.remembered, n_words
        for (name, file), columns, length in zip(self._files.items(), tables, lengths, strict=True):
            count = np.add.reduceat(length, rows.start[:-1])
            visits |= {f"{name}_begin": len(file) + np.cumsum(count) - count, f"{name}_count": count}
            file.append(columns)
        self._index.append(visits)

    def _write_sets(self, rows: VisitRows) -> dict[str, npt.NDArray[Any]]:
        """Write the eligible sets of some visits: the columns SET of their decisions."""
        sets = rows.eligible_sets
        for eligible in sets:
            self._catalogues.setdefault(eligible.catalogue.digest, eligible.catalogue)
        numbers = {digest: number for number, digest in enumerate(self._catalogues)}
        count = np.array([len(eligible.arms) for eligible in sets], np.int64)
        catalogue = [numbers[eligible.catalogue.digest] for eligible in sets]
        begin = len(self._eligible) + np.cumsum(count) - count
        self._eligible.append({"arm": np.concatenate([eligible.arms for eligible in sets]).astype("i4")})
        return {
            name: np.array(values, SET[name])[rows.eligible]
            for name, values in zip(SET, (catalogue, begin, count), strict=True)
        }

    def batch(self, max_visits: int) -> int:
        """Visits of a batch of those that teach: at most so many, and so few that their gradients can be compared."""
        count = sum(int((visits["split"] == TRAIN).sum()) for visits in self._visits)
        return max(1, min(max_visits, -(-count // FOLDS)))

    def arrange(self, sizes: Mapping[int, int], *, weighed: Ids | None = None) -> None:
        """Put all that was written into splits, those named, in batches of at most so many visits. weighed: the columns
        of sparse contexts that stay, numbered by their index among these."""
        catalogues = list(self._catalogues.values())
        names, splits, clusters = (np.concatenate([visits[name] for visits in self._visits]) for name in IN_MEMORY)
        for number, max_visits in sizes.items():
            members = np.flatnonzero(splits == number)
            members = members[np.argsort(names[members], kind="stable")]
            split = self.splits[number] = DatasetSplit(catalogues, clusters[members], self.strata)
            for batch in np.array_split(members, -(-len(members) // max_visits)) if len(members) else ():
                visits = self._index.gather(batch, np.ones_like(batch))
                columns = {name: visits[name] for name in VISIT}
                for name, file in self._files.items():
                    columns |= file.gather(visits[f"{name}_begin"], visits[f"{name}_count"])
                words = _words_of(columns).select_columns(np.empty(0, np.int64) if weighed is None else weighed)
                columns |= {"words": np.diff(words.start), "column": words.column, "value": words.value}
                split.add(columns | self._read_sets(*(columns.pop(column) for column in SET)))
        self._close_files()

    def _read_sets(self, catalogue: Ids, begin: Ids, count: Ids) -> dict[str, npt.NDArray[Any]]:
        """The eligible sets of some decisions by where each is written, in the order of their contents: the columns
        `eligible` and SETS."""
        # the different places where sets are written, and the arms there
        first, set_index = distinct(catalogue, begin)
        numbers, lengths = catalogue[first].tolist(), count[first].astype(np.int64)
        arms = self._eligible.gather(begin[first], lengths)["arm"]
        pieces = [piece.tobytes() for piece in np.split(arms, np.cumsum(lengths)[:-1])]
        sets = list(zip(numbers, pieces, strict=True))
        # the different sets, ordered by catalogue and arms
        digests = list(self._catalogues)
        sorted_sets = sorted(set(sets), key=lambda eligible: (digests[eligible[0]], eligible[1]))
        rank = {eligible: number for number, eligible in enumerate(sorted_sets)}
        # their columns
        catalogues = np.array([number for number, _ in sorted_sets], arms.dtype)
        counts = np.array([len(piece) // arms.itemsize for _, piece in sorted_sets], arms.dtype)
        members = np.frombuffer(b"".join(piece for _, piece in sorted_sets), arms.dtype)
        columns = dict(zip(SETS, (catalogues, counts, members), strict=True))
        return {"eligible": np.array([rank[eligible] for eligible in sets], arms.dtype)[set_index], **columns}
