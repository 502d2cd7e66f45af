"""Contexts and arms as named, fixed vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from rlrec.policy.scores import Array


class Encoder:
    """Turns JSON objects into rows of numbers with names; what it does is in its `spec` alone."""

    names: tuple[str, ...]
    reads: tuple[str, ...]
    intercept: bool

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Self:
        """The encoder that was written, or declared by a person. Raises InputError naming what is wrong with it."""
        raise NotImplementedError

    @classmethod
    def hashed(cls) -> Self:
        """An intercept, and the whole object hashed into a few columns."""
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        raise NotImplementedError

    def check(self, values: Mapping[str, Any]) -> None:
        """Raises InputError, with its field, where a value is not what was declared."""
        raise NotImplementedError

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> Array:
        """(n, width); what is unknown, missing or of another type counts 0."""
        raise NotImplementedError
