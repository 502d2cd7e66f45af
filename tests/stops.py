"""When tests stop a process: after a share of its own work, however busy the machine is."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess

from tests import PATIENCE_S


def cpu_of_children() -> float:
    """Seconds of CPU of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def wait_for_work(process: BaseProcess, cpu_s: float) -> None:
    """Return once a process has used so many seconds of CPU, or has ended."""
    assert process.pid is not None
    with suppress(OSError):  # it has ended
        while process.is_alive() and time.clock_gettime(~process.pid << 3 | 2) < cpu_s:
            time.sleep(0.001)


def until(condition: Callable[[], bool]) -> None:
    """Return once something holds."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
