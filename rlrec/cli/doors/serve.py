"""rlrec serve."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import ipaddress
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from rlrec.cli.commands.requests import recommend
from rlrec.cli.commands.requests.pipe import line_type
from rlrec.cli.doors.http import GROUP, GROUP_BYTES, Answered, Front, Limits, NumberedLines
from rlrec.cli.output import plain
from rlrec.cli.output.output import Show
from rlrec.cli.program import app, signals
from rlrec.cli.program.shared import (
    NOTHING_STORED,
    GroupedCommand,
    Store,
    drawing,
    dry_run_option,
    notice,
    safe,
    settings,
    stored,
)
from rlrec.errors import Conflict, InputError, RlrecError, StoreBusy, quantity

if TYPE_CHECKING:
    from rlrec.app.requests.pipe import Pipe

PATIENCE_S = 20  # with a store that is busy, before clients are told to come again
BACKLOG = 1_024
LOCK_TIMEOUT_S = 30  # as for a store
CHECK_S = 0.05  # for the store to answer /healthz, which else says how the last group ended
MAX_GROUP_S = 5.0  # on one group, after which /healthz says that the store is busy


@click.command(cls=GroupedCommand)
@click.option(
    "--listen", "address", required=True, metavar="unix:PATH|HOST:PORT",
    help="A socket in the file system, or a port; port 0 takes a free one.",
)  # fmt: skip
@click.option("--allow-remote", is_flag=True, help="Listen on an address that other machines can reach.")
@stored("rlrec serve --listen unix:rlrec.sock", "rlrec serve --listen 127.0.0.1:8080")
@drawing
@dry_run_option
def serve(store: Store, show: Show, address: str, allow_remote: bool, dry_run: bool) -> None:
    """POST lines to /pipe; the answer has a line for each. All clients' lines share groups, each of which is one
    transaction. GET /healthz says whether the store answers. SIGTERM ends the server once what has arrived is answered.
    There is no password: whoever reaches the address can write to the store.

    With --dry-run, clients are served from a copy of the store, which is deleted at the end: their feedback finds their
    decisions, and nobody waits. The copy is an SQLite file in TMPDIR, also that of a store on PostgreSQL."""
    from rlrec.app.opening import ready
    from rlrec.app.requests.pipe import Pipe

    ready(store)
    with (
        listening(address, allow_remote=allow_remote) as (listener, name),
        rehearsed(store) if dry_run else nullcontext(store) as served,
    ):
        served.close()  # from here on the writer's thread has it
        pipe = Pipe(served, patience_s=PATIENCE_S)
        show({"listen": name})
        number = asyncio.run(run(pipe, listener))
    if number != signal.SIGTERM:
        raise signals.Interrupted(number)


@contextmanager
def rehearsed(store: Store) -> Iterator[Store]:
    """A copy of the store, which is deleted at the end. Says on stderr that it is one, and what it took in."""
    with app.db_copy.temporary(store) as copy:
        counts_before = app.db_copy.counts(copy)
        notice("dry run: clients are served from a copy of the store; nothing is stored")
        yield copy
        counts_after = app.db_copy.counts(copy)
    added = (quantity(counts_after[table] - counts_before[table], table) for table in ("decision", "event"))
    notice(f"{NOTHING_STORED}; it would have been {' and '.join(added)}")


async def run(pipe: Pipe, listener: socket.socket, *, limits: Limits | None = None) -> int:
    """Serve until a signal asks for the end, and what has arrived is answered: the number of the signal."""
    loop, end, numbers = asyncio.get_running_loop(), asyncio.Event(), list[int]()

    def stop(number: int) -> None:
        if numbers and number == signal.SIGINT:  # a person who does not want to wait
            os._exit(128 + number)
        numbers.append(number)  # supervisors may repeat themselves
        end.set()

    loop.set_exception_handler(lambda _, context: notice(str(context.get("exception") or context["message"])))

    def notice_soon(text: str) -> None:
        loop.call_soon_threadsafe(notice, text)

    pipe.store.notice = notice_soon  # the writer's thread knows of no command
    for number in signals.END_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    writer = SharedWriter(pipe, loop, db=settings().db)
    writer.start()
    try:
        await Front(writer, limits or Limits()).serve(listener, end)
    finally:
        writer.end()
        await asyncio.to_thread(writer.join)
        pipe.store.notice = notice
    return numbers[0]


# -- the writer --


class Submitted(NamedTuple):
    lines: NumberedLines
    answered: asyncio.Future[Answered]

    @property
    def n_bytes(self) -> int:
        return sum(len(line) for _, line in self.lines)


class SharedWriter(threading.Thread):
    """The one writer of a server: all lines that wait, whoever sent them, are a group."""

    def __init__(self, pipe: Pipe, loop: asyncio.AbstractEventLoop, *, db: str) -> None:
        super().__init__(name="rlrec writer", daemon=True)
        self.pipe, self.loop, self.db = pipe, loop, db
        self._queue = SimpleQueue[Submitted | None]()
        self._next: Submitted | None = None  # had no room in the last group
        self._counts = {"lines": 0, "refused": 0, "groups": 0}
        self._check: asyncio.Future[Answered] | None = None  # of the store
        self._began, self._last = time.monotonic(), Answered(b"")  # the group at hand, and how the last one ended

    def submit(self, lines: NumberedLines, *, previous: Answered | None = None) -> asyncio.Future[Answered]:
        """The answers to lines, as a future. previous: the answers to the lines before them in the same body; where
        these failed, the next ones fail with them."""
        submitted = Submitted(lines, self.loop.create_future())
        if previous is not None and previous.error is not None:
            submitted.answered.set_result(_failed(lines, previous.error))
        else:
            self._queue.put(submitted)
        return submitted.answered

    def counts(self) -> dict[str, int]:
        """The counts that /healthz shows."""
        return {**self._counts, "waiting": self._queue.qsize()}

    async def health(self) -> Answered:
        """Whether the store answers; while it works on groups, whether it answered the last one, and not for long."""
        if self._check is None or self._check.done():
            self._check = self.submit([])
        done, _ = await asyncio.wait([check := self._check], timeout=CHECK_S)
        if done:
            return check.result()
        if (since_s := time.monotonic() - self._began) > MAX_GROUP_S:
            return Answered(b"", StoreBusy(f"the store has worked on one group for {since_s:.0f} s"))
        return self._last

    def end(self) -> None:
        """End once everything that was submitted is answered."""
        self._queue.put(None)

    def run(self) -> None:
        with closing(self.pipe.store):
            while group := self._take():
                self._began = time.monotonic()
                answers = self._answer(group)
                self._last = answers[-1]._replace(text=b"")
                self.loop.call_soon_threadsafe(_deliver, group, answers)

    def _take(self) -> list[Submitted]:
        """The next group: what waits, up to GROUP lines; empty at the end."""
        submitted, self._next = self._next or self._queue.get(), None
        group, n_lines = list[Submitted](), 0
        while submitted is not None:
            n_lines += max(len(submitted.lines), submitted.n_bytes * GROUP // GROUP_BYTES)
            if n_lines > GROUP and group:
                self._next = submitted
                return group
            group.append(submitted)
            try:
                submitted = self._queue.get_nowait()
            except Empty:
                return group
        if group:
            self.end()  # behind this group
        return group

    def _answer(self, group: Sequence[Submitted]) -> list[Answered]:
        """The answers to each of a group. Where an error stops it that is no line's, each gets its own transaction."""
        try:
            answers = iter(self._store([line for submitted in group for line in submitted.lines]))
            return [Answered(plain.lines([*islice(answers, len(submitted.lines))])) for submitted in group]
        except Exception as error:
            if len(group) > 1 and isinstance(error, RlrecError) and not isinstance(error, StoreBusy):
                return [self._answer([submitted])[0] for submitted in group]
            failure = self._failure(error)
            self.pipe.store.notice(failure.message)
            return [_failed(submitted.lines, failure) for submitted in group]

    def _store(self, lines: NumberedLines) -> list[Any]:
        if not lines:
            from rlrec.app.opening import ready

            ready(self.pipe.store)
            return []
        answers, n_refused = recommend.answer_group(self.pipe, lines, line_type())
        for name, count in (("lines", len(lines)), ("refused", n_refused), ("groups", 1)):
            self._counts[name] += count
        return answers

    def _failure(self, error: Exception) -> RlrecError:
        """The error that clients see: without passwords."""
        if isinstance(error, StoreBusy):
            hint = "send it again: lines with a request_id or a key are not stored twice"
            return StoreBusy(safe(error.message, self.db), hint=hint)
        if isinstance(error, RlrecError):
            return RlrecError(safe(error.message, self.db), hint=error.hint)
        return RlrecError(safe(f"unexpected {type(error).__name__}: {error}", self.db))


