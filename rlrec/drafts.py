"""Drafts: files that get their name once they are complete. Who writes a draft, or drafts in a folder, holds a lock, so
that what lies there without one was left by a process that is dead."""

from __future__ import annotations

import fcntl
import glob
import os
from contextlib import suppress
from typing import BinaryIO, cast


def create(path: str, mode: int = 0o666) -> BinaryIO:
    """A new file, which this process has locked until it is closed."""
    while True:
        file = cast(BinaryIO, os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb"))
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
