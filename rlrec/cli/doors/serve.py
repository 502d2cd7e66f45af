"""This module holds the command `rlrec serve`, which answers requests and feedback over HTTP."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import ipaddress
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app, signals
from rlrec.cli.program.shared import (
    NOTHING_STORED,
    GroupedCommand,
    Store,
    current_settings,
    dry_run_option,
    notice,
    refuses_future_clock,
    takes_store,
)
from rlrec.errors import Conflict, InputError, RlrecError, StoreBusy, quantity

if TYPE_CHECKING:
    from rlrec.app.requests.pipe import Pipe
    from rlrec.cli.doors.protocol import BoundedServer
    from rlrec.cli.doors.web import Access, PageSource

PATIENCE_S = 20  # with a busy store, before clients are told to try again
FILE = click.Path(exists=True, dir_okay=False)
MIN_TOKEN_LENGTH = 16  # characters, at least
BACKLOG = 1_024
REMOTE_HINT = "listen on 127.0.0.1, or say --allow-remote and --token-file FILE"
LOCK_TIMEOUT_S = 30  # the same as for a store


@click.command(cls=GroupedCommand)
@click.option(
    "--listen", "address", required=True, metavar="unix:PATH|HOST:PORT",
    help="A socket in the file system, or a port; port 0 takes a free one.",
)  # fmt: skip
@click.option("--allow-remote", is_flag=True, help="Listen where other machines can reach it: needs a token.")
@click.option(
    "--token-file", type=FILE, metavar="FILE", help="Clients must send its first line: Authorization: Bearer."
)
@click.option("--host", "hosts", multiple=True, metavar="NAME", help="A name that clients call the server by.")
@click.option("--tls-cert", type=FILE, metavar="FILE", help="Certificate, PEM: serve HTTPS.")
@click.option("--tls-key", type=FILE, metavar="FILE", help="Its key, if it is not in the file of the certificate.")
@click.option(
    "--screen", "has_screen", is_flag=True, help="Pages for browsers at /screen/, as `rlrec screen` has them."
)
@takes_store("rlrec serve --listen unix:rlrec.sock", "rlrec serve --listen 127.0.0.1:8080")
@refuses_future_clock
@dry_run_option
def serve(
    store: Store, show: Show, address: str, allow_remote: bool, token_file: str | None, hosts: Sequence[str],
    tls_cert: str | None, tls_key: str | None, has_screen: bool, dry_run: bool,
) -> None:  # fmt: skip
    """POST a request to /v1/recommend, what the user did to /v1/feedback, or many lines of both, as `pipe` reads them,
    to /v1/pipe. All clients' lines share groups, each of which is one transaction. GET /healthz, /metrics (Prometheus)
    and /openapi.json. /ofrep/v1/evaluate/flags/POLICY answers OpenFeature clients. On SIGTERM, the server answers what
    has arrived and ends.

    With --dry-run, clients are served from a copy of the store, which is deleted at the end: their feedback finds their
    decisions, and nobody waits. The copy is an SQLite file in TMPDIR, also that of a store on PostgreSQL."""
    from rlrec.app.opening import ready
    from rlrec.app.requests.pipe import Pipe

    if tls_key is not None and tls_cert is None:
        raise click.UsageError("--tls-key needs --tls-cert")
    try:
        from rlrec.cli.doors.web import LOOPBACK, Access
    except ImportError as error:
        raise InputError(f"serve needs {error.name}", hint="pip install 'rlrec[serve]'") from None
    token = None if token_file is None else _read_token(token_file)
    if allow_remote and token is None:
        hint = "--token-file FILE: its first line is what clients must send"
        raise InputError("whoever reaches the address could write to the store", hint=hint)
    tls = {} if tls_cert is None else _certificate_options(tls_cert, tls_key)
    ready(store, writes=not dry_run)
    with (
        open_listener(address, allow_remote=allow_remote) as (listener, name),
        copy_for_rehearsal(store) if dry_run else nullcontext(store) as served_store,
    ):
        names = None if address.startswith("unix:") or (allow_remote and not hosts) else (*LOOPBACK, *hosts)
        pages = None
        if has_screen:
            from rlrec.cli.doors.page_server import PageServer, page_options

            pages = PageServer(page_options(served_store))
        pipe, access = Pipe(served_store, patience_s=PATIENCE_S), Access(token=token, hosts=names)
        served_store.close()  # from now on only the writer's thread uses it
        try:
            number = asyncio.run(
                _answer_clients(pipe, listener, partial(show, {"listen": name}), access=access, tls=tls, screen=pages)
            )
        finally:
            if pages is not None:
                pages.close()
    if number != signal.SIGTERM:
        raise signals.Interrupted(number)


def _certificate_options(cert: str, key: str | None) -> dict[str, str | None]:
    """Return the options of uvicorn for a TLS certificate. Raises InputError if the files do not hold a certificate and
    the key that belongs to it.

    `cert` is the path of the certificate. `key` is the path of its key, or None if the key is in the same file."""
    import ssl

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key)
    except (OSError, ssl.SSLError):
        raise InputError(f"{cert} is no certificate with its key", hint="PEM, --tls-key names the key's file") from None
    return {"ssl_certfile": cert, "ssl_keyfile": key}


def _read_token(path: str) -> bytes:
    """Return the token in the first line of a file. Raises InputError if the token is short, or if users outside the
    file's group may read the file."""
    with open(path, "rb") as file:
        token, mode = file.readline().strip(), os.fstat(file.fileno()).st_mode
    if len(token) < MIN_TOKEN_LENGTH:
        hint = f"`openssl rand -hex 32 > {path} && chmod 600 {path}` makes one"
        raise InputError(f"the token in {path} has fewer than {MIN_TOKEN_LENGTH} characters", hint=hint)
    if mode & 0o007:
        raise InputError(f"others can read {path}", hint=f"chmod 600 {path}")
    return token


