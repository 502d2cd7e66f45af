"""This module encodes contexts and arms as vectors of named, fixed columns. It also defines the base class of kinds
that read such vectors."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from base64 import b64decode, b64encode
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar, Self

import numpy as np

from rlrec.arrays import Array, Ids, Index
from rlrec.errors import InputError, suggest
from rlrec.policy.beliefs.base import ALL_FIELDS, Belief, Policy
from rlrec.policy.contexts import features
from rlrec.policy.contexts.features import MAX_WIDTH, Field, Sparse, is_number, quote, value_of
from rlrec.policy.contexts.statements import ARM_FEATURES, STATEMENTS
from rlrec.policy.scores.scores import Scores
from rlrec.records import Record

_SPEC_KEYS = ["intercept", "fields", "hash"]
_HINT = 'write {"fields": {"hour": "number", "device": ["ios", "android"]}}'


EncodedRows = Any
"""Encoded contexts: an array (..., columns), or `Sparse` where they are wide."""


class Encoder:
    """An Encoder turns JSON objects into rows of numbers with named columns. The `spec` of an encoder defines it
    completely.

    width: the number of columns. is_sparse: whether there are more than MAX_WIDTH columns; the rows of such an encoder
    come from `encode_sparse` only. fields_read: the names of the fields that the encoder uses. intercept: whether
    column 0 is always 1."""

    def __init__(self, fields: Iterable[Field] = (), *, intercept: bool = True, columns: int = 0) -> None:
        """Build an encoder from the fields that it reads. Fields are sorted by name, since JSON has no order.

        columns: the number of columns into which the whole object is hashed, in addition to the fields."""
        self.fields = tuple(sorted(fields, key=lambda field: field.name))
        self.intercept, self.columns = intercept, columns
        self.width = int(intercept) + sum(field.width for field in self.fields) + columns
        self.is_sparse = self.width > MAX_WIDTH
        self.fields_read = ALL_FIELDS if columns else tuple(field.name for field in self.fields)
        if not self.width:
            raise InputError("features have no columns", hint="give them an intercept, or fields")
        if self.width > features.MAX_COLUMNS + MAX_WIDTH:
            hint = f"give at most {features.MAX_COLUMNS + MAX_WIDTH}: hash into fewer"
            raise InputError(f"features have {self.width} columns", hint=hint)
        # names are only for display; a sparse encoder may have too many to list
        if not self.is_sparse and (duplicates := [name for name, count in Counter(self.names).items() if count > 1]):
            raise InputError(f"two columns are named {quote(duplicates[0])}", hint="rename or leave out one")

    @classmethod
    def parse(cls, spec: Mapping[str, Any]) -> Self:
        """Return the encoder for a spec that was stored or declared by a user. Raises InputError that names the mistake
        in the spec."""
        if not isinstance(spec, Mapping):
            raise InputError(f"features are {quote(spec)}", hint=_HINT)
        for key in spec:
            if key not in _SPEC_KEYS:
                raise InputError(f"features have an unknown {quote(key)}", hint=suggest(str(key), _SPEC_KEYS) or _HINT)
        declared_fields, intercept, columns = spec.get("fields", {}), spec.get("intercept", True), spec.get("hash", 0)
        if not isinstance(declared_fields, Mapping):
            raise InputError(f"fields are {quote(declared_fields)}", hint=f"name each with its type, {features.FORMS}")
        if not isinstance(intercept, bool):
            raise InputError(f"intercept is {quote(intercept)}", hint="give true or false")
        features.check_hash("the features", columns)
        parsed_fields = [features.parse_field(name, declaration) for name, declaration in declared_fields.items()]
        return cls(parsed_fields, intercept=intercept, columns=columns)

    @classmethod
    def by_hash(cls, columns: int = 16) -> Self:
        """Return an encoder with an intercept and a hash of the whole object into this number of columns."""
        return cls(columns=columns)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return a name for each column."""
        field_columns = chain.from_iterable(field.names for field in self.fields)
        return (*["1"][: int(self.intercept)], *field_columns, *(f"#{index}" for index in range(self.columns)))

    def spec(self) -> dict[str, Any]:
        """Return the complete definition of the encoder as JSON."""
        field_specs = {field.name: field.spec() for field in self.fields}
        return {"intercept": self.intercept, "fields": field_specs, **({"hash": self.columns} if self.columns else {})}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Encoder) and self.spec() == other.spec()

    def __hash__(self) -> int:
        return hash((self.intercept, self.fields, self.columns))

    def check(self, values: Mapping[str, Any], *, subject: str = "context", owner: str = "") -> None:
        """Raise InputError, with the name of the field, if a value does not fit the declaration of its field.

        Missing values, null, unlisted categories and fields that are not read are accepted. values: the object;
        subject: a word for the object, in the error; owner: a text that names the arm of the values, in the error."""
        for reader in self.fields:
            value = value_of(values, reader.name)
            if value is not None and (kind_text := reader.mismatch_text(value)):
                raise _mismatch_error(subject, reader.name, value, owner=owner, hint=f"the policy reads {kind_text}")
        for name, value in values.items() if self.columns else ():
            try:
                json.dumps(value, allow_nan=False)
            except ValueError:
                raise _mismatch_error(subject, name, value, owner=owner, hint="give finite numbers") from None

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> Array:
        """Return the features of n objects, (n, columns). Unknown, missing or mistyped values count as 0."""
        blocks = [np.ones((len(rows), int(self.intercept)))]
        blocks += [field.encode([value_of(row, field.name) for row in rows]) for field in self.fields]
        if self.columns:
            blocks.append(features.encode([dict(row) for row in rows], self.columns))
        return np.hstack(blocks)

    def rows(self, contexts: Sequence[Mapping[str, Any]]) -> EncodedRows:
        """Return the features of n contexts, (n, columns). The result is a `Sparse` object if the encoder is sparse."""
        return self.encode_sparse(contexts) if self.is_sparse else self.encode(contexts)

    def encode_sparse(self, rows: Sequence[Mapping[str, Any]]) -> Sparse:
        """Return the nonzero features of n objects, without the intercept. Each column occurs at most once per row."""
        first_column, entry_blocks = int(self.intercept), [_NO_ENTRIES]
        for reader in self.fields:
            row, column, value = reader.entries([value_of(row, reader.name) for row in rows])
            entry_blocks.append((row, column + first_column, value))
            first_column += reader.width
        if self.columns:
            entries = features.hash_contexts([dict(row) for row in rows], self.columns)
            entry_blocks.append((entries.row, entries.column.astype(np.int64) + first_column, entries.value))
        return features.merge(len(rows), *map(np.concatenate, zip(*entry_blocks, strict=True)))


