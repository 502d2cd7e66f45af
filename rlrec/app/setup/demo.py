"""The whole loop on the sample log: each step is a command that a reader can type."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from rlrec.errors import InputError, RlrecError
from rlrec.simulate.clicks import Bernoulli

HOURS = 12
VISITORS = 1_000  # an hour
SEED = 7


class DemoStep(NamedTuple):
    """A command and its purpose, as comments of a shell; `quiet` steps repeat others, and are not shown."""

    comment: str
    command: str
    quiet: bool


Result = TypedDict("Result", {"command": str, "output": str | None})  # None: not run, or written to a terminal
SampleFile = TypedDict("SampleFile", {"file": str, "bytes": int})


def samples() -> Path:
    """The folder of the sample data: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[2]
    inside = package / "sample_data"
    return inside if inside.is_dir() else package.parent / "sample_data"


def copy_samples(folder: Path, *, dry_run: bool = False) -> list[SampleFile]:
    """The sample files, copied into a folder. Raises InputError where another file of that name is there. dry_run: copy
    none."""
    pairs = [(source, folder / source.name) for source in sorted(samples().iterdir())]
    for source, target in pairs:
        if target.exists() and (not target.is_file() or target.read_bytes() != source.read_bytes()):
            raise InputError(f"{target} is there, and is another file", hint="name a new folder")
    if not dry_run:
        folder.mkdir(parents=True, exist_ok=True)
    for source, target in pairs:
        if not (dry_run or target.exists()):
            shutil.copyfile(source, target)
    return [{"file": str(target), "bytes": source.stat().st_size} for source, target in pairs]


LOG_STEPS = """
# Make a store: one SQLite file in this folder.
$ rlrec init

# Import a real log: 10,000 impressions of a fashion shop's front page (Open Bandit Dataset,
# Saito et al. 2020), chosen uniformly among 80 items. 38 of them were clicked.
$ rlrec import-log {data}/random_all.csv.gz --layout obd --policy random

# A Thompson policy that starts from the belief that the shop published.
$ rlrec policy create published --kind thompson --prior {data}/bts_all_prior.csv

# A greedy policy that learns from the log itself: always the items clicked most often so far.
$ rlrec policy create greedy --kind epsilon-greedy --param epsilon=0 --from-log policy=random

# What would each have earned on that page? The log can answer, since it holds the probability of
# every choice. Read the verdicts before the values. `uniform` is the policy that logged: a plain
# average, which can be trusted. `published` is weak: it prefers few items, one click carries much of
# its estimate, and the interval is wide. `greedy` looks best by far, but is judged on the very rows
# that it learned from (in-sample): that number is worth nothing. The log names no users, so it is
# said that each session is another person.
$ rlrec evaluate uniform published greedy --log policy=random --estimator snips --cluster session
"""
LIVE_STEPS = """
# Now live. The audience is simulated: it clicks each item at the rate that the item had in the log.
$ rlrec policy show greedy --format csv > rates.csv

# A new Thompson policy without any data. 5 % of every position stays uniform, so that its log can
# judge other policies.
$ rlrec policy create live --kind thompson --param floor=0.05
"""
HOUR_STEPS = """
# An hour of traffic: {visitors:,} visitors get three items each, with exact propensities in the log.
$ rlrec --now 2026-01-01T{hour:02}:00:00Z recommend --input visitors-{hour:02}.ndjson --seed {seed} > slates.ndjson

# The audience looks at the slates, and clicks.
$ rlrec demo --audience rates.csv --seed {hour} < slates.ndjson > clicks.ndjson

# The clicks come back, and the belief has learned. The same again for {more} more hours.
$ rlrec --now 2026-01-01T{hour:02}:10:00Z feedback --input clicks.ndjson
"""
LAST_STEPS = """
# The belief of `live` now: it has found the items that this audience likes, and serves them most.
# (These are the twelve that it shows most from now on; `rlrec policy show live` has all.)
$ rlrec policy show live --format csv > live.csv
(head -n 1 live.csv; tail -n +2 live.csv | sort -t, -k12 -g -r | head -n 12) | cut -d, -f 1,3,6,12

# Its own log judges others. The truth for `uniform` is {uniform} clicks an impression: is it
# inside the interval? `live` earned more than that while it was still learning (in-sample: its own log).
$ rlrec --now 2026-01-02 evaluate uniform live --log policy=live --estimator snips --cluster session

# Is all of it right? Beliefs are rebuilt from the log, and stored propensities are computed again.
$ rlrec --now 2026-01-02 doctor --sample 500
"""


