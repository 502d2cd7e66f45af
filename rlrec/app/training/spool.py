"""Visits as arrays in a file without a name: written once, then read set by set as often as training needs them.

What is read, and in which order, hangs on the names of visits and arms alone, never on ids: the same log in another
order trains the same parameters. In memory are 40 bytes a visit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec.app.designs import Ids
from rlrec.policy.gradient import State
from rlrec.policy.scores import Array, Index

NARROW = "<f4"  # of features: they are of the size of 1
MOVED = 500  # visits that are moved at a time: what lies around them counts as memory meanwhile


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """An eligible set as it was described: places (m,) of its arms among those that are trained, ascending, and their
    features (m, p). Arms are in order of their keys."""

    places: Index
    described: Array

    @cached_property
    def name(self) -> bytes:
        """What it is, whatever its number: sums over cases are taken in the order of their names."""
        told = self.places.astype("<i8").tobytes() + self.described.astype("<f8").tobytes()
        return blake2b(told, digest_size=16).digest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Visits end to end.

    Of each visit, (s,): name, a hash of what it is called; split; cluster, who was randomised; length, its decisions.
    Of each decision, (n,): case; size of its page; remembered, how many arms its state remembers; log_propensity of
    the page; reward of the page; default, 1 where nothing that counts happened; lowest, the log of the smallest
    probability that any page could have had (NaN: not known); x (n, d) features of its state.
    Of each slot, (i,): shown, the place of its arm in the case; earned, its reward; logged, its own log propensity.
    Of each arm remembered, (e,): place in the case; own (e, 4)."""

    name: npt.NDArray[np.uint64]
    split: Ids
    cluster: Ids
    length: Ids
    case: Ids
    size: Ids
    remembered: Ids
    log_propensity: Array
    reward: Array
    default: Ids
    lowest: Array
    x: Array
    shown: Ids
    earned: Array
    logged: Array
    place: Ids
    own: Array

    def __len__(self) -> int:
        return len(self.name)

    @property
    def start(self) -> Ids:
        """Where each visit's decisions begin, (s + 1,)."""
        return _ends(self.length)

    @property
    def first(self) -> Ids:
        """Where each decision's slots begin, (n + 1,)."""
        return _ends(self.size)

    def state(self) -> State:
        """The states of the decisions; arms are places in their case."""
        return State(self.x, np.repeat(np.arange(len(self.case)), self.remembered), self.place, self.own)


VISIT, DECISION, SLOT, ARM = (
    ("name", "split", "cluster", "length"),
    ("case", "size", "remembered", "log_propensity", "reward", "default", "lowest", "x"),
    ("shown", "earned", "logged"),
    ("place", "own"),
)
_KINDS = {"case": "<i4", "size": "<i4", "remembered": "<i4", "default": "<i1", "x": NARROW, "shown": "<i4",
          "place": "<i4", "own": NARROW}  # fmt: skip


def _inside(begin: Ids, length: Ids) -> Ids:
    """Places of rows that lie in runs."""
    found: Ids = np.repeat(begin - np.cumsum(length) + length, length) + np.arange(int(length.sum()))
    return found


def _ends(lengths: Ids) -> Ids:
    found: Ids = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return found


