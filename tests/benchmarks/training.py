"""Climbs whose end is known: in the short corridor (Sutton & Barto 2018, section 13.3), step by step; and with the
toy of Chen et al. (2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.policy.contexts.encoder import Design, Encoder
from rlrec.policy.gradients import reinforce, returns
from rlrec.policy.gradients.gradient import Gradient, Parameters, State
from rlrec.policy.gradients.reinforce import LoggedSlates, Objective
from rlrec.policy.slates import plackett_luce
from rlrec.simulate.corridor import RIGHT, Corridor
from tests.benchmarks.measure import Figure, Setting
from tests.policy.gradients.test_reinforce import ITEMS, LOGGED, climbed

RUNS, EPISODES = 200, 1_000
TOGETHER = 100  # runs: an encoder is no wider than that
CLOSE = 1e-3
LOWEST = 0.05  # probability of either arm
OPEN = Objective(uses_weights=False)  # every step is the policy's own
ALONE, SMALL, WITH = 2.0**-12, 2.0**-13, (2.0**-9, 2.0**-6)  # step sizes; WITH: and that of the baseline
AROUND, LAST = slice(89, 110), 100  # episodes
AT_END, IN_LAST, EARLY, BEHIND = 0.5, 1.0, 1.5, 18.0  # from the optimum; what an episode still costs without a baseline


def training(setting: Setting) -> Iterator[Figure]:
    """Both."""
    yield from corridor(setting)
    yield from toy()


def corridor(setting: Setting) -> Iterator[Figure]:
    """What runs come to, plain and with a baseline. Every step costs 1, the last one too."""
    runs, best = setting.size(RUNS), Corridor().optimum()
    plain = walks(rate=ALONE, runs=runs, episodes=EPISODES, seed=1)
    value, (last, error) = float(np.median(values(plain.right))), mean(plain.earned[-LAST:])
    what = f"REINFORCE, 2^-12, {runs} runs"
    yield Figure(name=f"{what}: median value after {EPISODES:,} episodes", value=value, unit="", reference=best)
    yield Figure(name=f"{what}: off by", value=abs(value - best), unit="", at_most=AT_END)
    yield Figure(name=f"{what}: mean of the last {LAST} (+- {error:.2g})", value=last, unit="", reference=best)
    yield Figure(name=f"{what}: off by", value=abs(last - best), unit="", at_most=IN_LAST)
    rate, baseline = WITH
    early, error = mean(walks(rate=rate, baseline=baseline, runs=runs, episodes=AROUND.stop, seed=2).earned[AROUND])
    what = f"with a baseline, 2^-9 and 2^-6, {runs} runs"
    yield Figure(name=f"{what}: mean around episode 100 (+- {error:.2g})", value=early, unit="", reference=best)
    yield Figure(name=f"{what}: off by", value=abs(early - best), unit="", at_most=EARLY)
    early, error = mean(walks(rate=SMALL, runs=runs, episodes=AROUND.stop, seed=3).earned[AROUND])
    what = f"REINFORCE, 2^-13, {runs} runs: cost around episode 100 (+- {error:.2g})"
    yield Figure(name=what, value=-early, unit="", at_least=BEHIND)


def toy() -> Iterator[Figure]:
    """Ten items, of which item i earns i and is logged in proportion to 11 - i."""
    reward, few = ITEMS.astype(np.float64), np.array([10.0, 9.0, *[1.0] * 8])
    shares = ITEMS * LOGGED / (ITEMS * LOGGED).sum()
    yield Figure(
        name="the toy of Chen et al.: without correction, from reward x logged, at most",
        value=float(abs(climbed(reward, LOGGED, Objective(uses_weights=False)) - shares).max()), unit="", at_most=CLOSE,
    )  # fmt: skip
    best = float(climbed(reward, LOGGED, Objective())[-1])
    yield Figure(name="the toy: with correction, the best item", value=best, unit="", at_least=0.999)
    for what, result, ends in (
        ("weights cut at e^3", climbed(reward, LOGGED, Objective(clip=exp(3)))[-2:], (0.594, 0.406)),
        ("two of a page", climbed(few, np.full(10, 0.1), Objective(top_k=2))[:2], (10 / 19, 9 / 19)),
    ):
        off = float(abs(result - np.array(ends)).max())
        yield Figure(name=f"the toy: {what}, from {ends[0]:.3f} and {ends[1]:.3f}", value=off, unit="", at_most=CLOSE)


def values(chances: Array) -> list[float]:
    """Of policies that go right with these probabilities, exactly."""
    return [Corridor().value(chance) for chance in chances.tolist()]


def mean(earned: Array) -> tuple[float, float]:
    """Of episodes (episodes, runs), and its standard error over the runs."""
    of_runs = earned.mean(axis=0)
    return float(of_runs.mean()), float(of_runs.std(ddof=1)) / sqrt(len(of_runs))


@dataclass(frozen=True, eq=False)
class Walks:
    """Of many runs: what each episode earned, (episodes, runs), and the probability of going right after the last one,
    (runs,)."""

    earned: Array
    right: Array


def walks(*, rate: float, baseline: float = 0.0, runs: int, episodes: int, seed: int) -> Walks:
    """Many runs of one learner, each with parameters of its own: after an episode they move step by step.

    rate: step size; baseline: that of a learned scalar, which begins at 0 (0: there is none)."""
    seeds = np.random.SeedSequence(seed).spawn(-(-runs // TOGETHER))
    parts = [
        _walks(np.random.default_rng(item), rate=rate, baseline=baseline, runs=len(seed), episodes=episodes)
        for item, seed in zip(seeds, np.array_split(np.arange(runs), len(seeds)), strict=True)
    ]
    return Walks(np.hstack([item.earned for item in parts]), np.concatenate([piece.right for piece in parts]))


def _walks(rng: np.random.Generator, *, rate: float, baseline: float, runs: int, episodes: int) -> Walks:
    """Runs that advance together: each is a context, so that it has weights of its own."""
    names = Encoder.parse({"fields": {"run": {"type": "vector", "length": runs}}, "intercept": False})
    kind = Gradient(design=Design(context=names, arm=Encoder.parse({"fields": {}})))
    audience, parameters, scalar = Corridor(), started(kind, runs), np.zeros(runs)
    audience.reset(runs, np.random.default_rng(rng.integers(2**63)))
    earned, stored = np.empty((episodes, runs)), np.eye(runs, len(kind.names))
    for episode in range(episodes):
        arms, gained, start = episode_of(audience, right(parameters, runs), rng)
        earned[episode], length = gained[start[:-1]], np.diff(start)
        for step in range(int(length.max())):
            selected = np.flatnonzero(length > step)
            rows = start[selected] + step
            gain = gained[rows] - scalar[selected]
            scalar[selected] += baseline * gain
            moved = reinforce.sums(kind, parameters, [pages(stored[selected], arms[rows], gain)], OPEN).gradient[
                "linear"
            ]
            parameters["linear"] = bounded(parameters["linear"] + rate * moved)
    return Walks(earned, right(parameters, runs))


def started(kind: Gradient, runs: int) -> Parameters:
    """Parameters that go right with the lowest probability in every run."""
    result = kind.zero_parameters(2)
    result["linear"][RIGHT, :runs] = log(LOWEST / (1 - LOWEST))
    return result


def right(parameters: Parameters, runs: int) -> Array:
    """Probability of going right, (runs,)."""
    score = parameters["linear"][:, :runs].T
    return plackett_luce.probabilities(score, temperature=1.0, floor=0.0)[:, RIGHT]


def bounded(linear: Array) -> Array:
    """Weights for which no arm is less likely than the lowest: both are moved alike, as a gradient moves them."""
    apart = linear[RIGHT] - linear[1 - RIGHT]
    beyond = (apart - np.clip(apart, log(LOWEST / (1 - LOWEST)), log((1 - LOWEST) / LOWEST))) / 2
    result = linear.copy()
    result[RIGHT] -= beyond
    result[1 - RIGHT] += beyond
    return result


def episode_of(audience: Corridor, chance: Array, rng: np.random.Generator) -> tuple[Index, Array, Index]:
    """An episode of each run: arms and returns, run by run, and where each begins, (runs + 1,)."""
    runs, arms, rewards = len(chance), list[Index](), list[Array]()
    audience.admit(np.arange(runs), np.arange(runs))
    there, length = np.ones(runs, np.bool_), np.zeros(runs, np.intp)
    while there.any():
        chosen = np.where(rng.random(runs) < chance, RIGHT, 1 - RIGHT)
        _, reward, terminated, truncated, _ = audience.step(chosen)
        arms.append(chosen)
        rewards.append(reward)
        length += there
        there &= ~(terminated | truncated)
    inside = np.arange(len(arms)) < length[:, None]
    start = np.concatenate([[0], np.cumsum(length)])
    flat = np.array(rewards).T[inside]
    return np.array(arms).T[inside], returns.discount_rewards(flat, start, gamma=1.0), start


def pages(x: Array, arms: Index, gain: Array) -> LoggedSlates:
    """A step of some runs, of which x is known."""
    state = State(x, np.empty(0, np.intp), np.empty(0, np.int64), np.empty((0, 4)))
    return LoggedSlates(
        state=state, arms=np.arange(2), arm_features=np.zeros((2, 1)), shown_arms=arms[:, None],
        log_propensity=np.zeros(len(x)), gain=gain, returns=gain, scale=np.ones(len(x)),
    )  # fmt: skip
