"""The ground of all layouts: the lines of a file, a line's identity, and the logged decisions it is decoded to.

Decoding checks every line, and its columns go to a file without a name; they come back from there, group by group, once
the whole input is known to be good and what is known only at its end is known. Two processes decode every second group
each. Memory is bounded by a group of lines, and 8 bytes a line.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain, pairwise, zip_longest
from typing import Any, BinaryIO, ClassVar, NamedTuple, cast

import numpy as np

from rlrec import times
from rlrec.app.imports.background import BackgroundItems
from rlrec.app.imports.columns import NULL, LogColumns, values
from rlrec.app.imports.conflicts import LineNames
from rlrec.app.imports.layouts import checks
from rlrec.app.imports.layouts.checks import Problem
from rlrec.app.imports.layouts.line_groups import BLOCK_BYTES, LINE_BYTES, FileBytes, LineGroup, line_groups
from rlrec.arrays import Ids
from rlrec.errors import InputError
from rlrec.records import Sums

SPANNED = 1_000  # lines of a decision
EXCERPT_BYTES = 1 << 10  # of a refused line that is too long


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file to read (a path, or an open file), its name for people, and how strictly its JSON is read. decode: each
    (number, line) as a msgspec Struct of a type, or the InputError with line and field that says why not. start, end:
    the bytes of a file that grows which are read now, None for all that there are; number: of the first line there."""

    file: str | BinaryIO
    name: str
    decode: Callable[[Sequence[tuple[int, bytes]], type[Any]], Sequence[Any]]
    start: int = 0
    end: int | None = None
    number: int = 1

    @property
    def grows(self) -> bool:
        """Whether these are some lines of a log whose other lines are stored already, or follow later."""
        return self.end is not None


class RefusedLine(NamedTuple):
    error: InputError
    text: bytes


def refused_line(error: InputError, number: int, text: bytes) -> RefusedLine:
    """A line that is refused. The error forgets where it was raised: that holds on to the whole group."""
    error.line, error.__traceback__, error.__context__ = error.line or number, None, None
    return RefusedLine(error, text if len(text) <= LINE_BYTES else text[:EXCERPT_BYTES])


def drop_rows(rows: LogColumns, errors: Mapping[int, InputError], bad: list[RefusedLine]) -> LogColumns:
    """The rows less those with an error, which go to `bad`."""
    if not errors:
        return rows
    texts = values(rows.text, len(rows))
    bad += [refused_line(error, rows.number[row], texts[row] or b"") for row, error in errors.items()]
    return rows.select([row not in errors for row in range(len(rows))])


class Observation(NamedTuple):
    """Events of a decision that another line holds. key: the request id of that decision."""

    key: str
    events: tuple[tuple[str, float, int | None], ...]  # kind, value, time
    activates: bool = False


class LateObservation(NamedTuple):
    """Observations of a decision that is not in the files at hand. events: as in Observation."""

    events: Sequence[tuple[str, float, int | None]]
    activates: bool


class Decoded(NamedTuple):
    """The decisions of some lines, without digest and text, and the lines that cannot be taken.

    errors: of decisions, by row; skipped: how many lines the format itself marks as none; zoneless: how many have a
    time without a zone; observations: of decisions in other lines; lines: over how many each decision goes; None: one
    each."""

    rows: LogColumns
    refused: list[RefusedLine]
    errors: Mapping[int, InputError] = {}
    skipped: int = 0
    zoneless: int = 0
    observations: Sequence[Observation] = ()
    lines: Sequence[int] | None = None


@dataclass
class LineSums(Sums):
    """Counts of the lines of a log. rejected: refused lines; duplicates: lines that name a request and came before;
    skipped: lines that the format marks as no decision; without_propensity: decisions; observes: whether some lines
    observe the decisions of others; zoneless: lines with a time without a zone."""

    decisions: int = 0
    rejected: int = 0
    duplicates: int = 0
    skipped: int = 0
    without_propensity: int = 0
    observes: bool = False
    zoneless: int = 0


