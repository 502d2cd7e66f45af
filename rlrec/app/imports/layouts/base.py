"""The ground of all layouts: the lines of a file, a line's identity, and the logged decisions it is decoded to.

Decoding checks every line, and its columns go to a file without a name; they come back from there, group by group, once
the whole input is known to be good and what is known only at its end is known. Two processes decode every second group
each. Memory is bounded by a group of lines, and 8 bytes a line.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain, groupby, repeat, zip_longest
from operator import itemgetter
from typing import Any, BinaryIO, ClassVar, NamedTuple, Protocol, TypeVar, cast

import numpy as np

from rlrec.app.imports.background import BackgroundItems
from rlrec.app.imports.columns import NULL, LogColumns, distinct, values
from rlrec.app.imports.layouts import fields
from rlrec.errors import InputError

GROUP = 50_000  # lines
GROUP_BYTES = 1 << 25  # about
AT_ONCE = 1_000  # lines of JSON decoded at once
BLOCK = 1 << 20
LINE_BYTES = 10_000_000
SPANNED = 1_000  # lines of a decision
BOM = b"\xef\xbb\xbf"

T = TypeVar("T")


class Decode(Protocol):
    """Each (number, line) of JSON as a msgspec Struct, or the InputError with line and field that says why not."""

    def __call__(self, group: Sequence[tuple[int, bytes]], kind: type[T]) -> list[T | InputError]: ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file to read (a path, or an open file), its name for people, and how strictly its JSON is read."""

    file: str | BinaryIO
    name: str
    decode: Decode

    def lines(
        self, numbers: Sequence[int], texts: Sequence[bytes], kind: type[T]
    ) -> Iterator[tuple[int, bytes, T | InputError]]:
        """Each line with what it decodes to."""
        for start in range(0, len(texts), AT_ONCE):
            group = list(zip(numbers[start : start + AT_ONCE], texts[start : start + AT_ONCE], strict=True))
            for (number, text), line in zip(group, self.decode(group, kind), strict=True):
                yield number, text, line


class RefusedLine(NamedTuple):
    error: InputError
    text: bytes


def refused(error: InputError, number: int, text: bytes) -> RefusedLine:
    """A line that is refused. The error forgets where it was raised: that holds on to the whole group."""
    error.line, error.__traceback__, error.__context__ = number, None, None
    return RefusedLine(error, text)


class Observation(NamedTuple):
    """Events of a decision that another line holds. key: the request id of that decision."""

    key: str
    events: tuple[tuple[str, float, int | None], ...]  # kind, value, time
    activates: bool = False


