"""This module has the base classes of audiences. An audience has the interface of Gymnasium, for many runs at once, and
a known optimum. Visitors with memory sit in seats, and their visits end by themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from rlrec.arrays import Array, Flags, Index
from rlrec.errors import InputError

MAX_DECISIONS = 10_000  # decisions of a visit, at most

Info = dict[str, Array]
Step = tuple[Array, Array, Flags, Flags, Info]


def bounded_parameter(default: float, low: float, high: float) -> Any:
    """Declare a parameter of an audience, a number from `low` to `high`."""
    return field(default=default, metadata={"bounds": (low, high)})


class Audience(ABC):
    """An Audience is a simulated world that shows arms to visitors and returns rewards. `Visitors` is the base of
    audiences whose visits end by themselves.

    features: the length of an observation, 0 if contexts carry no information. names: the names of the arms, if they
    have names. event: the kind of event for a reward other than 0; the value of the event is the reward. lowest: the
    smallest reward. further_events: kinds of events besides `event`."""

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
        """Return the features that an arm gets in an empty catalogue."""
        return {}

    @abstractmethod
    def reset(self, runs: int, rng: np.random.Generator, *, first: int | None = None) -> Array:
        """Begin new runs, and return the first observation of each, (runs, features).

        first: None if every run is a world of its own, at time 0. Otherwise the runs are visitors of one world who
        come one after another, and `first` is the time of the first one. Time counts decisions."""

    @abstractmethod
    def step(self, actions: Index) -> Step:
        """Show an arm or a slate in each run. Return observation (runs, features), reward, terminated (runs,),
        truncated (runs,), info.

        actions: indexes of arms, (runs,) or, for slates, (runs, positions); rewards have the same shape. terminated:
        whether the visitor has left; truncated: whether the visit was cut off.

        info has `expected`, the mean of each reward, in the same shape. If a slate is rewarded as a page, info has
        `page`, the reward of the page, (runs,), and `expected` is the mean of this reward, (runs, 1). If visits do not
        end, info has `optimum`, the mean reward of the best arm (or slate), (runs,). If rewards are not immediate, info
        has `delay`, the number of decisions until each reward arrives, in the shape of the actions. info also has the
        values of further events, by kind, in the shape of the actions."""


class World(Audience):
    """A World is an audience with a clock. A reward is 1 with the mean of its arm as probability, else 0."""

    _time: npt.NDArray[np.int64]  # (runs,), or (1,) if all runs are at the same time

    def means(self) -> Array:
        """Return the present mean reward of each arm, (runs, arms), or (1, arms) if the means are the same in every
        run."""
        raise NotImplementedError

    def observations(self) -> Array:
        """Return the observations of the present visitors, (runs, features)."""
        return self._nothing

    def reset(self, runs: int, rng: np.random.Generator, *, first: int | None = None) -> Array:
        self._rng = rng
        self._time = np.zeros(1, np.int64) if first is None else np.arange(first, first + runs)
        self._stride = 1 if first is None else runs
        self._runs = runs
        self._nothing = np.empty((runs, 0))
        self._not_ended = np.zeros(runs, np.bool_)
        return self.observations()

    def step(self, actions: Index) -> Step:
        means = self.means()
        if len(means) == 1:
            attraction = means[0].take(actions)
        else:
            attraction = np.take_along_axis(means, actions.reshape(self._runs, -1), axis=1).reshape(actions.shape)
        reward, expected = self.draw_rewards(attraction)
        optimum = np.broadcast_to(self.best_slate_mean(means, 1 if actions.ndim == 1 else actions.shape[1]), self._runs)
        info = {"expected": expected, "optimum": optimum}
        self._time += self._stride
        return self.observations(), reward, self._not_ended, self._not_ended, info

    def draw_rewards(self, attraction: Array) -> tuple[Array, Array]:
        """Draw rewards, and return the rewards with their means. Both have the shape of `attraction`.

        attraction: the means of the arms shown, (runs,) or (runs, positions)."""
        return (self._rng.random(attraction.shape) < attraction).astype(np.float64), attraction

    def best_slate_mean(self, means: Array, positions: int) -> Array:
        """Return the mean reward of the best slate with `positions` positions, (runs or 1,)."""
        return largest_means(means, positions).sum(axis=1)


def largest_means(means: Array, positions: int) -> Array:
    """Return the `positions` largest means of each row, largest first, (runs or 1, positions)."""
    if positions == 1:
        return means.max(axis=1, keepdims=True)
    return -np.sort(-means, axis=1)[:, :positions]


def examination(positions: int, power: float) -> Array:
    """Return the probability that each position is examined, position^-power, (positions,)."""
    return np.arange(1, positions + 1, dtype=np.float64) ** -power


def require_between(name: str, value: float, low: float, high: float, *, condition: str = "") -> None:
    """Raise InputError unless the value of a parameter is from `low` to `high`.

    condition: what these bounds depend on, in words."""
    if not low <= value <= high:
        raise InputError(f"{name} is {value:g}", hint=f"it is from {low:g} to {high:g}{condition}")


def check_rates(values: Sequence[float]) -> Array:
    """Return the mean rewards of arms, (1, m). Raises InputError unless they are rates of at least two arms."""
    if len(values) < 2:
        raise InputError("rates name fewer than two arms", hint="write rates=0.9,0.8")
    for value in values:
        if not 0 <= value <= 1:
            raise InputError(f"rate {value:g} is outside of [0, 1]", hint="a rate is the probability of a click")
    return np.array([values], np.float64)


# -- visitors with memory --


class Visitors(Audience):
    """Visitors is the base of audiences with one visitor in each seat, (runs,). The memory of a visitor is never in the
    observation. A policy only knows the arms that it has shown in the visit so far, and their rewards.

    cap: decisions after which a visit is cut off. daily: new visitors per day; if 0, time does not count days, and a
    visitor comes again after `away` decisions of all visitors. a_day: periods of a day; visitors come at the
    beginning of a period. anonymous: the share of visits without a user. later_s: seconds until the further events
    arrive."""

    cap: int
    away: float = 0
    daily: int = 0
    a_day: int = 2
    anonymous: float = 0
    later_s: int = 0
    returning: bool = False  # whether visitors may come again
    pages: bool = False  # whether they may be shown several arms at a time

    _state: Index  # of the visitor in each seat: the state of the visit, 0 at its beginning

    def optimum(self, positions: int = 1) -> float:
        """Return the largest mean reward of a visit, by a policy that knows everything that the policy has shown."""
        raise NotImplementedError

    def optimum_per_visitor(self, positions: int = 1) -> float | None:
        """Return the largest mean reward of all visits of a visitor. The result is None if only single visits are
        valued."""
        return None

    def context_free(self) -> tuple[float, Array]:
        """Return the largest mean reward of a visit by a fixed distribution over arms, and this distribution,
        (arms,)."""
        raise NotImplementedError

    def reset(self, runs: int, rng: np.random.Generator, *, first: int | None = None) -> Array:
        self._rng, self._nothing = rng, np.empty((runs, 0))
        self._steps = np.zeros(runs, np.int64)  # decisions of the visit so far
        self._forget_visitors(runs)
        self.admit(np.arange(runs), (first or 0) + np.arange(runs))
        return self._nothing

    def admit(self, seats: Index, visitors: Index) -> None:
        """Begin visits of the visitors with these numbers in these seats. A number that was used before stands for the
        same visitor."""
        self._steps[seats] = 0
        self._begin_visits(seats, visitors)

    def step(self, actions: Index) -> Step:
        """Show an arm, or a page, in each seat, as `Audience.step` says.

        A single step has no optimum, so info has no `optimum`. info has `again`, (runs,), which is positive if the
        visit has ended and the visitor will come again (the number of days, if days count). After the end of a
        visit, the next step begins another visit of the same visitor."""
        if actions.ndim > 1 and not self.pages:
            raise InputError("a visitor with memory is shown one arm at a time", hint="leave out -k")
        reward, expected, terminated = self._serve_arms(actions)
        self._steps += 1
        truncated = ~terminated & (self._steps >= self.cap)
        is_ended = terminated | truncated
        return_delay = self._end_visits(is_ended)
        self._steps[is_ended] = 0
        return self._nothing, reward, terminated, truncated, {"expected": expected, "again": return_delay}

    def _forget_visitors(self, runs: int) -> None:
        """Forget all visitors."""
        self._state = np.zeros(runs, np.intp)

    def _begin_visits(self, seats: Index, visitors: Index) -> None:
        """Begin visits of these visitors in these seats."""
        self._state[seats] = 0

    def _serve_arms(self, actions: Index) -> tuple[Array, Array, Flags]:
        """Serve an arm in each seat, and update the memory of the visitors. Return the reward, its mean, and whether
        the visitor leaves, (runs,) each."""
        raise NotImplementedError

    def _end_visits(self, is_ended: Flags) -> Array:
        """End the flagged visits. Return a positive number for each visitor who will come again, and 0 for each other
        visitor."""
        self._state[is_ended] = 0
        return np.zeros(len(is_ended))


class Regulars(Visitors):
    """Regulars are visitors with a trait, a whole number that is kept from visit to visit.

    start: the trait of a new visitor."""

    start: int

    @property
    def traits(self) -> Index:
        """Return the trait of the visitor in each seat, (runs,)."""
        return self._traits[self._visitors]

    @traits.setter
    def traits(self, values: Index) -> None:
        self._traits[self._visitors] = values

    def traits_of(self, visitors: Index) -> Index:
        """Return the traits of the visitors with these numbers."""
        return self._traits[visitors]

    def memory(self) -> dict[str, float]:
        """Return the figures of the audience that are kept besides the traits of its visitors, by name."""
        return {}

    def recall(self, visitors: Index, traits: Index, memory: Mapping[str, float]) -> None:
        """Restore the traits of the visitors with these numbers, and the figures of the audience."""
        self._add_visitors(visitors)
        self._traits[visitors] = traits

    def new_traits(self, visitors: int) -> Index:
        """Return the traits of a number of new visitors."""
        return np.full(visitors, self.start)

    def _forget_visitors(self, runs: int) -> None:
        self._visitors = np.zeros(runs, np.intp)
        self._traits = self.new_traits(runs)  # of every visitor so far

    def _begin_visits(self, seats: Index, visitors: Index) -> None:
        self._add_visitors(visitors)
        self._visitors[seats] = visitors

    def _add_visitors(self, visitors: Index) -> None:
        if len(visitors) and visitors.max() >= len(self._traits):
            n_new = max(len(self._traits), int(visitors.max()) + 1 - len(self._traits))
            self._traits = np.append(self._traits, self.new_traits(n_new))
