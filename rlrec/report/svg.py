"""This module draws figures as SVG text. Figures are 400 units wide, so that letters of 12 units are readable on a
phone. CSS classes set the colours.

All text is escaped, even if names contain markup. The figures need no scripts and no other files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape as escape_markup
from itertools import groupby
from textwrap import wrap
from typing import NamedTuple
from unicodedata import east_asian_width

WIDTH, LEFT, RIGHT = 400, 54, 388  # of a figure, and of its plot area; up to seven letters fit on the left of it
LETTER = 6.7  # mean width of a letter
# of the first, second and third line, which colour alone should not distinguish
MARKS = ("circle", "square", "triangle")
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

# Okabe and Ito's palette, which colour-blind people can distinguish: ink, soft ink, grid, paper, three lines, doubt
PALETTES = {
    "": ("#1b1f24", "#5b6570", "#d9dee3", "#fff", "#0072b2", "#c04e00", "#00795a", "#8a939c"),
    "(prefers-color-scheme:dark)": (
        "#e8ebee", "#a9b2bb", "#3a424a", "#15191d", "#56b4e9", "#f0a15f", "#3fc79a", "#8a939c"
    ),
    "print": ("#000", "#444", "#ccc", "#fff", "#0072b2", "#c04e00", "#00795a", "#777"),
}  # fmt: skip
COLOURS = (
    ".fig text{fill:%(ink)s;stroke:%(paper)s}.fig .soft{fill:%(soft)s}.fig .grid{stroke:%(grid)s}"
    ".fig .zero,.fig .ref{stroke:%(soft)s}.fig .s1{stroke:%(first)s;fill:%(first)s}"
    ".fig .s2{stroke:%(second)s;fill:%(second)s}.fig .s3{stroke:%(third)s;fill:%(third)s}"
    ".fig .no{stroke:%(doubt)s;fill:%(doubt)s}.fig .line{fill:none}.fig .hollow,.fig .paper{fill:%(paper)s}"
)
SHAPES = (
    ".fig text{font:12px system-ui,sans-serif;paint-order:stroke;stroke-width:4px;stroke-linejoin:round}"
    ".fig .ref{stroke-dasharray:4 3}.fig .line,.fig .whisker,.fig .hollow{stroke-width:2}"
    ".fig .band{opacity:.2;stroke:none}.fig .s2.line{stroke-dasharray:7 3}.fig .s3.line{stroke-dasharray:2 3}"
)


# The style of figures on a screen, in dark mode, and on paper. Colours are literal, since editors do not know
# variables.
_NAMES = ("ink", "soft", "grid", "paper", "first", "second", "third", "doubt")
_RULES = {media: COLOURS % dict(zip(_NAMES, palette, strict=True)) for media, palette in PALETTES.items()}
STYLE = "".join(f"@media {media}{{{text}}}" if media else text for media, text in _RULES.items()) + SHAPES


class PlotPoint(NamedTuple):
    """A PlotPoint is a point of a line in a chart, with the bounds of its value. An unknown value or bound is None.

    label: the text below the axis at this point."""

    x: float
    y: float | None
    lower: float | None = None
    upper: float | None = None
    label: str = ""


class Series(NamedTuple):
    """A Series is one line of a chart, with the band between the bounds of its points.

    ring_index: the index of a point that is marked with a ring, or None."""

    name: str
    points: Sequence[PlotPoint]
    ring_index: int | None = None


class Interval(NamedTuple):
    """An Interval is a row of a forest plot: a name, and a value with its bounds.

    css_class: the CSS class that colours the row. It is `s1`, `s2` or `s3`, or `no` for a row without an answer.
    note: a text to the right of the name."""

    name: str
    value: float | None
    lower: float | None
    upper: float | None
    note: str = ""
    css_class: str = "s1"


class Bar(NamedTuple):
    """A Bar is a row of a bar chart: a name, and a value.

    tick: a second value, with which the value is compared, or None."""

    name: str
    value: float
    tick: float | None = None


class Drawing(NamedTuple):
    """A Drawing holds the content of an <svg> element, and the height of the element."""

    height: float
    marks: str


class Scale(NamedTuple):
    """A Scale maps values from `low` to `high` to places on the drawing, from `start` to `end`. A value outside this
    range is mapped to the nearest end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + min(max(share, -0.01), 1.01) * (self.end - self.start), 1)


