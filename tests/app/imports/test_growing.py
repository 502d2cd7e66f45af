"""Files that grow, and streams, in portions of complete lines."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, cast

import pytest

from rlrec.app.imports import growing
from rlrec.app.imports.growing import QUIET_POLLS, GrowingFile, LineCounts, Portion, Position, Stream
from rlrec.app.imports.layouts.base import BLOCK_BYTES
from rlrec.errors import InputError, RlrecError


def complete(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def took(log: GrowingFile | Stream) -> bytes | None:
    """What one look at an input brings."""
    portion = log.portion(complete)
    if portion is None:
        return None
    log.go_on(portion, [])
    return portion.data


Opened = Callable[..., GrowingFile]


@pytest.fixture
def file(path: Path) -> Iterator[Opened]:
    """Opens the file, and closes it in the end."""
    with ExitStack() as stack:

        def opened(position: Position | None = None, notice: Callable[[str], None] = print) -> GrowingFile:
            return stack.enter_context(closing(GrowingFile(str(path), position, notice)))

        yield opened


def add(path: Path, text: str) -> None:
    with path.open("a") as opened:
        opened.write(text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "log").write_text("one\ntwo\n")
    return tmp_path / "log"


def test_an_incomplete_line_waits(path: Path, file: Opened) -> None:
    log = file()
    assert took(log) == b"one\ntwo\n"
    add(path, "thr")
    assert took(log) is None
    add(path, "ee\nfo")
    assert took(log) == b"three\n"
    assert (log.position.offset, log.position.lines) == (14, 3)


def test_a_file_is_gone_on_with_where_it_was_left(path: Path, file: Opened) -> None:
    log = file()
    took(log)
    add(path, "three\n")
    notices: list[str] = []
    assert took(file(log.position, notices.append)) == b"three\n"
    assert notices == []


def test_a_file_that_an_editor_wrote_anew_is_the_same(path: Path, file: Opened) -> None:
    log = file()
    took(log)
    other = path.with_name("draft")
    other.write_text("one\ntwo\nthree\n")
    other.rename(path)
    assert took(file(log.position)) == b"three\n"


def test_a_rotated_file_is_read_to_its_end_first(path: Path, file: Opened) -> None:
    """It has an end once it was quiet for some time; a line without a newline is its last one."""
    log = file()
    took(log)
    path.rename(path.with_name("log.1"))
    assert took(log) is None
    path.write_text("new\n")
    add(path.with_name("log.1"), "late\nend")
    looks = [took(log) for _ in range(2 * growing.QUIET_POLLS + 4)]
    assert [data for data in looks if data] == [b"late\n", b"end", b"new\n"]
    assert looks.index(b"end") == growing.QUIET_POLLS + 1
    assert (log.position.offset, log.position.lines) == (4, 1)


def test_a_file_that_was_rotated_meanwhile_is_found_by_its_inode(path: Path, file: Opened) -> None:
    log = file()
    took(log)
    add(path, "three\n")
    path.rename(path.with_name("log.1"))
    path.write_text("something else altogether\n")
    again = file(log.position)
    looks = [took(again) for _ in range(growing.QUIET_POLLS + 3)]
    assert [data for data in looks if data] == [b"three\n", b"something else altogether\n"]


def test_files_that_were_rotated_one_after_the_other_are_all_read(path: Path, file: Opened) -> None:
    """By the time of their last line, the older first; of a packed one the user hears, and others are none of them."""
    notices: list[str] = []
    log = file(None, notices.append)
    took(log)
    path.rename(path.with_name("log.4"))
    for number, name in enumerate(["log-20300101", "log.3.gz", "log.2", "log.1.bak", "logs.1", "log"], start=1):
        path.with_name(name).write_text(f"{name}\n")
        os.utime(path.with_name(name), ns=(0, os.stat(path.with_name("log.4")).st_mtime_ns + number))
    again = file(log.position, notices.append)
    looks = [took(again) for _ in range(4 * growing.QUIET_POLLS)]
    assert [data for data in looks if data] == [b"log-20300101\n", b"log.2\n", b"log\n"]
    assert ["log.3.gz was compressed" in text for text in notices] == [True]


@pytest.mark.parametrize("text", ["", "x\n", "x\ny\nsomething that is longer than before\n"])
def test_a_truncated_file_is_read_from_its_start(path: Path, file: Opened, text: str) -> None:
    """Whether or not it has grown beyond the offset since; a process that starts later finds out, too."""
    notices: list[str] = []
    log = file(None, notices.append)
    took(log)
    position = log.position
    with path.open("r+") as opened:
        opened.truncate(0)
        opened.write(text)
    os.utime(path, ns=(1, 1))
    assert took(log) == (text.encode() or None)
    assert took(file(position, notices.append)) == (text.encode() or None)
    assert [("was truncated" in text, "is not the file" in text) for text in notices] == [(True, False), (False, True)]


@contextmanager
def unprivileged() -> Iterator[None]:
    """Inside it, root has no more rights than anybody else."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_nobody_may_list_is_not_needed() -> None:
    """It lies beside the folders of pytest, which nobody but their owner may enter."""
    notices: list[str] = []

    def taken(position: Position) -> bytes | None:
        with unprivileged(), closing(GrowingFile(str(path), position, notices.append)) as log:
            return took(log)

    with TemporaryDirectory() as folder:
        path = Path(folder, "log")
        path.write_text("one\ntwo\n")
        path.chmod(0o644)
        with closing(GrowingFile(str(path), None, notices.append)) as log:
            assert took(log) == b"one\ntwo\n"
        os.chmod(folder, 0o311)
        with unprivileged(), pytest.raises(PermissionError):
            os.scandir(folder)
        add(path, "three\n")
        assert taken(log.position) == b"three\n"
        assert notices == []
        path.write_text("another\n")
        assert taken(log.position) == b"another\n"
        assert len(notices) == 1
        os.chmod(folder, 0o700)


