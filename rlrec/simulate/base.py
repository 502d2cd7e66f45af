"""The base of audiences: Gymnasium's shape, for many runs at once, and an optimum that is known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import field, fields
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from rlrec.arrays import Array, Flags, Index
from rlrec.errors import InputError

Info = dict[str, Array]
Step = tuple[Array, Array, Flags, Flags, Info]


def bounded(default: float, low: float, high: float) -> Any:
    """A parameter of an audience, a number from `low` to `high`."""
    return field(default=default, metadata={"bounds": (low, high)})


class Audience(ABC):
    """A world with so many arms.

    features: numbers of an observation, 0 where the context tells nothing. names: of the arms, where they have any.
    event: the kind of event that stands for a reward other than 0; its value is the reward. lowest: the smallest
    reward. further_events: kinds of events that come beside it. `visitors.Visitors` is the base of audiences whose
    visits end by themselves."""

    arms: int
    features: int = 0
    names: Sequence[str] = ()
    event: str = "click"
    lowest: float = 0.0
    further_events: Sequence[str] = ()

    _rng: np.random.Generator

    def __post_init__(self) -> None:
        for parameter in fields(cast(Any, self)):
            if "bounds" in parameter.metadata:
                require_between(parameter.name, getattr(self, parameter.name), *parameter.metadata["bounds"])

    def features_of(self, arm: int) -> dict[str, Any]:
        """The features that an arm gets in an empty catalogue."""
        return {}

    @abstractmethod
    def reset(self, runs: int, rng: np.random.Generator, *, first: int | None = None) -> Array:
        """The first observation of each run, (runs, features).
        first: None where every run is a world of its own, at time 0; a time where the runs are visitors of one world,
        who come one after another from then on. Time counts decisions."""

    @abstractmethod
    def step(self, actions: Index) -> Step:
        """Observation (runs, features), reward, terminated (runs,), truncated (runs,), info.
        actions: indices of arms, (runs,) or, for slates, (runs, positions); rewards of the same shape. terminated: the
        visitor has left; truncated: the visit was cut off. info: `expected` the mean of each reward, same shape; where
        a slate is rewarded as a page, `page` that reward, (runs,), and `expected` its mean, (runs, 1); `optimum` the
        mean reward of the best arm (of the best slate), (runs,), where visits do not end; `delay`, of the actions'
        shape, decisions until the reward comes, where it does not come at once; the values of further events, of the
        actions' shape, by their kind."""


class World(Audience):
    """An audience with a clock. A reward is 1 with the probability that is the mean of its arm, else 0."""

    _time: npt.NDArray[np.int64]  # (runs,), or (1,) where all runs are at the same one

    def means(self) -> Array:
        """Mean reward of each arm now, (runs, arms), or (1, arms) where it is the same in every run."""
        raise NotImplementedError

    def observe(self) -> Array:
        """The observations of the present visitors, (runs, features)."""
        return self._nothing

    def reset(self, runs: int, rng: np.random.Generator, *, first: int | None = None) -> Array:
        self._rng = rng
        self._time = np.zeros(1, np.int64) if first is None else np.arange(first, first + runs)
        self._stride = 1 if first is None else runs
        self._runs = runs
        self._nothing = np.empty((runs, 0))
        self._not_ended = np.zeros(runs, np.bool_)
        return self.observe()

    def step(self, actions: Index) -> Step:
        means = self.means()
        if len(means) == 1:
            attraction = means[0].take(actions)
        else:
            attraction = np.take_along_axis(means, actions.reshape(self._runs, -1), axis=1).reshape(actions.shape)
        reward, expected = self.respond(attraction)
        best = np.broadcast_to(self.best(means, 1 if actions.ndim == 1 else actions.shape[1]), self._runs)
        info = {"expected": expected, "optimum": best}
        self._time += self._stride
        return self.observe(), reward, self._not_ended, self._not_ended, info

    def respond(self, attraction: Array) -> tuple[Array, Array]:
        """Rewards and their means, of the shape of `attraction`: the means of the arms shown, (runs,) or
        (runs, positions)."""
        return (self._rng.random(attraction.shape) < attraction).astype(np.float64), attraction

    def best(self, means: Array, positions: int) -> Array:
        """Mean reward of the best slate of so many positions, (runs or 1,)."""
        return highest_means(means, positions).sum(axis=1)


def highest_means(means: Array, positions: int) -> Array:
    """The largest means of each row, largest first, (runs or 1, positions)."""
    if positions == 1:
        return means.max(axis=1, keepdims=True)
    return -np.sort(-means, axis=1)[:, :positions]


def examination(positions: int, power: float) -> Array:
    """Probability that each position is looked at, position^-power, (positions,)."""
    return np.arange(1, positions + 1, dtype=np.float64) ** -power


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Raises InputError unless a parameter is between the two."""
    if not low <= value <= high:
        raise InputError(f"{name} is {value:g}", hint=f"it is from {low:g} to {high:g}")


def check_rates(values: Sequence[float]) -> Array:
    """Mean rewards of arms, (1, m). Raises InputError unless they are rates of two arms or more."""
    if len(values) < 2:
        raise InputError("rates name fewer than two arms", hint="write rates=0.9,0.8")
    for value in values:
        if not 0 <= value <= 1:
            raise InputError(f"rate {value:g} is outside of [0, 1]", hint="a rate is the probability of a click")
    return np.array([values], np.float64)
