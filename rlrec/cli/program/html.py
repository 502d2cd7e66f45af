"""Answers in a notebook: their figures and tables as HTML, in which no text is markup."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, NamedTuple

from rlrec.cli.output import tables
from rlrec.cli.program import app
from rlrec.cli.program.files import write_text
from rlrec.cli.text.text import View

if TYPE_CHECKING:
    from rlrec.report.figures import Figure


class Plot(NamedTuple):
    """The figure of an answer, which a notebook shows. svg: a document of its own; description: in words."""

    svg: str
    description: str

    @classmethod
    def from_figure(cls, figure: Figure) -> Plot:
        text = app.svg.document(figure.drawing, title=figure.heading, description=figure.description)
        return cls(text, figure.description)

    def save(self, path: str) -> None:
        """Write the figure to a file, as `--plot` does."""
        write_text(path, self.svg)

    def _repr_html_(self) -> str:
        data = b64encode(self.svg.encode("utf-8", "backslashreplace")).decode("ascii")
        source = f"data:image/svg+xml;base64,{data}"  # an image runs no script, and its style is its own
        return f'<img src="{source}" alt="{app.svg.escape(self.description)}" style="max-width:100%">'


def table(view: View) -> str:
    """A table with the lines above it and below, and their tables."""
    head = "".join(f"<th>{app.svg.escape(header)}</th>" for header in view.headers)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in view.rows)
    rows = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return "".join([*map(_paragraph, view.title), rows, *map(_paragraph, view.notes)])


def plain(text: str) -> str:
    """A text whose lines and spaces stay as they are."""
    return f"<pre>{app.svg.escape(text)}</pre>"


def _paragraph(content: str | View) -> str:
    return f"<p>{app.svg.escape(content)}</p>" if isinstance(content, str) else table(content)


def _cell(value: object) -> str:
    side = "right" if tables.is_number(value) else "left"
    return f'<td style="text-align:{side}">{app.svg.escape(tables.cell(value))}</td>'
