"""The types of fields of JSON objects, and how each becomes named columns."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.errors import InputError, suggest
from rlrec.policy.contexts import features, statements

WIDEST = 128  # columns whose pairwise products a belief can store for every arm
HASHES = (0, *(1 << bits for bits in range(19)))  # powers of two, so that all hashed columns are equally likely
# a number farther from the mean, in units of scale, is cut, so that one typing error cannot dominate a belief
FAR = 10.0
LARGEST = 1e6  # for numbers in a vector, which are not scaled
LONGEST = 200  # characters in a name
FORMS = 'such as "number", "flag", ["ios", "android"], {"list": ["a"], "hash": 8}, {"text": 1024} or {"vector": 8}'


@dataclass(frozen=True)
class Field:
    """A field of a JSON object; its attributes other than the name are its spec."""

    name: str

    kind: ClassVar[str]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its columns."""
        return (self.name,)

    @property
    def width(self) -> int:
        """The number of its columns."""
        return len(self.names)

    def mismatch(self, value: Any) -> str:
        """The expected kind of value, in the words of an error, where this value is of another kind; else an empty
        text."""
        raise NotImplementedError

    def encode(self, values: Sequence[Any]) -> Array:
        """Columns (n, columns) of n values; values that are unknown, missing or of another type count 0."""
        raise NotImplementedError

    def entries(self, values: Sequence[Any]) -> tuple[Index, Index, Array]:
        """The nonzero entries of `encode`: row, column and value of each."""
        dense = self.encode(values)
        row, column = np.nonzero(dense)
        return row, column, dense[row, column]

    def spec(self) -> dict[str, Any]:
        parameters = {key: list(value) if type(value) is tuple else value for key, value in asdict(self).items()}
        return {"type": self.kind, **{key: value for key, value in parameters.items() if key != "name"}}

    def _parameter_error(self, key: str, hint: str) -> InputError:
        return InputError(f"{key} of field {quote(self.name)} is {quote(getattr(self, key))}", hint=hint)


@dataclass(frozen=True)
class Number(Field):
    """(x - mean) / scale, cut where it is FAR from the mean."""

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

    def mismatch(self, value: Any) -> str:
        return "" if is_number(value) else "a finite number"

    def encode(self, values: Sequence[Any]) -> Array:
        with np.errstate(over="ignore"):
            scaled = (_numbers(values) - self.mean) / self.scale
        return np.where(np.isnan(scaled), 0.0, np.clip(scaled, -FAR, FAR))[:, None]


@dataclass(frozen=True)
class Flag(Field):
    """A column that is 1 where the value is true."""

    kind = "flag"

    def mismatch(self, value: Any) -> str:
        return "" if isinstance(value, bool) else "true or false"

    def encode(self, values: Sequence[Any]) -> Array:
        return np.fromiter((value is True for value in values), np.float64, len(values))[:, None]


@dataclass(frozen=True)
class Vector(Field):
    """Numbers as they are."""

    length: int = 0

    kind = "vector"

    def __post_init__(self) -> None:
        if type(self.length) is not int or not 1 <= self.length <= WIDEST:
            raise self._parameter_error("length", f"give a whole number from 1 to {WIDEST}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}[{at}]" for at in range(self.length))

    def mismatch(self, value: Any) -> str:
        fits = self._has_length(value) and all(is_number(item, LARGEST) for item in value)
        return "" if fits else f"a list of {self.length} numbers from {-LARGEST:g} to {LARGEST:g}"

    def encode(self, values: Sequence[Any]) -> Array:
        missing_values = [None] * self.length
        items = list(chain.from_iterable(value if self._has_length(value) else missing_values for value in values))
        numbers = _numbers(items, LARGEST).reshape(len(values), self.length)
        return np.where(np.isnan(numbers).any(axis=1, keepdims=True), 0.0, numbers)

    def _has_length(self, value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) == self.length


