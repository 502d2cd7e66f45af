"""This module answers the HTTP requests to `rlrec serve`. Some paths take requests and feedback, one or many lines at a
time. Others give the health, the metrics and the API description."""

from __future__ import annotations

import asyncio
import hmac
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rlrec.cli.doors import ofrep, openapi
from rlrec.cli.doors.protocol import Limits, refusal_body
from rlrec.cli.doors.writer import GROUP_BYTES, GROUP_LINES, AnsweredLines, NumberedLines, SharedWriter
from rlrec.cli.text.lines import groups
from rlrec.records import Record

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable as Receive
    from uvicorn._types import ASGISendCallable as Send
    from uvicorn._types import HTTPScope as Scope

    from rlrec.cli.doors.metrics import Metrics

NDJSON, JSON = b"application/x-ndjson", b"application/json"
LINE_PATHS, SINGLE_PATHS = ("/v1/pipe", "/pipe", "/"), ("/v1/recommend", "/v1/feedback")
DISCARD_FACTOR = 4  # times the longest body: how much a client may send before it is told that the body is too long
READ_PATHS = ("/healthz", "/metrics", "/openapi.json")
ADDRESS_LIST = (
    f"POST to {', '.join((*SINGLE_PATHS, LINE_PATHS[0], f'{ofrep.FLAGS_PATH}/KEY'))}; GET {', '.join(READ_PATHS)}"
)
STATUS_OF_CODE = {2: 400, 3: 409, 4: 503, 5: 400, 6: 409}  # by exit code; 500 for the others
OPEN_PATHS = ("/healthz",)  # paths that need no token
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
FRAME_ELEMENTS = (
    b"iframe",
    b"frame",
    b"embed",
    b"object",
)  # elements in which a page of another site could embed the screen
SCREEN_PATH = "/screen"  # prefix of the paths of pages for people


class Access(Record):
    """An Access object holds the rules by which a server refuses requests.

    `token` must be sent in `Authorization: Bearer`, unless it is None. `hosts` are the host names to which a request
    may be addressed, or None if any name will do."""

    token: bytes | None = None
    hosts: Sequence[str] | None = None

    def check(self, scope: Scope) -> None:
        """Raise RefusedRequest if a request breaks the rules."""
        headers = dict(scope["headers"])
        if b"origin" in headers:  # otherwise any page in a browser on this machine could write to the store
            raise RefusedRequest(HTTPStatus.FORBIDDEN, "pages in browsers are not served")
        if self.hosts is not None:
            host = headers.get(b"host", b"").decode("latin-1")
            name, _, port = host.rpartition(":")
            name = (name if port.isdigit() else host).removesuffix(".")
            if name.lower() not in map(str.lower, self.hosts):
                message = f"this server is not {name}: give it --host" if name else "a request needs the field Host"
                raise RefusedRequest(HTTPStatus.MISDIRECTED_REQUEST, message)
        is_screen = is_for_screen(scope)
        is_embedded = headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin")
        is_link = headers.get(b"sec-fetch-mode") == b"navigate" and headers.get(b"sec-fetch-dest") not in FRAME_ELEMENTS
        if is_screen and is_embedded and not is_link:
            raise RefusedRequest(HTTPStatus.FORBIDDEN, "other sites may link to these pages, and may not embed them")
        if self.token is None or scope["path"] in OPEN_PATHS:
            return
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        scheme = scheme.lower()
        if scheme == b"basic" and is_screen:  # browsers ask for the token as a password
            with suppress(ValueError):
                scheme, token = b"bearer", b64decode(token).partition(b":")[2]
        if scheme != b"bearer" or not hmac.compare_digest(token.strip(), self.token):
            message = f"{'this is not the token' if token else 'a token is needed'}: Authorization: Bearer TOKEN"
            message += ", or in a browser as password, with any name" if is_screen else ""
            challenge = b'Basic realm="rlrec: the token is the password", charset="UTF-8"' if is_screen else b"Bearer"
            raise RefusedRequest(HTTPStatus.UNAUTHORIZED, message, [(b"www-authenticate", challenge)])


def is_for_screen(scope: Scope) -> bool:
    """Tell whether a request is for a page of the screen."""
    return scope["path"] == SCREEN_PATH or scope["path"].startswith(f"{SCREEN_PATH}/")


class PageSource(Protocol):
    """A PageSource makes the pages of the screen, and the pages that say why a request is refused."""

    async def respond(self, scope: Scope) -> Response: ...

    def refuse(self, scope: Scope, refusal: RefusedRequest) -> Response: ...


