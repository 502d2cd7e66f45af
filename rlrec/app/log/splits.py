"""Which split a user or a session belongs to: what teaches, what tunes, and what a gate judges by."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable
from hashlib import sha256

TRAIN, TUNE, GATE = 0, 1, 2
BOUNDS = 0.6, 0.8  # where the second and the third split begin


def split(salt: str, unit_key: str) -> int:
    """The split of a unit, for ever: 0 train (60 %), 1 tune (20 %), 2 gate (20 %). salt: `Settings.split_salt`."""
    uniform = int.from_bytes(sha256(f"{salt}/split/{unit_key}".encode()).digest()[:8]) / 2**64
    return bisect(BOUNDS, uniform)


def splits(salt: str, unit_keys: Iterable[str]) -> list[int]:
    """`split` of each."""
    import numpy as np

    start = f"{salt}/split/"
    digests = b"".join([sha256((start + key).encode()).digest() for key in unit_keys])
    return np.searchsorted(BOUNDS, np.frombuffer(digests, ">u8")[::4] / 2.0**64, side="right").tolist()
