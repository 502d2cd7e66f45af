"""Work that another process does before it is needed."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Generic, NoReturn, TypeVar

from rlrec.errors import RlrecError

T = TypeVar("T")
_PIPE = 1 << 20  # bytes that wait for us


class BackgroundItems(Iterator[T], Generic[T]):
    """The items of an iterable, each computed by a forked process while this one uses those before.

    The other process sees every object as it is now, and changes none here. It leaves connections to a database alone:
    it neither uses nor closes them. Where a fork is not safe, or not worth its time, the items are computed here."""

    def __init__(self, items: Iterable[T], *, forks: bool = True) -> None:
        self._child = 0
        if sys.platform != "linux" or not forks:
            self._items = iter(items)
            return
        receiver, sender = _pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of other threads: it needs none of their locks
            self._child = os.fork()
        if not self._child:
            _send(items, sender, receiver)
        os.close(sender)
        self._stream = open(receiver, "rb", buffering=_PIPE)  # noqa: SIM115 (closed by `close`)
        self._items = iter(self._receive, None)

    def __next__(self) -> T:
        return next(self._items)

    def close(self) -> None:
        if self._child:
            self._stream.close()
            os.kill(self._child, signal.SIGKILL)  # it only reads
            os.waitpid(self._child, 0)

    def _receive(self) -> T | None:
        """The next item, None after the last one. Raises the error that ended the work."""
        try:
            item = pickle.load(self._stream)
        except (EOFError, pickle.UnpicklingError):
            raise RlrecError("the process that reads the log has ended") from None
        if isinstance(item, Exception):
            raise item
        return item


def _pipe() -> tuple[int, int]:
    """Where to read and where to write, with room for more bytes than usual where the system gives it."""
    from fcntl import F_SETPIPE_SZ, fcntl

    receiver, sender = os.pipe()
    with suppress(OSError):
        fcntl(sender, F_SETPIPE_SZ, _PIPE)
    return receiver, sender


def _send(items: Iterable[Any], sender: int, receiver: int) -> NoReturn:
    """Work as the other process, to its end."""
    try:
        os.close(receiver)  # so that it ends with the process that started it
        for number in (signal.SIGINT, signal.SIGTERM):  # a supervisor may send it to all processes of a service
            signal.signal(number, signal.SIG_IGN)
        gc.disable()  # what is garbage here may be a connection that the other process uses
        with open(sender, "wb") as stream:
            try:
                for item in items:
                    # As a whole: who waits for its first bytes would wait for the work on the others, too.
                    stream.write(pickle.dumps(item, pickle.HIGHEST_PROTOCOL))
                    stream.flush()
                pickle.dump(None, stream)
            except Exception as error:
                pickle.dump(error, stream)
    finally:
        os._exit(0)
