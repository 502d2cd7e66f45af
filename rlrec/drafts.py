"""Drafts: files that get their name once they are complete. Who writes a draft holds its lock, so that one without a
lock was left by a process that is dead."""

from __future__ import annotations

import fcntl
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import BinaryIO

DRAFT = ".rlrec-"  # of names, until a file is complete
DIGIT = "[0-9a-f]"


@contextmanager
def complete(path: str, *, stem: str | None = None, mode: int = 0o666, replaces: bool = True) -> Iterator[BinaryIO]:
    """A file that gets its name once it is complete and on the disk, and replaces what has it, or raises
    FileExistsError. Until then it lies beside it under a name that nobody else has, which begins with `stem`; those
    that processes left there that were killed are removed."""
    stem = stem or os.path.join(os.path.dirname(path), DRAFT)
    remove_abandoned(glob.escape(stem) + 16 * DIGIT)
    draft = stem + os.urandom(8).hex()
    try:
        with create(draft, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            (os.replace if replaces else _name_anew)(draft, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft)


def _name_anew(draft: str, path: str) -> None:
    """Give a file a name that no other has; unlike a rename a link replaces nothing."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError from None
        os.rename(draft, path)


def create(path: str, mode: int = 0o666) -> BinaryIO:
    """A new file, which this process has locked until it is closed."""
    while True:
        file = open(path, "xb", opener=partial(os.open, mode=mode))  # noqa: SIM115 (its caller closes it)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(path):
            return file
        file.close()  # before it was locked, another process took it for one that was left


def remove_abandoned(pattern: str) -> None:
    """Delete the drafts that nobody has locked."""
    for path in glob.glob(pattern):
        with suppress(OSError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
