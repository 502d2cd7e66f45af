"""The store that a log is read from: that of the command, or a private one with the log of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlrec.store import Store

PREFIX = "parquet:"  # begins a --log that is a folder


@contextmanager
def opened(store: Store, log: str | None) -> Iterator[tuple[Store, str | None]]:
    """The store to read a log from, and the filter of it. log: a filter, `parquet:DIR`, or `parquet:DIR,FILTER`; where
    DIR may be a URL."""
    if log is None or not log.startswith(PREFIX):
        yield store, log
        return
    from rlrec.app.imports import parquet_log  # with definitions of all tables, which other logs do not need

    folder, _, selected = log.removeprefix(PREFIX).partition(",")
    with parquet_log.opened(store, folder) as log_store:
        yield log_store, selected or None
