"""This module has the base classes of audiences. The interface of an audience is the interface of Gymnasium, for many
runs at once; in addition, the optimum of an audience is known. Visitors with a memory end their visits themselves. A
seat is a run that holds one such visitor at a time."""

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
    """Declare a parameter of an audience: a number from `low` to `high` with a default value."""
    return field(default=default, metadata={"bounds": (low, high)})


class Audience(ABC):
    """An Audience is a simulated world that shows arms to visitors and returns rewards. Its subclass `Visitors` is the
    base of audiences whose visits end by themselves.

    features: the length of an observation, or 0 if contexts carry no information. names: the names of the arms, or
    no names. event: the kind of the event that is sent for a reward other than 0; the value of the event is the
    reward. lowest_reward: the smallest reward. further_events: the kinds of all other events."""

    arms: int
    features: int = 0
    names: Sequence[str] = ()
    event: str = "click"
    lowest_reward: float = 0.0
    further_events: Sequence[str] = ()

    _rng: np.random.Generator

    def __post_init__(self) -> None:
        for parameter in fields(cast(Any, self)):
            if "bounds" in parameter.metadata:
                require_between(parameter.name, getattr(self, parameter.name), *parameter.metadata["bounds"])

    def features_of(self, arm: int) -> dict[str, Any]:
        """Return the features that an arm gets when the arms are added to an empty catalogue."""
        return {}

    @abstractmethod
    def reset(self, runs: int, rng: np.random.Generator, *, first_time: int | None = None) -> Array:
        """Begin new runs, and return the first observation of each run, (runs, features).

        first_time: None if every run is a world of its own that begins at time 0. If a number is given, the runs are
        visitors who come to one world one after the other, and the number is the time of the first visitor. Time
        counts decisions."""

    @abstractmethod
    def step(self, actions: Index) -> Step:
        """Show an arm or a slate in each run. Return a tuple as in Gymnasium: the next observation (runs, features),
        the reward, terminated (runs,), truncated (runs,), and info.

        actions: the indices of arms, (runs,) or, for slates, (runs, positions). The rewards have the same shape as
        the actions. terminated: whether the visitor has left; truncated: whether the visit was cut off.

        info is a dictionary. `expected` is the mean of each reward, in the same shape. If a slate is rewarded as a
        page, `page` is the reward of the page, (runs,), and `expected` is the mean of this reward, (runs, 1). If visits
        do not end, `optimum` is the mean reward of the best arm (or slate), (runs,). If rewards are not immediate,
        `delay` is the number of decisions until each reward arrives, in the shape of the actions. The values of further
        events are in info, too, by kind, in the shape of the actions."""


class World(Audience):
    """A World is an audience with a clock. A reward is 1 with a probability that is the mean of the arm, and 0
    otherwise."""

    _time: npt.NDArray[np.int64]  # (runs,), or (1,) if all runs are at the same time

    def means(self) -> Array:
        """Return the present mean reward of each arm, (runs, arms). The result is (1, arms) if the means are the same
        in all runs."""
        raise NotImplementedError

    def observations(self) -> Array:
        """Return the observations of the present visitors, (runs, features)."""
        return self._no_features

    def reset(self, runs: int, rng: np.random.Generator, *, first_time: int | None = None) -> Array:
        self._rng = rng
        self._time = np.zeros(1, np.int64) if first_time is None else np.arange(first_time, first_time + runs)
        self._stride = 1 if first_time is None else runs
        self._runs = runs
        self._no_features = np.empty((runs, 0))
        self._not_ended = np.zeros(runs, np.bool_)
        return self.observations()

    def step(self, actions: Index) -> Step:
        means = self.means()
        if len(means) == 1:
            attraction = means[0].take(actions)
        else:
            attraction = np.take_along_axis(means, actions.reshape(self._runs, -1), axis=1).reshape(actions.shape)
        reward, mean_reward = self.draw_rewards(attraction)
        optimum = np.broadcast_to(self.best_slate_mean(means, 1 if actions.ndim == 1 else actions.shape[1]), self._runs)
        info = {"expected": mean_reward, "optimum": optimum}
        self._time += self._stride
        return self.observations(), reward, self._not_ended, self._not_ended, info

    def draw_rewards(self, attraction: Array) -> tuple[Array, Array]:
        """Draw rewards. Return the rewards and the means of these rewards; both have the shape of `attraction`.

        attraction: the mean reward of each arm shown, (runs,) or (runs, positions)."""
        return (self._rng.random(attraction.shape) < attraction).astype(np.float64), attraction

    def best_slate_mean(self, means: Array, positions: int) -> Array:
        """Return the mean reward of the best slate with `positions` positions, for each row of means, (runs or 1,)."""
        return largest_means(means, positions).sum(axis=1)


def largest_means(means: Array, positions: int) -> Array:
    """Return the `positions` largest means of each row, largest first, (runs or 1, positions)."""
    if positions == 1:
        return means.max(axis=1, keepdims=True)
    return -np.sort(-means, axis=1)[:, :positions]


def examination(positions: int, power: float) -> Array:
    """Return the probability that a visitor examines each position k, which is k^-power, (positions,)."""
    return np.arange(1, positions + 1, dtype=np.float64) ** -power


def require_between(name: str, value: float, low: float, high: float, *, condition: str = "") -> None:
    """Raise InputError unless the value of a parameter is from `low` to `high`.

    name: the name of the parameter; condition: words for the error that say what the bounds depend on."""
    if not low <= value <= high:
        raise InputError(f"{name} is {value:g}", hint=f"it is from {low:g} to {high:g}{condition}")


