"""HTTP/1.1 in front of one writer: many clients, each within limits, answered in order; a slow one holds up nobody."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from io import BytesIO
from math import inf
from operator import itemgetter
from typing import NamedTuple, Protocol

from rlrec.cli.text.lines import groups
from rlrec.errors import RlrecError, StoreBusy

GROUP = 1_000  # lines of a client that may wait for the writer, or for the client to take their answers
GROUP_BYTES = 1_000_000  # of lines, after which a group ends
BLOCK_BYTES = 65_536
SETTLE_S = 0.1  # for what has arrived when the server is asked to end
LINGER_S = 2.0  # in which the body of a refused request is thrown away: a closed socket would take the answer with it
NDJSON, JSON = "application/x-ndjson", "application/json"
POSTED, HEALTH = ("/", "/pipe"), "/healthz"
LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.([01])")
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\x00\r\n]*)")
LENGTH = re.compile(rb"[0-9]{1,30}")
SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")

NumberedLines = Sequence[tuple[int, bytes]]


class Limits(NamedTuple):
    """head_bytes and body_bytes: of a request; body_lines: of its body, or chunks; waiting_bytes: of all bodies, where
    those up to small_bytes always find room. idle_s: between requests, and short_idle_s where others want to come in;
    slow_s: for a request to arrive once it has begun, and for a client to take an answer; drain_s: for answers at the
    end."""

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


class Answered(NamedTuple):
    """The text of the answers to lines. error: why the store took none of them."""

    text: bytes
    error: RlrecError | None = None

    @property
    def status(self) -> HTTPStatus:
        if self.error is None:
            return HTTPStatus.OK
        busy = isinstance(self.error, StoreBusy)
        return HTTPStatus.SERVICE_UNAVAILABLE if busy else HTTPStatus.INTERNAL_SERVER_ERROR


class HttpRequest(NamedTuple):
    method: bytes
    target: str
    body: bytes
    chunks: bool  # whether the client understands an answer in chunks
    keep: bool  # whether the connection stays open


class Pending(NamedTuple):
    """An answer that a client has not taken yet: its text comes from what the writer answers."""

    answered: asyncio.Future[Answered] | Answered
    render: Callable[[Answered], bytes]
    n_lines: int = 0
    n_bytes: int = 0  # of the body


class RequestRefused(Exception):
    """A request that is answered with a status, and ends the connection."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Writer(Protocol):
    """The writer of the store, to whom all clients hand their lines."""

    def submit(self, lines: NumberedLines, *, previous: Answered | None = None) -> asyncio.Future[Answered]: ...
    def counts(self) -> dict[str, int]: ...
    async def health(self) -> Answered: ...


class Front:
    """A server of HTTP in front of a writer."""

    def __init__(self, writer: Writer, limits: Limits) -> None:
        self.writer, self.limits = writer, limits
        self.draining = self.refused_for_room = False
        self.waiting_bytes = 0
        self.clients: dict[asyncio.Task[None], Client] = {}

    async def serve(self, listener: socket.socket, end: asyncio.Event) -> None:
        """Serve until `end`; then answer what has arrived, and return."""
        server = await asyncio.start_server(self._connected, sock=listener, limit=self.limits.head_bytes)
        await end.wait()
        self.draining = True
        server.close()
        await asyncio.sleep(SETTLE_S)
        for client in self.clients.values():
            client.stop(only_idle=True)
        await self._until_gone(min(self.limits.slow_s, self.limits.drain_s / 4))
        for client in self.clients.values():
            client.stop()
        await self._until_gone(self.limits.drain_s)
        for client in self.clients.values():
            client.abort()
        await self._until_gone(1)

    async def _until_gone(self, seconds: float) -> None:
        if self.clients:
            await asyncio.wait(list(self.clients), timeout=seconds)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        client = Client(self, reader, writer)
        is_full = len(self.clients) >= self.limits.clients and not self._make_room()
        self.clients[task] = client
        try:
            await client.run(is_full=is_full)
        finally:
            del self.clients[task]

    def _make_room(self) -> bool:
        """Whether a connection that has been idle for long enough is closed now. Says once that there is none."""
        loop = asyncio.get_running_loop()
        since, idle_client = min(((client.idle_since, client) for client in self.clients.values()), key=itemgetter(0))
        if loop.time() - since >= self.limits.short_idle_s:
            idle_client.stop()
            return True
        if not self.refused_for_room:
            self.refused_for_room = True
            loop.call_exception_handler({"message": f"{self.limits.clients} clients at once: others are answered 503"})
        return False


