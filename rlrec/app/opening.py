"""This module opens the store of a command, checks that it is ready, and records what a reading command answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from typing import Any

from rlrec.errors import InputError, RlrecError, StoreBusy
from rlrec.store import Store, Unit
from rlrec.store.database.engine import Waits, location

__all__ = ["Store", "note", "open_store", "ready"]
NOTE_WAIT_US = 500_000


def open_store(
    db: str, *, now: int | None, notice: Callable[[str], None], waits: tuple[int | None, ...] = (),
    primary: str | None = None, allow_future: bool = False,
) -> closing[Store]:  # fmt: skip
    """Open the store at a URL or path. db: the URL or path; now: the time in microseconds since 1970 UTC, None for the
    clock of the database; notice: a function that prints a message; waits: the fields of `Waits`, which limit how long
    the store waits for locks, statements and a server; allow_future: whether `now` may be far ahead of this clock.

    primary: a store of which this one must be a replica, or None. Raises InputError if it is not."""
    store = Store(db, now=now, notice=notice, waits=Waits(*waits))
    store.allow_future = allow_future
    if primary is not None:
        try:
            _refuse_unrelated(store, primary)
        except BaseException:
            store.close()
            raise
    return closing(store)


def _refuse_unrelated(replica: Store, db: str) -> None:
    """Raise InputError if both stores can be read, and they do not have the same origin: neither is a replica or a copy
    of the other. db: the address of the second store."""
    from rlrec.store.log import settings

    with closing(Store(db, notice=lambda _: None)) as primary_store:
        salt = None
        with suppress(RlrecError), primary_store.read() as unit:  # a replica can be read while its primary is down
            salt = settings.get(unit).salt
        with replica.read() as unit:
            if salt not in (None, settings.get(unit).salt):
                message = f"--read-db is {replica.address}, which is no replica of {primary_store.address}"
                raise InputError(message, hint="name a replica of the store of --db")


def note(
    store: Store, command: str, options: Mapping[str, Any], result: Mapping[str, Any], *, noun: str = "answer"
) -> None:
    """Record the result of a reading command, so that `status` can show it. This uses a separate connection. A store
    that cannot be written to, or whose clock is set far ahead, is left unchanged; if other processes keep the store
    locked, a notice is printed. noun: a word for the result."""
    from rlrec.app.audit.integrity.clock import refuse_far_ahead
    from rlrec.store.log import decisions, settings

    def record(unit: Unit) -> None:
        unit.now = min(unit.now, max(unit.clock(), decisions.newest_time(unit) or 0))  # a look ahead happens now
        settings.add_run(unit, command, options, result)

    waits = store.waits._replace(lock=min(NOTE_WAIT_US, store.waits.lock or NOTE_WAIT_US), reconnect=0)
    db = store.url.render_as_string(hide_password=False) if "://" in store.address else store.address
    with suppress(RlrecError), closing(Store(db, now=store.now, notice=lambda _: None, waits=waits)) as note_store:
        try:
            refuse_far_ahead(note_store)
            note_store.write(record, repeatable=True)
        except StoreBusy:
            store.notice(f"others keep the store locked: `rlrec status` will not know of this {noun}")


def store_files(db: str) -> list[str]:
    """Return the paths of an SQLite store and of the files that SQLite keeps with it, or an empty list for a database
    on a server."""
    url = location(db)
    if url.drivername != "sqlite" or not url.database:
        return []
    return [url.database + suffix for suffix in ("", "-wal", "-shm", "-journal")]


def ready(store: Store, *, writes: bool = False) -> None:
    """Raise CheckFailed if the store is missing or out of date. writes: whether to raise RlrecError, too, if decisions
    cannot be stored, since the role may not write or the file was replaced."""
    with store.read():
        pass
    if writes:  # an empty transaction of SQLite compares its file, and takes no lock
        statement = "INSERT INTO decision SELECT * FROM decision WHERE id IS NULL"
        store.write(lambda unit: unit.tell(statement) if unit.postgres else None, lazy=True)