def check_rates(values: Sequence[float]) -> Array:
    """Return the mean rewards of arms as an array (1, m). Raise InputError unless there are at least two arms and all
    values are from 0 to 1."""
    if len(values) < 2:
        raise InputError("rates name fewer than two arms", hint="write rates=0.9,0.8")
    for value in values:
        if not 0 <= value <= 1:
            raise InputError(f"rate {value:g} is outside of [0, 1]", hint="a rate is the probability of a click")
    return np.array([values], np.float64)


# -- visitors with memory --


class Visitors(Audience):
    """Visitors is the base of audiences whose visitors have a memory. Each run is a seat, which holds one visitor at a
    time. The memory of a visitor is never in the observation. A policy only knows the arms that it has shown so far in
    the visit, and the rewards of these arms.

    cap: the number of decisions after which a visit is cut off. daily: the number of new visitors per day; if it is
    0, time does not count days, and a visitor comes again after `away` decisions of all visitors. a_day: the number
    of periods of a day; visitors come at the beginning of a period. anonymous: the share of visits without a user.
    later_s: the seconds until the further events of a decision arrive."""

    cap: int
    away: float = 0
    daily: int = 0
    a_day: int = 2
    anonymous: float = 0
    later_s: int = 0
    has_returners: bool = False  # whether visitors may come again
    has_pages: bool = False  # whether they may be shown several arms at a time

    _state: Index  # of the visitor in each seat: the state of the visit, 0 at its beginning

    def optimum(self, positions: int = 1) -> float:
        """Return the largest mean reward of a visit, by a policy that remembers everything that it has shown in the
        visit."""
        raise NotImplementedError

    def optimum_per_visitor(self, positions: int = 1) -> float | None:
        """Return the largest mean reward of a visitor, over all visits of the visitor. The result is None if the
        audience only values single visits."""
        return None

    def best_context_free(self) -> tuple[float, Array]:
        """Return the largest mean reward of a visit under a fixed distribution over arms, and this distribution,
        (arms,)."""
        raise NotImplementedError

    def reset(self, runs: int, rng: np.random.Generator, *, first_time: int | None = None) -> Array:
        self._rng, self._no_features = rng, np.empty((runs, 0))
        self._steps = np.zeros(runs, np.int64)  # decisions of the visit so far
        self._forget_visitors(runs)
        self.admit(np.arange(runs), (first_time or 0) + np.arange(runs))
        return self._no_features

    def admit(self, seats: Index, visitors: Index) -> None:
        """Begin visits in some of the runs.

        seats: the index of the run of each visit; visitors: the number of the visitor of each visit, where a number
        that was used before stands for the same visitor."""
        self._steps[seats] = 0
        self._begin_visits(seats, visitors)

    def step(self, actions: Index) -> Step:
        """Show an arm, or a page, in each run, as `Audience.step` says.

        info has no `optimum`, since a single step has no optimum. Instead it has `again`, (runs,), which is positive
        if the visit has ended and the visitor will come again (it is the number of days until then, if time counts
        days). After the end of a visit, the next step begins another visit of the same visitor."""
        if actions.ndim > 1 and not self.has_pages:
            raise InputError("a visitor with memory is shown one arm at a time", hint="leave out -k")
        reward, mean_reward, has_left = self._serve_arms(actions)
        self._steps += 1
        is_cut_off = ~has_left & (self._steps >= self.cap)
        is_ended = has_left | is_cut_off
        return_delay = self._end_visits(is_ended)
        self._steps[is_ended] = 0
        return self._no_features, reward, has_left, is_cut_off, {"expected": mean_reward, "again": return_delay}

    def _forget_visitors(self, runs: int) -> None:
        """Forget all visitors."""
        self._state = np.zeros(runs, np.intp)

    def _begin_visits(self, seats: Index, visitors: Index) -> None:
        """Begin a visit of each of these visitors. seats: the index of the run in which each visit takes place."""
        self._state[seats] = 0

    def _serve_arms(self, actions: Index) -> tuple[Array, Array, Flags]:
        """Serve an arm in each run, and update the memory of the visitors. Return three arrays (runs,): the reward, the
        mean of the reward, and whether the visitor leaves."""
        raise NotImplementedError

    def _end_visits(self, is_ended: Flags) -> Array:
        """End the visits in the flagged runs. Return a number for each run, (runs,): it is positive if the visit has
        ended and the visitor will come again, and 0 otherwise."""
        self._state[is_ended] = 0
        return np.zeros(len(is_ended))


class Regulars(Visitors):
    """Regulars is the base of audiences whose visitors have a trait: a whole number that a visitor keeps from visit to
    visit.

    start: the trait of a new visitor."""

    start: int

    @property
    def traits(self) -> Index:
        """Return the trait of the visitor in each run, (runs,)."""
        return self._traits[self._visitors]

    @traits.setter
    def traits(self, values: Index) -> None:
        self._traits[self._visitors] = values

    def traits_of(self, visitors: Index) -> Index:
        """Return the traits of the visitors with these numbers."""
        return self._traits[visitors]

    def memory(self) -> dict[str, float]:
        """Return the figures, by name, that the audience keeps in addition to the traits of its visitors."""
        return {}

    def recall(self, visitors: Index, traits: Index, memory: Mapping[str, float]) -> None:
        """Restore the traits of visitors, and the figures of the audience.

        visitors: the numbers of the visitors; traits: the trait of each of these visitors; memory: the figures, as
        from `memory`."""
        self._add_visitors(visitors)
        self._traits[visitors] = traits

    def new_traits(self, visitors: int) -> Index:
        """Return the traits of new visitors. visitors: the number of new visitors."""
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
