"""What the layouts share: the lines of a file, read twice; a line's identity; and the logged decision it holds.

The first pass checks every line and gathers what is known of a file only at its end; the second one hands over the
decisions. Memory is bounded by a group of lines, and 8 bytes a line of the file.
"""

from __future__ import annotations

import gzip
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, BinaryIO, ClassVar, NamedTuple, Protocol, cast

from rlrec.errors import InputError

GROUP = 20_000  # lines
WEIGHT = 1 << 23  # bytes, about
BLOCK = 1 << 20
LIMIT = 10_000_000
BOM = b"\xef\xbb\xbf"


class Decode(Protocol):
    """A line of JSON as a msgspec Struct. Raises InputError with line and field."""

    def __call__(self, raw: bytes, kind: type[Any], *, line: int | None = None) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that can be read twice, its name for people, and how strictly its JSON is read."""

    path: str
    name: str
    decode: Decode


class Shown(NamedTuple):
    """One slot of a logged slate, as decisions.SLOT has it, but the arm by key."""

    position: int
    arm: str
    propensity: float | None = None
    marginal: float | None = None
    min_propensity: float | None = None
    score: float | None = None
    censored: int = 0
    rounded: int = 0


class Happened(NamedTuple):
    """An event of the decision; `at` None: the decision's own time."""

    position: int | None
    kind: str
    value: float
    at: int | None = None
    key: str | None = None


class Line(NamedTuple):
    """A logged decision. None: the line does not say. context and state are canonical JSON; `eligible` are arm keys,
    one tuple object for lines that share it; `said` is what the line calls its policy, version and the like."""

    number: int
    text: bytes
    digest: bytes
    policy: str | None
    session: str
    user: str | None
    visit: int | None
    step: int | None
    at: int | None
    context: str
    state: str
    eligible: tuple[str, ...]
    size: int
    log_propensity: float | None
    seed: int | None
    request_id: str | None
    said: dict[str, Any] | None
    slots: tuple[Shown, ...]
    events: tuple[Happened, ...]


class Refused(NamedTuple):
    error: InputError
    text: bytes


class Layout(ABC):
    """One file in a layout. policy: the owner of all its decisions, None where each line names its own."""

    headed: ClassVar[bool] = False  # the first line names the columns
    wants_policy: ClassVar[bool] = False

    def __init__(self, source: Source, *, policy: str | None, now: int) -> None:
        self.source = source
        self.policy = policy
        self.now = now
        self.policies: set[str] = set() if policy is None else {policy}
        self._lines = array("q")
        self._repeated: frozenset[int] = frozenset()

    def header(self, text: bytes) -> None:  # noqa: B027 (most layouts have none)
        """Read the first line. Raises InputError where a column is missing."""

    @abstractmethod
    def look(self, number: int, text: bytes) -> None:
        """The first pass: check a line, and remember what the whole file must be known for."""

    def looked(self) -> None:  # noqa: B027 (most layouts need nothing more)
        """The first pass is over. Raises InputError where the file as a whole cannot be."""

    @abstractmethod
    def line(self, number: int, text: bytes, digest: bytes) -> Line:
        """The second pass: the decision of a line. Raises InputError as `look` did."""

    def check(self) -> Iterator[Refused]:
        """The first pass: the lines that cannot be taken."""
        headed = self.headed
        for group in groups(self.source):
            for number, text in group:
                try:
                    if headed:
                        self.header(text)
                        headed = False
                        continue
                    self._lines.append(hash(text))
                    self.look(number, text)
                except InputError as error:
                    error.line = number
                    if headed:
                        raise
                    yield Refused(error, text)
        if headed:
            raise InputError(f"{self.source.name} is empty", hint="its first line names the columns")
        self.looked()
        self._repeated = _repeated(self._lines)
        self._lines = array("q")

    def read(self) -> Iterator[tuple[list[Line], list[Refused]]]:
        """The second pass: groups of decisions, and the lines that cannot be taken."""
        headed = self.headed
        counts: dict[bytes, int] = {}
        for group in groups(self.source):
            good: list[Line] = []
            bad: list[Refused] = []
            for number, text in group[1:] if headed else group:
                try:
                    good.append(self.line(number, text, self._identity(text, counts)))
                except InputError as error:
                    error.line = number
                    bad.append(Refused(error, text))
            headed = False
            yield good, bad

    def _identity(self, text: bytes, counts: dict[bytes, int]) -> bytes:
        """16 bytes of a line and of how often it came before in the file."""
        digest = blake2b(text, digest_size=16).digest()
        if hash(text) not in self._repeated:
            return digest
        before = counts.get(digest, 0)
        counts[digest] = before + 1
        return digest if before == 0 else blake2b(digest + before.to_bytes(8), digest_size=16).digest()


def _repeated(hashes: array[int]) -> frozenset[int]:
    """The hashes that occur more than once: only such lines need a count."""
    import numpy as np

    values = np.frombuffer(hashes, np.int64) if hashes else np.empty(0, np.int64)
    values = np.sort(values)
    return frozenset(values[1:][values[1:] == values[:-1]].tolist())


def groups(source: Source) -> Iterator[list[tuple[int, bytes]]]:
    """Lists of (line number, line) of a file, gzip too; blank lines left out."""
    try:
        with open(source.path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield from _cut(cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file, source.name)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{source.name} is a damaged gzip file: {error}", hint="fetch it again") from error


def _cut(stream: BinaryIO, name: str) -> Iterator[list[tuple[int, bytes]]]:
    number, weight, tail = 0, 0, b""
    group: list[tuple[int, bytes]] = []
    while block := stream.read(BLOCK):
        *complete, tail = (tail + block).split(b"\n")
        weight += len(block)
        if len(tail) > LIMIT:
            raise InputError(f"longer than {LIMIT // 1_000_000} MB", hint="one record a line", line=number + 1)
        for text in complete:
            number += 1
            if number == 1:
                text = text.removeprefix(BOM)
            if text.endswith(b"\r"):
                text = text.rstrip(b"\r")
            if text and not text.isspace():
                group.append((number, text))
                if len(group) == GROUP:
                    yield group
                    group = []
        if weight > WEIGHT and group:
            yield group
            group, weight = [], 0
    if tail.strip():
        group.append((number + 1, (tail.removeprefix(BOM) if number == 0 else tail).rstrip(b"\r")))
    if group:
        yield group


def key(text: str, field: str) -> str:
    """A key of an arm, a session, a user, a request or a line. Raises InputError unless it can be stored."""
    if not 0 < len(text) <= 200:
        raise InputError(f"a key has 1 to 200 characters, this one {len(text)}", field=field)
    if "\x00" in text:
        raise InputError("a key holds no NUL", field=field)
    return text


def probability(value: float | None, field: str) -> float | None:
    """Raises InputError unless it lies above 0 and is at most 1."""
    if value is not None and not 0 < value <= 1:
        raise InputError(f"{value!r} is no probability of something shown", hint="it lies in (0, 1]", field=field)
    return value
