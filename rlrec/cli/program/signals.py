"""This module handles the signals that end a command. A signal raises an error, so that the command cleans up. A second
signal ends the process at once. Within `signals_end_waits` a signal only ends waits, for commands that finish their
present work."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, BinaryIO, NoReturn

END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """An Interrupted error says that a signal arrived. `code` is the exit code that shells expect, which is 128 plus
    the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


def unwind_command(number: int, _: FrameType | None) -> None:
    """Handle a signal that ends the command: raise Interrupted, so that the command cleans up. A second signal ends the
    process at once."""
    for end_signal in END_SIGNALS:
        if signal.getsignal(end_signal) is unwind_command:
            signal.signal(end_signal, end_at_once)
    if logging := sys.modules.get("logging"):
        logging.disable()  # a connection pool would log the interrupted rollback with a traceback
    raise Interrupted(number)


def end_at_once(number: int, _: FrameType | None) -> NoReturn:
    """Handle a signal by ending the process at once. This is for signals while a command cleans up, or after its
    work."""
    os._exit(128 + number)


def end_in_finalizer(unraisable: sys.UnraisableHookArgs) -> None:
    """Handle an error that no caller can catch, for example one in a finalizer. If a signal raised the error, the
    process ends at once."""
    if isinstance(unraisable.exc_value, Interrupted):
        os._exit(unraisable.exc_value.code)
    sys.__unraisablehook__(unraisable)


class SignalWaits:
    """A SignalWaits object has waits that a signal ends, while the command goes on with its other work. `number` is the
    number of the signal that arrived, or None so far."""

    def __init__(self, wakeup: int) -> None:
        self.number: int | None = None
        self._wakeup = wakeup

    def note(self, number: int, _: FrameType | None) -> None:
        """Remember a signal. A second Ctrl-C ends the process at once."""
        if self.number is not None and number == signal.SIGINT:
            os._exit(128 + number)
        self.number = number

    def wait(self, seconds: float | None, stream: BinaryIO | None) -> bool:
        """Wait for `seconds`, or until the stream can be read; None means no limit. The result is False once a signal
        has arrived, else True."""
        if self.number is None:
            import select  # which most commands do without

            files: list[Any] = [self._wakeup] if stream is None else [self._wakeup, stream]
            select.select(files, [], [], seconds)
        return self.number is None


@contextmanager
def signals_end_waits() -> Iterator[SignalWaits]:
    """Yield a SignalWaits object. Within this context, a signal does not end the command, but only the waits of this
    object."""
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    waits = SignalWaits(receiver)
    numbers = [number for number in END_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    old_handlers = {number: signal.signal(number, waits.note) for number in numbers}
    wakeup = signal.set_wakeup_fd(sender)
    try:
        yield waits
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        os.close(receiver)
        os.close(sender)
