"""Logs of several loggers: what weighing one that learns costs in bias, and whether the usual log of a store is as good
as the best choice of its loggers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from rlrec.app.evaluation.passes import estimates, passes
from rlrec.app.evaluation.passes.request import Request
from rlrec.arrays import Array
from rlrec.cli import program
from rlrec.ope.checks.reasons import LEAST_ESS
from rlrec.ope.units.fold import WeightSpread
from rlrec.ope.units.strata import Stratum, Weighting, stratum_factors
from rlrec.store import Store
from rlrec.store.log.selected import Selection
from rlrec.times import parse
from tests.benchmarks.measure import Figure, Setting

LOGS, DECISIONS, GROUP, STORES = 2_000, 1_000, 10, 50
ARMS, FLOOR, EPSILON, DRAWS = 10, 0.02, 0.1, 64
RATES = {"tied": (0.2, 0.2), "apart": (0.2, 0.15), "five tied": (0.1,) * 5, "five": (0.1, 0.12, 0.14, 0.16, 0.18)}
BIAS, COVERED, WORSE, ERROR, SHARE = (
    0.4,
    0.89,
    1.02,
    1.05,
    0.9,
)  # in errors; share; of the root mean square; of the best subset
BEGIN, LATER, JUDGED = "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z"


@dataclass(frozen=True)
class Log:
    """Decisions of many logs, (r, n) each: the arm shown, its reward and its propensity."""

    arm: Array
    reward: Array
    propensity: Array


def logged(kind: str, rates: Sequence[float], *, logs: int, rng: np.random.Generator, first: Log | None = None) -> Log:
    """Logs of one kind of logger: uniform, thompson, greedy (which explores with EPSILON), or taught: greedy by the
    means of `first` alone."""
    k, taught = len(rates), np.asarray(rates)
    pulls, earned = np.ones((logs, k)), np.full((logs, k), 0.5)
    columns: list[list[Array]] = [[], [], []]

    def learn(arm: Array, reward: Array) -> None:
        for index in range(k):
            pulls[:, index] += (arm == index).sum(axis=1)
            earned[:, index] += ((arm == index) * reward).sum(axis=1)

    if first is not None:
        learn(first.arm, first.reward)
    for _ in range(0, DECISIONS, GROUP):
        mean = earned / pulls
        best = np.eye(k)[np.argmax(mean + 1e-12 * rng.random(mean.shape), axis=1)]
        share = np.full((logs, k), 1 / k) if kind == "uniform" else best * (1 - EPSILON) + EPSILON / k
        if kind == "thompson":
            draws = mean[:, None] + rng.standard_normal((logs, DRAWS, k)) * np.sqrt(mean * (1 - mean) / pulls)[:, None]
            share = np.eye(k)[draws.argmax(axis=2)].mean(axis=1) * (1 - k * FLOOR) + FLOOR
        uniform = rng.random((logs, GROUP, 1))
        arm = np.minimum((uniform > share.cumsum(axis=1)[:, None]).sum(axis=2), k - 1)
        reward = (rng.random((logs, GROUP)) < taught[arm]).astype(np.float64)
        for column, values in zip(columns, (arm, reward, np.take_along_axis(share, arm, axis=1)), strict=True):
            column.append(values)
        if kind in ("thompson", "greedy"):
            learn(arm, reward)
    return Log(*(np.concatenate(column, axis=1) for column in columns))


def errors(
    logs: Mapping[str, Log], target: Array, rates: Sequence[float], rng: np.random.Generator, *, weighed: bool
) -> tuple[Array, Array]:
    """The errors of `snips` over several loggers, (r,), and their standard errors. weighed: as `evaluate` weighs
    loggers; else all rows count once."""
    weight = {name: target[log.arm] / log.propensity for name, log in logs.items()}
    half = {name: rng.integers(0, 2, log.arm.shape) for name, log in logs.items()}
    factor = {name: np.ones_like(values) for name, values in weight.items()}
    if weighed:
        spread = {}
        for name, values in weight.items():
            for side in (0, 1):
                columns = ((half[name] == side) * column for column in (np.ones_like(values), values, values**2))
                rows, total, squares = (column.sum(axis=1) for column in columns)
                spread[Stratum(name, side)] = WeightSpread(rows, total, squares, rows)
        factors = stratum_factors(spread)
        for name in factor:
            first, second = (factors[Stratum(name, side)][:, None] for side in (0, 1))
            factor[name] = np.where(half[name] == 0, first, second)
    weights = np.concatenate([factor[name] * weight[name] for name in logs], axis=1)
    reward = np.concatenate([log.reward for log in logs.values()], axis=1)
    value = (weights * reward).sum(axis=1) / weights.sum(axis=1)
    error = np.sqrt((weights**2 * (reward - value[:, None]) ** 2).sum(axis=1)) / weights.sum(axis=1)
    return value - float(target @ np.asarray(rates)), error


def learners(rates: Sequence[float], *, logs: int, seed: int) -> Iterator[tuple[str, float, float, float]]:
    """For pairs of loggers and targets: their names, the bias of weighed loggers in standard deviations, how often
    their intervals hold the truth, and their root mean square error over that of rows that count once."""
    rng, k = np.random.default_rng(seed), len(rates)
    uniform, thompson, greedy = (logged(kind, rates, logs=logs, rng=rng) for kind in ("uniform", "thompson", "greedy"))
    taught = logged("taught", rates, logs=logs, rng=rng, first=uniform)
    pairs = {
        "uniform, thompson": (uniform, thompson), "uniform, greedy": (uniform, greedy),
        "thompson, greedy": (thompson, greedy), "uniform, taught by it": (uniform, taught),
    }  # fmt: skip
    for label, pair in pairs.items():
        for aim, target in {"first arm": np.eye(k)[0], "last arm": np.eye(k)[-1], "all": np.full(k, 1 / k)}.items():
            named = dict(zip("ab", pair, strict=True))
            (error, spread), (once, _) = (errors(named, target, rates, rng, weighed=way) for way in (True, False))
            covered = float((np.abs(error) < 1.96 * spread).mean())
            ratio = float(np.sqrt((error**2).mean() / (once**2).mean()))
            yield f"{label}, target {aim}", float(error.mean() / error.std()), covered, ratio


class Shop:
    """A store with an old imported log of skewed propensities, an experiment of two policies that learn, and a
    holdout."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._rng, self._folder = np.random.default_rng(seed), folder
        self._env = {"RLREC_DB": str(folder / f"shop{seed}.db")}
        self._rates = self._rng.uniform(0.1, 0.5, ARMS).round(3)
        self.run("-q", "--now", BEGIN, "init")
        self.run("-q", "--now", BEGIN, "policy", "create", "shelf", "--kind", "thompson", "--param", "floor=0.1")
        self.run(
            "-q", "--now", BEGIN, "policy", "create", "rival", "--kind", "epsilon-greedy", "--param", "epsilon=0.3"
        )
        split = ("--variant", "now=shelf", "--variant", "new=rival", "--holdout-uniform", "10%", "--unit", "session")
        self.run("-q", "--now", BEGIN, "experiment", "create", "ranking", *split)
        sessions, audience = str(int(self._rng.integers(400, 900))), f"rates={','.join(map(str, self._rates))}"
        options = ("--sessions", sessions, "--steps", "6", "--group", "50", "--env", audience, "--seed", str(seed))
        self.run("-q", "--now", BEGIN, "simulate", "bernoulli", "--experiment", "ranking", *options)
        self._import_old_log()

    def run(self, *arguments: str) -> str:
        """The output of a command."""
        result = CliRunner().invoke(program, arguments, env=self._env, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    def _import_old_log(self) -> None:
        arms = sorted(arm["arm"] for arm in json.loads(self.run("--now", LATER, "arm", "list", "--json")))
        share = self._rng.dirichlet(np.full(ARMS, 0.6)) * 0.9 + 0.1 / ARMS
        lines = []
        for number in range(int(self._rng.integers(1_000, 5_000))):
            index = int(self._rng.choice(ARMS, p=share))
            slot = {"arm": arms[index], "propensity": float(share[index])}
            reward = int(self._rng.random() < self._rates[index])
            line = {"session": f"old{number}", "slate": [slot], "eligible": arms, "reward": reward}
            lines.append(json.dumps(line))
        path = self._folder / "old.jsonl"
        path.write_text("\n".join(lines) + "\n")
        self.run("-q", "--now", LATER, "import-log", str(path), "--layout", "jsonl", "--policy", "old")

    def excess(self, target: str) -> float:
        """The standard error that `evaluate` has by `snips` over that of the best choice of loggers that can tell."""
        request = Request(targets=[target], estimators="snips")
        with closing(Store(self._env["RLREC_DB"], now=parse(JUDGED))) as store, store.read() as unit:
            _, (rows,), log = estimates.prepare(unit, request, estimates.estimators(request), Selection())
            partial = passes.sum_log([rows], log)[rows]
            (usual,) = estimates.answer(unit, request, estimates.estimators(request), Selection())
        ((by_stratum,),) = (by_group.values() for by_group in partial.groups.values())
        strata = {stratum: sums.sums for stratum, sums in by_stratum.items()}
        names = sorted({str(stratum.logger) for stratum in strata})
        errors = []
        for chosen in (chosen for size in range(1, len(names) + 1) for chosen in combinations(names, size)):
            sums = {stratum: value for stratum, value in strata.items() if stratum.logger in chosen}
            for weighting in (Weighting.from_strata(rows.fold, sums), Weighting(rows.fold)):
                (estimator_fold,) = rows.fold.estimator_folds(weighting.total(sums))
                error = estimator_fold.value_and_error[1]
                if (
                    estimator_fold.diagnosis.is_supported
                    and (estimator_fold.diagnosis.ess or 0.0) >= LEAST_ESS
                    and error > 0
                ):
                    errors.append(error)
        return float(usual.estimate.std_error or 0.0) / min(errors)


def loggers(setting: Setting) -> Iterator[Figure]:
    """Bias, coverage and error of weighed loggers that learn, then stores with an old log, an experiment, a holdout."""
    logs = setting.size(LOGS)
    for seed, (name, rates) in enumerate(RATES.items()):
        rows = list(learners(rates, logs=logs, seed=seed))
        label, bias, *_ = max(rows, key=lambda row: abs(row[1]))
        covered = min(row[2] for row in rows)
        yield Figure(name=f"{name}: least coverage of {logs:,}", value=covered, unit="", at_least=COVERED)
        yield Figure(name=f"{name}: largest bias ({label})", value=abs(bias), unit="errors", at_most=BIAS)
        for label, _, _, ratio in rows:
            yield Figure(name=f"{name}, {label}: error over rows that count once", value=ratio, unit="", at_most=WORSE)
    excess = [
        shop.excess(target)
        for seed in range(setting.size(STORES)) for shop in (Shop(setting.folder, seed=seed),)
        for target in ("uniform", "shelf@ranking/now", "rival@ranking/new")
    ]  # fmt: skip
    yield Figure(name=f"mean excess of {len(excess)} targets", value=float(np.mean(excess)), unit="", at_most=ERROR)
    share = float(np.mean([value <= ERROR for value in excess]))
    yield Figure(name=f"within {ERROR:g} of the best choice", value=share, unit="", at_least=SHARE)