def test_a_fifo_in_place_of_the_file_is_refused(path: Path, file: Opened) -> None:
    log = file()
    took(log)
    path.unlink()
    os.mkfifo(path)
    assert [took(log) for _ in range(QUIET_POLLS)] == [None] * QUIET_POLLS
    with pytest.raises(RlrecError, match="it is no plain file any more"):
        took(log)


def test_a_line_beyond_every_portion_is_one_portion(path: Path, file: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "PORTION_BYTES", 10)
    monkeypatch.setattr(growing, "BLOCK_BYTES", 7)
    path.write_text("x" * 45)
    log = file()
    assert took(log) is None
    add(path, "xxxxx\nend\n")
    assert took(log) == b"x" * 10
    assert (log.position.offset, log.position.lines) == (51, 1)
    assert took(log) == b"end\n"
    with path.open("rb", buffering=0) as opened, closing(Stream(opened)) as stream:
        taken = b"".join(took(stream) or b"" for _ in range(4))
    assert (taken.startswith(b"x" * 10), taken.lstrip(b"x")) == (True, b"\nend\n")


def test_a_gzip_file_is_refused(path: Path, file: Opened) -> None:
    path.write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(InputError, match="gzip"):
        file()


def test_what_comes_before_a_line(path: Path, file: Opened) -> None:
    portion = cast(Portion, file().portion(complete))
    before = portion.before(2, complete)
    assert before is not None
    assert (before.data, before.position and before.position.lines) == (b"one\n", 1)
    assert portion.before(1, complete) is None


def test_a_stream_is_read_as_it_comes() -> None:
    """To its end, where an incomplete line is complete."""
    receiver, sender = os.pipe()
    with open(receiver, "rb", buffering=0) as stream:
        log = Stream(cast(BinaryIO, stream))
        assert took(log) is None
        os.write(sender, b"one\ntw")
        assert (took(log), took(log), log.is_over) == (b"one\n", None, False)
        os.write(sender, b"o")
        os.close(sender)
        assert (took(log), log.is_over) == (b"two", True)
        log.close()


def test_a_stream_does_not_outgrow_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left in its pipe until the portion before was stored."""
    monkeypatch.setattr(growing, "PORTION_BYTES", 1 << 17)
    receiver, sender = os.pipe()
    writer = threading.Thread(target=_fill, args=(sender,))
    writer.start()
    with open(receiver, "rb", buffering=0) as stream:
        log, sizes = Stream(cast(BinaryIO, stream)), list[int]()
        while not log.is_over:
            data = took(log)
            sizes += [len(data)] if data else []
        log.close()
    writer.join()
    assert (sum(sizes), max(sizes) <= (1 << 17) + BLOCK_BYTES) == (1 << 20, True)


def _fill(sender: int) -> None:
    with open(sender, "wb") as pipe:
        for _ in range(1 << 14):
            pipe.write(b"x" * 63 + b"\n")


def test_lines_are_counted() -> None:
    counts = LineCounts()
    a, b, c = (blake2b(text, digest_size=16).digest() for text in (b"a", b"b", b"c"))
    counts.add([a, b, a])
    counts.add([a])
    assert counts.count([a, b, c]) == {a: 3, b: 1, c: 0}
