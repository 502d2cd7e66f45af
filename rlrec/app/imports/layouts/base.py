"""This module is the base of all layouts. It reads the lines of a file, computes the digests that identify lines, and
holds the decisions that lines decode to.

Decoding checks every line and writes the columns to an unnamed temporary file. When the whole input is known to be
good, the columns are read back, group by group, and completed with facts that only the whole input shows. Two
processes decode every second group each. Memory is bounded by a group of lines, and 8 bytes per line."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tempfile
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing, nullcontext
from dataclasses import replace
from hashlib import blake2b
from itertools import chain, groupby, pairwise, repeat, zip_longest
from operator import itemgetter
from typing import Any, BinaryIO, ClassVar, NamedTuple, cast

import numpy as np

from rlrec import times
from rlrec.app.imports.background import BackgroundItems
from rlrec.app.imports.columns import NULL, LogColumns, values
from rlrec.app.imports.conflicts import LineNames
from rlrec.app.imports.layouts import checks
from rlrec.app.imports.layouts.checks import Problem
from rlrec.arrays import Ids
from rlrec.errors import InputError
from rlrec.records import Record, Sums

GROUP = 50_000  # lines
GROUP_BYTES = 1 << 25  # about, per group
BLOCK_BYTES = 1 << 20
LINE_BYTES = 10_000_000
BOM = b"\xef\xbb\xbf"
SPANNED = 1_000  # lines of a decision, at most
EXCERPT_BYTES = 1 << 10  # bytes kept of a refused line that is too long


class LineGroup(NamedTuple):
    group: int
    numbers: list[int]
    texts: list[bytes]


def line_groups(
    file: FileBytes, name: str, parity: int | None, *, has_header: bool, number: int = 1, cuts: bool = False
) -> Iterator[LineGroup]:  # fmt: skip
    """Yield the lines of a file in groups, without blank lines.

    parity: 0 or 1 to read only every second group (even or odd) and the group of a header, or None to read all;
    number: the number of the first line; cuts: whether a line that is too long is cut to one byte over the limit,
    instead of an error."""
    for index, blocks in groupby(_blocks(file, name, number), itemgetter(0)):
        if has_header or parity is None or index % 2 == parity:
            lines = LineGroup(index, [], [])
            for _, number, block in blocks:
                _cut(number, block, lines, cuts)
            has_header = has_header and not lines.texts
            yield lines


class FileBytes(io.RawIOBase):
    """A FileBytes stream reads the bytes of a file from `position` up to `size`. Other programs may read the file or
    append to it meanwhile."""

    def __init__(self, file: BinaryIO, size: int, position: int = 0) -> None:
        self.number, self.size, self.position = file.fileno(), size, position

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = os.preadv(self.number, [memoryview(buffer)[: self.size - self.position]], self.position)
        self.position += count
        return count


def _blocks(file: FileBytes, name: str, number: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield blocks of whole lines from a plain or gzip file. Each block comes with the number of its group of lines,
    from 0 on, and the number of its first line. number: the number of the first line of the file."""
    group, count, size = 0, 0, 0
    buffer = io.BufferedReader(file)
    is_gzip = buffer.peek(2)[:2] == b"\x1f\x8b"
    stream = gzip.GzipFile(fileobj=buffer) if is_gzip else buffer
    try:
        while block := stream.read(BLOCK_BYTES):
            block += (line := stream.readline(LINE_BYTES + 1))
            while line and line[-1:] != b"\n":  # the rest of a line that is too long
                line = stream.readline(BLOCK_BYTES)
                block += b"\n" * line.endswith(b"\n")
            while block:
                n_lines = block.count(b"\n")
                fits = count + n_lines <= GROUP
                end = len(block) if fits else len(block) - len(block.split(b"\n", GROUP - count)[-1])
                yield group, number, block[:end]
                number, count, size = number + min(n_lines, GROUP - count), count + n_lines, size + end
                if count >= GROUP or size >= GROUP_BYTES:
                    group, count, size = group + 1, 0, 0
                block = block[end:]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{name} is a damaged gzip file: {error}", hint="fetch it again") from error