class Decoded(NamedTuple):
    """The decisions of some lines, without digest and text, the lines that cannot be taken, how many lines the format
    itself marks as none, and the observations of decisions in other lines.

    lines: over how many lines each decision goes; None: one each."""

    rows: LogColumns
    refused: list[RefusedLine]
    skipped: int = 0
    observations: Sequence[Observation] = ()
    lines: Sequence[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of an import that some layouts read. map: which column of a table is what; reward_from: the key of a
    line that holds its reward; arm_id: the key of an action that holds the arm."""

    map: Mapping[str, Any] | None = None
    reward_from: str | None = None
    arm_id: str | None = None


class Layout(ABC):
    """One file in a layout. policy: the owner of all its decisions, None where each line names its own."""

    headed: ClassVar[bool] = False  # the first line names the columns
    wants_policy: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset()  # names of the options that it reads

    def __init__(self, source: Source, *, policy: str | None, now: int, options: Options | None = None) -> None:
        self.source = source
        self.policy = policy
        self.now = now
        self.options = options or Options()
        self.skipped = 0  # lines that the format marks as no decision, so far
        self.duplicates = 0  # lines that came before in the file, and name a request
        self.observes = False  # whether some lines observe decisions of others
        self.without_propensity = 0  # decisions, so far
        self.policies: dict[str, int] = {}  # the line that names each policy first
        self.decoded, self.share = 0, 0.0  # lines that were decoded so far, and the share of the file that was read
        self.names_keys = False  # whether some line names a request, a key of feedback or a user
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`; nobody else can write what is unpickled)
        self._repeated: frozenset[bytes] = frozenset()

    def close(self) -> None:
        self._spool.close()

    # -- what a layout says --

    def header(self, text: bytes) -> None:  # noqa: B027 (most layouts have none)
        """Read the first line. Raises InputError where a column is missing."""

    def goes_on(self, text: bytes, following: bytes) -> bool:
        """Whether a line belongs to the decision of the line before it."""
        return False

    @abstractmethod
    def decode(self, numbers: Sequence[int], texts: list[bytes]) -> Decoded:
        """The decisions of some lines, and their observations."""

    def end(self) -> None:  # noqa: B027 (most layouts need nothing more)
        """All lines were decoded. Raises InputError where the file as a whole cannot be taken."""

    def join(self, files: Sequence[Layout]) -> list[str]:
        """All files were decoded; called for the first of them. Lines for a person."""
        return []

    def complete(self, rows: LogColumns) -> LogColumns:
        """Decoded rows with what is known only at the end of the file, and with what depends on their identity."""
        return rows

    def time(self, text: str, field: str) -> int:
        """Microseconds since 1970 UTC, as `fields.time` reads them."""
        return fields.time(text, field, now=self.now)

    # -- passes --

    def decode_all(self, *, with_text: bool) -> Generator[list[RefusedLine], None, None]:
        """Decode the file: the lines of each group that cannot be taken. with_text: keep the text of the others."""
        prefixes = [np.empty(0, np.uint64)]
        file = self.source.file
        with open(file, "rb") if isinstance(file, str) else nullcontext(file) as opened:
            size = os.fstat(opened.fileno()).st_size
            readers = _Bytes(opened, size), _Bytes(opened, size)
            even, odd = (self._decoded_groups(each, start, with_text) for start, each in enumerate(readers))
            with closing(BackgroundItems(odd)) as background:
                for group in filter(None, chain.from_iterable(zip_longest(even, background))):
                    rows = group.rows
                    self.decoded, self.share = self.decoded + len(rows), readers[0].position / max(size, 1)
                    self.skipped += group.skipped
                    self.observe(group.observations)
                    if len(rows):
                        prefixes.append(np.frombuffer(b"".join(rows.digest), np.uint64)[::2])
                        self.note(rows)
                        pickle.dump(rows, self._spool, pickle.HIGHEST_PROTOCOL)
                    yield group.refused
        self._spool.flush()
        self.end()
        ordered = np.sort(np.concatenate(prefixes))
        self._repeated = frozenset(prefix.tobytes() for prefix in np.unique(ordered[1:][ordered[1:] == ordered[:-1]]))
        if self._repeated:
            self.duplicates = self.decoded - sum(map(len, self._identified_rows()))

    def _decoded_groups(self, file: _Bytes, start: int, with_text: bool) -> Iterator[Decoded]:
        """Every second group of the file."""
        spans = type(self).goes_on is not Layout.goes_on
        groups = _groups(file, self.source.name, None if spans else start, self.headed)
        if self.headed:
            groups = self._without_header(groups)
        for index, numbers, texts in self._at_ends(groups) if spans else groups:
            if index % 2 == start:
                yield self._identified(self.decode(numbers, texts), numbers, texts, with_text)

    def _without_header(self, groups: Iterator[LineGroup]) -> Iterator[LineGroup]:
        """The groups after the header was read from the first of their lines."""
        is_read = False
        for index, numbers, texts in groups:
            if texts and not is_read:
                number, is_read = numbers.pop(0), True
                try:
                    self.header(texts.pop(0))
                except InputError as error:
                    error.line = number
                    raise
            yield LineGroup(index, numbers, texts)
        if not is_read:
            raise InputError(f"{self.source.name} is empty", hint="its first line names the columns")

    def _at_ends(self, groups: Iterator[LineGroup]) -> Iterator[LineGroup]:
        """The groups, each ending where a decision ends: its last lines move to the next group."""
        index, numbers, texts = -1, list[int](), list[bytes]()
        for index, more, further in groups:
            numbers, texts = numbers + more, texts + further
            cut = max(len(texts) - 1, 0)
            while cut and len(texts) - cut < SPANNED and self.goes_on(texts[cut - 1], texts[cut]):
                cut -= 1
            yield LineGroup(index, numbers[:cut], texts[:cut])
            numbers, texts = numbers[cut:], texts[cut:]
        yield LineGroup(index + 1, numbers, texts)

    def _identified(self, group: Decoded, numbers: Sequence[int], texts: list[bytes], with_text: bool) -> Decoded:
        """The decoded group with the digests of its rows, and with their text where that is wanted."""
        if group.lines is not None:
            index = dict(zip(numbers, range(len(numbers)), strict=True))
            starts = zip(map(index.__getitem__, group.rows.number), group.lines, strict=True)
            texts = [b"\n".join(texts[first : first + count]) for first, count in starts]
        elif len(group.rows) < len(texts):
            lines = dict(zip(numbers, texts, strict=True))
            texts = [lines[number] for number in group.rows.number]
        digests = [blake2b(text, digest_size=16).digest() for text in texts]
        return group._replace(rows=replace(group.rows, digest=digests, text=texts if with_text else NULL))

    def observe(self, observations: Sequence[Observation]) -> None:  # noqa: B027 (most layouts have none)
        """Remember observations of decisions in other lines."""

    def note(self, rows: LogColumns) -> None:
        """Remember of decoded rows what is known only at the end of the file."""
        self.without_propensity += values(rows.log_propensity, len(rows)).count(None)
        if self.policy is None:
            for name in distinct(rows.policy) - self.policies.keys():
                self.policies[name] = rows.number[list(cast(Sequence[str], rows.policy)).index(name)]
        elif len(rows):
            self.policies.setdefault(self.policy, rows.number[0])
        self.names_keys |= any(column != NULL for column in (rows.user, rows.request_id, rows.events.key))

    def spooled(self) -> Iterator[LogColumns]:
        """The rows that were decoded, group by group."""
        self._spool.seek(0)
        while self._spool.peek(1):
            rows: LogColumns = pickle.load(self._spool)
            yield rows

    def groups(self) -> Iterator[LogColumns]:
        """The decoded decisions, group by group, each with the identity of its line."""
        return map(self.complete, self._identified_rows())

    def _identified_rows(self) -> Iterator[LogColumns]:
        """The rows that were decoded, with 16 bytes of their line and of how often it came before in the file. A line
        that names its request is the same decision again, and left out."""
        if not self._repeated:
            return self.spooled()
        counts: dict[bytes, int] = {}
        return (self._without_repeats(rows, counts) for rows in self.spooled())

    def _without_repeats(self, rows: LogColumns, counts: dict[bytes, int]) -> LogColumns:
        digests, is_new = list[bytes](), list[bool]()
        for digest, request in zip(rows.digest, values(rows.request_id, len(rows)), strict=True):
            before = 0
            if digest[:8] in self._repeated:
                before = counts.get(digest, 0)
                counts[digest] = before + 1
            is_new.append(not before or request is None)
            digests.append(blake2b(digest + before.to_bytes(8), digest_size=16).digest() if before else digest)
        return replace(rows, digest=digests).select(is_new)


class LineGroup(NamedTuple):
    group: int
    numbers: list[int]
    texts: list[bytes]


def _groups(file: _Bytes, name: str, parity: int | None, headed: bool) -> Iterator[LineGroup]:
    """The lines of a file in groups, blank ones left out. parity: of every second group alone, and that of a header."""
    for index, blocks in groupby(_blocks(file, name), itemgetter(0)):
        if headed or parity is None or index % 2 == parity:
            lines = LineGroup(index, [], [])
            for _, number, block in blocks:
                _cut(number, block, lines.numbers, lines.texts)
            headed = headed and not lines.texts
            yield lines


class _Bytes(io.RawIOBase):
    """The first `size` bytes of a file, whoever else reads it, or adds to it."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.number, self.size, self.position = file.fileno(), size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = os.preadv(self.number, [memoryview(buffer)[: self.size - self.position]], self.position)
        self.position += count
        return count


def _blocks(file: _Bytes, name: str) -> Iterator[tuple[int, int, bytes]]:
    """The bytes of a file, gzip too, in blocks of whole lines: the group of each, the number of its first line, it."""
    group, number, count, size = 0, 1, 0, 0
    buffered = io.BufferedReader(file)
    packed = buffered.peek(2)[:2] == b"\x1f\x8b"
    stream = gzip.GzipFile(fileobj=buffered) if packed else buffered
    try:
        while block := stream.read(BLOCK):
            block += stream.readline(LINE_BYTES)
            while block:
                lines = block.count(b"\n")
                fits = count + lines <= GROUP
                end = len(block) if fits else len(block) - len(block.split(b"\n", GROUP - count)[-1])
                yield group, number, block[:end]
                number, count, size = number + min(lines, GROUP - count), count + lines, size + end
                if count >= GROUP or size >= GROUP_BYTES:
                    group, count, size = group + 1, 0, 0
                block = block[end:]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{name} is a damaged gzip file: {error}", hint="fetch it again") from error


def _cut(number: int, block: bytes, numbers: list[int], texts: list[bytes]) -> None:
    """Add the lines of a block that are not blank, with their numbers."""
    lines = block.split(b"\n")
    if not lines[-1]:
        lines.pop()
    if number == 1:
        lines[0] = lines[0].removeprefix(BOM)
    if len(block) > LINE_BYTES and len(longest := max(lines, key=len)) > LINE_BYTES:
        message = f"longer than {LINE_BYTES // 1_000_000} MB"
        raise InputError(message, hint="one record a line", line=number + lines.index(longest))
    if any(map(bytes.endswith, lines, repeat(b"\r"))):
        lines = [text.rstrip(b"\r") for text in lines]
    numbers += range(number, number + len(lines))
    texts += lines
    if not all(lines) or any(map(bytes.isspace, lines)):
        numbers[:] = [number for number, text in zip(numbers, texts, strict=True) if text.strip()]
        texts[:] = [text for text in texts if text.strip()]
