"""Where a server listens: a socket in the file system, or a port."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rlrec.cli.program.shared import notice, settings
from rlrec.errors import Conflict, InputError, RlrecError, StoreBusy

BACKLOG = 1_024
REMOTE_HINT = "listen on 127.0.0.1, or say --allow-remote and --token-file FILE"
LOCK_TIMEOUT_S = 30  # as for a store


@contextmanager
def listening(address: str, *, allow_remote: bool, hint: str = REMOTE_HINT) -> Iterator[tuple[socket.socket, str]]:
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
            raise InputError(f"other machines can reach {host}", hint=hint)
        listener = socket.create_server(target[:2], family=family, backlog=BACKLOG)
        # Connections inherit it. Without it the body of an answer would wait until the client acknowledges the head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
