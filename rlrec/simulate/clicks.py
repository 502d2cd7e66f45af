"""This module simulates audiences that click. The clicks on an arm depend on a fixed rate, on a rate that changes, on
the context, or on the position; or they arrive late."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, pi
from typing import Any

import numpy as np

from rlrec.arrays import Array, Flags, Index
from rlrec.errors import InputError
from rlrec.simulate.base import Step, World, bounded_parameter, check_rates, examination, largest_means, require_between

SHAPES = ("exponential", "fixed")
MODELS = ("linear", "logistic")
LINEAR_AMPLITUDE = 0.45  # amplitude of a linear mean around 1/2: it stays in [0, 1], so that the model is exact
WEIGHT_SD = 2.0  # sd of a logistic arm's weights

Jump = tuple[int, float, int, int]  # arm, its rate for a time, the first time, the time after the last


@dataclass(kw_only=True, eq=False)
class Bernoulli(World):
    """A Bernoulli audience clicks each arm at a fixed rate of the arm, at any position.

    rates: the probability of a click for each arm, in [0, 1]."""

    rates: tuple[float, ...] = (0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._means = check_rates(self.rates)
        self.arms = len(self.rates)

    def means(self) -> Array:
        return self._means


@dataclass(kw_only=True, eq=False)
class Drift(Bernoulli):
    """A Drift audience changes its tastes, slowly and by jumps at set times. The slow change adds swing sin(2 pi (t /
    period + arm / arms)) to the rate of each arm; the sum is then cut at 0 and 1. During a jump, the rate of the jump
    replaces this sum.

    rates: the rate of each arm, in [0, 1]. jumps: spans of time over which an arm has another rate. swing: the size
    of the slow change. period: the length of the slow change, in decisions."""

    rates: tuple[float, ...] = (0.5, 0.3, 0.4)
    jumps: tuple[Jump, ...] = ((2, 0.9, 3000, 5000),)
    swing: float = bounded_parameter(0.0, 0, 1)
    period: float = 10_000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._phase = np.arange(self.arms) / self.arms
        for arm, rate, start, end in self.jumps:
            check_rates((rate, rate))
            if not 0 <= arm < self.arms:
                raise InputError(f"a jump of arm {arm}", hint=f"arms are 0 to {self.arms - 1}; jumps=none for no jumps")
            if not 0 <= start < end:
                raise InputError(f"a jump from {start} to {end}", hint="it begins at 0 or later, and ends after that")
        if not (isfinite(self.period) and self.period > 0):
            raise InputError(f"period is {self.period:g}", hint="it counts decisions, and is above 0")

    def means(self) -> Array:
        time = self._time[:, None]
        means = np.repeat(self._means, len(time), axis=0)
        if self.swing:
            means += self.swing * np.sin(2 * pi * (time / self.period + self._phase))
            np.clip(means, 0.0, 1.0, out=means)
        for arm, rate, start, end in self.jumps:
            means[(start <= self._time) & (self._time < end), arm] = rate
        return means


@dataclass(kw_only=True, eq=False)
class Delayed(Bernoulli):
    """A Delayed audience clicks at fixed rates, and its clicks arrive late.

    rates: the probability of a click for each arm. delay: the number of decisions until a click arrives. If `shape`
    is fixed, every click has this delay. If `shape` is exponential, `delay` is the mean, and the delay of each click
    is rounded down."""

    delay: float = bounded_parameter(100.0, 0, 1e6)
    shape: str = "exponential"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape not in SHAPES:
            raise InputError(f"shape is {self.shape!r}", hint=f"it is {' or '.join(SHAPES)}")

    def step(self, actions: Index) -> Step:
        observation, reward, has_left, is_cut_off, info = super().step(actions)
        is_fixed = self.shape == "fixed"
        delays = np.full(actions.shape, self.delay) if is_fixed else self._rng.exponential(self.delay, actions.shape)
        return observation, reward, has_left, is_cut_off, info | {"delay": np.floor(delays)}


@dataclass(kw_only=True, eq=False)
class Contextual(World):
    """A Contextual audience has visitors who want different things, and the context tells what each visitor wants.

    The context x is new for every decision, and uniform in [-1, 1]^features. The mean reward of arm a is 1/2 + w_a
    x, or sigmoid(w_a x). The weights w_a of the arms are drawn with `seed`, and are the same in all runs."""

    model: str = "linear"
    arms: int = bounded_parameter(5, 2, 10_000)
    features: int = bounded_parameter(4, 1, 100)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model not in MODELS:
            raise InputError(f"model is {self.model!r}", hint=f"it is {' or '.join(MODELS)}")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}", hint="it is 0 or more")
        weights = np.random.default_rng(self.seed).standard_normal((self.arms, self.features))
        is_linear = self.model == "linear"
        self._weights = weights * (
            LINEAR_AMPLITUDE / np.abs(weights).sum(axis=1, keepdims=True) if is_linear else WEIGHT_SD
        )

    def observations(self) -> Array:
        self._x = self._rng.uniform(-1, 1, (self._runs, self.features))
        return self._x

    def means(self) -> Array:
        score: Array = self._x @ self._weights.T
        return 0.5 + score if self.model == "linear" else 1 / (1 + np.exp(-score))


# -- pages: visitors examine the top more than the end, stop at a click, or judge the page as a whole --


@dataclass(kw_only=True, eq=False)
class _PageAudience(Bernoulli):
    rates: tuple[float, ...] = (0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05)


@dataclass(kw_only=True, eq=False)
class PositionBased(_PageAudience):
    """A PositionBased audience examines the top of a page more often than its end.

    rates: the probability of a click for each arm if it is examined, in [0, 1]. Position k is examined with
    probability k^-power, whichever arm is there. Source: the position-based click model, Craswell, Zoeter, Taylor
    and Ramsey 2008."""

    power: float = bounded_parameter(1.0, 0, 10)

    def draw_rewards(self, attraction: Array) -> tuple[Array, Array]:
        positions = 1 if attraction.ndim == 1 else attraction.shape[1]
        return super().draw_rewards(attraction * examination(positions, self.power))

    def best_slate_mean(self, means: Array, positions: int) -> Array:
        return largest_means(means, positions) @ examination(positions, self.power)


@dataclass(kw_only=True, eq=False)
class Cascade(_PageAudience):
    """A Cascade audience reads a page from the top, and mostly stops reading at the first click.

    rates: the probability of a click for each arm if it is examined, in [0, 1]. resume: the probability that a
    visitor reads on after a click. Source: the cascade model of Craswell, Zoeter, Taylor and Ramsey 2008 (resume 0),
    and the dependent click model of Guo, Liu and Wang 2009."""

    resume: float = bounded_parameter(0.0, 0, 1)

    def draw_rewards(self, attraction: Array) -> tuple[Array, Array]:
        if attraction.ndim == 1:
            return super().draw_rewards(attraction)
        # attracted at all positions; after a click the visitor stops unless reading is resumed
        is_attracted = self._rng.random(attraction.shape) < attraction
        is_stopped = is_attracted & (self._rng.random(attraction.shape) >= self.resume)
        is_read: Flags = np.cumsum(is_stopped, axis=1) - is_stopped == 0
        return (is_attracted & is_read).astype(np.float64), self._expected_clicks(attraction)

    def best_slate_mean(self, means: Array, positions: int) -> Array:
        # the best arms in descending order: exchanging neighbours towards this order never lowers the sum
        return self._expected_clicks(largest_means(means, positions)).sum(axis=1)

    def _expected_clicks(self, attraction: Array) -> Array:
        """Return the probability of a click at each position of n pages, (n, positions). attraction (n, positions): the
        rates of the arms on these pages."""
        p_read_on = np.cumprod(1 - attraction * (1 - self.resume), axis=1)
        return attraction * np.column_stack([np.ones(len(attraction)), p_read_on[:, :-1]])


@dataclass(kw_only=True, eq=False)
class Page(_PageAudience):
    """A Page audience judges a page as a whole, and wants variety.

    Arm a is about topic a modulo `topics`. A visitor wants one topic; all topics are equally likely. Each arm of
    this topic attracts the visitor with the probability that `rates` states. The visitor is content with a page if
    any arm attracts the visitor, and then clicks on the page, without a position. A second arm of a topic thus adds
    less than the first arm. A page with only one arm is rewarded as a slot."""

    topics: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("topics", self.topics, 1, self.arms, condition=f" with {self.arms} rates")
        self._topic = np.arange(self.arms) % self.topics

    def features_of(self, arm: int) -> dict[str, Any]:
        return {"topic": f"t{self._topic[arm]}"}

    def step(self, actions: Index) -> Step:
        slates = actions.reshape(self._runs, -1)
        # the probability that a visitor is content with each page
        topic_of_slot = (np.arange(self._runs)[:, None] * self.topics + self._topic[slates]).ravel()
        with np.errstate(divide="ignore"):
            log_no_click = np.log1p(-self._means[0, slates]).ravel()
        p_no_click = np.exp(np.bincount(topic_of_slot, weights=log_no_click, minlength=self._runs * self.topics))
        p_content = 1 - p_no_click.reshape(self._runs, self.topics).mean(axis=1)
        reward = (self._rng.random(self._runs) < p_content).astype(np.float64)
        info = {"optimum": np.full(self._runs, self._optimum(slates.shape[1])), "expected": p_content}
        if actions.ndim > 1:
            info |= {"page": reward, "expected": p_content[:, None]}
            reward = np.zeros(actions.shape)
        self._time += self._stride
        return self.observations(), reward, self._not_ended, self._not_ended, info

    def _optimum(self, positions: int) -> float:
        """Return the probability that a visitor is content with the best page.

        Within a topic, each further arm (best arm first) adds less than the arm before, and the gains of different
        topics add up. The best page therefore has the arms with the largest gains over all topics."""
        gains = []
        for topic in range(self.topics):
            rates = -np.sort(-self._means[0, self._topic == topic])
            gains.append(rates * np.cumprod(np.r_[1.0, 1 - rates[:-1]]) / self.topics)
        return float(np.sort(np.concatenate(gains))[::-1][:positions].sum())
