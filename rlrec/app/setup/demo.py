"""This module plays a tour of the program on the sample log. Each step is a command that readers can type."""

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
VISITORS = 1_000  # per hour
SEED = 7


class DemoStep(NamedTuple):
    """This record is a command of the tour. comment: its purpose, as a shell comment; quiet: whether the step only
    repeats other steps, and is not shown."""

    comment: str
    command: str
    quiet: bool


Result = TypedDict("Result", {"command": str, "output": str | None})  # None: not run, or written to a terminal
SampleFile = TypedDict("SampleFile", {"file": str, "bytes": int})


def samples() -> Path:
    """Return the folder of the sample data. It is inside the installed package or, in a checkout, next to the
    package."""
    package = Path(__file__).resolve().parents[2]
    installed_folder = package / "sample_data"
    return installed_folder if installed_folder.is_dir() else package.parent / "sample_data"


def copy_samples(folder: Path, *, dry_run: bool = False) -> list[SampleFile]:
    """Copy the sample files into a folder. Raises InputError if the folder has another file with the name of a sample
    file. dry_run: whether to copy no file."""
    pairs = [(source, folder / source.name) for source in sorted(samples().iterdir())]
    for source, target in pairs:
        if target.exists() and (not target.is_file() or target.read_bytes() != source.read_bytes()):
            raise InputError(f"{target} exists, and is another file", hint="name a new folder")
    if not dry_run:
        folder.mkdir(parents=True, exist_ok=True)
    for source, target in pairs:
        if not (dry_run or target.exists()):
            shutil.copyfile(source, target)
    return [{"file": str(target), "bytes": source.stat().st_size} for source, target in pairs]


# The steps before anything goes live, the first live steps, those of each hour, and the last ones.
LOG, LIVE, HOUR, LAST = Path(__file__).with_name("demo.txt").read_text(encoding="utf-8").split("---\n")


def _parse_steps(script: str, *, quiet: bool = False, **values: object) -> list[DemoStep]:
    blocks = (block.partition("\n$ ") for block in script.format(**values).strip().split("\n\n"))
    return [DemoStep(comment, command, quiet) for comment, _, command in blocks]


def log_steps() -> list[DemoStep]:
    """Return the first steps, which compute estimates from the log of another system. Nothing is live yet."""
    return _parse_steps(LOG, data=shlex.quote(str(samples())))


def live_steps() -> list[DemoStep]:
    """Return the steps that serve twelve simulated hours of traffic. Their commands set the clock by --now."""
    steps = _parse_steps(LIVE)
    for hour in range(HOURS):
        steps += _parse_steps(HOUR, quiet=hour > 0, hour=hour, visitors=VISITORS, seed=SEED, more=HOURS - 1)
    return steps


def last_steps(uniform_rate: float | None = None) -> list[DemoStep]:
    """Return the steps that show what the policies have learned. uniform_rate: clicks per impression of the uniform
    policy under the audience's rates, if these are known."""
    return _parse_steps(LAST, uniform="..." if uniform_rate is None else f"{uniform_rate:.5f}")


def _play_steps(folder: Path) -> Iterator[DemoStep]:
    """Yield all steps. The caller must run each step before it takes the next one, which may depend on its files."""
    yield from log_steps()
    write_requests(folder)
    yield from live_steps()
    click_rates = rates(folder / "rates.csv")
    yield from last_steps(sum(click_rates.values()) / len(click_rates))


def plan(*, report: Callable[[str], None]) -> list[Result]:
    """Return the commands of `run`, without running them. report: a function that gets the text of each step."""
    steps = [step for step in (*log_steps(), *live_steps(), *last_steps()) if not step.quiet]
    for step in steps:
        report(f"\n{step.comment}\n$ {step.command}\n")
    return [{"command": step.command, "output": None} for step in steps]


def run(
    folder: Path, *, report: Callable[[str], None], terminal: bool = False, colour: bool = True
) -> Iterator[Result]:
    """Run every step in a folder through the shell, and yield its result. report: a function that gets each step before
    it runs, then its output; terminal: whether steps write to the terminal themselves, so that tables fit its width;
    colour: whether steps may use colours."""
    # `rlrec` is this program, whatever is on the PATH, and without the caller's RLREC_ variables.
    function = f'rlrec() {{ {shlex.quote(sys.executable)} -m rlrec "$@"; }}; '
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RLREC_")}
    environment |= {} if colour else {"NO_COLOR": "1"}
    for step in _play_steps(folder):
        if not step.quiet:
            report(f"\n{step.comment}\n$ {step.command}\n")
        script = ["sh", "-c", function + step.command]
        stdout = None if terminal and not step.quiet else subprocess.PIPE
        process = subprocess.run(script, cwd=folder, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True)
        if process.returncode:
            raise RlrecError(f"`{step.command}` failed: {process.stderr.strip() or process.returncode}")
        if not step.quiet:
            report(process.stdout or "")
        yield {"command": step.command, "output": process.stdout}


def write_requests(folder: Path) -> None:
    """Write the requests of simulated visitors to the folder, one file per hour."""
    for hour in range(HOURS):
        with (folder / f"visitors-{hour:02}.ndjson").open("w", encoding="utf-8") as file:
            for number in range(VISITORS):
                request = {"policy": "live", "session": f"h{hour}-{number}", "user": f"u{number}", "k": 3}
                file.write(json.dumps(request) + "\n")


def rates(path: Path) -> dict[str, float]:
    """Read the click rate of each arm from the columns arm and mean of a CSV."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["arm"]: float(row["mean"] or 0) for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError) as error:
        hint = "it is a CSV with the columns arm and mean"
        raise InputError(f"cannot read click rates from {path}", hint=hint) from error


def clicks(path: Path, answers: Iterable[str], *, seed: int) -> Iterator[str]:
    """Yield lines for `feedback --input` with the clicks of a simulated audience. path: a CSV file with the click rate
    of each arm; answers: answers of `recommend`, whose slates the audience sees."""
    click_rates = rates(path)
    arm_index = {arm: number for number, arm in enumerate(click_rates)}
    decisions = [answer for line in answers if (answer := json.loads(line)).get("decision_id")]
    slots = [(answer["decision_id"], slot) for answer in decisions for slot in answer["slate"]]
    actions = np.array([arm_index.get(slot["arm"], len(arm_index)) for _, slot in slots], np.intp)
    audience = Bernoulli(rates=(*click_rates.values(), 0.0))  # an arm without a rate is never clicked
    audience.reset(len(slots), np.random.default_rng(seed))
    _, is_clicked, *_ = audience.step(actions)
    for (decision_id, slot), click in zip(slots, is_clicked, strict=True):
        if click:
            yield json.dumps({"decision_id": decision_id, "position": slot["position"], "events": {"click": 1}})
