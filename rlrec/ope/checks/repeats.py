"""Rows that are in a log more than once, under other keys: an import of the same log twice, say.

Two decisions at the same time in the same context were drawn independently: whether the second one shows the arm of the
first one is a bet that the logged propensity prices, however coarse the times are. Copies win it always. Only the first
two decisions of each time and context are looked at, of a sample of these by their hashes.

Where times are so coarse that copies lie among many others, entire sessions are counted: of those that are alike in
everything there is as often an odd number as an even one, or more often, since many are alone. Where all came twice no
number is odd.
Source: own derivation (bets as in `intervals.betting`, parities of Poisson counts)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array, Ids, Words, numbers_in_runs, run_starts
from rlrec.ope.intervals.betting import log_wealth

MOST = 1_024  # times and contexts, and kinds of sessions, that are looked at
ALPHA = 5e-4  # false alarms of each test
LEAST_KINDS = 50  # kinds of sessions, for a test of their numbers
_NORMAL = 3.29  # standard errors, for ALPHA
_STAKES = np.r_[2.0 ** -np.arange(6, 0, -1), 0.9]


@dataclass(frozen=True, eq=False)
class Draws:
    """The first two draws of each of the MOST first groups of draws, by hash: samples of two batches add up.

    group, order (n,): hashes of a time and context, and of a decision; arm, p (n,): what was shown, and how likely"""

    group: Words
    order: Words
    arm: Ids
    p: Array

    @classmethod
    def sample(cls, group: Words, order: Words, arm: Ids, p: Array) -> Draws:
        rows = np.lexsort((order, group))
        starts = run_starts(group[rows])
        number = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(rows)))
        rows = rows[(numbers_in_runs(starts, len(rows)) < 2) & (number < MOST)]
        return cls(group[rows], order[rows], arm[rows], p[rows])

    def __add__(self, other: Draws) -> Draws:
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("group", "order", "arm", "p"))
        return Draws.sample(*map(np.concatenate, pairs))

    @property
    def are_repeated(self) -> bool:
        """Whether second draws show the arm of the first one more often than their propensities allow."""
        second = 1 + np.flatnonzero(self.group[1:] == self.group[:-1])
        gain = (self.arm[second] == self.arm[second - 1]) / self.p[second] - 1
        log = np.log1p(_STAKES[:, None] * gain).sum(axis=1)
        return float(log_wealth(log[:, None])[0]) > -np.log(ALPHA)


@dataclass(frozen=True, eq=False)
class Kinds:
    """How often each of the MOST first kinds of sessions occurs, by their hashes; of two batches they add up."""

    kind: Words
    count: Ids

    @classmethod
    def sample(cls, kind: Words, count: Ids) -> Kinds:
        kinds, index = np.unique(kind, return_inverse=True)
        return cls(
            kinds[:MOST], np.bincount(index.ravel(), weights=count, minlength=len(kinds)).astype(np.int64)[:MOST]
        )

    def __add__(self, other: Kinds) -> Kinds:
        return Kinds.sample(np.concatenate([self.kind, other.kind]), np.concatenate([self.count, other.count]))

    @property
    def are_repeated(self) -> bool:
        """Whether fewer kinds occur an odd number of times than chance allows."""
        kinds, odd = len(self.count), int((self.count % 2).sum())
        return kinds >= LEAST_KINDS and kinds / 2 - odd > _NORMAL * np.sqrt(kinds / 4)