@dataclass(frozen=True)
class Words(Field):
    """A column for each of `values`; other texts are hashed into `hash` columns with signs."""

    values: tuple[str, ...] = ()
    hash: int = 0

    mark: ClassVar[str]

    def __post_init__(self) -> None:
        if not isinstance(self.values, list | tuple) or not all(isinstance(text(value), str) for value in self.values):
            raise self._parameter_error("values", "give a list of texts")
        object.__setattr__(self, "values", tuple(map(features.text_of, self.values)))
        check_hash(f"field {quote(self.name)}", self.hash)
        if not self.width:
            raise self._parameter_error("values", "list some, or hash them")

    @property
    def names(self) -> tuple[str, ...]:
        value_names = (f"{self.name}{self.mark}{value}" for value in self.values)
        return (*value_names, *(f"{self.name}#{at}" for at in range(self.hash)))

    @property
    def width(self) -> int:
        return len(self.values) + self.hash

    @cached_property
    def _index(self) -> dict[str, int]:
        return {value: at for at, value in enumerate(self.values)}

    def _column(self, word: str) -> tuple[int, float]:
        """The column and sign of a text; the index after the last column for a text without one."""
        if word in self._index or not self.hash:
            return self._index.get(word, len(self.values)), 1.0
        column, sign = features.column_of(f"\x1f{self.name}\x1e{word}")
        return len(self.values) + column % self.hash, sign

    def _words(self, values: Sequence[Any]) -> tuple[Index, list[str]]:
        """The row of each word of n values, and the words."""
        raise NotImplementedError

    def encode(self, values: Sequence[Any]) -> Array:
        row, column, sign = self._signed(*self._words(values))
        return features.add_up(len(values), self.width + 1, row, column, sign)[:, :-1]

    def entries(self, values: Sequence[Any]) -> tuple[Index, Index, Array]:
        row, column, sign = self._signed(*self._words(values))
        has_column = column < self.width
        return row[has_column], column[has_column], sign[has_column]

    def _signed(self, row: Index, words: Sequence[str]) -> tuple[Index, Index, Array]:
        """Row, column and sign of words; the index after the last column for a word without one."""
        columns = {word: self._column(word) for word in set(words)}
        column = np.fromiter((columns[word][0] for word in words), np.int64, len(words))
        sign = np.fromiter((columns[word][1] for word in words), np.float64, len(words))
        return row, column, sign


@dataclass(frozen=True)
class Category(Words):
    """One text; true, false and whole numbers count under their names in JSON."""

    kind = "category"
    mark = "="

    def mismatch(self, value: Any) -> str:
        return "" if text(value) is not None else "a text"

    def _words(self, values: Sequence[Any]) -> tuple[Index, list[str]]:
        words = [text(value) for value in values]
        row = np.flatnonzero([word is not None for word in words])
        return row, [word for word in words if word is not None]


@dataclass(frozen=True)
class TextSet(Words):
    """A set of texts; repeated ones count once."""

    kind = "list"
    mark = ":"

    def mismatch(self, value: Any) -> str:
        fits = isinstance(value, list | tuple) and all(type(item) is str for item in value)
        return "" if fits else "a list of texts"

    def _words(self, values: Sequence[Any]) -> tuple[Index, list[str]]:
        return _in_rows([() if self.mismatch(value) else set(value) for value in values])


@dataclass(frozen=True)
class Text(Words):
    """The words of a text, separated by spaces; repeated ones count once."""

    kind = "text"
    mark = ":"

    def mismatch(self, value: Any) -> str:
        return "" if type(value) is str else "a text"

    def _words(self, values: Sequence[Any]) -> tuple[Index, list[str]]:
        return _in_rows([set(value.split()) if type(value) is str else () for value in values])


def _in_rows(sets: Sequence[Collection[str]]) -> tuple[Index, list[str]]:
    row = np.repeat(np.arange(len(sets)), np.fromiter(map(len, sets), np.int64, len(sets)))
    return row, list(chain.from_iterable(sets))


