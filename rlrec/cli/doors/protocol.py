"""This module limits the connections of a uvicorn server: the size of the head of a request, the time that a connection
is idle, and the time that a client takes to read an answer."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import nullcontext, suppress
from http import HTTPStatus
from math import inf
from operator import attrgetter
from typing import Any, NamedTuple

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn import Config, Server
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

LENGTH_FIELDS = (b"content-length", b"transfer-encoding")
UNIQUE_FIELDS = (b"host", b"authorization")  # header fields that decide about access
PIECE_BYTES = 4_096  # of a client's data, parsed at a time
ARRIVAL_S = 0.1  # for data that arrived before the server was asked to end
DISCARD_S = 2.0  # in which the body of a refused request is discarded: closing at once could lose the answer


class Limits(NamedTuple):
    """The Limits of a server say how much clients may send at once, and how long they may take.

    `clients` limits the connections. `head_bytes` and `body_bytes` limit a request, `body_lines` the lines of its
    body, and `line_bytes` each line. `waiting_bytes` limits all waiting bodies together, but a body of up to
    `small_bytes` is always accepted. A connection may be idle between requests for `idle_s`, or for `short_idle_s`
    when other clients want to connect. A request must arrive within `slow_s` once it has begun, and a client must
    read an answer in the same time. When the server ends, it waits at most `drain_s` until all requests are
    answered."""

    clients: int = 512
    head_bytes: int = 32_768
    body_bytes: int = 10_000_000
    body_lines: int = 20_000
    line_bytes: int = 1_000_000
    small_bytes: int = 65_536
    waiting_bytes: int = 32_000_000
    idle_s: float = 300.0
    short_idle_s: float = 5.0
    slow_s: float = 30.0
    drain_s: float = 40.0


def refusal_body(message: str, *, code: int = 2) -> bytes:
    """Return the body of the answer to a refused request, as JSON.

    `code` is the exit code that a command would have for the same error."""
    return json.dumps({"error": message, "hint": None, "code": code}).encode() + b"\n"


class BoundedServer(Server):
    """A BoundedServer is a uvicorn server that does not handle signals; the command does. Before it ends, it answers
    all requests that have arrived."""

    capture_signals = nullcontext  # type: ignore[assignment]

    async def shutdown(self, sockets: Any = None) -> None:
        for server in self.servers:
            server.close()
        await asyncio.sleep(ARRIVAL_S)
        await super().shutdown(sockets)


class BoundedFlow(FlowControl):
    """A BoundedFlow stops reading from a client as long as data of the client wait, until earlier requests of the
    client are answered."""

    is_full = False

    def resume_reading(self) -> None:
        if not self.is_full:
            super().resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """A BoundedProtocol is the server's end of a connection with one client, with limits.

    `notice` prints a text. It is called the first time that the server has no room for another client."""

    cycle: RequestResponseCycle | None  # type: ignore[assignment]
    flow: BoundedFlow

    def __init__(self, *args: Any, limits: Limits, notice: Callable[[str], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self.limits, self.notice = limits, notice
        self.idle_since = inf  # in loop time; infinite while a request arrives or is answered
        self._n_head_bytes = 0  # of the head that is arriving, or of body bytes that are no content
        self._n_open = 0  # requests without an answer so far
        self._is_in_head, self._is_ending, self._unread_bytes = False, False, bytearray()
        self._refusal: bytes | None = None  # the answer to data that is no request
        self._current_cycle: RequestResponseCycle | None = None  # the request being answered; `cycle` is the newest one
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # -- a connection begins and ends --

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        is_full = len(self.connections) >= self.limits.clients and not self._make_room()
        super().connection_made(transport)
        self.flow = BoundedFlow(transport)
        self._wait_for_request()
        if is_full:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many clients")

    def _make_room(self) -> bool:
        """Close the connection that has been idle longest, if this time is at least `short_idle_s`. Tell whether a
        connection was closed. The first time that none can be closed, print a notice."""
        connections: Any = self.connections
        open_connections = (connection for connection in connections if not connection.transport.is_closing())
        idlest: BoundedProtocol | None = min(open_connections, key=attrgetter("idle_since"), default=None)
        if idlest is not None and self.loop.time() - idlest.idle_since >= self.limits.short_idle_s:
            idlest._close()
            return True
        state: Any = self.server_state
        if not getattr(state, "refused_for_room", False):
            state.refused_for_room = True
            self.notice(f"{self.limits.clients} clients at once: others are answered 503")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_timer(0, None)
        if self._write_timer is not None:
            self._write_timer.cancel()
        if self._current_cycle is not None and not self._current_cycle.response_complete:
            self._current_cycle.disconnected = True
            self._current_cycle.message_event.set()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Handle the end of the data that a client sends, and tell whether the connection stays open for answers. A
        connection with TLS never stays open."""
        if self.cycle is not None:
            self.cycle.keep_alive = False
            if self.cycle.more_body:
                self._refuse(HTTPStatus.BAD_REQUEST, "the body ends early")
        if self._n_open and self.scheme != "https":  # TLS has no half-closed connections
            return True
        self._close()
        return False

    def shutdown(self) -> None:
        """Close the connection once all requests that have arrived are answered."""
        self._is_ending = True
        if self._n_open:
            assert self.cycle is not None
            self.cycle.keep_alive = False
        elif not self._is_in_head:
            self._close()
            if self.scheme == "https":  # an idle client does not close its side, for which TLS would wait
                self._set_timer(DISCARD_S, self.transport.abort)

    def _close(self) -> None:
        """Close the connection once the client has read the data already written, but after `slow_s` at the latest."""
        self.transport.close()
        if self in self.connections:
            self._set_timer(self.limits.slow_s, self.transport.abort)

    # -- requests --

    def data_received(self, data: bytes) -> None:
        self._unread_bytes += data
        self._parse()

    def _parse(self) -> None:
        """Parse the data received, piece by piece, until a request must wait until an earlier request is answered."""
        while self._unread_bytes and not self.pipeline and self._refusal is None and not self.transport.is_closing():
            piece = bytes(self._unread_bytes[:PIECE_BYTES])
            del self._unread_bytes[:PIECE_BYTES]
            if self._is_in_head or (self.cycle is not None and self.cycle.more_body):
                self._n_head_bytes += len(piece)
            try:
                self.parser.feed_data(piece)
            # the parser would skip the body: it reads the request again without the upgrade
            except HttpParserUpgrade as upgrade:
                self._unread_bytes[:0] = self._head_without_upgrade() + piece[upgrade.args[0] :]
            except HttpParserError:
                self._refuse(HTTPStatus.BAD_REQUEST, "this is no request of HTTP/1.1")
            if self._n_head_bytes > self.limits.head_bytes:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too long")
        if self._refusal is not None:
            self._unread_bytes.clear()
        self.flow.is_full = bool(self._unread_bytes)
        if self.flow.is_full:
            self.flow.pause_reading()

    def _head_without_upgrade(self) -> bytes:
        """Return the head of the request, without the field that asks to change to another protocol."""
        start = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = (b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade")
        return start + b"".join(fields) + b"\r\n"

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.idle_since, self._n_head_bytes, self._is_in_head = inf, 0, True
        refusal_message = f"no request within {self.limits.slow_s:g} s"
        self._set_timer(self.limits.slow_s, lambda: self._refuse(HTTPStatus.REQUEST_TIMEOUT, refusal_message))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_head:  # a trailer comes after access has been decided
            return
        super().on_header(name, value)
        name = self.headers[-1][0]
        if name in LENGTH_FIELDS and (
            len(value) > 30 or any(header in LENGTH_FIELDS for header, _ in self.headers[:-1])
        ):
            raise ValueError("the length of the body is not clear")
        if name == b"transfer-encoding" and value.lower() != b"chunked":
            raise ValueError("another coding of the body")
        if name in UNIQUE_FIELDS and any(header == name for header, _ in self.headers[:-1]):
            raise ValueError("a field is not clear")

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.head_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too long")
            raise ValueError("what follows is not read")
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise ValueError("another version of HTTP")
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("this is no proxy")
            return
        super().on_headers_complete()  # raises for an invalid target
        assert self.cycle is not None
        self._n_head_bytes, self._is_in_head = 0, False
        self._n_open += 1
        self._set_timer(0, None)
        if self._is_ending:
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._current_cycle = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._n_head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        assert self.cycle is not None
        if self.cycle.response_complete:  # the body of a refused request, which was discarded
            self.cycle.more_body = False
            self._wait_for_request()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        cycle = self.cycle
        self._n_open -= 1
        super().on_response_complete()
        self._unset_keepalive_if_required()
        self._parse()
        self.flow.resume_reading()
        if self.transport.is_closing():
            self._close()
        elif self._n_open:
            return
        elif self._refusal is not None:
            self._end_with_refusal()
        elif cycle is not None and cycle.more_body:
            self._set_timer(DISCARD_S, self._close)
        elif not self._is_in_head:
            self._wait_for_request()

    def _wait_for_request(self) -> None:
        self.idle_since = self.loop.time()
        self._set_timer(self.limits.idle_s, self._close)

    def _set_timer(self, seconds: float, act: Callable[[], object] | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if act is None else self.loop.call_later(seconds, act)

    # -- answers --

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.limits.slow_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Send a refusal after the answers to earlier requests, and discard all further data of the client.

        `message` is the error in the body of the refusal."""
        if self._refusal is not None or self.transport.is_closing():
            return
        if self.cycle is not None and self.cycle.more_body and self.cycle.response_complete:
            self._close()  # the request has its answer already
            return
        body = refusal_body(message)
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
        retry = "retry-after: 1\r\n" if status is HTTPStatus.SERVICE_UNAVAILABLE else ""
        tail = f"{retry}content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.idle_since, self._refusal = inf, f"{head}{tail}".encode() + body
        self._set_timer(0, None)
        if self.cycle is not None and self.cycle.more_body and not self.cycle.response_complete:
            self._n_open -= 1
            self.cycle.disconnected = True  # nobody waits for the rest of its body
            self.cycle.message_event.set()
            if self.pipeline:
                self.pipeline.popleft()
        if not self._n_open:
            self._end_with_refusal()

    def _end_with_refusal(self) -> None:
        assert self._refusal is not None
        self.transport.write(self._refusal)
        with suppress(OSError, NotImplementedError):  # the client has gone; TLS has no half-closed connections
            self.transport.write_eof()
        self._unread_bytes.clear()
        self.flow.is_full = False
        self.flow.resume_reading()
        self._set_timer(DISCARD_S, self._close)


class NoticeHandler(logging.Handler):
    """A NoticeHandler is a handler of Python's logging. It passes each record from level WARNING on to `notice` as one
    line, without a traceback."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.notice = notice

    def emit(self, record: logging.LogRecord) -> None:
        self.notice(record.getMessage().strip())


def make_server(app: Any, limits: Limits, notice: Callable[[str], None], **options: Any) -> BoundedServer:
    """Return a uvicorn server for an ASGI application.

    `notice` prints a warning of the server. `options` are options of uvicorn's Config, here those for TLS."""

    def connect(*args: Any, **kwargs: Any) -> BoundedProtocol:
        return BoundedProtocol(*args, limits=limits, notice=notice, **kwargs)

    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).handlers = [NoticeHandler(notice)]
    config = Config(
        app, interface="asgi3", http=connect, ws="none", lifespan="off", loop="none", log_config=None, access_log=False,  # type: ignore[arg-type]
        server_header=False, date_header=False, proxy_headers=False,
        timeout_graceful_shutdown=round(limits.drain_s), **options,
    )  # fmt: skip
    return BoundedServer(config)