class Spool:
    """Visits that were written, in the order of their names."""

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self._columns: dict[str, _Column] = {}
        self._index: list[tuple[Ids, ...]] = []
        self._counts = [0, 0, 0]  # decisions, slots, arms written
        self._known: tuple[Ids, ...] | None = None

    def close(self) -> None:
        """Let the files go."""
        for column in self._columns.values():
            column.close()

    def add(self, rows: Rows) -> None:
        """Write some more visits."""
        for name in (*DECISION, *SLOT, *ARM):
            values = np.asarray(getattr(rows, name))
            if name not in self._columns:
                self._columns[name] = _Column(_KINDS.get(name, "<f8"), values.shape[1:])
            self._columns[name].append(values)
        start = rows.start
        slots, arms = (np.add.reduceat(np.r_[counts, 0], start[:-1]) if len(rows) else counts
                       for counts in (rows.size, rows.remembered))  # fmt: skip
        lengths = rows.length, slots, arms
        begins = [base + np.cumsum(length) - length for base, length in zip(self._counts, lengths, strict=True)]
        self._index.append((rows.name.view(np.int64), rows.split, rows.cluster, *lengths, *begins))
        self._counts = [count + int(length.sum()) for count, length in zip(self._counts, lengths, strict=True)]
        self._known = None

    def index(self) -> tuple[Ids, ...]:
        """Of all visits, (s,) each, by split and name: name, split, cluster, decisions, slots and arms, and where these
        begin. They lie in that order from then on: what is read together lies together."""
        if self._known is None:
            empty = [np.empty(0, np.int64)] * 9
            whole = [np.concatenate(column) for column in zip(*self._index, strict=True)] if self._index else empty
            order = np.lexsort((whole[0].view(np.uint64), whole[1]))
            self._arrange([column[order] for column in whole])
        assert self._known is not None
        return self._known

    def _arrange(self, index: list[Ids]) -> None:
        """Write the visits anew in this order."""
        before, self._columns = self._columns, {}
        lengths = index[3:6]
        for names, length, begin in zip((DECISION, SLOT, ARM), lengths, index[6:], strict=True):
            for name in names if before else ():
                self._columns[name] = column = before[name].empty()
                for start in range(0, len(length), MOVED):
                    part = slice(start, start + MOVED)
                    column.append(before[name].read(_inside(begin[part], length[part])))
                before[name].close()
        begins = [np.cumsum(length) - length for length in lengths]
        self._index = [(index[0], index[1], index[2], *lengths, *begins)]
        self._known = self._index[0]

    def of(self, *splits: int) -> Ids:
        """The visits of some splits, by name."""
        return np.flatnonzero(np.isin(self.index()[1], splits))

    def decisions(self, visits: Ids) -> int:
        """How many decisions some visits have."""
        return int(self.index()[3][visits].sum())

    def sets(self, visits: Ids, *, size: int) -> Iterator[Ids]:
        """Visits in sets of at most `size`, all of about one size."""
        count = max(1, -(-len(visits) // size))
        yield from (one for one in np.array_split(visits, count) if len(one))

    def read(self, visits: Ids) -> Rows:
        """Some visits, in the order given."""
        name, split, cluster, *places = (column[visits] for column in self.index())
        lengths, begins = places[:3], places[3:]
        found: dict[str, Any] = {
            "name": name.view(np.uint64), "split": split, "cluster": cluster, "length": lengths[0],
        }  # fmt: skip
        for names, length, begin in zip((DECISION, SLOT, ARM), lengths, begins, strict=True):
            together = len(visits) > 0 and int(visits[-1] - visits[0]) == len(visits) - 1
            rows = slice(int(begin[0]), int(begin[-1] + length[-1])) if together else _inside(begin, length)
            found |= {column: self._columns[column].read(rows) for column in names}
        return Rows(**{one.name: found[one.name] for one in fields(Rows)})


class _Column:
    """Numbers of one kind, each of some shape, in a file that vanishes with the process."""

    def __init__(self, kind: str, shape: tuple[int, ...]) -> None:
        self._kind, self._shape, self._rows = np.dtype(kind), shape, 0
        self._file = tempfile.TemporaryFile(prefix="rlrec-")  # noqa: SIM115 (it lives as long as the column)

    def empty(self) -> _Column:
        """Another one for numbers of that kind and shape."""
        return _Column(self._kind.str, self._shape)

    def close(self) -> None:
        self._file.close()

    def append(self, values: npt.NDArray[Any]) -> None:
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(values, self._kind).tobytes())
        self._rows += len(values)

    def read(self, rows: Index | slice) -> npt.NDArray[Any]:
        """Copies: what is mapped would count as memory of the process, however long the log."""
        n = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        wide = self._kind.itemsize * int(np.prod(self._shape))
        if not n or not wide:
            return np.zeros((n, *self._shape), self._kind)
        self._file.flush()
        if isinstance(rows, slice):
            found: npt.NDArray[Any] = np.empty((n, *self._shape), self._kind)
            self._file.seek(rows.start * wide)
            self._file.readinto(found.data.cast("B"))
        else:
            found = np.memmap(self._file, self._kind, "r", shape=(self._rows, *self._shape))[rows]
        return found if found.dtype == NARROW else found.astype(np.float64 if found.dtype.kind == "f" else np.int64)
