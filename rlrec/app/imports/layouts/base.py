"""What the layouts share: the lines of a file, a line's identity, and the logged decision it holds.

A file is read twice: the first pass checks every line and gathers what is known of a file only at its end; the second
one hands over the decisions. Where the first lines foretell what the first pass would find, both are one, and the file
is read twice only if that turns out wrong. Memory is bounded by a group of lines, and 8 bytes a line of the file.
"""

from __future__ import annotations

import gzip
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any, BinaryIO, ClassVar, NamedTuple, Protocol, TypeVar, cast

from rlrec.errors import InputError
from rlrec.policy.history import ShownHistory

GROUP = 20_000  # lines
WEIGHT = 1 << 23  # bytes, about
BLOCK = 1 << 20
LIMIT = 10_000_000
BOM = b"\xef\xbb\xbf"

T = TypeVar("T")


class Decode(Protocol):
    """Each (number, line) of JSON as a msgspec Struct, or the InputError with line and field that says why not."""

    def __call__(self, group: Sequence[tuple[int, bytes]], kind: type[T]) -> list[T | InputError]: ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that can be read twice (a path, or an open file), its name for people, and how strictly its JSON is
    read."""

    file: str | BinaryIO
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
    one tuple object for lines that share it; `said` is what the line calls its policy, version and the like; `history`
    is what it says was known of the visit."""

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
    history: ShownHistory | None = None


class Impressions(NamedTuple):
    """Logged decisions of one slot each, column by column; each is all there is of its session.

    `session` is its key, made of its time first: keys that come in order are cheap to store. clicked: whether the slot
    has an event `click`; split: of each session, where it was told."""

    digest: Sequence[bytes]
    session: Sequence[str]
    at: Sequence[int]
    context: Sequence[str]
    arm: Sequence[str]
    position: Sequence[int]
    marginal: Sequence[float]
    clicked: Sequence[bool]
    split: Sequence[int]
    eligible: tuple[str, ...]
    size: int


class Refused(NamedTuple):
    error: InputError
    text: bytes


class Surprise(Exception):
    """Something that one pass cannot tell, or not in order: read the files twice."""


Group = tuple[Sequence[int], list[bytes]]  # numbers of lines, and the lines
Taken = tuple[list[Line] | Impressions, list[Refused]]  # what a group holds, and the lines that cannot be taken


class Layout(ABC):
    """One file in a layout. policy: the owner of all its decisions, None where each line names its own."""

    headed: ClassVar[bool] = False  # the first line names the columns
    wants_policy: ClassVar[bool] = False

    def __init__(self, source: Source, *, policy: str | None, now: int) -> None:
        self.source = source
        self.policy = policy
        self.now = now
        self.policies: set[str] = set() if policy is None else {policy}
        self._repeated: frozenset[int] = frozenset()

    def header(self, text: bytes) -> None:  # noqa: B027 (most layouts have none)
        """Read the first line. Raises InputError where a column is missing."""

    @abstractmethod
    def look(self, numbers: Sequence[int], texts: list[bytes]) -> Iterable[Refused]:
        """Check lines, and remember what the whole file must be known for: those that cannot be taken."""

    def looked(self) -> None:  # noqa: B027 (most layouts need nothing more)
        """All lines were looked at. Raises InputError where the file as a whole cannot be."""

    @abstractmethod
    def taken(self, numbers: Sequence[int], texts: list[bytes], digests: list[bytes]) -> Taken:
        """The decisions of lines. Raises Surprise where these are not what `look` let expect of the file."""

    def check(self) -> Iterator[Refused]:
        """The first pass: the lines that cannot be taken."""
        hashes = array("q")
        for numbers, texts in self._groups():
            hashes.extend(map(hash, texts))
            yield from self.look(numbers, texts)
        self.looked()
        self._repeated = _repeated(hashes)

    def read(self) -> Iterator[Taken]:
        """The second pass."""
        counts: dict[bytes, int] = {}
        for numbers, texts in self._groups():
            yield self.taken(numbers, texts, [self._identity(text, counts) for text in texts])

    def foresee(self) -> bool:
        """Whether all is well in the first group, which then stands for the whole file in `read_once`."""
        try:
            bad = [one for group in islice(self._groups(), 1) for one in self.look(*group)]
            self.looked()
        except InputError:
            return False
        return not bad

    def read_once(self) -> Iterator[Taken]:
        """Both passes in one. Raises Surprise where a line belies what was foreseen, or seems to come twice."""
        seen = Seen()
        for numbers, texts in self._groups():
            digests = [_digest(text) for text in texts]
            if seen.again(digests):
                raise Surprise
            yield self.taken(numbers, texts, digests)

    def _groups(self) -> Iterator[Group]:
        """The lines below the header."""
        headed = self.headed
        for numbers, texts in groups(self.source):
            if headed:
                self._head(numbers[0], texts[0])
                numbers, texts, headed = numbers[1:], texts[1:], False
            if texts:
                yield numbers, texts
        if headed:
            raise InputError(f"{self.source.name} is empty", hint="its first line names the columns")

    def _head(self, number: int, text: bytes) -> None:
        try:
            self.header(text)
        except InputError as error:
            error.line = number
            raise

    def _identity(self, text: bytes, counts: dict[bytes, int]) -> bytes:
        """16 bytes of a line and of how often it came before in the file."""
        digest = _digest(text)
        if hash(text) not in self._repeated:
            return digest
        before = counts.get(digest, 0)
        counts[digest] = before + 1
        return digest if before == 0 else blake2b(digest + before.to_bytes(8), digest_size=16).digest()


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=16).digest()


