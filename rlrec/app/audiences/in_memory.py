"""Studies in memory: many runs of a policy and an audience advance together in arrays, without a store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rlrec import simulate
from rlrec.arrays import Array, Flags, Index
from rlrec.policy import moments
from rlrec.policy.base import Belief, Policy
from rlrec.policy.contextual import learns_from_contexts
from rlrec.policy.design import Design
from rlrec.policy.encoder import Encoder
from rlrec.policy.forgetting import Forgetting
from rlrec.policy.linear import SHARED
from rlrec.policy.moments import Moments
from rlrec.policy.scores import Scores
from rlrec.simulate.base import Audience, Info
from rlrec.simulate.visitors import Visitors

NOTHING: dict[str, Any] = {}


@dataclass(frozen=True, eq=False, kw_only=True)
class Totals:
    """Sums of each run, (runs,): rewards, mean rewards of the best arms, how far those of the chosen arms fell short,
    and decisions; where visitors are recognised, how many they were and how many of them came again."""

    reward: Array
    optimum: Array
    regret: Array
    decisions: Array
    visitors: Array | None = None
    returned: Array | None = None


def study(
    policy: Policy, audience: Audience, *, runs: int, steps: int, seed: int, names: Sequence[str] | None = None
) -> Totals:
    """The totals of so many decisions of each run. The regret is one of means (pseudo-regret): without the noise of
    rewards.

    names: of the arms."""
    simulation = Runs(policy, audience, runs=runs, seed=seed, names=names)
    reward, optimum, expected = np.zeros((3, runs))
    for _ in range(steps):
        earned, _, info = simulation.step()
        reward += earned
        optimum += info["optimum"]
        expected += info["expected"]
    return Totals(reward=reward, optimum=optimum, regret=optimum - expected, decisions=np.full(runs, float(steps)))


def visit(
    policy: Policy, audience: Visitors, *, runs: int, visits: int, seed: int, names: Sequence[str] | None = None
) -> Totals:
    """The totals of so many visits of each run, played to their end one after another; a visitor who comes again does
    so at once. Runs that are done count no more."""
    simulation = Runs(policy, audience, runs=runs, seed=seed, names=names)
    left, number = np.full(runs, visits), np.zeros(runs, np.int64)  # visits to play; visits of the visitor before
    reward, expected, decisions, returned = np.zeros((4, runs))
    visitors, newest = np.ones(runs), runs
    while (playing := left > 0).any():
        earned, ended, info = simulation.step()
        reward += np.where(playing, earned, 0.0)
        expected += np.where(playing, info["expected"], 0.0)
        decisions += playing
        left -= ended
        # who comes next: the visitor again, or a new one
        again = info["again"] > 0
        follows = ended & (left > 0)
        returned += follows & again & (number == 0)
        visitors += follows & ~again
        number = np.where(ended & ~again, 0, number + ended)
        new = np.flatnonzero(ended & ~again)
        audience.admit(new, np.arange(newest, newest + len(new)))
        newest += len(new)
    optimum = np.full(runs, audience.optimum() * visits)
    return Totals(
        reward=reward, optimum=optimum, regret=optimum - expected, decisions=decisions,
        visitors=visitors, returned=returned,
    )  # fmt: skip


class Runs:
    """Many runs of a policy and an audience, decision by decision."""

    def __init__(
        self, policy: Policy, audience: Audience, *, runs: int, seed: int, names: Sequence[str] | None
    ) -> None:
        self.policy, self.audience, self.shape = policy, audience, (runs, audience.arms)
        seeds = np.random.SeedSequence(seed).spawn(2)
        self._draws, of_audience = (np.random.Generator(np.random.SFC64(words)) for words in seeds)
        self._names = simulate.names(audience.arms) if names is None else names
        self._beliefs = RunBeliefs(policy, runs, self._names)
        self._observed = audience.reset(runs, of_audience)
        self._steps = 0

    def step(self) -> tuple[Array, Flags, Info]:
        """One decision of every run: the reward and whether a visit ended with it, (runs,), and the audience's info."""
        self._beliefs.add_due_rewards(self._steps)
        x = np.column_stack([np.ones(self.shape[0]), self._observed])
        scores = _scores(self.policy, self._beliefs.belief(), x, self._names)
        arms = draw_arms(scores, self.shape, floor=self.policy.exploration, rng=self._draws)
        self._observed, earned, terminated, truncated, info = self.audience.step(arms)
        self._beliefs.add(arms, earned, x, info.get("delay"))
        self._steps += 1
        return earned, terminated | truncated, info


