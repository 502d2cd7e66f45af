"""Commands that are run once: whole processes, against the bare imports and against a longer log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count

from tests.benchmarks.measure import Figure, Sample, Setting, medians, process, python, rlrec
from tests.benchmarks.shops import Lite, Shop, logged, stocked, tell

REPEATS = 21
LOG = 10_000_000
CLICK, CLICK_SQL, CLICK_SQL_NUMPY = "import click", "import click, sqlalchemy", "import click, sqlalchemy, numpy"
# name: the imports it is measured against, and how many times their time it may take
GOALS = {
    "rlrec --help": (CLICK, 1.5),
    "rlrec --version": (CLICK, 1.5),
    "recommend once": (CLICK_SQL_NUMPY, 1.35),
    "recommend once --json": (CLICK_SQL_NUMPY, 1.35),
    "feedback once": (CLICK_SQL, 1.25),
    "feedback once --json": (CLICK_SQL, 1.25),
}


def startup(setting: Setting) -> Iterator[Figure]:
    """Help, one recommend of a known session among 100 arms, and one feedback."""
    shop = stocked(Lite(setting), setting)
    decisions = [{"policy": "home", "session": "s1"}] * (2 * setting.times(REPEATS) + 2)
    tell(shop, "recommend", "--input", "-", lines=decisions)
    serial = count(1)

    def feedback(*options: str) -> Sample:
        return process(rlrec("--db", shop.db, "feedback", next(serial), "click", *options))

    calls: dict[str, Callable[[], Sample]] = {
        name: partial(process, python(name)) for name in (CLICK, CLICK_SQL, CLICK_SQL_NUMPY)
    }
    calls |= {
        "rlrec --help": partial(process, rlrec("--help")),
        "rlrec --version": partial(process, rlrec("--version")),
        "recommend once": partial(process, _recommend(shop)),
        "recommend once --json": partial(process, [*_recommend(shop), "--json"]),
        "feedback once": feedback,
        "feedback once --json": partial(feedback, "--json"),
    }
    result = _milliseconds(setting, calls)
    for name, (reference, goal) in GOALS.items():
        yield Figure(name=name, value=result[name], unit="ms", reference=result[reference], at_most=goal)


def large(setting: Setting) -> Iterator[Figure]:
    """One recommend with ten million decisions in the log, and with a thousand."""
    size = setting.size(LOG)
    few, many = (logged(Lite(setting), setting, decisions, visit=4) for decisions in (1_000, size))
    calls = {name: partial(process, _recommend(shop)) for name, shop in (("few", few), ("many", many))}
    result = _milliseconds(setting, calls)
    many.drop()
    name = f"recommend once with {size:,} decisions in the log, against 1,000"
    yield Figure(name=name, value=result["many"], unit="ms", reference=result["few"], at_most=1.1)


def _recommend(shop: Shop) -> Sequence[str]:
    return rlrec("--db", shop.db, "recommend", "--policy", "home", "--session", "s1")


def _milliseconds(setting: Setting, calls: Mapping[str, Callable[[], Sample]]) -> dict[str, float]:
    """Medians, after one round that leaves everything warm."""
    medians(1, calls)
    result = medians(setting.times(REPEATS), calls)
    return {name: 1000 * setting.seconds(sample) for name, sample in result.items()}
