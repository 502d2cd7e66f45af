"""This module reads inputs that grow: a stream, or a file that other programs append to, rotate and truncate. It reads
portions of complete lines.

A file counts as the file that was read before if the bytes just before the place where reading stopped are
unchanged. Inodes do not decide, because editors write a file anew, and a truncated file may have grown again since."""

from __future__ import annotations

import io
import os
import select
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from glob import escape, glob
from hashlib import blake2b
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from rlrec.app.imports.layouts.base import BLOCK_BYTES, Layout
from rlrec.errors import InputError, RlrecError

PORTION_BYTES = 1 << 24  # more than a line may have
TAIL_BYTES = 1 << 10  # bytes before an offset, by which a file is recognized
PACKED = (".gz", ".bz2", ".xz", ".zst")  # ends of the names of rotated files
QUIET_POLLS = 5  # polls without new bytes, after which nobody writes to a replaced file any more

Complete = Callable[[bytes], int]  # returns the length of the complete decisions in some bytes


class Position(NamedTuple):
    """A Position is the place in a file from which reading continues. inode: the inode of the file; offset: the number
    of bytes read; lines: the number of lines read; digest: the digest of the bytes just before the offset; process: the
    name of the process that read up to the offset."""

    inode: int = 0
    offset: int = 0
    lines: int = 0
    digest: str = ""
    process: str = ""

    def fits(self, file: BinaryIO) -> bool:
        """Tell whether a file is still the file that was read up to this position. Only the bytes just before the
        position are compared."""
        return os.fstat(file.fileno()).st_size >= self.offset and _digest(file, self.offset) == self.digest


class Portion(NamedTuple):
    """A Portion holds complete lines of a file. start, end: the range of their bytes; lines: the number of lines before
    them; data: the bytes, or only the first bytes of a single line that is longer than a portion; position: the end of
    the portion, None for a file that is not followed."""

    file: BinaryIO
    start: int
    end: int
    data: bytes
    lines: int
    position: Position | None

    def before(self, line: int, complete: Complete) -> Portion | None:
        """Return the part of this portion with the complete decisions before a line, or None if no complete decision
        precedes the line. line: the number of the line; complete: a function that returns the length of the complete
        decisions in bytes."""
        lines = self.data.split(b"\n", line - self.lines - 1)[:-1]
        data = b"\n".join([*lines, b""])
        data = data[: complete(data)]
        return _portion(self.file, self.start, data, self.lines, follows=self.position is not None) if data else None


def _portion(file: BinaryIO, start: int, data: bytes, lines: int, *, follows: bool, size: int | None = None) -> Portion:
    """Return a portion of a file. start: the place of its first byte; data: its bytes; lines: the number of lines
    before it; follows: whether the file is followed, so that the position of the end is needed; size: its full length
    in bytes, if `data` is only its first part (None: the length of `data`)."""
    end, inode = start + (len(data) if size is None else size), os.fstat(file.fileno()).st_ino
    if not follows:
        return Portion(file, start, end, data, lines, None)
    lines_after = lines + (data.count(b"\n") or int(end > start + len(data)))
    return Portion(file, start, end, data, lines, Position(inode, end, lines_after, _digest(file, end)))


def _digest(file: BinaryIO, offset: int) -> str:
    start = max(offset - TAIL_BYTES, 0)
    return blake2b(os.pread(file.fileno(), offset - start, start), digest_size=16).hexdigest() if offset else ""


class LineCounts:
    """A LineCounts object counts how often each line was read before. Lines are recognised by the first eight bytes of
    their digests."""

    def __init__(self) -> None:
        self._prefixes = np.empty(0, np.int64)

    def add(self, digests: Iterable[bytes]) -> None:
        prefixes = np.frombuffer(b"".join(digest[:8] for digest in digests), np.int64)
        self._prefixes = np.sort(np.concatenate([self._prefixes, prefixes]), kind="stable")

    def count(self, digests: Sequence[bytes]) -> dict[bytes, int]:
        prefixes = np.frombuffer(b"".join(digest[:8] for digest in digests), np.int64)
        low, high = (np.searchsorted(self._prefixes, prefixes, side) for side in ("left", "right"))
        return dict(zip(digests, (high - low).tolist(), strict=True))


