"""Open the store that a command was given."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing

from rlrec.store import Store
from rlrec.store.engine import Waits, location

__all__ = ["Store", "open_store", "ready"]


def open_store(
    db: str, *, now: int | None, notice: Callable[[str], None], waits: tuple[int | None, ...] = ()
) -> AbstractContextManager[Store]:
    """The store at a URL or path. now: microseconds since 1970 UTC in place of the database's clock, or None. waits: as
    in `Waits`."""
    return closing(Store(db, now=now, notice=notice, waits=Waits(*waits)))


def store_files(db: str) -> list[str]:
    """The file of an SQLite store and those that SQLite keeps beside it; none for a database on a server."""
    url = location(db)
    if url.drivername != "sqlite" or not url.database:
        return []
    return [url.database + suffix for suffix in ("", "-wal", "-shm", "-journal")]


def ready(store: Store) -> None:
    """Raises CheckFailed where the store is missing or out of date, before anything else is asked of it."""
    with store.read():
        pass
