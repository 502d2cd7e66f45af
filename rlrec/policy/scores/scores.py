"""Protocols of a family of score distributions: noisy scores of m arms, whose order is the order of a slate.

A new family is one new file in `families`: a frozen dataclass of arrays, whose last axis is that of the arms, with its
`Order` and its noise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.policy.scores.floors import Floor


class Order(Protocol):
    """The random order of m noisy scores. `floor` is the probability of a uniform pick at each position."""

    is_continuous: ClassVar[bool] = False  # whether it is of independent scores with densities

    def best(self) -> Array:
        """Probability that each arm is first, (m,)."""

    def ranks(self, size: int) -> Array:
        """The probability that each arm stands at rank 1..size of the order, (size, m); NaN without a closed form."""

    def next_arms(self, prefixes: Index, *, floor: Floor) -> Array:
        """The probability that each arm is the best of the arms left after each prefix (n, k), given that prefix, (n,
        m)."""

    def conditionals(self, slates: Index, *, floor: Floor, least: bool) -> tuple[Array, Array]:
        """The probability that the arm at each position is the best of those left, given the arms above it, (n, k).

        slates (n, k): arms from the first position. And the smallest such probability of any arm left there, (n, k);
        zeros unless `least`."""


class ExactOrder(Order):
    """An order whose probabilities are computed position by position."""

    def best(self) -> Array:
        return self.next_arms(np.empty((1, 0), np.intp), floor=0.0)[0]

    def each_position(self, slates: Index, *, floor: Floor) -> Iterator[tuple[Array, Index]]:
        """At each position of slates (n, k), sorted: `next_arms` below the distinct slates above, (u, m), and the index
        of each slate's one among these, (n,)."""
        begins = np.arange(len(slates)) == 0
        for position in range(slates.shape[1]):
            yield self.next_arms(slates[begins, :position], floor=floor), np.cumsum(begins) - 1
            begins[1:] |= slates[1:, position] != slates[:-1, position]


class DrawnOrder(ExactOrder):
    """An order that is drawn as a whole, unlike one of samples, which is drawn position by position."""

    @abstractmethod
    def ranking(self, keys: Array, size: int) -> Index:
        """The first `size` arms of the orders that uniforms keys (n, m) draw, (n, size)."""


class Scores(Protocol):
    """The distribution of the noisy score of each of m arms. Axes before that of the arms are for several runs."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def samples(self) -> int:
        """The number of samples that represent the distribution, drawn for each decision; 0: probabilities are
        exact."""

    @property
    def is_ruled(self) -> bool:
        """Whether the scores include rules of the page, and with them the floor."""

    def __len__(self) -> int:
        """The number of arms, m."""

    def order(self, positions: int, *, earlier_order: Order | None = None) -> Order:
        """The order of these scores, for positions down to `positions`. earlier_order: that of earlier scores of the
        same number of arms; results that are still valid are reused."""

    def noise(self, shape: tuple[int, int], rng: np.random.Generator) -> Array:
        """Noisy scores of (runs, m), or numbers in the same order; may be (m,) where there is no noise."""

    def decision_scores(self, seed: int, decision: int) -> Scores:
        """The scores with which one decision ranks its arms: its own samples, where decisions draw any."""


S = TypeVar("S", bound=Scores)


class ExactScores:
    """Base of families whose probabilities are exact, the same for every decision."""

    samples: ClassVar[int] = 0
    is_ruled: ClassVar[bool] = False

    def __len__(self: S) -> int:
        return next(iter(_arrays(self).values())).shape[-1]

    def decision_scores(self, seed: int, decision: int) -> Self:
        return self

    def best_of_each(self: S) -> Array:
        """Probability that each arm is the best, (..., m), for scores of many runs."""
        return np.array([scores.order(1).best() for scores in unstack(self)])


def unstack(scores: S) -> list[S]:
    """The scores of each run, from scores whose arrays have runs as their first axis."""
    arrays = _arrays(scores)
    return [replace(scores, **dict(zip(arrays, row, strict=True))) for row in zip(*arrays.values(), strict=True)]


def subset(scores: S, arms: Index) -> S:
    """The scores of these arms, (..., k); arms may repeat."""
    return replace(scores, **{name: values[arms] for name, values in _arrays(scores).items()})


def cells(scores: Scores) -> int:
    """The total size of the arrays of the scores."""
    return sum(values.size for values in _arrays(scores).values())


def top(scores: Array, size: int) -> Index:
    """The columns of the `size` largest values of each row, largest first, (n, size)."""
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
