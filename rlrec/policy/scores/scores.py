"""This module defines the protocols of a family of score distributions. The order of the noisy scores of m arms is the
order of a slate.

A new family is one new file in `families`. The file defines a frozen dataclass of arrays, whose last axis is that of
the arms, with the `Order` and the noise of the family."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.policy.scores.floors import Floor


class Order(Protocol):
    """An Order is the random order of the noisy scores of m arms. `floor` is the probability of a uniform pick at each
    position."""

    is_continuous: ClassVar[bool] = False  # whether it is of independent scores with densities

    def p_best(self) -> Array:
        """Return the probability that each arm is first, (m,)."""

    def ranks(self, size: int) -> Array:
        """Return the probability that each arm stands at rank 1..size of the order, (size, m). The result is NaN where
        there is no closed form."""

    def next_arms(self, prefixes: Index, *, floor: Floor) -> Array:
        """Return the probability that each arm is the best of the arms left after each prefix, given this prefix, (n,
        m).

        prefixes (n, k): the arms at the first k positions of each slate."""

    def conditionals(self, slates: Index, *, floor: Floor, with_minimum: bool) -> tuple[Array, Array]:
        """Return two arrays (n, k) of probabilities for slates (n, k).

        The first array is the probability that the arm at each position is the best of the arms left, given the arms
        above it. The second array is the smallest such probability of any arm left at the position, or zeros if
        `with_minimum` is False.

        slates (n, k): the arms of each slate from the first position on."""


class ExactOrder(Order):
    """An ExactOrder computes probabilities position by position."""

    def p_best(self) -> Array:
        return self.next_arms(np.empty((1, 0), np.intp), floor=0.0)[0]

    def each_position(self, slates: Index, *, floor: Floor) -> Iterator[tuple[Array, Index]]:
        """Yield two arrays at each position of sorted slates. The first is the result of `next_arms` for the u distinct
        prefixes above the position, (u, m). The second is the index of each slate's prefix among the distinct prefixes,
        (n,).

        slates (n, k): the arms of each slate, sorted by the first arm, then by the next."""
        is_new_prefix = np.arange(len(slates)) == 0
        for position in range(slates.shape[1]):
            yield self.next_arms(slates[is_new_prefix, :position], floor=floor), np.cumsum(is_new_prefix) - 1
            is_new_prefix[1:] |= slates[1:, position] != slates[:-1, position]


class DrawnOrder(ExactOrder):
    """A DrawnOrder is an order of which whole rankings can be drawn. Other orders, which consist of samples, are drawn
    position by position."""

    @abstractmethod
    def ranking(self, keys: Array, size: int) -> Index:
        """Return the first `size` arms of n random orders, (n, size).

        keys (n, m): a uniform number for each arm of each order."""


class Scores(Protocol):
    """A Scores object is the distribution of the noisy score of each of m arms. The last axis of the arrays is that of
    the arms, and axes before it stand for several runs."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def samples(self) -> int:
        """Return the number of samples that represent the distribution and are drawn for each decision. The number is 0
        if probabilities are exact."""

    @property
    def is_ruled(self) -> bool:
        """Tell whether the scores already include the rules of the page and the floor."""

    def __len__(self) -> int:
        """Return the number of arms, m."""

    def order(self, positions: int, *, earlier_order: Order | None = None) -> Order:
        """Return the order of these scores, for positions 1 to `positions`.

        earlier_order: the order of earlier scores of the same number of arms, whose results are reused where they
        are still valid."""

    def noise(self, shape: tuple[int, int], rng: np.random.Generator) -> Array:
        """Return random noisy scores of each arm, (runs, m), or numbers that stand in the same order. Scores without
        noise may return (m,).

        shape: (runs, m)."""

    def decision_scores(self, seed: int, decision: int) -> Scores:
        """Return the scores with which one decision ranks its arms. If every decision draws separate samples, the
        result holds the samples of this decision."""


S = TypeVar("S", bound=Scores)


class ExactScores:
    """ExactScores is the base class of families whose probabilities are exact and the same for every decision."""

    samples: ClassVar[int] = 0
    is_ruled: ClassVar[bool] = False

    def __len__(self: S) -> int:
        return next(iter(_arrays(self).values())).shape[-1]

    def decision_scores(self, seed: int, decision: int) -> Self:
        return self

    def best_of_each(self: S) -> Array:
        """Return the probability that each arm is the best, (..., m), for scores of several runs."""
        return np.array([scores.order(1).p_best() for scores in split_runs(self)])


def split_runs(scores: S) -> list[S]:
    """Return a list with the scores of each run. The arrays of `scores` have runs as their first axis."""
    arrays = _arrays(scores)
    return [replace(scores, **dict(zip(arrays, row, strict=True))) for row in zip(*arrays.values(), strict=True)]


def subset(scores: S, arms: Index) -> S:
    """Return the scores of these arms, with arrays (..., k). An arm may be repeated.

    arms (..., k): the indices of the arms."""
    return replace(scores, **{name: values[arms] for name, values in _arrays(scores).items()})


def cells(scores: Scores) -> int:
    """Return the number of elements in all arrays of the scores."""
    return sum(values.size for values in _arrays(scores).values())


def find_top(scores: Array, size: int) -> Index:
    """Return the columns of the `size` largest values of each row, the largest value first, (n, size)."""
    m = scores.shape[1]
    if size < m:
        columns = np.argpartition(scores, m - size, axis=1)[:, m - size :]
    else:
        columns = np.broadcast_to(np.arange(m), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def _arrays(scores: Scores) -> dict[str, Array]:
    values = {field.name: getattr(scores, field.name) for field in fields(scores)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
