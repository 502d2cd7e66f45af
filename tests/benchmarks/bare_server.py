"""A bare HTTP server on asyncio and sqlite3, beside which `rlrec serve` is measured: each request is a transaction that
stores a decision and the slot of an arm at random. Its argument is the file; it prints its port."""

from __future__ import annotations

import asyncio
import json
import random
import re
import sqlite3
import sys
import time
from contextlib import closing, suppress

from tests.benchmarks.shops import ARMS, PRAGMAS

TABLES = """
    CREATE TABLE decision (id INTEGER PRIMARY KEY, session TEXT NOT NULL, policy TEXT NOT NULL, at INTEGER NOT NULL);
    CREATE TABLE slot (
        decision_id INTEGER REFERENCES decision, position INTEGER, arm INTEGER NOT NULL, propensity REAL NOT NULL,
        PRIMARY KEY (decision_id, position)
    ) WITHOUT ROWID;
"""


class Bare:
    """A server that answers one request after another."""

    def __init__(self, store: sqlite3.Connection) -> None:
        self.store = store

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                assert length is not None
                body = self.answer(json.loads(await reader.readexactly(int(length[1]))))
                kind = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
                writer.write(b"%b%d\r\n\r\n%b" % (kind, len(body), body))
                await writer.drain()
        writer.close()

    def answer(self, line: dict[str, str]) -> bytes:
        """The answer to a request, which is stored."""
        arm, at = random.randrange(ARMS), time.time_ns() // 1_000
        self.store.execute("BEGIN IMMEDIATE")
        values = line["session"], line["policy"], at
        key = self.store.execute("INSERT INTO decision (session, policy, at) VALUES (?, ?, ?)", values).lastrowid
        self.store.execute("INSERT INTO slot VALUES (?, 1, ?, ?)", (key, arm, 1 / ARMS))
        self.store.execute("COMMIT")
        slot = {"position": 1, "arm": f"a{arm}", "propensity": 1 / ARMS}
        return json.dumps({"decision_id": key, "session": line["session"], "slate": [slot]}).encode() + b"\n"


async def main(path: str) -> None:
    """Serve until the process is ended."""
    with closing(sqlite3.connect(path, isolation_level=None)) as store:
        for pragma in PRAGMAS:
            store.execute(f"PRAGMA {pragma}")
        store.executescript(TABLES)
        server = await asyncio.start_server(Bare(store).serve, "127.0.0.1", 0)
        print(json.dumps({"listen": f"127.0.0.1:{server.sockets[0].getsockname()[1]}"}), flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