class RefusedRequest(Exception):
    """A RefusedRequest error refuses a request with an HTTP status and a reason.

    `headers` are further headers of the answer."""

    def __init__(self, status: int, reason: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(reason)
        self.status, self.headers = status, headers

    def response(self) -> Response:
        response = _json_response(self.status, refusal_body(str(self)))
        return response._replace(headers=[*response.headers, *self.headers])


def method_refusal(methods: str, reason: str) -> RefusedRequest:
    """Return the error for a request whose method is not allowed for its path.

    `methods` lists the methods that are allowed, and `reason` says what is wrong."""
    return RefusedRequest(HTTPStatus.METHOD_NOT_ALLOWED, reason, [(b"allow", methods.encode())])


class Response(NamedTuple):
    """A Response is the answer of the server to a request.

    `body` is the answer, or its first piece. `later_pieces` yields the other pieces, and is None if there are none.
    `headers` are the headers besides the type and the length of the content."""

    body: bytes
    status: int = 200
    media_type: bytes = JSON
    later_pieces: AsyncIterator[bytes] | None = None
    headers: Sequence[tuple[bytes, bytes]] = ()

    async def send(self, send: Send) -> None:
        """Send the answer to the client.

        `send` is the function that ASGI gives to the application."""
        headers = [(b"content-type", self.media_type), *self.headers]
        if self.later_pieces is None:
            headers.append((b"content-length", str(len(self.body)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers, "trailers": False})
        await send({"type": "http.response.body", "body": self.body, "more_body": self.later_pieces is not None})
        if self.later_pieces is not None:
            async for piece in self.later_pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


@dataclass(kw_only=True, eq=False)
class WebApplication:
    """A WebApplication is the ASGI application of `rlrec serve`. It passes lines to a writer.

    `waiting_bytes` is the size of all bodies that are not yet answered. `n_clients` is a function that returns the
    number of connections. `screen` makes the pages of the screen, and is None if the server has no screen."""

    writer: SharedWriter
    limits: Limits
    access: Access
    meter: Metrics
    screen: PageSource | None = None
    n_clients: Callable[[], int] = lambda: 0
    waiting_bytes: int = 0

    async def application(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as an ASGI application does."""
        try:
            self.access.check(scope)
            response = await self._respond(scope, receive)
        except RefusedRequest as refusal:
            response = refusal.response()
            if self.screen is not None and is_for_screen(scope):
                response = self.screen.refuse(scope, refusal)
        except Exception as error:
            failure = self.writer.failure(error)
            self.writer.pipe.store.notice(failure.message)
            response = _json_response(
                STATUS_OF_CODE.get(failure.code, 500), refusal_body(failure.message, code=failure.code)
            )
        await response.send(send)

    async def _respond(self, scope: Scope, receive: Receive) -> Response:
        path, method = scope["path"], scope["method"]
        is_flag = path.startswith(f"{ofrep.FLAGS_PATH}/")
        if is_flag or path in LINE_PATHS or path in SINGLE_PATHS:
            if method != "POST":
                reason = ADDRESS_LIST if path == "/" else f"POST to {path}"
                raise method_refusal("POST", reason)
            body = await self._read_body(scope, receive)
            if path in LINE_PATHS:
                return await self._answer_lines(body)
            if is_flag:
                return await self._answer_flag(path.removeprefix(f"{ofrep.FLAGS_PATH}/"), body)
            return _line_response(await self._ask_writer(path.removeprefix("/v1/"), body))
        if self.screen is not None and is_for_screen(scope):
            return await self.screen.respond(scope)
        if path not in READ_PATHS:
            raise RefusedRequest(HTTPStatus.NOT_FOUND, ADDRESS_LIST)
        if method not in ("GET", "HEAD"):
            raise method_refusal("GET, HEAD", f"{path} is read by GET")
        if path == "/metrics":
            return Response(await self.meter.text(), media_type=b"text/plain; version=0.0.4; charset=utf-8")
        return await self._health() if path == "/healthz" else Response(openapi.description_json())

    # -- lines --

    async def _answer_lines(self, body: bytes) -> Response:
        """Return the answers to the lines of a body. The lines are answered one group at a time."""
        later_groups = groups(BytesIO(body), size=GROUP_LINES, eager=False, flush=True, n_bytes=GROUP_BYTES)
        with self._count_bytes(len(body)):
            first_group, second_group = next(later_groups, []), next(later_groups, None)
            answers = await self.writer.submit(first_group)
        if second_group is None:
            return _json_response(_http_status(answers), answers.text, NDJSON)
        later_answers = self._later_answers(answers, second_group, later_groups, len(body))
        return Response(answers.text, _http_status(answers), NDJSON, later_answers)

    async def _later_answers(
        self, answers: AnsweredLines, lines: NumberedLines | None, later_groups: Iterator[NumberedLines], n_bytes: int
    ) -> AsyncIterator[bytes]:
        """Yield the answers to a long body after the answers to its first group of lines. Each group is handed to the
        process that writes to the store when the answers to the group before are sent.

        `answers` has the answers to the first group, `lines` is the second group, or None without one, and
        `later_groups` yields all further groups. `n_bytes` is the size of the body."""
        with self._count_bytes(n_bytes):
            while lines is not None:
                answers = await self.writer.submit(lines, previous=answers)
                yield answers.text
                lines = next(later_groups, None)

    async def _answer_flag(self, key: str, body: bytes) -> Response:
        """Return the answer to the evaluation of an OpenFeature flag, with the arms that a policy or a route drew."""
        try:
            line = ofrep.request_line(key, body)
        except ofrep.InvalidContext as invalid:
            return Response(invalid.body(key), HTTPStatus.BAD_REQUEST)
        answers = await self._ask_writer("recommend", line)
        if answers.error is not None:
            return _line_response(answers)
        status, text = ofrep.flag_answer(key, json.loads(answers.text))
        return Response(text, status)

    async def _ask_writer(self, op: str, body: bytes) -> AnsweredLines:
        """Send one line to the writer, and return its answer.

        `body` is the JSON object of the line without its field `op`."""
        with self._count_bytes(len(body)):
            return await self.writer.submit([(1, _pipe_line(op, body))])

    @contextmanager
    def _count_bytes(self, n_bytes: int) -> Iterator[None]:
        self.waiting_bytes += n_bytes
        try:
            yield
        finally:
            self.waiting_bytes -= n_bytes

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body of a request. Raises RefusedRequest if the body has no length, comes too slowly, ends early
        or is too large, or if too many bytes already wait."""
        limits, headers = self.limits, dict(scope["headers"])
        length = headers.get(b"content-length")
        if length is None and b"transfer-encoding" not in headers:
            raise RefusedRequest(HTTPStatus.LENGTH_REQUIRED, "a body needs Content-Length, or chunks")
        if int(length or 0) > limits.body_bytes and b"expect" not in headers:
            await self._discard(receive)
        self._check_size(int(length or 0))
        body, is_last_block = bytearray(), False
        try:
            async with asyncio.timeout(limits.slow_s):
                while not is_last_block:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise RefusedRequest(HTTPStatus.BAD_REQUEST, "the client has gone")
                    block, is_last_block = message["body"], not message["more_body"]
                    size = len(body) + len(block)
                    self._check_size(size)
                    if size > limits.small_bytes and self.waiting_bytes + len(block) > limits.waiting_bytes:
                        raise RefusedRequest(HTTPStatus.SERVICE_UNAVAILABLE, "too much waits to be stored; try again")
                    self.waiting_bytes += len(block)
                    body += block
        except TimeoutError:
            raise RefusedRequest(HTTPStatus.REQUEST_TIMEOUT, f"no request within {limits.slow_s:g} s") from None
        finally:
            self.waiting_bytes -= len(body)
        if len(body) > limits.line_bytes:
            self._check_size(len(body), line_bytes=max(map(len, body.split(b"\n"))))
        self._check_size(len(body), n_lines=body.count(b"\n"))
        return bytes(body)

    async def _discard(self, receive: Receive) -> None:
        """Read and drop what a client still sends of a refused body, up to a limit of size and time. Many clients read
        no answer before they have sent the whole body."""
        left_bytes = DISCARD_FACTOR * self.limits.body_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(self.limits.slow_s):
                while (
                    left_bytes > 0 and (message := await receive())["type"] == "http.request" and message["more_body"]
                ):
                    left_bytes -= len(message["body"])

    def _check_size(self, n_bytes: int, *, n_lines: int = 0, line_bytes: int = 0) -> None:
        """Raise RefusedRequest if a body has too many bytes or lines, or too long a line.

        `line_bytes` is the length of the longest line."""
        limits = self.limits
        for number, limit, message in (
            (n_bytes, limits.body_bytes, "a body has at most {:,} bytes"),
            (n_lines, limits.body_lines, "a body has at most {:,} lines"),
            (line_bytes, limits.line_bytes, "a line has at most {:,} bytes"),
        ):
            if number > limit:
                raise RefusedRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message.format(limit))

    # -- paths that are read --

    async def _health(self) -> Response:
        """Return an answer that says whether the store works, with counts of the server's work."""
        answers = await self.writer.health()
        counts: dict[str, Any] = {"ok": answers.error is None, "clients": self.n_clients(), **self.writer.counts()}
        if answers.error is not None:
            counts["error"] = answers.error.message
        return Response(json.dumps(counts).encode() + b"\n", _http_status(answers))


def _pipe_line(op: str, body: bytes) -> bytes:
    """Return a JSON object with the field `op` added, as a line of `pipe`. Text that is no object is returned
    unchanged, so that the writer reports what is wrong."""
    text = body.strip() or b"{}"
    if not text.startswith(b"{"):
        return text
    fields = text[1:].lstrip()
    return b'{"op":"%b"%b%b' % (op.encode(), b"" if fields.startswith(b"}") else b",", fields)


def _http_status(answers: AnsweredLines) -> int:
    return 200 if answers.error is None else STATUS_OF_CODE.get(answers.error.code, 500)


def _line_response(answers: AnsweredLines) -> Response:
    """Return the answer to one line as an HTTP response. If the line was refused, the exit code of the error decides
    the HTTP status."""
    if not answers.text.startswith(b'{"line":'):
        return Response(answers.text)
    error = json.loads(answers.text)
    del error["line"]
    return _json_response(STATUS_OF_CODE.get(error["code"], 500), json.dumps(error).encode() + b"\n")


def _json_response(status: int, body: bytes, media_type: bytes = JSON) -> Response:
    """Return an HTTP response with a JSON body. If the service is unavailable, a header says when to try again."""
    headers = [(b"retry-after", b"1")] if status == HTTPStatus.SERVICE_UNAVAILABLE else []
    return Response(body, status, media_type, headers=headers)
