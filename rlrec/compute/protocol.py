"""The way in which partitions of a log are worked on, wherever that is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

Task = bytes
"""The parameters of a pass over the log, as `packing.pack` makes them: a callable that takes a partition."""

Partition = Any
"""A partition of the log, which can be pickled: its rows, or where they are."""


class Engine(Protocol):
    """Works on partitions."""

    def map(self, task: Task, partitions: Iterable[Partition]) -> Iterator[tuple[int, Any]]:
        """The number of each partition and its result, in any order. An error of a task is raised here."""
