"""This module turns the answers of commands into records, data frames, and HTML figures and tables for notebooks."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from rlrec.cli.output import tables
from rlrec.cli.output.output import Show
from rlrec.cli.output.plain import dumps, is_record
from rlrec.cli.program import app
from rlrec.cli.text.text import Screen, View
from rlrec.errors import InputError

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

    from rlrec.report.figures import Figure

EXTRAS = {"polars": "polars"}  # library: the extra that installs it, if not `notebook`


def import_library(name: str) -> Any:
    """Import an optional library. Raises ImportError, with the command that installs the library, if it is missing."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"this needs {name}: pip install 'rlrec[{EXTRAS.get(name, 'notebook')}]'") from error


class Frame:
    """A Frame holds rows, and converts them to a data frame of Arrow, pandas or Polars. Each method raises ImportError
    if its library is not installed."""

    def to_arrow(self) -> pyarrow.Table:
        """Return the rows as a table of Arrow. A value with keys, such as a context, becomes JSON text."""
        raise NotImplementedError

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows as a data frame of pandas. Values that are records are Python objects in the frame."""
        raise NotImplementedError

    def to_polars(self) -> polars.DataFrame:
        """Return the rows as a data frame of Polars, with the columns of `to_arrow`."""
        return import_library("polars").from_arrow(self.to_arrow())


class Plot(NamedTuple):
    """A Plot is the figure of an answer, which a notebook can show.

    `svg` is a complete SVG document. `description` says in words what the figure shows."""

    svg: str
    description: str

    @classmethod
    def from_figure(cls, figure: Figure) -> Plot:
        text = app.svg.document(figure.drawing, title=figure.heading, description=figure.description)
        return cls(text, figure.description)

    def save(self, path: str) -> None:
        """Write the figure to a file in SVG, as the option `--plot` does."""
        from rlrec.cli.program.files import check_figure, write_text

        check_figure(path)
        write_text(path, self.svg)

    def _repr_html_(self) -> str:
        data = b64encode(self.svg.encode("utf-8", "backslashreplace")).decode("ascii")
        source = f"data:image/svg+xml;base64,{data}"  # an image runs no script, and its style affects nothing else
        return f'<img src="{source}" alt="{app.svg.escape(self.description)}" style="max-width:100%">'


class Display(NamedTuple):
    """A Display holds what a command says about how its answer is shown.

    `table` is the table to show, `columns` are the keys to show, and `flat` has the records of the csv. `draw` makes
    the figure of the answer, and is None if the answer has no figure."""

    table: View | None = None
    columns: Sequence[str] | None = None
    flat: Sequence[Mapping[str, Any]] | None = None
    draw: Callable[[], Figure | None] | None = None

    def text(self, answer: Any) -> str:
        """Return the answer as the text that the command prints into a pipe."""
        screen = Screen()
        return tables.view_text(self.table, screen) if self.table else tables.table_text(answer, self.columns, screen)


class Reply(Frame):
    """A Reply is the answer of a command, whose `repr` is the table that the command prints."""

    display: Display | None = None

    def __repr__(self) -> str:
        return super().__repr__() if self.display is None else self.display.text(self)

    def _repr_html_(self) -> str:
        """Return the answer as HTML for a notebook: its figure, if there is one, and its table."""
        figure = self.display.draw() if self.display and self.display.draw else None
        figure_html = "" if figure is None else Plot.from_figure(figure)._repr_html_()
        view = self.display.table if self.display else None
        return figure_html + (f"<pre>{app.svg.escape(repr(self))}</pre>" if view is None else _html_table(view))

    def plot(self, path: str | None = None) -> Plot:
        """Return the figure that `--plot` writes, in a form that a notebook shows. Raises InputError if the answer has
        nothing to plot.

        `path` is a file to which the figure is also written."""
        if self.display is None or self.display.draw is None:
            raise InputError("this answer has no figure", hint="to_pandas() makes a frame of it, which draws itself")
        if (figure := self.display.draw()) is None:
            raise InputError("the answer has nothing to plot yet")
        plot = Plot.from_figure(figure)
        if path is not None:
            plot.save(path)
        return plot

    @property
    def notes(self) -> list[str]:
        """Return the lines of text below the table of the answer."""
        table = self.display.table if self.display else None
        return [note for note in table.notes if isinstance(note, str)] if table else []

    def to_json(self) -> Any:
        """Return the answer as plain mappings and lists."""
        return json.loads(dumps(self))


class Result(Reply, dict[str, Any]):
    """A Result is a record with the keys of `--json`, which are also its attributes. Its data frame has the rows of
    `--format csv`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name} in this record: it has {', '.join(self)}") from None

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self]

    def to_arrow(self) -> pyarrow.Table:
        return self._rows().to_arrow()

    def to_pandas(self) -> pandas.DataFrame:
        return self._rows().to_pandas()

    def _rows(self) -> Records:
        table, _, flat, _ = self.display or Display()
        if flat is None and table is not None:
            flat = [dict(zip(table.headers, row, strict=True)) for row in table.rows]
        return to_records([self] if flat is None else flat)


