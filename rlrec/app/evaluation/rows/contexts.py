"""Contexts of the log as an evaluation reads them: each is decoded once, as long as there is room for its values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from rlrec.app.log import stored_contexts
from rlrec.arrays import Array, Flags, Ids, distinct, look_up
from rlrec.policy.beliefs.base import EVERYTHING
from rlrec.policy.contexts import features
from rlrec.policy.contexts.fields import value_of
from rlrec.store import Unit
from rlrec.store.log import reader

FEATURE_BYTES = 64_000_000  # bytes of features that are cached
CACHED_VALUES = 500_000  # values of fields that are cached
NAMES = 1_000  # of fields that are remembered, to suggest one
SUGGESTED = 100  # contexts whose objects are looked into for that
PORTION = 10_000  # contexts decoded at a time
(ENTIRE,) = EVERYTHING  # as a field: the context itself


class ContextTable:
    """The m distinct contexts of a batch: the fields that are read, and where they are wanted all of each as numbers.

    values: field -> its value in every context, None where it is missing; the context itself under ENTIRE. names: of
    fields that contexts have, as far as they were looked at."""

    def __init__(
        self, size: int, values: dict[str, list[Any]], names: frozenset[str], features: Sequence[FeatureRows]
    ) -> None:
        self.size, self.values, self.names, self._features = size, values, names, features

    @cached_property
    def encoded(self) -> Array:
        """Features of every context, (m, width)."""
        row, column, value = self.entries
        return features.add_up(self.size, features.WIDTH, row, column % features.WIDTH, value)

    @property
    def entries(self) -> tuple[Ids, Ids, Array]:
        """The context, the column and the value of each feature that is not 0, in any order."""
        gathered = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
        for sparse, rows, indices in self._features:
            entries, feature_row = sparse.entries(rows)
            gathered.append((indices[feature_row], sparse.column[entries].astype(np.int64), sparse.value[entries]))
        row, column, value = map(np.concatenate, zip(*gathered, strict=True))
        return row, column, value

    @cached_property
    def sparse(self) -> features.Sparse:
        """Features of every context without the zeros, in as many columns as the cache hashes into."""
        return features.merge(self.size, *self.entries)

    def value_codes(self, field: str, name: Any = repr) -> tuple[Ids, list[Any]]:
        """Which distinct value of a field each context has, (m,), and those values; `name` says which are the same."""
        values = self.values[field]
        keys = list(map(name, values))
        first = dict(zip(reversed(keys), reversed(values), strict=True))  # value of each key
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return np.array([numbers[key] for key in keys], np.int64), [first[key] for key in numbers]

    def reading(self, fields: Sequence[str]) -> tuple[Ids, list[dict[str, Any]]]:
        """The contexts as a policy that reads these fields sees them: which of the different ones each is, (m,), and
        those."""
        if not fields:
            return np.zeros(self.size, np.int64), [{}]
        if ENTIRE in fields:
            return np.arange(self.size), self.values[ENTIRE]
        codes, values = zip(*map(self.value_codes, fields), strict=True)
        first, code = distinct(*codes)
        numbers = (codes_of_field[first].tolist() for codes_of_field in codes)
        columns = ([column[number] for number in row] for column, row in zip(values, numbers, strict=True))
        return code, [dict(zip(fields, row, strict=True)) for row in zip(*columns, strict=True)]


class ContextCache:
    """The contexts of one evaluation, each decoded once as long as there is room.

    encode: whether their features are wanted; columns: of these, a power of two. fields: that every batch needs. What
    comes first is cached: every pass over a log comes along in the same order."""

    def __init__(
        self, unit: Unit, *, fields: Collection[str] = (), encode: bool = False, columns: int = features.WIDTH
    ) -> None:
        self.unit, self.fields, self.encode, self.columns = unit, frozenset(fields), encode, columns
        self._names: set[str] = set()
        self._values: dict[str, dict[int, Any]] = {}
        self._features = _FeatureCache()

    def unread(self, context_id: Ids) -> Ids:
        """Which contexts of these rows have to be read, ascending."""
        return self._missing(context_id[distinct(context_id)[0]], self.fields)

    def table(
        self, context_id: Ids, read: reader.ContextTexts | None, *, fields: Collection[str] = ()
    ) -> tuple[ContextTable, Ids]:
        """The distinct contexts of rows, and which of them each row has, (n,).

        read: the texts of those `unread`; where more fields are asked for, what they need is read here."""
        first, code = distinct(context_id)
        ids = context_id[first]
        needed_fields = self.fields | set(fields)
        missing_ids = self._missing(ids, needed_fields)
        if read is None or needed_fields > self.fields:
            read = reader.context_texts(self.unit, missing_ids)
        new_values, sparse = self._read(missing_ids, read.select(missing_ids), needed_fields)
        feature_rows = self._features.gather(ids, missing_ids, sparse) if self.encode else []
        keys, values = ids.tolist(), dict[str, list[Any]]()
        for field, fresh_values in new_values.items():
            cached = self._values[field]
            values[field] = [fresh_values[key] if key in fresh_values else cached[key] for key in keys]
            # what is fresh is cached while there is room, but whole contexts are too large
            if field != ENTIRE and sum(map(len, self._values.values())) + len(fresh_values) <= CACHED_VALUES:
                cached.update(fresh_values)
        return ContextTable(len(ids), values, frozenset(self._names), feature_rows), code

    def _missing(self, ids: Ids, fields: Collection[str]) -> Ids:
        cached = self._features.has(ids) if self.encode else np.ones(len(ids), np.bool_)
        for field in fields:
            values = self._values.setdefault(field, {})
            cached &= np.fromiter(map(values.__contains__, ids.tolist()), np.bool_, len(ids))
        return ids[~cached]

    def _read(
        self, ids: Ids, texts: Sequence[str], fields: Collection[str]
    ) -> tuple[dict[str, dict[int, Any]], list[features.Sparse]]:
        """The fields of these contexts, and their features in portions."""
        values: dict[str, dict[int, Any]] = {field: {} for field in fields}
        sparse = []
        for start in range(0, len(ids), PORTION):
            decoded = stored_contexts.decoded(ids[start : start + PORTION], texts[start : start + PORTION])
            keys = ids[start : start + PORTION].tolist() if fields else []
            names = set[str]().union(*decoded, _inner_names(decoded[:SUGGESTED])) if fields else set()
            for field in fields:
                read = decoded if field == ENTIRE else [value_of(context, field) for context in decoded]
                values[field].update(zip(keys, read, strict=True))
                if "." in field and any(value is not None for value in read):
                    names.add(field)
            self._names |= names if len(self._names) < NAMES else names & {*fields}
            if self.encode:
                sparse.append(features.sparse(decoded, self.columns))
        return values, sparse


class _FeatureCache:
    """Features of contexts by their ids, cached while there is room."""

    def __init__(self) -> None:
        self._ids = np.empty(0, np.int64)  # ascending
        self._row_codes = np.empty(0, np.int64)  # which of `_portions` has it, and in which row
        self._portions: list[features.Sparse] = []
        self._size = 0

    def has(self, ids: Ids) -> Flags:
        """Which of these are cached, (m,)."""
        return look_up(self._ids, ids)[1]

    def gather(self, ids: Ids, new_ids: Ids, sparse: Sequence[features.Sparse]) -> list[FeatureRows]:
        """The features of contexts: those of `fresh` are handed over in portions, the others are cached."""
        at = np.searchsorted(ids, new_ids)
        portions = zip(range(0, len(new_ids), PORTION), sparse, strict=True)
        rows = [(portion, np.arange(len(portion)), at[start : start + PORTION]) for start, portion in portions]
        cached = list(self._cached(ids, np.delete(np.arange(len(ids)), at)))
        if not self.has(new_ids).any():
            self._add(new_ids, sparse)
        return rows + cached

    def _cached(self, ids: Ids, indices: Ids) -> Iterator[FeatureRows]:
        portion, row = np.divmod(self._row_codes[look_up(self._ids, ids[indices])[0]], PORTION)
        for number in portion[distinct(portion)[0]].tolist():
            in_portion = portion == number
            yield self._portions[number], row[in_portion], indices[in_portion]

    def _add(self, ids: Ids, sparse: Sequence[features.Sparse]) -> None:
        sizes = np.cumsum([portion.size for portion in sparse])
        count = int(np.searchsorted(sizes, FEATURE_BYTES - self._size, side="right"))
        cached_ids = ids[: count * PORTION]
        at = np.searchsorted(self._ids, cached_ids)
        position = len(self._portions) * PORTION + np.arange(len(cached_ids))
        self._ids, self._row_codes = np.insert(self._ids, at, cached_ids), np.insert(self._row_codes, at, position)
        self._portions += sparse[:count]
        self._size += sum(portion.size for portion in sparse[:count])


FeatureRows = tuple[features.Sparse, Ids, Ids]
"""Some rows of features, and the indices of the contexts that have them."""


def _inner_names(contexts: Sequence[Mapping[str, Any]]) -> set[str]:
    """The fields inside objects, as `value_of` calls them."""
    return {
        f"{name}.{inner}"
        for context in contexts
        for name, value in context.items()
        for item in (value if isinstance(value, list) else [value])
        if isinstance(item, dict)
        for inner in item
    }
