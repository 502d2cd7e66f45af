"""Distributions of the noisy score vector that ranks a page: what a policy kind declares."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.policy import sampler

SAMPLING = 1024
"""The word of a decision at which its samples begin: a page of 500 positions uses 1000 at most."""


@dataclass(frozen=True, eq=False)
class Point:
    """Scores without noise (greedy, UCB); equal scores stand in a random order.

    values (m,), any unit; +inf (an arm never tried) and -inf are allowed, NaN is not."""

    values: Array

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, eq=False)
class Beta:
    """Independent Beta posteriors. alpha, beta (m,), above 0; accuracy is promised from 0.1 to 1e7."""

    alpha: Array
    beta: Array

    def __len__(self) -> int:
        return len(self.alpha)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Independent normal posteriors. mean (m,), sd (m,) above 0, both in the unit of the reward."""

    mean: Array
    sd: Array

    def __len__(self) -> int:
        return len(self.mean)


@dataclass(frozen=True, eq=False)
class Gumbel:
    """Logits with standard Gumbel noise, the Plackett-Luce model: the best arm is softmax(logits).

    logits (m,); an arm at -inf stands below every finite one, and such arms are ordered at random."""

    logits: Array

    def __len__(self) -> int:
        return len(self.logits)


@dataclass(frozen=True, eq=False)
class Correlated:
    """Scores of one posterior that all arms share: location + factor z, z standard normal in d dimensions.

    location (m,), factor (m, d), in the unit of the reward; samples: how many posterior draws stand for it. It has no
    closed form: each decision draws samples of its own (`at`), and what is logged is exact for those."""

    location: Array
    factor: Array
    samples: int

    def __len__(self) -> int:
        return len(self.location)

    def at(self, seed: int, decision: int) -> Sampled:
        """The samples of one decision, from its words (`sampler.normals`); equal arms have equal values in each."""
        rows, place = self._different
        width = rows.shape[1] - 1
        noise = sampler.normals(seed, decision, start=SAMPLING, count=self.samples * width)
        values = rows[:, 0] + noise.reshape(self.samples, width) @ rows[:, 1:].T
        return Sampled(values[:, place])

    @cached_property
    def _different(self) -> tuple[Array, Index]:
        """Location and factor of arms that differ, and which of these each arm is: a product may round equal rows
        differently, and they would no longer tie."""
        rows, place = np.unique(np.column_stack([self.location, self.factor]), axis=0, return_inverse=True)
        return rows, place.reshape(-1)


@dataclass(frozen=True, eq=False)
class Sampled:
    """The samples of one decision: at every position an independent one of them ranks the arms that are left.

    values (samples, m), in the unit of the reward."""

    values: Array

    def __len__(self) -> int:
        return int(self.values.shape[1])


Scores = Point | Beta | Gaussian | Gumbel | Correlated | Sampled


def apart(many: Scores) -> list[Scores]:
    """Each of many scores, whose arrays have one more axis, the first."""
    given = {one.name: getattr(many, one.name) for one in fields(many)}
    arrays = {name: values for name, values in given.items() if isinstance(values, np.ndarray)}
    rows = zip(*arrays.values(), strict=True)
    return [replace(many, **dict(zip(arrays, row, strict=True))) for row in rows]


def own(scores: Scores, *, seed: int, decision: int) -> Scores:
    """The scores from which one decision was drawn: its own samples, where there are any."""
    return scores.at(seed, decision) if isinstance(scores, Correlated) else scores
