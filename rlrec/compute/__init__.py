"""This module defines the interface of engines. An engine processes the partitions of a log in this process, in several
processes, or on a cluster. Functions here also pack values, so that another process can unpack them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from io import BytesIO
from types import MethodType
from typing import Any, Protocol, TypeVar

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


# Runs a task, the packed parameters of a pass, on a partition. Both the runner and the partition can be pickled.
Runner = Callable[[bytes, Any], Any]


class Engine(Protocol):
    """An Engine processes the partitions of a log.

    is_mixed: whether some of the processors compute with other instructions than the processor of this process, so that
    results may differ in the last bits."""

    is_mixed: bool

    def map(self, task: bytes, partitions: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield pairs of the number of a partition and the result of the task on this partition, in any order. Raise
        the error of a task that failed.

        task: the packed parameters of the work."""

    def close(self) -> None:
        """End the workers that this engine started."""


def deadly_partition_error(number: int) -> RlrecError:
    """Return the error for a partition whose processing has ended several workers."""
    return RlrecError(
        f"partition {number} of the log has ended its worker {MAX_DEATHS} times",
        hint="a worker may have too little memory: start fewer on a machine, or narrow --log",
    )


# -- pickled values, in which the open store is replaced by that of the receiver --

R = TypeVar("R", bound=Callable[..., Any])
_HANDLE = "handle"
_CACHED_TYPE = type(lru_cache(len))


def pack(value: Any, *, handle: object = None) -> bytes:
    """Return a value as bytes.

    handle: an object within the value that is left out; the receiver inserts an object of its own in this place."""
    buffer = BytesIO()
    pickler = _Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.handle = handle
    pickler.dump(value)
    return buffer.getvalue()


def unpack(data: bytes, *, handle: object = None) -> Any:
    """Return a copy of the value that `pack` has packed.

    handle: the object to insert in the place of the object that `pack` left out."""
    unpickler = _Unpickler(BytesIO(data))
    unpickler.handle = handle
    return unpickler.load()


class _Pickler(pickle.Pickler):
    handle: object

    def persistent_id(self, value: Any) -> str | None:
        return _HANDLE if self.handle is not None and value is self.handle else None

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, RlrecError):  # its arguments are named
            return _make_error, (type(value), value.args), vars(value)
        if isinstance(value, _CACHED_TYPE) and isinstance(value.__wrapped__, MethodType):  # without the cached values
            return _make_cached, (value.__wrapped__, value.cache_parameters()["maxsize"])
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    handle: object

    def persistent_load(self, name: str) -> object:
        return self.handle


def _make_error(kind: type[RlrecError], args: tuple[Any, ...]) -> RlrecError:
    return kind.__new__(kind, *args)


def _make_cached(function: R, size: int | None) -> Any:
    return lru_cache(maxsize=size)(function)
