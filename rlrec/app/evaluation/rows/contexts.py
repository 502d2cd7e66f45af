"""This module reads the contexts of the log for an evaluation. Contexts are cached, so that most are decoded only
once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from rlrec.app.log import stored_contexts
from rlrec.arrays import Array, Flags, Ids, distinct, look_up
from rlrec.policy.beliefs.base import ALL_FIELDS
from rlrec.policy.contexts import features
from rlrec.policy.contexts.features import Sparse, value_of
from rlrec.policy.contexts.statements import ARM_FEATURES, GROUPS, PAGE, PAGE_FIELDS
from rlrec.store import Unit
from rlrec.store.log import contents, reader
from rlrec.store.policies import policies

MAX_FEATURE_BYTES = 64_000_000  # cached features, in bytes
MAX_CACHED_VALUES = 500_000  # values of fields that are cached
MAX_FIELD_NAMES = 1_000  # names of fields that are kept for suggestions
MAX_SUGGESTED = 100  # contexts whose nested fields are suggested
PORTION = 10_000  # contexts decoded at a time
(ENTIRE,) = ALL_FIELDS  # as a field: the context itself


class ContextTable:
    """This table has the m distinct contexts of a batch, with the fields that are read and, if needed, with features.

    values: for each field, its value in each context, or None where the field is missing. The field ENTIRE stands
    for the whole context. names: the names of the fields in all contexts read so far."""

    def __init__(self, values: dict[str, list[Any]], names: frozenset[str], features: Sparse) -> None:
        self.size, self.values, self.names, self._features = len(features), values, names, features

    @cached_property
    def hashed_features(self) -> Array:
        """Return the features of every context, hashed into `features.N_COLUMNS` columns, (m, width)."""
        row, column, value = self.entries
        return features.add_up(self.size, features.N_COLUMNS, row, column % features.N_COLUMNS, value)

    @property
    def entries(self) -> tuple[Ids, Ids, Array]:
        """Return the nonzero features as three arrays of the same length: the index of the context, the column and the
        value."""
        return self._features.row, self._features.column.astype(np.int64), self._features.value

    @cached_property
    def sparse_features(self) -> Sparse:
        """Return the nonzero features of every context, hashed into as many columns as the cache has. Features in the
        same column are added up."""
        return features.merge(self.size, *self.entries)

    @cached_property
    def have_rules(self) -> Flags:
        """Tell for each context whether it states rules that its slates must keep, such as caps, (m,)."""
        pages = self.values.get(PAGE) or [None] * self.size
        return np.array(list(map(bool, pages)), np.bool_)

    def value_codes(self, field: str, key_function: Any = repr) -> tuple[Ids, list[Any]]:
        """Number the distinct values of a field. Return the number of each context's value, (m,), and the list of the
        distinct values. key_function: a function; values are equal if it returns the same for both."""
        values = self.values[field]
        keys = list(map(key_function, values))
        first_values = dict(zip(reversed(keys), reversed(values), strict=True))  # the first value of each key
        number_by_key = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return np.array([number_by_key[key] for key in keys], np.int64), [first_values[key] for key in number_by_key]

    def reading(self, fields: Sequence[str]) -> tuple[Ids, list[dict[str, Any]]]:
        """Return the distinct contexts as seen by a policy that reads only the given fields. The first result is the
        index of each context in the list of distinct contexts, (m,), and the second result is this list."""
        if ENTIRE in fields:
            return np.arange(self.size), self.values[ENTIRE]
        if self.have_rules.any() or any(self.values.get(GROUPS, ())):
            return self._reading_with_rules(fields)
        if not fields:
            return np.zeros(self.size, np.int64), [{}]
        codes, values = zip(*map(self.value_codes, fields), strict=True)
        first_rows, code = distinct(*codes)
        field_codes = (codes_of_field[first_rows].tolist() for codes_of_field in codes)
        columns = ([column[number] for number in row] for column, row in zip(values, field_codes, strict=True))
        return code, [dict(zip(fields, row, strict=True)) for row in zip(*columns, strict=True)]

    def _reading_with_rules(self, fields: Sequence[str]) -> tuple[Ids, list[dict[str, Any]]]:
        """Return the same as `reading`, for a batch in which a context states rules for slates, or groups of arms.
        Rules and groups apply whatever a policy reads, and so do the features of arms that a cap counts."""
        contexts = list[dict[str, Any]]()
        for row, (page, groups, arm_features) in enumerate(
            zip(*map(self.values.__getitem__, PAGE_FIELDS), strict=True)
        ):
            context = {field: self.values[field][row] for field in fields}
            context |= {name: value for name, value in ((PAGE, page), (GROUPS, groups)) if value}
            if page and "most" in page and arm_features:
                context[ARM_FEATURES] = arm_features
            contexts.append(context)
        code_by_text: dict[str, int] = {}
        code = np.array([code_by_text.setdefault(repr(context), len(code_by_text)) for context in contexts], np.int64)
        return code, [contexts[row] for row in distinct(code)[0].tolist()]


class ContextCache:
    """This cache has the contexts of one evaluation. Each context is decoded once while the cache has room. The first
    contexts of the log are cached, since every pass reads the contexts in the same order.

    fields: the fields that every batch needs; encode: whether features are needed; columns: the number of columns
    into which features are hashed, a power of two."""

    def __init__(
        self, unit: Unit, *, fields: Collection[str] = (), encode: bool = False, columns: int = features.N_COLUMNS
    ) -> None:
        self.unit, self.encode, self.columns = unit, encode, columns
        has_groups = any("@" in str(policy.params.get("least")) for policy in policies.all_policies(unit))
        rules = PAGE_FIELDS if has_groups or contents.any_context(unit, PAGE) else ()
        self.fields = frozenset({*fields, *rules})
        self._names: set[str] = set()
        self._values: dict[str, dict[int, Any]] = {}
        self._features = _FeatureCache()

    def unread(self, context_id: Ids) -> Ids:
        """Return the ids of the contexts that are not cached, ascending. context_id: the id of each row's context."""
        return self._missing(context_id[distinct(context_id)[0]], self.fields)

    def table(
        self, context_id: Ids, texts: reader.ContextTexts | None, *, fields: Collection[str] = ()
    ) -> tuple[ContextTable, Ids]:
        """Return the table of the distinct contexts of n rows, and the index of each row's context in the table, (n,).

        context_id (n,): the id of each row's context; texts: the JSON of the contexts that `unread` returned, or
        None to read it here; fields: fields needed beside the fields of the cache. If there are such fields, the
        JSON is read here, too."""
        first_rows, code = distinct(context_id)
        ids = context_id[first_rows]
        needed_fields = self.fields | set(fields)
        missing_ids = self._missing(ids, needed_fields)
        if texts is None or needed_fields > self.fields:
            texts = reader.PendingContexts(self.unit, missing_ids).texts()
        new_values, new_features = self._read(missing_ids, texts.select(missing_ids), needed_fields)
        table_features = Sparse.empty(len(ids))
        if self.encode:
            table_features = self._features.gather(ids, missing_ids, new_features)
        keys, values = ids.tolist(), dict[str, list[Any]]()
        for field, fresh_values in new_values.items():
            cached_values = self._values[field]
            values[field] = [fresh_values[key] if key in fresh_values else cached_values[key] for key in keys]
            # new values are cached while there is room; whole contexts are too large
            if field != ENTIRE and sum(map(len, self._values.values())) + len(fresh_values) <= MAX_CACHED_VALUES:
                cached_values.update(fresh_values)
        return ContextTable(values, frozenset(self._names), table_features), code

    def _missing(self, ids: Ids, fields: Collection[str]) -> Ids:
        is_cached = self._features.has(ids) if self.encode else np.ones(len(ids), np.bool_)
        for field in fields:
            values = self._values.setdefault(field, {})
            is_cached &= np.fromiter(map(values.__contains__, ids.tolist()), np.bool_, len(ids))
        return ids[~is_cached]

    def _read(
        self, ids: Ids, texts: Sequence[str], fields: Collection[str]
    ) -> tuple[dict[str, dict[int, Any]], Sparse]:
        """Return the values of the fields in these contexts, by field and by id of the context, and the features of the
        contexts.

        ids: the ids of the contexts; texts: the JSON of each context; fields: the fields to decode."""
        values: dict[str, dict[int, Any]] = {field: {} for field in fields}
        portions = [Sparse.empty(0)]
        for start in range(0, len(ids), PORTION):
            contexts = stored_contexts.decode_contexts(ids[start : start + PORTION], texts[start : start + PORTION])
            keys = ids[start : start + PORTION].tolist() if fields else []
            names = set[str]().union(*contexts, _inner_names(contexts[:MAX_SUGGESTED])) if fields else set()
            for field in fields:
                field_values = contexts if field == ENTIRE else [value_of(context, field) for context in contexts]
                values[field].update(zip(keys, field_values, strict=True))
                if "." in field and any(value is not None for value in field_values):
                    names.add(field)
            self._names |= names if len(self._names) < MAX_FIELD_NAMES else names & {*fields}
            if self.encode:
                portions.append(features.hash_contexts(contexts, self.columns))
        return values, Sparse.concatenate(portions)