class Records(Reply, list[Result]):
    """Records is a list of results. Its data frame has a row for each result, and a column for each key."""

    def to_arrow(self) -> pyarrow.Table:
        pa = import_library("pyarrow")
        return pa.table({name: _arrow_column(pa, [row.get(name) for row in self]) for name in self._names()})

    def to_pandas(self) -> pandas.DataFrame:
        return import_library("pandas").DataFrame(self.to_json(), columns=self._names())

    def _names(self) -> list[str]:
        columns = (self.display or Display()).columns or ()
        return list(dict.fromkeys(name for row in self for name in row) or columns)


def _arrow_column(pa: Any, values: Sequence[Any]) -> Any:
    """Return the values of a column as an Arrow array. If any value has keys, or Arrow has no common type for the
    values, all values become JSON text. `pa` is the module pyarrow."""
    if not any(isinstance(value, dict | Records) for value in values):
        try:
            return pa.array(values)
        except (ValueError, TypeError, OverflowError):
            pass
    return pa.array([None if value is None else dumps(value) for value in values], pa.string())


def to_result(answer: Any) -> Result:
    """Return an answer of one record as a Result."""
    return json.loads(dumps(answer), object_hook=_nested_result)


def to_records(answers: Iterable[Any]) -> Records:
    """Return an answer of several records as Records."""
    return Records(json.loads(dumps([*answers]), object_hook=_nested_result))


def _nested_result(values: dict[str, Any]) -> Result:
    for name, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, Result) for item in value):
            values[name] = Records(value)
    return Result(values)


class AnswerKeeper(Show):
    """An AnswerKeeper takes the place of a command's output, and keeps the answer for the program that called it."""

    answer: Result | Records | None

    def __init__(self) -> None:
        super().__init__("json")

    def __call__(
        self, result: Any, *, table: View | None = None, columns: Sequence[str] | None = None,
        flat: Iterable[Mapping[str, Any]] | None = None, lines: Iterable[Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        self.clear_progress()
        view = None if table is None else table._replace(rows=[*table.rows])
        self.answer = to_result(result) if is_record(result) else to_records(result)
        self.answer.display = Display(view, columns, None if flat is None else [*flat], self.draw)


# -- in a notebook: no text is markup --


def _html_table(view: View) -> str:
    """Return a view (a table with lines and tables above and below) as HTML."""
    head = "".join(f"<th>{app.svg.escape(header)}</th>" for header in view.headers)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in view.rows)
    rows = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return "".join([*map(_paragraph, view.title), rows, *map(_paragraph, view.notes)])


def _paragraph(content: str | View) -> str:
    return f"<p>{app.svg.escape(content)}</p>" if isinstance(content, str) else _html_table(content)


def _cell(value: object) -> str:
    side = "right" if tables.is_number(value) else "left"
    return f'<td style="text-align:{side}">{app.svg.escape(tables.cell(value))}</td>'
