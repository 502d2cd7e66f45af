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
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from rlrec.errors import InputError, RlrecError
from rlrec.simulate.bernoulli import Bernoulli

HOURS = 12
VISITORS = 1_000  # an hour
SEED = 7


@dataclass(frozen=True, kw_only=True)
class DemoStep:
    """A command and its purpose; `quiet` steps repeat others, and are not shown."""

    why: str
    command: str
    quiet: bool = False


Result = TypedDict("Result", {
    "command": str, "output": str,
})  # fmt: skip


SampleFile = TypedDict("SampleFile", {
    "file": str, "bytes": int,
})  # fmt: skip


def samples() -> Path:
    """The folder of the sample data: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "sample_data"
    return inside if inside.is_dir() else package.parent / "sample_data"


def copy_samples(folder: Path) -> list[SampleFile]:
    """The sample files, copied into a folder. Raises InputError where another file of that name is there."""
    pairs = [(source, folder / source.name) for source in sorted(samples().iterdir())]
    for source, target in pairs:
        if target.exists() and (not target.is_file() or target.read_bytes() != source.read_bytes()):
            raise InputError(f"{target} is there, and is another file", hint="name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for source, target in pairs:
        if not target.exists():
            shutil.copyfile(source, target)
    return [{"file": str(target), "bytes": source.stat().st_size} for source, target in pairs]


def before() -> list[DemoStep]:
    """Steps before anything goes live: estimates from the log of another system."""
    data = shlex.quote(str(samples()))
    return [
        DemoStep(why="Make a store: one SQLite file in this folder.", command="rlrec init"),
        DemoStep(
            why="Import a real log: 10,000 impressions of a fashion shop's front page (Open Bandit Dataset,\n"
            "Saito et al. 2020), chosen uniformly among 80 items. 38 of them were clicked.",
            command=f"rlrec import-log {data}/random_all.csv.gz --layout obd --policy random",
        ),
        DemoStep(
            why="A Thompson policy that starts from the belief that the shop published.",
            command=f"rlrec policy create published --kind thompson --prior {data}/bts_all_prior.csv",
        ),
        DemoStep(
            why="A greedy policy that learns from the log itself: always the items clicked most often so far.",
            command="rlrec policy create greedy --kind epsilon-greedy --param epsilon=0 --from-log policy=random",
        ),
        DemoStep(
            why="What would each have earned on that page? The log can answer, since it holds the probability of\n"
            "every choice. Read the verdicts before the values. `uniform` is the policy that logged: a plain\n"
            "average, which can be trusted. `published` is weak: it prefers few items, one click carries much of\n"
            "its estimate, and the interval is wide. `greedy` looks best by far, but is judged on the very rows\n"
            "that it learned from (in-sample): that number is worth nothing.",
            command="rlrec evaluate uniform published greedy --log policy=random --estimator snips",
        ),
    ]


def live() -> list[DemoStep]:
    """Twelve simulated hours of traffic, with the clock given by --now."""
    first = [
        DemoStep(
            why="Now live. The audience is simulated: it clicks each item at the rate that the item had in the log.",
            command="rlrec policy show greedy --format csv > rates.csv",
        ),
        DemoStep(
            why="A new Thompson policy without any data. 5 % of every position stays uniform, so that its log can\n"
            "judge other policies.",
            command="rlrec policy create live --kind thompson --param floor=0.05",
        ),
    ]
    return first + [step for hour in range(HOURS) for step in _hour(hour)]


def _hour(hour: int) -> list[DemoStep]:
    quiet, clock = hour > 0, f"rlrec --now 2026-01-01T{hour:02}"
    return [
        DemoStep(
            why=f"An hour of traffic: {VISITORS:,} visitors get three items each, with exact propensities in the log.",
            command=f"{clock}:00:00Z recommend --input visitors-{hour:02}.ndjson --seed {SEED} > slates.ndjson",
            quiet=quiet,
        ),
        DemoStep(
            why="The audience looks at the slates, and clicks.",
            command=f"rlrec demo --audience rates.csv --seed {hour} < slates.ndjson > clicks.ndjson",
            quiet=quiet,
        ),
        DemoStep(
            why=f"The clicks come back, and the belief has learned. The same again for {HOURS - 1} more hours.",
            command=f"{clock}:10:00Z feedback --input clicks.ndjson",
            quiet=quiet,
        ),
    ]


def after(uniform: float) -> list[DemoStep]:
    """Steps that show what was learned. uniform: clicks per impression of the uniform policy, from the audience's
    rates."""
    return [
        DemoStep(
            why="The belief of `live` now: it has found the items that this audience likes, and serves them most.\n"
            "(These are the twelve it serves most; `rlrec policy show live` has all.)",
            command="rlrec policy show live --format csv > live.csv\n"
            "head -n 1 live.csv; tail -n +2 live.csv | sort -t, -k10 -g -r | head -n 12",
        ),
        DemoStep(
            why=f"Its own log judges others. The truth for `uniform` is {uniform:.5f} clicks an impression: is it\n"
            "inside the interval? `live` earned more than that while it was still learning (in-sample: its own log).",
            command="rlrec --now 2026-01-02 evaluate uniform live --log policy=live --estimator snips",
        ),
        DemoStep(
            why="Is all of it right? Beliefs are rebuilt from the log, and stored propensities are computed again.",
            command="rlrec --now 2026-01-02 doctor --sample 500",
        ),
    ]


def run(folder: Path, *, announce: Callable[[DemoStep], None], report: Callable[[str], None]) -> Iterator[Result]:
    """Run every step in a folder through the shell: `announce` gets each step before it runs, `report` its output."""
    for step in before():
        yield _run_step(folder, step, announce, report)
    write_requests(folder)
    for step in live():
        yield _run_step(folder, step, announce, report)
    click_rates = rates(folder / "rates.csv")
    for step in after(sum(click_rates.values()) / len(click_rates)):
        yield _run_step(folder, step, announce, report)


def _run_step(
    folder: Path, step: DemoStep, announce: Callable[[DemoStep], None], report: Callable[[str], None]
) -> Result:
    if not step.quiet:
        announce(step)
    # `rlrec` is this very program, whatever is on the PATH, and sees no RLREC_ variable of the caller.
    function = f'rlrec() {{ {shlex.quote(sys.executable)} -m rlrec "$@"; }}; {step.command}'
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RLREC_")}
    done = subprocess.run(["sh", "-c", function], cwd=folder, env=clean, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RlrecError(f"`{step.command}` failed: {done.stderr.strip() or done.returncode}")
    if not step.quiet:
        report(done.stdout)
    return {"command": step.command, "output": done.stdout}


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
