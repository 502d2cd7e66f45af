"""This module defines the store, which runs transactions on the database. The query modules of this package work inside
such a transaction."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar

import sqlalchemy as sa

from rlrec.errors import InputError, OutcomeUnknown, RlrecError, StoreBusy
from rlrec.store.database import database_errors, engine, schema
from rlrec.store.database.database_errors import RETRY_HINT, CorruptFile, NotUnique, Retry, Unreachable
from rlrec.store.database.engine import USUAL_WAITS, Waits
from rlrec.store.database.unit import Progress, Unit, no_progress
from rlrec.store.log import decisions
from rlrec.times import DAY_US, format_time

__all__ = ["Store", "Unit"]

T = TypeVar("T")
ATTEMPTS = 6
PAUSES_S = 0.05, 1.0  # between attempts to reach a server: the first pause and the longest
NOTICE_S = 5  # without the server, after which a notice is printed
ANALYSED = ("arm", "context", "eligible_set", "session", "users", "visit", "decision", "slot", "event", "import_line")


class _RehearsalEnd(Exception):
    """This exception ends a rehearsal. All changes of the rehearsal are then rolled back."""


class _Reconnection:
    """After a connection to the server broke, a _Reconnection decides whether and when the store tries again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._began: float | None = None
        self._pause = PAUSES_S[0]
        self._has_notified = False

    def wait(self, error: StoreBusy) -> bool:
        """Wait before the next attempt, and return True. Return False without waiting if another attempt is pointless,
        or if the time for attempts is over. error: the error of the last attempt."""
        store, now = self._store, time.monotonic()
        if not isinstance(error, Unreachable) or error.has_expired or store._rehearsal is not None:
            return False
        began_at = self._began = now if self._began is None else self._began
        limit_us = store.waits.reconnect
        limit_s = (engine.RECONNECT_S if store.has_answered else 0) if limit_us is None else limit_us / 1e6
        if now + self._pause - began_at > limit_s:
            error.has_expired = True
            return False
        if now - began_at > NOTICE_S and not self._has_notified:
            self._has_notified = True
            store.notice(f"{error.message or 'the server has not answered yet'}; it is tried again for {limit_s:g} s")
        store.close()  # its other connections are broken, too
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, PAUSES_S[1])
        return True