def escape(text: str) -> str:
    """Return a text that is safe in markup: special characters are escaped, and characters that XML does not allow or
    that change the writing direction are replaced."""
    return escape_markup(UNPRINTABLE.sub("\ufffd", text))


def shorten(text: str, letters: float) -> str:
    """Return a text, cut if it is wider than `letters` ordinary letters. A wide letter counts as two."""
    widths = [1.9 if east_asian_width(letter) in "WF" else 1.0 for letter in text]
    if sum(widths) <= letters:
        return text
    total_width = 1.0
    for length, width in enumerate(widths):
        total_width += width
        if total_width > letters:
            return text[:length].rstrip() + "\u2026"
    return text


def number(value: float | None) -> str:
    """Return a number as text with three digits. The text has an exponent only if it would be long otherwise."""
    if value is None:
        return "\u2013"
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _axis_number(value: float) -> str:
    """Return a number as text for an axis. The text has at most seven letters, such as 2.5e-5 or 125k."""
    if 10_000 <= abs(value) < 1e6:
        return f"{value / 1000:.4g}k"
    mantissa, has_exponent, exponent = number(value).partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if has_exponent else mantissa


def interval(value: float | None, lower: float | None, upper: float | None, *, unit: str = "") -> str:
    """Return the text of a value and its bounds. The closer the bounds, the more digits the numbers have."""
    if lower is None and upper is None:
        return f"{number(value)}{unit}"
    if value is None or lower is None or upper is None or not 1e-9 < upper - lower < 1e6:
        return f"{number(value)}{unit} [{number(lower)}, {number(upper)}]"
    half_width = (upper - lower) / 2
    magnitude = math.floor(math.log10(half_width))
    n_decimals = max(0, (1 if half_width < 3 * 10**magnitude else 0) - magnitude)
    # so that no bound is shown as -0.0
    n_decimals += any(number and not float(f"{number:.{n_decimals}f}") for number in (value, lower, upper))
    return f"{value:,.{n_decimals}f}{unit} [{lower:,.{n_decimals}f}, {upper:,.{n_decimals}f}]"


def ticks(low: float, high: float, max_ticks: int = 5) -> list[float]:
    """Return at most `max_ticks` round numbers from `low` to `high`."""
    step = 10 ** math.floor(math.log10((high - low) / max_ticks))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (step * factor) < max_ticks)
    first_count = math.ceil(low / step - 1e-9)
    return [count * step for count in range(first_count, math.floor(high / step + 1e-9) + 1)]


def _scale(values: Iterable[float | None], start: float, end: float, *, zero: bool) -> Scale:
    """Return a scale whose range includes all these values, with margins.

    zero: whether the range is extended to 0. If no value is negative, the scale then begins at 0."""
    finite_values = [value for value in values if value is not None and math.isfinite(value)]
    low, high = (min(finite_values), max(finite_values)) if finite_values else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
    starts_at_zero, ends_at_zero = zero and low == 0, zero and high == 0 > low
    return Scale(low if starts_at_zero else low - margin, high if ends_at_zero else high + margin, start, end)


