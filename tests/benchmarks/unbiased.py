"""Logs that policies write while they learn, judged by their own propensities: whether estimates are right on average,
cover the truth as often as they say, and are called weak where they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from rlrec import ope, simulate
from rlrec import policy as kinds
from rlrec.app.audiences.in_memory import NO_CONTEXT, RunBeliefs
from rlrec.arrays import Array, Index, Words
from rlrec.ope.sums.base import LogBatch
from rlrec.ope.units.estimate import Estimate, FinishOptions
from rlrec.ope.units.fold import ImpressionFold
from rlrec.policy import learns_from_contexts
from rlrec.policy.beliefs.base import OnlineLearner, Policy
from rlrec.policy.contexts.encoder import Design, Encoder
from rlrec.policy.kinds.linear import SHARED
from rlrec.policy.kinds.long_term import LongTerm
from rlrec.policy.scores.scores import Scores, split_runs
from rlrec.policy.slates import slate_draws
from tests.benchmarks.measure import Figure, Setting

RUNS, DECISIONS = 2_000, 2_000
GROUP = 100  # decisions that are drawn from one belief
EASY: tuple[float, ...] = (0.6, 0.5, 0.4, 0.3, 0.2)
HARD: tuple[float, ...] = (0.005,) * 20
FLOOR, LOW_FLOOR = 0.2, 0.1
OFF, AROUND, WEAK = 3.5, 0.025, 0.95  # standard errors; of a coverage of 95 %; share of runs
Params = dict[str, Any]
# Beside every kind with its defaults. What is logged of samples is exact for any number of them.
BESIDE: list[tuple[str, Params]] = [
    ("thompson", {"discount": 0.99}),
    ("ucb", {"window": 500.0}),
    ("linucb", {"model": SHARED}),
    ("lin-thompson", {"model": SHARED, "samples": 100.0}),
]
# The first draws lists before slates, the second ranks by scores that requests bring: the logs of this module hold
# neither (policy/kinds/test_two_stage.py; benchmarks/rankers.py).
BROUGHT = ("two-stage", "scored")
DRAWN = [kind for kind in kinds.KINDS if kinds.load(kind).can_serve and kind not in BROUGHT]
ALL: list[tuple[str, Params]] = [*((kind, {}) for kind in DRAWN), *BESIDE]


def unbiased(setting: Setting) -> Iterator[Figure]:
    """What IPS says of `uniform` on the logs of each kind."""
    for seed, (kind, params) in enumerate(ALL):  # rows that shared their uniforms would err together
        reported = " ".join([kind, *(f"{key}={value}" for key, value in params.items())])
        # samples are drawn for every decision, which takes ten times as long as one quadrature a group
        runs = setting.size(RUNS) // (4 if "samples" in params else 1)
        rows = judged(logs(policy_of(kind, params, arms=len(EASY), floor=FLOOR), EASY, runs=runs, seed=seed))
        off, share = abs(error(rows, EASY)), covered(rows, EASY)
        yield Figure(name=f"{reported}: mean of {runs:,}, standard errors off", value=off, unit="", at_most=OFF)
        yield Figure(name=f"{reported}: coverage {share:.4f}, off by", value=abs(share - 0.95), unit="", at_most=AROUND)
        few = max(runs // 10, 10)
        hard = judged(logs(policy_of(kind, params, arms=len(HARD), floor=LOW_FLOOR), HARD, runs=few, seed=seed))
        yield Figure(name=f"{reported}: the hard case is called weak", value=doubted(hard), unit="", at_least=WEAK)


def policy_of(kind: str, params: Params, *, arms: int, floor: float) -> Policy:
    """A policy; where arms share a model, it knows them by name."""
    names = simulate.arm_names(arms)
    needed = {"probabilities": falling(names)} if kind == "fixed" else {}
    shared = Design(context=Encoder.parse({"fields": {}}), arm=Encoder.parse({"fields": {"arm": names}}))
    return kinds.make(kind, {**params, **needed, "floor": floor}, design=shared if "model" in params else None)


def falling(names: Sequence[str]) -> dict[str, float]:
    """Probabilities that fall from arm to arm."""
    total = len(names) * (len(names) + 1) / 2
    return {name: (len(names) - index) / total for index, name in enumerate(names)}


# -- logs --


@dataclass(frozen=True, eq=False)
class Logs:
    """Of many runs: rewards, and propensities of the arm shown and of the least likely one, (runs, decisions) each."""

    arms: int
    reward: Array
    propensity: Array
    minimum: Array


def logs(policy: Policy, rates: Sequence[float], *, runs: int, decisions: int = DECISIONS, seed: int) -> Logs:
    """What is served to an audience that clicks each arm at its rate, every group by the belief before it."""
    rng = np.random.default_rng(seed)
    seeds = rng.integers(2**63, size=runs).astype(np.uint64)
    beliefs = RunBeliefs(policy, runs, simulate.arm_names(len(rates)))
    context = policy.encode(NO_CONTEXT) if learns_from_contexts(policy) else np.empty(0)
    x = np.tile(context, (runs, 1))
    reward, propensity, minimum = np.empty((3, runs, decisions))
    for start in range(0, decisions, GROUP):
        ids = np.arange(start, min(start + GROUP, decisions))
        arms, propensity[:, ids], minimum[:, ids] = _served(policy, beliefs, x, seeds, ids)
        reward[:, ids] = rng.random(arms.shape) < np.array(rates)[arms]
        for column, number in enumerate(ids):
            beliefs.add(arms[:, column], reward[:, number], x, None, propensity=propensity[:, number])
    return Logs(len(rates), reward, propensity, minimum)


def _served(policy: Policy, beliefs: RunBeliefs, x: Array, seeds: Words, ids: Index) -> tuple[Index, Array, Array]:
    """Arms of these decisions, their propensities and the smallest ones, (runs, decisions) each."""
    pages = (slate_draws.SlateSampler(item, size=1, floor=policy.exploration) for item in _beliefs(policy, beliefs, x))
    drawn = [page.draw(seeds=seed.repeat(len(ids)), decisions=ids) for page, seed in zip(pages, seeds, strict=True)]
    parts = ([slot.slates, slot.marginal, slot.minimum] for slot in drawn)
    arms, marginal, minimum = (np.stack(piece)[..., 0] for piece in zip(*parts, strict=True))
    return arms, marginal, minimum


def _beliefs(policy: Policy, beliefs: RunBeliefs, x: Array) -> list[Scores]:
    """The scores of each run."""
    if learns_from_contexts(policy):
        return split_runs(policy.scores_at(beliefs.belief(), x))
    scores = policy.scores(beliefs.belief(), arms=simulate.arm_names(beliefs.shape[1]), context=NO_CONTEXT)
    return split_runs(scores) if isinstance(policy, OnlineLearner | LongTerm) else [scores] * beliefs.shape[0]


# -- estimates --


def judged(result: Logs) -> list[Estimate]:
    """The estimate of `uniform` by IPS on each run's log, as `evaluate` makes it."""
    fold = ImpressionFold(estimators=ope.parse("ips").impressions, spans_batches=False)
    rows = np.arange(result.reward.shape[1])
    target = np.full(len(rows), 1 / result.arms)
    estimates = list[Estimate]()
    for reward, propensity, minimum in zip(result.reward, result.propensity, result.minimum, strict=True):
        batch = LogBatch(
            reward=reward, propensity=propensity, target=target, cluster=rows, largest=target / minimum,
            unsupported=np.zeros(len(rows)), default=reward == 0,
        )  # fmt: skip
        estimates += fold.finish(fold.row_sums(batch), FinishOptions(interval="normal", cluster="row"))
    return estimates


def error(result: Sequence[Estimate], rates: Sequence[float]) -> float:
    """What the mean of the values is above the truth, in its standard errors."""
    off = np.array([row.value for row in result], np.float64) - np.mean(rates)
    return float(off.mean() / off.std(ddof=1) * sqrt(len(off)))


def covered(result: Sequence[Estimate], rates: Sequence[float]) -> float:
    """The share of intervals that hold the truth."""
    lower, upper = (np.array([getattr(row, name) for row in result], np.float64) for name in ("lower", "upper"))
    return float(((lower <= np.mean(rates)) & (np.mean(rates) <= upper)).mean())


def doubted(result: Sequence[Estimate]) -> float:
    """The share of estimates that are not called `ok`."""
    return float(np.mean([row.verdict in ("weak", "insufficient") for row in result]))