def _cut(number: int, block: bytes, group: LineGroup, cuts: bool) -> None:
    """Add the lines of a block to a group, without blank lines. number: the number of the first line; cuts: whether a
    line that is too long is cut, instead of an error."""
    numbers, texts = group.numbers, group.texts
    lines = block.split(b"\n")
    if not lines[-1]:
        lines.pop()
    if number == 1:
        lines[0] = lines[0].removeprefix(BOM)
    if len(block) > LINE_BYTES and len(longest_line := max(lines, key=len)) > LINE_BYTES:
        if not cuts:
            raise too_long(number + lines.index(longest_line))
        lines = [text[: LINE_BYTES + 1] for text in lines]
    if any(map(bytes.endswith, lines, repeat(b"\r"))):
        lines = [text.rstrip(b"\r") for text in lines]
    numbers += range(number, number + len(lines))
    texts += lines
    if not all(lines) or any(map(bytes.isspace, lines)):
        numbers[:] = [number for number, text in zip(numbers, texts, strict=True) if text.strip()]
        texts[:] = [text for text in texts if text.strip()]


def too_long(number: int | None = None) -> InputError:
    """Return the error of a line that is longer than LINE_BYTES."""
    return InputError(f"longer than {LINE_BYTES // 1_000_000} MB", hint="one record a line", line=number)


class Source(Record):
    """A Source is a file to read (a path, or an open file), with its name in messages.

    decode: a function that turns each (number, line) into a msgspec Struct of a type, or into an InputError that
    names the line and the field; start, end: the range of bytes of a growing file that is read now (an end of None:
    the file does not grow and is read whole); number: the number of the first line in this range."""

    file: str | BinaryIO
    name: str
    decode: Callable[[Sequence[tuple[int, bytes]], type[Any]], Sequence[Any]]
    start: int = 0
    end: int | None = None
    number: int = 1

    @property
    def grows(self) -> bool:
        """Tell whether the file is only a part of a log, whose other lines are stored already or follow later."""
        return self.end is not None


class RefusedLine(NamedTuple):
    error: InputError
    text: bytes


def refused_line(error: InputError, number: int, text: bytes) -> RefusedLine:
    """Return a refused line with its error. The error loses its traceback, which would keep the whole group in
    memory."""
    error.line, error.__traceback__, error.__context__ = error.line or number, None, None
    return RefusedLine(error, text if len(text) <= LINE_BYTES else text[:EXCERPT_BYTES])


def drop_rows(rows: LogColumns, errors: Mapping[int, InputError], refused_lines: list[RefusedLine]) -> LogColumns:
    """Return the rows that have no error, and append the others to `refused_lines`. errors: the errors by index of the
    row."""
    if not errors:
        return rows
    texts = values(rows.text, len(rows))
    refused_lines += [refused_line(error, rows.number[row], texts[row] or b"") for row, error in errors.items()]
    return rows.select([row not in errors for row in range(len(rows))])


class Observation(NamedTuple):
    """An Observation holds the events of a decision that stand in another line than the decision. key: the request id
    of the decision; activates: whether the line says that the decision was shown."""

    key: str
    events: Sequence[tuple[str, float, int | None]]  # kind, value, time
    activates: bool = False


class Decoded(NamedTuple):
    """This record holds the decisions of a group of lines, still without digests and texts, and the lines that cannot
    be read.

    errors: the errors of refused decisions, by row; n_skipped: the number of lines that the format marks as no
    decision; n_zoneless: the number of lines with a time without a zone; observations: events on decisions in other
    lines; lines: the number of lines of each decision, or None if each decision is one line."""

    rows: LogColumns
    refused_lines: list[RefusedLine]
    errors: Mapping[int, InputError] = {}
    n_skipped: int = 0
    n_zoneless: int = 0
    observations: Sequence[Observation] = ()
    lines: Sequence[int] | None = None


