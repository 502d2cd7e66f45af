"""Whether intervals called `ok` or `weak` hold the truth: light weights, rare rewards, heavy weights, slates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

from rlrec import ope
from rlrec.arrays import Array, Ids
from rlrec.ope.estimators.direct import Ridge
from rlrec.ope.sums.base import LogBatch
from rlrec.ope.units.estimate import Estimate, FinishOptions
from rlrec.ope.units.fold import ImpressionFold
from rlrec.ope.units.slates import SlateBatch, SlateFold
from tests.benchmarks.measure import Figure, Setting

LOGS, SIZES, REPLICATES = 300, (200, 2_000, 15_000), 399
BIASED = ("clipped-ips:5", "switch-dr:5", "dros:25")
IMPRESSIONS = ope.parse(",".join(["ips,snips,beta-ips,dr,sndr", *BIASED])).impressions
SLATES = ope.parse("sn-sips,rips,iips,sn-rips,cascade-dr").slates
COVERED = 0.93
FEWEST = 30  # intervals that tell anything of their coverage
DEPTH = 3  # slots of a page


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """Contexts that are equally frequent, (c, a): the logger's and the target's probabilities of each arm, and rates of
    rewards. What the arms of a context earn is no sum that the reward model of the log could learn."""

    name: str
    logger: Array
    target: Array
    rate: Array

    @property
    def truth(self) -> float:
        return float((self.target * self.rate).sum(axis=1).mean())

    def batch(self, n: int, rng: np.random.Generator) -> LogBatch:
        """A log of n rows, with a model that is fitted on it."""
        contexts, arms = self.logger.shape
        context = rng.integers(0, contexts, n)
        arm = (self.logger.cumsum(axis=1)[context] < rng.random(n)[:, None]).sum(axis=1).clip(max=arms - 1)
        reward, cluster = 1.0 * (rng.random(n) < self.rate[context, arm]), rng.integers(0, 2**62, n)
        ridge, once = Ridge(arms=arms), np.ones(n, np.int64)
        model = ridge.finish(ridge.sums(reward, arm, position=once, cluster=cluster), reward_range=(0.0, 1.0))
        fold = ridge.fold(cluster)
        offset = model.offset(fold, once)
        return LogBatch(
            reward=reward, propensity=self.logger[context, arm], target=self.target[context, arm], cluster=cluster,
            predicted=model.predict(arm, fold=fold, offset=offset),
            expected=model.predict_mean(self.target, case=context, fold=fold, offset=offset),
            largest=np.full(n, float((self.target / self.logger).max())), unsupported=np.zeros(n),
        )  # fmt: skip


def worlds() -> Iterator[World]:
    """The worlds, always the same."""
    rng = np.random.default_rng(11)
    for name, odds, favourite in (("light", 1.0, 5.0), ("light, one arm", 1.0, 99.0)):
        logger = shares(np.full((3, 5), odds))
        target = shares(np.stack([np.roll([favourite, 2.0, 1.0, 0.5, 0.5], shift) for shift in range(3)]))
        yield World(name=name, logger=logger, target=target, rate=rng.beta(2, 4, (3, 5)))
        yield World(name=f"{name}, rare", logger=logger, target=target, rate=rng.beta(2, 100, (3, 5)))
    for largest in (18.0, 48.0, 200.0):
        # two rare arms that the target likes
        target, mass = np.full((3, 50), 0.001), np.full((3, 50), 0.2 / 38)
        target[:, -2:], mass[:, :10], mass[:, -2:] = 0.24, (0.8 - 0.48 / largest) / 10, 0.24 / largest
        target[:, 0] += 1 - target.sum(axis=1)
        yield World(name=f"{largest:g}: two rare arms", logger=shares(mass), target=target,
                    rate=rng.beta(1, 9, (3, 50)))  # fmt: skip
        # a uniform logger, a target of one arm
        arms = round(largest / 0.9)
        target = 0.1 / (arms - 1) + (0.9 - 0.1 / (arms - 1)) * np.eye(3, arms)
        yield World(name=f"{largest:g}: uniform logger", logger=np.full((3, arms), 1 / arms), target=target,
                    rate=rng.beta(2, 6, (3, arms)))  # fmt: skip
        # weights of all sizes
        logger = shares(np.geomspace(1, 1 / largest**0.75, 30) * rng.uniform(0.7, 1.4, (3, 30)))
        target = np.stack([tempered(row, largest) for row in logger])
        yield World(name=f"{largest:g}: all sizes", logger=logger, target=target, rate=rng.beta(1, 9, (3, 30)))


def shares(odds: Array) -> Array:
    """Odds (c, a) as probabilities."""
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def tempered(logger: Array, largest: float) -> Array:
    """Probabilities proportional to a power of those of the logger whose largest weight is this one."""
    low, high = -3.0, 1.0
    for _ in range(60):
        power = (low + high) / 2
        target = logger**power / (logger**power).sum()
        low, high = (power, high) if (target / logger).max() > largest else (low, power)
    return target


@dataclass(frozen=True, kw_only=True, eq=False)
class Pages:
    """Pages of 3 of some arms by Plackett-Luce, (a,): of the logger and of the target. A click depends on the arm and
    its position alone, which every estimator of slates takes to be possible."""

    name: str
    logger: Array
    target: Array
    attraction: Array
    examination = np.array([1.0, 0.7, 0.5])

    @property
    def slates(self) -> Ids:
        """All ordered pages, (s, 3)."""
        return np.stack(np.meshgrid(*[np.arange(len(self.logger))] * DEPTH, indexing="ij"), axis=-1).reshape(-1, DEPTH)

    def steps(self, odds: Array, slates: Ids) -> Array:
        """Probability of each slot given those above, (s, 3); 0 of a page that repeats an arm."""
        repeated = (slates[:, :, None] == slates[:, None]).sum(axis=2) > 1
        return np.where(repeated, 0.0, odds[slates] / np.where(repeated, 1.0, remaining(odds, slates)))

    def marginals(self, odds: Array) -> Array:
        """Probability of each arm at each position, (3, a)."""
        slates = self.slates
        chance = self.steps(odds, slates).prod(axis=1)
        return np.stack([np.bincount(column, chance, len(odds)) for column in slates.T])

    @property
    def truth(self) -> float:
        return float((self.marginals(self.target) * self.examination[:, None] * self.attraction).sum())

    def batch(self, n: int, rng: np.random.Generator) -> SlateBatch:
        """A log of n pages, with a model that is wrong by a quarter."""
        arms = len(self.logger)
        slates = np.argsort(-(np.log(self.logger) + rng.gumbel(size=(n, arms))), axis=1)[:, :DEPTH]
        flat, position = slates.ravel(), np.tile(np.arange(DEPTH), n)
        target, logged = self.marginals(self.target), self.marginals(self.logger)
        value = 0.75 * self.attraction * self.examination.mean()
        # the mean of a slot among the arms that do not stand above; what the slots below earn need not be right
        conditional = remaining(self.target * value, slates) / remaining(self.target, slates)
        below = np.tile(np.arange(DEPTH - 1, -1, -1) * (value @ self.target / self.target.sum()), n)
        return SlateBatch(
            start=DEPTH * np.arange(n + 1), cluster=rng.integers(0, 2**62, n), page=np.zeros(n),
            reward=1.0 * (rng.random((n, DEPTH)) < self.examination * self.attraction[slates]).ravel(),
            log_ratio=np.log(self.steps(self.target, slates) / self.steps(self.logger, slates)).ravel(),
            largest=np.full(DEPTH * n, np.inf), marginal_ratio=(target / logged)[position, flat],
            predicted=value[flat] + below, expected=conditional.ravel() + below,
        )  # fmt: skip


def remaining(odds: Array, slates: Ids) -> Array:
    """The sum of the odds of all arms but those above each slot, (s, 3)."""
    drawn = odds[slates]
    return np.asarray(odds.sum() - np.cumsum(drawn, axis=1) + drawn)


def pages() -> Iterator[Pages]:
    """Pages whose slates weigh a little and much."""
    rng = np.random.default_rng(12)
    for name, logger, target in (
        ("pages, light", np.ones(6), np.array([2.0, 1.5, 1, 1, 0.8, 0.6])),
        ("pages, heavy", np.linspace(1, 2, 8), np.linspace(4, 1, 8)),
        ("pages, up to 50", np.r_[24.0, np.ones(7)], np.ones(8)),
        ("pages, up to 150", np.r_[40.0, np.ones(9)], np.ones(10)),
    ):
        yield Pages(name=name, logger=logger, target=target, attraction=rng.beta(2, 5, len(logger)))
        yield Pages(name=f"{name}, rare", logger=logger, target=target, attraction=rng.beta(2, 90, len(logger)))


def coverage(setting: Setting) -> Iterator[Figure]:
    """The share of judged intervals that hold the truth, by world, number of rows and estimator, and over all logs."""
    every: list[World | Pages] = [*worlds(), *pages()]
    total: dict[str, Counter[str]] = {"covered": Counter(), "judged": Counter()}
    for world in every:
        for n in SIZES:
            for label, (covered, judged) in counts(world, n, logs=int(LOGS * setting.scale) or 1).items():
                total["covered"][label] += covered
                total["judged"][label] += judged
                if judged >= FEWEST:
                    name = f"{world.name}, n {n:,}, {label}: covered, of {judged}"
                    yield Figure(name=name, value=covered / judged, unit="", at_least=least(judged))
    for label, judged in total["judged"].items():
        share = total["covered"][label] / judged
        yield Figure(name=f"all logs, {label}: covered, of {judged:,}", value=share, unit="", at_least=least(judged))
    for estimate in estimates(many_rows()):
        if not estimate.bias_bound:
            name = f"1 M rows, ESS {estimate.ess:,.0f}, {estimate.estimator}: width over the normal one's"
            yield Figure(name=name, value=width(estimate), unit="", at_most=1.15)


def least(judged: int) -> float:
    """The least share of so many intervals: 93 %, or what a coverage of 95 % falls below once in 1,000 times."""
    return min(COVERED, 0.95 - 3.1 * sqrt(0.95 * 0.05 / judged))


def many_rows(n: int = 1_000_000) -> LogBatch:
    """A log of many rows, of which more than a third are effective, with weights up to 48 and no known bound."""
    rng, mass = np.random.default_rng(5), 0.037
    logger, target = np.array([1 - mass / 48, mass / 48]), np.array([1 - mass, mass])
    arm = 1 * (rng.random(n) < logger[1])
    return LogBatch(
        propensity=logger[arm], target=target[arm], reward=1.0 * (rng.random(n) < np.array([0.05, 0.08])[arm]),
        cluster=np.arange(n), predicted=np.full(n, 0.05), expected=np.full(n, 0.05),
    )  # fmt: skip


def width(estimate: Estimate) -> float:
    """Width of an interval over that of the normal one."""
    assert None not in (estimate.lower, estimate.upper, estimate.std_error)
    return (estimate.upper - estimate.lower) / (2 * NormalDist().inv_cdf(0.975) * estimate.std_error)


def counts(world: World | Pages, n: int, *, logs: int) -> dict[str, tuple[int, int]]:
    """Of each estimator, how many intervals hold the truth, and how many were judged."""
    judged, covered, truth = Counter[str](), Counter[str](), world.truth
    for seed in range(logs):
        for estimate in estimates(world.batch(n, np.random.default_rng([seed, n]))):
            if estimate.verdict != "insufficient":
                judged[estimate.estimator] += 1
                covered[estimate.estimator] += holds(estimate, truth)
    return {label: (covered[label], judged[label]) for label in judged}


def estimates(batch: LogBatch | SlateBatch, **options: Any) -> list[Estimate]:
    """The estimates of a log whose rewards are 0 or 1."""
    fold: Any = (
        ImpressionFold(estimators=IMPRESSIONS, spans_batches=False)
        if isinstance(batch, LogBatch)
        else SlateFold(estimators=SLATES, spans_batches=False)
    )
    options = {"reward_range": (0.0, 1.0), "replicates": REPLICATES, **options}
    estimated: list[Estimate] = fold.finish(fold.row_sums(batch), FinishOptions(**options))
    return estimated


def holds(estimate: Estimate, truth: float) -> bool:
    """Whether the interval holds the truth; an unknown bound holds all."""
    low, high = estimate.lower, estimate.upper
    return (low is None or low <= truth) and (high is None or truth <= high)