class GrowingFile:
    """A GrowingFile reads new lines of a file. position: where an earlier process stopped reading, or None if no
    process has read the file."""

    is_over = False

    def __init__(self, path: str, position: Position | None, notice: Callable[[str], None]) -> None:
        self.path, self.notice = path, notice
        for candidate in self._candidates(position):
            self._start(candidate, position or Position())
            if self.position.fits(self.file):
                return
            self.file.close()
        notice(f"{path} is not the file that was followed: it is read from its start, and no file between the two")
        self._start(path, Position())

    def _candidates(self, position: Position | None) -> Iterator[str]:
        """Yield paths at which the file of a position may be now: first the original path, then those in the same
        folder with the inode of the position, since a rotated file keeps its inode under another name."""
        yield self.path
        if position is not None:
            with suppress(OSError):  # a folder that may not be listed
                entries = list(os.scandir(os.path.dirname(os.path.realpath(self.path))))
                yield from [entry.path for entry in entries if entry.inode() == position.inode and entry.is_file()]

    def _start(self, path: str, position: Position) -> None:
        try:
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for a writer
        except OSError as error:
            raise RlrecError(f"cannot read {path}: {error.strerror}") from None
        self.file = cast(BinaryIO, io.FileIO(number))
        if not stat.S_ISREG(os.fstat(number).st_mode):
            self.close()
            raise RlrecError(f"cannot read {path}: it is no plain file any more", hint="start the command again")
        if os.pread(self.file.fileno(), 2, 0) == b"\x1f\x8b":
            self.close()
            hint = "import it without --follow, or `zcat FILE | rlrec import-log - --follow`"
            raise InputError(f"{path} is a gzip file, which does not grow line by line", hint=hint)
        self._go_to(position)

    def _go_to(self, position: Position) -> None:
        self.position, self._quiet_polls, self._status = position, 0, (-1, -1)
        self._counts, self._counted_to = LineCounts(), 0

    def close(self) -> None:
        self.file.close()

    def portion(self, complete: Complete) -> Portion | None:
        """Return the next complete lines, or None if no line is complete yet. If another file has taken the path, and
        the old file no longer grows, the last line of the old file counts as complete. complete: a function that
        returns the length of the complete decisions in bytes."""
        data = os.pread(self.file.fileno(), PORTION_BYTES, self.position.offset)
        status = os.fstat(self.file.fileno())
        if (status.st_size, status.st_mtime_ns) != self._status and not self.position.fits(self.file):
            self.notice(f"{self.path} was truncated: it is read from its start")
            self._go_to(Position())
            return self.portion(complete)
        self._status = status.st_size, status.st_mtime_ns
        size = complete(data)
        if not size and len(data) == PORTION_BYTES:
            size = data.rfind(b"\n") + 1 or self._line_length()
        self._quiet_polls = self._quiet_polls + 1 if not size and self._is_replaced(status) else 0
        if self._quiet_polls > QUIET_POLLS:
            if not data:
                path = self._next_path(status)
                self.file.close()
                self._start(path, Position())
                return self.portion(complete)
            size = len(data)
        if not size:
            return None
        return _portion(self.file, self.position.offset, data[:size], self.position.lines, follows=True, size=size)

    def _line_length(self) -> int:
        """Return the length in bytes of the next line, which is longer than a portion, or 0 if its end is not written
        yet."""
        start = self.position.offset
        for offset in range(start, os.fstat(self.file.fileno()).st_size, BLOCK_BYTES):
            end = os.pread(self.file.fileno(), BLOCK_BYTES, offset).find(b"\n") + 1
            if end:
                return offset + end - start
        return 0

    def _is_replaced(self, status: os.stat_result) -> bool:
        try:
            return not os.path.samestat(os.stat(self.path), status)
        except FileNotFoundError:
            return False

    def _next_path(self, status: os.stat_result) -> str:
        """Return the path of the file that was written after the current one: a rotated file or, if there is none, the
        file at `self.path`. status: the status of the current file."""
        with suppress(FileNotFoundError):
            paths = glob(f"{escape(os.path.realpath(self.path))}[.-][0-9]*")
            entries = sorted(
                (mtime, path) for path in paths if (mtime := os.stat(path).st_mtime_ns) > status.st_mtime_ns
            )
            for _, path in entries:
                if path[-1].isdigit():
                    return path
                if path.endswith(PACKED):
                    self.notice(f"{path} was compressed before it was read: uncompress and import it")
        return self.path

    def go_on(self, portion: Portion, digests: Sequence[bytes]) -> None:
        """Move the place of reading to the end of a portion that has been stored. digests: not used here."""
        self.position = cast(Position, portion.position)

    def count_earlier(self, layout: Layout, digests: Sequence[bytes]) -> dict[bytes, int]:
        """Return, for each digest, how many of the lines that were read from the file before have it. For this, the
        file is read again from where the last count ended. layout: the layout of the file."""
        start, self._counted_to = self._counted_to, self.position.offset
        self._counts.add(layout.line_digests(start, self._counted_to))
        return self._counts.count(digests)


class Stream:
    """A Stream reads a pipe, FIFO or socket to its end."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream: Any = stream
        self.is_over, self._lines, self._waiting = False, 0, bytearray()
        self._counts, self._passes_over = LineCounts(), False
        self._file = cast(BinaryIO, tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 (closed by `close`)

    def close(self) -> None:
        self._file.close()

    def portion(self, complete: Complete) -> Portion | None:
        """Return the complete lines that have arrived, or None if there is none. At the end of the stream, return all
        bytes that are left. complete: a function that returns the length of the complete decisions in bytes."""
        while not self.is_over and len(self._waiting) < PORTION_BYTES and select.select([self.stream], [], [], 0)[0]:
            block = self.stream.read(BLOCK_BYTES)
            self.is_over = block == b""
            if self._passes_over and block:
                _, line_end, block = block.partition(b"\n")
                self._passes_over = not line_end
            self._waiting += block or b""
        data = bytes(self._waiting)
        size = len(data) if self.is_over else complete(data)
        if not size and len(data) >= PORTION_BYTES:
            size = data.rfind(b"\n") + 1 or len(data)
            self._passes_over = b"\n" not in data  # skips up to the end of this line
        if not size:
            return None
        del self._waiting[:size]
        data = data[:size] + b"\n" * self._passes_over
        self._file.seek(0)
        self._file.truncate()
        self._file.write(data)
        return _portion(self._file, 0, data, self._lines, follows=False)

    def go_on(self, portion: Portion, digests: Sequence[bytes]) -> None:
        """Count the lines of a portion that has been stored, and remember the digests of its lines without a request
        id."""
        self._lines += portion.data.count(b"\n")
        self._counts.add(digests)

    def count_earlier(self, layout: Layout, digests: Sequence[bytes]) -> dict[bytes, int]:
        """Return, for each digest, how many of the lines that were read from the stream before have it."""
        return self._counts.count(digests)
