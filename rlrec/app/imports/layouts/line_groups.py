"""The lines of a file, plain or gzip, in groups of bounded size."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from itertools import groupby, repeat
from operator import itemgetter
from typing import Any, BinaryIO, NamedTuple

from rlrec.errors import InputError

GROUP = 50_000  # lines
GROUP_BYTES = 1 << 25  # about, per group
BLOCK_BYTES = 1 << 20
LINE_BYTES = 10_000_000
BOM = b"\xef\xbb\xbf"


class LineGroup(NamedTuple):
    group: int
    numbers: list[int]
    texts: list[bytes]


def line_groups(
    file: FileBytes, name: str, parity: int | None, *, headed: bool, number: int = 1, cuts: bool = False
) -> Iterator[LineGroup]:  # fmt: skip
    """The lines of a file in groups, without blank lines. parity: read only every second group, even or odd, and the
    group of a header; number: of the first line; cuts: cut lines that are too long to one byte over the limit, instead
    of raising InputError."""
    for index, blocks in groupby(_blocks(file, name, number), itemgetter(0)):
        if headed or parity is None or index % 2 == parity:
            lines = LineGroup(index, [], [])
            for _, number, block in blocks:
                _cut(number, block, lines, cuts)
            headed = headed and not lines.texts
            yield lines


class FileBytes(io.RawIOBase):
    """The first `size` bytes of a file, read from `position` on; others may read the file or append to it meanwhile."""

    def __init__(self, file: BinaryIO, size: int, position: int = 0) -> None:
        self.number, self.size, self.position = file.fileno(), size, position

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = os.preadv(self.number, [memoryview(buffer)[: self.size - self.position]], self.position)
        self.position += count
        return count


def _blocks(file: FileBytes, name: str, number: int) -> Iterator[tuple[int, int, bytes]]:
    """The bytes of a file, plain or gzip, in blocks of whole lines: the group of each, the number of its first line,
    and the bytes."""
    group, count, size = 0, 0, 0
    buffered = io.BufferedReader(file)
    packed = buffered.peek(2)[:2] == b"\x1f\x8b"
    stream = gzip.GzipFile(fileobj=buffered) if packed else buffered
    try:
        while block := stream.read(BLOCK_BYTES):
            block += (line := stream.readline(LINE_BYTES + 1))
            while line and line[-1:] != b"\n":  # the rest of a line that is too long
                line = stream.readline(BLOCK_BYTES)
                block += b"\n" * line.endswith(b"\n")
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


def _cut(number: int, block: bytes, group: LineGroup, cuts: bool) -> None:
    """Add the lines of a block that are not blank, with their numbers, to a group."""
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
    """The error of a line that is longer than LINE_BYTES."""
    return InputError(f"longer than {LINE_BYTES // 1_000_000} MB", hint="one record a line", line=number)
