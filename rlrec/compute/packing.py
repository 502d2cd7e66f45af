"""Pickled values for other processes, in which the open store is replaced by that of the receiver."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from types import MethodType
from typing import Any, TypeVar

from rlrec.errors import RlrecError

R = TypeVar("R", bound=Callable[..., Any])
_HANDLE = "handle"
_CACHED = type(lru_cache(len))


def pack(value: Any, *, handle: object = None) -> bytes:
    """The value in bytes. handle: an object in it that is not sent; the receiver inserts its own."""
    buffer = BytesIO()
    pickler = _Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.handle = handle
    pickler.dump(value)
    return buffer.getvalue()


def unpack(data: bytes, *, handle: object = None) -> Any:
    """A new copy of the packed value."""
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
        if isinstance(value, _CACHED) and isinstance(value.__wrapped__, MethodType):  # without the cached values
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
