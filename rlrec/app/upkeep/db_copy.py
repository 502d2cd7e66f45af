"""This module copies a store, either to a file while others use the store, or row by row to another database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from tempfile import TemporaryDirectory
from typing import TypedDict

from rlrec.errors import InputError
from rlrec.store import Store
from rlrec.store.database.engine import location, printable_address
from rlrec.store.upkeep import copying

Copy = TypedDict("Copy", {"to": str, "tables": int, "rows": int, "resumed": bool})
Backup = TypedDict("Backup", {"file": str, "bytes": int})


def copy(store: Store, to: str, *, dry_run: bool = False) -> Copy:
    """Copy a store to another database, and return the counts of tables and rows. An interrupted copy is continued if
    the store has not changed since. Raises CheckFailed if the target holds another store.

    to: the path or URL of the target; dry_run: whether to count the rows only."""
    url = location(to)
    address = printable_address(url)
    paths = address, store.address
    if url == store.url or (all(map(os.path.exists, paths)) and os.path.samefile(*paths)):
        raise InputError("--to is the store itself", hint="name another database")
    with store.read() as unit:
        answer = Copy(to=address, tables=len(copying.TABLES), rows=copying.count_rows(unit), resumed=False)
        if dry_run:
            return answer
        file = None if "://" in store.address else store.address
        with closing(copying.CopyTarget(to, copying.fingerprint(unit), like=file)) as target:
            answer["resumed"] = target.begin()
            n_copied = 0
            for table in copying.TABLES:
                n_copied += (n_skipped := target.count(table))
                for batch in copying.read_rows(unit, table, n_skipped=n_skipped):
                    target.add(table, batch)
                    n_copied += len(batch)
                    store.progress("rows", n_copied, n_copied / answer["rows"])
            target.finish()
    return answer


def backup(store: Store, path: str, *, dry_run: bool) -> Backup:
    """Back up a store to a file, and return the file's size. Raises InputError if the store is not a file itself."""
    if "://" in store.address:
        hint = copying.backup_command(store.address, path)
        raise InputError("PostgreSQL makes its backups itself", hint=hint)
    return Backup(file=path, bytes=copying.size(store) if dry_run else copying.backup(store, path))


@contextmanager
def temporary_copy(store: Store) -> Iterator[Store]:
    """Yield a copy of the store: an SQLite file in a private folder. The copy is deleted at the end of the context."""
    with TemporaryDirectory(prefix="rlrec-dry-run-") as folder:
        path = os.path.join(folder, "copy.db")
        if "://" in store.address:
            copy(store, path)
        else:
            copying.backup(store, path)
        with closing(Store(path, now=store.now, notice=store.notice, waits=store.waits)) as copied_store:
            copied_store.allow_future = True
            yield copied_store


def counts(store: Store) -> dict[str, int]:
    """Return the number of rows of each table of the log, by table."""
    from rlrec.store.upkeep import audit

    with store.read() as unit:
        return audit.counts(unit)