def _steps(script: str, *, quiet: bool = False, **values: object) -> list[DemoStep]:
    blocks = (block.partition("\n$ ") for block in script.format(**values).strip().split("\n\n"))
    return [DemoStep(comment, command, quiet) for comment, _, command in blocks]


def log_steps() -> list[DemoStep]:
    """Steps before anything goes live: estimates from the log of another system."""
    return _steps(LOG_STEPS, data=shlex.quote(str(samples())))


def live_steps() -> list[DemoStep]:
    """Twelve simulated hours of traffic, with the clock given by --now."""
    steps = _steps(LIVE_STEPS)
    for hour in range(HOURS):
        steps += _steps(HOUR_STEPS, quiet=hour > 0, hour=hour, visitors=VISITORS, seed=SEED, more=HOURS - 1)
    return steps


def last_steps(uniform: float | None = None) -> list[DemoStep]:
    """Steps that show what was learned. uniform: clicks per impression of the uniform policy, from the audience's
    rates, where these are there."""
    return _steps(LAST_STEPS, uniform="..." if uniform is None else f"{uniform:.5f}")


def _play(folder: Path) -> Iterator[DemoStep]:
    """All steps, each to be run before the next one is asked for."""
    yield from log_steps()
    write_requests(folder)
    yield from live_steps()
    click_rates = rates(folder / "rates.csv")
    yield from last_steps(sum(click_rates.values()) / len(click_rates))


def plan(*, report: Callable[[str], None]) -> list[Result]:
    """The commands of `run`, none of which is run: `report` gets each step."""
    steps = [step for step in (*log_steps(), *live_steps(), *last_steps()) if not step.quiet]
    for step in steps:
        report(f"\n{step.comment}\n$ {step.command}\n")
    return [{"command": step.command, "output": None} for step in steps]


def run(
    folder: Path, *, report: Callable[[str], None], terminal: bool = False, colour: bool = True
) -> Iterator[Result]:
    """Run every step in a folder through the shell: `report` gets each step before it runs, then its output. terminal:
    steps write there themselves, so that their tables fit it; colour: whether they may have one."""
    # `rlrec` is this very program, whatever is on the PATH, and sees no RLREC_ variable of the caller.
    function = f'rlrec() {{ {shlex.quote(sys.executable)} -m rlrec "$@"; }}; '
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RLREC_")}
    clean |= {} if colour else {"NO_COLOR": "1"}
    for step in _play(folder):
        if not step.quiet:
            report(f"\n{step.comment}\n$ {step.command}\n")
        script = ["sh", "-c", function + step.command]
        stdout = None if terminal and not step.quiet else subprocess.PIPE
        done = subprocess.run(script, cwd=folder, env=clean, stdout=stdout, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RlrecError(f"`{step.command}` failed: {done.stderr.strip() or done.returncode}")
        if not step.quiet:
            report(done.stdout or "")
        yield {"command": step.command, "output": done.stdout}


def write_requests(folder: Path) -> None:
    """Write the requests of the visitors, a file an hour."""
    for hour in range(HOURS):
        with (folder / f"visitors-{hour:02}.ndjson").open("w", encoding="utf-8") as file:
            for number in range(VISITORS):
                request = {"policy": "live", "session": f"h{hour}-{number}", "user": f"u{number}", "k": 3}
                file.write(json.dumps(request) + "\n")


def rates(path: Path) -> dict[str, float]:
    """Click rate of each arm, from the columns arm and mean of a CSV."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["arm"]: float(row["mean"] or 0) for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"cannot read click rates from {path}", hint="it is a CSV with the columns arm and mean"
        ) from error


def clicks(path: Path, answers: Iterable[str], *, seed: int) -> Iterator[str]:
    """Lines for `feedback --input`: the clicks of an audience with these rates on the answers of `recommend`."""
    click_rates = rates(path)
    index = {arm: number for number, arm in enumerate(click_rates)}
    decisions = [answer for line in answers if (answer := json.loads(line)).get("decision_id")]
    slots = [(answer["decision_id"], slot) for answer in decisions for slot in answer["slate"]]
    actions = np.array([index.get(slot["arm"], len(index)) for _, slot in slots], np.intp)
    audience = Bernoulli(rates=(*click_rates.values(), 0.0))  # an arm without a rate is never clicked
    audience.reset(len(slots), np.random.default_rng(seed))
    _, clicked, *_ = audience.step(actions)
    for (decision_id, slot), click in zip(slots, clicked, strict=True):
        if click:
            yield json.dumps({"decision_id": decision_id, "position": slot["position"], "events": {"click": 1}})
