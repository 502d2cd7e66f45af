"""`rlrec pipe`, one line at a time: what a decision costs beyond its commit."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from tests.benchmarks import replay
from tests.benchmarks.measure import Figure, Setting, rlrec
from tests.benchmarks.shops import Lite, Shop, copied, logged, ndjson

ROUNDS = 2_000
TOUCHED = 9  # arms whose belief changes before each decision, by feedback; the decision before changed one more


def pipe(setting: Setting) -> Iterator[Figure]:
    """Median of a recommend, with feedback on other decisions in between, less the median of its bare transaction."""
    rounds = setting.size(ROUNDS)
    base = logged(Lite(setting), setting, max(rounds, 100))
    before = replay.marks(base, "home")
    with copied(base) as shop:
        taken = _talk(shop, rounds)
        groups = replay.groups(shop, before, replay.DECIDED)
    decisions = [group for group in groups if any(rows.table == "decision" for rows in group)]
    with copied(base) as shop:
        bare = _bare(shop, decisions)
    whole, commit = (1000 * statistics.median(seconds[TOUCHED + 1 :]) for seconds in (taken, bare))
    yield Figure(name="recommend through pipe, an answer", value=whole, unit="ms", reference=commit)
    yield Figure(name="recommend through pipe, beyond the commit", value=whole - commit, unit="ms", at_most=1.0)


def _talk(shop: Shop, rounds: int) -> list[float]:
    """Seconds from each request to its answer."""
    process = subprocess.Popen(rlrec("--db", shop.db, "pipe"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    answers, taken = list[dict[str, Any]](), list[float]()
    for number in range(rounds):
        request = ndjson([{"op": "recommend", "policy": "home", "session": f"s{1 + number % rounds}"}])
        start = time.perf_counter()
        process.stdin.write(request)
        process.stdin.flush()
        answer = process.stdout.readline()
        taken.append(time.perf_counter() - start)
        if not answer:
            raise RuntimeError("rlrec pipe ended before its input")
        answers.append(json.loads(answer))
        told = [
            {"op": "feedback", "decision_id": one["decision_id"], "events": {"click": 1}} for one in answers[-TOUCHED:]
        ]
        process.stdin.write(ndjson(told))
        process.stdin.flush()
        for _ in told:
            process.stdout.readline()
    process.stdin.close()
    if process.wait():
        raise RuntimeError(f"rlrec pipe exited with {process.returncode}")
    return taken


def _bare(shop: Shop, decisions: Sequence[replay.Group]) -> list[float]:
    """Seconds of each decision's rows in a transaction of their own."""
    taken = []
    with closing(shop.connect()) as connection:
        for group in decisions:
            start = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            for rows in group:
                replay.executemany(connection, rows)
            connection.execute("COMMIT")
            taken.append(time.perf_counter() - start)
    return taken
