"""An audience that judges a page as a whole, and wants variety."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.simulate.base import Step, require_between
from rlrec.simulate.bernoulli import Bernoulli
from rlrec.simulate.pbm import RATES


@dataclass(kw_only=True, eq=False)
class Page(Bernoulli):
    """Arm a is about topic a modulo `topics`. A visitor wants one topic, each equally likely, and is content with a
    page where some arm of that topic attracts them, each at its own rate: a click on the page, without a position. So a
    second arm of a topic adds less than the first. A page of one arm is rewarded as a slot."""

    rates: tuple[float, ...] = RATES
    topics: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("topics", self.topics, 1, self.arms)
        self._topic = np.arange(self.arms) % self.topics

    def features_of(self, arm: int) -> dict[str, Any]:
        return {"topic": f"t{self._topic[arm]}"}

    def step(self, actions: Index) -> Step:
        slates = actions.reshape(self._runs, -1)
        content = self._content(slates)
        reward = (self._rng.random(self._runs) < content).astype(np.float64)
        info = {"optimum": np.full(self._runs, self._optimum(slates.shape[1])), "expected": content}
        if actions.ndim > 1:
            info |= {"page": reward, "expected": content[:, None]}
            reward = np.zeros(actions.shape)
        self._time += self._stride
        return self.observe(), reward, self._not_ended, self._not_ended, info

    def _content(self, slates: Index) -> Array:
        """Probability that a visitor is content with each page, (n,)."""
        rows = np.arange(len(slates)) * self.topics
        cell = (rows[:, None] + self._topic[slates]).ravel()
        with np.errstate(divide="ignore"):
            log_no_click = np.log1p(-self._means[0, slates]).ravel()
        no_click = np.exp(np.bincount(cell, weights=log_no_click, minlength=len(slates) * self.topics))
        return 1 - no_click.reshape(len(slates), self.topics).mean(axis=1)

    def _optimum(self, positions: int) -> float:
        """Content with the best page. The arms of a topic add less and less, best first, and topics add up: so the
        largest gains of all topics make the best page."""
        gains = []
        for topic in range(self.topics):
            rates = -np.sort(-self._means[0, self._topic == topic])
            gains.append(rates * np.cumprod(np.r_[1.0, 1 - rates[:-1]]) / self.topics)
        return float(np.sort(np.concatenate(gains))[::-1][:positions].sum())
