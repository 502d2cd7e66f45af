"""python -m tests.benchmarks: measure, and print what was measured beside its reference and its goal."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tests.benchmarks import (
    alarms,
    barista,
    bots,
    budgets,
    checks,
    climbs,
    coverage,
    cron,
    effects,
    epochs,
    exact,
    follow,
    gates,
    graduation,
    loggers,
    logs,
    looking,
    looks,
    newspaper,
    pipe,
    ramps,
    rankers,
    regret,
    returns,
    sardine_rec,
    screens,
    serve,
    simulations,
    startup,
    story,
    streams,
    sweeps,
    training,
    unbiased,
    verdicts,
    walks,
    writers,
)
from tests.benchmarks.measure import Figure, Setting, machine, table

Benchmark = Callable[[Setting], Iterator[Figure]]
BENCHMARKS: dict[str, Benchmark] = {
    "start-up": startup.startup,
    "recommend": streams.recommend,
    "recommend-new": streams.recommend_new,
    "recommend-long": streams.recommend_long,
    "rules": streams.ruled,
    "feedback": streams.feedback,
    "feedback-mixed": streams.feedback_mixed,
    "postgres": streams.on_postgres,
    "hot-arm": writers.hot_arm,
    "pipe": pipe.pipe,
    "serve": serve.serve,
    "screen": screens.screens,
    "serve-bare": serve.beside_bare,
    "serve-postgres": serve.on_postgres,
    "import": logs.importing,
    "import-csv": logs.importing_csv,
    "follow": follow.follow,
    "evaluate": logs.evaluating,
    "exact": exact.exact,
    "regret": regret.regret,
    "unbiased": unbiased.unbiased,
    "verdicts": verdicts.verdicts,
    "alarms": alarms.alarms,
    "checks": checks.checks,
    "effects": effects.effects,
    "loggers": loggers.loggers,
    "looks": looks.looks,
    "looking": looking.looking,
    "coverage": coverage.coverage,
    "sweep": sweeps.sweeps,
    "cram": sweeps.crams,
    "epochs": epochs.epochs,
    "training": training.training,
    "gate": gates.gates,
    "ramps": ramps.ramps,
    "cron": cron.cron,
    "bots": bots.bots,
    "rankers": rankers.rankers,
    "budgets": budgets.budgets,
    "climbs": climbs.climbs,
    "barista": barista.barista,
    "graduation": graduation.graduation,
    "returns": returns.returns,
    "story": story.story,
    "rounds": story.rounds,
    "news": newspaper.newspaper,
    "sardine": sardine_rec.sardine,
    "simulations": simulations.simulations,
    "large": startup.large,
    "walk": walks.walks,
}
QUICK = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every goal was met, else 1."""
    asked = _parser().parse_args(arguments)
    setting = Setting(
        folder=Path(asked.folder or tempfile.gettempdir()),
        scale=asked.scale or (QUICK if asked.quick else 1.0),
        repeats=asked.repeats,
        clock=asked.clock,
        postgres=asked.postgres,
    )
    chosen = {name: work for name, work in BENCHMARKS.items() if not asked.only or name in asked.only}
    figures, broken = list[Figure](), list[str]()
    for line in table(_kept(_measured(chosen, setting, broken), figures)):
        print(line, flush=True)
    for line in [*broken, machine()]:
        print(line)
    if asked.json:
        content = {"machine": machine(), "figures": [one.json() for one in figures]}
        Path(asked.json).write_text(json.dumps(content, indent=1) + "\n")
    return int(bool(broken) or any(one.passed is False for one in figures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("-k", dest="only", action="append", choices=BENCHMARKS, help="this one alone; may be repeated")
    parser.add_argument(
        "--quick", action="store_true", help=f"sizes times {QUICK}: shows that it works, and little more"
    )
    parser.add_argument("--scale", type=float, help="sizes times this")
    parser.add_argument("--repeats", type=int, help="samples of each median")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu where the machine has other work")
    parser.add_argument(
        "--postgres", metavar="URL", help="a server where databases may be made [default: one of its own]"
    )
    parser.add_argument("--folder", help="where the stores are made, some GB [default: the system's temporary folder]")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    return parser


def _measured(chosen: dict[str, Benchmark], setting: Setting, broken: list[str]) -> Iterator[Figure]:
    """The figures of each benchmark, in a folder that goes with it; one that breaks does not stop the others."""
    for name, work in chosen.items():
        try:
            with tempfile.TemporaryDirectory(dir=setting.folder, prefix=f"rlrec-{name}-") as folder:
                yield from work(replace(setting, folder=Path(folder)))
        except Exception as error:  # whatever it is, it is reported
            broken.append(f"{name} BROKE: {type(error).__name__}: {error}")


def _kept(figures: Iterable[Figure], store: list[Figure]) -> Iterator[Figure]:
    for one in figures:
        store.append(one)
        yield one


if __name__ == "__main__":
    sys.exit(main())