def design(audience: Audience, names: Sequence[str], *, model: str | None) -> Design:
    """The design of a contextual kind for an audience: a constant, the observation, and names of arms that share a
    model."""
    arm = {"arm": list(names)} if model == SHARED else {}
    context = {"x": {"type": "vector", "length": audience.features}} if audience.features else {}
    return Design(context=Encoder.of({"fields": context}), arm=Encoder.of({"fields": arm}))


def _scores(policy: Policy, belief: Belief, x: Array, keys: Sequence[str]) -> Scores:
    """The scores of each arm in each run, in contexts x (runs, q)."""
    if learns_from_contexts(policy):
        return policy.scores_at(belief, x)
    return policy.scores(belief, arms=keys, context=NOTHING)


# -- draws --


def draw_arms(scores: Scores, shape: tuple[int, int], *, floor: float, rng: np.random.Generator) -> Index:
    """The arm of each run, (runs,): a uniform one with probability `floor`, else that of the best noisy score."""
    runs, m = shape
    arms = _best(np.broadcast_to(scores.noise(shape, rng), shape), rng)
    if floor:
        arms = np.where(rng.random(runs) < floor, rng.integers(m, size=runs), arms)
    return arms


def _best(values: Array, rng: np.random.Generator) -> Index:
    """Index of the largest value in each row; of equal ones, a random one."""
    best = values.argmax(axis=1)
    equal = values == np.take_along_axis(values, best[:, None], axis=1)
    tied = np.flatnonzero(np.count_nonzero(equal, axis=1) > 1)
    if len(tied):
        best[tied] = np.where(equal[tied], rng.random((len(tied), values.shape[1])), -1.0).argmax(axis=1)
    return best


# -- beliefs of the runs --


