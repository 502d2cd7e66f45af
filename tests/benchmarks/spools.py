"""Visits drawn in arrays, without a store, and the training and the gate of `train-pg` on them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlrec.app.log.splits import GATE, TRAIN, TUNE
from rlrec.app.policies.train import TUNE_VISITS
from rlrec.app.training.ascent import Trainer, TrainingOptions, TrainingResult
from rlrec.app.training.dataset import Catalogue, Dataset, EligibleSet, VisitRows
from rlrec.app.training.holdout_value import VISITS, HoldoutValue, fit_values
from rlrec.arrays import Array, Flags, Index
from rlrec.ope.comparisons.comparison import Comparison
from rlrec.policy.contexts.encoder import Design, Encoder
from rlrec.policy.gradients.gradient import Gradient, Parameters, State
from rlrec.policy.gradients.history import History
from rlrec.policy.slates import plackett_luce
from rlrec.simulate.base import Visitors

GAP_S = 1.0
SHARES = (0.6, 0.2, 0.2)  # of the visits: train, tune, gate
NOBODY = Encoder.parse({"fields": {}})  # a constant alone
KIND = Gradient(design=Design(context=NOBODY, arm=NOBODY))


@dataclass(kw_only=True, eq=False)
class Shelf(Visitors):
    """rates: probability of a reward of 1 for each arm, whatever came before. A visit takes `least` to `cap` decisions,
    each number as often as any other."""

    rates: tuple[float, ...]
    least: int = 3
    cap: int = 5

    def __post_init__(self) -> None:
        self.arms = len(self.rates)

    def _forget_visitors(self, runs: int) -> None:
        """Nothing is remembered."""

    def _begin_visits(self, seats: Index, visitors: Index) -> None:
        """All visits begin alike."""

    def _serve_arms(self, actions: Index) -> tuple[Array, Array, Flags]:
        expected, left = np.array(self.rates)[actions], np.maximum(self.cap - self._steps, 1)
        leaves = (self._steps + 1 >= self.least) & (self._rng.random(len(actions)) * left < 1)
        return (self._rng.random(len(actions)) < expected).astype(np.float64), expected, leaves

    def _end_visits(self, is_ended: Flags) -> Array:
        return np.zeros(len(is_ended))


# -- what a policy makes of visits --


@dataclass(frozen=True, kw_only=True, eq=False)
class Server:
    """A policy with its parameters, where all visits have one context, (q,), and every arm is eligible.

    described (m, p): features of the arms. gap_s: between decisions. blind: it knows what it has shown, and not what
    that earned."""

    parameters: Parameters
    kind: Gradient = KIND
    context: Array = field(default_factory=lambda: np.ones(1))
    described: Array | None = None
    gap_s: float = GAP_S
    blind: bool = False

    @property
    def arms(self) -> int:
        return len(self.parameters["bias"])

    @property
    def features(self) -> Array:
        return np.ones((self.arms, 1)) if self.described is None else self.described

    def state(self, arms: Index, rewards: Array) -> State:
        """States after these arms, that earned this, (n, t) each, oldest first."""
        n, t = arms.shape
        step, stored = np.full(n, t), np.zeros_like(rewards) if self.blind else rewards
        history = History(
            step=step, gap_s=np.full(n, self.gap_s if t else 0.0), n_shown=step, reward=stored.sum(axis=1),
            start=np.arange(n + 1) * t, arm=arms.ravel().astype(np.int64), ago=np.tile(np.arange(t, 0, -1), n),
            slot_reward=stored.ravel(),
        )  # fmt: skip
        return self.kind.states(np.tile(self.context, (n, 1)), history, self.features[arms.ravel()])

    def chances(self, arms: Index, rewards: Array) -> Array:
        """Probability of each arm after these, (n, m)."""
        where = self.state(arms, rewards)
        score = self.kind.scores_of(self.parameters, where, arms=np.arange(self.arms), arm_features=self.features)
        return plackett_luce.probabilities(score, temperature=self.kind.temperature, floor=self.kind.floor)


@dataclass(frozen=True, eq=False)
class Log:
    """Visits side by side: arms and rewards, mean rewards and log propensities, (n, cap) each; length (n,).

    lowest (n, cap): log of the smallest probability that an arm had. Behind the end of a visit nothing counts."""

    arms: Index
    rewards: Array
    expected: Array
    log_propensity: Array
    lowest: Array
    length: Index

    @property
    def inside(self) -> Flags:
        result: Flags = np.arange(self.arms.shape[1]) < self.length[:, None]
        return result


def drawn(server: Server, audience: Visitors, *, visits: int, seed: int) -> Log:
    """Visits that a policy served."""
    rng, world = (np.random.default_rng(item) for item in np.random.SeedSequence(seed).spawn(2))
    shape = visits, audience.cap
    arms, length, there = np.zeros(shape, np.intp), np.zeros(visits, np.intp), np.arange(visits)
    rewards, expected, logged, lowest = np.zeros((4, *shape))
    audience.reset(visits, world)
    for step in range(audience.cap):
        chance = server.chances(arms[there, :step], rewards[there, :step])
        chosen = np.minimum((chance.cumsum(axis=1) < rng.random((len(there), 1))).sum(axis=1), audience.arms - 1)
        served = np.zeros(visits, np.intp)  # those who have left are served, and do not count
        served[there] = chosen
        _, reward, terminated, truncated, info = audience.step(served)
        arms[there, step], rewards[there, step] = chosen, reward[there]
        expected[there, step], lowest[there, step] = info["expected"][there], np.log(chance.min(axis=1))
        logged[there, step] = np.log(chance[np.arange(len(there)), chosen])
        length[there] += 1
        there = there[~(terminated | truncated)[there]]
        if not len(there):
            break
    return Log(arms, rewards, expected, logged, lowest, length)


def spooled(server: Server, log: Log, *, seed: int) -> Dataset:
    """A log as `train-pg` reads it: visits by hash, in three splits, each for itself."""
    rng, spool, n = np.random.default_rng(seed), Dataset(), len(log.length)
    split = np.searchsorted(np.cumsum(SHARES)[:-1], np.arange(n) / n, side="right")
    inside, total = log.inside, int(log.length.sum())
    ones, reward, logged = np.ones(total, np.int64), log.rewards[inside], log.log_propensity[inside]
    x, remembered, separate = _together(server, log)
    spool.add(
        VisitRows(
            eligible_sets=[EligibleSet(Catalogue(server.features), np.arange(server.arms))],
            name=rng.integers(2**63, size=n).astype(np.uint64), split=split, cluster=rng.integers(2**63, size=n),
            stratum=np.zeros(n, np.int64),
            length=log.length, eligible=ones - 1, size=ones, n_remembered=remembered, log_propensity=logged,
            reward=reward, default=(reward == 0).astype(np.int64), is_ruled=ones - 1, lowest=log.lowest[inside], x=x,
            shown_arm=log.arms[inside], slot_reward=reward, divided_reward=reward, log_marginal=logged,
            log_conditional=logged, arm=separate[0], memory=separate[1],
        )
    )  # fmt: skip
    return spool


def _together(server: Server, log: Log) -> tuple[Array, Index, tuple[Index, Array]]:
    """Features of all decisions, visit by visit; how many arms each remembers; and which, with what is known."""
    rows, steps = np.nonzero(log.inside)
    index = np.full(log.arms.shape, -1)
    index[rows, steps] = np.arange(len(rows))
    x = np.empty((len(rows), len(server.kind.names)))
    parts = list[tuple[Index, Index, Array]]()
    for step in range(log.arms.shape[1]):
        selected = np.flatnonzero(log.length > step)
        state = server.state(log.arms[selected, :step], log.rewards[selected, :step])
        x[index[selected, step]] = state.x
        parts.append((index[selected, step][state.row], state.arm.astype(np.intp), state.memory))
    row, arm, separate = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((arm, row))
    return x, np.bincount(row, minlength=len(rows)), (arm[order], separate[order])


# -- training, and the gate --


@dataclass(frozen=True, eq=False)
class Night:
    """A candidate: where the climb led, and what the gate's visits say of it beside the live policy; until `close`."""

    climbed: TrainingResult
    judge: HoldoutValue
    spool: Dataset

    def gain(self, alpha: float) -> Comparison:
        return self.judge.difference(self.judge.partials(self.climbed.parameters), alpha=alpha)

    def close(self) -> None:
        """Give back what the log took of the disk."""
        self.spool.close()


def night(
    spool: Dataset,
    start: Parameters,
    *,
    live: Parameters | None = None,
    kind: Gradient = KIND,
    options: TrainingOptions = TrainingOptions(),  # noqa: B008 (frozen)
) -> Night:
    """What `train-pg` does with a log: it climbs from `start`, which is live if nothing else is."""
    arms, gamma = len(start["bias"]), options.gamma
    spool.arrange({TRAIN: spool.batch(options.batch), TUNE: VISITS, GATE: VISITS})
    values = fit_values(spool.splits[TRAIN], gamma=gamma, arms=arms)
    requests: dict[str, Any] = {"gamma": gamma, "values": values}
    tune = HoldoutValue(spool.splits[TUNE], kind, start, max_visits=TUNE_VISITS, **requests)
    with closing(Trainer(spool.splits[TRAIN], kind, options, start)) as climber:
        climbed = climber.train(tune)
    requests["values"] = fit_values(spool.splits[GATE], gamma=gamma, arms=arms)  # cross-fitted, as the gate has it
    return Night(climbed, HoldoutValue(spool.splits[GATE], kind, start if live is None else live, **requests), spool)
