"""This module opens the store from which a command reads the log. This is the command's own store, or the same store
with a folder of Parquet files in place of its log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from rlrec.app.evaluation.passes.passes import IN_PROCESS, Workers
from rlrec.compute import Engine
from rlrec.errors import InputError
from rlrec.store import Store, Unit
from rlrec.store.database import bulk

PREFIX = "parquet:"  # of a --log that is a folder


@contextmanager
def open_log(store: Store, log: str | None) -> Iterator[tuple[Store, str | None]]:
    """Yield the store from which a log is read, and the filter of the log. log: a filter, `parquet:DIR`, or
    `parquet:DIR,FILTER`, where DIR may be a URL."""
    if log is None or not log.startswith(PREFIX):
        yield store, log
        return
    # needs the definitions of all tables, unlike other logs
    from rlrec.app.imports.parquet_files import Manifest
    from rlrec.store.log.folder import FolderLog

    folder, _, log_filter = log.removeprefix(PREFIX).partition(",")
    url = store.url.render_as_string(hide_password=False)
    with closing(Store(url, now=store.now, notice=store.notice, waits=store.waits)) as log_store:
        with store.read() as unit:
            manifest = Manifest.read(folder)
            if manifest is None:
                raise InputError(
                    f"{folder} holds no log", hint=f"`rlrec export-log {folder} --layout parquet` writes one"
                )
            manifest.check(unit, folder)
        with closing(FolderLog(folder, manifest.files)) as log_store.folder:
            log_store.progress = store.progress
            yield log_store, log_filter or None


@contextmanager
def reading(
    store: Store, log: str | None, workers: Workers = IN_PROCESS
) -> Iterator[tuple[Unit, str | None, Engine | None]]:
    """Yield a snapshot of the store from which a log is read, the filter of the log, and the engine that computes
    (None: this process computes). log: a filter, or `parquet:DIR` as in `open_log`; workers: the processes that
    compute."""
    with (
        open_log(store, log) as (log_store, log_filter),
        log_store.read() as unit,
        bulk.alongside(unit),
        workers.open_engine(log_store, unit.now) as engine,
    ):
        yield unit, log_filter, engine
