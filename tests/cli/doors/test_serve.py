"""rlrec serve: many clients over HTTP, whose lines share groups."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rlrec.app.requests.pipe import Pipe
from rlrec.app.upkeep import doctor
from rlrec.cli.doors import writer as writing
from rlrec.cli.doors.metrics import Metrics
from rlrec.cli.doors.protocol import BoundedServer, Limits, make_server
from rlrec.cli.doors.serve import open_listener, run_until_signal
from rlrec.cli.doors.web import Access, WebApplication
from rlrec.cli.doors.writer import GROUP_LINES, SharedWriter
from rlrec.cli.program.shared import NOTHING_STORED
from rlrec.errors import Conflict, InputError, RlrecError
from rlrec.store import Store
from rlrec.store.database import engine
from rlrec.store.log import decisions, events
from tests.cli.commands.requests.test_dry_run import content
from tests.cli.commands.requests.test_pipe import FLUSH, ask, stocked, tell
from tests.conftest import ON_BOTH, PATIENCE_S, jsonl, runner

slow = pytest.mark.slow
PROGRAM = LOADED = [sys.executable, "-m", "rlrec"]  # LOADED: a process of its own, from its start


@pytest.fixture
def shop(db: str) -> str:
    stocked(runner(db))
    return db


@pytest.fixture
def kiosk(sqlite_db: str) -> str:
    stocked(runner(sqlite_db))
    return sqlite_db


def http(body: str | bytes, target: str = "/pipe", *, extra: str = "") -> bytes:
    content = body.encode() if isinstance(body, str) else body
    return (
        f"POST {target} HTTP/1.1\r\nHost: localhost\r\n{extra}Content-Length: {len(content)}\r\n\r\n".encode() + content
    )


class Client:
    """A connection that stays open."""

    def __init__(self, address: str) -> None:
        if address.startswith("unix:"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(30)
            self.socket.connect(address.removeprefix("unix:"))
        else:
            host, _, port = address.rpartition(":")
            self.socket = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def read(self) -> tuple[int, bytes]:
        """Status and body of the next answer. Raises OSError for one that ends early: its server was killed."""
        status, fields = int(self.file.readline().split()[1]), {}
        while (line := self.file.readline()) != b"\r\n":
            if not line:
                raise ConnectionResetError
            name, _, value = line.partition(b":")
            fields[name.lower()] = value.strip()
        if b"transfer-encoding" not in fields:
            body = self.file.read(size := int(fields.get(b"content-length", 0)))
            if len(body) < size:
                raise ConnectionResetError
            return status, body
        body = b""
        while size := int(self.file.readline(), 16):
            body += self.file.read(size)
            self.file.readline()
        self.file.readline()
        return status, body

    def post(self, *result: Any) -> list[Any]:
        self.socket.sendall(http(jsonl(result)))
        status, body = self.read()
        assert status == 200
        return [json.loads(line) for line in body.splitlines()]

    def health(self) -> Any:
        self.socket.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return json.loads(self.read()[1])


@contextmanager
def served(
    db: str, listen: str = "127.0.0.1:0", *options: str, program: Sequence[str] = ()
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a server, and its process."""
    command = [*(program or PROGRAM), "--db", db, "serve", "--listen", listen, "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            yield json.loads(child.stdout.readline())["listen"], child
        finally:
            child.kill()


def ended(child: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    child.terminate()
    _, stderr = child.communicate(timeout=PATIENCE_S)
    return child.returncode, stderr


class Fronted(WebApplication):
    """A front with the server that it is behind."""

    server: BoundedServer

    @property
    def clients(self) -> int:
        return len(self.server.server_state.connections)


def fronted(
    db: str, talk: Callable[[str, Fronted], None], *, pipe: Any = Pipe, listen: str = "127.0.0.1:0",
    notices: list[str] | None = None, access: Access | None = None, **limits: Any,
) -> Fronted:  # fmt: skip
    """A server in this process while `talk` runs in a thread."""

    async def run() -> Fronted:
        loop, bounds = asyncio.get_running_loop(), Limits(**limits)
        store = Store(db, notice=lambda _: None)
        writer = SharedWriter(pipe(store), loop, db=db)
        with open_listener(listen, allow_remote=False) as (listener, address):
            meter = Metrics(store, writer)
            front = Fronted(writer=writer, limits=bounds, access=access or Access(), meter=meter)
            front.server = make_server(front.application, bounds, ([] if notices is None else notices).append)
            serving = asyncio.create_task(front.server.serve([listener]))
            writer.start()
            try:
                await asyncio.to_thread(talk, address, front)
            finally:
                front.server.should_exit = True
                await serving
                writer.end()
                await asyncio.to_thread(writer.join)
        return front

    return asyncio.run(run())


# -- lines and answers --


@slow
@ON_BOTH
def test_bodies_are_answered_as_a_pipe_answers_them(shop: str) -> None:
    with served(shop) as (address, child), Client(address) as client:
        reported = client.post(
            ask(request_id="r1"), "not json", FLUSH, tell(decision_id=1, key="k"), ask(k=5), tell(decision_id=99)
        )
        assert [answer.get("decision_id") for answer in reported] == [1, None, 1, None, None]
        assert [answer.get("line") for answer in reported] == [None, 2, None, 5, 6]
        assert [list(answer) for answer in reported[3:]] == [["line", "error", "field", "code"]] * 2
        assert client.post(ask(request_id="r1"))[0] == reported[0] | {"duplicate": True}
        assert client.health()["ok"] is True
        assert ended(child) == (0, b"")


@slow
def test_pipelined_and_long_bodies_are_answered_in_order(kiosk: str) -> None:
    def talk(address: str, front: Fronted) -> None:
        with Client(address) as client:
            sizes = [1, 1500, 2, 0, 2500]
            bodies = [[ask(session=f"s{number}-{n}") for n in range(size)] for number, size in enumerate(sizes)]
            client.socket.sendall(b"".join(http(jsonl(body)) for body in bodies))
            for body in bodies:
                status, text = client.read()
                assert b"error" not in text
                answers = [json.loads(line)["session"] for line in text.splitlines()]
                assert (status, answers) == (200, [line["session"] for line in body])
        assert front.writer.counts()["refused"] == 0

    assert fronted(kiosk, talk).waiting_bytes == 0


def test_bodies_in_chunks_and_old_clients_are_understood(kiosk: str) -> None:
    body = jsonl([ask(), ask()]).encode()
    chunked = b"%x\r\n%b\r\n%x;ext=1\r\n%b\r\n0\r\nTrailer: 1\r\n\r\n" % (9, body[:9], len(body) - 9, body[9:])

    def talk(address: str, _: Fronted) -> None:
        with Client(address) as client:
            client.socket.sendall(b"POST /pipe HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked)
            assert len(client.read()[1].splitlines()) == 2
            client.socket.sendall(b"POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            assert len(client.read()[1].splitlines()) == 2
            assert client.file.read() == b""
        with Client(address) as client:
            client.socket.sendall(http(body, extra="Expect: 100-continue\r\n"))
            assert client.file.readline() == b"HTTP/1.1 100 Continue\r\n"

    fronted(kiosk, talk)


@slow
@ON_BOTH
def test_sixteen_clients_at_once_get_their_own_answers(shop: str) -> None:
    barrier, decided = threading.Barrier(16), dict[str, int]()

    def converse(address: str, number: int) -> None:
        with Client(address) as client:
            barrier.wait(PATIENCE_S)
            for step in range(5):
                request = f"{number}-{step}"
                drawn, reported = client.post(
                    ask(session=request, request_id=request), tell(request_id=request, key=request)
                )
                assert (drawn["session"], reported["decision_id"]) == (request, drawn["decision_id"])
                decided[request] = drawn["decision_id"]

    with served(shop) as (address, child):
        talkers = [threading.Thread(target=converse, args=(address, number)) for number in range(16)]
        for talker in talkers:
            talker.start()
        for talker in talkers:
            talker.join()
        with Client(address) as client:
            counts = client.health()
        assert len(set(decided.values())) == len(decided) == 80
        assert (counts["lines"], counts["refused"]) == (160, 0)
        assert counts["groups"] < 80  # clients share them
        assert ended(child) == (0, b"")
    with closing(Store(shop)) as store:
        assert doctor.doctor(store, doctor.Request()).ok


# -- ends --


@slow
@ON_BOTH
def test_a_killed_server_loses_no_answer_that_a_client_has(shop: str) -> None:
    acknowledged: dict[str, int] = {}

    def chat(address: str, number: int) -> None:
        with Client(address) as client:
            for step in range(10_000):
                request = f"{number}-{step}"
                try:
                    drawn, reported = client.post(
                        ask(session=request, request_id=request), tell(request_id=request, key=request)
                    )
                except (OSError, IndexError):
                    return
                acknowledged[request] = drawn["decision_id"]
                assert reported["events"] == 1

    with served(shop) as (address, child):
        threads = [threading.Thread(target=chat, args=(address, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 40:
            time.sleep(0.01)
        child.kill()
        for thread in threads:
            thread.join()
    with closing(Store(shop)) as store:
        with store.read() as unit:
            stored = {key: decision for key, (_, decision) in decisions.requests(unit, set(acknowledged)).items()}
            assert stored == acknowledged
            assert set(events.keys_and_kinds(unit, set(acknowledged))[0]) == set(acknowledged)
        assert doctor.doctor(store, doctor.Request()).ok


@slow
def test_sigterm_answers_what_has_arrived(shop: str, tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    with served(shop, f"unix:{path}") as (address, child), ExitStack() as stack:
        idle, *clients = [stack.enter_context(Client(address)) for _ in range(5)]
        assert idle.post(ask())
        for number, client in enumerate(clients):
            client.socket.sendall(http(jsonl(ask(session=f"{number}-{n}") for n in range(200))))
        while any(any(fcntl.ioctl(client.socket, termios.TIOCOUTQ, bytes(4))) for client in clients):
            time.sleep(0.01)  # until the server has read it all
        child.terminate()
        time.sleep(0.05)
        assert ended(child) == (0, b"")  # a second signal changes nothing
        for client in clients:
            assert len(client.read()[1].splitlines()) == 200
            assert client.file.read() == b""
        assert idle.file.read() == b""
        assert not os.path.exists(path)


@slow
def test_sigint_ends_as_interrupted_once_all_is_answered(kiosk: str) -> None:
    with served(kiosk) as (address, child), Client(address) as client:
        assert client.post(ask())
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=PATIENCE_S)[1] == b'{"error": "interrupted", "hint": null, "code": 130}\n'
        assert child.returncode == 130


@slow
@pytest.mark.parametrize(
    ("db", "number", "code"), [("sqlite", signal.SIGTERM, 0), ("postgres", signal.SIGINT, 130)], indirect=["db"]
)
def test_a_dry_run_serves_a_copy_that_goes_with_it(
    shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    before = content(shop)
    with served(shop, "127.0.0.1:0", "--dry-run") as (address, child), Client(address) as client:
        assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o700]
        drawn, learned = client.post(ask(session="t", request_id="r"), tell(request_id="r"))
        assert client.post(tell(decision_id=drawn["decision_id"], key="k"))[0] == learned
        runner(shop)("recommend", "--policy", "home", "--session", "of another")  # does not wait
        child.send_signal(number)
        first, last = child.communicate(timeout=PATIENCE_S)[1].decode().splitlines()[:2]
        assert (child.returncode, "from a copy" in first) == (code, True)
        assert last == f"{NOTHING_STORED}; it would have been 1 decision and 2 events"
    assert list(folder.iterdir()) == []
    assert [len(content(shop)[table]) - len(before[table]) for table in ("decision", "event")] == [1, 0]
    assert "of another" in str(content(shop)["session"])


# -- clients that are slow, vanish, or send nonsense --


@slow
def test_slow_and_vanished_clients_hold_up_nobody(shop: str) -> None:
    long = jsonl(ask(session=f"l{n}", k=2) for n in range(4000))
    with served(shop) as (address, child), ExitStack() as stack:
        half, greedy, gone, quick = [stack.enter_context(Client(address)) for _ in range(4)]
        half.socket.sendall(b"POST /pipe HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        greedy.socket.sendall(http(long))  # and never reads
        gone.socket.sendall(http(jsonl(ask(session="gone", request_id=f"g{n}") for n in range(50))))
        gone.__exit__()
        for number in range(20):  # before the greedy one takes its answers
            assert quick.post(ask(session=f"q{number}"))[0]["session"] == f"q{number}"
        assert len(greedy.read()[1].splitlines()) == 4000
        assert all(answer["duplicate"] for answer in quick.post(*(ask(session="gone", request_id="g49"),)))
        half.__exit__()
        assert ended(child) == (0, b"")


@slow
def test_whoever_does_not_take_an_answer_is_cut_off(kiosk: str, tmp_path: Path) -> None:
    def talk(address: str, front: Fronted) -> None:
        with Client(address) as client:
            with suppress(OSError):  # it is cut off while it sends
                for _ in range(300):
                    client.socket.sendall(http("x\n" * 100))
            until = time.monotonic() + PATIENCE_S
            while front.clients:
                assert time.monotonic() < until
                time.sleep(0.05)
        with Client(address) as client:
            assert client.post(ask())

    front = fronted(kiosk, talk, listen=f"unix:{tmp_path}/s.sock", slow_s=0.3)  # whose buffers are small
    assert (front.waiting_bytes, front.clients) == (0, 0)


def test_requests_without_lines_wait_for_their_answers_too(kiosk: str, tmp_path: Path) -> None:
    """Whoever asks on and takes no answer fills no memory."""
    longest = 0

    def talk(address: str, front: Fronted) -> None:
        nonlocal longest
        with Client(address) as client:
            client.socket.settimeout(1)
            with pytest.raises(TimeoutError):
                client.socket.sendall(b"GET /healthz HTTP/1.1\r\n\r\n" * 100_000)
            (connection,) = front.server.server_state.connections
            longest = len(connection.pipeline)

    fronted(kiosk, talk, listen=f"unix:{tmp_path}/s.sock")
    assert 0 < longest <= GROUP_LINES


HEAD = b"POST /pipe HTTP/1.1\r\n"


REFUSED: list[tuple[bytes, int]] = [
    (b"nonsense\r\n\r\n", 400),
    (b"POST /pipe HTTP/2.0\r\n\r\n", 400),
    (HEAD + b"no colon\r\n\r\n", 400),
    (b"GET http://localhost HTTP/1.1\r\n\r\n", 400),
    (b"CONNECT localhost:80 HTTP/1.1\r\n\r\n", 400),
    (b"CONNECT /healthz HTTP/1.1\r\n\r\n", 400),
    (HEAD + b"Host: elsewhere\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 400),
    (HEAD + b"Authorization: a\r\nAuthorization: b\r\nContent-Length: 0\r\n\r\n", 400),
    (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    (HEAD + b"Content-Length: -1\r\n\r\n", 400),
    (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (HEAD + b"Content-Length: " + b"0" * 5000 + b"\r\n\r\n", 400),
    (HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", 400),
    (HEAD + b"Origin: http://evil.example\r\nContent-Length: 0\r\n\r\n", 403),
    (b"POST /elsewhere HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 404),
    (b"PUT /pipe HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
    (b"DELETE /healthz HTTP/1.1\r\n\r\n", 405),
    (HEAD + b"Content-Length: 100\r\n\r\nslow", 408),
    (HEAD + b"\r\n", 411),
    (HEAD + b"Content-Length: 2001\r\n\r\n" + b"x" * 2001, 413),
    (HEAD + b"Content-Length: " + b"0" * 20 + b"2001\r\n\r\n" + b"x" * 2001, 413),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\n7d1\r\n" + b"x" * 2001 + b"\r\n0\r\n\r\n", 413),
    (HEAD + b"Content-Length: 300\r\n\r\n" + b"\n" * 300, 413),
    (HEAD + b"Content-Length: 901\r\n\r\n" + b"x" * 901, 413),
    (HEAD + b"X: " + b"x" * 9000 + b"\r\n\r\n", 431),
    (b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 8200 + b"\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n", 431),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: x\r\n" * 4000, 431),
    (HEAD + b"Content-Length: 1500\r\n\r\n" + b"x" * 1500, 503),
]  # fmt: skip


def test_requests_out_of_order_are_refused(kiosk: str) -> None:
    def talk(address: str, _: Fronted) -> None:
        for sent, status in REFUSED:
            with Client(address) as client:
                client.socket.sendall(sent)
                code, body = client.read()
                assert (code, json.loads(body)["code"]) == (status, 2), sent
                if status in (400, 408, 431):  # where its end is not clear
                    assert client.file.read() == b"", sent
                else:
                    assert client.health()["ok"], sent

    sizes = {"head_bytes": 8192, "body_bytes": 2000, "body_lines": 200, "line_bytes": 900}
    front = fronted(kiosk, talk, **sizes, waiting_bytes=1000, small_bytes=500, slow_s=0.3)
    assert front.waiting_bytes == 0


def test_what_is_no_request_is_refused_behind_the_request_before_it(kiosk: str) -> None:
    def talk(address: str, _: Fronted) -> None:
        for behind in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
            with Client(address) as client:
                client.socket.sendall(http(jsonl([ask()])) + behind)
                assert [client.read()[0], client.read()[0], client.file.read()] == [200, 400, b""], behind

    fronted(kiosk, talk)


def test_a_client_that_ends_within_a_body_makes_room_at_once(kiosk: str) -> None:
    def talk(address: str, front: Fronted) -> None:
        with Client(address) as client:
            client.socket.settimeout(5)
            client.socket.sendall(http(jsonl([ask()]))[:-2])
            client.socket.shutdown(socket.SHUT_WR)
            assert (client.read()[0], client.file.read()) == (400, b"")
            while front.clients:
                time.sleep(0.01)
            assert front.waiting_bytes == 0

    fronted(kiosk, talk)


def test_an_upgrade_is_not_taken_and_loses_no_line(kiosk: str) -> None:
    """Java's client offers HTTP/2 with its first request. Nothing of the body is read as a request."""
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"

    def talk(address: str, _: Fronted) -> None:
        with Client(address) as client:
            client.socket.sendall(
                http(jsonl([ask(), ask()]), extra=offer) + http("GET / HTTP/1.1\r\n\r\n", extra=offer)
            )
            assert [len(client.read()[1].splitlines()) for _ in range(2)] == [2, 1]
            assert client.health()["lines"] == 3

    fronted(kiosk, talk)


def test_trailers_decide_nothing(kiosk: str) -> None:
    def talk(address: str, _: Fronted) -> None:
        with Client(address) as client:
            trailers = b"Host: localhost\r\nAuthorization: Bearer token\r\n"
            client.socket.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + trailers + b"\r\n")
            assert client.read()[0] == 401

    fronted(kiosk, talk, access=Access(token=b"token"))


def test_a_head_that_was_on_its_way_at_the_end_is_the_last_one(kiosk: str) -> None:
    def talk(address: str, front: Fronted) -> None:
        with Client(address) as client:
            client.socket.settimeout(5)
            client.socket.sendall(b"GET /healthz HTTP/1.1\r\n")
            assert client_count(front) == 1
            front.server.should_exit = True
            time.sleep(0.5)
            client.socket.sendall(b"\r\n")
            assert (client.read()[0], client.file.read()) == (200, b"")

    fronted(kiosk, talk)


def client_count(front: Fronted) -> int:
    """How many clients there are once there is one."""
    while not front.clients:
        time.sleep(0.01)
    return front.clients


def test_an_idle_client_that_does_not_take_its_answer_goes_too(kiosk: str, tmp_path: Path) -> None:
    """Also where the rest of the answer is so short that writing never paused."""

    def talk(address: str, front: Fronted) -> None:
        with Client(address) as client:
            assert client_count(front) == 1
            (connection,) = front.server.server_state.connections
            while not connection.transport.get_write_buffer_size():
                client.socket.sendall(b"GET /openapi.json HTTP/1.1\r\n\r\n")
                time.sleep(0.01)
            end = time.monotonic() + 10
            while front.clients and time.monotonic() < end:
                time.sleep(0.05)
            assert front.clients == 0

    fronted(kiosk, talk, listen=f"unix:{tmp_path}/s.sock", idle_s=0.5, slow_s=0.5)


def test_a_body_in_small_pieces_is_not_copied_for_each(kiosk: str) -> None:
    pieces = iter([b"x" * 900_000 + b"\n"] * 9 + [b"x"] * 5_000)
    n_left = 5_009

    async def receive() -> Any:
        nonlocal n_left
        n_left -= 1
        return {"type": "http.request", "body": next(pieces), "more_body": n_left > 0}

    def talk(_: str, front: Fronted) -> None:
        start = time.process_time()
        scope: Any = {"headers": [(b"content-length", b"9000000")]}
        assert len(asyncio.run(front._read_body(scope, receive))) == 8_105_009
        assert time.process_time() - start < 2

    fronted(kiosk, talk)


@slow
def test_clients_that_misbehave_write_nothing_to_stderr(kiosk: str) -> None:
    with served(kiosk) as (address, child):
        for sent in (
            b"nonsense\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        ):
            with Client(address) as client:
                client.socket.sendall(sent)
                assert client.read()[0] in (200, 400)
        with Client(address) as client:
            client.socket.sendall(http("x\n" * 20_000) + http(""))
            time.sleep(0.1)
        assert ended(child) == (0, b"")


def test_bodies_that_find_no_room_are_told_to_come_again_and_small_ones_find_it(kiosk: str) -> None:
    """A refused body gives back its bytes at once, not when its client has gone."""
    body = jsonl([ask()])

    def talk(address: str, front: Fronted) -> None:
        with Client(address) as first, Client(address) as second, Client(address) as third:
            first.socket.sendall(http("x" * 2000)[:-200])
            while front.waiting_bytes < 1800:
                time.sleep(0.01)
            for block in (http("x" * 900)[:-100], b"x" * 100):
                second.socket.sendall(block)
                time.sleep(0.05)
            head = b"".join(iter(second.file.readline, b"\r\n"))
            assert (head.split()[1], b"retry-after: 1" in head) == (b"503", True)
            assert front.waiting_bytes == 1800
            assert third.post(ask())

    assert len(body) < 100
    assert fronted(kiosk, talk, waiting_bytes=2500, small_bytes=100).waiting_bytes == 0


def test_a_head_full_of_blanks_is_read_at_once(kiosk: str) -> None:
    """In time that grows with its length: not with the square, or the cube where a header is refused."""

    def talk(address: str, _: Fronted) -> None:
        for end, status in ((b"x", 200), (b"\0", 400)):
            start = time.process_time()  # of the server, which is a thread here
            with Client(address) as client:
                client.socket.sendall(HEAD + b"Content-Length: 0\r\nX: x" + b" " * 30_000 + end + b"\r\n\r\n")
                assert client.read()[0] == status
            assert time.process_time() - start < 5

    fronted(kiosk, talk)


def test_the_body_of_an_answer_does_not_wait_until_its_head_has_arrived(kiosk: str) -> None:
    """As it would for 40 ms, where the system gathers small pieces."""

    def talk(address: str, front: Fronted) -> None:
        with Client(address) as client:
            assert client.post(ask())
            (connection,) = front.server.server_state.connections
            sent_through = connection.transport.get_extra_info("socket")
            assert sent_through.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    fronted(kiosk, talk)


def test_blank_lines_between_requests_are_skipped(kiosk: str) -> None:
    def talk(address: str, _: Fronted) -> None:
        with Client(address) as client:
            client.socket.sendall(b"\r\n" + http(jsonl([ask()])))
            assert client.read()[0] == 200
            client.socket.sendall(b"\r\n" * 10 + http(jsonl([ask()])))
            assert client.read()[0] == 200

    fronted(kiosk, talk)


class Busy(Pipe):
    """A pipe that takes a second for each group."""

    def answer(self, lines: Sequence[Any]) -> list[Any]:
        time.sleep(1)
        return super().answer(lines)


@slow
def test_health_does_not_wait_for_the_lines_of_others(kiosk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(address: str, front: Fronted) -> None:
        with Client(address) as busy, Client(address) as client:
            busy.socket.sendall(http(jsonl(ask(session=f"s{n}") for n in range(GROUP_LINES + 1))))  # two groups
            while not front.waiting_bytes:
                time.sleep(0.01)
            time.sleep(0.2)
            assert client.health()["ok"] is True
            monkeypatch.setattr(writing, "MAX_GROUP_S", 0.1)
            late = client.health()
            assert (late["ok"], "has worked on one group for" in late["error"]) == (False, True)
            assert front.writer.counts()["groups"] == 0  # the first one is at work still
            assert len(busy.read()[1].splitlines()) == GROUP_LINES + 1
            assert client.health()["ok"] is True

    fronted(kiosk, talk, pipe=Busy)


def test_a_group_ends_where_its_lines_are_long(kiosk: str) -> None:
    def talk(address: str, front: Fronted) -> None:
        with Client(address) as client:
            long = [ask(session=f"s{n}", context={"text": "x" * 300_000}) for n in range(8)]
            assert len(client.post(*long)) == 8
        assert front.writer.counts()["groups"] == 2

    fronted(kiosk, talk)


def test_too_many_clients_are_told_to_come_again(kiosk: str) -> None:
    def talk(address: str, _: Fronted) -> None:
        with Client(address) as first, Client(address) as second:
            assert first.post(ask())
            assert second.read()[0] == 503
            assert first.post(ask())

    fronted(kiosk, talk, clients=1)


def test_whoever_is_idle_for_the_longest_time_makes_room(kiosk: str) -> None:
    def talk(address: str, front: Fronted) -> None:
        with Client(address) as first, Client(address) as second:
            for client in (first, second, first):
                assert client.post(ask())
            time.sleep(0.2)
            with Client(address) as third:
                assert third.post(ask())
                assert second.file.read() == b""
                assert first.post(ask())

    notices = list[str]()
    fronted(kiosk, talk, clients=2, short_idle_s=0.1, notices=notices)
    assert not notices


@slow
def test_a_server_without_room_says_so_once(kiosk: str) -> None:
    with served(kiosk) as (address, child), ExitStack() as stack:
        clients = [stack.enter_context(Client(address)) for _ in range(Limits().clients)]
        assert clients[-1].post(ask())
        refused = [stack.enter_context(Client(address)).read()[0] for _ in range(3)]
        assert refused == [503] * 3
        assert ended(child) == (0, b"512 clients at once: others are answered 503\n")


def test_an_idle_connection_is_closed(kiosk: str) -> None:
    def talk(address: str, _: Fronted) -> None:
        with Client(address) as client:
            assert client.post(ask())
            assert client.file.read() == b""

    fronted(kiosk, talk, idle_s=0.1)


# -- a store that fails --


def test_a_busy_store_is_said_to_each_client(kiosk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_S", 0.1)

    def talk(address: str, _: Fronted) -> None:
        with closing(sqlite3.connect(kiosk, isolation_level=None)) as other, Client(address) as client:
            other.execute("BEGIN IMMEDIATE")
            client.socket.sendall(http(jsonl([ask(), tell(decision_id=1)])))
            status, body = client.read()
            assert status == 503
            answers = [json.loads(line) for line in body.splitlines()]
            assert [(answer["line"], answer["code"]) for answer in answers] == [(1, 4), (2, 4)]

    fronted(kiosk, talk, pipe=partial(Pipe, patience_s=0.1))


class Fragile(Pipe):
    """A pipe that stops at a session."""

    def answer(self, lines: Sequence[Any]) -> list[Any]:
        if any(getattr(line, "session", "") == "poison" for line in lines):
            raise RlrecError("disk full")
        return super().answer(lines)


def test_lines_that_stop_a_group_fail_alone(kiosk: str) -> None:
    def talk(address: str, front: Fronted) -> None:
        with Client(address) as client:
            client.socket.sendall(
                b"".join(http(jsonl([ask(session=session)])) for session in ("a", "poison", "b", "poison", "c"))
            )
            assert [client.read()[0] for _ in range(5)] == [200, 500, 200, 500, 200]
            client.socket.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b'rlrec_refused_total{code="1"} 2.0' in client.read()[1]
            assert (front.writer.counts()["lines"], front.writer.counts()["refused"]) == (5, 2)

    fronted(kiosk, talk, pipe=Fragile)


def test_a_store_that_was_moved_away_is_not_healthy(kiosk: str) -> None:
    def talk(address: str, _: Fronted) -> None:
        with Client(address) as client:
            assert client.health()["ok"]
            os.rename(kiosk, f"{kiosk}.old")
            health = client.health()
            assert (health["ok"], "was deleted or replaced" in health["error"]) == (False, True)

    fronted(kiosk, talk)


def test_a_signal_right_after_the_address_is_shown_ends_the_server_as_later(kiosk: str) -> None:
    async def run(listener: socket.socket) -> int:
        return await run_until_signal(
            make_server(None, Limits(), print), listener, lambda: os.kill(os.getpid(), signal.SIGTERM)
        )

    with open_listener("127.0.0.1:0", allow_remote=False) as (listener, _):
        assert asyncio.run(run(listener)) == signal.SIGTERM


# -- where it listens --


def test_a_socket_of_a_dead_server_is_replaced_and_of_a_living_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    with open_listener(f"unix:{path}", allow_remote=False) as (_, name):
        assert name == f"unix:{path}"
        with pytest.raises(Conflict), open_listener(f"unix:{path}", allow_remote=False):
            pass
        assert stat.S_ISSOCK(path.stat().st_mode)
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(InputError, match="no socket"), open_listener(f"unix:{path}", allow_remote=False):
        pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("address", "code", "words"),
    [
        ("0.0.0.0:0", 2, "other machines can reach 0.0.0.0"),
        ("[::]:0", 2, "other machines"),
        ("8080", 2, "is no address"),
        ("127.0.0.1:99999", 2, "is no address"),
        ("unix:/none/s.sock", 1, "No such file"),
        ("unix:" + "x" * 200, 1, "too long"),
    ],
)
def test_an_address_that_cannot_be_is_refused(kiosk: str, address: str, code: int, words: str) -> None:
    answer = runner(kiosk)("serve", "--listen", address)
    assert (answer.exit_code, answer.stdout, words in answer.stderr) == (code, "", True)


def test_a_port_in_use_is_a_conflict(kiosk: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        answer = runner(kiosk)("serve", "--listen", f"127.0.0.1:{other.getsockname()[1]}")
    assert (answer.exit_code, "listens on" in answer.stderr) == (6, True)


def test_a_folder_that_another_process_locks_is_waited_for_and_named(kiosk: str, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s.sock"
    number = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        began = time.monotonic()
        answer = runner(kiosk)("--lock-timeout", "300ms", "serve", "--listen", address)
        assert (answer.exit_code, answer.stdout) == (4, "")
        notice, error = answer.stderr.splitlines()
        holder = f"another process holds the lock of the folder {tmp_path}"
        assert (notice, error.startswith(f"Error: {holder}.")) == (f"{holder}: waiting up to 0.3 s", True)
        assert time.monotonic() - began < 25  # by default it waits for 30 s
    finally:
        os.close(number)
    with open_listener(address, allow_remote=False):  # nobody holds it any more
        assert stat.S_ISSOCK((tmp_path / "s.sock").stat().st_mode)


def test_a_server_needs_a_store(tmp_path: Path) -> None:
    assert runner(str(tmp_path / "none.db"))("serve", "--listen", "127.0.0.1:0").exit_code == 3


@slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_memory_is_flat_over_many_lines(kiosk: str) -> None:
    def resident(child: subprocess.Popen[bytes]) -> float:
        return int(Path(f"/proc/{child.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    with served(kiosk, program=LOADED) as (address, child), Client(address) as client:
        sizes = []
        for number in range(40):
            assert len(client.post(*(ask(session=f"{number}-{n}") for n in range(1000)))) == 1000
            sizes.append(resident(child))
        assert sizes[-1] - sizes[0] < 14 + 20  # SQLite's own cache of the file, which is larger by then, and noise
        assert ended(child) == (0, b"")


@slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_memory_is_bounded_over_all_clients_that_send_at_once(kiosk: str) -> None:
    """The bodies in flight have 32 MB, and the lines of a group one: the rest is the program, and SQLite's cache."""
    line = json.dumps(ask(context={"text": "x" * 9_000})).encode() + b"\n"
    body = http(line * (9_500_000 // len(line)))
    statuses = list[int]()

    def send(address: str) -> None:
        with Client(address) as client:
            with suppress(OSError):  # it is refused before it has sent all
                client.socket.sendall(body)
            statuses.append(client.read()[0])

    with served(kiosk, program=LOADED) as (address, child):
        senders = [threading.Thread(target=send, args=(address,)) for _ in range(20)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{child.pid}/status").read_text())
        assert (set(statuses) <= {200, 503}, len(statuses)) == (True, 20)
        assert peak is not None
        assert int(peak[1]) / 1000 < 230
        assert ended(child)[0] == 0