class LineSums(Sums, frozen=False, eq=True):
    """This record counts the lines of a log.

    decisions: the number of decisions; n_rejected: refused lines; duplicates: repeated lines that name a request;
    n_skipped: lines that the format marks as no decision; without_propensity: decisions with neither a propensity
    nor a marginal; observes: whether the log has lines with events on decisions in other lines; n_zoneless: lines
    with a time without a zone; copies: decisions that equal an earlier decision in session, time and all else."""

    decisions: int = 0
    n_rejected: int = 0
    duplicates: int = 0
    n_skipped: int = 0
    without_propensity: int = 0
    observes: bool = False
    n_zoneless: int = 0
    copies: int = 0


class Note(Record):
    """A Note holds facts about a group of decoded lines that are needed at the end of their file.

    sums: counts of lines; observations: events on decisions in other lines; policies: for each policy, the number of
    the first line that names it; names: hashes of names, to find contradictions; digests: the first 8 bytes of each
    decision's digest; arms, max_length: the shown arms and the length of the longest slate, for layouts that do not
    say which arms were eligible; inactive_ids: the request id, or None, of each decision that is not yet known to
    have been shown; decision_digests: the digests of the keys of decisions in a table."""

    sums: LineSums
    observations: Sequence[Observation]
    policies: Mapping[str, int]
    names: LineNames
    digests: Ids
    arms: Set[str] = frozenset()
    max_length: int = 0
    inactive_ids: Sequence[str | None] = ()
    decision_digests: Sequence[int] = ()


