"""Signals that end a command: they unwind it as an error does, so that nothing is left behind; a second one ends at
once."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal arrived; `code` is the exit code that shells expect of it, 128 and its number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


def unwind(number: int, _: FrameType | None) -> None:
    """The handler of these signals: the next one ends at once."""
    for other in END_SIGNALS:
        if signal.getsignal(other) is unwind:
            signal.signal(other, lambda number, _: os._exit(128 + number))
    if logging := sys.modules.get("logging"):
        logging.disable()  # a pool of connections would log the interrupted rollback, traceback and all
    raise Interrupted(number)


def end_in_finalizer(unraisable: sys.UnraisableHookArgs) -> None:
    """End at once where the signal arrived in a finalizer, which lets no error out."""
    if isinstance(unraisable.exc_value, Interrupted):
        os._exit(unraisable.exc_value.code)
    sys.__unraisablehook__(unraisable)
