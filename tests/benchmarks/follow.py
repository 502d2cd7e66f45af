"""`import-log --follow`: killed again and again while somebody writes and rotates the file; what it costs to wait."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tests.benchmarks.measure import Figure, Setting, rlrec, said
from tests.benchmarks.shops import Lite, Postgres, Shop, postgres_server

KILLS, LINES = 50, 20_000
POLL_S = 0.05
POSITION = "SELECT max(result) FROM run WHERE command = 'import-log --follow'"
IDLE_S = 20.0


def follow(setting: Setting) -> Iterator[Figure]:
    """On both databases; a line is stored once, whatever happens, with those that are alike."""
    yield from _figures(setting, Lite(setting), "SQLite")
    with postgres_server(setting) as server:
        yield from _figures(setting, Postgres(server), "PostgreSQL")


def _figures(setting: Setting, shop: Shop, name: str) -> Iterator[Figure]:
    said(rlrec("-q", "--db", shop.db, "init"))
    log, lines = setting.path(".jsonl"), setting.size(LINES)
    writer = Writer(shop, log, lines)
    writer.start()
    draw, kills = random.Random(5), max(round(KILLS * setting.scale), 2)
    for _ in range(kills):
        process = _started(shop, log)
        time.sleep(draw.uniform(0.3, 1.5))
        process.kill()
        process.wait()
    process = _started(shop, log)
    writer.ended.set()
    writer.join()
    stored = _settled(shop, lines)
    began = _cpu_s(process.pid)
    time.sleep(IDLE_S * setting.scale)
    idle = (_cpu_s(process.pid) - began) / (IDLE_S * setting.scale)
    process.terminate()
    process.wait()
    wrong = sum((Counter(writer.lines) - stored).values()) + sum((stored - Counter(writer.lines)).values())
    yield Figure(name=f"lines lost or doubled after {kills} kills, {name}", value=wrong, unit="lines", at_most=0)
    yield Figure(name=f"waiting, {1 / POLL_S:g} looks a second, {name}", value=idle, unit="CPU", at_most=0.02)


class Writer(threading.Thread):
    """Appends lines in pieces that end anywhere, and rotates the file now and then. Every seventh line is one that the
    file has already. lines: the session of each."""

    def __init__(self, shop: Shop, path: Path, count: int) -> None:
        super().__init__()
        self.shop = shop
        self.path, self.count, self.ended, self.lines = path, count, threading.Event(), list[str]()

    def run(self) -> None:
        draw, data = random.Random(7), b""
        for number in range(self.count):
            rotates = number % (self.count // 8) == self.count // 9
            if rotates:
                self._write(data)
                data = b""
                self._rotate(number)
            again = number % 7 == 6 and number % (self.count // 8) > self.count // 9 + 20
            self.lines.append(self.lines[-3] if again else f"s{number}")
            line = {"session": self.lines[-1], "slate": [{"arm": "a", "propensity": 0.5}], "eligible": ["a", "b"]}
            data += json.dumps(line).encode() + b"\n"
            if draw.random() < 0.05:
                cut = draw.randrange(len(data))
                self._write(data[:cut])
                data = data[cut:]
                if not self.ended.is_set():
                    time.sleep(draw.uniform(0, 0.1))
        self._write(data)

    def _write(self, data: bytes) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(data)

    def _rotate(self, number: int) -> None:
        """Give the file another name, once some of it is stored: nobody finds a file that was renamed twice."""
        with closing(self.shop.connect()) as connection:
            while (
                json.loads(next(iter(connection.execute(POSITION)))[0] or "{}").get("inode") != self.path.stat().st_ino
            ):
                time.sleep(0.1)
        self.path.rename(f"{self.path}.{number}")
        self.path.touch()


def _started(shop: Shop, log: Path) -> subprocess.Popen[bytes]:
    options = ("--layout", "jsonl", "--policy", "old", "--follow", "--poll", f"{POLL_S * 1000:g}ms")
    return subprocess.Popen(rlrec("-q", "--db", shop.db, "import-log", log, *options), stdout=subprocess.DEVNULL)


def _settled(shop: Shop, count: int) -> Counter[str]:
    """How often the store has each session, once it has so many decisions, or no more come."""
    for _ in range(60):
        exported = said(rlrec("-q", "--db", shop.db, "export-log", "-")).splitlines()
        if len(exported) >= count:
            break
        time.sleep(1)
    return Counter(json.loads(line)["session"] for line in exported)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