class Layout(ABC):
    """A Layout decodes one file of a log. Each subclass defines how lines are decoded. policy: the policy to which all
    decisions of the file belong, or None if each line names its policy."""

    has_header: ClassVar[bool] = False  # the first line names the columns
    wants_policy: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset()  # names of the options that it uses: map, reward_from, arm_id
    rounding: ClassVar[float] = 0.0  # tolerance for the sum of probabilities, besides that for six decimals
    has_pages: ClassVar[bool] = True  # whether a decision is a whole page, not one slot of it
    spans = False  # whether a decision may have several lines
    most_lines: ClassVar[int] = SPANNED  # lines of a decision, at most

    def __init__(self, source: Source, *, policy: str | None, now: int, options: Mapping[str, Any]) -> None:
        self.source, self.policy, self.now, self.options = source, policy, now, options
        self.sums = LineSums()  # of the lines decoded so far
        self.strays: Mapping[str, Observation] = {}  # of decisions that are not in these files, by request id
        self.policies: dict[str, int] = {}  # the first line that names each policy
        self.is_large = False  # whether the file is worth a second process
        self.share = 0.0  # the share of the file that has been read
        self.arms: set[str] = set()  # shown, see Note
        self.max_length = 0  # page, see Note
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`; nobody else can write what is unpickled)
        self._digests = [np.empty(0, np.int64)]  # the first 8 bytes of each digest, until all are decoded
        self._repeats: frozenset[bytes] = frozenset()
        self.old_counts: Mapping[bytes, int] = {}  # how often each line came before these, where some did
        self._names: list[LineNames] = []

    def close(self) -> None:
        self._spool.close()

    # -- defined by each layout --

    def header(self, text: bytes) -> None:  # noqa: B027 (most layouts have none)
        """Read the first line of the file. Raises InputError if a column is missing."""

    def goes_on(self, text: bytes, next_text: bytes, *, gap: bool) -> bool:
        """If decisions can have several lines, tell whether a line belongs to the same decision as the line before it.
        text: the line before; next_text: the line; gap: whether blank lines are between them."""
        return False

    def complete_bytes(self, data: bytes) -> int:
        """Return the length in bytes of the decisions at the beginning of `data` that are certainly complete."""
        return data.rfind(b"\n") + 1

    @abstractmethod
    def decode(self, numbers: Sequence[int], texts: list[bytes]) -> Decoded:
        """Return the decisions in these lines, and the events that these lines state for decisions in other lines.
        numbers: the number of each line; texts: the text of each line."""

    def finish_decoding(self) -> None:  # noqa: B027 (most layouts need nothing more)
        """Do what is left when all lines are decoded. Raises InputError if the file as a whole cannot be imported."""

    def join(self, files: Sequence[Layout]) -> list[str]:
        """Share facts between all files when all of them are decoded, and return messages for the user. This is only
        called for the layout of the first file."""
        return []

    def complete(self, rows: LogColumns) -> LogColumns:
        """Return decoded rows, completed with facts that are known only at the end of the file."""
        return rows

    def path(self, table: str, field: str, number: int, text: bytes) -> str | None:
        """Return the name that the field of a Problem has in the line, for messages. number: the index of the slot or
        event within its decision; text: the line."""
        return field

    # -- passes --

    def decode_all(self, *, with_text: bool) -> Generator[list[RefusedLine], None, None]:
        """Decode the file. Yields, for each group, the lines that are refused. with_text: whether to keep the texts of
        the other lines, which may be refused later. If so, hashes of names are not kept."""
        file = self.source.file
        with open(file, "rb") if isinstance(file, str) else nullcontext(file) as stream:
            start, end = self.source.start, self.source.end
            size = os.fstat(stream.fileno()).st_size if end is None else end
            readers = FileBytes(stream, size, start), FileBytes(stream, size, start)
            even_groups, odd_groups = (self._spooled_groups(reader, n, with_text) for n, reader in enumerate(readers))
            self.is_large = size - start > BLOCK_BYTES
            with closing(BackgroundItems(odd_groups, forks=self.is_large)) as background:
                for rows, note, refusals in filter(None, chain.from_iterable(zip_longest(even_groups, background))):
                    self.share = readers[0].position / max(size, 1)
                    self.remember(note)
                    if not with_text:
                        self._names.append(note.names)
                    self._spool.write(rows)
                    yield refusals
        self._spool.flush()
        self.finish_decoding()
        digests, self._digests = np.sort(np.concatenate(self._digests)), []
        self._repeats = frozenset(prefix.tobytes() for prefix in np.unique(digests[1:][digests[1:] == digests[:-1]]))
        self._count_duplicates()

    def _count_duplicates(self) -> None:
        if self._repeats:
            counts, n_duplicates, has_moments = {**self.old_counts}, self.sums.decisions, True
            for rows in self.read_spool():
                n_duplicates -= len(self._without_repeats(rows, counts))
                has_moments &= None not in (*values(rows.session or NULL, 1), *values(rows.at, 1))
            self.sums.duplicates = n_duplicates
            n_repeats = (
                sum(counts.values()) - sum(self.old_counts.values()) - len(counts.keys() - self.old_counts.keys())
            )
            self.sums.copies = (n_repeats - self.sums.duplicates) * has_moments

    def come_after(self, old_counts: Mapping[bytes, int]) -> None:
        """Treat lines of this file as repeated if earlier parts of the log had them. old_counts: how often each line
        came before this file, by its digest."""
        self.old_counts, self._repeats = old_counts, self._repeats.union(digest[:8] for digest in old_counts)
        self._count_duplicates()

    def line_digests(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the digest of each decision in a range of bytes of the file, even of those that cannot be decoded."""
        file = FileBytes(cast(BinaryIO, self.source.file), end, start)
        groups = line_groups(file, self.source.name, None, has_header=False, cuts=True)
        for _, numbers, texts in self._at_ends(groups) if self.spans else groups:
            for lines in self.decision_lines(numbers, texts):
                yield blake2b(b"\n".join(texts[lines]), digest_size=16).digest()

    def decision_lines(self, numbers: Sequence[int], texts: Sequence[bytes]) -> list[slice]:
        """Return the lines of each decision, as slices of `texts`. numbers: the number of each line; texts: the text of
        each."""
        indexes = range(len(texts))
        starts = [n for n in indexes if not n or not self._goes_on(numbers, texts, n)] if self.spans else indexes
        return [slice(*ends) for ends in pairwise([*starts, len(texts)])]

    def _goes_on(self, numbers: Sequence[int], texts: Sequence[bytes], index: int) -> bool:
        gap = numbers[index] > numbers[index - 1] + 1
        return self.goes_on(texts[index - 1], texts[index], gap=gap)

    def _spooled_groups(
        self, file: FileBytes, start: int, with_text: bool
    ) -> Iterator[tuple[bytes, Note, list[RefusedLine]]]:  # fmt: skip
        """Yield every second group of the file, as its pickled rows, its note, and its refused lines. start: 0 for the
        even groups, 1 for the odd groups."""
        groups = line_groups(
            file, self.source.name, None if self.spans else start, has_header=self.has_header,
            number=self.source.number, cuts=self.source.grows,
        )  # fmt: skip
        if self.has_header:
            groups = self._without_header(groups)
        for index, numbers, texts in self._at_ends(groups) if self.spans else groups:
            if index % 2 == start:
                backup, times.zoneless[:] = [*times.zoneless], []
                group = self.decode(numbers, texts)
                times.zoneless[:] = backup
                rows, refused_lines = self._check_group(group, numbers, texts)
                note = self.note(rows, group)
                rows = rows if with_text else replace(rows, text=NULL)
                yield pickle.dumps(rows, pickle.HIGHEST_PROTOCOL) if len(rows) else b"", note, refused_lines

    def _without_header(self, groups: Iterator[LineGroup]) -> Iterator[LineGroup]:
        """Yield the groups without the first line, after it was read as the header."""
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
        """Yield groups that end where a decision ends. For this, the last lines of a group may move to the next one."""
        index, numbers, texts = -1, list[int](), list[bytes]()
        for index, more_numbers, more_texts in groups:
            numbers, texts = numbers + more_numbers, texts + more_texts
            cut = max(len(texts) - 1, 0)
            while cut and len(texts) - cut < self.most_lines and self._goes_on(numbers, texts, cut):
                cut -= 1
            yield LineGroup(index, numbers[:cut], texts[:cut])
            numbers, texts = numbers[cut:], texts[cut:]
        yield LineGroup(index + 1, numbers, texts)

    def _check_group(
        self, group: Decoded, numbers: Sequence[int], texts: list[bytes]
    ) -> tuple[LogColumns, list[RefusedLine]]:
        """Return the rows that pass all checks, with missing values filled in, and the refused lines. group: the
        decoded lines; numbers, texts: the number and the text of each line."""
        refused_lines = [*group.refused_lines]
        rows = drop_rows(_with_digests(group, numbers, texts), group.errors, refused_lines)
        rows = drop_rows(rows, self._errors(rows, checks.value_problems(rows, now=self.now), numbers), refused_lines)
        if len(rows):
            rows = checks.complete_rows(rows)
            problems = checks.page_problems(rows, now=self.now, rounding=self.rounding)
            rows = drop_rows(rows, self._errors(rows, problems, numbers), refused_lines)
            if self.has_pages and rows.slots.marginal != NULL:
                rows = checks.with_lone_propensities(rows)
        return rows, sorted(refused_lines, key=lambda line: line.error.line or 0)

    def _errors(self, rows: LogColumns, problems: Iterable[Problem], numbers: Sequence[int]) -> dict[int, InputError]:
        """Return the first error of each row that has a problem, by the index of the row. numbers: the numbers of all
        lines of the group."""
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
        """Return a note of facts about the accepted rows of a group. This runs in the process that decoded the
        group."""
        names = values(rows.policy, len(rows))
        in_sessions = rows if rows.user == NULL else rows.in_sessions()
        return Note(
            sums=LineSums(len(rows), 0, 0, group.n_skipped, _count_unweighed(rows), n_zoneless=group.n_zoneless),
            observations=group.observations, names=LineNames.read(in_sessions),
            policies=dict(zip(reversed(names), reversed(rows.number), strict=True)),
            digests=np.frombuffer(b"".join(rows.digest), np.int64)[::2].copy(),
        )  # fmt: skip

    def remember(self, note: Note) -> None:
        """Add the facts of a group's note to those of the file. Notes must come in the order of the groups."""
        self.sums += note.sums
        self.policies = {**note.policies, **self.policies}
        self._digests.append(note.digests)
        self.arms |= note.arms
        self.max_length = max(self.max_length, note.max_length)

    def names(self) -> LineNames:
        """Return hashes of the request ids, feedback keys and sessions in all decoded lines, and drop them from this
        object."""
        names, self._names = self._names, []
        return LineNames.join(map(LineNames.read, self.groups()) if self._repeats else names)

    def read_spool(self) -> Iterator[LogColumns]:
        """Yield the decoded rows, group by group, from the temporary file."""
        self._spool.seek(0)
        while self._spool.peek(1):
            rows: LogColumns = pickle.load(self._spool)
            yield rows

    def groups(self) -> Iterator[LogColumns]:
        """Return an iterator of the decoded decisions, group by group. The decisions are completed, and have digests
        that identify them."""
        return map(self.complete, self._identified_rows())

    def _identified_rows(self) -> Iterator[LogColumns]:
        """Return an iterator of the decoded rows with a digest of each line. A repeated line is left out if it names a
        request, since it is then the same decision; otherwise its digest also covers the number of earlier copies."""
        if not self._repeats:
            return self.read_spool()
        counts = {**self.old_counts}
        return (self._without_repeats(rows, counts) for rows in self.read_spool())

    def _without_repeats(self, rows: LogColumns, counts: dict[bytes, int]) -> LogColumns:
        digests, is_new = list[bytes](), list[bool]()
        for digest, request in zip(rows.digest, values(rows.request_id, len(rows)), strict=True):
            n_repeats = 0
            if digest[:8] in self._repeats:
                n_repeats = counts.get(digest, 0)
                counts[digest] = n_repeats + 1
            is_new.append(not n_repeats or request is None)
            digests.append(blake2b(digest + n_repeats.to_bytes(8), digest_size=16).digest() if n_repeats else digest)
        return replace(rows, digest=digests).select(is_new)


def _count_unweighed(rows: LogColumns) -> int:
    """Return the number of decisions with neither a propensity nor a marginal. No estimate can weigh them."""
    n_unknown = values(rows.log_propensity, len(rows)).count(None)
    if not n_unknown or rows.slots.marginal == NULL:
        return n_unknown
    marginal = values(rows.slots.marginal, len(rows.slots.row))
    weighed_rows = {row for row, p in zip(rows.slots.row, marginal, strict=True) if p is not None}
    return sum(p is None and row not in weighed_rows for row, p in enumerate(values(rows.log_propensity, len(rows))))


def _with_digests(group: Decoded, numbers: Sequence[int], texts: list[bytes]) -> LogColumns:
    """Return the decoded rows. Each row also has the text of its lines, and a digest of this text."""
    if group.lines is not None:
        index = dict(zip(numbers, range(len(numbers)), strict=True))
        starts = zip(map(index.__getitem__, group.rows.number), group.lines, strict=True)
        texts = [b"\n".join(texts[first : first + count]) for first, count in starts]
    elif len(group.rows) < len(texts):
        lines = dict(zip(numbers, texts, strict=True))
        texts = [lines[number] for number in group.rows.number]
    return replace(group.rows, digest=[blake2b(text, digest_size=16).digest() for text in texts], text=texts)
