"""Studies in memory: many runs of a policy and an audience advance together in arrays, and no store is touched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec import simulate
from rlrec.errors import InputError
from rlrec.policy.base import Belief, Policy
from rlrec.policy.scores import Array, Beta, Correlated, Gaussian, Gumbel, Index, Point, Scores
from rlrec.simulate.base import Audience

NOTHING: dict[str, Any] = {}


@dataclass(frozen=True, eq=False, kw_only=True)
class Totals:
    """Of each run, (runs,): rewards earned, mean rewards of the best arms, and what the chosen ones lacked to these."""

    reward: Array
    optimum: Array
    regret: Array


def study(
    policy: Policy, audience: Audience, *, runs: int, steps: int, seed: int, names: Sequence[str] | None = None
) -> Totals:
    """What so many runs earned. The regret is one of means (pseudo-regret): the noise of the rewards is not in it.

    names: of the arms."""
    draws, world = (np.random.Generator(np.random.SFC64(one)) for one in np.random.SeedSequence(seed).spawn(2))
    memory = _Memory(policy, runs, audience.arms)
    keys = simulate.names(audience.arms) if names is None else names
    reward, optimum, expected = np.zeros((3, runs))
    audience.reset(runs, world)
    for step in range(steps):
        memory.arrive(step)
        scores = policy.scores(memory.belief(), arms=keys, context=NOTHING)
        arms = chosen(scores, (runs, audience.arms), floor=policy.exploration, rng=draws)
        _, earned, _, _, info = audience.step(arms)
        memory.learn(arms, earned, info.get("delay"))
        reward += earned
        optimum += info["optimum"]
        expected += info["expected"]
    return Totals(reward=reward, optimum=optimum, regret=optimum - expected)


# -- draws --


def chosen(scores: Scores, shape: tuple[int, int], *, floor: float, rng: np.random.Generator) -> Index:
    """The arm of each run, (runs,): a uniform one with probability `floor`, else that of the best noisy score."""
    runs, m = shape
    found = _best(np.broadcast_to(_noisy(scores, shape, rng), shape), rng)
    if floor:
        found = np.where(rng.random(runs) < floor, rng.integers(m, size=runs), found)
    return found


def _noisy(scores: Scores, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """A draw of the score of each arm, (runs, m), or of something that orders the arms alike."""
    match scores:
        case Point(values):
            return values
        case Beta(alpha, beta):
            with np.errstate(divide="ignore"):  # the odds order as the probabilities do
                return rng.standard_gamma(alpha, shape) / rng.standard_gamma(beta, shape)
        case Gaussian(mean, sd):
            return mean + sd * rng.standard_normal(shape)
        case Gumbel(logits):
            return logits - np.log(rng.standard_exponential(shape))
        case Correlated(location, factor):
            return location + (factor @ rng.standard_normal((*shape[:-1], factor.shape[-1], 1)))[..., 0]
        case _:
            raise InputError("the samples of one decision are not simulated")


def _best(values: Array, rng: np.random.Generator) -> Index:
    """The place of the largest value in each row; of equal ones, a random one."""
    found: Index = values.argmax(axis=1)
    equal = values == np.take_along_axis(values, found[:, None], axis=1)
    tied = np.flatnonzero(np.count_nonzero(equal, axis=1) > 1)
    if len(tied):
        found[tied] = np.where(equal[tied], rng.random((len(tied), values.shape[1])), -1.0).argmax(axis=1)
    return found


# -- what the runs know --


class _Memory:
    """The beliefs of all runs, which forget as `Forgetting` says, by the ordinal of decisions.

    A decision enters with the reward 0 when it is made; a reward that comes late corrects it. Rewards are 0 or 1."""

    def __init__(self, policy: Policy, runs: int, arms: int) -> None:
        self.forgetting = policy.forgetting
        self.alpha, self.beta = (np.full(arms, value) for value in policy.prior)
        self.ordinal = 0  # of the newest decision
        self._rows = np.arange(runs) * arms
        self._sums = np.zeros((2, runs, arms))  # pulls, and rewards (their squares are the same)
        self._total = np.zeros((runs, 1))
        self._late: dict[int, list[tuple[int, Index]]] = defaultdict(list)  # by step: ordinals and places
        kept = self.forgetting.bucket(int(self.forgetting.window)) + 2 if self.forgetting.window else 0
        self._buckets = np.zeros((kept, 2, runs, arms))
        self._oldest = 0

    def belief(self) -> Belief:
        pulls, rewards = self._sums
        return Belief(
            pulls=pulls, reward_sum=rewards, reward_squares=rewards, alpha=self.alpha, beta=self.beta,
            total=self._total,
        )  # fmt: skip

    def learn(self, arms: Index, reward: Array, delay: Array | None) -> None:
        """A decision of every run, (runs,) each; delay: steps until its reward comes, None for none."""
        self.ordinal += 1
        self._fade()
        places = self._rows + arms
        self._add(0, places, 1.0, self.ordinal)
        self._total += 1
        if delay is None:
            self._add(1, places, reward, self.ordinal)
        else:
            self._wait(places, reward, delay.astype(np.int64))

    def _wait(self, places: Index, reward: Array, delay: npt.NDArray[np.int64]) -> None:
        earned = np.flatnonzero(reward)
        order = earned[np.argsort(delay[earned], kind="stable")]
        cuts = np.flatnonzero(np.diff(delay[order])) + 1
        for part in np.split(order, cuts):
            if len(part):
                self._late[self.ordinal + int(delay[part[0]])].append((self.ordinal, places[part]))

    def arrive(self, step: int) -> None:
        """Rewards that come before the decision after so many."""
        for ordinal, places in self._late.pop(step, ()):
            self._add(1, places, 1.0, ordinal)

    def _add(self, field: int, places: Index, value: Array | float, ordinal: int) -> None:
        """What decisions with this ordinal add, one a run at most."""
        if self.forgetting.discount < 1:
            value = value * self.forgetting.discount ** (self.ordinal - ordinal)
        if self.forgetting.window:
            bucket = self.forgetting.bucket(ordinal)
            if bucket < self._oldest:
                return
            self._buckets[bucket % len(self._buckets), field].reshape(-1)[places] += value
        self._sums[field].reshape(-1)[places] += value

    def _fade(self) -> None:
        """Bring the sums forward to the present ordinal."""
        if self.forgetting.discount < 1:
            self._sums *= self.forgetting.discount
            self._total *= self.forgetting.discount
        oldest = self.forgetting.oldest(self.ordinal)
        if oldest > self._oldest:
            self._buckets[self._oldest % len(self._buckets)] = 0
            self._oldest = oldest
            self._sums = self._buckets.sum(axis=0)
            self._total = self._sums[0].sum(axis=1, keepdims=True)