class Store:
    """A Store runs the transactions of one command on a database.

    db: the path or URL of the database; now: a time in microseconds that replaces the database's clock; notice: a
    function that is called with sentences for the user that no result contains. If the attribute `allow_future` is
    set, `now` may be far ahead of the database's clock."""

    def __init__(
        self, db: str, *, now: int | None = None, notice: Callable[[str], None] = print, waits: Waits = USUAL_WAITS
    ) -> None:
        self.url, self.waits = engine.location(db), waits
        self.address = engine.printable_address(self.url)
        self.notice, self.now, self.allow_future = notice, now, False
        self.progress: Progress = no_progress
        self.folder: Any = None  # a folder with the log that all reading units use
        self._engine: sa.Engine | None = None
        self._process = os.getpid()  # the process whose connections the engine has
        self._inherited_engines: list[sa.Engine] = []
        self.has_answered = False  # whether the server has answered so far
        self._exclusions_noticed = False
        self._clock_noticed = False  # that the clock is behind the newest decision
        self.has_stored = False  # whether a writing transaction was committed
        self._is_unrepeatable = False  # whether something was stored that a retry of the command would store again
        self._rehearsal: sa.Connection | None = None
        self._snapshot: Unit | None = None

    def close(self) -> None:
        if self._engine is not None and self._process == os.getpid():
            self._engine.dispose()

    @property
    def engine(self) -> sa.Engine:
        if self._engine is not None and self._process != os.getpid():  # after a fork, the parent still uses these
            self._inherited_engines.append(self._engine)  # closing them would disturb the parent
            self._engine, self._process = None, os.getpid()
        if self._engine is None:
            self._engine = engine.connect(self.url, waits=self.waits)
        return self._engine

    @contextmanager
    def read(self) -> Iterator[Unit]:
        """Yield a unit that reads from one snapshot of the database. The unit never takes the write lock."""
        if self._snapshot is not None:
            yield self._snapshot
            return
        reconnection = _Reconnection(self)
        while True:
            has_begun = False
            try:
                with self._transaction(write=False) as connection, closing(self._unit(connection)) as unit:
                    unit.folder, has_begun = self.folder, True
                    yield unit
                return
            except Retry as error:  # a replica applied changes that the snapshot does not allow
                hint = "a retry is safe; hot_standby_feedback or max_standby_streaming_delay of a replica make it rarer"
                raise StoreBusy(f"{self.address} ended a long read: {str(error)[:200]}", hint=hint) from error
            except StoreBusy as error:
                if has_begun or not reconnection.wait(error):
                    raise self._without_false_promise(error) from error.__cause__

    @contextmanager
    def snapshot(self) -> Iterator[Unit]:
        """Yield a unit that reads from one snapshot of the database. Until the context ends, all reads of this store
        use this snapshot."""
        with self.read() as unit:
            self._snapshot = unit
            try:
                yield unit
            finally:
                self._snapshot = None

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Run all transactions in this context as steps of one transaction, which is rolled back at the end. A step
        sees the changes of the steps before it. Until the end, other processes cannot write."""
        try:
            with engine.transaction(self.engine, write=True, address=self.address) as self._rehearsal:
                yield
                raise _RehearsalEnd
        except _RehearsalEnd:
            pass
        except Retry as error:
            raise StoreBusy(f"the store {self.address} is busy", hint=RETRY_HINT) from error
        finally:
            self._rehearsal = None

    @contextmanager
    def _transaction(self, **options: bool) -> Iterator[sa.Connection]:
        if self._rehearsal is None:
            with engine.transaction(self.engine, address=self.address, **options) as connection:
                yield connection
        else:
            with self._rehearsal.begin_nested():
                yield self._rehearsal

    def integrity_errors(self) -> list[str]:
        """Return the errors that SQLite finds in the file of the store, even if the file is unreadable. The list is
        empty for PostgreSQL, which has no such check."""
        if self.engine.dialect.name != "sqlite":
            return []
        try:
            with engine.transaction(self.engine, write=False, address=self.address) as connection:
                lines = connection.exec_driver_sql("PRAGMA quick_check(50)").scalars()
                return [" ".join(line.split()) for line in lines if line != "ok"]
        except CorruptFile as error:
            return [error.message]

    def write(
        self, work: Callable[[Unit], T], *, references_hold: bool = False, repeatable: bool = False, lazy: bool = False
    ) -> T:
        """Run `work` in one transaction and return its result. If the database asks for it, the whole transaction is
        repeated.

        references_hold: True if `work` breaks no foreign key, so that SQLite need not check any. This is the case if
        every written row refers only to rows that `work` itself read or wrote, and if `work` deletes, with a row,
        all rows that refer to it. No other process can delete these rows before the end. repeatable: True if a
        second run of the same work would change nothing, so that a retry is safe if the connection breaks at the end
        (`work` sets `Unit.repeatable` to False if it has no key that prevents a second storage). lazy: True if
        SQLite takes the write lock only at the first change; StoreBusy is raised if another process holds the lock
        then, or has changed anything meanwhile."""
        attempt, reconnection = 0, _Reconnection(self)
        while attempt < ATTEMPTS:
            try:
                options = {"references_hold": references_hold, "lazy": lazy}
                with (
                    self._transaction(write=True, **options) as connection,
                    closing(self._unit(connection, write=True)) as unit,
                ):
                    unit.repeatable, unit.gathers = repeatable, True
                    result = work(unit)
                    unit.send()
                return self._note_commit(result, unit)
            except OutcomeUnknown as error:
                was_committed = self._was_committed(unit, reconnection)
                if was_committed:
                    return self._note_commit(result, unit)
                if was_committed is None and not unit.repeatable:
                    raise
                hint = "a retry is safe: what is stored already is not stored again"
                busy_error = Unreachable(error.message, hint=RETRY_HINT if was_committed is False else hint)
                if not reconnection.wait(busy_error):
                    raise self._without_false_promise(busy_error) from error
            except StoreBusy as error:
                if not reconnection.wait(error):
                    raise self._without_false_promise(error) from error.__cause__
            except Retry as error:
                retry_error = error
                from random import uniform

                time.sleep(uniform(0, 0.02) * 2**attempt)
                attempt += 1
        message = f"the store {self.address} failed: {str(retry_error)[:300]}"
        if retry_error.state == database_errors.UNIQUE:  # a conflict with other writers would have been resolved by now
            raise NotUnique(message)
        if retry_error.state == database_errors.DANGLING:
            raise RlrecError(message)
        raise StoreBusy(f"the store {self.address} is busy: {ATTEMPTS} tries met other writers", hint=RETRY_HINT)

    def flush(self) -> None:
        """Wait until everything that any process has committed so far is on disk. Otherwise, changes that a reader has
        seen may still be lost."""
        if self.engine.dialect.name == "postgresql" and self._rehearsal is None:
            with engine.transaction(self.engine, write=True, address=self.address) as connection:
                server = connection.info.get("server")
                connection.info["flush"] = server is not None and bool(server[2])

    def retry_until_reached(self, work: Callable[[], T]) -> T:
        """Run `work` and return its result. `work` is repeated if a connection breaks, so only its last transaction may
        store something that a second attempt would store again."""
        reconnection = _Reconnection(self)
        while True:
            try:
                return work()
            except Unreachable as error:
                if not reconnection.wait(error):
                    raise

    def _note_commit(self, result: T, unit: Unit) -> T:
        self.has_stored |= self._rehearsal is None
        self._is_unrepeatable |= not unit.repeatable
        return result

    def _was_committed(self, unit: Unit, reconnection: _Reconnection) -> bool | None:
        """Tell whether the server has committed a transaction whose connection broke after COMMIT was sent. Return None
        if this is unknown because the server does not answer again, or because a replica has replaced it."""
        while unit.transaction is not None:
            server, transaction_id = unit.transaction
            try:
                with engine.transaction(self.engine, write=False, address=self.address) as connection:
                    status = None
                    if connection.info.get("server") == server:
                        answer = connection.exec_driver_sql("SELECT pg_xact_status(%s::xid8)", (transaction_id,))
                        status = answer.scalar_one()
                if status == "committed":
                    self.flush()
            except StoreBusy as error:
                if not reconnection.wait(error):
                    return None
            except (RlrecError, Retry):
                return None
            else:
                if status != "in progress":
                    return None if status is None else bool(status == "committed")
                if not reconnection.wait(Unreachable("")):
                    return None
        return None

    def analyse(self) -> None:
        """Update PostgreSQL's statistics about tables after many rows were added; otherwise the next queries may be
        planned badly. If other processes keep the tables locked, nothing is done, and the server updates the statistics
        later."""
        if self.engine.dialect.name == "postgresql":
            with suppress(StoreBusy):
                self.write(lambda unit: unit.tell(f"ANALYZE {', '.join(ANALYSED)}"), repeatable=True)

    def _without_false_promise(self, error: StoreBusy) -> StoreBusy:
        """Return the error, with another hint if the hint says that a retry is safe but the command has stored
        something."""
        if self._is_unrepeatable and error.hint in (RETRY_HINT, database_errors.AWAY_HINT):
            error.hint = "what was stored before stays: go on behind it"
        return error

    def _unit(self, connection: sa.Connection, *, write: bool = False) -> Unit:
        """Create the unit of a transaction. The time of the unit is the time of the clock. If the newest decision drawn
        by this store has a later time, the unit gets this later time."""
        unit = Unit(connection, now=self.now or 0, on_clock=self.now is None)
        unit.progress, unit.note_exclusions = self.progress, self._note_exclusions
        columns, source = decisions.STATE, decisions.STATE_SOURCE
        if unit.postgres:
            columns, source = f", ({decisions.NEWEST})" + (f", ({engine.NOW})" if unit.on_clock else ""), ""
        state_row = schema.check(unit, address=self.address, write=write, state=columns, source=source)
        self.has_answered = True
        newest_at = state_row[0] if state_row else decisions.newest_time(unit)
        if unit.on_clock:
            unit.now = (state_row[1] if unit.postgres else None) or engine.clock(connection)
        if state_row and not unit.postgres:
            next_ids, settings_row = state_row[1 : decisions.N_STATE], state_row[decisions.N_STATE :]
            unit.next_ids = dict(zip(decisions.STATE_IDS, next_ids, strict=True))
            unit.settings = settings_row if settings_row[0] else None
        if write and self.now is not None:
            self.refuse_far_ahead(unit, newest_at)
        if newest_at is None or newest_at <= unit.now:
            return unit
        if self.now is not None:
            raise InputError(
                f"--now lies before the newest decision of {self.address}, {format_time(newest_at)}",
                hint="give a later time, or none",
            )
        if newest_at - unit.now > 1_000_000 and not self._clock_noticed:
            self._clock_noticed = True
            hint = "`rlrec doctor --repair-clock` repairs a log that a wrong clock wrote"
            self.notice(f"the newest decision of {self.address} lies ahead of the clock, and its time is used; {hint}")
        unit.now = newest_at
        return unit

    def _note_exclusions(self, sentence: Callable[[], str | None]) -> None:
        """Print a notice about the decisions that are hidden by stored exclusions, at most once per command. sentence:
        a function that returns the text of the notice, or None for no notice."""
        if not self._exclusions_noticed and (text := sentence()) is not None:
            self.notice(text)
        self._exclusions_noticed = True

    def refuse_far_ahead(self, unit: Unit, newest_at: int | None) -> None:
        """Raise InputError if `--now` would give rows a time far ahead of the database's clock, in a log that follows
        this clock.

        newest_at: the time of the newest decision that was not imported. A log follows the clock if its newest
        decision is not ahead of the clock; if all decisions were imported, the newest imported decision counts. No
        error is raised for a log that is empty or already ahead of the clock (as in simulations and replays), nor
        for an import that has stored its first rows."""
        if self.now is None or self.allow_future or self._rehearsal is not None:
            return
        clock = unit.clock()
        if clock >= self.now - DAY_US:
            return
        if newest_at is None and not self.has_stored:
            newest_at = decisions.newest_time(unit, is_imported=True)
        if newest_at is not None and newest_at <= clock:
            raise InputError(
                f"--now {format_time(self.now)} lies far ahead of the database's clock, {format_time(clock)}: "
                "what is stored under it would lie in the future",
                hint="check --now and RLREC_NOW; --allow-future stores it anyway",
            )
