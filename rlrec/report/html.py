"""HTML pages from templates: they load nothing, run no script, and have all text escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlrec.errors import quantity
from rlrec.report import svg
from rlrec.report.figures import Figure

FOLDER = Path(__file__).parent / "templates"
LONG = 30  # letters from which on a cell may be wrapped
CONTENT_POLICY = "default-src 'none'; style-src 'sha256-{}'; img-src data:; form-action 'self'; base-uri 'none'"


class Cell(NamedTuple):
    """A cell of a table, or a header. look: its class in style.css; href: the link of its text; order: by which a table
    is sorted by this header's column; is_chosen: whether the link is that of the active filter."""

    text: str
    look: str = ""
    href: str = ""
    order: str = ""
    is_chosen: bool = False


class Table(NamedTuple):
    """A table. key: its anchor; filters: links to some of its rows; extent: text on which rows are shown; turns: links
    to the others."""

    headers: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    key: str = ""
    filters: Sequence[Cell] = ()
    extent: str = ""
    turns: Sequence[Cell] = ()


class Section(NamedTuple):
    """A part of a page. remarks: above its figures; lines: below them; details: lines that a click on the summary
    shows; tables: with their names."""

    figures: Sequence[Figure] = ()
    remarks: Sequence[str] = ()
    lines: Sequence[str] = ()
    summary: str = ""
    details: Sequence[str] = ()
    tables: Sequence[tuple[str, Table]] = ()

    @property
    def is_shown(self) -> bool:
        return any((self.figures, self.remarks, self.lines, self.details, self.tables))


def plain_text(value: Any) -> str:
    """A text unchanged, or a number in three digits."""
    return value if isinstance(value, str) else svg.number(value)


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], text: Callable[[Any], str] = plain_text) -> Table:
    """A table of these values. text: formats a value."""
    numeric = [all(isinstance(row[column], int | float | None) for row in rows) for column in range(len(headers))]
    looks = ["n" if is_numeric else "" for is_numeric in numeric]
    return Table(
        [Cell(name, look) for name, look in zip(headers, looks, strict=True)],
        [[_cell(value, look, text) for value, look in zip(row, looks, strict=True)] for row in rows],
    )


def _cell(value: Any, look: str, text: Callable[[Any], str]) -> Cell:
    words = text(value)
    return Cell(words, look or ("w" if len(words) > LONG else ""))


def _drawing(figure: Figure, key: str) -> Markup:
    return Markup(svg.figure(figure.drawing, key=key, title=figure.title, description=figure.description))


def _plain(value: Any) -> Any:
    """The value without characters that change the writing direction, or that markup does not allow."""
    return svg.UNPRINTABLE.sub("\ufffd", value) if type(value) is str else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, finalize=_plain,
        trim_blocks=True, lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    style = (FOLDER / "style.css").read_text() + svg.STYLE
    digest = b64encode(sha256(style.encode()).digest()).decode()
    environment.filters |= {"quantity": quantity, "data": lambda figure: table(figure.headers, figure.rows)}
    content_policy = CONTENT_POLICY.format(digest)
    environment.globals |= {"style": Markup(style), "drawing": _drawing, "content_policy": content_policy}
    return environment


def render(template: str, **values: Any) -> str:
    """The text of a template, filled with these values."""
    return _environment().get_template(template).render(values)
