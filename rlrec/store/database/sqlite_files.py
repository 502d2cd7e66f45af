"""The file of a SQLite store, as its folder has it."""

from __future__ import annotations

import os
from contextlib import suppress


def is_frozen(path: str) -> bool:
    """Whether this is a file that SQLite can only read, without its locks: it lies in a folder in which nothing can be
    made, and no log lies beside it, as of somebody who writes."""
    folder = os.path.dirname(os.path.abspath(path))
    return os.path.isfile(path) and not os.access(folder, os.W_OK) and not state(path)[1]


def state(path: str) -> tuple[int, int, int]:
    """Size and time of a file, and the bytes of its log: another one after whatever anybody writes."""
    with suppress(OSError):
        status, log = os.stat(path), path + "-wal"
        return status.st_mtime_ns, os.path.getsize(log) if os.path.exists(log) else 0, status.st_size
    return 0, 0, 0


def identity(path: str) -> tuple[int, int] | None:
    """Device and inode of a file; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
