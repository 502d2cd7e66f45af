"""Whole logs: `import-log` against `executemany`, `evaluate` against a bare Arrow read; speed and memory."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import md5
from itertools import accumulate, islice
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks import replay
from tests.benchmarks.measure import Figure, Sample, Setting, beyond, growth, medians, process, python, rlrec, three
from tests.benchmarks.shops import LATER, Lite, Shop, copied, logged, tell

ROWS = 1_000_000
FEW = 100  # rows of the run that stands for the start-up
REPEATS = 3
FLAT = 1.1  # growth of memory over the last threefold of rows
ESTIMATORS = "ips,snips,clipped-ips:10,clipped-ips:20,dm,dr"

# -- import-log --

ITEMS, POSITIONS, CLICKS, LIKES = 80, 3, 0.004, 0.045
LEVELS = (3, 5, 8, 8)  # values of each user feature
COLUMNS_OF_TABLE = {name: name for name in ("session", "user", "at", "arm", "propensity")} | {
    "events": {"click": "click"}, "context": ["device", "country", "age"],
}  # fmt: skip
HEADER = ["", "timestamp", "item_id", "position", "click", "propensity_score"]


class Foreign(NamedTuple):
    """A log of one-decision sessions. write: the file from row `first` on; take_in: how it is imported."""

    name: str
    write: Callable[..., Path]
    take_in: Callable[[Shop, Path], Sample]
    at_least: int  # rows a second


def importing(setting: Setting) -> Iterator[Figure]:
    """The layout of the Open Bandit Dataset; contexts are as many as in its published sample."""
    options = "--layout", "obd", "--policy", "random"
    return _importing(setting, Foreign("import-log", obd, partial(_take_in, options), 100_000))


def importing_csv(setting: Setting) -> Iterator[Figure]:
    """A table with sessions, users and contexts."""
    columns = setting.path(".json")
    columns.write_text(json.dumps(COLUMNS_OF_TABLE))
    options = "--layout", "csv", "--map", columns, "--policy", "old"
    return _importing(setting, Foreign("import-log csv", visitors, partial(_take_in, options), 60_000))


def _importing(setting: Setting, log: Foreign) -> Iterator[Figure]:
    *_, size = sizes = three(setting.size(ROWS))
    files = {rows: log.write(setting.path(".csv"), rows, first=FEW) for rows in (FEW, *sizes)}
    base = Lite(setting)
    tell(base, "init")
    log.take_in(base, log.write(setting.path(".csv"), FEW, first=0))
    calls: dict[str, Callable[[], Sample]] = {
        str(rows): partial(_import, log, base, file) for rows, file in files.items()
    }
    with copied(base) as complete:
        log.take_in(complete, files[size])
        calls["reference"] = partial(_written, base, complete)
        result = medians(setting.times(REPEATS), calls)
    seconds = {name: setting.seconds(sample) for name, sample in result.items()}
    spent = beyond(seconds, FEW, sizes)
    rate = (size - FEW) / spent[size]
    yield Figure(name=f"{log.name}: rows a second", value=rate, unit="/s", at_least=log.at_least)
    yield Figure(name=f"{log.name}: to executemany", value=rate, unit="/s", reference=size / seconds["reference"])
    yield from _memory(log.name, result, sizes)
    yield growth(log.name, spent)


def _import(log: Foreign, base: Shop, file: Path) -> Sample:
    with copied(base) as shop:
        return log.take_in(shop, file)


def _take_in(options: Sequence[str | Path], shop: Shop, file: Path) -> Sample:
    return process(rlrec("--db", shop.db, "import-log", file, *options))


def _written(base: Shop, complete: Shop) -> Sample:
    with copied(base) as shop:
        return replay.written(shop, [replay.imported(base, complete)])


def visitors(path: Path, rows: int, *, first: int) -> Path:
    """A table from row `first` on: 50 arms, 240 contexts, users of five sessions, 5 clicks in 100."""
    draw, start = random.Random(first), datetime(2026, 1, 1, tzinfo=UTC)
    contexts = [(draw.choice("abc"), draw.choice("pqrst"), draw.randint(18, 77)) for _ in range(240)]
    with path.open("w") as file:
        file.write("session,user,at,arm,propensity,click,device,country,age\n")
        for n in range(first, first + rows):
            at = (start + timedelta(seconds=n)).isoformat()
            device, country, age = draw.choice(contexts)
            shown = f"a{n % 50},0.02,{int(draw.random() < 0.05)}"
            file.write(f"s{n},u{n // 5},{at},{shown},{device},{country},{age}\n")
    return path


def obd(path: Path, rows: int, *, first: int) -> Path:
    """The file, made in the shape of the Open Bandit Dataset, from row `first` on.

    Like its sample: 240 sets of user features in 10,000 rows, one row in 22 with an affinity, 4 clicks in 1,000."""
    names = [f"user_feature_{n}" for n in range(len(LEVELS))] + [f"user-item_affinity_{n}" for n in range(ITEMS)]
    with path.open("w") as file:
        file.write(",".join(HEADER + names) + "\n")
        file.writelines(islice(_impressions(), first, first + rows))
    return path


def _impressions() -> Iterator[str]:
    draw = random.Random(11)
    values = [[md5(f"{feature}/{n}".encode()).hexdigest() for n in range(levels)] for feature, levels in
              enumerate(LEVELS)]  # fmt: skip
    weights = [list(accumulate(1 / (1 + n) ** 2.6 for n in range(levels))) for levels in LEVELS]
    nothing, at = ["0.0"] * ITEMS, datetime(2019, 11, 24, tzinfo=UTC)
    plain = ",".join(nothing)
    number = 0
    while True:
        at += timedelta(microseconds=draw.randint(1, 1_000_000))
        user = ",".join(
            draw.choices(stored, cum_weights=chance)[0] for stored, chance in zip(values, weights, strict=True)
        )
        likes = plain
        if draw.random() < LIKES:
            liked = nothing.copy()
            liked[int(ITEMS * draw.random() ** 2)] = "1.0"
            likes = ",".join(liked)
        item, position, click = draw.randrange(ITEMS), draw.randint(1, POSITIONS), int(draw.random() < CLICKS)
        yield f"{number},{at},{item},{position},{click},{1 / ITEMS},{user},{likes}\n"
        number += 1


# -- evaluate --

READ = """
import sys
import adbc_driver_sqlite.dbapi as adbc
with adbc.connect(f"file:{sys.argv[1]}?mode=ro") as connection, connection.cursor() as cursor:
    for query in sys.argv[2:]:
        cursor.execute(query)
        for batch in cursor.fetch_record_batch():
            pass
