"""Tables on a terminal: no line is wider than that. Columns are left out in the order that their view declares, long
texts are elided, lines above and below a table are wrapped; verdicts have a colour."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from rlrec.cli.output.cells import FILLER, Column, Figures, is_number, text_width
from rlrec.cli.text.text import Screen, View, printable

GAP = "  "
ELLIPSIS = "..."
TEXT_WIDTH = 16  # to which the cells of a text are elided before a declared column is left out
MIN_WIDTH = 6  # of an elided column
TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)\.\d{6}Z")
COLOURS = {"ok": 32, "weak": 33, "warning": 33, "insufficient": 31, "error": 31}
BOUNDED = ("value", "lower", "upper")  # columns that have the same decimals
VERDICTS = ("verdict", "result", "severity")  # columns that are coloured
COLOURED = re.compile(rf"(?:\d+ )?({'|'.join(COLOURS)})")
BLOCKS, STEPS = " ▏▎▍▌▋▊▉█", "▁▂▃▄▅▆▇█"


# -- cells --


def short_times(text: str) -> str:
    """A text with its times to the second, as a terminal shows them."""
    return TIME.sub(r"\1 \2", text)


def decimals(values: Iterable[Any]) -> int | None:
    """How many decimals a column of these values has, so that the largest shows four digits; None for whole numbers,
    and for texts."""
    numbers = [abs(value) for value in values if is_number(value)]
    if all(value == int(value) for value in numbers if math.isfinite(value)):
        return None
    return min(max(3 - math.floor(math.log10(max(numbers))), 0), 6)


def fixed(value: float, places: int) -> str:
    """A number with so many decimals; one that would show as 0 in few digits."""
    text = f"{value:.{places}f}"
    return text if value == 0 or float(text) else f"{value:.1g}"


def interval(value: float | None, lower: float | None, upper: float | None, places: int | None) -> Figures:
    """A value with its interval in one cell; places: decimals of all three."""
    texts = ["-" if number is None else fixed(number, places or 0) for number in (value, lower, upper)]
    return Figures(texts[0] if lower is None and upper is None else "{} [{}, {}]".format(*texts))


def bar(share: float, *, width: int = 10) -> str:
    """A bar whose length is a share of `width`."""
    eighths = round(8 * width * min(max(share, 0.0), 1.0))
    return (BLOCKS[8] * (eighths // 8) + BLOCKS[eighths % 8]).rstrip()


def sparkline(numbers: Sequence[float]) -> str:
    """Columns as high as these numbers against the largest; nothing but a base line for zeros."""
    top = max(numbers, default=0) or 1
    return "".join(STEPS[math.ceil(7 * number / top)] for number in numbers)


def elide(text: str, width: int) -> str:
    """`text` in at most `width` columns."""
    if text_width(text) <= width:
        return text
    text = text[: 2 * width]  # a long one is cut at once
    while text_width(text) > max(width - len(ELLIPSIS), 0):
        text = text[:-1]
    return (text + ELLIPSIS)[:width]


class TerminalColumn(Column):
    """A column as a terminal shows it. places: how many decimals its numbers have; None: as many as each needs."""

    def __init__(self, header: str, values: Sequence[Any], screen: Screen, *, places: int | None = None) -> None:
        super().__init__(header, values)
        texts = [value for value in values if isinstance(value, str)]
        self.rigid = self.numeric or any(isinstance(text, Figures) or TIME.fullmatch(text) for text in texts)
        if screen.width is not None:
            self.cells = list(map(short_times, self.cells))
        if self.numeric and places is not None:
            self.cells = ["-" if value is None else fixed(value, places) for value in values]
        self.width = self.natural
        self.coloured = screen.colour and header in VERDICTS

    @property
    def least(self) -> int:
        """The width that it needs."""
        return self.natural if self.rigid else min(self.natural, TEXT_WIDTH)

    def draw(self, text: str) -> str:
        """A text of it elided, and coloured."""
        text = elide(text, self.width)
        word = COLOURED.match(text) if self.coloured else None
        filler = FILLER * (text_width(text) - len(text))
        return filler + text if word is None else f"{filler}\x1b[{COLOURS[word[1]]}m{text}\x1b[0m"


def columns_of(view: View, named: Sequence[tuple[str, Sequence[Any]]], screen: Screen) -> list[TerminalColumn]:
    """The columns of a view. named: headers with their values."""
    if not view.fixed or screen.width is None:
        return [TerminalColumn(*pair, screen) for pair in named]
    bounded = decimals(chain(*(column for header, column in named if header in BOUNDED)))
    return [
        TerminalColumn(header, values, screen, places=bounded if header in BOUNDED else decimals(values))
        for header, values in named
    ]


def fit(columns: Sequence[TerminalColumn], width: int, drop: Sequence[str]) -> list[TerminalColumn]:
    """The columns that are shown in this width, texts among them narrower than they are."""
    shown = list(columns)
    undeclared = [column.header for column in reversed(columns[1:]) if column.header not in drop]
    for header in [*drop, *undeclared]:
        if sum(column.least for column in shown) + len(GAP) * (len(shown) - 1) <= width:
            break
        shown = [column for column in shown if column.header != header]
    excess = sum(column.width for column in shown) + len(GAP) * (len(shown) - 1) - width
    while excess > 0:
        texts = [column for column in shown if not column.rigid] or shown
        widest = max(texts, key=lambda column: column.width)
        if widest.width <= MIN_WIDTH:
            break
        widest.width -= 1
        excess -= 1
    return shown


def fold(line: str, width: int) -> str:
    """A line in this width, on several ones where it is too long."""
    text = short_times(printable(line))
    if text_width(text) <= width:
        return text + "\n"
    from textwrap import wrap

    folded = wrap(text, width, subsequent_indent=GAP, break_on_hyphens=False)
    return "".join(elide(row, width) + "\n" for row in folded)
