"""Visits on disk: written as they come, then read in sets, in the order of their names.

What is read, and in which order, hangs on the names of visits and arms alone, never on ids: the same log in another
order trains the same parameters. In memory are some 40 bytes a visit, and only until they are in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec.app.training.array_file import Sets, Table
from rlrec.arrays import Array, Ids, Index, distinct
from rlrec.policy.gradient import State


@dataclass(frozen=True, eq=False)
class Catalogue:
    """features (m, p) of all arms that are trained, as they were described at a time, in order of their keys."""

    features: Array

    @cached_property
    def name(self) -> bytes:
        """What it is, whenever it was."""
        return blake2b(self.features.astype("<f8").tobytes(), digest_size=16).digest()


@dataclass(frozen=True, eq=False)
class Case:
    """An eligible set as it was described: places (m,) of its arms among those that are trained, ascending."""

    catalogue: Catalogue
    places: Index


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Visits end to end.

    cases: eligible sets, of which each decision has one.
    Of each visit, (s,): name, a hash of what it is called; split; cluster, who was randomised; length, its decisions.
    Of each decision, (n,): case, the number of its own; size of its page; remembered, how many arms its state
    remembers; log_propensity of the page; reward of the page; default, 1 where nothing that counts happened; lowest,
    the log of the smallest probability that any page could have had (NaN: not known); x (n, d) features of its state.
    Of each slot, (i,): shown, the place of its arm in the case; earned, its reward; logged, its own log propensity.
    Of each arm remembered, (e,): place in the case; own (e, 4)."""

    cases: Sequence[Case]
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


# Columns and how they are written: features are of the size of 1, and places are few.
DECISION = {"size": "i4", "remembered": "i4", "log_propensity": "f8", "reward": "f8", "default": "i1",
            "lowest": "f8", "x": "f4"}  # fmt: skip
CASE = {"catalogue": "i4", "begin": "i8", "wide": "i4"}  # of each decision: where its eligible set is written
SLOT = {"shown": "i4", "earned": "f8", "logged": "f8"}
ARM = {"place": "i4", "own": "f4"}
VISIT = {"name": "u8", "split": "i1", "cluster": "i8", "length": "i4"}
AMONG = ("catalogue", "wide", "among")  # of each eligible set of a set of visits; then the places of its arms
INDEX = (*VISIT.values(), "i4", "i4")  # of each visit; then how many slots and arms it has


def _ends(lengths: Ids) -> Ids:
    found: Ids = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return found


