"""`rlrec serve` with many clients, against as many `rlrec pipe` as a web server of few workers would run."""

from __future__ import annotations

import json
import multiprocessing
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.synchronize import Barrier
from typing import Any

from tests.benchmarks.measure import Figure, Setting, environment, rlrec
from tests.benchmarks.shops import SOON, Lite, Postgres, Shop, copied, ndjson, postgres_server, stocked

CLIENTS, PIPES, REQUESTS = 16, 8, 4_000  # requests: of all clients together
START_S = 120.0
Talk = Callable[[bytes], bytes]


def serve(setting: Setting) -> Iterator[Figure]:
    """Requests a second of 16 clients of one server, and of 8 pipes on one store; each waits for its answer."""
    yield _against_pipes("serve", stocked(Lite(setting), setting), setting)


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
    command = rlrec("--db", db, "serve", "--listen", "127.0.0.1:0", "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment({"RLREC_NOW": now})) as child:
        assert child.stdout is not None
        try:
            host, _, port = json.loads(child.stdout.readline())["listen"].rpartition(":")
            yield host, int(port)
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