KINDS: dict[str, type[Field]] = {kind.kind: kind for kind in (Number, Flag, Category, TextSet, Text, Vector)}
# short forms that combine the type with one parameter
_SHORT = {
    "vector": ("vector", "length"),
    "list": ("list", "values"),
    "text": ("text", "hash"),
    "values": ("category", "values"),
    "hash": ("category", "hash"),
}


def parse_field(name: Any, written: Any) -> Field:
    """The field for a spec, in full or in a short form. Raises InputError that names the mistake in it."""
    if not is_name(name):
        raise InputError(f"a field is named {quote(name)}", hint=f"a name has 1 to {LONGEST} characters, and no NUL")
    if name.partition(".")[0] in statements.STATEMENTS:
        hint = 'it holds what a request states; features of arms are declared under "arm"'
        raise InputError(f"a field is named {quote(name)}", hint=hint)
    full_spec = dict(_in_full(written))
    kind = KINDS.get(str(full_spec.pop("type", None)))
    if kind is None:
        raise InputError(f"field {quote(name)} is {quote(written)}", hint=f"give it a type, {FORMS}")
    parameters = [field.name for field in fields(kind) if field.name != "name"]
    for key in full_spec:
        if key not in parameters:
            hint = suggest(str(key), parameters) or f"a {kind.kind} has {' and '.join(['a type', *parameters])}"
            raise InputError(f"field {quote(name)} has an unknown {quote(key)}", hint=hint)
    return kind(name, **full_spec)


def _in_full(written: Any) -> Mapping[str, Any]:
    if isinstance(written, list | tuple):
        return {"type": "category", "values": written}
    if not isinstance(written, Mapping):
        return {"type": written}
    for key, (kind, parameter) in _SHORT.items():
        clash = key != parameter and parameter in written
        if "type" not in written and key in written and not clash:
            parameters = {name: value for name, value in written.items() if name != key}
            return {**parameters, "type": kind, parameter: written[key]}
    return written


def check_hash(subject: str, columns: Any) -> None:
    """Raises InputError unless values can be hashed into this number of columns."""
    if type(columns) is not int or columns not in HASHES:
        hint = f"give 0 or a power of two up to {HASHES[-1]}"
        raise InputError(f"hash of {subject} is {quote(columns)}", hint=hint)


def is_name(name: Any) -> bool:
    return isinstance(name, str) and 1 <= len(name) <= LONGEST and "\0" not in name


def value_of(values: Mapping[str, Any], name: str) -> Any:
    """The value of a field: under its name or, for `User.name`, inside an object `User`, or in the first object that
    has it of a list; None where there is none. For statements on arms it is the values of all arms, by key."""
    value = values.get(name)
    if value is not None or "." not in name:
        return value
    head, _, path = name.partition(".")
    if head == statements.ARMS:
        return statements.by_arm(values, path)
    inner_values = (value_of(inner, path) for inner in objects(values.get(head)))
    return next((value for value in inner_values if value is not None), None)


def objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects in a value: itself, or those in a list."""
    return [inner for inner in (value if type(value) is list else [value]) if isinstance(inner, Mapping)]


def is_number(value: Any, largest: float = sys.float_info.max) -> bool:
    return type(value) in features.NUMBERS and -largest <= value <= largest


def text(value: Any) -> str | None:
    """The name of a category; None for a value that is not one."""
    if type(value) is str:
        return value
    integral = type(value) in (bool, int) or (type(value) is float and value.is_integer())
    return features.text_of(value) if integral else None


def quote(value: Any) -> str:
    """A value as an error shows it."""
    written = json.dumps(value, ensure_ascii=False, default=str)
    return written if len(written) <= 60 else f"{written[:57]}..."


def _numbers(values: Sequence[Any], largest: float = sys.float_info.max) -> Array:
    """The values as numbers, (n,); NaN for values that are not numbers, or too large."""
    types = features.NUMBERS
    numbers = (value if type(value) in types and -largest <= value <= largest else np.nan for value in values)
    return np.fromiter(numbers, np.float64, len(values))
