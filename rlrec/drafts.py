"""This module writes drafts: files that get their final names only when they are complete. The process that writes a
draft holds a lock on it, so a draft without a lock was left by a dead process."""

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
    """Yield a file to write to. When the block ends, the file is put on disk and gets the name `path`. Until then the
    file has a unique name that begins with `stem`. Drafts with this stem are removed if a dead process left them.

    stem: the beginning of the unique name, by default in the folder of `path`; mode: the permissions of the file;
    replaces: whether to replace an existing file `path`. If not, FileExistsError is raised where `path` exists."""
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
    """Give a draft its final name. Raise FileExistsError if a file already has this name. The draft is not renamed but
    linked, since renaming would replace the file."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # the file system has no links
        if os.path.lexists(path):
            raise FileExistsError from None
        os.rename(draft, path)


def create(path: str, mode: int = 0o666) -> BinaryIO:
    """Create a file and return it open. This process keeps a lock on the file until the file is closed."""
    while True:
        file = open(path, "xb", opener=partial(os.open, mode=mode))  # noqa: SIM115 (its caller closes it)
        with suppress(OSError):  # the file system has no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(path):
            return file
        file.close()  # before it was locked, another process removed it as abandoned


def remove_abandoned(pattern: str) -> None:
    """Delete the files that match a pattern and are not locked by any process."""
    for path in glob.glob(pattern):
        with suppress(OSError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
