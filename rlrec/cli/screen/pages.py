"""The screen's pages in HTML: cached contents, and readable errors."""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from itertools import count, groupby
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast
from urllib.parse import parse_qsl

from rlrec import times
from rlrec.cli.output.tables import short_times
from rlrec.cli.program import app
from rlrec.cli.program.shared import safe
from rlrec.cli.screen.contents import MENU, NAMED, PAGES, Arguments, Content, Panel
from rlrec.cli.screen.grids import Address, Grid
from rlrec.cli.text.text import View, printable
from rlrec.errors import RlrecError, StoreBusy
from rlrec.times import format_time

if TYPE_CHECKING:
    from rlrec.report.html import Table

Value = TypeVar("Value")
N_LINES = 50  # above or below a table
REFRESH = {"": "off", "10": "10 s", "60": "60 s"}  # seconds between refreshes of a page, and their labels
RETRY_S = 5  # between refreshes of a page that the store could not provide
SHARE = 40  # an answer is kept for this many times the time it took, so that pages take a fortieth of a processor
FRESH_S = 5.0  # at least
CACHE_BYTES = 16_000_000  # of the caches of a process
OBJECT_BYTES = 4  # of memory per character of a content's repr, about


class Unready(RlrecError):
    """The store is missing, out of date or unreachable, so that no page can be made."""


class BoundedCache(Generic[Value]):
    """The newest values, as many as fit into CACHE_BYTES, and at least one."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, ...], tuple[Value, int]] = OrderedDict()
        self.n_bytes = 0

    def get(self, key: tuple[str, ...]) -> Value | None:
        return self._entries[key][0] if key in self._entries else None

    def put(self, key: tuple[str, ...], value: Value, n_bytes: int) -> None:
        """Keep a value, and drop the oldest ones that no longer fit."""
        n_bytes += sum(map(len, key))
        self.n_bytes += n_bytes - self._entries.pop(key, (None, 0))[1]
        self._entries[key] = value, n_bytes
        while self.n_bytes > CACHE_BYTES and len(self._entries) > 1:
            self.n_bytes -= self._entries.popitem(last=False)[1][1]


class WebPage(NamedTuple):
    """A page as it is sent. fresh_s: the time for which it is not made again; refresh: seconds until a browser asks
    again, "" for never."""

    status: int
    body: bytes
    location: str = ""
    fresh_s: float = 0.0
    refresh: str = ""


class Options(NamedTuple):
    """The store of the command, and how to open it."""

    db: str
    address: str
    now: int | None = None
    zone: Any = None
    waits: tuple[int | None, ...] = ()


class _CachedContent(NamedTuple):
    """A cached answer. at: when the store was read; until: when the answer expires, in the process's time."""

    content: Content
    at: str
    took_s: float
    until: float

    @property
    def fresh_s(self) -> float:
        return max(0.0, self.until - time.monotonic())


def arguments(query: str) -> dict[str, str]:
    """The arguments of an address, without a refresh that pages do not offer."""
    pairs = dict(parse_qsl(query))
    if pairs.get("refresh") not in REFRESH:
        pairs.pop("refresh", None)
    return pairs


class PageMaker:
    """Makes pages. It caches answers, so that one that took long can be sorted at once."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._answers = BoundedCache[_CachedContent]()

    def make(self, path: str, query: str) -> WebPage:
        """The page of an address; an error becomes a page, too."""
        address = Address(path, arguments(query))
        named, began = {name: address.args[name] for name in NAMED if name in address.args}, time.monotonic()
        try:
            answer = self._answer(path, named)
            if answer.content.location:
                return WebPage(303, b"", address.follow(answer.content.location))
            body = self._render(answer.content, address, answer)
        except Exception as error:
            return self._problem(error, address, 404 if named else 200, time.monotonic() - began)
        # a refresh would clear the text being typed
        refresh = "" if path == "find" else address.args.get("refresh", "")
        return WebPage(200, body, "", answer.fresh_s, refresh)

    def _answer(self, path: str, named: Arguments) -> _CachedContent:
        """The content of a page, from the cache or from the store."""
        key = (path, *(word for pair in sorted(named.items()) for word in pair))
        if (cached := self._answers.get(key)) is not None and time.monotonic() < cached.until:
            return cached
        from rlrec.app.opening import open_store

        began, notices = time.monotonic(), list[str]()
        times.zone, options = self.options.zone, self.options
        with open_store(options.db, now=options.now, notice=notices.append, waits=options.waits) as store:
            try:
                with store.read() as unit:
                    at = format_time(unit.now)
            except RlrecError as error:
                raise Unready(error.message, hint=error.hint) from error
            content = PAGES[path](store, defaultdict(str, named))
        took_s = time.monotonic() - began
        until = began + took_s + max(FRESH_S, SHARE * took_s)
        answer = _CachedContent(content._replace(notices=notices), at, took_s, until)
        self._answers.put(key, answer, OBJECT_BYTES * len(repr(content)))
        return answer

    def _problem(self, error: Exception, address: Address, status: int, took_s: float) -> WebPage:
        """A page about an error."""
        if not isinstance(error, RlrecError):
            error = RlrecError(f"unexpected {type(error).__name__}: {error}", hint="`rlrec doctor` looks closer")
            status = 500
        lines = [safe(text, self.options.db) for text in (error.message, error.hint) if text]
        refresh = address.args.get("refresh", "")
        if isinstance(error, Unready | StoreBusy):
            status, refresh = 503, str(RETRY_S)
            lines.append(f"This page comes again by itself every {RETRY_S} seconds.")
        content = Content("The store cannot be shown" if status == 503 else "Nothing to show", alerts=lines)
        return WebPage(status, self._render(content, address), "", 0.0 if status == 503 else SHARE * took_s, refresh)

    def _render(self, content: Content, address: Address, answer: _CachedContent | None = None) -> bytes:
        """The HTML of a page."""
        parts = [[*_parts(panel, f"t{number}", address)] for number, panel in enumerate(content.panels)]
        return app.html.render(
            "screen.html", title=content.title, content=content, parts=parts, address=address, made=answer,
            menu=MENU, refreshes=REFRESH, store=self.options.address, zone=self.options.zone or "UTC",
            at=None if answer is None else short_times(answer.at), **(content.report or {}),
        ).encode()  # fmt: skip


def _parts(panel: Panel, key: str, address: Address) -> Iterator[list[str] | Table]:
    """The lines and tables of a panel, from top to bottom."""
    view = panel.view
    grid, numbers = [view._replace(title=(), notes=())] if view.headers else [], count()
    for is_table, items in groupby([*view.title, *grid, *view.notes], key=lambda item: isinstance(item, View)):
        if is_table:
            for item in items:
                yield Grid(cast(View, item), f"{key}-{next(numbers)}", address, panel.places).table()
        else:
            lines = [printable(short_times(cast(str, line))) for line in items if line]
            left_out = [f"and {len(lines) - N_LINES:,} more lines"] if len(lines) > N_LINES else []
            yield [*lines[:N_LINES], *left_out]
