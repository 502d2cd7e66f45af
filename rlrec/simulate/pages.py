"""Audiences of pages: visitors look at the top more than at the end, stop at a click, or judge the page as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlrec.arrays import Array, Flags, Index
from rlrec.simulate.base import Step, bounded, examination, highest_means, require_between
from rlrec.simulate.clicks import Bernoulli


@dataclass(kw_only=True, eq=False)
class _PageAudience(Bernoulli):
    rates: tuple[float, ...] = (0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05)


@dataclass(kw_only=True, eq=False)
class PositionBased(_PageAudience):
    """Visitors look at the top of a page more than at its end.

    rates: probability of a click for each arm that is looked at, in [0, 1]. Position k is looked at with probability
    k^-power, whatever stands there. Source: the position-based click model, Craswell, Zoeter, Taylor and Ramsey 2008.
    """

    power: float = bounded(1.0, 0, 10)

    def respond(self, attraction: Array) -> tuple[Array, Array]:
        positions = 1 if attraction.ndim == 1 else attraction.shape[1]
        return super().respond(attraction * examination(positions, self.power))

    def best(self, means: Array, positions: int) -> Array:
        return highest_means(means, positions) @ examination(positions, self.power)


@dataclass(kw_only=True, eq=False)
class Cascade(_PageAudience):
    """Visitors read a page from the top, and mostly leave it at their first click.

    rates: probability of a click for each arm that is looked at, in [0, 1]. After a click a visitor reads on with
    probability `resume`. Source: the cascade model of Craswell, Zoeter, Taylor and Ramsey 2008 (resume 0), and the
    dependent click model of Guo, Liu and Wang 2009."""

    resume: float = bounded(0.0, 0, 1)

    def respond(self, attraction: Array) -> tuple[Array, Array]:
        if attraction.ndim == 1:
            return super().respond(attraction)
        # attracted where they look; a click stops the reading unless it is resumed
        attracted = self._rng.random(attraction.shape) < attraction
        stops = attracted & (self._rng.random(attraction.shape) >= self.resume)
        reads: Flags = np.cumsum(stops, axis=1) - stops == 0
        return (attracted & reads).astype(np.float64), self._clicks(attraction)

    def best(self, means: Array, positions: int) -> Array:
        # the best arms, best first: to exchange neighbours in any other order does not make the sum smaller
        return self._clicks(highest_means(means, positions)).sum(axis=1)

    def _clicks(self, attraction: Array) -> Array:
        """Probability of a click at each position of pages, (n, positions)."""
        passes = np.cumprod(1 - attraction * (1 - self.resume), axis=1)
        return attraction * np.column_stack([np.ones(len(attraction)), passes[:, :-1]])


@dataclass(kw_only=True, eq=False)
class Page(_PageAudience):
    """Visitors judge a page as a whole, and want variety.

    Arm a is about topic a modulo `topics`. A visitor wants one topic, each equally likely, and is content with a
    page where some arm of that topic attracts them, each at its own rate: a click on the page, without a position. So a
    second arm of a topic adds less than the first. A page of one arm is rewarded as a slot."""

    topics: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("topics", self.topics, 1, self.arms)
        self._topic = np.arange(self.arms) % self.topics

    def features_of(self, arm: int) -> dict[str, Any]:
        return {"topic": f"t{self._topic[arm]}"}

    def step(self, actions: Index) -> Step:
        slates = actions.reshape(self._runs, -1)
        # the probability that a visitor is content with each page
        cell = (np.arange(self._runs)[:, None] * self.topics + self._topic[slates]).ravel()
        with np.errstate(divide="ignore"):
            log_no_click = np.log1p(-self._means[0, slates]).ravel()
        no_click = np.exp(np.bincount(cell, weights=log_no_click, minlength=self._runs * self.topics))
        content = 1 - no_click.reshape(self._runs, self.topics).mean(axis=1)
        reward = (self._rng.random(self._runs) < content).astype(np.float64)
        info = {"optimum": np.full(self._runs, self._optimum(slates.shape[1])), "expected": content}
        if actions.ndim > 1:
            info |= {"page": reward, "expected": content[:, None]}
            reward = np.zeros(actions.shape)
        self._time += self._stride
        return self.observe(), reward, self._not_ended, self._not_ended, info

    def _optimum(self, positions: int) -> float:
        """Content with the best page. The arms of a topic add less and less, best first, and topics add up: so the
        largest gains of all topics make the best page."""
        gains = []
        for topic in range(self.topics):
            rates = -np.sort(-self._means[0, self._topic == topic])
            gains.append(rates * np.cumprod(np.r_[1.0, 1 - rates[:-1]]) / self.topics)
        return float(np.sort(np.concatenate(gains))[::-1][:positions].sum())
