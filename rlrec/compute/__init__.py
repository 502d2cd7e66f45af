"""Engines that process the partitions of a log: in this process, in several processes, or on a cluster. This module has
their interface and shared parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from rlrec.errors import RlrecError

# Environment of workers, set before numpy is loaded: one thread each, and memory of arrays stays with the process. Even
# an empty trim threshold alone makes glibc ask the kernel for each array; so do threads with memory arenas of their own
# (Dask works in one).
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": "134217728",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_ARENA_MAX": "1",
}
MAX_DEATHS = 4  # of workers on one partition, after which the partition is refused


class Runner(Protocol):
    """Runs a task, the packed parameters of a pass, on a partition. Both the runner and the partition can be
    pickled."""

    def __call__(self, task: bytes, partition: Any, /) -> Any: ...


class Engine(Protocol):
    """Processes partitions. mixed: whether some processors compute with other instructions than this one, so that
    results may differ in the last bits."""

    mixed: bool

    def map(self, task: bytes, partitions: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """The number of each partition and its result, in any order. Raises the error of a failed task."""

    def close(self) -> None:
        """End the workers that this engine started."""


def deadly_partition(number: int) -> RlrecError:
    """The error for a partition on which workers die."""
    return RlrecError(
        f"partition {number} of the log has ended its worker {MAX_DEATHS} times",
        hint="a worker may have too little memory: start fewer on a machine, or narrow --log",
    )