def _repeated(hashes: array[int]) -> frozenset[int]:
    """The hashes that occur more than once: only such lines need a count."""
    import numpy as np

    values = np.frombuffer(hashes, np.int64) if hashes else np.empty(0, np.int64)
    values = np.sort(values)
    return frozenset(values[1:][values[1:] == values[:-1]].tolist())


class Seen:
    """The lines of a file so far, 8 bytes each, in a few sorted runs."""

    def __init__(self) -> None:
        self.runs: list[Any] = []

    def again(self, digests: list[bytes]) -> bool:
        """Whether one of these lines came before, or (once in many millions of files) one that looks like it."""
        import numpy as np

        new = np.sort(np.frombuffer(b"".join(digests), np.uint64)[::2])
        found = bool((new[1:] == new[:-1]).any())
        for run in self.runs:
            places = np.searchsorted(run, new)
            found = found or bool((run[np.minimum(places, len(run) - 1)] == new).any())
        while self.runs and len(self.runs[-1]) <= len(new):
            new = np.sort(np.concatenate([self.runs.pop(), new]))
        self.runs.append(new)
        return found


def groups(source: Source) -> Iterator[Group]:
    """The lines of a file, gzip too, with their numbers; blank ones left out."""
    try:
        with open(source.file, "rb") if isinstance(source.file, str) else nullcontext(source.file) as file:
            file.seek(0)
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield from _cut(cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{source.name} is a damaged gzip file: {error}", hint="fetch it again") from error


def _cut(stream: BinaryIO) -> Iterator[Group]:
    first, weight, tail = 1, 0, b""
    lines: list[bytes] = []
    while block := stream.read(BLOCK):
        *complete, tail = (tail + block).split(b"\n")
        lines += complete
        weight += len(block)
        if len(tail) > LIMIT:
            line = first + len(lines)
            raise InputError(f"longer than {LIMIT // 1_000_000} MB", hint="one record a line", line=line)
        while len(lines) >= GROUP or (lines and weight > WEIGHT):
            yield from _filled(first, lines[:GROUP])
            first, weight = first + len(lines[:GROUP]), 0
            del lines[:GROUP]
    yield from _filled(first, [*lines, tail])


def _filled(first: int, lines: list[bytes]) -> Iterator[Group]:
    """The lines that are not blank, if there are any."""
    if first == 1:
        lines[0] = lines[0].removeprefix(BOM)
    lines = [text.rstrip(b"\r") if text.endswith(b"\r") else text for text in lines]
    numbers: Sequence[int] = range(first, first + len(lines))
    if any(not text or text.isspace() for text in lines):
        numbers = [number for number, text in zip(numbers, lines, strict=True) if text.strip()]
        lines = [text for text in lines if text.strip()]
    if lines:
        yield numbers, lines


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
