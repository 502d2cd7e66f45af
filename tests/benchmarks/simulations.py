"""The tests that play many logs, each with the false-alarm rate that it states: they tighten what exact tests say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.measure import Figure, Setting

ROOT = Path(__file__).resolve().parents[2]


def simulations(setting: Setting) -> Iterator[Figure]:
    """How many of the tests marked `simulation` fail, at full size whatever the setting."""
    command = [sys.executable, "-m", "pytest", "-n", "2", "-m", "simulation", "tests"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    passed, failed = (re.search(rf"(\d+) {word}", done.stdout) for word in ("passed", "failed"))
    if done.returncode not in (0, 1) or not (passed or failed):
        raise RuntimeError(done.stdout[-2_000:])
    yield Figure(name="simulations that fail", value=float(failed[1] if failed else 0), unit="tests", at_most=0.0)