def _failed(lines: NumberedLines, error: RlrecError) -> Answered:
    return Answered(plain.lines([recommend.refusal(error, number) for number, _ in lines]), error)


def _deliver(group: Sequence[Submitted], answers: Sequence[Answered]) -> None:
    for submitted, answered in zip(group, answers, strict=True):
        if not submitted.answered.done():
            submitted.answered.set_result(answered)


# -- where to listen --


@contextmanager
def listening(address: str, *, allow_remote: bool) -> Iterator[tuple[socket.socket, str]]:
    """A socket that listens, and its address."""
    if address.startswith("unix:"):
        with _listening_on_file(address.removeprefix("unix:")) as listener:
            yield listener, address
        return
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and int(port) < 2**16):
        raise InputError(f"{address!r} is no address", hint="give unix:PATH or HOST:PORT, as 127.0.0.1:8080")
    try:
        options = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, _, _, _, target = min(options, key=lambda info: info[0] != socket.AF_INET)
        if not (allow_remote or ipaddress.ip_address(str(target[0]).partition("%")[0]).is_loopback):
            hint = "listen on 127.0.0.1, or say --allow-remote: there is no password"
            raise InputError(f"other machines can reach {host}", hint=hint)
        listener = socket.create_server(target[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise _unusable(address, error) from error
    with listener:
        yield listener, f"{host}:{listener.getsockname()[1]}"


@contextmanager
def _listening_on_file(path: str) -> Iterator[socket.socket]:
    """A socket in the file system, which goes with the server. One that a dead server has left is replaced."""
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            with _locked(os.path.dirname(path) or "."):
                _remove_dead(path)
                listener.bind(path)
                identity = _identity(path)
                listener.listen(BACKLOG)
        except OSError as error:
            raise _unusable(f"unix:{path}", error) from error
        try:
            yield listener
        finally:
            with suppress(OSError):
                if _identity(path) == identity:
                    os.unlink(path)


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """A lock on a folder: of two servers that start at once, the second one finds the first one's socket."""
    number = os.open(folder, os.O_RDONLY)
    try:
        if not _try_lock(number):
            message, timeout = f"another process holds the lock of the folder {folder}", settings().lock_timeout
            timeout_s = LOCK_TIMEOUT_S if timeout is None else timeout / 1e6
            notice(f"{message}: waiting up to {timeout_s:g} s")
            deadline = time.monotonic() + timeout_s
            while not _try_lock(number):
                if time.monotonic() > deadline:
                    raise StoreBusy(message, hint=f"`fuser {folder}` names it: end it, or choose another folder")
                time.sleep(0.05)
        yield
    finally:
        os.close(number)


def _try_lock(number: int) -> bool:
    """Whether a file is locked now; False where others hold the lock."""
    with suppress(BlockingIOError):
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _remove_dead(path: str) -> None:
    """Remove a socket that nobody listens on. Raises Conflict where somebody does, InputError for another file."""
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise InputError(f"{path} exists, and is no socket")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            pass  # full, or another user's
    raise Conflict(f"a server listens on {path} already", hint="stop it first, or choose another path")


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _unusable(address: str, error: OSError) -> RlrecError:
    if error.errno == errno.EADDRINUSE:
        return Conflict(f"a server listens on {address} already", hint="stop it first, or choose another port")
    return RlrecError(f"cannot listen on {address}: {error.strerror or error}")