class _FeatureCache:
    """This cache has the features of contexts, by the id of the context. When the cache is full, nothing is added."""

    def __init__(self) -> None:
        self._ids = self._rows = np.empty(0, np.int64)  # ascending ids, and the row of each in `_features`
        self._features = Sparse.empty(0)

    def has(self, ids: Ids) -> Flags:
        """Tell for each context whether the context is cached, (m,)."""
        return look_up(self._ids, ids)[1]

    def gather(self, ids: Ids, new_ids: Ids, new_features: Sparse) -> Sparse:
        """Return the features of the given contexts. New features are cached if there is room.

        ids: the ids of the contexts, ascending; new_ids, new_features: the ids and the features of the contexts that
        are not cached."""
        is_new = look_up(new_ids, ids)[1]
        old_features = self._features[self._rows[look_up(self._ids, ids[~is_new])[0]]]
        order = np.argsort(np.r_[np.flatnonzero(is_new), np.flatnonzero(~is_new)])
        features = Sparse.concatenate([new_features, old_features])
        if not self.has(new_ids).any():
            bytes_of_each = new_features.size / max(1, len(new_ids))
            n_cached = int(max(0, MAX_FEATURE_BYTES - self._features.size) / max(1.0, bytes_of_each))
            insert_at = np.searchsorted(self._ids, new_ids[:n_cached])
            rows = len(self._features) + np.arange(len(new_ids[:n_cached]))
            self._ids, self._rows = (
                np.insert(self._ids, insert_at, new_ids[:n_cached]),
                np.insert(self._rows, insert_at, rows),
            )
            self._features = Sparse.concatenate([self._features, new_features[:n_cached]])
        return features[order]


def _inner_names(contexts: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names of fields inside objects of the contexts, as OUTER.INNER."""
    return {
        f"{name}.{inner_name}"
        for context in contexts
        for name, value in context.items()
        for entry in (value if isinstance(value, list) else [value])
        if isinstance(entry, dict)
        for inner_name in entry
    }