@dataclass(frozen=True, kw_only=True)
class Note:
    """Facts about a group of decoded lines that are remembered until the end of their file.

    observations: as in Decoded; policies: the line that names each first; digests: the first 8 bytes of that of each
    decision. arms and largest: those shown, and the longest page, for layouts that do not say what was eligible;
    inactive: the request id, or None, of each decision that waits for its activation; decision_digests: of the keys of
    decisions in a table."""

    sums: LineSums
    observations: Sequence[Observation]
    policies: Mapping[str, int]
    names: LineNames
    digests: Ids
    arms: Set[str] = frozenset()
    largest: int = 0
    inactive: Sequence[str | None] = ()
    decision_digests: Sequence[int] = ()


class Layout(ABC):
    """One file in a layout. policy: the owner of all its decisions, None where each line names its own."""

    headed: ClassVar[bool] = False  # the first line names the columns
    wants_policy: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset()  # names of the options that it reads: map, reward_from, arm_id
    rounding: ClassVar[float] = 0.0  # of probabilities, beside that to six decimals
    has_pages: ClassVar[bool] = True  # a decision is a page, and not a slot of one
    spans = False  # whether a decision may go over several lines
    most_lines: ClassVar[int] = SPANNED  # of a decision

    def __init__(self, source: Source, *, policy: str | None, now: int, options: Mapping[str, Any]) -> None:
        self.source, self.policy, self.now, self.options = source, policy, now, options
        self.sums = LineSums()  # of the lines that were decoded so far
        self.late: Mapping[str, LateObservation] = {}  # of decisions that are not in these files, by request id
        self.policies: dict[str, int] = {}  # the line that names each policy first
        self.is_large = False  # whether it is worth a second process
        self.share = 0.0  # of the file that was read
        self.arms: set[str] = set()  # shown, see Note
        self.largest = 0  # page, see Note
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`; nobody else can write what is unpickled)
        self._digests = [np.empty(0, np.int64)]  # the first 8 bytes of each, until all are decoded
        self._repeated: frozenset[bytes] = frozenset()
        self.earlier: Mapping[bytes, int] = {}  # how often lines came before these, where some did
        self._names: list[LineNames] = []

    def close(self) -> None:
        self._spool.close()

    # -- what a layout says --

    def header(self, text: bytes) -> None:  # noqa: B027 (most layouts have none)
        """Read the first line. Raises InputError where a column is missing."""

    def goes_on(self, text: bytes, following: bytes, *, gap: bool) -> bool:
        """Whether a line belongs to the decision of the line before it, where the layout spans lines. gap: whether
        blank lines lie between."""
        return False

    def complete_bytes(self, data: bytes) -> int:
        """How many of these bytes are complete decisions, whatever follows."""
        return data.rfind(b"\n") + 1

    @abstractmethod
    def decode(self, numbers: Sequence[int], texts: list[bytes]) -> Decoded:
        """The decisions of some lines, and their observations."""

    def finish_decoding(self) -> None:  # noqa: B027 (most layouts need nothing more)
        """All lines were decoded. Raises InputError where the file as a whole cannot be taken."""

    def join(self, files: Sequence[Layout]) -> list[str]:
        """All files were decoded; called for the first of them. Lines for a person."""
        return []

    def complete(self, rows: LogColumns) -> LogColumns:
        """Decoded rows with what is known only at the end of the file, and with what depends on their identity."""
        return rows

    def path(self, table: str, field: str, number: int, text: bytes) -> str | None:
        """The field of a problem, as a line names it. table, field: as in Problem; number: of the slot or event in its
        decision."""
        return field

    # -- passes --

    def decode_all(self, *, with_text: bool) -> Generator[list[RefusedLine], None, None]:
        """Decode the file: the lines of each group that cannot be taken. with_text: keep the text of the others, which
        may be set apart later, and not their names."""
        file = self.source.file
        with open(file, "rb") if isinstance(file, str) else nullcontext(file) as opened:
            start, end = self.source.start, self.source.end
            size = os.fstat(opened.fileno()).st_size if end is None else end
            readers = FileBytes(opened, size, start), FileBytes(opened, size, start)
            even_groups, odd_groups = (self._spooled_groups(reader, n, with_text) for n, reader in enumerate(readers))
            self.is_large = size - start > BLOCK_BYTES
            with closing(BackgroundItems(odd_groups, forks=self.is_large)) as background:
                for rows, note, refused in filter(None, chain.from_iterable(zip_longest(even_groups, background))):
                    self.share = readers[0].position / max(size, 1)
                    self.remember(note)
                    if not with_text:
                        self._names.append(note.names)
                    self._spool.write(rows)
                    yield refused
        self._spool.flush()
        self.finish_decoding()
        ordered, self._digests = np.sort(np.concatenate(self._digests)), []
        self._repeated = frozenset(prefix.tobytes() for prefix in np.unique(ordered[1:][ordered[1:] == ordered[:-1]]))
        self._count_duplicates()

    def _count_duplicates(self) -> None:
        if self._repeated:
            self.sums.duplicates = self.sums.decisions - sum(map(len, self._identified_rows()))

    def come_after(self, earlier: Mapping[bytes, int]) -> None:
        """Take some lines for repeated ones. earlier: how often each came in the log before these lines."""
        self.earlier, self._repeated = earlier, self._repeated.union(digest[:8] for digest in earlier)
        self._count_duplicates()

    def line_digests(self, start: int, end: int) -> Iterator[bytes]:
        """The digests of the decisions in some bytes of the file, whether or not their lines can be decoded."""
        file = FileBytes(cast(BinaryIO, self.source.file), end, start)
        groups = line_groups(file, self.source.name, None, headed=False, cuts=True)
        for _, numbers, texts in self._at_ends(groups) if self.spans else groups:
            for lines in self.decision_lines(numbers, texts):
                yield blake2b(b"\n".join(texts[lines]), digest_size=16).digest()

    def decision_lines(self, numbers: Sequence[int], texts: Sequence[bytes]) -> list[slice]:
        """The indexes of the lines of each decision."""
        indexes = range(len(texts))
        starts = [n for n in indexes if not n or not self._goes_on(numbers, texts, n)] if self.spans else indexes
        return [slice(*ends) for ends in pairwise([*starts, len(texts)])]

    def _goes_on(self, numbers: Sequence[int], texts: Sequence[bytes], index: int) -> bool:
        gap = numbers[index] > numbers[index - 1] + 1
        return self.goes_on(texts[index - 1], texts[index], gap=gap)

    def _spooled_groups(
        self, file: FileBytes, start: int, with_text: bool
    ) -> Iterator[tuple[bytes, Note, list[RefusedLine]]]:  # fmt: skip
        """Every second group of the file: its rows pickled, what to remember of them, and the refused lines."""
        groups = line_groups(
            file, self.source.name, None if self.spans else start, headed=self.headed, number=self.source.number,
            cuts=self.source.grows,
        )  # fmt: skip
        if self.headed:
            groups = self._without_header(groups)
        for index, numbers, texts in self._at_ends(groups) if self.spans else groups:
            if index % 2 == start:
                noted, times.zoneless[:] = [*times.zoneless], []
                group = self.decode(numbers, texts)
                times.zoneless[:] = noted
                rows, bad = self._checked(group, numbers, texts)
                note = self.note(rows, group)
                rows = rows if with_text else replace(rows, text=NULL)
                yield pickle.dumps(rows, pickle.HIGHEST_PROTOCOL) if len(rows) else b"", note, bad

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
        for index, more_numbers, more_texts in groups:
            numbers, texts = numbers + more_numbers, texts + more_texts
            cut = max(len(texts) - 1, 0)
            while cut and len(texts) - cut < self.most_lines and self._goes_on(numbers, texts, cut):
                cut -= 1
            yield LineGroup(index, numbers[:cut], texts[:cut])
            numbers, texts = numbers[cut:], texts[cut:]
        yield LineGroup(index + 1, numbers, texts)

    def _checked(
        self, group: Decoded, numbers: Sequence[int], texts: list[bytes]
    ) -> tuple[LogColumns, list[RefusedLine]]:
        """The decoded rows that can be, completed, and the lines that cannot."""
        bad = [*group.refused]
        rows = drop_rows(_identified(group, numbers, texts), group.errors, bad)
        rows = drop_rows(rows, self._errors(rows, checks.value_problems(rows, now=self.now), numbers), bad)
        if len(rows):
            rows = checks.completed(rows)
            problems = checks.page_problems(rows, now=self.now, rounding=self.rounding)
            rows = drop_rows(rows, self._errors(rows, problems, numbers), bad)
            if self.has_pages and rows.slots.marginal != NULL:
                rows = checks.with_lone_propensities(rows)
        return rows, sorted(bad, key=lambda line: line.error.line or 0)

    def _errors(self, rows: LogColumns, problems: Iterable[Problem], numbers: Sequence[int]) -> dict[int, InputError]:
        """The first error of each row that has a problem. numbers: of all lines of the group."""
        errors: dict[int, InputError] = {}
        for row, field, message, hint, table, index in problems:
            if row not in errors:
                number = index - bisect_left(getattr(rows, table).row, row) if table else 0
                errors[row] = error = InputError(message, hint=hint)
                error.field = self.path(table, field, number, cast(Sequence[bytes], rows.text)[row])
                if self.spans and table == "slots":
                    error.line = numbers[bisect_left(numbers, rows.number[row]) + number]
        return errors

    def note(self, rows: LogColumns, group: Decoded) -> Note:
        """Facts about the rows of a group that were accepted, in whichever process they are."""
        names = values(rows.policy, len(rows))
        in_sessions = rows if rows.user == NULL else rows.in_sessions()
        return Note(
            sums=LineSums(len(rows), 0, 0, group.skipped, _count_unweighed(rows), zoneless=group.zoneless),
            observations=group.observations, names=LineNames.read(in_sessions),
            policies=dict(zip(reversed(names), reversed(rows.number), strict=True)),
            digests=np.frombuffer(b"".join(rows.digest), np.int64)[::2].copy(),
        )  # fmt: skip

    def remember(self, note: Note) -> None:
        """Remember the facts about a group; groups come in the order of the file."""
        self.sums += note.sums
        self.policies = {**note.policies, **self.policies}
        self._digests.append(note.digests)
        self.arms |= note.arms
        self.largest = max(self.largest, note.largest)

    def names(self) -> LineNames:
        """The names in all decoded lines, which are forgotten."""
        names, self._names = self._names, []
        return LineNames.join(map(LineNames.read, self.groups()) if self._repeated else names)

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
        counts = {**self.earlier}
        return (self._without_repeats(rows, counts) for rows in self.spooled())

    def _without_repeats(self, rows: LogColumns, counts: dict[bytes, int]) -> LogColumns:
        digests, is_new = list[bytes](), list[bool]()
        for digest, request in zip(rows.digest, values(rows.request_id, len(rows)), strict=True):
            repeats = 0
            if digest[:8] in self._repeated:
                repeats = counts.get(digest, 0)
                counts[digest] = repeats + 1
            is_new.append(not repeats or request is None)
            digests.append(blake2b(digest + repeats.to_bytes(8), digest_size=16).digest() if repeats else digest)
        return replace(rows, digest=digests).select(is_new)


def _count_unweighed(rows: LogColumns) -> int:
    """How many decisions have neither a propensity nor a marginal, so that no estimate weighs them."""
    unknown = values(rows.log_propensity, len(rows)).count(None)
    if not unknown or rows.slots.marginal == NULL:
        return unknown
    marginal = values(rows.slots.marginal, len(rows.slots.row))
    weighed = {row for row, p in zip(rows.slots.row, marginal, strict=True) if p is not None}
    return sum(p is None and row not in weighed for row, p in enumerate(values(rows.log_propensity, len(rows))))


def _identified(group: Decoded, numbers: Sequence[int], texts: list[bytes]) -> LogColumns:
    """The decoded rows with their text and its digest."""
    if group.lines is not None:
        index = dict(zip(numbers, range(len(numbers)), strict=True))
        starts = zip(map(index.__getitem__, group.rows.number), group.lines, strict=True)
        texts = [b"\n".join(texts[first : first + count]) for first, count in starts]
    elif len(group.rows) < len(texts):
        lines = dict(zip(numbers, texts, strict=True))
        texts = [lines[number] for number in group.rows.number]
    return replace(group.rows, digest=[blake2b(text, digest_size=16).digest() for text in texts], text=texts)