class Part:
    """The visits of one split, by name, in sets of about one size.

    visits: how many; longest: decisions of the longest; spanning: whether several are of one cluster."""

    def __init__(self, catalogues: Sequence[Catalogue], cluster: Ids, length: Ids) -> None:
        self.visits, self.longest = len(length), int(length.max(initial=1))
        self.spanning = len(np.unique(cluster)) < len(cluster)
        self._catalogues, self._sets = catalogues, Sets()

    def close(self) -> None:
        """Let the file go."""
        self._sets.close()

    def add(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write one more set: all columns of `Rows`, and those of its eligible sets."""
        self._sets.add([columns])

    def sets(self, most: int | None = None) -> Iterator[Rows]:
        """The sets; the first visits alone, at most so many, if there are whole sets of them."""
        told = 0
        for number in range(len(self._sets)):
            rows = self._read(number)
            told += len(rows)
            if number and most is not None and told > most:
                return
            yield rows

    def _read(self, number: int) -> Rows:
        found: dict[str, Any] = self._sets.read(number)[0]
        found = {name: one.astype(np.int64) if one.dtype.kind == "i" else one for name, one in found.items()}
        catalogue, wide, among = (found.pop(name) for name in AMONG)
        places = np.split(among, np.cumsum(wide)[:-1])
        cases = [Case(self._catalogues[of], one) for of, one in zip(catalogue.tolist(), places, strict=True)]
        return Rows(cases=cases, **found)


class Spool:
    """Visits as they are written, and then in parts."""

    def __init__(self) -> None:
        self.parts: dict[int, Part] = {}
        self._catalogues: dict[bytes, Catalogue] = {}
        self._tables: list[Table] = []
        self._eligible, self._written = Table({"place": np.empty(0, "i4")}), 0
        self._index: list[list[npt.NDArray[Any]]] = []

    def close(self) -> None:
        """Let the files go."""
        for table in (self._eligible, *self._tables):
            table.close()
        for part in self.parts.values():
            part.close()

    def add(self, rows: Rows) -> None:
        """Write some more visits."""
        kinds = [{name: np.asarray(getattr(rows, name), kind) for name, kind in columns.items()}
                 for columns in (DECISION, SLOT, ARM)]  # fmt: skip
        kinds[0] |= self._write(rows)
        self._tables = self._tables or [Table(columns) for columns in kinds]
        for table, columns in zip(self._tables, kinds, strict=True):
            table.append(columns)
        counts = (np.add.reduceat(one, rows.start[:-1]) for one in (rows.size, rows.remembered))
        told = (*(getattr(rows, name) for name in VISIT), *counts)
        self._index.append([np.asarray(one, kind) for one, kind in zip(told, INDEX, strict=True)])

    def _write(self, rows: Rows) -> dict[str, npt.NDArray[Any]]:
        """Write the eligible sets of some visits: the columns CASE of their decisions."""
        for case in rows.cases:
            self._catalogues.setdefault(case.catalogue.name, case.catalogue)
        numbers = {name: number for number, name in enumerate(self._catalogues)}
        wide = np.array([len(case.places) for case in rows.cases], np.int64)
        told = [numbers[case.catalogue.name] for case in rows.cases], self._written + np.cumsum(wide) - wide, wide
        self._eligible.append({"place": np.concatenate([case.places for case in rows.cases])})
        self._written += int(wide.sum())
        return {name: np.array(one, CASE[name])[rows.case] for name, one in zip(CASE, told, strict=True)}

    def arrange(self, sizes: Mapping[int, int]) -> None:
        """Put all that was written into parts, one for each split named, in sets of at most so many visits."""
        written = zip(*self._index, strict=True) if self._index else [[np.empty(0, kind)] for kind in INDEX]
        name, split, cluster, *lengths = (np.concatenate(column) for column in written)
        begins = [np.cumsum(length, dtype=np.int64) - length for length in lengths]
        self._index, catalogues = [], list(self._catalogues.values())
        for number, size in sizes.items():
            mine = np.flatnonzero(split == number)
            mine = mine[np.argsort(name[mine], kind="stable")]
            self.parts[number] = part = Part(catalogues, cluster[mine], lengths[0][mine])
            for visits in np.array_split(mine, -(-len(mine) // size)) if len(mine) else ():
                told = (column[visits] for column in (name, split, cluster, lengths[0]))
                columns: dict[str, npt.NDArray[Any]] = dict(zip(VISIT, told, strict=True))
                for table, begin, length in zip(self._tables, begins, lengths, strict=True):
                    columns |= table.gather(begin[visits], length[visits].astype(np.int64))
                part.add(columns | self._read(*(columns.pop(name) for name in CASE)))
        for table in (self._eligible, *self._tables):
            table.close()
        self._tables = []

    def _read(self, catalogue: Ids, begin: Ids, wide: Ids) -> dict[str, npt.NDArray[Any]]:
        """The eligible sets of some decisions by where each is written, in an order that hangs on what they are: the
        columns `case` and AMONG."""
        first, which = distinct(catalogue, begin)
        numbers, lengths = catalogue[first].tolist(), wide[first].astype(np.int64)
        told = self._eligible.gather(begin[first], lengths)["place"]
        parts = [part.tobytes() for part in np.split(told, np.cumsum(lengths)[:-1])]
        sets = list(zip(numbers, parts, strict=True))
        names = list(self._catalogues)
        ordered = sorted(set(sets), key=lambda one: (names[one[0]], one[1]))
        place = {one: number for number, one in enumerate(ordered)}
        columns = [number for number, _ in ordered], [len(part) // told.itemsize for _, part in ordered]
        among = np.frombuffer(b"".join(part for _, part in ordered), told.dtype)
        found = zip(AMONG, (*(np.array(column, told.dtype) for column in columns), among), strict=True)
        return {"case": np.array([place[one] for one in sets], told.dtype)[which], **dict(found)}
