"""Verdicts of session estimators: where they say `weak` or `ok`, the interval holds what fresh visits earn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rlrec import ope
from rlrec.arrays import Array, Ids, offsets
from rlrec.ope.sessions import SessionFold
from rlrec.ope.visits import VisitBatch
from rlrec.simulate.barista import Barista
from rlrec.simulate.shop import Shop

VISITS, LOGS, FRESH = 500, 100, 40_000
ESTIMATORS = ope.parse("tis,wis,pdis,wpdis").sessions
LONGEST = 14


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


def log_probability(odds: Array, slates: Ids) -> Array:
    """Log of the probability of each slate, (n,)."""
    shares = (odds / odds.sum())[slates]
    return np.log(shares / (1 - np.cumsum(shares, axis=1) + shares)).sum(axis=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("audience", "size", "favour"), [(Barista, 1, 4.0), (Chain, 1, 1.7), (Shop, 1, 3.0), (Shop, 1, 5.0), (Shop, 5, 1.5)]
)
def test_intervals_that_are_not_insufficient_hold_the_truth(
    audience: Callable[[], Any], size: int, favour: float
) -> None:
    """100 uniform logs of 500 visits, and a target that favours some arms: at most 6 %, plus 3 standard errors, of the
    intervals of each estimator miss. The truth is that of 40,000 fresh visits, give or take 2 standard errors. If 5 %
    missed, an audience would fail in 1 of 500 runs."""
    logger = np.ones(audience().arms)
    target = np.where(np.arange(len(logger)) < max(1, len(logger) // 5), favour, 1.0)
    visit, _, reward = play(audience(), target, visits=FRESH, size=size, seed=7)
    returns = np.bincount(visit, weights=reward)
    truth, error = returns.mean(), 2 * returns.std() / FRESH**0.5
    missed: dict[str, list[bool]] = {label: [] for label in ESTIMATORS}
    for seed in range(LOGS):
        visit, slates, reward = play(audience(), logger, visits=VISITS, size=size, seed=1_000 + 2 * seed)
        length, n = np.bincount(visit), len(reward)
        batch = VisitBatch(
            start=offsets(length), reward=reward, cluster=np.arange(VISITS) + VISITS * seed,
            log_ratio=log_probability(target, slates) - log_probability(logger, slates),
            largest=np.full(n, size * np.log(len(logger))), unsupported=np.zeros(n),
        )  # fmt: skip
        fold = SessionFold(estimators=ESTIMATORS, gamma=1.0, horizon=int(length.max()), spanning=False)
        for estimate in fold.finish(fold.partial(batch)):
            if estimate.verdict != "insufficient":
                assert estimate.lower is not None
                assert estimate.upper is not None
                missed[estimate.estimator].append(not estimate.lower - error <= truth <= estimate.upper + error)
    assert all(len(each) > LOGS / 3 for each in missed.values())
    assert all(np.mean(each) <= 0.06 + 3 * (0.06 * 0.94 / len(each)) ** 0.5 for each in missed.values())
