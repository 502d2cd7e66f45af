"""Values as a person reads them, and columns of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlrec.cli.output.plain import dumps
from rlrec.cli.text.text import printable

FILLER = "\0"  # no cell holds one, and len() counts it


def is_number(value: Any) -> bool:
    """Whether a value is a number, and no flag."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float) -> str:
    if not math.isfinite(value):
        raise ValueError(f"cannot show {value}")
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.1f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def cell(value: Any) -> str:
    """A value as a person reads it in a table: text verbatim, but nothing that moves the cursor."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return _number(value)
    decoded = json.loads(dumps(value))
    if isinstance(decoded, list) and not any(isinstance(item, dict | list) for item in decoded):
        return ", ".join(map(cell, decoded))
    return cell(decoded) if not isinstance(decoded, dict | list) else printable(dumps(decoded))


def pairs(record: Mapping[str, Any]) -> str:
    """A record in a cell, without the marks of JSON: hour=9 device=ios."""
    return " ".join(f"{key}={_plain(value)}" for key, value in record.items())


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({pairs(value)})"
    return f"({', '.join(map(_plain, value))})" if isinstance(value, list) else cell(value)


class Figures(str):
    """Several numbers in a cell, which is never elided."""


def text_width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


class Column:
    """A column with its cells as text; numbers stand to the right."""

    def __init__(self, header: str, values: Sequence[Any]) -> None:
        self.header, self.values = header, values
        self.numeric = any(map(is_number, values)) and all(value is None or is_number(value) for value in values)
        self.cells = list(map(cell, values))

    @property
    def natural(self) -> int:
        """How wide its widest text is."""
        return max(map(text_width, [self.header, *self.cells]))

    def draw(self, text: str) -> str:
        """A text of it as tabulate gets it: with a filler for each second column of a character."""
        return FILLER * (text_width(text) - len(text)) + text
