"""This module gives the seeds of commands. A seed comes from the user, or from random bits of the operating system."""

from __future__ import annotations

from random import Random, SystemRandom

source: Random = SystemRandom()
"""Origin of every bit that nobody chose; whoever sets a seeded one instead makes all draws repeatable."""


def seed_or_random(seed: int | None, *, bits: int = 64) -> int:
    """Return the user's seed or, if it is None, random bits. bits: the number of random bits."""
    return source.getrandbits(bits) if seed is None else seed


def random_salt() -> str:
    """Return 32 random hexadecimal digits."""
    return source.randbytes(16).hex()
