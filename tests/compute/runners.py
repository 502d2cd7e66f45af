"""What workers do in tests, in a module of few imports: each worker that is started loads it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any


def process(task: bytes, partition: object) -> int:
    return os.getpid()


@dataclass(frozen=True)
class Poisoned:
    """A runner that the third partition kills."""

    def __call__(self, task: bytes, partition: int, /) -> Any:
        if partition == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return partition


@dataclass(frozen=True)
class Lost:
    """A runner whose worker dies while its first answer is on its way, and before any other."""

    folder: Path

    def __call__(self, task: bytes, partition: int, /) -> bytes:
        try:
            (self.folder / "answered").touch(exist_ok=False)
        except FileExistsError:
            os._exit(1)
        Timer(0.08, os._exit, [1]).start()
        return bytes(100_000_000)


@dataclass(frozen=True)
class Weighed:
    """A runner that says how long its partition is."""

    def __call__(self, task: bytes, partition: bytes, /) -> Any:
        return len(partition)


def environment(task: bytes, names: Iterable[str]) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in names}
