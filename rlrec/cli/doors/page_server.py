"""This module serves the pages of the screen. Two other processes make the pages, so that clients of the store never
wait for a page."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

from rlrec import times
from rlrec.cli import GC_THRESHOLD
from rlrec.cli.doors.web import SCREEN_PATH, Access, RefusedRequest, Response, method_refusal
from rlrec.cli.program import app
from rlrec.cli.program.shared import Store, current_settings
from rlrec.cli.screen.contents import (
    MIN_FRESH_S,
    PAGES,
    SLOW_PAGES,
    BoundedCache,
    PageMaker,
    StoreOptions,
    WebPage,
    parse_arguments,
)

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable as Receive
    from uvicorn._types import ASGISendCallable as Send
    from uvicorn._types import HTTPScope as Scope

MAX_ADDRESS_BYTES = 4_096  # of the arguments of an address, at most: links of the page repeat them
WAITING_TEXT = "These figures are being worked out. This page comes again by itself until they are there."
OLDER_TEXT = b"Older figures: newer ones are being worked out. This page comes again by itself until they are there."
CONTENT_START = b'<main id="content">'  # begins the content of a page
ENDED_TEXT = "The process that made this page has ended. Load the page again to have another one try."
MAX_AGE_S = 600  # age from which an older page is no longer shown
MAX_WAITING = 16  # pages that are being made or wait for it, at most
PATIENCE_S = 1.5  # until a client gets a page that says that the wanted one is being made
WAITING_S = "2"  # after which a browser asks for it again
LOCK_US = RECONNECT_US = 2_000_000
NICENESS = 5  # niceness of the processes
HEADERS = [  # of every page: no frames, no caching, no referrer
    (b"cache-control", b"no-store"), (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"), (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]  # fmt: skip


def page_options(store: Store) -> StoreOptions:
    """Return the options with which pages open the store of a command. By default a page waits 2 s for a lock."""
    url, options = store.url.render_as_string(hide_password=False), current_settings()
    lock = LOCK_US if options.lock_timeout is None else options.lock_timeout
    waits = lock, options.statement_timeout, RECONNECT_US if options.reconnect is None else options.reconnect
    return StoreOptions(url, store.address, store.now, times.zone, waits)


def _make_pages(connection: Connection, options: StoreOptions) -> None:
    """Make the pages that a server asks for through a connection, until the server ends. A page process runs this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes of a group
    os.nice(NICENESS)
    gc.set_threshold(GC_THRESHOLD)
    maker = PageMaker(options)
    with suppress(EOFError, OSError):
        while True:
            connection.send(maker.make(*connection.recv()))


