"""Waits that a signal ends, for commands that finish what they are at."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, BinaryIO

from rlrec.cli.program.signals import END_SIGNALS


class Waiting:
    """Waits that a signal ends; `number` is that signal. Other work goes on to its end."""

    def __init__(self, wakeup: int) -> None:
        self.number: int | None = None
        self._wakeup = wakeup

    def note(self, number: int, _: FrameType | None) -> None:
        """Remember a signal; a second Ctrl-C ends the process at once."""
        if self.number is not None and number == signal.SIGINT:
            os._exit(128 + number)
        self.number = number

    def wait(self, seconds: float | None, stream: BinaryIO | None) -> bool:
        """Wait for so long (None: however long), or until the stream can be read; False once a signal has arrived."""
        if self.number is None:
            files: list[Any] = [self._wakeup] if stream is None else [self._wakeup, stream]
            select.select(files, [], [], seconds)
        return self.number is None


@contextmanager
def waiting() -> Iterator[Waiting]:
    """Inside it, the signals that end a command end its waits alone."""
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    waits = Waiting(receiver)
    handled = [number for number in END_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, waits.note) for number in handled}
    wakeup = signal.set_wakeup_fd(sender)
    try:
        yield waits
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(receiver)
        os.close(sender)