class RunBeliefs:
    """The beliefs of all runs. A decision enters with the reward 0 when it is drawn; a reward that comes later corrects
    it, at the weight that the decision has by then. Rewards are 0 or 1, or all 0 or -1. Cells are run times arms plus
    arm."""

    def __init__(self, policy: Policy, runs: int, names: Sequence[str]) -> None:
        self.shape = runs, len(names)
        self.alpha, self.beta = (np.full(len(names), value) for value in policy.prior)
        self.ordinal = 0  # of the newest decision
        self._first_cells = np.arange(runs) * len(names)
        self._pulls, self._rewards = (ForgettingSums(policy.forgetting, runs * len(names)) for _ in range(2))
        self._delayed: dict[int, list[DelayedReward]] = defaultdict(list)  # by step
        self._linear = policy if learns_from_contexts(policy) else None
        self._q = 0 if self._linear is None else len(self._linear.design.context.names)
        self._moments = ForgettingSums(policy.forgetting, runs * len(names), moments.width(self._q))
        self._names = names

    def belief(self) -> Belief:
        pulls, rewards = self._pulls.now.reshape(self.shape), self._rewards.now.reshape(self.shape)
        return Belief(
            pulls=pulls, reward_sum=rewards, reward_squares=np.abs(rewards), alpha=self.alpha, beta=self.beta,
            total=pulls.sum(axis=1, keepdims=True), moments=self._context_moments(),
        )  # fmt: skip

    def _context_moments(self) -> Moments | None:
        if self._linear is None:
            return None
        unpacked = moments.unpack(self._moments.now.reshape(*self.shape, -1), self._q)
        return replace(unpacked, described=self._described)

    @cached_property
    def _described(self) -> Array | None:
        """The arms' own features, (arms, p)."""
        return None if self._linear is None else self._linear.design.arm.encode([{"arm": name} for name in self._names])

    def add(self, arms: Index, reward: Array, x: Array, delay: Array | None) -> None:
        """Add a decision of every run: arms (runs,), contexts x (runs, q); delay: steps until the reward comes, or
        None."""
        self.ordinal += 1
        for sums in (self._pulls, self._rewards, self._moments):
            sums.advance(self.ordinal)
        cells = self._first_cells + arms
        self._pulls.add(cells, 1.0, self.ordinal)
        if self._linear is not None:
            weight, offset = self._linear.credit(x, arms)  # before the reward
            self._moments.add(cells, moments.each(x, weight=weight, response=offset), self.ordinal)
        if delay is None:
            self._add_reward(DelayedReward(self.ordinal, cells, x), reward)
        else:
            self._delay(cells, reward, x, delay.astype(np.int64))

    def _delay(self, cells: Index, reward: Array, x: Array, delay: npt.NDArray[np.int64]) -> None:
        rewarded = np.flatnonzero(reward)
        order = rewarded[np.argsort(delay[rewarded], kind="stable")]
        for rows in np.split(order, np.flatnonzero(np.diff(delay[order])) + 1):
            if len(rows):
                delayed = DelayedReward(self.ordinal, cells[rows], x[rows])
                self._delayed[self.ordinal + int(delay[rows[0]])].append(delayed)

    def add_due_rewards(self, step: int) -> None:
        """Add the rewards that come before the decision after so many."""
        for delayed in self._delayed.pop(step, ()):
            self._add_reward(delayed, np.ones(len(delayed.cells)))

    def _add_reward(self, to: DelayedReward, reward: Array) -> None:
        self._rewards.add(to.cells, reward, to.ordinal)
        if self._linear is not None:
            self._moments.add(to.cells, reward[:, None] * to.x, to.ordinal, first=-self._q)


class DelayedReward(NamedTuple):
    """Decisions with one ordinal whose rewards come at one time."""

    ordinal: int
    cells: Index
    x: Array


class ForgettingSums:
    """Sums of all runs and arms, (cells, ...), that forget by the ordinal of decisions as `Forgetting` says."""

    def __init__(self, forgetting: Forgetting, *shape: int) -> None:
        self.forgetting = forgetting
        self.now = np.zeros(shape)
        buckets = forgetting.bucket(int(forgetting.window)) + 2 if forgetting.window else 0
        self._buckets = np.zeros((buckets, *shape))
        self._oldest = self._ordinal = 0

    def advance(self, ordinal: int) -> None:
        """Bring the sums forward by one, to this ordinal."""
        self._ordinal = ordinal
        if self.forgetting.discount < 1:
            self.now *= self.forgetting.discount
        oldest = self.forgetting.oldest(ordinal)
        if oldest > self._oldest:
            self._buckets[self._oldest % len(self._buckets)] = 0
            self._oldest = oldest
            self.now = self._buckets.sum(axis=0)

    def add(self, cells: Index, value: Array | float, ordinal: int, *, first: int = 0) -> None:
        """Add what decisions with this ordinal add, one a run at most; to the columns from `first` on."""
        where = (cells, slice(first, None)) if first else (cells,)
        if self.forgetting.discount < 1:
            value = value * self.forgetting.discount ** (self._ordinal - ordinal)
        if self.forgetting.window:
            bucket = self.forgetting.bucket(ordinal)
            if bucket < self._oldest:
                return
            self._buckets[bucket % len(self._buckets)][where] += value
        self.now[where] += value
