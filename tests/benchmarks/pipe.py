"""`rlrec pipe`, one line at a time: what a decision costs beyond its commit."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing

from tests.benchmarks import replay
from tests.benchmarks.measure import Figure, Setting, environment, growth, rlrec, three
from tests.benchmarks.shops import FIRST, SOON, Lite, Shop, copied, ndjson
from tests.benchmarks.streams import served

ROUNDS = 2_000
CLICKS = 9  # clicks before each decision, each on another page: with the arm served before, at most 10 arms change


def pipe(setting: Setting) -> Iterator[Figure]:
    """Median of a recommend of a known session, less the median of its bare transaction."""
    rounds = setting.size(ROUNDS)
    base = served(Lite(setting), setting, rounds * CLICKS)
    before = replay.marks(base, "home")
    with copied(base) as shop:
        taken = _talk(shop, rounds)
        groups = replay.groups(shop, before, replay.DECIDED)
    decisions = [group for group in groups if any(rows.table == "decision" for rows in group)]
    with copied(base) as shop:
        bare = _bare(shop, decisions)
    complete, commit = (1000 * statistics.median(seconds[rounds // 10 :]) for seconds in (taken, bare))
    yield Figure(name="recommend through pipe, an answer", value=complete, unit="ms", reference=commit)
    yield Figure(name="recommend through pipe, beyond the commit", value=complete - commit, unit="ms", at_most=1.0)
    yield growth("recommend through pipe", {number: sum(taken[1:number]) for number in three(rounds)})


def _talk(shop: Shop, rounds: int) -> list[float]:
    """Seconds from each request to its answer."""
    process = subprocess.Popen(
        rlrec("--db", shop.db, "pipe"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(SOON)
    )
    taken = []
    for number in range(rounds):
        first = FIRST + number * CLICKS
        clicks = [{"op": "feedback", "decision_id": first + n, "events": {"click": 1}} for n in range(CLICKS)]
        _ask(process, clicks)
        start = time.perf_counter()
        _ask(process, [{"op": "recommend", "policy": "home", "session": f"n{number}"}])
        taken.append(time.perf_counter() - start)
    process.communicate()
    if process.returncode:
        raise RuntimeError(f"rlrec pipe exited with {process.returncode}")
    return taken


def _ask(process: subprocess.Popen[bytes], lines: Sequence[object]) -> None:
    """Write lines, and wait for as many answers."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(ndjson(lines))
    process.stdin.flush()
    for _ in lines:
        if b'"decision_id"' not in (answer := process.stdout.readline()):
            raise RuntimeError(f"rlrec pipe answered {answer!r}")


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