"""
COLUMNS = (
    "SELECT d.id, d.session_id, n.user_id, d.at, d.policy_id, d.version_id, d.belief_seq, d.context_id, d.eligible_id,"
    " d.size, d.imported, s.position, s.arm_id, s.propensity, s.marginal, s.min_propensity, s.censored"
    " FROM decision d JOIN slot s ON s.decision_id = d.id JOIN session n ON n.id = d.session_id",
    "SELECT decision_id, position, kind, value, at FROM event",
)


def evaluating(setting: Setting) -> Iterator[Figure]:
    """Six estimators with intervals of a Thompson policy, on the log of a uniform one; clusters are users."""
    *_, size = sizes = three(setting.size(ROWS))
    shops = {rows: logged(Lite(setting), setting, rows, visit=4) for rows in (FEW, *sizes)}
    calls: dict[str, Callable[[], Sample]] = {str(rows): partial(_evaluate, shop) for rows, shop in shops.items()}
    calls["reference"] = partial(process, [*python(READ), shops[size].db, *COLUMNS])
    result = medians(setting.times(REPEATS), calls)
    seconds = {name: setting.seconds(sample) for name, sample in result.items()}
    name = "evaluate, six estimators, from start to exit"
    yield Figure(name=name, value=seconds[str(size)], unit="s", reference=seconds["reference"], at_most=4)
    yield Figure(name="evaluate: resident memory", value=result[str(size)].memory, unit="MB", at_most=150)
    yield from _memory("evaluate", result, sizes)
    yield growth("evaluate", beyond(seconds, FEW, sizes))


def _evaluate(shop: Shop) -> Sample:
    options = ["--log", "policy=log", "--estimator", ESTIMATORS]
    return process(rlrec("--db", shop.db, "evaluate", "home", *options), added=LATER)


def _memory(name: str, result: Mapping[str, Sample], sizes: Sequence[int]) -> Iterator[Figure]:
    peaks = [result[str(rows)].memory for rows in sizes]
    shown = ", ".join(f"{peak:.0f} MB at {rows:,}" for rows, peak in zip(sizes, peaks, strict=True))
    yield Figure(name=f"{name}: peak memory ({shown})", value=peaks[-1], unit="MB", reference=peaks[-2], at_most=FLAT)
