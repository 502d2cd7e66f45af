"""Samples, medians of interleaved repeats, and figures with their goals."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

NOT_COMPILED = "PYTHONDONTWRITEBYTECODE"
# A process that starts another one leaves its own size in that one's peak: so a small one stands between.
LAUNCHER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
wall = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


@dataclass(frozen=True)
class Sample:
    """Seconds of wall clock, seconds of CPU, and (of a process) the peak of resident memory in MB."""

    wall: float
    cpu: float
    memory: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What was measured, what the reference did in the same run, and the goal: of the ratio where there is one."""

    name: str
    value: float
    unit: str
    reference: float | None = None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.reference is None else self.value / self.reference

    @property
    def passed(self) -> bool | None:
        """None where there is no goal."""
        judged = self.value if self.ratio is None else self.ratio
        if self.at_most is not None:
            return bool(judged <= self.at_most)
        return None if self.at_least is None else bool(judged >= self.at_least)

    def json(self) -> dict[str, Any]:
        numbers = {**self.__dict__, "ratio": self.ratio, "passed": self.passed}
        return {name: None if value != value else value for name, value in numbers.items()}  # NaN is no JSON


@dataclass(kw_only=True)
class Setting:
    """scale: of the full sizes; clock: `wall`, or `cpu` where other work shares the machine."""

    folder: Path
    scale: float = 1.0
    repeats: int | None = None
    clock: str = "wall"
    postgres: str | None = None

    def size(self, full: int) -> int:
        return max(int(full * self.scale), 100)

    def times(self, usual: int) -> int:
        return self.repeats or usual

    def seconds(self, sample: Sample) -> float:
        return sample.cpu if self.clock == "cpu" else sample.wall

    def path(self, suffix: str) -> Path:
        """A new file of the benchmark's own folder."""
        number, name = tempfile.mkstemp(suffix, dir=self.folder)
        os.close(number)
        return Path(name)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def rlrec(*arguments: object) -> list[str]:
    """The installed program of this very Python."""
    return [str(Path(sys.executable).with_name("rlrec")), *map(str, arguments)]


def process(command: Sequence[str], *, added: Mapping[str, str] | None = None) -> Sample:
    """A whole process from start to exit, its output thrown away."""
    launched = [sys.executable, "-I", "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(launched, env=environment(added), capture_output=True, check=True)
    code, *numbers = json.loads(done.stdout)
    if code:
        raise RuntimeError(f"{' '.join(command)} exited with {code}: {done.stderr.decode()[-2000:]}")
    return Sample(*numbers)


def said(command: Sequence[str], *, stdin: bytes = b"", added: Mapping[str, str] | None = None) -> bytes:
    """What a command prints; for what is prepared and not measured."""
    done = subprocess.run(command, input=stdin, env=environment(added), capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}: {done.stderr.decode()[-2000:]}")
    return done.stdout


def environment(added: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's own without what is meant for rlrec or keeps it from being compiled once, and what is added."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RLREC_", NOT_COMPILED))}
    return kept | dict(added or {})


class Stopwatch:
    """Adds up what happens inside `with` blocks in this process."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> None:
        gc.disable()
        self._started = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._started[0]
        self.cpu += time.process_time() - self._started[1]
        gc.enable()

    @property
    def sample(self) -> Sample:
        return Sample(self.wall, self.cpu)


def timed(work: Callable[[], object]) -> Sample:
    watch = Stopwatch()
    with watch:
        work()
    return watch.sample


def medians(repeats: int, calls: Mapping[str, Callable[[], Sample]]) -> dict[str, Sample]:
    """The median of each number of each call; the calls take turns, so that a busy moment hits all alike."""
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            samples[name].append(call())
    return {
        name: Sample(*map(statistics.median, zip(*map(astuple, found), strict=True))) for name, found in samples.items()
    }


def beyond(seconds: Mapping[str, float], few: int, sizes: Iterable[int]) -> dict[int, float]:
    """Seconds by size without the start-up, which a run of few lines stands for; NaN, which passes no goal, where the
    noise was larger than that."""
    return {size: spent if (spent := seconds[str(size)] - seconds[str(few)]) > 0 else math.nan for size in sizes}


def growth(name: str, seconds: Mapping[int, float]) -> Figure:
    """The slope of log(time) over log(size): 1 is linear."""
    sizes = [math.log(size) for size in seconds]
    times = [math.log(value) for value in seconds.values()]
    slope = statistics.linear_regression(sizes, times).slope
    shown = ", ".join(f"{size / value:,.0f}/s at {size:,}" for size, value in seconds.items())
    return Figure(name=f"{name}: growth ({shown})", value=slope, unit="", at_most=1.1)


def three(size: int) -> list[int]:
    return [size // 10, size // 3, size]


def machine() -> str:
    """What the figures were measured on."""
    import numpy

    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), load {load}; Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, numpy {numpy.__version__}"
    )


# -- the table --

WIDTHS = (64, 14, 14, 8, 10, 4)
HEADS = ("what", "measured", "reference", "ratio", "goal", "")


def table(figures: Iterable[Figure]) -> Iterator[str]:
    """Lines of the table, each as soon as its figure is there."""
    yield _line(HEADS)
    yield _line(["-" * width for width in WIDTHS])
    for one in figures:
        goal = f"<= {one.at_most:.4g}" if one.at_most is not None else f">= {one.at_least:.4g}" if one.at_least else ""
        yield _line([
            one.name,
            _amount(one.value, one.unit),
            "" if one.reference is None else _amount(one.reference, one.unit),
            "" if one.ratio is None else f"{one.ratio:.3f}",
            goal,
            {True: "pass", False: "FAIL", None: ""}[one.passed],
        ])  # fmt: skip


def _line(cells: Sequence[str]) -> str:
    first, *rest = cells
    numbers = "  ".join(f"{cell:>{width}}" for cell, width in zip(rest, WIDTHS[1:], strict=True))
    return f"{first:<{WIDTHS[0]}}  {numbers}" if len(first) <= WIDTHS[0] else f"{first}\n{'':{WIDTHS[0]}}  {numbers}"


def _amount(value: float, unit: str) -> str:
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {unit}".rstrip()