@contextmanager
def copy_for_rehearsal(store: Store) -> Iterator[Store]:
    """Yield a copy of the store, which is deleted at the end. A line on stderr first says that clients use a copy, and
    at the end how many decisions and events were stored in it."""
    with app.db_copy.temporary_copy(store) as copy:
        counts_before = app.db_copy.counts(copy)
        notice("dry run: clients are served from a copy of the store; nothing is stored")
        yield copy
        counts_after = app.db_copy.counts(copy)
    texts = (quantity(counts_after[table] - counts_before[table], table) for table in ("decision", "event"))
    notice(f"{NOTHING_STORED}; it would have been {' and '.join(texts)}")


async def _answer_clients(
    pipe: Pipe, listener: socket.socket, show_address: Callable[[], None], *, access: Access, tls: Mapping[str, Any],
    screen: PageSource | None,
) -> int:  # fmt: skip
    """Answer clients of the server until a signal arrives, and return the number of the signal.

    `pipe` answers lines. `show_address` is called once signals are handled. `access` has the rules by which requests
    are refused, and `tls` the options of uvicorn for TLS. `screen` makes the pages of the screen, and is None if the
    server has no screen."""
    from rlrec.cli.doors.metrics import Metrics
    from rlrec.cli.doors.protocol import Limits, make_server
    from rlrec.cli.doors.web import WebApplication
    from rlrec.cli.doors.writer import SharedWriter

    loop, limits, store = asyncio.get_running_loop(), Limits(), pipe.store

    def notice_soon(text: str) -> None:
        loop.call_soon_threadsafe(notice, text)

    store.notice = notice_soon  # the writer's thread has no command context
    writer = SharedWriter(pipe, loop, db=current_settings().db)
    meter = Metrics(store, writer)
    web_app = WebApplication(writer=writer, limits=limits, access=access, meter=meter, screen=screen)
    server = make_server(web_app.application, limits, notice, **tls)
    web_app.n_clients = lambda: len(server.server_state.connections)
    writer.start()
    try:
        return await run_until_signal(server, listener, show_address)
    finally:
        writer.end()
        await asyncio.to_thread(writer.join)
        store.notice = notice


