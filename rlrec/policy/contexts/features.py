"""This module turns contexts into numbers. It defines the types of fields of JSON objects, and the named columns of
each field.

Signed hashing turns any JSON object into a short dense vector, or a long sparse vector. A vocabulary would have to
be learned, stored and versioned. A hash needs no vocabulary, and new values have columns, too."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from rlrec.arrays import Array, Index, look_up, piece_rows, run_starts
from rlrec.errors import InputError, suggest
from rlrec.policy.contexts import statements
from rlrec.policy.contexts.statements import STATEMENTS
from rlrec.records import Record

N_COLUMNS = 64
MAX_COLUMNS = 1 << 18  # columns of any hash; a shorter one takes the lowest bits of the same number
NUMBER_TYPES = frozenset({int, float})
_MAX_NUMBER = sys.float_info.max
_MAX_CELLS = 1 << 21  # products of entries in memory at a time
MAX_WIDTH = 128  # columns whose pairwise products a belief can store for every arm
HASH_SIZES = (0, *(1 << bits for bits in range(19)))  # powers of two, so that all hashed columns are equally likely
# a number farther from the mean, in units of scale, is cut, so that one typing error cannot dominate a belief
MAX_DEVIATIONS = 10.0
LARGEST_NUMBER = 1e6  # for numbers in a vector, which are not scaled
MAX_NAME_LENGTH = 200  # characters in a name
FORMS = 'such as "number", "flag", ["ios", "android"], {"list": ["a"], "hash": 8}, {"text": 1024} or {"vector": 8}'
# A code: 4 x the column, plus 2 for a negative sign, plus 1 for a number.
_COLUMN, _NEGATIVE_BIT, _NUMBER_BIT = 4, 2, 1


class Sparse(Record, kw_only=False, eq=False):
    """A Sparse object holds the nonzero features of n contexts. The entries of context i are start[i]:start[i + 1].

    start (n + 1,): the first entry of each context, and the number of entries; column (e,): the column of each
    entry; value (e,): the value of each entry, where the entries of a column of a context are added up; is_single:
    whether the object stands for one context, not for a sequence of contexts."""

    start: npt.NDArray[np.int32]
    column: npt.NDArray[Any]
    value: Array
    is_single: bool = False

    @classmethod
    def empty(cls, n: int) -> Sparse:
        """Return n contexts without features."""
        return cls(np.zeros(n + 1, np.int32), np.empty(0, np.int32), np.empty(0))

    @classmethod
    def concatenate(cls, pieces: Sequence[Sparse]) -> Sparse:
        """Return the contexts of all pieces, one piece after another."""
        counts = np.concatenate([np.diff(piece.start) for piece in pieces])
        column, value = (np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("column", "value"))
        return cls(np.r_[0, np.cumsum(counts)].astype(np.int32), column, value)

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def size(self) -> int:
        """Return the total size of the arrays in bytes."""
        return self.start.nbytes + self.column.nbytes + self.value.nbytes

    def __getitem__(self, rows: int | slice | Index) -> Sparse:
        """Return one context, the contexts of a slice, or the contexts of an array of indices, in the order of the
        array."""
        if isinstance(rows, np.ndarray):
            entries, row = self.entries(rows)
            start = np.r_[0, np.cumsum(np.bincount(row, minlength=len(rows)))].astype(np.int32)
            return Sparse(start, self.column[entries], self.value[entries])
        first_row, end_row = (rows, rows + 1) if isinstance(rows, int) else rows.indices(len(self))[:2]
        start = self.start[first_row : end_row + 1]
        span = slice(start[0], start[-1])
        return Sparse(start - start[0], self.column[span], self.value[span], is_single=isinstance(rows, int))

    def __iter__(self) -> Iterator[Sparse]:
        return map(self.__getitem__, range(len(self)))

    @property
    def row(self) -> Index:
        """Return the index of the context of each entry, (e,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.start))

    def select_columns(self, columns: Index) -> Sparse:
        """Return the contexts with only the entries in these columns. The columns are numbered anew, by their index in
        `columns`.

        columns: the columns, ascending."""
        index, is_selected = look_up(columns, self.column)
        start = np.r_[0, np.cumsum(is_selected)][self.start].astype(np.int32)
        return Sparse(start, index[is_selected].astype(np.int32), self.value[is_selected], is_single=self.is_single)

    def times(self, weights: Array) -> Array:
        """Return the product of the matrix of contexts and weights, (n, m).

        weights (c, m): the factor of each column."""
        product = np.zeros((len(self), weights.shape[1]), weights.dtype)
        step = max(1, _MAX_CELLS * len(self) // max(1, weights.shape[1] * len(self.column)))
        for first_row in range(0, len(self), step):
            chunk = self[first_row : first_row + step]
            filled_rows = np.flatnonzero(np.diff(chunk.start))
            if len(filled_rows):
                entries = weights[chunk.column] * chunk.value[:, None]
                product[first_row + filled_rows] = np.add.reduceat(entries, chunk.start[filled_rows], axis=0)
        return product

    def transposed_product(self, values: Array, width: int) -> Array:
        """Return the product of the transposed matrix of contexts and values, (width, m).

        values (n, m): the factor of each context; width: the number of columns."""
        row = self.row
        products = (np.bincount(self.column, self.value * column[row], width) for column in values.T)
        return np.column_stack([*products]) if values.shape[1] else np.zeros((width, 0))

    def entries(self, rows: Index) -> tuple[Index, Index]:
        """Return the indices of all entries of these contexts, (f,), and for each entry the index of its context in
        `rows`, (f,).

        rows: the indices of the contexts."""
        counts = (self.start[rows + 1] - self.start[rows]).astype(np.int64)
        return piece_rows(self.start[rows], counts), np.repeat(np.arange(len(rows)), counts)


def encode(contexts: Sequence[dict[str, Any]], columns: int = N_COLUMNS) -> Array:
    """Return the features of n contexts, hashed into dense columns, (n, columns).

    columns: the number of columns, a power of two up to N_COLUMNS."""
    entries = hash_contexts(contexts)
    return add_up(len(entries), columns, entries.row, entries.column % columns, entries.value)


def merge(n: int, row: Index, column: Index, value: Array) -> Sparse:
    """Return n sparse rows from entries. The entries of a row are sorted by column, and entries of the same row and
    column are added.

    row, column, value (e,): the row, the column and the value of each entry."""
    order = np.lexsort((column, row))
    row, column, value = row[order], column[order], value[order]
    run_start = run_starts(row, column)
    total = np.add.reduceat(value, run_start) if len(run_start) else value
    start = np.r_[0, np.cumsum(np.bincount(row[run_start], minlength=n))].astype(np.int32)
    return Sparse(start, column[run_start].astype(np.int32), total)


def add_up(n: int, columns: int, row: Index, column: npt.NDArray[Any], value: Array) -> Array:
    """Return dense rows, (n, columns), from entries. Entries of the same row and column are added.

    row, column, value (e,): the row, the column and the value of each entry."""
    cell_sums = np.bincount(row * columns + column, weights=value, minlength=n * columns)
    return cell_sums.reshape(n, columns).astype(np.float64, copy=False)


def hash_contexts(contexts: Sequence[dict[str, Any]], columns: int = N_COLUMNS) -> Sparse:
    """Return the features of contexts, hashed into sparse columns.

    columns: the number of columns, a power of two up to MAX_COLUMNS.

    A number counts as asinh(number) under its key, so that a price does not outweigh a flag. Text, true, false and null
    count as 1 under key and value. Lists and objects count item by item. The values of keys that share a column are
    added, with signs that cancel their interference on average. Source: our own choices, based on Weinberger, Dasgupta,
    Langford, Smola & Attenberg 2009 (signed feature hashing)."""
    # all fields of all contexts, except statements on arms and page: column, sign and value of each
    names = list(chain.from_iterable(contexts))
    if "@" in "".join(names):
        contexts = [{name: row[name] for name in row if name not in STATEMENTS} for row in contexts]
        names = list(chain.from_iterable(contexts))
    values = list(chain.from_iterable(map(dict.values, contexts)))
    row = np.repeat(np.arange(len(contexts)), np.fromiter(map(len, contexts), np.int64, len(contexts)))
    code = _entry_codes(names, values)
    is_flat = code >= 0
    value = np.where(code & _NEGATIVE_BIT, -1.0, 1.0)
    number = np.flatnonzero(is_flat & (code & _NUMBER_BIT > 0))
    value[number] *= _squeeze_numbers([values[at] for at in number.tolist()])
    if is_flat.all():
        return _sort_rows(row, code // _COLUMN % columns, value, len(contexts))
    # items of lists and objects, path by path
    nested_entries = [
        (row[at], *hashed_column(path), number)
        for at in np.flatnonzero(~is_flat).tolist()
        for path, number in items(f"\x1f{names[at]}", values[at])
    ]
    table = np.array([entry[:3] for entry in nested_entries], np.float64).reshape(len(nested_entries), 3).T
    nested_numbers = {at: entry[3] for at, entry in enumerate(nested_entries) if entry[3] is not None}
    table[2, list(nested_numbers)] *= _squeeze_numbers(list(nested_numbers.values()))
    row, column = np.concatenate([row[is_flat], table[0].astype(np.int64)]), np.r_[code[is_flat] // _COLUMN, table[1]]
    return _sort_rows(row, column.astype(np.int64) % columns, np.concatenate([value[is_flat], table[2]]), len(contexts))


def _sort_rows(row: Index, column: npt.NDArray[Any], value: Array, n: int) -> Sparse:
    order = np.argsort(row, kind="stable")
    start = np.r_[0, np.cumsum(np.bincount(row, minlength=n))].astype(np.int32)
    fits_a_byte = not len(column) or int(column.max()) < N_COLUMNS  # uses a quarter of the memory
    return Sparse(start, column[order].astype(np.uint8 if fits_a_byte else np.int32), value[order])


def _entry_codes(names: Sequence[str], values: Sequence[Any]) -> Index:
    """Return a code for each entry, (e,). A code combines the column, the sign and whether the value is a number; the
    code is -1 for a list or an object.

    names, values: the name and the value of the field of each entry."""
    codes = [
        _TEXT_CODES[name][value]
        if type(value) is str
        else _KEY_CODES[name]
        if type(value) in NUMBER_TYPES
        else -1
        if isinstance(value, dict | list | tuple)
        else _TEXT_CODES[name][str(value)]
        for name, value in zip(names, values, strict=True)
    ]
    return np.fromiter(codes, np.int64, len(codes))


class _Cache(dict[str, Any]):
    """A _Cache maps a text to the result of `compute` for this text. The cache is emptied when it has `max_entries`
    entries."""

    def __init__(self, max_entries: int, compute: Callable[[str], Any]) -> None:
        self.max_entries, self.compute = max_entries, compute

    def __missing__(self, text: str) -> Any:
        if len(self) >= self.max_entries:
            self.clear()
        self[text] = result = self.compute(text)
        return result


def _code(path: str, *, number: bool) -> int:
    column, sign = hashed_column(path)
    return column * _COLUMN + _NEGATIVE_BIT * (sign < 0) + _NUMBER_BIT * number


# codes of numbers by the name of their field, and of texts by that name and themselves
_KEY_CODES = _Cache(10_000, lambda name: _code(f"\x1f{name}", number=True))
_TEXT_CODES = _Cache(1_000, lambda name: _Cache(10_000, lambda text: _code(f"\x1f{name}\x1e{text}", number=False)))


def text_of(value: Any) -> str:
    """Return a value of a context as a text. A text stays as it is, and any other value is written as JSON, where 1.0
    and 1 are the same."""
    if isinstance(value, str):
        return value
    is_integral = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if is_integral else value, sort_keys=True, ensure_ascii=False)


def items(path: str, value: Any) -> Iterator[tuple[str, float | None]]:
    """Yield a path for each plain value inside a list or an object, and the value if it is a number (else None). A path
    joins the keys that lead to a value, followed by the value if it is not a number."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from items(f"{path}\x1f{key}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from items(f"{path}\x1f", item)
    elif type(value) in NUMBER_TYPES:
        yield path, value
    else:
        yield f"{path}\x1e{value}", None


def _squeeze_numbers(raw_values: Sequence[float]) -> Array:
    try:
        numbers = np.array(raw_values, np.float64)
    except OverflowError:  # an integer too large for a double
        numbers = np.array([value if abs(value) <= _MAX_NUMBER else 0.0 for value in raw_values], np.float64)
    return np.where(np.isfinite(numbers), np.arcsinh(numbers), 0.0)


@lru_cache(maxsize=100_000)
def hashed_column(name: str) -> tuple[int, float]:
    """Return the column, among MAX_COLUMNS columns, and the sign into which a name is hashed."""
    bits = int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    return (bits >> 1) % MAX_COLUMNS, 1.0 if bits & 1 else -1.0


class Field(Record, kw_only=False):
    """A Field describes a field of a JSON object. The attributes of a Field other than its name are its spec."""

    name: str

    kind: ClassVar[str]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the columns of this field."""
        return (self.name,)

    @property
    def width(self) -> int:
        """Return the number of columns of this field."""
        return len(self.names)

    def mismatch_text(self, value: Any) -> str:
        """Return a text that says which kind of value is expected, if this value is of another kind. Otherwise the text
        is empty."""
        raise NotImplementedError

    def encode(self, values: Sequence[Any]) -> Array:
        """Return the columns of n values, (n, columns). Values that are unknown, missing or of another type count as
        0."""
        raise NotImplementedError

    def entries(self, values: Sequence[Any]) -> tuple[Index, Index, Array]:
        """Return the nonzero entries of the result of `encode`, as three arrays (e,): the row, the column and the value
        of each entry."""
        features = self.encode(values)
        row, column = np.nonzero(features)
        return row, column, features[row, column]

    def spec(self) -> dict[str, Any]:
        parameters = {key: list(value) if type(value) is tuple else value for key, value in asdict(self).items()}
        return {"type": self.kind, **{key: value for key, value in parameters.items() if key != "name"}}

    def _parameter_error(self, key: str, hint: str) -> InputError:
        return InputError(f"{key} of field {quote(self.name)} is {quote(getattr(self, key))}", hint=hint)


class Number(Field, kw_only=False):
    """A Number field has the column (x - mean) / scale, cut to at most MAX_DEVIATIONS on both sides of 0."""

    mean: float = 0.0
    scale: float = 1.0

    kind = "number"

    def __post_init__(self) -> None:
        for key in ("mean", "scale"):
            if not is_number(getattr(self, key)):
                raise self._parameter_error(key, "give a finite number")
            object.__setattr__(self, key, float(getattr(self, key)))
        if self.scale <= 0:
            raise self._parameter_error("scale", "give a number above 0")

    def mismatch_text(self, value: Any) -> str:
        return "" if is_number(value) else "a finite number"

    def encode(self, values: Sequence[Any]) -> Array:
        with np.errstate(over="ignore"):
            deviations = (_numbers(values) - self.mean) / self.scale
        return np.where(np.isnan(deviations), 0.0, np.clip(deviations, -MAX_DEVIATIONS, MAX_DEVIATIONS))[:, None]


class Flag(Field, kw_only=False):
    """A Flag field has a column that is 1 where the value is true."""

    kind = "flag"

    def mismatch_text(self, value: Any) -> str:
        return "" if isinstance(value, bool) else "true or false"

    def encode(self, values: Sequence[Any]) -> Array:
        return np.fromiter((value is True for value in values), np.float64, len(values))[:, None]


class Vector(Field, kw_only=False):
    """A Vector field has a column for each number of a list. The numbers are not scaled."""

    length: int = 0

    kind = "vector"

    def __post_init__(self) -> None:
        if type(self.length) is not int or not 1 <= self.length <= MAX_WIDTH:
            raise self._parameter_error("length", f"give a whole number from 1 to {MAX_WIDTH}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}[{index}]" for index in range(self.length))

    def mismatch_text(self, value: Any) -> str:
        is_valid = self._has_length(value) and all(is_number(item, LARGEST_NUMBER) for item in value)
        return "" if is_valid else f"a list of {self.length} numbers from {-LARGEST_NUMBER:g} to {LARGEST_NUMBER:g}"

    def encode(self, values: Sequence[Any]) -> Array:
        missing_values = [None] * self.length
        items = list(chain.from_iterable(value if self._has_length(value) else missing_values for value in values))
        numbers = _numbers(items, LARGEST_NUMBER).reshape(len(values), self.length)
        return np.where(np.isnan(numbers).any(axis=1, keepdims=True), 0.0, numbers)

    def _has_length(self, value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) == self.length


class Words(Field, kw_only=False):
    """Words is the base class of fields with a column for each text in `values`. Other texts are hashed into `hash`
    columns with signs."""

    values: tuple[str, ...] = ()
    hash: int = 0

    separator: ClassVar[str]

    def __post_init__(self) -> None:
        if not isinstance(self.values, list | tuple) or not all(isinstance(text(value), str) for value in self.values):
            raise self._parameter_error("values", "give a list of texts")
        object.__setattr__(self, "values", tuple(map(text_of, self.values)))
        check_hash(f"field {quote(self.name)}", self.hash)
        if not self.width:
            raise self._parameter_error("values", "list some, or hash them")

    @property
    def names(self) -> tuple[str, ...]:
        value_names = (f"{self.name}{self.separator}{value}" for value in self.values)
        return (*value_names, *(f"{self.name}#{index}" for index in range(self.hash)))

    @property
    def width(self) -> int:
        return len(self.values) + self.hash

    @cached_property
    def _index(self) -> dict[str, int]:
        return {value: index for index, value in enumerate(self.values)}

    def _word_column(self, word: str) -> tuple[int, float]:
        """Return the column and the sign of a text. For a text without a column, the result is the index after the last
        column."""
        if word in self._index or not self.hash:
            return self._index.get(word, len(self.values)), 1.0
        column, sign = hashed_column(f"\x1f{self.name}\x1e{word}")
        return len(self.values) + column % self.hash, sign

    def _words_in(self, values: Sequence[Any]) -> tuple[Index, list[str]]:
        """Return the words in n values, and the index of the value that contains each word. The two results have the
        same length, and the indices come first."""
        raise NotImplementedError

    def encode(self, values: Sequence[Any]) -> Array:
        row, column, sign = self._signed_columns(*self._words_in(values))
        return add_up(len(values), self.width + 1, row, column, sign)[:, :-1]

    def entries(self, values: Sequence[Any]) -> tuple[Index, Index, Array]:
        row, column, sign = self._signed_columns(*self._words_in(values))
        has_column = column < self.width
        return row[has_column], column[has_column], sign[has_column]

    def _signed_columns(self, row: Index, words: Sequence[str]) -> tuple[Index, Index, Array]:
        """Return three arrays (e,): the row, the column and the sign of each word. A word without a column has the
        index after the last column.

        row (e,): the index of the value that contains the word; words: the words."""
        columns = {word: self._word_column(word) for word in set(words)}
        column = np.fromiter((columns[word][0] for word in words), np.int64, len(words))
        sign = np.fromiter((columns[word][1] for word in words), np.float64, len(words))
        return row, column, sign


class Category(Words, kw_only=False):
    """A Category field reads one text. true, false and whole numbers count as the texts that JSON writes for them."""

    kind = "category"
    separator = "="

    def mismatch_text(self, value: Any) -> str:
        return "" if text(value) is not None else "a text"

    def _words_in(self, values: Sequence[Any]) -> tuple[Index, list[str]]:
        words = [text(value) for value in values]
        row = np.flatnonzero([word is not None for word in words])
        return row, [word for word in words if word is not None]


class TextSet(Words, kw_only=False):
    """A TextSet field reads a set of texts. Repeated texts count once."""

    kind = "list"
    separator = ":"

    def mismatch_text(self, value: Any) -> str:
        is_valid = isinstance(value, list | tuple) and all(type(item) is str for item in value)
        return "" if is_valid else "a list of texts"

    def _words_in(self, values: Sequence[Any]) -> tuple[Index, list[str]]:
        return _flatten_sets([() if self.mismatch_text(value) else set(value) for value in values])


class Text(Words, kw_only=False):
    """A Text field reads the words of a text, separated by spaces. Repeated words count once."""

    kind = "text"
    separator = ":"

    def mismatch_text(self, value: Any) -> str:
        return "" if type(value) is str else "a text"

    def _words_in(self, values: Sequence[Any]) -> tuple[Index, list[str]]:
        return _flatten_sets([set(value.split()) if type(value) is str else () for value in values])


def _flatten_sets(sets: Sequence[Collection[str]]) -> tuple[Index, list[str]]:
    row = np.repeat(np.arange(len(sets)), np.fromiter(map(len, sets), np.int64, len(sets)))
    return row, list(chain.from_iterable(sets))


KINDS: dict[str, type[Field]] = {kind.kind: kind for kind in (Number, Flag, Category, TextSet, Text, Vector)}
# short forms that combine the type with one parameter
_SHORT_FORMS = {
    "vector": ("vector", "length"),
    "list": ("list", "values"),
    "text": ("text", "hash"),
    "values": ("category", "values"),
    "hash": ("category", "hash"),
}


def parse_field(name: Any, declaration: Any) -> Field:
    """Return the field that a spec declares, in full or in a short form. Raises InputError that names the mistake in
    the spec.

    name: the name of the field; declaration: the spec."""
    if not is_name(name):
        hint = f"a name has 1 to {MAX_NAME_LENGTH} characters, and no NUL"
        raise InputError(f"a field is named {quote(name)}", hint=hint)
    if name.partition(".")[0] in statements.STATEMENTS:
        hint = 'it holds what a request states; features of arms are declared under "arm"'
        raise InputError(f"a field is named {quote(name)}", hint=hint)
    full_spec = dict(_full_spec(declaration))
    kind = KINDS.get(str(full_spec.pop("type", None)))
    if kind is None:
        raise InputError(f"field {quote(name)} is {quote(declaration)}", hint=f"give it a type, {FORMS}")
    parameters = [field.name for field in fields(kind) if field.name != "name"]
    for key in full_spec:
        if key not in parameters:
            hint = suggest(str(key), parameters) or f"a {kind.kind} has {' and '.join(['a type', *parameters])}"
            raise InputError(f"field {quote(name)} has an unknown {quote(key)}", hint=hint)
    return kind(name, **full_spec)


def _full_spec(declaration: Any) -> Mapping[str, Any]:
    if isinstance(declaration, list | tuple):
        return {"type": "category", "values": declaration}
    if not isinstance(declaration, Mapping):
        return {"type": declaration}
    for key, (kind, parameter) in _SHORT_FORMS.items():
        is_ambiguous = key != parameter and parameter in declaration
        if "type" not in declaration and key in declaration and not is_ambiguous:
            parameters = {name: value for name, value in declaration.items() if name != key}
            return {**parameters, "type": kind, parameter: declaration[key]}
    return declaration


def check_hash(subject: str, columns: Any) -> None:
    """Raise InputError unless values can be hashed into this number of columns.

    subject: what is hashed, for the error."""
    if type(columns) is not int or columns not in HASH_SIZES:
        hint = f"give 0 or a power of two up to {HASH_SIZES[-1]}"
        raise InputError(f"hash of {subject} is {quote(columns)}", hint=hint)


def is_name(name: Any) -> bool:
    return isinstance(name, str) and 1 <= len(name) <= MAX_NAME_LENGTH and "\0" not in name


def value_of(values: Mapping[str, Any], name: str) -> Any:
    """Return the value of a field in an object. The result is None if the object does not have the field.

    The value is under the name of the field. For a name such as `User.name`, the value may also be inside an object
    `User` or, if `User` is a list, in the first object of the list that has a value. For a name under `@arms`, which
    holds what a request states about arms, the result is the value of each arm, by key."""
    value = values.get(name)
    if value is not None or "." not in name:
        return value
    object_name, _, path = name.partition(".")
    if object_name == statements.ARMS:
        return statements.by_arm(values, path)
    nested_values = (value_of(nested_object, path) for nested_object in objects(values.get(object_name)))
    return next((value for value in nested_values if value is not None), None)


def objects(value: Any) -> list[Mapping[str, Any]]:
    """Return a list of the objects in a value: the value itself, or the objects in a list."""
    return [item for item in (value if type(value) is list else [value]) if isinstance(item, Mapping)]


def is_number(value: Any, limit: float = sys.float_info.max) -> bool:
    return type(value) in NUMBER_TYPES and -limit <= value <= limit


def text(value: Any) -> str | None:
    """Return the name of the category that a value stands for. The result is None if the value is not a category."""
    if type(value) is str:
        return value
    is_integral = type(value) in (bool, int) or (type(value) is float and value.is_integer())
    return text_of(value) if is_integral else None


def quote(value: Any) -> str:
    """Return a value as JSON in the form that an error shows, shortened to 60 characters."""
    json_text = json.dumps(value, ensure_ascii=False, default=str)
    return json_text if len(json_text) <= 60 else f"{json_text[:57]}..."


def _numbers(values: Sequence[Any], limit: float = sys.float_info.max) -> Array:
    """Return the values as numbers, (n,). The result is NaN for a value that is not a number, or whose absolute value
    is above `limit`."""
    number_types = NUMBER_TYPES
    numbers = (value if type(value) in number_types and -limit <= value <= limit else np.nan for value in values)
    return np.fromiter(numbers, np.float64, len(values))
