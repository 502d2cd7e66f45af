"""This module handles floors of uniform exploration, which may depend on the position. Only one function needs
numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlrec.errors import InputError

if TYPE_CHECKING:
    from rlrec.arrays import Array

MAX_POSITIONS = 500  # of a slate; the cost of exact probabilities grows faster than the square of their number
Floor = float | tuple[float, ...]
"""Probability of a uniform arm at every position, or at positions 1, 2, ...; the last one holds for those below too."""


def at_positions(floor: Floor, size: int) -> Array:
    """Return the probability of a uniform pick at positions 1..size, (size,)."""
    import numpy as np

    by_position = np.array(floor, np.float64, ndmin=1)
    return by_position[np.minimum(np.arange(size), len(by_position) - 1)]


def parse_positions(text: str) -> frozenset[int]:
    """Return the positions in a list such as 3,5. Raises InputError for any other text."""
    texts = text.split(",") if isinstance(text, str) else []
    positions = {int(text) for text in texts if text.isascii() and text.isdigit() and len(text) < 4}
    if not texts or len(positions) < len(texts) or not 1 <= min(positions) <= max(positions) <= MAX_POSITIONS:
        hint = f"list positions from 1 to {MAX_POSITIONS}, each once: explore_slots=3,5"
        raise InputError(f"explore_slots is {text!r}", hint=hint)
    return frozenset(positions)
