"""Where the partitions of a log are worked on: in this process, in several, or on a cluster; the interface of these
engines, and what all of them share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from rlrec.errors import RlrecError

# Of workers, set before numpy is loaded: one thread each, and memory of arrays that stays with the process. A trim
# threshold alone, an empty one too, lets glibc ask the kernel for each of them; and so do threads (Dask works in one)
# that have memory apart.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": "134217728",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_ARENA_MAX": "1",
}
MAX_DEATHS = 4  # of workers on one partition, after which it is refused


class Runner(Protocol):
    """Runs a task, the packed parameters of a pass, on a partition. Runner and partition can be pickled."""

    def __call__(self, task: bytes, partition: Any, /) -> Any: ...


class Engine(Protocol):
    """Works on partitions. mixed: whether some of its processors compute with other instructions than this one, so that
    results may differ in their last bits."""

    mixed: bool

    def map(self, task: bytes, partitions: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """The number of each partition and its result, in any order. An error of a task is raised here."""

    def close(self) -> None:
        """End the workers that it started."""


def deadly_partition(number: int) -> RlrecError:
    """The error of a partition that ends its workers."""
    return RlrecError(
        f"partition {number} of the log has ended its worker {MAX_DEATHS} times",
        hint="a worker may have too little memory: start fewer on a machine, or narrow --log",
    )
