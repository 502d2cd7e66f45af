"""The store: transactions on the database, and query modules that work inside one of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import sqlalchemy as sa

from rlrec.errors import InputError, OutcomeUnknown, RlrecError, StoreBusy
from rlrec.store import decisions, engine, schema
from rlrec.store.unit import Progress, Unit, no_progress

__all__ = ["Store", "Unit"]

T = TypeVar("T")
ATTEMPTS = 6
ANALYSED = ("arm", "context", "eligible_set", "session", "users", "visit", "decision", "slot", "event", "import_line")


class _Undone(Exception):
    """The end of a rehearsal."""


class Store:
    """A database, and the clock of one command. `now` (microseconds) replaces the database's clock.
    `notice` takes one line that a person should know and no result says."""

    def __init__(self, db: str, *, now: int | None = None, notice: Callable[[str], None] = print) -> None:
        self.url = engine.location(db)
        self.where = engine.printable(self.url)
        self.notice, self.now = notice, now
        self.progress: Progress = no_progress
        self._engine: sa.Engine | None = None
        self._clock_noticed = False  # that the clock lies before the newest decision
        self._stored = False  # something that a retry of the command would store again
        self._rehearsal: sa.Connection | None = None
        self._snapshot: Unit | None = None

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
        if self._snapshot is not None:
            yield self._snapshot
            return
        try:
            with self._transaction(write=False) as connection:
                yield self._unit(connection)
        except StoreBusy as error:
            raise self._truthful(error) from error.__cause__

    @contextmanager
    def snapshot(self) -> Iterator[Unit]:
        """Inside it, all reads are of one snapshot."""
        with self.read() as unit:
            self._snapshot = unit
            try:
                yield unit
            finally:
                self._snapshot = None

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Inside it, what would be transactions are steps of a single one, which leaves nothing behind: each sees what
        those before it wrote. Other writers wait meanwhile."""
        try:
            with engine.transaction(self.engine, write=True, where=self.where) as self._rehearsal:
                yield
                raise _Undone
        except _Undone:
            pass
        except engine.Retry as error:
            raise StoreBusy(f"the store {self.where} is busy", hint=engine.RETRY_HINT) from error
        finally:
            self._rehearsal = None

    @contextmanager
    def _transaction(self, *, write: bool, sound: bool = False) -> Iterator[sa.Connection]:
        if self._rehearsal is None:
            with engine.transaction(self.engine, write=write, where=self.where, sound=sound) as connection:
                yield connection
        else:
            with self._rehearsal.begin_nested():
                yield self._rehearsal

    def complaints(self) -> list[str]:
        """Complaints of SQLite about its file, readable or not; PostgreSQL has no such check."""
        if self.engine.dialect.name != "sqlite":
            return []
        try:
            with engine.transaction(self.engine, write=False, where=self.where) as connection:
                lines = connection.exec_driver_sql("PRAGMA quick_check(50)").scalars()
                return [" ".join(line.split()) for line in lines if line != "ok"]
        except engine.CorruptFile as error:
            return [error.message]

    def write(self, work: Callable[[Unit], T], *, sound: bool = False, repeatable: bool = False) -> T:
        """The result of `work`, in one transaction; done anew as a whole where the database asks for that.
        sound: every row that `work` writes names rows that it read or wrote itself, and with a row it deletes those
        that name it. SQLite then does not look them up once more; nobody else can take them away before the end.
        repeatable: the same work once more changes nothing, by its keys or by what it is (work without a key lowers
        `Unit.repeatable`): where the connection breaks at the end, a retry is safe."""
        for attempt in range(ATTEMPTS):
            try:
                with self._transaction(write=True, sound=sound) as connection:
                    unit = self._unit(connection, write=True)
                    unit.repeatable = repeatable
                    result = work(unit)
                self._stored |= not unit.repeatable
                return result
            except OutcomeUnknown as error:
                if not unit.repeatable:
                    raise
                hint = "a retry is safe: what is stored already is not stored again"
                raise StoreBusy(error.message, hint=hint) from error
            except StoreBusy as error:
                raise self._truthful(error) from error.__cause__
            except engine.Retry as error:
                reason = error
                time.sleep(random.uniform(0, 0.02) * 2**attempt)
        failed = f"the store {self.where} failed: {str(reason)[:300]}"
        if reason.state == engine.UNIQUE:  # other writers would have been seen by now
            raise engine.NotUnique(failed)
        if reason.state == engine.DANGLING:
            raise RlrecError(failed)
        raise StoreBusy(f"the store {self.where} is busy: {ATTEMPTS} tries met other writers", hint=engine.RETRY_HINT)

    def analyse(self) -> None:
        """Let PostgreSQL count what many new rows changed: without it, the next queries may take the wrong way. Where
        others keep the tables locked, it does so later by itself."""
        if self.engine.dialect.name == "postgresql":
            with suppress(StoreBusy):
                self.write(lambda unit: unit.tell(f"ANALYZE {', '.join(ANALYSED)}"), repeatable=True)

    def _truthful(self, error: StoreBusy) -> StoreBusy:
        """The error without the promise that a retry is safe, where the command has stored something before."""
        if self._stored and error.hint == engine.RETRY_HINT:
            error.hint = "what was stored before stays: go on behind it"
        return error

    def _unit(self, connection: sa.Connection, *, write: bool = False) -> Unit:
        """Time is the clock's, and never before the newest decision that this store drew itself."""
        unit = Unit(connection, now=engine.clock(connection) if self.now is None else self.now)
        unit.progress = self.progress
        schema.check(unit, where=self.where, write=write)
        newest = decisions.newest(unit)
        if newest is None or newest <= unit.now:
            return unit
        if self.now is not None:
            raise InputError(
                f"--now lies before the newest decision of {self.where}", hint="give a later time, or none"
            )
        if newest - unit.now > 1_000_000 and not self._clock_noticed:
            self._clock_noticed = True
            self.notice(f"the clock of {self.where} lies before its newest decision; its time is used")
        unit.now = newest
        return unit
