"""This module makes the tables of the screen. Links sort a table, filter it and turn its pages; each leads to the same
page of the screen with other arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

from rlrec.cli.output.tables import cell, is_number, short_times
from rlrec.cli.program import app
from rlrec.cli.text.text import View

if TYPE_CHECKING:
    from rlrec.report.html import Cell, Table

N_ROWS = 100  # rows of a table on one page
N_VALUES = range(2, 9)  # distinct values of a column that can be filtered by
FILTER_COLUMNS = ("status", "kind", "live", "policy", "experiment", "unit", "severity", "check", "reward")
PAGE_ROW = "(page)"  # in the column of arms, for a row about the whole slate


def page_address(prefix: str, value: object) -> str:
    """Return the relative address of the page about a value, such as a policy.

    `prefix` is the address of such pages without the value, such as `policy?name=`."""
    return f"{prefix}{quote(str(value), safe='')}"


class Address(NamedTuple):
    """An Address is the path and the arguments of a page, from which the links on the page are made."""

    path: str
    args: Mapping[str, str]

    def change(self, anchor: str = "", **changes: str) -> str:
        """Return the address of the same page with changed arguments. Arguments without a value are left out. If the
        page refreshes itself, the address has no anchor, since a browser would jump to the anchor at each refresh."""
        anchor = "" if self.args.get("refresh") else anchor
        args = {name: value for name, value in {**self.args, **changes}.items() if value}
        return f"{self.path or '.'}?{urlencode(args)}{anchor and '#'}{anchor}"

    def follow(self, prefix: str) -> str:
        """Return the address of another page, with the refresh interval of this page.

        `prefix` is the address of the other page."""
        refresh = self.args.get("refresh")
        return f"{prefix}{'&' if '?' in prefix else '?'}refresh={refresh}" if refresh else prefix


class Grid:
    """A Grid is one table of a page, with links that sort it, filter it and show further rows.

    `key` is the anchor of the table, and the suffix of the arguments about this table. `places` says to which page
    the values of a column link, by the header of the column."""

    def __init__(self, view: View, key: str, address: Address, places: Mapping[str, str]) -> None:
        self.headers, self.rows = [*view.headers], [[*row] for row in view.rows]
        self.key, self.address, self.places = key, address, places
        # a row without a first cell belongs to the one above, and stays below it
        self.is_grouped = any(row[0] in (None, "") for row in self.rows)
        self.sort, self.only = ("" if self.is_grouped else self._argument(name) for name in ("sort", "only"))
        start = self._argument("from")
        self.start = int(start[:9]) if start.isdecimal() else 0

    def table(self) -> Table:
        """Return the table, with the rows that the arguments of the page select."""
        filters = self._filters() if self.rows and not self.is_grouped else []
        rows = self._sort_rows([row for row in self.rows if not self.only or self._passes_filter(row)])
        page_rows = rows[self.start : self.start + N_ROWS]
        table = app.html.table(self.headers, page_rows, _cell_text)
        page_links = self._page_links(len(rows))
        return table._replace(
            headers=[*map(self._header, table.headers)], key=self.key, filters=filters, page_links=page_links,
            rows=[[*map(self._link, self.headers, *pair)] for pair in zip(page_rows, table.rows, strict=True)],
            extent=f"rows {self.start + 1:,} to {self.start + len(page_rows):,} of {len(rows):,}" if page_links else "",
        )  # fmt: skip

    def _argument(self, name: str) -> str:
        return self.address.args.get(f"{name}-{self.key}", "")

    def _change(self, **changes: str) -> str:
        """Return the address of the page with another sort column, filter or first row of this table.

        `changes` are the new arguments by name, without the suffix that stands for this table."""
        args = {f"{name}-{self.key}": value for name, value in {"from": "", **changes}.items()}
        return self.address.change(self.key, **args)

    def _passes_filter(self, row: Sequence[Any]) -> bool:
        """Tell whether a row has the value by which the table is filtered."""
        name, _, value = self.only.partition(":")
        return name not in self.headers or cell(row[self.headers.index(name)]) == value

    def _filters(self) -> list[Cell]:
        """Return a link for each value by which the table can be filtered. The link of the chosen value removes the
        filter."""
        columns = zip(self.headers, zip(*self.rows, strict=True), strict=True)
        choices = ((name, sorted({*map(cell, values)})) for name, values in columns if name in FILTER_COLUMNS)
        pairs = [
            f"{name}:{value}"
            for name, values in choices
            if len(values) in N_VALUES and len(values) < len(self.rows)
            for value in values
        ]
        return [
            app.html.Cell(
                pair.replace(":", " ", 1), href=self._change(only="" if pair == self.only else pair),
                is_chosen=pair == self.only,
            )
            for pair in pairs
        ]  # fmt: skip

    def _sort_rows(self, rows: list[list[Any]]) -> list[list[Any]]:
        """Return the rows, sorted by the column that the arguments of the page name. Rows without a value in this
        column come last."""
        name = self.sort.removeprefix("-")
        if name not in self.headers:
            return rows
        column = self.headers.index(name)
        sorted_rows = [row for row in rows if row[column] is not None]
        sorted_rows.sort(key=lambda row: _sort_key(row[column]), reverse=self.sort.startswith("-"))
        return [*sorted_rows, *(row for row in rows if row[column] is None)]

    def _header(self, header: Cell) -> Cell:
        """Return a header with a link that sorts the table by the column. If the table is already sorted by the column,
        the link reverses the order."""
        name = header.text
        if self.is_grouped or not name or len(self.rows) < 2:
            return header
        order = {name: "ascending", f"-{name}": "descending"}.get(self.sort, "")
        return header._replace(href=self._change(sort=f"-{name}" if order == "ascending" else name), order=order)

    def _link(self, header: str, value: Any, plain_cell: Cell) -> Cell:
        """Return a cell of the table. If the column links to pages, the cell has a link to the page about its value.

        `header` is the header of the column, `value` the value of the cell, `plain_cell` the cell without a link."""
        if value is None:
            return plain_cell._replace(text="") if self.is_grouped else plain_cell
        if header not in self.places or value == PAGE_ROW:
            return plain_cell
        return plain_cell._replace(href=self.address.follow(page_address(self.places[header], value)))

    def _page_links(self, n_rows: int) -> list[Cell]:
        """Return links to the rows before and after the rows that are shown.

        `n_rows` counts all rows that pass the filter."""
        steps = (("the rows before", max(self.start - N_ROWS, 0)), ("the next rows", self.start + N_ROWS))
        return [
            app.html.Cell(text, href=self._change(**{"from": str(start) if start else ""}))
            for text, start in steps
            if start < n_rows and start != self.start
        ]


def _sort_key(value: Any) -> tuple[bool, float, str]:
    """Return a sort key by which numbers in order of size come before texts in alphabetical order."""
    return (False, value, "") if is_number(value) else (True, 0.0, cell(value).casefold())


def _cell_text(value: Any) -> str:
    """Return a value as the text that a table on a terminal shows."""
    return short_times(cell(value))