class Client:
    """One connection. Requests are read ahead of their answers, up to GROUP lines."""

    def __init__(self, front: Front, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.front, self.reader, self.writer = front, reader, writer
        self.limits = front.limits
        self.idle_since = inf  # time of the loop; while a request arrives or is handled, never
        self._answers = asyncio.Queue[Pending | None]()
        self._n_lines = self._n_bytes = 0  # of requests that have no answer yet
        self._receiving: asyncio.Task[bool] | None = None

    def stop(self, *, only_idle: bool = False) -> None:
        """Read no further request."""
        if self._receiving is not None and (self.idle_since < inf or not only_idle):
            self.idle_since = inf
            self._receiving.cancel()

    def abort(self) -> None:
        self.writer.transport.abort()

    async def run(self, *, is_full: bool) -> None:
        sending = asyncio.create_task(self._send())
        self._receiving = asyncio.create_task(self._refuse_all() if is_full else self._receive())
        await asyncio.wait([self._receiving])
        self._answers.put_nowait(None)
        await sending
        try:
            if not self._receiving.cancelled() and self._receiving.result():
                await self._linger()
        finally:
            self._count_bytes(-self._n_bytes)
            self.writer.close()

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                self.writer.write_eof()
                while await self.reader.read(BLOCK_BYTES):
                    pass
        except (OSError, TimeoutError):
            pass

    # -- receiving --

    async def _refuse_all(self) -> bool:
        self._refuse(RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, "too many clients"))
        return True

    async def _receive(self) -> bool:
        """Read requests until the client, or a fault, ends it: whether a request was refused."""
        keep = True
        try:
            while keep and not self.front.draining and (first := await self._first_byte()):
                if self._n_bytes > BLOCK_BYTES or self._answers.qsize() >= GROUP:
                    await self._answers.join()
                async with asyncio.timeout(self.limits.slow_s):
                    request = await self._request(first)
                await self._handle(request)
                keep = request.keep
                await asyncio.sleep(0)  # others come in between requests that are there already
        except TimeoutError:
            self._refuse(RequestRefused(HTTPStatus.REQUEST_TIMEOUT, f"no request within {self.limits.slow_s:g} s"))
            return True
        except RequestRefused as refused:
            self._refuse(refused)
            return True
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has gone
        return False

    async def _first_byte(self) -> bytes:
        """The first byte of a request; empty where none comes."""
        self.idle_since = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self.limits.idle_s):
                for _ in range(3):  # some clients end a body with a line
                    if (byte := await self.reader.read(1)) not in (b"\r", b"\n"):
                        break
                return byte
        except TimeoutError:
            return b""
        finally:
            self.idle_since = inf

    async def _request(self, first: bytes) -> HttpRequest:
        """The request that begins with `first`. Raises RequestRefused."""
        try:
            head = first + await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too long") from None
        start, *fields = head[:-4].split(b"\r\n")
        line, pairs = LINE.fullmatch(start), [FIELD.fullmatch(field) for field in fields]
        if line is None or None in pairs:
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "this is no head of HTTP/1.1")
        headers: dict[bytes, bytes] = {}
        for name, value in (pair.groups() for pair in pairs if pair is not None):
            name, value = name.lower(), value.strip(b" \t")
            if name in headers and name in (b"content-length", b"transfer-encoding"):
                raise RequestRefused(HTTPStatus.BAD_REQUEST, f"two {name.decode()}")
            headers.setdefault(name, value)
        if b"origin" in headers:  # any page in a browser of this machine could write to the store
            raise RequestRefused(HTTPStatus.FORBIDDEN, "pages in browsers are not served")
        method, target, minor = line.groups()
        keep = minor == b"1" and b"close" not in headers.get(b"connection", b"").lower()
        body = await self._body(method, headers)
        return HttpRequest(method, target.decode().partition("?")[0], body, minor == b"1", keep)

    async def _body(self, method: bytes, headers: dict[bytes, bytes]) -> bytes:
        """The body of a request, which counts among the waiting bytes until it is answered."""
        coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
        if coding is not None and (length is not None or coding.lower() != b"chunked"):
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "the length of the body is not clear")
        if length is not None and not LENGTH.fullmatch(length):
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "Content-Length is no number")
        if coding is None and length is None:
            if method == b"POST":
                raise RequestRefused(HTTPStatus.LENGTH_REQUIRED, "a body needs Content-Length, or chunks")
            return b""
        self._check_size(int(length or 0))
        if headers.get(b"expect", b"").lower() == b"100-continue":
            await self._answers.join()
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = bytearray()
        try:
            await (self._read_chunks(body) if length is None else self._read(body, int(length)))
            self._check_size(len(body), n_lines=body.count(b"\n"))
            self._check_size(len(body), line_bytes=max(map(len, body.split(b"\n"))))
        except BaseException:
            self._count_bytes(-len(body))
            raise
        return bytes(body)

    async def _read_chunks(self, body: bytearray) -> None:
        n_chunks = 0
        while size := await self._chunk_size():
            self._check_size(len(body) + size, n_lines=(n_chunks := n_chunks + 1))
            await self._read(body, size)
            if await self.reader.readexactly(2) != b"\r\n":
                raise RequestRefused(HTTPStatus.BAD_REQUEST, "a chunk is longer than it says")
            await asyncio.sleep(0)
        while await self._line() != b"\r\n":
            await asyncio.sleep(0)  # trailers

    async def _read(self, body: bytearray, size: int) -> None:
        while size:
            block = await self.reader.read(min(size, BLOCK_BYTES))
            if not block:
                raise asyncio.IncompleteReadError(bytes(body), size)
            is_small = self._n_bytes + len(block) <= self.limits.small_bytes
            if not is_small and self.front.waiting_bytes + len(block) > self.limits.waiting_bytes:
                raise RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, "too much waits to be stored; try again")
            body += block
            self._count_bytes(len(block))
            size -= len(block)

    def _count_bytes(self, n_bytes: int) -> None:
        self._n_bytes += n_bytes
        self.front.waiting_bytes += n_bytes

    async def _chunk_size(self) -> int:
        match = SIZE.fullmatch(await self._line())
        if match is None:
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "a chunk does not say its size")
        return int(match[1], 16)

    async def _line(self) -> bytes:
        try:
            return await self.reader.readuntil(b"\r\n")
        except asyncio.LimitOverrunError:
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "a line between chunks is too long") from None

    def _check_size(self, n_bytes: int, *, n_lines: int = 0, line_bytes: int = 0) -> None:
        """Raises RequestRefused for a body with too many bytes, lines or chunks, or with too long a line."""
        limits = self.limits
        for number, limit, message in (
            (n_bytes, limits.body_bytes, "a body has at most {:,} bytes"),
            (n_lines, limits.body_lines, "a body has at most {:,} lines, or chunks"),
            (line_bytes, limits.line_bytes, "a line has at most {:,} bytes"),
        ):
            if number > limit:
                raise RequestRefused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message.format(limit))

    # -- handling --

    async def _handle(self, request: HttpRequest) -> None:
        """Hand the request to the writer, and queue its answer."""
        if request.target in POSTED:
            if request.method != b"POST":
                raise RequestRefused(HTTPStatus.METHOD_NOT_ALLOWED, f"POST lines to {POSTED[1]}, GET {HEALTH}")
            await self._handle_lines(request)
        elif request.target == HEALTH:
            if request.method not in (b"GET", b"HEAD"):
                raise RequestRefused(HTTPStatus.METHOD_NOT_ALLOWED, f"{HEALTH} is read by GET")
            health = asyncio.ensure_future(self.front.writer.health())
            self._answers.put_nowait(Pending(health, partial(self._health, request)))
        else:
            raise RequestRefused(HTTPStatus.NOT_FOUND, f"POST lines to {POSTED[1]}, GET {HEALTH}")

    async def _handle_lines(self, request: HttpRequest) -> None:
        """Hand the lines to the writer, the next group of a body when the answers to the last one are on their way."""
        pieces = groups(BytesIO(request.body), size=GROUP, eager=False, flush=True, n_bytes=GROUP_BYTES)
        lines: NumberedLines | None = next(pieces, [])
        answered: asyncio.Future[Answered] | None = None
        while lines is not None:
            following, first = next(pieces, None), answered is None
            last = following is None
            if not first or self._n_lines + len(lines) > GROUP:
                await self._answers.join()
            self._n_lines += len(lines)
            answered = self.front.writer.submit(lines, previous=answered.result() if answered else None)
            is_single = first and last
            render = partial(self._response, request) if is_single else partial(self._piece, request, first, last)
            self._answers.put_nowait(Pending(answered, render, len(lines), len(request.body) if last else 0))
            lines = following

    # -- sending --

    async def _send(self) -> None:
        """Write answers in order, each when it is there; where the client does not take them, throw them away."""
        gone = False
        while (pending := await self._answers.get()) is not None:
            answered = pending.answered if isinstance(pending.answered, Answered) else await pending.answered
            try:
                if not gone:
                    self.writer.write(pending.render(answered))
                    async with asyncio.timeout(self.limits.slow_s):
                        await self.writer.drain()
            except (OSError, TimeoutError):
                gone = True
                self.abort()
            self._n_lines -= pending.n_lines
            self._count_bytes(-pending.n_bytes)
            self._answers.task_done()

    def _response(self, request: HttpRequest, answered: Answered) -> bytes:
        return self._head(answered.status, request, len(answered.text)) + answered.text

    def _piece(self, request: HttpRequest, first: bool, last: bool, answered: Answered) -> bytes:
        """The answers to a group of a longer body. HTTP/1.0 ends such an answer with the connection."""
        head = self._head(answered.status, request, None) if first else b""
        if not request.chunks:
            return head + answered.text
        return b"%b%x\r\n%b\r\n%b" % (head, len(answered.text), answered.text, b"0\r\n\r\n" if last else b"")

    def _health(self, request: HttpRequest, answered: Answered) -> bytes:
        counts = {"ok": answered.error is None, "clients": len(self.front.clients), **self.front.writer.counts()}
        body = json.dumps(counts | ({"error": answered.error.message} if answered.error else {})).encode() + b"\n"
        head = self._head(answered.status, request, len(body), JSON)
        return head if request.method == b"HEAD" else head + body

    def _refuse(self, refused: RequestRefused) -> None:
        body = json.dumps({"error": str(refused), "hint": None, "code": 2}).encode() + b"\n"
        head = self._head(refused.status, None, len(body), JSON)
        self._answers.put_nowait(Pending(Answered(head + body), lambda answered: answered.text))

    def _head(self, status: HTTPStatus, request: HttpRequest | None, length: int | None, media: str = NDJSON) -> bytes:
        """The head of an answer. request: None where it could not be read. length: None for an answer in groups."""
        keep = request is not None and request.keep and not self.front.draining
        lines = [f"HTTP/1.1 {status.value} {status.phrase}", f"Content-Type: {media}"]
        if length is not None:
            lines.append(f"Content-Length: {length}")
        elif request is not None and request.chunks:
            lines.append("Transfer-Encoding: chunked")
        lines += ["Retry-After: 1"] * (status is HTTPStatus.SERVICE_UNAVAILABLE)
        lines.append(f"Connection: {'keep-alive' if keep else 'close'}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()
