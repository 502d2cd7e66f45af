"""This module draws the scores of all arms from one joint posterior. Every decision ranks the arms by separate
posterior samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

from rlrec.arrays import Array, Index, best_of_rows, distinct_rows
from rlrec.policy.scores import sampler
from rlrec.policy.scores.floors import Floor
from rlrec.policy.scores.scores import Order
from rlrec.records import Record

FIRST_SAMPLE_WORD = 1024
"""The word of a decision at which its samples begin: a slate of 500 positions uses 1000 at most."""


class Correlated(Record, kw_only=False, eq=False):
    """Correlated scores are location + factor z + arm_noise e. Here z is a standard normal vector of d dimensions that
    all arms share, and e is a separate standard normal number for each arm.

    location (m,), factor (m, d), arm_noise (m,): the terms of each arm's score, in the unit of the reward (arm_noise
    is None if arms have no separate noise). samples: the number of posterior draws that represent the distribution,
    which has no closed form. Each decision makes separate draws, and the logged probabilities are exact for these
    draws."""

    location: Array
    factor: Array
    samples: int
    arm_noise: Array | None = None
    is_ruled: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.location)

    def order(self, positions: int, *, earlier_order: Order | None = None) -> SampledOrder:
        return SampledOrder(self)

    def noise(self, shape: tuple[int, int], rng: np.random.Generator) -> Array:
        z = rng.standard_normal((*shape[:-1], self.factor.shape[-1], 1))
        values = self.location + (self.factor @ z)[..., 0]
        return values if self.arm_noise is None else values + self.arm_noise * rng.standard_normal(shape)

    def decision_scores(self, seed: int, decision: int) -> Sampled:
        """Return the posterior samples by which one decision ranks arms. The samples are drawn from the random words of
        the decision (`sampler.normals`).

        Arms with equal rows of location and factor have equal values in each sample, unless arms have separate
        noise."""
        rows, row = self._distinct_rows
        n_shared_normals = self.samples * (rows.shape[1] - 1)
        n_arm_normals = 0 if self.arm_noise is None else self.samples * len(self)
        z = sampler.normals(seed, decision, start=FIRST_SAMPLE_WORD, count=n_shared_normals + n_arm_normals)
        values = z[:n_shared_normals].reshape(self.samples, -1) @ rows[:, 1:].T + rows[:, 0]
        if self.arm_noise is None:
            return Sampled(values, row)
        values = values.take(row, axis=1)
        return Sampled(values + self.arm_noise * z[n_shared_normals:].reshape(values.shape), np.arange(len(self)))

    def simulate_pages(self, runs: int, size: int, rng: np.random.Generator) -> Array:
        """Return the values that rank the arms at each position of simulated slates, (size, runs, m). Each slate
        belongs to a separate decision.

        Every position takes a random sample of its decision; two positions may take the same sample."""
        rows, row = self._distinct_rows
        d, n_noises = rows.shape[1] - 1, 0 if self.arm_noise is None else len(self)
        z, sample = rng.standard_normal((size, runs, d + n_noises)), rng.integers(self.samples, size=(size, runs))
        for position in range(1, size):
            for upper_position in range(position):
                is_same = sample[position] == sample[upper_position]
                z[position, is_same] = z[upper_position, is_same]
        values: Array = (z[..., :d] @ rows[:, 1:].T + rows[:, 0]).take(row, axis=-1)
        return values if self.arm_noise is None else values + self.arm_noise * z[..., d:]

    @cached_property
    def _distinct_rows(self) -> tuple[Array, Index]:
        """Return the distinct rows of location and factor, (u, 1 + d), and the index of each arm's row among them,
        (m,).

        A product over all arms could round equal rows differently, and equal arms would no longer tie."""
        return distinct_rows(np.column_stack([self.location, self.factor]))


class Sampled(Record, kw_only=False, eq=False):
    """Sampled scores are the posterior samples of one decision. At every position one sample, drawn independently,
    ranks the arms that are left.

    columns (samples, u): the values of distinct arms in each sample, in the unit of the reward; column (m,): the
    column of each arm in `columns`, since equal arms share a column."""

    columns: Array
    column: Index
    is_ruled: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.column)

    @property
    def values(self) -> Array:
        """Return the value of each arm in each sample, (samples, m)."""
        return self.columns.take(self.column, axis=1)

    @property
    def samples(self) -> int:
        return len(self.columns)

    def order(self, positions: int, *, earlier_order: Order | None = None) -> SampledOrder:
        return SampledOrder(self)

    @cached_property
    def best_columns(self) -> tuple[Index, Index]:
        """Return the indices of samples, and the best column in each of these samples. A sample has several entries if
        columns tie."""
        return best_of_rows(self.columns)

    def noise(self, shape: tuple[int, int], rng: np.random.Generator) -> Array:
        return self.values[rng.integers(self.samples, size=shape[0])]

    def decision_scores(self, seed: int, decision: int) -> Sampled:
        return self


@dataclass(frozen=True, eq=False)
class SampledOrder(Order):
    """A SampledOrder computes the probability of an arm as the fraction of samples in which the arm is the best. Arms
    that tie in a sample share this sample. The fractions are exact for the samples.

    Positions are independent given the arms left, so the whole slate is not drawn from a single order. Source: own
    derivation."""

    scores: Correlated | Sampled
    _shares_by_prefix: dict[frozenset[int], Array] = field(default_factory=dict)

    @cached_property
    def sample_set(self) -> Sampled:
        """Return the samples that the probabilities are computed from. For correlated scores these are the samples of
        decision 0.

        A sampler of many decisions does not use these samples, since each decision draws separate samples."""
        return self.scores.decision_scores(0, 0)

    def p_best(self) -> Array:
        return self._best_shares(frozenset())

    def ranks(self, size: int) -> Array:
        """Return the probability that each arm stands at each rank, (size, m). Ranks below the first have no closed
        form, and their probabilities are NaN."""
        ranks = np.full((size, len(self.scores)), np.nan)
        ranks[0] = self.p_best()
        return ranks

    def next_arms(self, prefixes: Index, *, floor: Floor) -> Array:
        return np.array([self._best_shares(frozenset(prefix)) for prefix in prefixes.tolist()])

    def conditionals(self, slates: Index, *, floor: Floor, with_minimum: bool) -> tuple[Array, Array]:
        probability, minimum = np.empty(slates.shape), np.zeros(slates.shape)
        for row, arms in enumerate(slates.tolist()):
            for position, arm in enumerate(arms):
                shares = self._best_shares(frozenset(arms[:position]))
                probability[row, position] = shares[arm]
                if with_minimum:
                    minimum[row, position] = np.delete(shares, arms[:position]).min()
        return probability, minimum

    def _best_shares(self, prefix: frozenset[int]) -> Array:
        """Return the fraction of the samples in which each arm is the best of the arms outside the prefix, (m,). The
        fraction is 0 for the arms of the prefix."""
        if prefix not in self._shares_by_prefix:
            sample_set, upper_arms = self.sample_set, list(prefix)
            sample, best_columns = sample_set.best_columns
            n_left = np.bincount(np.delete(sample_set.column, upper_arms), minlength=sample_set.columns.shape[1])
            # of samples whose best arms are all above, the best of the others
            exhausted_samples = np.flatnonzero(
                np.bincount(sample, n_left[best_columns], minlength=sample_set.samples) == 0
            )
            values = sample_set.columns[exhausted_samples]
            values[:, n_left == 0] = -np.inf
            lost_rows, lower_column = best_of_rows(values)
            sample, best_columns = np.r_[sample, exhausted_samples[lost_rows]], np.r_[best_columns, lower_column]
            ties = np.bincount(sample, n_left[best_columns])
            shares = (np.bincount(best_columns, 1 / ties[sample], minlength=len(n_left)) / sample_set.samples)[
                sample_set.column
            ]
            shares[upper_arms] = 0.0
            self._shares_by_prefix[prefix] = shares
        return self._shares_by_prefix[prefix]
