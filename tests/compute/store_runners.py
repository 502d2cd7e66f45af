"""What workers do with the partitions of a log in tests, apart from the tests: each worker that is started loads it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from rlrec.app.evaluation.passes.passes import StoreRunner
from tests import PATIENCE_S


class Meeting(StoreRunner):
    """A runner that works on no partition before two workers have begun: files of the folder MEETING count them."""

    def __call__(self, task: bytes, partition: Any, /) -> Any:
        folder, deadline = Path(os.environ["MEETING"]), monotonic() + PATIENCE_S
        (folder / str(os.getpid())).touch()
        while len(list(folder.iterdir())) < 2:
            assert monotonic() < deadline
            sleep(0.01)
        return super().__call__(task, partition)


class Mortal(StoreRunner):
    """A runner whose process is killed on its third partition, once: files of the folder MORTAL count them."""

    def __call__(self, task: bytes, partition: Any, /) -> Any:
        for number in range(3):
            try:
                os.close(os.open(f"{os.environ['MORTAL']}/{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            if number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            break
        return super().__call__(task, partition)


class MortalMeeting(Mortal, Meeting):
    """Both."""
