"""Waits that a signal ends, while other work goes on."""

from __future__ import annotations

import os
import signal
import time
from typing import BinaryIO, cast

import pytest

from rlrec.cli.program.signals import signals_end_waits


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_next_wait_and_no_other_work(number: int) -> None:
    before = signal.getsignal(number)
    with signals_end_waits() as waits:
        assert waits.wait(0.0, None)
        os.kill(os.getpid(), number)
        began = time.monotonic()
        assert not waits.wait(None, None)
        assert (waits.number, time.monotonic() - began < 1) == (number, True)
    assert signal.getsignal(number) is before


def test_a_signal_ends_a_wait_that_has_begun() -> None:
    with signals_end_waits() as waits:
        if (child := os.fork()) == 0:
            time.sleep(0.1)
            os.kill(os.getppid(), signal.SIGTERM)
            os._exit(0)
        assert not waits.wait(60.0, None)
        os.waitpid(child, 0)


def test_a_stream_with_something_to_read_ends_a_wait() -> None:
    receiver, sender = os.pipe()
    with open(receiver, "rb", buffering=0) as stream, signals_end_waits() as waits:
        os.write(sender, b"x")
        assert waits.wait(None, cast(BinaryIO, stream))
        os.close(sender)