def _with_bounds(values: Sequence[tuple[float | None, float | None, float | None]]) -> list[float]:
    """Return all values and bounds in one list, to find the range of an axis. Missing ones are left out. A bound that
    lies very far from all values is replaced by a nearer number."""
    estimates = [value for value, _, _ in values if value is not None]
    if not estimates:
        return []
    half_widths = sorted((upper - lower) / 2 for _, lower, upper in values if lower is not None and upper is not None)
    margin = 3 * max(
        max(estimates) - min(estimates), half_widths[len(half_widths) // 2] if half_widths else abs(max(estimates))
    )
    low, high = min(estimates) - margin, max(estimates) + margin
    bounds = [bound for _, *row_bounds in values for bound in row_bounds if bound is not None]
    return [*estimates, *(min(max(bound, low), high) for bound in bounds)]


# -- pieces --


def _element(name: str, css_class: str, content: str | None = None, **attributes: object) -> str:
    attribute_text = "".join(f' {key.rstrip("_").replace("_", "-")}="{value}"' for key, value in attributes.items())
    start = f'<{name} class="{css_class}"{attribute_text}' if css_class else f"<{name}{attribute_text}"
    return f"{start}/>" if content is None else f"{start}>{content}</{name}>"


def text(x: float, y: float, words: str, *, anchor: str = "start", css_class: str = "", letters: float = 60) -> str:
    """Return the SVG element of a text. A text that is too long is cut, and a tooltip then has the whole text.

    x, y: the place; anchor: the part of the text at this place, `start`, `middle` or `end`; letters: the largest
    width, in letters."""
    shown_words = shorten(words, letters)
    tooltip = f"<title>{escape(words)}</title>" if shown_words != words else ""
    anchor_attribute = {} if anchor == "start" else {"text_anchor": anchor}
    return _element("text", css_class, escape(shown_words) + tooltip, x=x, y=y, **anchor_attribute)


def line(points: Sequence[tuple[float, float]], css_class: str) -> str:
    """Return the SVG element of a line through these points."""
    return _element("polyline", f"line {css_class}", points=" ".join(f"{x},{y}" for x, y in points))


def mark(x: float, y: float, shape: str, css_class: str, size: float = 3.5) -> str:
    """Return the SVG element of a mark at a place. The shape is `circle`, `square` or `triangle`."""
    if shape == "square":
        return _element("rect", css_class, x=round(x - size, 1), y=round(y - size, 1), width=2 * size, height=2 * size)
    if shape == "triangle":
        return _element("path", css_class, d=f"M{x} {y - size - 1}l{size + 1} {2 * size}h{-2 * size - 2}z")
    return _element("circle", css_class, cx=x, cy=y, r=size)


def _draw_line(x1: float, y1: float, x2: float, y2: float, css_class: str) -> str:
    return _element("line", css_class, x1=x1, y1=y1, x2=x2, y2=y2)


def _unbroken_runs(points: Sequence[PlotPoint], is_drawn: Callable[[PlotPoint], bool]) -> list[list[PlotPoint]]:
    """Return the stretches of consecutive points that are drawn, each as a list. `is_drawn` tells whether a point is
    drawn."""
    return [list(run) for is_present, run in groupby(points, key=is_drawn) if is_present]


# -- figures --


def chart(series: Sequence[Series], *, x_name: str, y_name: str, level: float | None = None) -> Drawing:
    """Return a drawing of lines, each with the band between its bounds.

    x_name, y_name: the names of the axes; level: a value that is marked by a dashed line."""
    has_legend = len(series) > 1
    top, bottom = 44 if has_legend else 28, 208
    points = [point for curve in series for point in curve.points]
    xs = _scale([point.x for point in points], LEFT + 8, RIGHT - 8, zero=False)
    xs = Scale(min(point.x for point in points), max(max(point.x for point in points), xs.low + 1e-9), *xs[2:])
    if xs.low >= xs.high:
        xs = xs._replace(low=xs.low - 1, high=xs.low + 1)
    ys = _scale([*_with_bounds([point[1:4] for point in points]), level], bottom, top, zero=True)
    marks = [text(4, 14, y_name, css_class="soft")]
    if has_legend:
        marks += _draw_legend([curve.name for curve in series])
    marks += [
        _draw_line(LEFT, ys(value), RIGHT, ys(value), "zero" if value == 0 else "grid")
        + text(LEFT - 5, ys(value) + 4, _axis_number(value), anchor="end", css_class="soft")
        for value in ticks(ys.low, ys.high)
    ]
    marks += [] if level is None else [_draw_line(LEFT, ys(level), RIGHT, ys(level), "ref")]
    marks += _draw_x_labels(max(series, key=lambda curve: len(curve.points)).points, xs, bottom)
    marks.append(text((LEFT + RIGHT) / 2, bottom + 34, x_name, anchor="middle", css_class="soft"))
    for count, curve in enumerate(series):
        marks += _draw_series(curve, xs, ys, MARKS[count % 3], f"s{count % 3 + 1}")
    return Drawing(bottom + 42, "".join(marks))


def _draw_legend(names: Sequence[str]) -> list[str]:
    width = (WIDTH - 8) / len(names)
    return [
        line([(4 + count * width, 30), (26 + count * width, 30)], f"s{count % 3 + 1}")
        + mark(15 + count * width, 30, MARKS[count % 3], f"s{count % 3 + 1}")
        + text(32 + count * width, 34, name, letters=(width - 34) / LETTER)
        for count, name in enumerate(names)
    ]


def _draw_x_labels(points: Sequence[PlotPoint], xs: Scale, bottom: float) -> list[str]:
    """Return the SVG elements of the labels below the axis. At most five points get a label, among them the last one.

    xs: the scale of the axis; bottom: the height of the axis on the drawing."""
    step = max(1, math.ceil((len(points) - 1) / 4))
    shown_points = points[(len(points) - 1) % step :: step]
    anchors = ["end" if xs(point.x) > RIGHT - 14 and len(point.label) > 4 else "middle" for point in shown_points]
    return [
        _draw_line(xs(point.x), bottom, xs(point.x), bottom + 4, "grid")
        + text(xs(point.x) + (8 if anchor == "end" else 0), bottom + 17, point.label, anchor=anchor, css_class="soft")
        for point, anchor in zip(shown_points, anchors, strict=True)
    ]


def _draw_series(series: Series, xs: Scale, ys: Scale, shape: str, css_class: str) -> list[str]:
    marks = []
    for run in _unbroken_runs(series.points, lambda point: point.lower is not None and point.upper is not None):
        edges = [(xs(x), ys(lower or 0.0), ys(upper or 0.0)) for x, _, lower, upper, _ in run]
        if len(edges) > 1:
            outline = [(x, lower) for x, lower, _ in edges] + [(x, upper) for x, _, upper in reversed(edges)]
            marks.append(_element("polygon", f"band {css_class}", points=" ".join(f"{x},{y}" for x, y in outline)))
        else:
            x, lower, upper = edges[0]
            marks.append(_draw_line(x, lower, x, upper, f"whisker {css_class}"))
    for run in _unbroken_runs(series.points, lambda point: point.y is not None):
        coordinates = [(xs(point.x), ys(point.y or 0.0)) for point in run]
        marks.append(line(coordinates, css_class))
        marks += [mark(x, y, shape, css_class, 2.5) for x, y in coordinates] if len(series.points) <= 60 else []
    if series.ring_index is not None and (y := series.points[series.ring_index].y) is not None:
        marks.append(mark(xs(series.points[series.ring_index].x), ys(y), "circle", f"hollow {css_class}", 5))
    return marks


def forest(rows: Sequence[Interval], *, x_name: str, level: float | None = None, zero: bool = False) -> Drawing:
    """Return a drawing of intervals, one below the other. The name of each interval stands above it.

    x_name: the name of the axis; level: a value that is marked by a dashed line; zero: whether the axis includes 0."""
    height, top = 36, 8
    bottom = top + height * len(rows) + 4
    xs = _scale([*_with_bounds([row[1:4] for row in rows]), level], 14, WIDTH - 14, zero=zero)
    marks = _draw_vertical_axis(xs, top, bottom, x_name)
    marks += [_draw_line(xs(level), top, xs(level), bottom, "ref")] if level else []
    for count, row in enumerate(rows):
        y = top + count * height + 27
        marks.append(_draw_row_title(row.name, row.note, y - 13))
        if row.lower is not None or row.upper is not None:
            low = xs(xs.low - 1 if row.lower is None else row.lower)
            high = xs(xs.high + 1 if row.upper is None else row.upper)
            marks.append(_draw_line(low, y, high, y, f"whisker {row.css_class}"))
            marks += [text(3, y + 4, "\u2039")] if low < xs.start else []
            marks += [text(WIDTH - 3, y + 4, "\u203a", anchor="end")] if high > xs.end else []
        if row.value is not None:
            shape = {"s1": "circle", "s2": "square", "s3": "triangle"}.get(row.css_class, "circle")
            marks.append(mark(xs(row.value), y, shape, row.css_class, 4))
    return Drawing(bottom + 42, "".join(marks))


def bars(rows: Sequence[Bar], *, x_name: str, unit: str = "") -> Drawing:
    """Return a drawing of bars, one below the other. The name and value of each bar stand above it; the tick of a bar
    is a short vertical line.

    x_name: the name of the axis; unit: the unit of the values."""
    height, top = 33, 8
    bottom = top + height * len(rows) + 4
    xs = _scale([value for row in rows for value in (row.value, row.tick)], 14, WIDTH - 14, zero=True)
    marks = _draw_vertical_axis(xs, top, bottom, x_name, unit)
    for count, row in enumerate(rows):
        y = top + count * height + 19
        marks.append(_draw_row_title(row.name, number(row.value) + unit, y - 5))
        left, right = sorted((xs(0), xs(row.value)))
        marks.append(_element("rect", "s1", x=left, y=y, width=round(right - left, 1), height=8))
        if row.tick is not None:
            marks.append(_draw_line(xs(row.tick), y - 2, xs(row.tick), y + 10, "zero whisker"))
    return Drawing(bottom + 42, "".join(marks))


def _draw_row_title(name: str, note: str, y: float) -> str:
    """Return the SVG elements of a name on the left and a note on the right."""
    n_letters = 56 - len(note)
    return text(4, y, name, letters=n_letters) + text(WIDTH - 4, y, note, anchor="end", css_class="soft")


def _draw_vertical_axis(xs: Scale, top: float, bottom: float, x_name: str, unit: str = "") -> list[str]:
    """Return the SVG elements of an axis: grid lines from `top` to `bottom`, the numbers below, and the name of the
    axis."""
    marks = []
    for value in ticks(xs.low, xs.high):
        label = number(value) + unit
        half_width = len(label) * LETTER / 2
        label_x = min(max(xs(value), half_width + 1), WIDTH - half_width - 1)
        marks.append(_draw_line(xs(value), top, xs(value), bottom, "zero" if value == 0 else "grid"))
        marks.append(text(round(label_x, 1), bottom + 15, label, anchor="middle", css_class="soft"))
    return [*marks, text(WIDTH / 2, bottom + 34, x_name, anchor="middle", css_class="soft")]


def figure(drawing: Drawing, *, key: str, title: str, description: str, attributes: str = "") -> str:
    """Return an <svg> element of a drawing, with a title and a description for screen readers.

    key: a text that no other figure of the same page has; attributes: further attributes of the element."""
    return (
        f'<svg{attributes} class="fig" viewBox="0 0 {WIDTH} {drawing.height:g}" role="img" '
        f'aria-labelledby="{key}-t {key}-d"><title id="{key}-t">{escape(title)}</title>'
        f'<desc id="{key}-d">{escape(description)}</desc>{drawing.marks}</svg>'
    )


def document(drawing: Drawing, *, title: str, description: str) -> str:
    """Return a complete SVG file of a drawing, with a title, a description and a style sheet."""
    lines = wrap(title, 58, break_on_hyphens=False)
    heading_height = 16 * len(lines) + 8
    heading = "".join(text(4, 16 + 16 * count, words, letters=62) for count, words in enumerate(lines))
    paper = _element("rect", "paper", width=WIDTH, height=drawing.height + heading_height)
    marks = f'<style>{STYLE}</style>{paper}{heading}<g transform="translate(0 {heading_height})">{drawing.marks}</g>'
    attributes = f' xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}"'
    framed_drawing = Drawing(drawing.height + heading_height, marks)
    return figure(framed_drawing, key="plot", title=title, description=description, attributes=attributes) + "\n"
