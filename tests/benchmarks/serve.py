"""`rlrec serve` with many clients, against as many `rlrec pipe` as a web server of few workers would run, and against a
bare server."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Figure, Sample, Setting, environment, medians, rlrec
from tests.benchmarks.shops import SOON, Lite, Postgres, Shop, copied, ndjson, postgres_server, stocked

CLIENTS, PIPES, REQUESTS = 16, 8, 4_000  # requests: of all clients together
AT_MOST = {1: 10.0, 16: 8.1, 64: 4.8}  # by clients: times what a bare server uses
START_S = 120.0
Talk = Callable[[bytes], bytes]


def serve(setting: Setting) -> Iterator[Figure]:
    """Requests a second of 16 clients of one server, and of 8 pipes on one store; each waits for its answer."""
    yield _against_pipes("serve", stocked(Lite(setting), setting), setting)


def beside_bare(setting: Setting) -> Iterator[Figure]:
    """CPU of the server for a request of 1, 16 and 64 clients, against a bare server on asyncio and sqlite3."""
    base, size = stocked(Lite(setting), setting), setting.size(REQUESTS)
    for clients, at_most in AT_MOST.items():
        calls = {name: partial(_used, base, name, clients, size) for name in ("bare", "serve")}
        seconds = {name: sample.cpu for name, sample in medians(setting.times(5), calls).items()}
        name = f"CPU of serve for a request, clients: {clients}"
        served, bare = (1e6 * seconds[name] / size for name in ("serve", "bare"))
        yield Figure(name=name, value=served, unit="us", reference=bare, at_most=at_most)


def _used(base: Shop, name: str, clients: int, size: int) -> Sample:
    """What a server uses for so many requests of clients that each wait for their answers."""
    with copied(base) as shop:
        command = rlrec("--db", shop.db, "serve", "--listen", "127.0.0.1:0", "--json")
        bare = [sys.executable, "-m", "tests.benchmarks.bare_server", f"{shop.db}.bare"]
        with started(command if name == "serve" else bare) as (address, process_id):
            asyncio.run(_clients(address, clients, 10 * clients, "warm"))
            start, cpu = time.perf_counter(), _cpu_s(process_id)
            asyncio.run(_clients(address, clients, size, "c"))
            return Sample(time.perf_counter() - start, _cpu_s(process_id) - cpu)


def _cpu_s(process_id: int) -> float:
    """Seconds of CPU that a process has used."""
    user, system = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def _clients(address: tuple[str, int], clients: int, size: int, name: str) -> None:
    """So many requests, each of a new session."""
    sessions = iter([f"{name}{number}" for number in range(size)])

    async def client() -> None:
        reader, writer = await asyncio.open_connection(*address)
        for session in sessions:
            body = b'{"policy":"home","session":"%b"}' % session.encode()
            writer.write(
                b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            assert length is not None
            if json.loads(await reader.readexactly(int(length[1])))["session"] != session:
                raise RuntimeError(f"{session} got the answer to another request")
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))


def on_postgres(setting: Setting) -> Iterator[Figure]:
    """The same on PostgreSQL, where pipes wait for each other only to change the belief."""
    with postgres_server(setting) as url:
        yield _against_pipes("PostgreSQL: serve", stocked(Postgres(url), setting), setting)


def _against_pipes(name: str, base: Shop, setting: Setting) -> Figure:
    size = setting.size(REQUESTS)
    with copied(base) as shop, server(shop.db) as address:
        served = rate([partial(http_client, address)] * CLIENTS, size // CLIENTS)
    with copied(base) as shop:
        piped = rate([partial(pipe_client, shop.db)] * PIPES, size // PIPES)
    return Figure(
        name=f"{name}, {CLIENTS} clients, against {PIPES} pipes", value=served, unit="/s", reference=piped, at_least=3.0
    )


@contextmanager
def server(db: str, now: str = SOON["RLREC_NOW"]) -> Iterator[tuple[str, int]]:
    """The address of a server with this clock, which ends with the block."""
    with started(rlrec("--db", db, "serve", "--listen", "127.0.0.1:0", "--json"), now) as (address, _):
        yield address


@contextmanager
def started(command: Sequence[str], now: str = SOON["RLREC_NOW"]) -> Iterator[tuple[tuple[str, int], int]]:
    """The address and the id of a server, which ends with the block."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment({"RLREC_NOW": now})) as child:
        assert child.stdout is not None
        try:
            host, _, port = json.loads(child.stdout.readline())["listen"].rpartition(":")
            yield (host, int(port)), child.pid
        finally:
            child.terminate()


@contextmanager
def http_client(address: tuple[str, int]) -> Iterator[Talk]:
    """A connection that stays open: a line in, its answer out."""
    with socket.create_connection(address) as connection, connection.makefile("rb") as answers:

        def talk(line: bytes) -> bytes:
            connection.sendall(
                b"POST /pipe HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(line), line)
            )
            length = 0
            while (field := answers.readline()) != b"\r\n":
                if match := re.match(rb"(?i)Content-Length: (\d+)", field):
                    length = int(match[1])
            return answers.read(length)

        yield talk


@contextmanager
def pipe_client(db: str) -> Iterator[Talk]:
    """A pipe: a line in, its answer out."""
    command = rlrec("--db", db, "pipe")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(SOON)) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        stdin, stdout = child.stdin, child.stdout

        def talk(line: bytes) -> bytes:
            stdin.write(line)
            stdin.flush()
            return stdout.readline()

        yield talk
        stdin.close()


def rate(clients: list[Callable[[], Any]], rounds: int) -> float:
    """Requests a second of all clients, a process each."""
    processes = multiprocessing.get_context("spawn")
    barrier, spans = processes.Barrier(len(clients)), processes.SimpleQueue()
    started = [
        processes.Process(target=_run, args=(client, number, rounds, barrier, spans), daemon=True)
        for number, client in enumerate(clients)
    ]
    for process in started:
        process.start()
    measured = [spans.get() for _ in started]
    for process in started:
        process.join()
    return rounds * len(clients) / (max(end for _, end in measured) - min(start for start, _ in measured))


def _run(client: Callable[[], Any], number: int, rounds: int, barrier: Barrier, spans: Any) -> None:
    with client() as talk:
        ask(talk, f"c{number}-warm")
        barrier.wait(START_S)
        start = time.monotonic()
        for step in range(rounds):
            ask(talk, f"c{number}-{step}")
        spans.put((start, time.monotonic()))


def ask(talk: Talk, session: str) -> None:
    """One request, whose answer must be its own."""
    answer = json.loads(talk(ndjson([{"op": "recommend", "policy": "home", "session": session}])))
    if answer.get("session") != session:
        raise RuntimeError(f"asked for {session}, answered {answer}")
