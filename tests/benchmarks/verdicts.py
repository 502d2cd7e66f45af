"""Whether session intervals called `weak` or `ok` hold the truth, and whether a log with memory is flagged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from math import sqrt
from typing import Any
from unittest.mock import patch

import numpy as np
from click.testing import CliRunner

from rlrec import ope
from rlrec.app.evaluation.models.reward_models import Decisions, ReturnSums, TargetSlates
from rlrec.arrays import Array, Ids, offsets, piece_rows
from rlrec.cli import program
from rlrec.ope.sums.visits import VisitBatch
from rlrec.ope.units.estimate import Estimate
from rlrec.ope.units.sessions import SessionFold
from rlrec.policy.gradients.gradient import DEFAULT_RECENCY, MEMORY_FEATURES, arm_memory
from rlrec.policy.gradients.history import History
from rlrec.simulate.barista import Barista
from rlrec.simulate.shop import Shop
from tests.benchmarks.measure import Figure, Setting

LOGS, FRESH = 100, 40_000
ESTIMATORS = ope.parse("session").sessions
MISSED, FLAGGED, ALARMED = 0.06, 0.95, 0.01
LONGEST = 14  # steps of the chain
LOGGED_AT = "2026-01-01T00:00:00Z"


class Chain:
    """Visits of 14 steps, whose rewards depend on the arm before and on a mood that arms move."""

    arms = 4

    def reset(self, runs: int, rng: np.random.Generator) -> None:
        self._rng, self._step, self._mood, self._last = rng, 0, np.zeros(runs), np.full(runs, -1)

    def step(self, actions: Any) -> tuple[None, Array, Any, Any, dict[str, Any]]:
        mean = 0.15 + 0.1 * actions + 0.06 * self._mood - 0.15 * (actions == self._last)
        reward = (self._rng.random(len(actions)) < mean.clip(0.02, 0.95)).astype(np.float64)
        self._mood = 0.8 * self._mood + np.array([1.0, 0.3, -0.3, -1.0])[actions]
        self._step, self._last = self._step + 1, actions.copy()
        ended = np.full(len(actions), self._step == LONGEST)
        return None, reward, ended, ended & False, {}


# An audience, positions of a page, how much more the target shows of a fifth of the arms, and visits of a log.
Case = tuple[Callable[[], Any], int, float, int]
CASES: list[Case] = [
    (audience, size, favour, visits)
    for audience, size, favours in (
        (Barista, 1, (2.0, 4.0)), (Chain, 1, (1.3, 1.7)), (Shop, 1, (3.0, 5.0)), (Shop, 5, (1.5,)),
    )
    for favour in favours
    for visits in (500, 2_000)
]  # fmt: skip


def verdicts(setting: Setting) -> Iterator[Figure]:
    """Shares of logs: of intervals that miss the truth, and of estimates of the frozen favourite that are flagged."""
    logs = min(setting.size(LOGS), int(LOGS * setting.scale) or 1)
    for case in CASES:
        audience, size, favour, visits = case
        for label, each in misses(case, logs=logs).items():
            name = f"{audience.__name__.lower()} k={size} x{favour:g}, {visits:,} visits, {label}"
            share = float(np.mean(each)) if each else 0.0
            yield Figure(name=f"{name}: missed, of {len(each)}", value=share, unit="", at_most=limit(len(each)))
    shop, pbm = (
        float(np.mean([flagged(setting, *world, seed=seed) for seed in range(logs)]))
        for world in (("shop",), ("pbm", "--steps", "5"))
    )
    yield Figure(name=f"shop: favourite flagged, of {logs}", value=shop, unit="", at_least=FLAGGED)
    yield Figure(name=f"pbm: favourite flagged, of {logs}", value=pbm, unit="", at_most=ALARMED)


def limit(intervals: int) -> float:
    """The share of so many intervals that may miss: 6 % and 3 standard errors."""
    return MISSED + 3 * sqrt(MISSED * (1 - MISSED) / max(intervals, 1))


def misses(case: Case, *, logs: int) -> dict[str, list[bool]]:
    """Of each estimator, whether each interval called `weak` or `ok` misses the truth: the mean return of 40,000 fresh
    visits, give or take 2 standard errors."""
    audience, size, favour, visits = case
    logger = np.ones(audience().arms)
    target = np.where(np.arange(len(logger)) < max(1, len(logger) // 5), favour, 1.0)
    visit, _, reward = play(audience(), target, visits=FRESH, size=size, seed=7)
    returns = np.bincount(visit, weights=reward)
    truth, error = returns.mean(), 2 * returns.std() / sqrt(FRESH)
    missed: dict[str, list[bool]] = {label: [] for label in ESTIMATORS}
    for seed in range(logs):
        log = play(audience(), logger, visits=visits, size=size, seed=1_000 + 2 * seed)
        for estimate in estimates(log, logger, target, seed=seed):
            if estimate.verdict != "insufficient":
                low, high = (np.nan if bound is None else bound for bound in (estimate.lower, estimate.upper))
                missed[estimate.estimator].append(not low - error <= truth <= high + error)
    return missed


def play(audience: Any, odds: Array, *, visits: int, size: int, seed: int) -> tuple[Ids, Ids, Array]:
    """The visit, the slate and the reward of each decision, in order; slates are drawn arm by arm, by these odds."""
    rng = np.random.default_rng(seed)
    audience.reset(visits, np.random.default_rng(seed + 1))
    there, rows = np.ones(visits, np.bool_), []
    while there.any():
        slates = np.argsort(-(np.log(odds) + rng.gumbel(size=(visits, len(odds)))), axis=1)[:, :size]
        _, reward, terminated, truncated, _ = audience.step(slates if size > 1 else slates[:, 0])
        rows.append((np.flatnonzero(there), slates[there], reward.reshape(visits, -1).sum(axis=1)[there]))
        there &= ~(terminated | truncated)
    visit, slates, reward = (np.concatenate(columns) for columns in zip(*rows, strict=True))
    order = np.argsort(visit, kind="stable")
    return visit[order], slates[order], reward[order]


def estimates(log: tuple[Ids, Ids, Array], logger: Array, target: Array, *, seed: int) -> list[Estimate]:
    """The estimates of every session estimator, with a model of returns that is fitted to the log."""
    visit, slates, reward = log
    length, (n, size) = np.bincount(visit), slates.shape
    start, cluster = offsets(length), np.arange(len(length)) + len(length) * seed
    decisions = remembered(slates, reward, start=start, cluster=cluster)
    model = ReturnSums.from_decisions(decisions, reward, gamma=1.0, arms=len(logger)).finish()
    of_target = log_probability(target, slates)
    everywhere = TargetSlates(
        rows=np.arange(n), log_slate=of_target, arms=np.arange(len(target)), share=(target / target.sum())[None],
        case=np.zeros(n, np.int64),
    )  # fmt: skip
    batch = VisitBatch(
        start=start, reward=reward, cluster=cluster, log_ratio=of_target - log_probability(logger, slates),
        largest=np.full(n, size * np.log(len(logger))), unsupported=np.zeros(n),
        predicted=model.predict(decisions), expected=model.predict_mean(decisions, [everywhere]),
    )  # fmt: skip
    fold = SessionFold(estimators=ESTIMATORS, gamma=1.0, horizon=int(length.max()), spans_batches=False)
    return fold.finish(fold.row_sums(batch))


def remembered(slates: Ids, reward: Array, *, start: Ids, cluster: Ids) -> Decisions:
    """Decisions with what each knows of its visit: all slots before it, whose slates earned so much."""
    (n, size), step = slates.shape, piece_rows(np.zeros(len(start) - 1, np.int64), np.diff(start))
    # the earlier decisions of each, oldest first, slot by slot
    earlier, count = piece_rows(np.arange(n) - step, step), step * size
    ago = np.repeat(np.repeat(np.arange(n), step) - earlier, size)
    history = History(
        step, np.zeros(n), count, np.zeros(n), offsets(count), slates[earlier].ravel(), ago,
        np.repeat(reward[earlier], size) / size,
    )  # fmt: skip
    row, arm, memory = arm_memory(history, np.power(DEFAULT_RECENCY, ago - 1.0))
    assert memory.shape[1] == len(MEMORY_FEATURES)
    return Decisions(
        start=start, cluster=cluster, top=slates[:, 0], x=np.empty((n, 0)), row=row, arm=arm, memory=memory
    )  # fmt: skip


def log_probability(odds: Array, slates: Ids) -> Array:
    """Log of the probability of each slate, (n,)."""
    shares = (odds / odds.sum())[slates]
    return np.log(shares / (1 - np.cumsum(shares, axis=1) + shares)).sum(axis=1)


def flagged(setting: Setting, audience: str, *options: str, seed: int, sessions: int = 2_000) -> bool:
    """Whether `evaluate` flags carry-over in every estimate of what a uniform log likes best, frozen."""
    db = str(setting.path(".db"))

    def run(*arguments: str, now: str) -> Any:
        answer = CliRunner().invoke(program, ["--db", db, "--now", now, *arguments, "--json"], catch_exceptions=False)
        if answer.exit_code:
            raise RuntimeError(f"{arguments} exited with {answer.exit_code}: {answer.stderr}")
        return json.loads(answer.stdout)

    with patch("rlrec.app.inputs.seeds.random_salt", return_value=f"{seed:032x}"):  # the same figures every time
        run("init", now=LOGGED_AT)
    run("policy", "create", "u", "--kind", "uniform", now=LOGGED_AT)
    served = ("--sessions", str(sessions), "--group", "500", "--seed", str(seed), *options)
    now = run("simulate", audience, "--policy", "u", *served, now=LOGGED_AT)["ended_at"]
    run("policy", "create", "ts", "--kind", "thompson", "--from-log", "policy=u", now=now)
    run("policy", "freeze", "ts", now=now)
    rows: list[Mapping[str, Any]] = run("evaluate", "ts", "--estimator", "snips,dr", now=now)
    return all("carry-over" in row["reasons"] for row in rows)
