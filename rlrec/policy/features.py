"""Contexts as numbers: any JSON object to a short dense vector, by signed hashing.

A vocabulary would have to be learned, stored and versioned; a hash needs none, and gives an unseen value its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from math import asinh, isfinite
from typing import Any

import numpy as np

from rlrec.policy.scores import Array

WIDTH = 64


def encode(contexts: Sequence[Mapping[str, Any]], *, width: int = WIDTH) -> Array:
    """Context features, (n, width), of n contexts.

    A number counts as asinh(number) under its key, so that a price does not drown a flag; text, true, false and null
    count 1 under key and value; lists and objects count item by item. Keys that share a column add up there, with
    signs of their own, so that on average they do not disturb each other.
    Source: own choices on Weinberger, Dasgupta, Langford, Smola & Attenberg 2009 (signed feature hashing)."""
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    for row, context in enumerate(contexts):
        for name, value in _items("", context):
            column, sign = _place(name, width)
            rows.append(row)
            columns.append(column)
            values.append(sign * value)
    encoded = np.zeros((len(contexts), width))
    np.add.at(encoded, (rows, columns), values)
    return encoded


def named(value: Any) -> str:
    """A value of a context as a file writes it: text as it is, anything else as JSON, numbers by value."""
    if isinstance(value, str):
        return value
    whole = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if whole else value, sort_keys=True, ensure_ascii=False)


def _items(path: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _items(f"{path}\x1f{key}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _items(f"{path}\x1f", item)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        yield f"{path}\x1e{value}", 1.0
    else:
        yield path, _squeezed(value)


def _squeezed(value: float) -> float:
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the doubles
        return 0.0
    return asinh(number) if isfinite(number) else 0.0


@lru_cache(maxsize=100_000)
def _place(name: str, width: int) -> tuple[int, float]:
    bits = int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    return (bits >> 1) % width, 1.0 if bits & 1 else -1.0
