"""Commands that look at a store: what they cost where it is long, against a store of a hundred decisions."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from functools import partial

from tests.benchmarks.logs import FEW, REPEATS, ROWS
from tests.benchmarks.measure import Figure, Sample, Setting, beyond, growth, medians, process, rlrec, three
from tests.benchmarks.shops import LATER, Lite, Shop, logged

LOOKS = {"status": 1.5, "session list": 1.2, "policy show log": 2.0, "doctor --sample 1000": 2.5, "report -": 8.0}


def looking(setting: Setting) -> Iterator[Figure]:
    """What is read does not grow with the log, but for the report, and outcomes grow as the log does."""
    *_, size = sizes = three(setting.size(ROWS))
    shops = {rows: logged(Lite(setting), setting, rows, visit=4) for rows in (FEW, *sizes)}
    for command, at_most in LOOKS.items():
        calls: dict[str, Callable[[], Sample]] = {
            str(rows): partial(_look, shops[rows], command) for rows in (FEW, size)
        }  # fmt: skip
        seconds = {name: setting.seconds(sample) for name, sample in medians(setting.times(REPEATS), calls).items()}
        name = f"{command}, {size:,} decisions to {FEW}"
        yield Figure(name=name, value=seconds[str(size)], unit="s", reference=seconds[str(FEW)], at_most=at_most)
    calls = {str(rows): partial(_look, shop, "outcomes") for rows, shop in shops.items()}
    seconds = {name: setting.seconds(sample) for name, sample in medians(setting.times(REPEATS), calls).items()}
    yield growth("outcomes", beyond(seconds, FEW, sizes))


def _look(shop: Shop, command: str) -> Sample:
    """A whole process; 3 is the end of an audit that found something: the log was drawn by nobody."""
    words = shlex.join([*rlrec("-q", "--db", shop.db), *command.split()])
    return process(["sh", "-c", f"{words} || [ $? = 3 ]"], added=LATER)
