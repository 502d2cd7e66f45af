"""The pages of the screen on a million decisions: what one costs that is made anew, and one that is looked at again and
again."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from statistics import median

from rlrec.cli import GC_THRESHOLD
from rlrec.cli.screen.contents import PAGES, PageMaker, StoreOptions
from rlrec.times import parse
from tests.benchmarks.measure import Figure, Setting
from tests.benchmarks.shops import LATER, Lite, logged, tell

DECISIONS, ASSIGNED, AT_MOST_S, LOOK_S = 1_000_000, 2_000, 0.3, 10.0
NOW = LATER["RLREC_NOW"]
QUERIES = {
    "policy": "name=log", "experiment": "name=rivals", "route": "name=front", "arm": "key=a1", "session": "key=s1",
    "user": "key=u1", "decision": "id=500000", "find": "q=u1",
}  # fmt: skip


def screens(setting: Setting) -> Iterator[Figure]:
    """CPU of each page. Some show figures of a command that reads much of the log: these carry their time, and are made
    once in many looks."""
    shop = logged(Lite(setting), setting, setting.size(DECISIONS), visit=4)
    tell(shop, "route", "create", "front", "--to", "home", now=NOW)
    tell(shop, "experiment", "create", "rivals", "--variant", "a=home", "--variant", "b=log", now=NOW)
    lines = [{"experiment": "rivals", "session": f"e{number}", "user": f"e{number // 2}"} for number in range(ASSIGNED)]
    tell(shop, "recommend", "--input", "-", lines=lines, now=NOW)
    for path in PAGES:
        new, looks = costs(shop.db, path)
        name = f"page {path or 'overview'}"
        yield Figure(name=f"{name}, made anew", value=new, unit="s", at_most=AT_MOST_S)
        yield Figure(name=f"{name}, of a look every {LOOK_S:.0f} s", value=looks, unit="s", at_most=AT_MOST_S)


def costs(db: str, path: str) -> tuple[float, float]:
    """Seconds of CPU of a page that is made anew, and of each look at a page that is shown again and again, in a
    process like those of the server."""
    gc.set_threshold(GC_THRESHOLD)
    options, query = StoreOptions(db, db, now=parse(NOW)), QUERIES.get(path, "")
    used, again = list[float](), list[float]()
    for _ in range(4):  # the first one loads modules
        maker = PageMaker(options)
        for seconds in (used, again):
            start = _cpu_s()
            page = maker.make(path, query)
            seconds.append(_cpu_s() - start)
            assert page.status in (200, 303), page.body
    new, look = median(used[1:]), median(again[1:])
    return new, look + new * min(1.0, LOOK_S / max(page.fresh_s, LOOK_S))


def _cpu_s() -> float:
    used = os.times()
    return time.process_time() + used.children_user + used.children_system
