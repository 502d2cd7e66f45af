"""Drafts: files that get their name once they are complete. Who writes a draft holds its lock, so that one without a
lock was left by a process that is dead."""

from __future__ import annotations

import fcntl
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

DRAFT = ".rlrec-"  # of names, until a file is complete
DIGIT = "[0-9a-f]"


@contextmanager
def complete(path: str) -> Iterator[BinaryIO]:
    """A file that replaces what has its name once it is complete and on the disk. Until then it lies beside it under a
    name that nobody else has; those that processes left there that were killed are removed."""
    folder = os.path.dirname(path)
    remove_abandoned(os.path.join(glob.escape(folder), DRAFT + 16 * DIGIT))
    draft = os.path.join(folder, DRAFT + os.urandom(8).hex())
    try:
        with create(draft) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(draft, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft)


def create(path: str, mode: int = 0o666) -> BinaryIO:
    """A new file, which this process has locked until it is closed."""
    while True:
        file = os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb")
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
