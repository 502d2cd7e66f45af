"""What an evaluation reads of contexts: each is decoded once, as long as there is room for what was made of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

from rlrec.arrays import Array, Flags, Ids, distinct
from rlrec.policy import features
from rlrec.policy.base import EVERYTHING
from rlrec.policy.features import Sparse
from rlrec.store import Unit, reader
from rlrec.store.reader import ContextTexts

ROOM = 64_000_000  # bytes of features that are kept
VALUES = 500_000  # values of fields that are kept
NAMES = 1_000  # of fields that are remembered, to suggest one
PORTION = 10_000  # contexts decoded at a time
(WHOLE,) = EVERYTHING  # asked for as a field: the context itself

_decode: Callable[[str], dict[str, Any]] = msgspec.json.Decoder().decode


class Contexts:
    """The distinct contexts of a batch: the fields asked for, and if asked all of each as numbers.

    code (n,): which context each row has. values: field -> its value in every context, None where it is missing; the
    context itself under WHOLE."""

    def __init__(self, code: Ids, values: dict[str, list[Any]], features: Callable[[], Array]) -> None:
        self.code, self.values, self._features = code, values, features

    def take(self, rows: Ids) -> Contexts:
        """Those of some rows."""
        return Contexts(self.code[rows], self.values, lambda: self.encoded)

    @cached_property
    def encoded(self) -> Array:
        """Features of every context, (m, width)."""
        return self._features()

    def coded(self, field: str, name: Any = repr) -> tuple[Ids, list[Any]]:
        """Per row which distinct value of a field it has, (n,), and those values; `name` says which are the same."""
        values = self.values[field]
        places: dict[Any, int] = {}
        firsts: list[Any] = []
        codes = np.empty(len(values), np.int64)
        for row, value in enumerate(values):
            key = name(value)
            if key not in places:
                places[key] = len(firsts)
                firsts.append(value)
            codes[row] = places[key]
        return codes[self.code], firsts

    def reading(self, fields: Sequence[str]) -> tuple[Ids, list[dict[str, Any]]]:
        """Per row what a policy that reads these fields sees, (n,), and a context for each of the things seen."""
        if not fields:
            return np.zeros(len(self.code), np.int64), [{}]
        if WHOLE in fields:
            return self.code, self.values[WHOLE]
        codes, values = zip(*map(self.coded, fields), strict=True)
        first, code = distinct(*codes)
        seen = (column[first].tolist() for column in codes)
        read = ([known[place] for place in places] for known, places in zip(values, seen, strict=True))
        return code, [dict(zip(fields, one, strict=True)) for one in zip(*read, strict=True)]

    def read(self, fields: Sequence[str], row: int) -> dict[str, Any]:
        """What a policy that reads these fields sees in a row."""
        place = int(self.code[row])
        return self.values[WHOLE][place] if WHOLE in fields else {name: self.values[name][place] for name in fields}


class Library:
    """The contexts of one evaluation.

    encode: whether their features are wanted. fields: what else is known to be. names: of fields that contexts have.
    What comes first is kept: every pass over a log comes along in the same order."""

    def __init__(self, unit: Unit, *, fields: Collection[str] = (), encode: bool = False) -> None:
        self.unit, self.fields, self.encode = unit, frozenset(fields), encode
        self.names: set[str] = set()
        self._values: dict[str, dict[int, Any]] = {}
        self._features = _Features()

    def wanted(self, context_id: Ids) -> Ids:
        """Which contexts of these rows have to be read, ascending."""
        return self._missing(context_id[distinct(context_id)[0]], self.fields)

    def of(self, context_id: Ids, read: ContextTexts | None, *, fields: Collection[str] = ()) -> Contexts:
        """The contexts of rows. read: those `wanted`; where more fields are asked for, what they need is read here."""
        first, code = distinct(context_id)
        ids = context_id[first]
        asked = self.fields | set(fields)
        missing = self._missing(ids, asked)
        if read is None or asked > self.fields:
            read = reader.PendingContexts(self.unit, missing).texts()
        fresh, sparse = self._read(missing, read.of(missing), asked)
        parts = self._features.of(ids, missing, sparse) if self.encode else []
        return Contexts(code, self._of(ids, fresh), lambda: _dense(len(ids), parts))

    def _missing(self, ids: Ids, fields: Collection[str]) -> Ids:
        known = self._features.known(ids) if self.encode else np.ones(len(ids), np.bool_)
        for field in fields:
            values = self._values.setdefault(field, {})
            known &= np.fromiter(map(values.__contains__, ids.tolist()), np.bool_, len(ids))
        return ids[~known]

    def _read(
        self, ids: Ids, texts: Sequence[str], fields: Collection[str]
    ) -> tuple[dict[str, dict[int, Any]], list[Sparse]]:
        """The fields of these contexts, and their features in portions."""
        values: dict[str, dict[int, Any]] = {field: {} for field in fields}
        sparse = []
        for start in range(0, len(ids), PORTION):
            decoded = _decoded(texts[start : start + PORTION])
            keys = ids[start : start + PORTION].tolist() if fields else []
            for field in fields:
                found = decoded if field == WHOLE else [one.get(field) for one in decoded]
                values[field].update(zip(keys, found, strict=True))
            if fields:
                self._name(set().union(*decoded), fields)
            if self.encode:
                sparse.append(features.sparse(decoded))
        return values, sparse

    def _name(self, found: set[str], fields: Collection[str]) -> None:
        self.names |= found if len(self.names) < NAMES else found & {*fields}

    def _of(self, ids: Ids, fresh: Mapping[str, dict[int, Any]]) -> dict[str, list[Any]]:
        """Values of every field; what is fresh is kept while there is room, but whole contexts are too large."""
        keys = ids.tolist()
        values = {}
        for field, read in fresh.items():
            kept = self._values[field]
            values[field] = [read[key] if key in read else kept[key] for key in keys]
            if field != WHOLE and sum(map(len, self._values.values())) + len(read) <= VALUES:
                kept.update(read)
        return values


class _Features:
    """Features of contexts by their ids, kept while there is room."""

    def __init__(self) -> None:
        self._ids = np.empty(0, np.int64)  # ascending
        self._where = np.empty(0, np.int64)  # which of `_kept` has it, and in which row
        self._kept: list[Sparse] = []
        self._size = 0

    def known(self, ids: Ids) -> Flags:
        """Which of these are kept, (m,)."""
        if not len(self._ids):
            return np.zeros(len(ids), np.bool_)
        found: Flags = self._ids[self._places(ids)] == ids
        return found

    def of(self, ids: Ids, fresh: Ids, sparse: Sequence[Sparse]) -> list[_Part]:
        """The features of contexts: those of `fresh` are given in portions, the others were kept."""
        places = np.searchsorted(ids, fresh)
        given = zip(range(0, len(fresh), PORTION), sparse, strict=True)
        parts = [(part, np.arange(len(part)), places[start : start + PORTION]) for start, part in given]
        kept = list(self._found(ids, np.delete(np.arange(len(ids)), places)))
        if not self.known(fresh).any():
            self._keep(fresh, sparse)
        return parts + kept

    def _found(self, ids: Ids, at: Ids) -> Iterator[_Part]:
        """What is kept of the contexts at these places."""
        which, row = np.divmod(self._where[self._places(ids[at])], PORTION) if len(at) else (at, at)
        for kept in which[distinct(which)[0]].tolist():
            mine = which == kept
            yield self._kept[kept], row[mine], at[mine]

    def _places(self, ids: Ids) -> Ids:
        return np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)

    def _keep(self, ids: Ids, sparse: Sequence[Sparse]) -> None:
        room = int(np.searchsorted(np.cumsum([part.size for part in sparse]), ROOM - self._size, side="right"))
        new = ids[: room * PORTION]
        at = np.searchsorted(self._ids, new)
        where = len(self._kept) * PORTION + np.arange(len(new))
        self._ids, self._where = np.insert(self._ids, at, new), np.insert(self._where, at, where)
        self._kept += sparse[:room]
        self._size += sum(part.size for part in sparse[:room])


_Part = tuple[Sparse, Ids, Ids]
"""Some rows of features, and the places where they belong."""


def _dense(m: int, parts: Sequence[_Part]) -> Array:
    cells, values = [np.empty(0, np.int64)], [np.empty(0)]
    for sparse, rows, places in parts:
        entries, which = sparse.entries(rows)
        cells.append(places[which] * features.WIDTH + sparse.column[entries])
        values.append(sparse.value[entries])
    size = m * features.WIDTH
    made = np.bincount(np.concatenate(cells), weights=np.concatenate(values), minlength=size)
    return made.reshape(m, features.WIDTH).astype(np.float64, copy=False)


def _decoded(texts: Sequence[str]) -> list[dict[str, Any]]:
    try:
        return list(map(_decode, texts))
    except msgspec.MsgspecError:  # a number that is infinite, say: nothing that was let in by us
        return list(map(json.loads, texts))
