"""This module processes partitions in several processes of this machine."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Any, BinaryIO, NamedTuple, cast

from rlrec.compute import ENVIRONMENT, MAX_DEATHS, Runner, deadly_partition_error, unpack, worker
from rlrec.errors import RlrecError

WORKER_COMMAND = [sys.executable, "-P", str(Path(worker.__file__))]


class _PartitionWork(NamedTuple):
    """This record has the number of a partition that is being processed, and the message that was sent to the process:
    the pickled task and partition."""

    number: int
    message: bytes


class Processes:
    """A Processes object is an engine that uses `jobs` processes. The processes are started with the first task."""

    is_mixed = False  # all have the same processor

    def __init__(self, jobs: int, runner: Runner) -> None:
        self._jobs, self._runner = jobs, runner
        self._idle_processes: list[_Process] = []

    def map(self, task: bytes, partitions: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield the number and the result of each partition, as `Engine.map` says. If a process ends before it has
        answered, its partition is processed again."""
        new_work = (_PartitionWork(n, pickle.dumps((task, rows), 5)) for n, rows in enumerate(partitions))
        work_to_retry: list[_PartitionWork] = []
        work_by_process: dict[_Process, _PartitionWork] = {}
        deaths_by_partition: Counter[int] = Counter()
        # the processes load their modules while the first partition is read
        self._idle_processes += [_Process(self._runner) for _ in range(len(self._idle_processes), self._jobs)]
        with DefaultSelector() as selector:
            try:
                while True:
                    while len(work_by_process) < self._jobs and (
                        work := work_to_retry.pop() if work_to_retry else next(new_work, None)
                    ):
                        process = self._idle_processes.pop() if self._idle_processes else _Process(self._runner)
                        work_by_process[process] = work
                        selector.register(process.answers, EVENT_READ, process)
                        process.send(work.message)
                    if not work_by_process:
                        return
                    for key, _ in selector.select():
                        process = cast(_Process, key.data)
                        work, message = work_by_process.pop(process), worker.read_message(process.answers)
                        selector.unregister(process.answers)
                        if message is None:
                            process.close()
                            deaths_by_partition[work.number] += 1
                            if deaths_by_partition[work.number] == MAX_DEATHS:
                                raise deadly_partition_error(work.number)
                            work_to_retry.append(work)
                            continue
                        self._idle_processes.append(process)
                        answer = unpack(message)
                        if isinstance(answer, RlrecError):
                            raise answer
                        yield work.number, answer
            finally:
                for process in work_by_process:
                    process.close()

    def close(self) -> None:
        """End the processes of this engine."""
        while self._idle_processes:
            self._idle_processes.pop().close()


class _Process:
    def __init__(self, runner: Runner) -> None:
        variables = {**ENVIRONMENT, **os.environ}
        self._process = subprocess.Popen(
            WORKER_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=variables
        )
        self._questions = cast(BinaryIO, self._process.stdin)
        self.answers = cast(BinaryIO, self._process.stdout)
        self.send(pickle.dumps(sys.path))
        self.send(pickle.dumps(runner))

    def send(self, message: bytes) -> None:
        with suppress(BrokenPipeError):  # reading its answer will show that it has ended
            worker.write_message(self._questions, message)

    def close(self) -> None:
        self._process.kill()  # the process only reads
        with suppress(OSError):
            self._questions.close()
        self.answers.close()
        self._process.wait()
