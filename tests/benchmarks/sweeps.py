"""`sweep` on logs of a policy that learns: whether what it says of candidates holds the truth, which is worked out from
what each of them knew; and how often it prefers one where all are equal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from math import sqrt
from typing import Any

import numpy as np

from rlrec.app.evaluation.targets import targets
from rlrec.app.evaluation.targets.learning_targets import cram_target, time_blocks
from rlrec.app.inputs import lookup
from rlrec.app.judging import sweep
from rlrec.app.setup import init
from rlrec.arrays import Array
from rlrec.policy.slates import slate
from rlrec.store import Store
from rlrec.store.log.selected import Selection
from tests.app import logs
from tests.benchmarks.measure import Figure, Setting

RUNS, PAGES, GROUPS = 200, 1_000, 20
DEVICES = [{"device": name} for name in ("ios", "web", "tv")]
PERSONAL = np.array([[0.40, 0.10, 0.15, 0.10], [0.10, 0.40, 0.15, 0.10], [0.10, 0.12, 0.15, 0.40]])
EQUAL = np.full((3, 4), 0.2)
REQUEST = sweep.Request(
    kinds="thompson,epsilon-greedy,lin-thompson,softmax,squarecb", params=["softmax:temperature=0.05"],
    cluster="session",
)  # fmt: skip
COVERED = 0.95
CRAMMED = ("cram", "ips", "snips")


def sweeps(setting: Setting) -> Iterator[Figure]:
    """Shares of runs, each of a log of its own."""
    runs = setting.size(RUNS)
    rows = [row for seed in range(runs) for row in _judged(setting, PERSONAL, seed)]
    least = COVERED - 3 * sqrt(COVERED * (1 - COVERED) / runs)
    yield Figure(name="values that their intervals hold", value=float(np.mean(rows)), unit="", at_least=least)
    claims = [_preferred(setting, seed) for seed in range(runs)]
    most = 1 - COVERED + 3 * sqrt(COVERED * (1 - COVERED) / runs)
    yield Figure(name="equal candidates called better", value=float(np.mean(claims)), unit="", at_most=most)


def crams(setting: Setting) -> Iterator[Figure]:
    """Thompson sampling on its own log, by `cram` and as if that had not taught it, on arms that are equal or not."""
    runs = setting.size(RUNS)
    least = COVERED - 3 * sqrt(COVERED * (1 - COVERED) / runs)
    for name, rates in (("equal arms", EQUAL), ("one better arm", PERSONAL[:1].repeat(3, axis=0))):
        errors, held = np.array([_crammed(setting, rates, seed) for seed in range(runs)]).transpose(2, 1, 0)
        for label, error, holds in zip(CRAMMED, errors, held, strict=True):
            goals = ({"at_most": 0.1}, {"at_least": min(0.93, least)}) if label == "cram" else ({}, {})
            bias = abs(float(error.mean() / error.std(ddof=1)))
            yield Figure(name=f"{name}, {label}: size of the bias over the deviation", value=bias, unit="", **goals[0])
            yield Figure(name=f"{name}, {label}: intervals that hold", value=float(holds.mean()), unit="", **goals[1])


def _crammed(setting: Setting, rates: Array, seed: int) -> list[tuple[float, bool]]:
    """By each estimator, the error of the value of what served when the last twentieth of the log began, and whether
    its interval holds that."""
    path, results = _logged(setting, rates, seed, groups=2 * GROUPS, contexts=({},)), list[tuple[float, bool]]()
    with closing(logs.at(path, 1e6)) as store, store.read() as unit:
        (target,) = targets.resolve(unit, ["log"], reward=None, greedy=False)
        serving = cram_target(unit, target, Selection(), greedy=False).serving
        assert serving is not None
        scores = serving.scores(0, np.arange(1, rates.shape[1] + 1), [{}], keys={})[0]
        truth = float(slate.p_first(scores, floor=serving.policy.exploration) @ rates[0])
    judged = (logs.judged(path, "log", estimators=labels, cluster="session") for labels in ("cram", "ips,snips"))
    for row in chain.from_iterable(judged):
        results.append((row["value"] - truth, row["lower"] <= truth <= row["upper"]))
    return results


def _logged(setting: Setting, rates: Array, seed: int, *, groups: int = GROUPS, contexts: Any = DEVICES) -> str:
    """A store with a log of Thompson sampling, whose pages come twenty groups of them a minute apart."""
    path = str(setting.path(".db"))
    with closing(Store(path)) as store:
        init.init(store)
    logs.begin(path, rates.shape[1], "log", "thompson", floor="0.3")
    by_page = rates[np.arange(PAGES) % len(rates)]
    logs.serve(path, "log", pages=PAGES, rates=by_page, contexts=contexts, seed=seed, group=PAGES // groups, together=1)
    return path


def _judged(setting: Setting, rates: Array, seed: int) -> list[bool]:
    """Whether the interval of each candidate holds the mean of what it would have earned at the moments when it was
    judged."""
    path = _logged(setting, rates, seed)
    with closing(logs.at(path, 1e6)) as store:
        _, judged, _ = sweep.sweep(store, REQUEST)
        with store.read() as unit:
            reward, log = lookup.reward(unit, "default"), Selection()
            candidates = sweep.candidates_of(unit, REQUEST, reward, log)
            moments = sweep.learn(unit, candidates, time_blocks(unit, log, sweep.N_BLOCKS), reward)
            arms = np.arange(1, rates.shape[1] + 1)
            keys = {arm: f"a{arm - 1}" for arm in arms.tolist()}
            truth = {"uniform": float(rates.mean())}
            for candidate in candidates:
                target = sweep.learning_target(unit, candidate, moments[candidate.count_key], np.arange(7))
                servings = [make() for make in target.moments]
                truth[candidate.name] = float(np.mean([
                    slate.p_first(
                        serving.scores(0, arms, [context], keys=keys)[0], floor=serving.policy.exploration
                    ) @ rates[row]
                    for serving in servings for row, context in enumerate(DEVICES)
                ]))  # fmt: skip
    held = []
    for row in judged:
        assert row.estimate.lower is not None
        assert row.estimate.upper is not None
        held.append(row.estimate.lower <= truth[row.target] <= row.estimate.upper)
    return held


def _preferred(setting: Setting, seed: int) -> bool:
    """Whether some candidate is called better than what was logged, where every arm is worth the same."""
    with closing(logs.at(_logged(setting, EQUAL, seed), 1e6)) as store:
        _, judged, _ = sweep.sweep(store, REQUEST)
    return any(row.answer.answer == "better" for row in judged)