async def run_until_signal(server: BoundedServer, listener: socket.socket, show_address: Callable[[], None]) -> int:
    """Serve until a signal arrives, then answer all requests that have arrived. Returns the number of the signal.

    `show_address` is called once signals are handled."""
    loop, numbers = asyncio.get_running_loop(), list[int]()

    def stop(number: int) -> None:
        if numbers and number == signal.SIGINT:  # a user who does not want to wait
            os._exit(128 + number)
        numbers.append(number)  # supervisors may repeat a signal
        server.should_exit = True

    loop.set_exception_handler(lambda _, context: notice(str(context.get("exception") or context["message"])))
    for number in signals.END_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    show_address()
    await server.serve([listener])
    return numbers[0]


# -- the listening socket: in the file system, or a port --


@contextmanager
def open_listener(address: str, *, allow_remote: bool, hint: str = REMOTE_HINT) -> Iterator[tuple[socket.socket, str]]:
    """Yield a listening socket, and its address as text. Raises InputError if other machines can reach the address and
    `allow_remote` is false.

    `address` is unix:PATH or HOST:PORT. `hint` is the advice in this error."""
    if address.startswith("unix:"):
        with _open_socket_file(address.removeprefix("unix:")) as listener:
            yield listener, address
        return
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and int(port) < 2**16):
        raise InputError(f"{address!r} is no address", hint="give unix:PATH or HOST:PORT, as 127.0.0.1:8080")
    try:
        options = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, _, _, _, target = min(options, key=lambda info: info[0] != socket.AF_INET)
        if not (allow_remote or ipaddress.ip_address(str(target[0]).partition("%")[0]).is_loopback):
            raise InputError(f"other machines can reach {host}", hint=hint)
        listener = socket.create_server(target[:2], family=family, backlog=BACKLOG)
        # Connections inherit this. Without it, the body of an answer would wait until the client acknowledges the head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        raise _address_error(address, error) from error
    with listener:
        yield listener, f"{host}:{listener.getsockname()[1]}"


@contextmanager
def _open_socket_file(path: str) -> Iterator[socket.socket]:
    """Yield a socket that listens on a path in the file system. The file of the socket is removed when the server ends.
    A file that a dead server left is replaced."""
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            with _lock_folder(os.path.dirname(path) or "."):
                _remove_dead_socket(path)
                listener.bind(path)
                identity = os.stat(path)
                listener.listen(BACKLOG)
        except OSError as error:
            raise _address_error(f"unix:{path}", error) from error
        try:
            yield listener
        finally:
            with suppress(OSError):
                if os.path.samestat(os.stat(path), identity):
                    os.unlink(path)


@contextmanager
def _lock_folder(folder: str) -> Iterator[None]:
    """Hold a lock on a folder while a server creates its socket in it. If two servers start at once, the second one
    then finds the socket of the first. Raises StoreBusy if the lock is not free in time."""
    number, message = os.open(folder, os.O_RDONLY), f"another process holds the lock of the folder {folder}"
    deadline = 0.0
    try:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if not deadline:
                timeout = current_settings().lock_timeout
                timeout_s = LOCK_TIMEOUT_S if timeout is None else timeout / 1e6
                notice(f"{message}: waiting up to {timeout_s:g} s")
                deadline = time.monotonic() + timeout_s
            elif time.monotonic() > deadline:
                raise StoreBusy(message, hint=f"`fuser {folder}` names it: end it, or choose another folder")
            time.sleep(0.05)
        yield
    finally:
        os.close(number)


def _remove_dead_socket(path: str) -> None:
    """Remove the socket at a path, if no server listens on it. Raises Conflict if a server listens, and InputError if
    the file is no socket."""
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
            pass  # its queue is full, or it belongs to another user
    raise Conflict(f"a server listens on {path} already", hint="stop it first, or choose another path")


def _address_error(address: str, error: OSError) -> RlrecError:
    if error.errno == errno.EADDRINUSE:
        return Conflict(f"a server listens on {address} already", hint="stop it first, or choose another port")
    return RlrecError(f"cannot listen on {address}: {error.strerror or error}")
