"""The store: transactions on the database, and query modules that work inside one of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import sqlalchemy as sa

from rlrec.errors import InputError, StoreBusy
from rlrec.store import decisions, engine, schema
from rlrec.store.unit import Unit

__all__ = ["Store", "Unit"]

T = TypeVar("T")
TRIES = 6


class Store:
    """A database, and the clock of one command. `now` (microseconds) replaces the database's clock.

    `notice` is told, in one line, what a person should know and no result says.
    """

    def __init__(self, db: str, *, now: int | None = None, notice: Callable[[str], None] = print) -> None:
        self.url = engine.location(db)
        self.where = engine.shown(self.url)
        self.notice = notice
        self.now = now
        self._engine: sa.Engine | None = None
        self._warned = False  # that the clock lies before the newest decision

    def close(self) -> None:
        if self._engine is not None:
            self._engine.dispose()

    @property
    def engine(self) -> sa.Engine:
        if self._engine is None:
            self._engine = engine.connect(self.url)
        return self._engine

    @contextmanager
    def read(self) -> Iterator[Unit]:
        """One snapshot. Never takes the write lock."""
        with engine.transaction(self.engine, write=False, where=self.where) as connection:
            yield self._unit(connection)

    def write(self, work: Callable[[Unit], T], *, sound: bool = False) -> T:
        """What `work` returns, in one transaction; asked again as a whole where the database wants that.

        sound: every row that `work` writes names rows that it read or wrote itself, and it deletes none. SQLite then
        does not look them up once more; nobody else can take them away before the end."""
        for attempt in range(TRIES):
            try:
                with engine.transaction(self.engine, write=True, where=self.where, sound=sound) as connection:
                    return work(self._unit(connection))
            except engine.Retry:
                time.sleep(random.uniform(0, 0.02) * 2**attempt)
        raise StoreBusy(f"the store {self.where} is busy: {TRIES} tries met other writers", hint="a retry is safe")

    def _unit(self, connection: sa.Connection) -> Unit:
        """Time is the clock's, and never before the newest decision that this store made itself."""
        unit = Unit(connection, now=engine.clock(connection) if self.now is None else self.now)
        schema.check(unit, where=self.where)
        newest = decisions.newest(unit)
        if newest is None or newest <= unit.now:
            return unit
        if self.now is not None:
            raise InputError(
                f"--now lies before the newest decision of {self.where}", hint="give a later time, or none"
            )
        if newest - unit.now > 1_000_000 and not self._warned:
            self._warned = True
            self.notice(f"the clock of {self.where} lies before its newest decision; its time is used")
        unit.now = newest
        return unit
