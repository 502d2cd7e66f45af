"""This module computes items in another process before this process needs them."""

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
_PIPE = 1 << 20  # bytes that may wait in the pipe


class BackgroundItems(Iterator[T], Generic[T]):
    """A BackgroundItems object yields the items of an iterable. A forked process computes later items while this
    process uses earlier items.

    The forked process has a copy of all objects at the time of the fork, and changes no object of this process. The
    copies of connections to a database are neither used nor closed. forks: whether to fork; if False, or on a system
    other than Linux, this process computes the items."""

    def __init__(self, items: Iterable[T], *, forks: bool = True) -> None:
        self._child = 0
        if sys.platform != "linux" or not forks:
            self._items = iter(items)
            return
        receiver, sender = _pipe()
        with warnings.catch_warnings():
            # about other threads: the child needs none of their locks
            warnings.simplefilter("ignore", DeprecationWarning)
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
            os.kill(self._child, signal.SIGKILL)  # the child only reads, so nothing is lost
            os.waitpid(self._child, 0)

    def _receive(self) -> T | None:
        """Return the next item, or None after the last item. Raises the error that ended the forked process."""
        try:
            item = pickle.load(self._stream)
        except (EOFError, pickle.UnpicklingError):
            raise RlrecError("the process that reads the log has ended") from None
        if isinstance(item, Exception):
            raise item
        return item


def _pipe() -> tuple[int, int]:
    """Return the reading and the writing end of a new pipe. The pipe is larger than usual if the system allows it."""
    from fcntl import F_SETPIPE_SZ, fcntl

    receiver, sender = os.pipe()
    with suppress(OSError):
        fcntl(sender, F_SETPIPE_SZ, _PIPE)
    return receiver, sender


def _send(items: Iterable[Any], sender: int, receiver: int) -> NoReturn:
    """Write the items to a pipe, then end this process, which is the forked one. An error is written as the last item.
    sender, receiver: the writing and the reading end of the pipe."""
    try:
        os.close(receiver)  # so that the child ends when its parent does
        for number in (signal.SIGINT, signal.SIGTERM):  # a supervisor may send these to all processes of a service
            signal.signal(number, signal.SIG_IGN)
        gc.disable()  # collected garbage may be a connection that the parent uses
        with open(sender, "wb") as stream:
            try:
                for item in items:
                    # Written as a whole: a parent that has the first bytes would wait until the rest is computed.
                    stream.write(pickle.dumps(item, pickle.HIGHEST_PROTOCOL))
                    stream.flush()
                pickle.dump(None, stream)
            except Exception as error:
                pickle.dump(error, stream)
    finally:
        os._exit(0)
