"""A test of young logs: whether a share of the reward is still on its way.

Imported decisions count at once, whatever their age was when their log ended. Their events tell how fast rewards come:
of decisions that were watched up to some age, the share of the reward that had come by an earlier one; these shares,
multiplied, say how much of the reward of younger decisions has come (a chain ladder).

Source: own derivation, after the chain ladder; the error by the jackknife over blocks of clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.ope.checks.within_cells import BLOCKS, block_numbers
from rlrec.records import Sums

AGES = 40  # classes of ages; each reaches to 1.25 times the age of the one before it, the last one to the window
_RATIO = 1.25
MATERIAL = 0.05  # share of the reward: if no more is on its way, that decides nothing
_ERRORS = 3
_LEAST = 50  # events of decisions that were watched up to an age, for a comparison


@dataclass(frozen=True, eq=False)
class ArrivalSums(Sums):
    """Sums over decisions and events. Classes of decisions are by their distance to the last decision of the log.

    decisions (64, AGES + 1): how many, by block of clusters and class; the last class has those that are complete
    rewards (64, AGES + 1, AGES): of events, by block, class of the decision and class of the event's age
    events (AGES + 1, AGES): how many
    watched: how long after the last decision the log goes on, in windows"""

    decisions: Array
    rewards: Array
    events: Array
    watched: float

    def __add__(self, other: Self) -> Self:
        columns = (self.decisions + other.decisions, self.rewards + other.rewards, self.events + other.events)
        return type(self)(*columns, max(self.watched, other.watched))

    @classmethod
    def from_rows(cls, distance: Array, *, cluster: Ids, decision: Ids, age: Array, reward: Array) -> ArrivalSums:
        """distance (n,): of each decision to the last one of the log, in windows, infinite where it is complete;
        cluster (n,). decision, age, reward (m,): of each event, that of its decision, its age in windows of at most 1,
        and what it adds to the reward."""
        block, classes, shape = block_numbers(cluster), _classes(distance), (BLOCKS, AGES + 1)
        number = np.bincount(block * shape[1] + classes, minlength=shape[0] * shape[1]).reshape(shape)
        cell = classes[decision] * AGES + np.minimum(_classes(age), AGES - 1)
        table = (AGES + 1) * AGES
        rewards = np.bincount(block[decision] * table + cell, weights=reward, minlength=BLOCKS * table)
        watched = (age - distance[decision]).max(initial=0.0)
        return cls(
            number.astype(np.float64), rewards.reshape(*shape, AGES).astype(np.float64),
            np.bincount(cell, minlength=table).reshape(AGES + 1, AGES).astype(np.float64), float(watched),
        )  # fmt: skip

    @property
    def are_young(self) -> bool:
        """Whether a share of the reward that matters is surely still on its way."""
        decisions, rewards = self.decisions.sum(axis=0), self.rewards.sum(axis=0)
        missing = self._missing(decisions, rewards)
        if missing <= MATERIAL:
            return False
        present = np.flatnonzero(self.decisions.any(axis=1))
        jackknifed = [
            self._missing(decisions - self.decisions[block], rewards - self.rewards[block]) for block in present
        ]
        error = np.sqrt((len(present) - 1) * np.var(jackknifed))
        return bool(missing - _ERRORS * error > MATERIAL)

    def _missing(self, decisions: Array, rewards: Array) -> float:
        """The share of the reward that is on its way, by sums over blocks."""
        edges = _RATIO ** np.arange(1.0 - AGES, 1.0)
        # how long decisions of each class were watched, at least and at most
        least, longest = np.r_[0.0, edges] + self.watched, np.r_[edges, np.inf] + self.watched
        links = np.ones(AGES)
        for age in range(1, AGES):
            old = least >= edges[age]
            earlier, later = rewards[old, :age].sum(), rewards[old, : age + 1].sum()
            if self.events[old, : age + 1].sum() >= _LEAST and later > 0:
                links[age] = earlier / later
        arrived = np.r_[arrived_shares(links), 1.0][np.searchsorted(edges, longest)]
        return float(1 - decisions @ arrived / decisions.sum())


def arrived_shares(links: Array) -> Array:
    """The share of all reward that has come by each age, (a,). links (a,): what came by the age before it, as a share
    of what came by itself, of decisions that were watched for so long; the first one does not matter."""
    return np.append(np.cumprod(links[:0:-1])[::-1], 1.0)


def _classes(age: Array) -> Ids:
    """The class of each age, in windows; AGES from a whole window on."""
    with np.errstate(divide="ignore"):
        steps = np.ceil(np.log(age) / np.log(_RATIO)) + AGES - 1
    return np.clip(np.where(age >= 1, AGES, steps), 0, AGES).astype(np.int64)
