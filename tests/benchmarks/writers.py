"""Many processes that recommend and give feedback on PostgreSQL: on one policy with one hot arm, or on one each."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.synchronize import Barrier
from typing import Any

from rlrec.app.requests.feedback import Line, feedback
from rlrec.app.requests.recommend import Request, recommend
from rlrec.app.serving.cache import ServingCache
from rlrec.store import Store
from rlrec.store.database.engine import Waits
from tests.benchmarks.measure import Figure, Setting
from tests.benchmarks.shops import Postgres, postgres_server, tell

WRITERS = 16
ROUNDS = 400  # of a recommendation and its feedback, a writer
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([__name__])  # a start costs more than many rounds


def hot_arm(setting: Setting) -> Iterator[Figure]:
    """Decisions a second with their feedback; the counts of the belief must be exact."""
    rounds = setting.size(ROUNDS)
    with postgres_server(setting) as server:
        base = Postgres(server)
        tell(base, "init")
        tell(base, "arm", "add", "hot")
        for name in ["home", *(f"home{number}" for number in range(WRITERS))]:
            tell(base, "policy", "create", name, "--kind", "thompson")
        speeds: dict[str, list[float]] = {"home": [], "home{}": []}
        for _ in range(setting.times(3)):
            for names, measured in speeds.items():
                measured.append(_speed(base.db, names, rounds))
        base.drop()
    hot, separate = (sorted(measured)[len(measured) // 2] for measured in speeds.values())
    yield Figure(
        name=f"PostgreSQL: {WRITERS} writers of one arm", value=hot, unit="/s", reference=separate, at_least=0.7
    )


def _speed(db: str, names: str, rounds: int) -> float:
    """Rounds a second of all writers together, without their start. names: of the policy of a writer, by number."""
    began, results = processes.Barrier(WRITERS + 1), processes.Queue()
    before = _pulls(db)
    started = [
        processes.Process(target=_write, args=(db, number, names.format(number), rounds, began, results))
        for number in range(WRITERS)
    ]
    for process in started:
        process.start()
    began.wait(120)
    start = time.perf_counter()
    for _ in started:
        results.get(timeout=600)
    seconds = time.perf_counter() - start
    for process in started:
        process.join(30)
    if (counted := _pulls(db) - before) != 2 * WRITERS * rounds:
        raise RuntimeError(f"beliefs counted {counted} pulls and clicks, not {2 * WRITERS * rounds}")
    return WRITERS * rounds / seconds


def _write(db: str, number: int, name: str, rounds: int, began: Barrier, results: Any) -> None:
    with closing(Store(db, waits=Waits(lock=120_000_000))) as store:
        cache, key = ServingCache(), f"{name}-{number}-{time.time_ns()}"
        with store.read():
            began.wait(120)
        for turn in range(rounds):
            answer = recommend(store, Request(policy=name, session=f"{key}-{turn}"), cache=cache)
            feedback(store, Line(decision_id=answer["decision_id"], position=1, events={"click": 1.0}))
    results.put(number)


def _pulls(db: str) -> float:
    """Pulls and clicks in all beliefs."""
    with closing(Store(db)) as store, store.read() as unit:
        return float(unit.ask_value("SELECT coalesce(sum(pulls + reward_sum), 0) FROM belief"))