_NO_ENTRIES = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)


def _mismatch_error(subject: str, name: str, value: Any, *, owner: str, hint: str) -> InputError:
    return InputError(f"{quote(name)}{owner} is {quote(value)}", hint=hint, field=f"{subject}.{name}")


HASHED_COLUMNS = 8  # columns into which a fitted encoder hashes values that it does not list
_MAX_TEXTS = 10_000  # distinct texts that are counted separately
_MAX_FIELDS = 1_000  # fields that are counted
_MAX_COUNTED = 1e100  # larger numbers do not count, so that squares stay finite


@dataclass
class EncoderFit:
    """An EncoderFit collects statistics of the fields of a log. Chunks of a log may be processed in any order, and the
    statistics of chunks can be added.

    Memory is bounded: only the first 1,000 fields count, and all texts of a field but the 10,000 most frequent are
    counted together. fields: the statistics of each field, by name."""

    fields: dict[str, _FieldValues] = field(default_factory=dict)

    def take(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add these objects to the statistics."""
        columns: dict[str, list[Any]] = defaultdict(list)
        open_items = [item for row in rows for item in row.items() if item[0] not in STATEMENTS]
        while open_items:
            for name, value in open_items:
                columns[name].append(value)
            objects = ((name, features.objects(value)) for name, value in open_items if isinstance(value, dict | list))
            items = ((name, item) for name, nested_rows in objects for row in nested_rows for item in row.items())
            open_items = [(f"{name}.{key}", value) for name, (key, value) in items]
        batch = EncoderFit({name: _count_values(values) for name, values in columns.items() if features.is_name(name)})
        self.fields = (self + batch).fields

    def __add__(self, other: EncoderFit) -> EncoderFit:
        merged_fields = dict(self.fields)
        for name, values in other.fields.items():
            if name in merged_fields or len(merged_fields) < _MAX_FIELDS:
                merged_fields[name] = merged_fields[name] + values if name in merged_fields else values
        return EncoderFit(merged_fields)

    def spec(self, max_values: int = 20, *, max_columns: int = MAX_WIDTH) -> dict[str, Any]:
        """Return the spec of an encoder for the objects that were added, as JSON. The encoder has at most `max_columns`
        columns.

        A field has the type of more than half of its values. Numbers are scaled by their mean and standard
        deviation. Texts and lists of texts get a column for each of the `max_values` most frequent texts, and a hash
        for the other texts. Vectors must have one length. `a.b` is the field b of objects in a. Fields without a
        main type are left out. If the encoder is too wide, it lists fewer texts, and then drops its widest fields;
        of equally wide fields, the rarest is dropped first."""
        values_by_name = sorted(self.fields.items())
        readers: list[Field] = []
        for n_listed in range(max_values, -1, -1):
            proposals = (
                values.field(name, max_values=max_values, n_listed=n_listed) for name, values in values_by_name
            )
            readers = _without_clashes(field for field in proposals if field)
            if _total_width(readers) <= max_columns:
                break
        count_by_name = {name: values.kinds.total() for name, values in values_by_name}
        while readers and _total_width(readers) > max_columns:
            readers.remove(max(readers, key=lambda field: (field.width, -count_by_name[field.name], field.name)))
        return Encoder(readers).spec()


def _total_width(fields: Iterable[Field]) -> int:
    return 1 + sum(field.width for field in fields)


def _without_clashes(fields: Iterable[Field]) -> list[Field]:
    """Return the fields in their order. A field is left out if one of its columns has the name of an earlier field's
    column."""
    taken_names, distinct_fields = {"1"}, []
    for reader in fields:
        if taken_names.isdisjoint(reader.names):
            taken_names.update(reader.names)
            distinct_fields.append(reader)
    return distinct_fields


class _FieldValues(Record, kw_only=False):
    """A _FieldValues object holds statistics of the values of one field.

    kinds: the number of values of each type. count, mean: the count and the mean of the numbers; squares: the sum of
    the squared distances of the numbers from their mean. words: the frequency of each text, where None stands for
    all texts that are not listed; lengths: the lengths of the vectors."""

    kinds: Counter[str]
    count: int
    mean: float
    squares: float
    words: Counter[str | None]
    lengths: frozenset[int]

    def __add__(self, other: _FieldValues) -> _FieldValues:
        """Return the statistics of two sets of values together. Source: Chan, Golub & LeVeque 1983 for mean and
        squares."""
        count, difference = self.count + other.count, other.mean - self.mean
        weight = other.count / count if count else 0.0
        return _FieldValues(
            kinds=self.kinds + other.kinds,
            count=count,
            mean=self.mean + difference * weight,
            squares=self.squares + other.squares + difference * difference * self.count * weight,
            words=_cap_words(self.words + other.words),
            lengths=self.lengths | other.lengths,
        )

    @cached_property
    def by_frequency(self) -> list[str]:
        """Return the texts, the most frequent text first. Equally frequent texts are in alphabetical order."""
        return _by_frequency(self.words)

    def field(self, name: str, *, max_values: int, n_listed: int) -> Field | None:
        """Return the field that fits these values. The result is None if no type of field fits.

        Texts that get no column of their own are hashed. All texts get a column if there are at most `max_values`
        texts, and if the further columns are not more than the columns of a hash. name: the name of the field;
        n_listed: the number of texts that get a column otherwise."""
        kind = next((kind for kind, count in self.kinds.items() if 2 * count > self.kinds.total()), None)
        if kind == "number":
            return self._number(name)
        if kind == "flag":
            return features.Flag(name)
        if kind == "vector" and len(self.lengths) == 1 and max(self.lengths) < MAX_WIDTH:
            return features.Vector(name, max(self.lengths))
        if kind not in ("category", "list"):
            return None
        lists_all = not self.words[None] and len(self.by_frequency) <= min(max_values, n_listed + HASHED_COLUMNS)
        values = tuple(self.by_frequency if lists_all else self.by_frequency[:n_listed])
        field = features.Category if kind == "category" else features.TextSet
        return field(name, values, hash=0 if lists_all else HASHED_COLUMNS)

    def _number(self, name: str) -> features.Number:
        """Return a number field with the mean and the standard deviation of these values.

        Both numbers are rounded to six digits of the standard deviation, so that another order of summation gives
        the same spec."""
        scale = math.sqrt(self.squares / self.count)
        if scale <= 1e-12 * abs(self.mean):  # constant
            return features.Number(name, self.mean)
        digits = 5 - math.floor(math.log10(scale))
        return features.Number(name, round(self.mean, digits), round(scale, digits))


def _count_values(values: Iterable[Any]) -> _FieldValues:
    values_by_kind: dict[str, list[Any]] = defaultdict(list)
    for value in values:
        values_by_kind[_field_type(value)].append(value)
    numbers = np.array(values_by_kind["number"] or [0.0], np.float64)
    mean = float(numbers.mean())
    words = chain(values_by_kind["category"], chain.from_iterable(map(set, values_by_kind["list"])))
    return _FieldValues(
        kinds=Counter(
            {kind: len(values_of_kind) for kind, values_of_kind in values_by_kind.items() if kind and values_of_kind}
        ),
        count=len(values_by_kind["number"]),
        mean=mean,
        squares=float(np.square(numbers - mean).sum()),
        words=_cap_words(Counter(word if len(word) <= features.MAX_NAME_LENGTH else None for word in words)),
        lengths=frozenset(map(len, values_by_kind["vector"])),
    )


def _field_type(value: Any) -> str:
    """Return the name of the type of field that fits a value. The name is "other" if no type fits, and empty for a
    value that does not count, which is null or an empty list."""
    if value is None or value == []:
        return ""
    if isinstance(value, str):
        return "category"
    if isinstance(value, bool):
        return "flag"
    if is_number(value, _MAX_COUNTED):
        return "number"
    if isinstance(value, list | tuple):
        if all(isinstance(item, str) for item in value):
            return "list"
        if all(is_number(item, features.LARGEST_NUMBER) for item in value):
            return "vector"
    return "other"


def _cap_words(words: Counter[str | None]) -> Counter[str | None]:
    """Return the counts of the most frequent texts. All other texts are counted together under None."""
    if len(words) <= _MAX_TEXTS:
        return words
    capped_words: Counter[str | None] = Counter({word: words[word] for word in _by_frequency(words)[:_MAX_TEXTS]})
    capped_words[None] = words.total() - capped_words.total()
    return capped_words


def _by_frequency(words: Counter[str | None]) -> list[str]:
    return sorted((word for word in words if word is not None), key=lambda word: (-words[word], word))


class Design(Record, eq=False):
    """A Design says how a version encodes contexts and arms as features, and at which weights its logistic model
    starts. The design is part of the version and, like the version, immutable.

    context, arm: the encoders of contexts and of arms. anchor: the weights (q,), by arm id, at which the Newton step
    of a logistic model starts; an arm without an entry has the weights of the prior. columns: the columns of sparse
    contexts that have weights in a trained model, ascending. learns_stated: whether a belief learns from the
    features of arms that requests and imported lines state."""

    context: Encoder = field(default_factory=Encoder.by_hash)
    arm: Encoder = field(default_factory=Encoder.by_hash)
    anchor: Mapping[int, Array] = field(default_factory=dict)
    columns: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    learns_stated: bool = False

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return the design that the result of `to_json` describes."""
        anchor = {int(arm): np.array(weights, np.float64) for arm, weights in document.get("anchor", {}).items()}
        columns = np.frombuffer(b64decode(document.get("columns", "")), "<i4").astype(np.int64)
        context, arm = Encoder.parse(document["context"]), Encoder.parse(document["arm"])
        return cls(
            context=context, arm=arm, anchor=anchor, columns=columns, learns_stated=document.get("learns_stated", False)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the design as JSON."""
        anchor = {str(arm): weights.tolist() for arm, weights in sorted(self.anchor.items())}
        columns = b64encode(self.columns.astype("<i4").tobytes()).decode()
        optional_fields = {"anchor": anchor, "columns": columns, "learns_stated": self.learns_stated}
        return {"context": self.context.spec(), "arm": self.arm.spec()} | {
            key: value for key, value in optional_fields.items() if value
        }


class ContextualPolicy(Policy):
    """ContextualPolicy is the base class of kinds whose scores depend on the encoded context x, (q,).

    Several contexts, one for each belief, form an array x (..., q). Contexts with many columns are `Sparse` objects."""

    design: Design = field(default_factory=Design, compare=False, repr=False)

    is_contextual: ClassVar[bool] = True
    # whether contexts may have more columns than a belief can store pairwise products of
    takes_sparse: ClassVar[bool] = False
    expands_model: ClassVar[bool] = False  # whether its model is expanded around the anchor of its design

    @property
    def fields_read(self) -> tuple[str, ...]:
        names = self.design.context.fields_read
        return names if names == ALL_FIELDS or not self.uses_arm_features else (*names, ARM_FEATURES)

    @property
    @abstractmethod
    def uses_arm_features(self) -> bool:
        """Tell whether the scores of this policy depend on features of arms."""

    @property
    @abstractmethod
    def features(self) -> tuple[str, ...]:
        """Return the names of the columns of `weights`."""

    @property
    def is_sparse(self) -> bool:
        """Tell whether contexts are encoded as sparse rows."""
        return self.design.context.is_sparse

    def encode(self, context: Mapping[str, Any] | None) -> EncodedRows:
        """Return the features of a context, (q,).

        context: a JSON object (None for an empty context)."""
        return self.design.context.rows([context or {}])[0]

    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        return self.scores_at(belief, self.encode(context))

    def index(self, belief: Belief, *, context: Mapping[str, Any] | None = None) -> Array:
        return self.index_at(belief, self.encode(context))

    @abstractmethod
    def scores_at(self, belief: Belief, x: EncodedRows) -> Scores:
        """Return the `scores` of the arms in encoded contexts, as one object with arrays (..., m).

        x (..., q): the encoded contexts, one for each leading index of the belief."""

    @abstractmethod
    def index_at(self, belief: Belief, x: EncodedRows) -> Array:
        """Return the `index` of the arms in encoded contexts, (..., m).

        x (..., q): the encoded contexts, one for each leading index of the belief."""

    @abstractmethod
    def weights(self, belief: Belief) -> Array:
        """Return the weight of each feature in the score of each arm, (..., m, features)."""

    def column_weights(self, belief: Belief, columns: Index) -> Array:
        """Return the weight of each of these columns of sparse contexts in each arm's score, (c, m). Only kinds that
        read sparse contexts have this method."""
        raise NotImplementedError

    @abstractmethod
    def interval(self, belief: Belief, *, context: Mapping[str, Any], z: float) -> tuple[Array, Array, Array]:
        """Return three arrays (m,) for a context: the mean reward of each arm, the value z standard deviations below
        the mean, and the value z standard deviations above the mean.

        The values are NaN if the scores of the policy are not rewards."""
