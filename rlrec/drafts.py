"""This module writes drafts, which are files that get their names once they are complete. The writer of a draft holds a
lock on it; a draft without a lock was left by a dead process."""

from __future__ import annotations

import fcntl
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import BinaryIO

DRAFT = ".rlrec-"  # prefix of the name of an incomplete file
DIGIT = "[0-9a-f]"


@contextmanager
def complete(path: str, *, stem: str | None = None, mode: int = 0o666, replaces: bool = True) -> Iterator[BinaryIO]:
    """Yield a file that gets its name once it is complete and on disk. An existing file of that name is replaced, or
    raises FileExistsError. Until then the file has a unique name in the same folder, which begins with `stem`; drafts
    that killed processes left there are removed."""
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
    """Give a file a new name without replacing an existing file. Unlike a rename, a link replaces none."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # the file system has no links
        if os.path.lexists(path):
            raise FileExistsError from None
        os.rename(draft, path)


def create(path: str, mode: int = 0o666) -> BinaryIO:
    """Create a file, which this process keeps locked until it is closed."""
    while True:
        file = open(path, "xb", opener=partial(os.open, mode=mode))  # noqa: SIM115 (its caller closes it)
        with suppress(OSError):  # the file system has no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(path):
            return file
        file.close()  # before it was locked, another process removed it as abandoned


def remove_abandoned(pattern: str) -> None:
    """Delete the drafts that no process has locked."""
    for path in glob.glob(pattern):
        with suppress(OSError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