class PageProcess:
    """A PageProcess is a process that makes pages one after another. The process starts when a page is first needed,
    and again if it has died."""

    def __init__(self, options: StoreOptions) -> None:
        self.options = options
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pages")
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def submit(self, path: str, query: str) -> Future[WebPage]:
        """Return a future for the page of an address. Pages are made in the order in which they were submitted."""
        return self._thread.submit(self._make, path, query)

    def _make(self, path: str, query: str) -> WebPage:
        if self._process is None:
            context = get_context("spawn")
            self._connection, far_end = context.Pipe()
            self._process = context.Process(target=_make_pages, args=(far_end, self.options), daemon=True)
            self._process.start()
            far_end.close()
        assert self._connection is not None
        try:
            self._connection.send((path, query))
            page: WebPage = self._connection.recv()
        except (EOFError, OSError):
            self._process = None
            raise
        return page

    def close(self) -> None:
        """Kill the process at once. Nothing is lost, since the process only reads the store."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if (process := self._process) is not None:
            process.kill()


class _CachedPage(NamedTuple):
    """A _CachedPage holds a page as it was last made.

    `until` is the time up to which the page counts as fresh. `shown_until` is the time up to which it may be shown
    with a note that it is older."""

    page: WebPage
    until: float
    shown_until: float


class PageServer:
    """A PageServer answers requests for pages of the screen. A quick page never waits for a slow one. If a page is not
    ready soon, the answer is an earlier copy of it, or a page that says that the figures are being worked out."""

    def __init__(self, options: StoreOptions) -> None:
        self._lanes = {is_slow: PageProcess(options) for is_slow in (False, True)}
        self._cache = BoundedCache[_CachedPage]()
        self._tasks: dict[tuple[str, str], asyncio.Future[WebPage]] = {}
        self._waiting_page = WebPage(HTTPStatus.OK, _message_page(WAITING_TEXT), refresh=WAITING_S)
        self._ended_page = WebPage(HTTPStatus.INTERNAL_SERVER_ERROR, _message_page(ENDED_TEXT), fresh_s=MIN_FRESH_S)

    async def respond(self, scope: Scope) -> Response:
        """Return the answer to a request for a page. Raises RefusedRequest if no page has this address, if the address
        is too long, or if the method is not GET or HEAD."""
        path = scope["path"].removeprefix(SCREEN_PATH)
        if scope["method"] not in ("GET", "HEAD"):
            raise method_refusal("GET, HEAD", "pages are read by GET")
        if not path.startswith("/") or scope["path"] == "/":
            return _response(WebPage(HTTPStatus.SEE_OTHER, b"", _home_address(scope)))
        if path[1:] not in PAGES:
            raise RefusedRequest(HTTPStatus.NOT_FOUND, f"no such page; the first one is {SCREEN_PATH}/")
        if len(scope["query_string"]) > MAX_ADDRESS_BYTES:
            raise RefusedRequest(HTTPStatus.REQUEST_URI_TOO_LONG, f"an address has at most {MAX_ADDRESS_BYTES:,} bytes")
        args = parse_arguments(scope["query_string"].decode("latin-1"))
        return _response(await self._page(path[1:], urlencode(args)))

    def refuse(self, scope: Scope, refusal: RefusedRequest) -> Response:
        """Return the answer to a refused request. The answer is a page if a browser asked for a page."""
        response = refusal.response()
        if b"text/html" not in dict(scope["headers"]).get(b"accept", b""):
            return response
        return _response(WebPage(response.status, _message_page(str(refusal), _home_address(scope))), response.headers)

    async def _page(self, path: str, query: str) -> WebPage:
        """Return a page from the cache if the cached page is fresh, else make the page now. If this takes longer than
        PATIENCE_S, or if too many pages are being made, return the cached page with a note that it is older. Without a
        cached page, return the page that asks to wait."""
        key = path, query
        entry = self._cache.get(key)
        if entry is not None and time.monotonic() < entry.until:
            return entry.page
        is_shown = entry is not None and entry.page.status == HTTPStatus.OK and time.monotonic() < entry.shown_until
        fallback = _mark_older(entry.page) if entry is not None and is_shown else self._waiting_page
        if key not in self._tasks:
            if len(self._tasks) >= MAX_WAITING:
                return fallback
            self._tasks[key] = asyncio.ensure_future(self._make(path, query))
        done, _ = await asyncio.wait([self._tasks[key]], timeout=PATIENCE_S)
        return done.pop().result() if done else fallback

    async def _make(self, path: str, query: str) -> WebPage:
        key = path, query
        try:
            page = await asyncio.wrap_future(self._lanes[path in SLOW_PAGES].submit(path, query))
        except (EOFError, OSError):  # the process was killed, for lack of memory say
            page = self._ended_page._replace(refresh=parse_arguments(query).get("refresh", ""))
        finally:
            del self._tasks[key]
        now = time.monotonic()
        self._cache.put(key, _CachedPage(page, now + page.fresh_s, now + MAX_AGE_S), len(page.body))
        return page

    def close(self) -> None:
        for lane in self._lanes.values():
            lane.close()


class ScreenApplication:
    """A ScreenApplication is an ASGI application that serves only the screen."""

    def __init__(self, pages: PageServer, access: Access) -> None:
        self.pages, self.access = pages, access

    async def application(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as an ASGI application does."""
        try:
            self.access.check(scope)
            response = await self.pages.respond(scope)
        except RefusedRequest as refusal:
            response = self.pages.refuse(scope, refusal)
        await response.send(send)


def _home_address(scope: Scope) -> str:
    """Return the address of the overview page, relative to the address of the request. An absolute address might be
    wrong, since a proxy may have removed the beginning of the path."""
    return f"{'../' * (scope['path'].count('/') - 1)}{SCREEN_PATH[1:]}/"


def _message_page(text: str, home: str = ".") -> bytes:
    """Return the HTML of a page that shows only a text.

    `home` is the address of the overview page."""
    return app.html.render("waiting.html", title="rlrec", text=text, home=home).encode()


def _mark_older(page: WebPage) -> WebPage:
    """Return a page with a note that it is older. The browser asks for the page again after a short time."""
    mark = b'%b<div class="alert" role="status"><p>%b</p></div>' % (CONTENT_START, OLDER_TEXT)
    return page._replace(body=page.body.replace(CONTENT_START, mark, 1), refresh=WAITING_S)


def _response(page: WebPage, more_headers: Sequence[tuple[bytes, bytes]] = ()) -> Response:
    headers = [*HEADERS, *more_headers, *([(b"refresh", page.refresh.encode())] if page.refresh else [])]
    headers += [(b"location", page.location.encode())] if page.location else []
    return Response(page.body, page.status, b"text/html; charset=utf-8", headers=headers)
